"""`synaptune report` on real studies: with failures, with one trial, with no finished trial, with
names that need escaping.
"""

import argparse
import random
import shutil
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.webclient import request
from synaptune import TrialManager
from synaptune.analysis.evidence import gather_evidence
from synaptune.cli import report
from synaptune.cli.main import main
from synaptune.core.errors import UserError
from synaptune.protocols import final_report
from synaptune.report.dashboard.study_index import StudyIndex
from synaptune.report.write import BROWSERS
from synaptune.search.space.file import parse_range_entry, read_space_file
from synaptune.search.space.space import Dimension, Space
from synaptune.search.space.values import find_choice, is_same
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.reader import find_study
from synaptune.study.study import PhaseLedger, Study

MARKUP = "<b>bold</b>"
NAMES = ("<script>alert(1)</script>", 'a&b "quoted"', "$x_1$")


def command(*arguments):
    """Run the command as the command line does."""
    parser = argparse.ArgumentParser()
    report.add_command(parser.add_subparsers(required=True))
    options = parser.parse_args(["report", *map(str, arguments)])
    options.command(options)


class Text(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.scripts, self.texts = 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script" and ("type", "application/json") not in attrs

    def handle_data(self, data):
        self.texts.append(data)


def make_study(folder, trials, *, name="study", names=("x", "y"), fails=(), maximize=False):
    """Make the study of a noisy quadratic; the trials with the positions `fails` raise."""
    draw, calls = random.Random(0), iter(range(trials))

    def bowl(values):
        if next(calls) in fails:
            raise RuntimeError("no <b>luck</b>\nsecond line")
        value = sum((values[each] - 3.0) ** 2 for each in names) + draw.gauss(0.0, 0.1)
        return -value if maximize else value

    manager = TrialManager(
        name,
        trials,
        "maximize" if maximize else "minimize",
        sampler="random",
        directory=folder,
        progress=False,
        max_failure_rate=1.0,
    )
    manager.optimize(bowl, dict.fromkeys(names, ("uniform", 0.0, 10.0)))
    return folder


def test_a_study_with_failures_and_awkward_names_has_a_report(tmp_path, capsys):
    folder = make_study(tmp_path / "s", 12, name='q "<i>" & co', names=NAMES, fails=(2, 5))
    command(folder)
    text = (folder / "report" / "report.html").read_text()
    page = Text(text)
    page_text = "".join(page.texts)
    assert page.scripts == 1
    assert all(name in page_text for name in NAMES)
    assert 'q "<i>" & co' in page_text
    assert "no <b>luck</b>" in page_text
    assert "second line" not in page_text
    assert "No claim: nothing has been validated" in page_text
    markdown = (folder / "report" / "report.md").read_text()
    assert "| error | RuntimeError: no \\<b\\>luck\\</b\\> | 2 | 2, 5 |" in markdown
    assert (folder / "report" / "figures" / "convergence.svg").is_file()
    assert "12 trials" in capsys.readouterr().out


def test_a_maximised_study_of_one_trial_shows_its_objective_as_it_is(tmp_path):
    folder = make_study(tmp_path / "s", 1, maximize=True)
    command(folder, "--format", "html", "--out", tmp_path / "out")
    (trial,) = find_study(str(folder)).trials
    assert trial.objective < 0
    assert f"{trial.objective:.6g}" in (tmp_path / "out" / "report.html").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_study_whose_process_has_left_a_trial_open_is_marked_as_interrupted(tmp_path, capsys):
    location = resolve_location(StudyConfig("young", str(tmp_path / "young")), "young")
    space = Space((Dimension("x", "lin", 0.0, 1.0), Dimension("y", "lin", 0.0, 1.0)))
    with Study(location, {"a": 1}) as study:
        ledger = PhaseLedger(study, space, "search", {})
        ledger.start(0, (0.5, 0.5), space.to_values((0.5, 0.5)))
    command(tmp_path / "young")
    page_text = "".join(Text((tmp_path / "young" / "report" / "report.html").read_text()).texts)
    assert "interrupted" in page_text
    assert "No claim: no trial is complete (0 failed, 1 not ended)." in page_text
    assert "young is interrupted" in capsys.readouterr().out


def score_mixed_choices(p):
    return p["x"] + (p["none"] is not None) + len(p["lists"])


@pytest.mark.slow
def test_choices_of_any_value_are_readable_everywhere(tmp_path, monkeypatch, capsys):
    """None, lists, dicts, texts that need quotes, and choices that are equal to Python."""
    monkeypatch.chdir(tmp_path)
    long = "word " * 100
    choices = {
        "none": [None, "None", "a"],
        "equal": [1, True, 1.0, "1"],
        "lists": [[1], [1, 2], ["1e3", None]],
        "dicts": [{"a": 1}, {"a": {"b": [None]}}, {}],
        "texts": [f"{long}a", f"{long}b", "1e3", "", "two\nlines", MARKUP, "it's a|b $x$"],
        "x" * 250: [False, True],
    }
    space = {name: ("categorical", values) for name, values in choices.items()}
    for study, sampler in (("plain", "random"), ("evolved", "cma")):
        manager = TrialManager(study, n_trials=24, sampler=sampler, progress=False)
        manager.optimize(score_mixed_choices, {"x": ("uniform", 0.0, 1.0), **space})
        assert set(manager.get_param_importance()) == {"x", *choices}
        main(["report", study])
    main(["report", "plain", "evolved"])
    main(["export", "plain", "--out", "plain.csv"])
    for rule in ("tested", "plan"):
        main(["refine", "plain", "--rule", rule])
        file = read_space_file(Path("outputs/studies/plain/plain-refined.yaml"))
        for name, values in choices.items():
            entry = file.ranges.get(name, {"choices": [file.fixed.get(name)]})
            kept = [values[find_choice(values, value)] for value in entry["choices"]]
            assert is_same(kept, entry["choices"])
            assert parse_range_entry(name, entry, None, values[0]).contains(entry["choices"][0])
        if rule == "tested":
            assert len(file.ranges["equal"]["choices"]) == 4
    text = (tmp_path / "outputs/studies/plain/report/report.html").read_text()
    assert Text(text).scripts == 1
    assert "1, True, 1.0, &#x27;1&#x27;" in text
    assert "None, &#x27;None&#x27;, a" in text
    assert "two\\nlines" in text
    evidence = gather_evidence(find_study("evolved"))
    assert all(entry.fanova is not None for entry in evidence.importances)
    app = pytest.importorskip("synaptune.report.dashboard.app")
    pages = app.DashboardApp(StudyIndex(tmp_path / "outputs/studies"))
    for path in ("", "/trials", "/trial/3", "/best.yaml", "/best.json", "/trials.csv"):
        reply = request(pages, f"/synaptune/study/plain{path}", query="sort=none")
        assert reply.status == 200
        assert path in ("/best.yaml", "/best.json", "/trials.csv") or MARKUP not in reply.text


def test_a_report_to_share_is_a_pdf_and_an_archive(tmp_path, monkeypatch, capsys):
    folder = make_study(tmp_path / "s", 4)
    (folder / "report" / "figures").mkdir(parents=True)
    (folder / "report" / "figures" / "old.svg").write_text("of an earlier report")
    pdf = ["--pdf"] if any(map(shutil.which, BROWSERS)) else []
    command(folder, "--zip", *pdf)
    assert "report.zip" in capsys.readouterr().out
    with zipfile.ZipFile(folder / "report" / "report.zip") as archive:
        names = set(archive.namelist())
        assert archive.read("trials.csv").decode().count("\n") == 5
        assert archive.read("best.yaml").decode().startswith("# study study, trial ")
    assert names >= {"report.html", "report.md", "figures/convergence.svg", "tables/trials.csv"}
    assert "figures/old.svg" not in names
    assert ("report.pdf" in names) == bool(pdf)
    if pdf:
        assert (folder / "report" / "report.pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="without a browser that prints"):
        command(folder, "--pdf")


def test_several_studies_are_compared(tmp_path, capsys):
    first, second = (
        make_study(tmp_path / "one", 4, name="one"),
        make_study(tmp_path / "two", 3, name="two"),
    )
    command(first, second)
    assert "comparison.html" in capsys.readouterr().out
    page_text = "".join(Text((first / "report" / "comparison.html").read_text()).texts)
    assert "not paired: no validation in one and two" in page_text
    assert (first / "report" / "comparison.md").is_file()


def test_a_report_that_could_not_be_written_is_tried_again_where_the_study_lies(
    tmp_path, monkeypatch, capsys
):
    def raise_error(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(final_report, "store_inspections", lambda *_: None)
    monkeypatch.setattr("synaptune.report.write.write_report", raise_error)
    folder, database = make_study(tmp_path / "s", 2, name="mine"), tmp_path / "all.db"
    (folder / "study.db").rename(database)
    for url, command_line in (("", f"mine --storage sqlite:///{database}"), ("here", str(folder))):
        if url:
            database.rename(folder / "study.db")
        location = resolve_location(
            StudyConfig("mine", str(folder), None if url else f"sqlite:///{database}"), "mine"
        )
        final_report.write_final_report(
            SimpleNamespace(study=SimpleNamespace(location=location, mark_ended=lambda: None)),
            (),
            (),
        )
        assert f"synaptune report {command_line} tries again" in capsys.readouterr().out


def test_user_errors_have_messages(tmp_path):
    with pytest.raises(UserError, match="no study database"):
        command(tmp_path / "nothing")
    with pytest.raises(UserError, match="--against with several studies"):
        command("a", "b", "--against", "c")


def test_the_command_imports_nothing_slow_until_it_runs():
    import subprocess

    code = "import sys, synaptune.cli.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert not {"optuna", "matplotlib", "scipy", "sklearn", "nevergrad"} & set(loaded)
