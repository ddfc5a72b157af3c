"""`search_space=FILE.yaml`: the ranges and fixed values of a file in single runs, searches and
protocols.
"""

import argparse
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers import processes
from helpers.paths import ROOT
from synaptune import TrialManager
from synaptune.cli import refine
from synaptune.config.compose import compose_config
from synaptune.config.overrides import expand_space_file
from synaptune.config.search_space import make_study_configuration, read_dimensions
from synaptune.core.errors import UserError
from synaptune.protocols.phase1 import build_space
from synaptune.search.space.file import (
    SpaceFile,
    format_space_file,
    read_space_file,
)
from synaptune.search.space.override_text import format_value
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import is_same
from synaptune.study.reader import find_study

FILE = SpaceFile(
    "tiny",
    ("synapse.calcium.alpha_ca",),
    {
        "training.learning_rate": {"low": 8e-8, "high": 4e-3, "log": True},
        "synapse.vesicles.tau_rrp": {"low": 20, "high": 60},
        "training.batch": {"choices": [4, 8], "weights": [65, 35]},
        "position.kind": {"choices": ["it's", "b"]},
    },
    {"training.weight_decay": 0.05, "synapse.calcium.tau_c": 0.9},
)


def saved(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    """FILE without the range that no configuration of ours has."""
    ranges = {name: entry for name, entry in FILE.ranges.items() if name != "position.kind"}
    return saved(
        tmp_path, format_space_file(SpaceFile(FILE.name, FILE.parameters, ranges, FILE.fixed))
    )


def test_a_file_reads_as_it_was_written(tmp_path):
    assert read_space_file(saved(tmp_path, format_space_file(FILE, ["a comment"]))) == FILE


def test_its_words_are_what_hydra_reads_them_as():
    parsed = [
        OverridesParser.create().parse_override(word)
        for word in FILE.to_overrides(["training.weight_decay"])
    ]
    values = {override.key_or_group: override.value() for override in parsed}
    assert values["search_space.ranges"] == FILE.ranges
    assert values["search_space.parameters"] == list(FILE.parameters)
    assert values["synapse.calcium.tau_c"] == 0.9
    assert "training.weight_decay" not in values
    assert values["search_space.fixed"] == {"synapse.calcium.tau_c": 0.9}


@pytest.mark.parametrize(
    "value",
    [None, [None, [1, True]], {"a b": {"c.d": [1.0]}, 2: None}, r"a\\b\'", "back\\", "two\nlines"],
)
def test_a_value_is_the_same_after_the_override_grammar(value):
    text = f"x={format_value([value])}"
    (parsed,) = OverridesParser.create().parse_override(text).value()
    assert is_same(getattr(parsed, "text", parsed), value)


def test_a_protocol_searches_its_ranges_with_its_fixed_values(path):
    begun = compose_config([f"search_space={path}", "scale=smoke"])
    space = build_space(begun)
    assert {dimension.name: dimension.describe() for dimension in space.dimensions} == {
        "synapse.calcium.alpha_ca": "log [0.1, 2]",
        "synapse.vesicles.tau_rrp": "log [20, 60]",
        "training.learning_rate": "log [8e-08, 0.004]",
        "training.batch": "choice [4, 8] weights [65.0, 35.0]",
    }
    assert begun.location.name == "tiny"
    assert (begun.base.training.weight_decay, begun.base.synapse.calcium.tau_c) == (0.05, 0.9)
    about = make_study_configuration(begun.base, space, {})
    assert about["training.weight_decay"] == about["search.fixed.training.weight_decay"] == 0.05
    assert about["search.space.training.batch"] == "choice [4, 8] weights [65.0, 35.0]"


def test_the_command_line_wins_over_the_file(path):
    words = ["training.weight_decay=0.2", "training.batch=8", f"search_space={path}", "scale=smoke"]
    begun = compose_config(words)
    assert (begun.base.training.weight_decay, begun.base.training.batch) == (0.2, 8)
    assert "training.batch" not in build_space(begun).names


def test_a_file_of_names_alone_is_the_choice_of_that_name():
    by_file, by_name = (
        compose_config([f"search_space={value}"])
        for value in (ROOT / "conf/search_space/phase1.yaml", "phase1")
    )
    assert read_dimensions(by_file.base) == read_dimensions(by_name.base)
    assert by_file.location.name == by_name.location.name


def test_other_words_are_left_alone():
    words = ["-m", "hydra/sweeper=cma", "search_space=phase1", "data.path=a.yaml"]
    assert expand_space_file(words, ROOT / "conf", "train") == words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "while parsing"),
        ("- 1", "not a mapping"),
        ("{}", "nothing to search"),
        ("parameter: [x]", "parameter: no such key (closest: parameters)"),
        ("ranges: {x: 3}", "x: 3 is not a range"),
        ("ranges: {x: {}}", "x: an empty range"),
        ("ranges: {x: {low: 1, hih: 2}}", "x: unexpected key hih with low"),
        ("ranges: {x: {low: a, high: 2}}", "x: low: 'a'"),
        ("ranges: {x: {choices: []}}", "x: choices: []"),
        ("ranges: {x: {choices: [1, 2], weights: [1, b]}}", "x: weights: [1, 'b']"),
        ("ranges: {x: {low: 1, high: 2}}\nfixed: {x: 1}", "x: both in ranges and in fixed"),
        ("ranges: {x: {low: 1, high: 2}}\nfixed: {y: ['${z}']}", "y: fixed at ['${z}']"),
        ("ranges: {'x=y': {low: 1, high: 2}}", "'x=y' is not a name"),
    ],
)
def test_what_is_wrong_in_the_shape_of_a_file_is_said(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        read_space_file(saved(tmp_path, text))
    assert said in str(caught.value)
    assert "to do: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ranges: {training.bach: {low: 1, high: 2}}", "training.bach (closest: training.batch"),
        (
            "parameters: [synapse.*]\nfixed: {synapse.calcium.tau: 1}",
            "synapse.calcium.tau (closest: synapse.calcium.tau_",
        ),
        ("ranges: {training.batch: {low: 1}}", "training.batch without high"),
        ("ranges: {training.batch: {low: 8, high: 2}}", "low 8 is not below high 2"),
        ("ranges: {training.batch: {low: 0, high: 4}}", "where 0 is not valid: training.batch=0"),
        ("ranges: {training.batch: {choices: [4, many]}}", "where many is not valid"),
        (
            "ranges: {data.source: {low: 0, high: 4}}",
            "data.source: a range of numbers for the value",
        ),
        (
            "ranges: {synapse.vesicles.tau_rrp: {low: 1, high: 60}}",
            "expected: declared log [10, 100]",
        ),
        ("parameters: [synapse.nothing]", "synapse.nothing"),
    ],
)
def test_what_a_configuration_does_not_take_is_said(tmp_path, text, said):
    with pytest.raises(UserError) as caught:
        build_space(compose_config([f"search_space={saved(tmp_path, text)}", "scale=smoke"]))
    assert said in str(caught.value)
    assert "to do: " in str(caught.value)


def test_a_file_that_is_not_there_or_there_twice_is_said(tmp_path, path):
    with pytest.raises(UserError, match=r"nosuch\.yaml: No such file"):
        compose_config(["search_space=nosuch.yaml"])
    with pytest.raises(UserError, match="one search_space"):
        compose_config([f"search_space={path}", f"search_space={path}"])


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return processes.run([str(ROOT / "train.py"), *words], folder)


def test_a_refined_study_is_searched_on_by_train_py(tmp_path, monkeypatch):
    """A real study, its refinement, and the search over it."""
    monkeypatch.chdir(tmp_path)
    spaces = {
        "synapse.vesicles.tau_rrp": ("log_uniform", 10.0, 100.0),
        "training.batch": ("categorical", [2, 4, 8]),
    }

    def objective(params):
        return abs(params["synapse.vesicles.tau_rrp"] / 50.0 - 1.0) + 4.0 * (
            params["training.batch"] != 4
        )

    TrialManager("first", n_trials=100, sampler="random", progress=False).optimize(
        objective, spaces
    )
    parser = argparse.ArgumentParser()
    refine.add_command(parser.add_subparsers())
    options = parser.parse_args(["refine", "first", "--quantile", "0.12", "--out", "next.yaml"])
    options.command(options)
    file = read_space_file(tmp_path / "next.yaml")
    assert file.fixed == {"training.batch": 4}
    (entry,) = file.ranges.values()
    assert 10.0 < entry["low"] < 50.0 < entry["high"] < 100.0

    words = [
        "scale=smoke",
        "logger=csv",
        "logger.progress=off",
        "training.steps=4",
        "training.evaluations=1",
    ]
    done = train(
        tmp_path,
        "-m",
        "hydra/sweeper=random",
        "search_space=next.yaml",
        *words,
        "hydra.sweeper.optim.budget=2",
    )
    assert done.returncode == 0, done.stderr
    record = find_study("next-random")
    assert record.configuration["training.batch"] == 4
    assert [dimension.name for dimension in record.spaces["search"].dimensions] == [
        "synapse.vesicles.tau_rrp"
    ]
    (dimension,) = record.spaces["search"].dimensions
    assert isinstance(dimension, Dimension)
    assert (dimension.low, dimension.high) == (entry["low"], entry["high"])
    assert all(
        entry["low"] <= trial.values[dimension.name] <= entry["high"] for trial in record.trials
    )
    assert [trial.state for trial in record.trials] == ["complete", "complete"]


def test_train_py_takes_a_file_for_a_single_run(path):
    shown = train(path.parent, "search_space=space.yaml", "--cfg", "job", "--package", "training")
    assert "weight_decay: 0.05" in shown.stdout, shown.stderr
