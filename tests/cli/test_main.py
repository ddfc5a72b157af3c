"""The `synaptune` command as a user runs it."""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import processes
from helpers.paths import ROOT
from synaptune.analysis import sensitivity
from synaptune.cli import main as cli
from synaptune.cli import sample
from synaptune.data.tokenizer import Tokenizer
from synaptune.synapse.circuit import SPECS
from synaptune.training import checkpoint

SYNAPTUNE = [sys.executable, "-m", "synaptune.cli.main"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a real training run, at smoke scale."""
    folder = tmp_path_factory.mktemp("run")
    words = ["scale=smoke", "logger=csv", "logger.progress=off", f"hydra.run.dir={folder}"]
    done = processes.run([str(ROOT / "train.py"), *words], folder)
    assert done.returncode == 0, done.stderr
    return folder


def run_sample(capsysbinary, *words: str) -> bytes:
    assert cli.main(["sample", *words]) == 0
    return capsysbinary.readouterr().out


def test_the_command_continues_a_prompt_from_a_run_folder(trained):
    words = ["sample", str(trained), "--prompt", "import öde", "--tokens", "12"]
    result = subprocess.run([*SYNAPTUNE, *words], cwd="/", capture_output=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().startswith("import öde")
    assert result.stdout.endswith(b"\n")
    assert len(result.stdout) > len("import öde\n".encode()) + 3


def test_a_seed_gives_one_text_and_another_seed_another(trained, capsysbinary):
    words = [
        str(trained / "checkpoint.pt"),
        "--prompt",
        "def ",
        "--tokens",
        "20",
        "--temperature",
        "1",
    ]
    first = run_sample(capsysbinary, *words)
    assert run_sample(capsysbinary, *words) == first
    assert run_sample(capsysbinary, *words, "--seed", "1") != first


def test_temperature_0_and_top_k_1_take_the_likeliest(trained, capsysbinary):
    words = [str(trained), "--prompt", "def ", "--tokens", "10"]
    assert run_sample(capsysbinary, *words, "--temperature", "0") == run_sample(
        capsysbinary, *words, "--top-k", "1"
    )


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_model_that_diverged_gives_no_text(trained, tmp_path, capsys, temperature):
    content = checkpoint.load(trained / "checkpoint.pt")
    content["weights"]["head.weight"][0] = math.nan
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    words = ["sample", str(tmp_path), "--prompt", "a", "--temperature", temperature]
    assert cli.main(words) == 2
    assert "logits are not finite" in capsys.readouterr().err


def test_the_bounds_of_temperature_and_fatigue_give_text(trained, capsysbinary):
    words = ["--prompt", "a", "--temperature", "0.001", "--fatigue", "1000", "--tokens", "300"]
    assert len(run_sample(capsysbinary, str(trained), *words)) >= 300


def test_a_text_longer_than_the_context_goes_on(trained, capsysbinary):
    assert (
        len(
            run_sample(
                capsysbinary, str(trained), "--prompt", "x" * 100, "--tokens", "80", "--top-k", "3"
            )
        )
        > 150
    )


def test_characters_come_whole_and_broken_ones_do_not_hold_up_the_rest():
    tokens = [*"aé€😀".encode(), 0xFF, *b"bcd", 0xE2, 0x82]
    pieces = list(sample.stream_characters(tokens, Tokenizer().decode))
    assert pieces == ["a", "é", "€", "😀", "\ufffdb", "c", "d", "\ufffd"]


def test_a_checkpoint_of_another_model_is_said_so(trained, tmp_path, capsys):
    content = checkpoint.load(trained / "checkpoint.pt")
    content["about"]["model"]["gone"] = 1
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    assert cli.main(["sample", str(tmp_path), "--prompt", "a"]) == 2
    assert "does not fit this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "nosuch.pt", "--prompt", "a"], "no checkpoint at nosuch.pt"),
        (["sample", ".", "--prompt", "a"], "no checkpoint at checkpoint.pt"),
        (["sample", "garbage.pt", "--prompt", "a"], "unreadable checkpoint garbage.pt"),
        (["sample", "x", "--prompt", ""], "--prompt: expected some text"),
        (["sample", "x", "--prompt", "\udcff"], "--prompt: expected text in UTF-8"),
        (
            [
                "sample",
                "x",
                "--prompt",
                "a",
                "--tokens",
                "0",
                "--temperature",
                "-1",
                "--top-k",
                "0",
            ],
            "--temperature -1.0: expected",
        ),
        (
            ["sample", "x", "--prompt", "a", "--temperature", "1e-320", "--fatigue", "1e308"],
            "--temperature 1e-320: expected 0, or at least 0.001\n  --fatigue 1e+308: expected 0",
        ),
        (["sensitivity", "--seeds", "1"], "--seeds 1"),
        (
            ["cost", "--devices", "0", "--price", "-1"],
            "--devices 0: expected at least 1\n  --price -1.0",
        ),
        (["cost", "--plan", "all48"], "without protocol.budget"),
        (["cost", "protocol.group_budget=5"], "no such name"),
        (["cost", "scale=smok"], "closest: smoke"),
        (["cost", "--study", "nosuch"], "nosuch/study.db"),
    ],
)
def test_a_user_error_has_a_message_and_exit_code_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("garbage.pt").write_bytes(b"no checkpoint")
    assert cli.main(words) == 2
    output = capsys.readouterr().err
    assert output.startswith("got ")
    assert message in output
    assert "to do: " in output


def test_parameters_lists_every_one(capsys):
    assert cli.main(["parameters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [spec.name for spec in SPECS]


def test_a_dead_parameter_is_marked_in_its_row_and_counted():
    effects = [
        sensitivity.Sensitivity(SPECS[0], 3.0, 3.1, 0.1, 2.0),
        sensitivity.Sensitivity(SPECS[1], 3.0, 3.00001, 1e-5, 0.1),
    ]
    assert [sensitivity.format_row(effect).endswith("DEAD") for effect in effects] == [False, True]
    assert sensitivity.format_summary(effects, 1e-9).startswith("2 parameters, 1 dead")
    assert len(sensitivity.format_header()) == len(sensitivity.format_row(effects[0]))


def test_cost_prices_the_protocol_from_a_measured_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "cost",
        "protocol.budget=21",
        "protocol.seeds=2",
        "--devices",
        "10",
        "--steps",
        "4",
        "--warmup",
        "2",
        "--price",
        "3",
        "scale=smoke",
    ]
    assert cli.main([*words, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    rows = {row["stage"]: row for row in output["rows"]}
    assert [
        rows[name]["runs"] for name in ("start-up", "sanity", "search", "validation", "inspection")
    ] == [10, 13, 20, 4, 2]
    run, tested = rows["search"]["seconds"]["median"], rows["validation"]["seconds"]["median"]
    assert 0.0 < run < tested
    assert rows["search"]["wall_hours"] * 3600.0 == pytest.approx(2 * run)
    assert output["money"] == pytest.approx(3 * output["device_hours"])
    assert rows["screen"]["seconds"]["median"] < run
    saved = output["screening"]
    assert (saved["parameters_before"], saved["parameters_after"]) == (48, 10)
    assert (saved["evaluations_before"], saved["evaluations_after"]) == (101, 21)
    assert saved["money_saved"] == pytest.approx(3 * saved["device_hours_saved"])
    assert not list(tmp_path.iterdir())
    assert cli.main([*words, "--plan", "all48", "training.evaluations=1"]) == 0
    output = capsys.readouterr().out
    assert "all48: 21 evaluations of 48 parameters" in output
    assert "measured: step" in output


def test_cost_prices_phase_2_with_its_groups(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "cost",
        "--plan",
        "phase2",
        "protocol.group_budget=11",
        "--devices",
        "4",
        "--steps",
        "2",
        "--warmup",
        "1",
        "scale=smoke",
        "--json",
    ]
    assert cli.main(words) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["budget"], output["parameters"]) == (60, 48)
    runs = {row["stage"]: row["runs"] for row in output["rows"]}
    gates = (1 + 6) * 3
    assert runs == {
        "start-up": 4,
        "baseline": 1,
        "groups": 6 * 10,
        "gates": gates,
        "joint": 60,
        "validation": 10,
        "inspection": 2,
    }


def test_help_is_quick():
    code = (
        "import sys, synaptune.cli.main as cli\ntry: cli.main(['--help'])\nexcept SystemExit:"
        " print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "hydra"} & set(loaded)


def list_commands(parser, words=()):
    """Every subcommand with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from list_commands(child, (*words, name))
            return
    yield " ".join(words), parser


def test_every_command_says_what_it_does_and_one_with_json_can_be_quiet():
    commands = dict(list_commands(cli._make_parser()))
    flags = {
        name: {flag for action in parser._actions for flag in action.option_strings}
        for name, parser in commands.items()
    }
    no_table = {"dashboard", "sample", "rm", "rename", "archive", "export"}
    assert {name for name in flags if "--json" not in flags[name]} == no_table
    assert all("--quiet" in flags[name] for name in flags if name not in ("dashboard", "sample"))
    assert all(str(parser.description).endswith(".") for parser in commands.values() if parser)
