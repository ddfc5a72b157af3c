"""What a study stores of a configuration with interpolations, and which groups are ours."""

import pytest
from omegaconf import OmegaConf

from synaptune.config.compose import compose_config
from synaptune.config.flat import (
    flatten_references,
    has_name,
    is_training_config,
    read_group,
    resolve_references,
    select_value,
)
from synaptune.config.search_space import (
    make_study_configuration,
    read_dimensions,
    read_fixed_values,
    read_space_name,
)
from synaptune.search.space.space import Dimension, Space
from synaptune.study.location import StudyConfig

SPACE = Space((Dimension("x", "lin"),))
OTHER = {
    "x": 1,
    "password": "${oc.env:APP_PASSWORD}",
    "copy": "${password}",
    "group": {"a": "${x}", "missing": "???"},
    "same": "${group}",
    "late": "${no_such_resolver:1}",
    "layers": [1, {"size": 2}],
}


def test_another_application_stores_its_values_as_they_are_written(monkeypatch):
    monkeypatch.setenv("APP_PASSWORD", "hunter2")
    config = OmegaConf.create(OTHER)
    stored = make_study_configuration(config, SPACE, {})
    written = flatten_references(config)
    assert "hunter2" not in str(stored)
    assert {key: stored[key] for key in written if key != "x"} == {
        key: value for key, value in written.items() if key != "x"
    }
    assert resolve_references(config) == {
        "password": {"password": "hunter2"},
        "copy": {"copy": "hunter2"},
        "group.a": {"group.a": 1},
        "same": {"same.a": 1, "same.missing": "???"},
    }


def test_train_py_stores_resolved_values_but_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("APP_FILE", "a.txt")
    base = compose_config(["scale=smoke", "data=text", "data.path=${oc.env:APP_FILE}"]).base
    assert is_training_config(base)
    stored = make_study_configuration(base, SPACE, {})
    assert stored["data.path"] == "${oc.env:APP_FILE}"
    assert resolve_references(base)["data.path"] == {"data.path": "a.txt"}
    assert not any("${" in str(value) for key, value in stored.items() if key != "data.path")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("x", True),
        ("group.missing", True),
        ("group.b", False),
        ("late", True),
        ("late.a", False),
        ("layers.0", True),
        ("layers.2", False),
        ("layers.1.size", True),
        ("layers.a", False),
    ],
)
def test_a_name_is_known_whatever_its_value(name, known):
    assert has_name(OmegaConf.create(OTHER), name) == known


def test_a_value_that_only_a_job_knows_gives_the_default():
    config = OmegaConf.create(OTHER)
    assert select_value(config, "late", 7) == 7
    assert select_value(config, "group.missing") is None
    assert select_value(config, "same") == {"a": 1, "missing": "???"}


def test_a_group_of_ours_is_resolved_in_its_place():
    config = OmegaConf.create({"x": 3, "study": {"name": "lr-${x}"}})
    assert read_group(config, "study", StudyConfig) == StudyConfig("lr-3")


@pytest.mark.parametrize(
    "group",
    ["small", [1], {"x": [0, 1]}, {"parameters": ["a"]}, {"ranges": [1], "fixed": 3}, "${late:1}"],
)
def test_a_search_space_of_another_application_is_not_ours(group):
    config = OmegaConf.create({"x": 1, "search_space": group})
    assert read_dimensions(config) == []
    assert read_fixed_values(config) == {}
    assert read_space_name(config) is None
