"""Every choice of conf/ is shown and explained, adds no key to a run, and one that is not there is
refused.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig

from helpers import processes
from helpers.paths import ROOT
from synaptune.cli.docs import VARIANTS_DIR, render_defaults
from synaptune.config.flat import flatten_config
from synaptune.config.overrides import check_overrides, find_override_faults
from synaptune.config.schema import CONFIG_GROUPS, GROUPS, RUN_KEYS, SUBSYSTEMS, register
from synaptune.config.search_space import read_dimensions
from synaptune.config.settings import apply_tuned, check_config, compute_fingerprint, read_settings
from synaptune.core.errors import UserError
from synaptune.synapse.circuit import SPECS

CONF = ROOT / "conf"
FILES = sorted(CONF.glob("*/**/*.yaml"))
# The file of each group that lists the group's keys.
EXPLAINED = {
    "model": "synaptic",
    "data": "stdlib",
    "training": "adamw",
    "objective": "val_loss",
    "pruner": "none",
    "search_space": "base",
    "workers": "auto",
}


register()


@functools.cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def name(path: Path) -> str:
    """GROUP/CHOICE of a file."""
    return str(path.relative_to(CONF).with_suffix(""))


def keys_of(kind: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a dataclass."""
    for field in dataclasses.fields(kind):
        nested = field.default_factory
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            yield from keys_of(nested, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def values_of(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values that a YAML file gives, by dotted name."""
    if not isinstance(node, dict):
        return {prefix: node}
    pairs = [(key, value) for key, value in node.items() if key != "defaults"]
    return {
        n: v
        for key, value in pairs
        for n, v in values_of(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


@pytest.mark.parametrize("group", GROUPS)
def test_a_file_of_each_group_explains_every_key_and_no_other(group):
    text = (CONF / group / f"{EXPLAINED.get(group, 'default')}.yaml").read_text()
    assert re.findall(r"^# ([\w.]+): \S", text, re.MULTILINE) == list(keys_of(GROUPS[group]))


def test_the_key_lists_of_the_synapse_are_those_of_the_declarations():
    for subsystem, text in render_defaults().items():
        assert (VARIANTS_DIR / subsystem / "default.yaml").read_text() == text, "run `make docs`"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_says_what_it_is_for(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# [A-Z].*[.:]", lines[0]), lines[0]


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "scale"], ids=name)
def test_no_file_repeats_a_default(path):
    """A scale is excepted: it states the whole size of a run."""
    package = re.match(r"# @package (\S+)", path.read_text())
    prefix = package.group(1) if package else str(path.parent.relative_to(CONF)).replace("/", ".")
    usual = {
        f"{group}.{key}": value
        for group in GROUPS
        for key, value in flatten_config(
            ConfigStore.instance().repo["schema.yaml"].node[group]
        ).items()
    }
    usual |= {spec.name: spec.default for spec in SPECS}
    given = values_of(
        yaml.safe_load(path.read_text()) or {}, "" if prefix == "_global_" else prefix
    )
    assert not [
        key
        for key, value in given.items()
        if key in usual and usual[key] == value and type(usual[key]) is type(value)
    ]


def test_hydra_offers_what_conf_holds_and_nothing_else():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("train")
        loader = GlobalHydra.instance().config_loader()
        groups = {str(folder.relative_to(CONF)) for folder in CONF.rglob("*") if folder.is_dir()}
        offered = {
            f"{group}/{choice}"
            for group in groups
            for choice in loader.get_group_options(group, ObjectType.CONFIG)
        }
        top = set(loader.get_group_options("", ObjectType.GROUP)) - {"hydra"}
    assert offered == {name(path) for path in FILES}
    assert top == {group for group in groups if "/" not in group}
    assert top == {*CONFIG_GROUPS, "protocol"}  # a command of its own chooses its protocol


def test_help_shows_every_group_choice_and_strategy():
    done = processes.run(["train.py", "--help"], ROOT, fresh=True)
    assert done.returncode == 0, done.stderr
    shown = {
        f"{group}/{choice}"
        for group, choices in re.findall(r"^([\w/]+): (.+)$", done.stdout, re.MULTILINE)
        for choice in choices.split(", ")
    }
    # A protocol is a command of its own.
    names = {name(path) for path in FILES}
    assert shown == {choice for choice in names if not choice.startswith("protocol/")}
    ours = {
        key.removesuffix(".yaml")
        for key in ConfigStore.instance().repo["hydra"]["sweeper"]
        if key != "basic.yaml"
    }
    strategies = re.search(r"Strategies of a search: ([^;]+);", done.stdout)
    assert strategies is not None
    assert ours == set(strategies.group(1).split(", "))


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=recall"],
        ["ablation=[no_release,no_memory]", "synapse=tuned", "synapse/calcium=slow", "scale=smoke"],
    ],
)
def test_a_choice_adds_no_key_to_the_configuration_of_a_run(words):
    """So that the studies there are go on: what they store is compared key by key."""
    declared = (
        {f"{group}.{key}" for group, kind in GROUPS.items() for key in keys_of(kind)}
        | {spec.name for spec in SPECS}
        | {*RUN_KEYS, "synapse.learn"}
    )
    assert set(flatten_config(composed(*words))) == declared


def test_a_variant_holds_against_the_scale_the_preset_and_the_tuned_values(tmp_path):
    best = tmp_path / "best.yaml"
    best.write_text(
        "parameters: {synapse.calcium.tau_c: 0.6, synapse.calcium.alpha_ca: 0.3,"
        " synapse.attention.lambda_loge: 2.0}\n"
    )
    words = [
        "scale=smoke",
        "synapse=tuned",
        "synapse/structural=frozen",
        "synapse/attention=local",
        "synapse/calcium=slow",
        f"tuned={best}",
    ]
    cfg = composed(*words).copy()
    assert apply_tuned(cfg, words) == {}
    built = read_settings(cfg).synapse
    assert (built.structural.structural_interval, built.calcium.tau_c, built.calcium.alpha_ca) == (
        1_000_000_000,
        0.97,
        0.863074,
    )
    assert (
        built.attention.barrier_strength,
        built.attention.lambda_loge,
        built.vesicles.tau_rrp,
    ) == (20.0, 3.4313, 10.2115)
    assert set(apply_tuned(cfg, words[:4])) == {"synapse.calcium.tau_c", "synapse.calcium.alpha_ca"}


def test_a_parameter_that_a_variant_switches_off_is_not_searched():
    off = {dimension.name for dimension in read_dimensions(composed("synapse/attention=off"))}
    usual = {dimension.name for dimension in read_dimensions(composed())}
    assert usual - off == {"synapse.attention.lambda_loge", "synapse.attention.barrier_strength"}
    slow = {
        dimension.name: dimension
        for dimension in read_dimensions(composed("synapse/calcium=slow", "search_space=calcium"))
    }
    assert set(slow) == {spec.name for spec in SPECS if spec.subsystem == "calcium"}
    assert slow["synapse.calcium.tau_c"].start == 0.97


def test_there_is_a_search_space_of_each_subsystem():
    for subsystem in SUBSYSTEMS:
        assert yaml.safe_load((CONF / f"search_space/{subsystem}.yaml").read_text()) == {
            "name": subsystem,
            "parameters": [f"synapse.{subsystem}.*"],
        }


def test_ablations_are_the_choices_of_the_model_they_stand_for():
    def identity(*words: str) -> str:
        return compute_fingerprint(read_settings(composed(*words)))

    assert identity("ablation=plain") == identity("model=gpt")
    taken_out = identity("model.release=off", "model.fast_weights=off", "model.experts=1")
    assert (
        identity("ablation=[no_release,no_memory,no_experts]")
        == identity("experiment=distance")
        == taken_out
    )


def test_an_unknown_choice_is_refused_with_those_there_are():
    said = {
        "experiment=recal": "closest: recall",
        "+experiment=x": "experiment=chains|",
        "+experiment=recall": "write it without +",
        "ablation=[no_release,no_memry]": "closest: no_memory",
        "synapse=plan": "synapse=default|",
        "synapse/calcium=off": "synapse/calcium=clamped|",
        "synapse/calcum=slow": "closest: synapse/calcium",
        "workers=cluster": "workers=auto|",
        "model=base": "model=deltanet|dendritic|gpt|synaptic",
    }
    faults = [str(fault) for fault in find_override_faults(list(said), CONF, "train")]
    for (word, part), fault in zip(said.items(), faults, strict=True):
        assert fault.startswith(f"got {word}")
        assert part in fault
        assert "\n  to do: " in fault


@pytest.mark.parametrize("words", ["+experimnt=recall", "+model.layer=3", "+workers.parallel=2"])
def test_a_key_that_nothing_declares_is_refused(words):
    with pytest.raises(UserError, match="no such name"):
        check_config(composed(words))


def test_the_mappings_that_are_open_take_any_key():
    check_config(
        composed(
            "+workers.parameters.slurm_partition=gpu",
            "++search_space.ranges={training.learning_rate: {low: 1e-4, high: 1e-2}}",
        )
    )


@pytest.mark.parametrize("word", ["experiment=null", "synapse/calcium=null", "+ablation=null"])
def test_no_choice_of_a_group_is_refused(word):
    with pytest.raises(UserError, match="no choice of a group"):
        check_overrides([word])


@pytest.mark.parametrize("word", ["~seed", "~seed=0", "~name", "~tuned"])
def test_a_key_that_every_run_has_cannot_be_removed(word):
    with pytest.raises(UserError, match="which removes a key that every run has"):
        check_overrides([word])


def test_a_run_folder_in_the_home_folder_is_written_without_its_short_form():
    for path in ("~/x", "'~/x'", '"~/x"'):
        with pytest.raises(UserError, match=r"write \$HOME for ~"):
            check_overrides([f"hydra.run.dir={path}"])
    check_overrides(["hydra.run.dir=a~b/x"])


def test_the_command_line_ends_with_three_lines_and_code_2(tmp_path):
    done = processes.run([str(ROOT / "train.py"), "+experiment=x"], tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 3
    assert done.stderr.startswith("got +experiment=x\n  expected: experiment=chains|")


def test_the_shakespeare_experiment_asks_for_its_text():
    with pytest.raises(UserError, match=r"data\.path: expected a text file or a folder"):
        check_config(composed("experiment=shakespeare"))
