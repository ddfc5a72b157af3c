"""Every file of conf/ composes into typed values, and a mistake is named before anything runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from helpers import processes
from helpers.paths import ROOT
from synaptune.config.compose import compose_config
from synaptune.config.overrides import find_override_faults
from synaptune.config.schema import register
from synaptune.config.settings import (
    apply_tuned,
    check_config,
    compute_fingerprint,
    flatten_config,
    read_settings,
)
from synaptune.core.errors import UserError
from synaptune.core.parameters import lookup
from synaptune.data.config import IMAGE_SOURCES
from synaptune.synapse.circuit import SPECS, SynapseParams

CONF = ROOT / "conf"
# Without those that test_variants.py trains and the scales, which have a test below.
CHOICES = sorted(
    choice
    for choice in (str(path.relative_to(CONF).with_suffix("")) for path in CONF.glob("*/**/*.yaml"))
    if not choice.startswith(("hydra", "synapse", "ablation", "scale"))
    and (not choice.startswith("experiment") or choice.startswith("experiment/policy"))
)
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice):
    group, _, option = choice.rpartition("/")
    if group == "protocol":
        assert compose_config([], protocol=option).protocol is not None
        return
    needed = {"data/hub": ["data.name=some"]} | {
        key: ["data.path=some.txt"] for key in ("data/text", "experiment/shakespeare")
    }
    needed |= {
        key: ["model=dendritic"]
        for key in ("objective/accuracy", *(f"data/{source}" for source in IMAGE_SOURCES))
    }
    if choice == "objective/policy" or choice.startswith("experiment/policy"):
        needed[choice] = [f"policy.start={ROOT}"]  # a path that exists
    check_config(composed(f"{group}={option}", *needed.get(choice, [])))


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_builds_typed_values(scale):
    built = read_settings(composed(f"scale={scale}"))
    assert isinstance(built.synapse, SynapseParams)
    assert built.training.steps >= 1
    interval = built.synapse.structural.structural_interval
    # Short runs of a language model have no structural events.
    fraction = {"gpu": 0.25, "images": 0.25, "smoke": 2.5, "laptop": 2.5, "paper": 1.0}[scale]
    assert interval == round(fraction * built.training.steps)


def test_the_paper_scale_is_the_papers():
    built = read_settings(composed("scale=paper"))
    assert (built.model.layers, built.model.width, built.model.context, built.training.steps) == (
        12,
        1280,
        2048,
        50_000,
    )


def test_every_parameter_is_in_the_configuration_with_its_declared_default():
    cfg = composed("scale=paper")
    built = read_settings(cfg)
    values = flatten_config(cfg)
    for spec in SPECS:
        assert (
            values[spec.name]
            == spec.default
            == lookup(built.synapse, spec.name.removeprefix("synapse."))
        )


def test_the_structural_interval_follows_an_override_of_the_steps():
    built = read_settings(composed("scale=gpu", "training.steps=70"))
    assert built.synapse.structural.structural_interval == 18


def test_overrides_reach_the_typed_values():
    built = read_settings(
        composed(
            "model=gpt", "position=alibi", "synapse.calcium.tau_c=0.9", "model.context=64", "seed=5"
        )
    )
    assert (built.model.position, built.model.release, built.model.experts) == ("alibi", "off", 1)
    assert (built.synapse.calcium.tau_c, built.model.context, built.seed) == (0.9, 64, 5)


def test_the_fingerprint_knows_what_determines_the_result_and_nothing_else():
    base = compute_fingerprint(read_settings(composed()))
    assert base == compute_fingerprint(
        read_settings(
            composed(
                "name=other", "logger=csv", "training.resume=true", "training.checkpoint_every=3"
            )
        )
    )
    assert base != compute_fingerprint(read_settings(composed("synapse.calcium.tau_c=0.9")))
    assert base != compute_fingerprint(read_settings(composed("seed=1")))


def test_every_fault_is_told_at_once():
    with pytest.raises(UserError) as caught:
        check_config(
            composed(
                "synapse.calcium.tau_c=7",
                "training.steps=0",
                "model.heads=5",
                "seed=-1",
                "logger.wandb=often",
                "logger.record=[system,diary]",
                "objective.name=luck",
            )
        )
    for name in (
        "synapse.calcium.tau_c=7",
        "training.steps=0",
        "model.heads=5",
        "seed=-1",
        "logger.wandb=often",
        "logger.record=[diary]: expected entries among system, git, code",
        "objective.name=luck",
    ):
        assert name in str(caught.value) or name.split("=")[0] in str(caught.value)


def test_every_unfit_override_is_told_with_near_names():
    register()
    faults = [
        str(fault)
        for fault in find_override_faults(
            ["scale=smok", "synapse.calcium.tau_d=1", "training.steps=abc", "seed=1"], CONF, "train"
        )
    ]
    assert len(faults) == 3
    assert "closest: smoke" in faults[0]
    assert "synapse.calcium.tau_c" in faults[1]
    assert "could not be converted to Integer" in faults[2]
    assert "expected: an integer\n" in faults[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.smear=1x", "expected: true or false\n"),
        ("trial.timeout=abc", "expected: a number or null\n"),
        ("workers.devices=3", "expected: a list such as [a,b]\n"),
        ("search_space.ranges=3", "expected: a mapping such as {a:1,b:2}\n"),
        ("search_space.ranges=[1]", "expected: a value of the right kind\n"),
        ("search_space.ranges={a:1}", "to do: +search_space.ranges={a:1}"),
        ("objective.weights={recal:1}", "no such name as objective.weights.recal\n"),
        ("search_space.rangs=1", "closest: search_space.name"),
        ("sede=1", "no such name\n"),
        ("~model.heads", "expected: model.heads=VALUE\n"),
        ("data.path=~/x", "to do: quote it: 'data.path=\"VALUE\"'"),
        ("hydra.job.name=~/x", "expected: a value in the syntax of Hydra\n"),
    ],
)
def test_a_refused_override_is_told_what_its_name_takes(override, message):
    register()
    (fault,) = find_override_faults([override], CONF, "train")
    assert str(fault).startswith(f"got {override}")
    assert message in str(fault)


@pytest.mark.parametrize(
    "word", ["seed=true", "seed=-1", "seed=1.5", f"seed={2**64}", "name=null", "name=[a]"]
)
def test_a_seed_and_a_name_that_no_run_can_have_are_refused(word):
    with pytest.raises(UserError, match=word.partition("=")[0] + "=.*: expected"):
        read_settings(composed(word))
    assert read_settings(composed(f"seed={2**63 - 1}")).seed == 2**63 - 1


@pytest.mark.parametrize("word", ["synapse.calcium=slow", "synapse.energy=5", "synapse.bdnf=null"])
def test_a_subsystem_takes_a_choice_with_a_slash(word):
    name = word.partition("=")[0].removeprefix("synapse.")
    with pytest.raises(UserError, match=rf"expected: synapse/{name}=CHOICE or synapse\.{name}"):
        read_settings(composed(word))


@pytest.mark.parametrize(
    ("value", "message"), [("5", "names of parameters"), ("null", "names"), ("[1]", "learn=1")]
)
def test_learned_parameters_are_names(value, message):
    with pytest.raises(UserError, match=message):
        read_settings(composed(f"synapse.learn={value}"))


def best(
    folder: Path,
    text: str = "parameters: {synapse.calcium.alpha_ca: 0.61,"
    " synapse.postsynaptic.rank_eligibility: 12}\nstudy: s\n",
) -> Path:
    path = folder / "best.yaml"
    path.write_text(text)
    return path


def test_tuned_values_hold_unless_the_command_line_says_otherwise(tmp_path):
    cfg = composed(f"tuned={best(tmp_path)}", "synapse.calcium.alpha_ca=0.7")
    used = apply_tuned(cfg, ["synapse.calcium.alpha_ca=0.7"])
    built = read_settings(cfg)
    assert used == {"synapse.postsynaptic.rank_eligibility": 12}
    assert (built.synapse.calcium.alpha_ca, built.synapse.postsynaptic.rank_eligibility) == (
        0.7,
        12,
    )


def test_any_value_of_the_configuration_can_be_tuned(tmp_path):
    cfg = composed(
        f"tuned={best(tmp_path, 'parameters: {training.batch: 4, model.kernel: torch}')}"
    )
    apply_tuned(cfg, [])
    assert (cfg.training.batch, cfg.model.kernel) == (4, "torch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("parameters: {synapse.calcium.alpha_cq: 1}", "closest: synapse.calcium.alpha_ca"),
        ("parameters: {training.batch: many}", "values of their type"),
        ("parameters: {training: 3}", "unknown names: training"),
        ("[1, 2]", "not a best.yaml"),
        ("parameters: {a: [", "not a best.yaml"),
    ],
)
def test_a_file_that_is_no_best_yaml_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        apply_tuned(composed(f"tuned={best(tmp_path, content)}"), [])


def train(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return processes.run([str(ROOT / "train.py"), *words], folder, env=environment)


@pytest.mark.parametrize(
    "words",
    [
        ["synapse.calcium.tau_d=1"],
        ["synapse.calcium.tau_c=7"],
        ["data=text", "data.path=missing.txt", "scale=smoke"],
    ],
    ids=["unknown name", "out of range", "missing file"],
)
def test_a_mistake_on_the_command_line_is_three_lines_and_code_2(words, tmp_path):
    done = train(*words, folder=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("got ")
    assert len(lines) == 3
    assert lines[-1].startswith("  to do: ")


def test_full_errors_are_there_for_the_asking(tmp_path):
    done = train("synapse.calcium.tau_c=7", folder=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "synapse.calcium.tau_c=7: expected 0.5 to 0.99" in done.stderr


def test_a_multirun_hands_its_mistakes_to_the_sweeper(tmp_path):
    done = train("-m", "hydra/sweeper=basic", "training.steps=0,-1", folder=tmp_path)
    assert done.returncode == 2
    assert "training.steps=0: expected" in done.stderr
    assert "Traceback" not in done.stderr
