"""`synaptune refine` on a table and on a study: files and errors."""

import argparse
import shlex

import pytest
import yaml

from helpers.plan_runs import METRIC, make_plan_runs, write_runs
from synaptune import TrialManager
from synaptune.cli import main as cli
from synaptune.cli import refine
from synaptune.config.conf import CONF_DIR
from synaptune.config.overrides import expand_space_file
from synaptune.core.errors import UserError
from synaptune.search.space.file import parse_range_entry, read_space_file
from synaptune.search.space.values import make_key


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command, in a folder with the plan's runs.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_runs(tmp_path / "runs.csv", make_plan_runs(), exported=True)
    parser = argparse.ArgumentParser()
    refine.add_command(parser.add_subparsers())

    def command(*arguments: str) -> None:
        options = parser.parse_args(["refine", *arguments])
        options.command(options)

    return command


PLAN = ("runs.csv", "--metric", METRIC, "--maximize", "--threshold", "0.1")


def test_a_table_gives_a_space_and_its_reasons(run, tmp_path, capsys):
    run(*PLAN)
    output = capsys.readouterr().out
    assert "16 high performers of 48 runs of runs.csv" in output
    assert "fixed at 8" in output
    assert "written to runs-refined.yaml and runs-refined.md" in output
    space = yaml.safe_load((tmp_path / "runs-refined.yaml").read_text())
    assert space["name"] == "runs-refined"
    assert space["fixed"] == {"batch_size": 8}
    assert space["ranges"]["learning_rate"] == {"low": 1e-7, "high": 2e-6, "log": True}
    assert "all 16 high performers agree" in (tmp_path / "runs-refined.md").read_text()
    run(*PLAN)  # a second call replaces the files of the first


def test_the_plan_rule_and_new_names_come_out_in_the_file(run, tmp_path):
    run(
        *PLAN,
        "--rule",
        "plan",
        "--rename",
        "learning_rate=training.learning_rate",
        "--out",
        "out/next.yml",
        "--name",
        "focused",
    )
    space = yaml.safe_load((tmp_path / "out/next.yml").read_text())
    assert space["name"] == "focused"
    assert space["ranges"]["training.learning_rate"] == {"low": 8e-8, "high": 4e-7, "log": True}
    assert space["ranges"]["schedule"] == {"choices": ["advanced", "cosine"], "weights": [65, 35]}
    assert (tmp_path / "out/next.md").exists()


def test_a_study_gives_a_space_in_its_folder(run, tmp_path, capsys):
    manager = TrialManager("bowl", n_trials=40, sampler="random", progress=False)
    manager.optimize(
        lambda p: (p["x"] - 3.0) ** 2, {"x": ("uniform", 0.0, 10.0), "y": ("int", 1, 20)}
    )
    run("bowl", "--quantile", "0.25")
    output = capsys.readouterr().out
    assert "10 high performers of 40 runs of study bowl, search" in output
    assert "adaptive" not in output
    space = yaml.safe_load((tmp_path / "outputs/studies/bowl/bowl-refined.yaml").read_text())
    assert space["ranges"]["y"] == {"low": 1, "high": 20, "log": False, "integer": True}
    assert 0.0 <= space["ranges"]["x"]["low"] < 3.0 < space["ranges"]["x"]["high"] < 9.0


def test_a_study_with_dots_in_its_name_keeps_them(run, tmp_path):
    manager = TrialManager("lr.v2", n_trials=20, sampler="random", progress=False)
    manager.optimize(lambda p: (p["x"] - 3.0) ** 2, {"x": ("uniform", 0.0, 10.0)})
    run("lr.v2", "--quantile", "0.25")
    folder = tmp_path / "outputs/studies/lr.v2"
    assert yaml.safe_load((folder / "lr.v2-refined.yaml").read_text())["name"] == "lr.v2-refined"
    assert (folder / "lr.v2-refined.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch",), "no study database"),
        (("nosuch.csv",), "nosuch.csv: No such file"),
        (("runs.csv", "--metric", "train_reward"), "measured in training"),
        (("runs.csv", "--threshold", "99"), "48 of 48 runs with eval_change at most 99"),
        (("runs.csv", "--rename", "learning_rate"), "--rename learning_rate"),
        ((*PLAN, "--out", "next.json"), "--out next.json"),
        ((*PLAN, "--out", "README.yaml"), "would overwrite README.md"),
    ],
)
def test_a_user_error_has_a_message_and_writes_nothing(run, tmp_path, arguments, message):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "runs.csv"]


def test_what_is_printed_to_do_next_works(run, tmp_path, capsys):
    run(*PLAN)
    code = capsys.readouterr().out.split("in Python: ")[1]
    assert "train.py has no learning_rate" not in code
    study = eval(code, {"TrialManager": make_short_manager, "objective": lambda values: 1.0})
    assert study["batch_size"] == 8
    names = "learning_rate=training.learning_rate", "batch_size=training.steps"
    options = [word for name in names for word in ("--rename", name)]
    selected = ["--parameters", "learning_rate,batch_size", "--out", "my space.yaml"]
    run(*PLAN, *options, *selected)
    command = capsys.readouterr().out.split("use: python train.py ")[1]
    words = shlex.split(command)
    assert words == ["-m", "hydra/sweeper=cma", "search_space=my space.yaml"]
    overrides = expand_space_file(words, CONF_DIR, "train")
    assert any(word.startswith("training.steps=8") for word in overrides)


def make_short_manager(name):
    return TrialManager(name, n_trials=2, sampler="random", progress=False)


@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.encode("utf-16"),
        lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        lambda text: ("sep=;\n" + text.replace(",", ";").replace(".", ",")).encode(),
        lambda text: text.replace(",", "\t").replace("\n", "\n\n").encode(),
        lambda text: text.replace("note", "n\u00f6te").encode("latin-1"),
        lambda text: text.replace("\n", ",,\n").encode(),
    ],
    ids=["utf-16", "excel", "decimal comma", "tabs and empty lines", "latin-1", "empty columns"],
)
def test_a_table_of_another_program_gives_the_same_space(run, tmp_path, write):
    lines = ["lr,note,val_loss"] + [f"{0.01 + at / 64},note,{at * 0.5}" for at in range(24)]
    text = "\n".join(lines) + "\n"
    spaces = []
    for name, content in (("plain", text.encode()), ("other", write(text))):
        (tmp_path / f"{name}.csv").write_bytes(content)
        run(f"{name}.csv", "--name", "same")
        spaces.append(yaml.safe_load((tmp_path / "same.yaml").read_text()))
    assert spaces[0] == spaces[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.25,k", "oops,k", "line 5: 'oops' among numbers"),
        ("0.25,k", "inf,k", "line 5: inf in a range"),
        ("0.25,k", ",k", r"empty in 1 of the runs \(line 5\)"),
        ("k,3.0", 'k,"3', "line 5: unexpected end of data"),
        ("k,3.0", "k,3.0,9", "line 5 with 4 cells under 3 names"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_with_its_line(run, tmp_path, old, new, message):
    lines = ["x,kind,val_loss"] + [f"{at / 12},k,{float(at)}" for at in range(24)]
    (tmp_path / "x.csv").write_text("\n".join(lines).replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        run("x.csv")


def test_a_table_that_pandas_wrote_gives_whole_numbers_back(run, tmp_path):
    manager = TrialManager("exp", n_trials=24, sampler="random", progress=False)
    manager.optimize(lambda p: p["k"], {"k": ("int", 0, 20), "size": ("categorical", [8, 16, 32])})
    assert cli.main(["export", "exp", "--out", "exp.csv"]) == 0
    header, *lines = (tmp_path / "exp.csv").read_text().splitlines()
    at = header.split(",").index("generation")
    rows = [line.split(",") for line in lines]
    rows = [[*row[:at], f"{row[at]}.0", *row[at + 1 :]] for row in rows]
    rows += [[*row[:at], "", *row[at + 1 :]] for row in rows]
    (tmp_path / "exp.csv").write_text("\n".join([header, *map(",".join, rows)]))
    run("exp.csv")
    space = yaml.safe_load((tmp_path / "exp-refined.yaml").read_text())
    assert set(space["ranges"]) | set(space.get("fixed", {})) == {"k", "size"}


def test_steps_and_choices_of_any_type_stay_in_the_space(run, tmp_path):
    choices = [None, "a", [1, 2], {"k": 1}, True, 1]
    space = {
        "s": ("int", 0, 20, 4),
        "c": ("categorical", choices),
        "my name": ("uniform", 0.0, 1.0),
    }
    manager = TrialManager("odd", n_trials=40, sampler="random", seed=1, progress=False)
    manager.optimize(lambda p: p["my name"], space)
    run("odd")
    text = (tmp_path / "outputs/studies/odd/odd-refined.yaml").read_text()
    ranges = yaml.safe_load(text)["ranges"]
    assert ranges["s"] == {"low": 0, "high": 20, "log": False, "integer": True, "step": 4}
    assert list(map(make_key, ranges["c"]["choices"])) == list(map(make_key, choices))
    file = read_space_file(tmp_path / "outputs/studies/odd/odd-refined.yaml")
    assert parse_range_entry("s", file.ranges["s"], None, 8).step == 4
