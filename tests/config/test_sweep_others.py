"""A sweep of an application whose configuration is not ours, and what only our protocols do."""

import optuna
import pytest
from omegaconf import OmegaConf

from helpers import processes
from helpers.paths import APPS, ROOT
from synaptune.config.compose import compose_config
from synaptune.config.flat import read_group
from synaptune.config.search_space import check_search
from synaptune.core.errors import UserError
from synaptune.search.config import SearchConfig
from synaptune.search.stopping import StopConfig
from synaptune.search.workers.config import TrialConfig, WorkersConfig
from synaptune.study.location import StudyConfig


def sweep(folder, program, *words):
    command = [
        str(program),
        "-m",
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=2",
        *words,
    ]
    return processes.run(command, folder)


def test_an_application_keeps_its_own_meaning_of_our_names_and_is_continued(tmp_path):
    for budget in (2, 3):
        ended = sweep(
            tmp_path, APPS / "other.py", "x=interval(0,10)", f"hydra.sweeper.optim.budget={budget}"
        )
        assert ended.returncode == 0, ended.stderr
    storage = f"sqlite:///{tmp_path}/outputs/studies/other-random/study.db"
    stored = optuna.load_study(study_name="other-random", storage=storage).trials
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 3
    assert [trial.value for trial in stored] == pytest.approx(
        [(trial.params["x"] - 3.0) ** 2 for trial in stored]
    )
    assert {
        (trial.user_attrs["phase"], trial.user_attrs["run.phase"], trial.user_attrs["seed"])
        for trial in stored
    } == {("search", 2.0, None)}


@pytest.mark.parametrize("told", ["[1]", "no JSON", "3", '{"metrics": [1]}'])
def test_a_result_file_of_another_shape_costs_no_trial(tmp_path, told):
    ended = sweep(
        tmp_path,
        APPS / "other.py",
        "x=interval(0,10)",
        f"told='{told}'",
        "hydra.sweeper.optim.budget=1",
    )
    assert "1 trials finished, 0 failed" in ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("name", "kind", "node"),
    [
        ("workers", WorkersConfig, 4),
        ("trial", TrialConfig, 7),
        ("study", StudyConfig, "pilot"),
        ("search", SearchConfig, {"depth": 3}),
        ("search", SearchConfig, {"depth": 3, "seeds": 2}),
        ("stop", StopConfig, [1]),
        ("stop", StopConfig, None),
    ],
)
def test_a_group_that_is_not_ours_is_left_to_its_application(name, kind, node):
    assert read_group(OmegaConf.create({name: node}), name, kind) == kind()


def test_a_group_that_is_ours_is_read_and_a_wrong_kind_in_it_refused():
    assert (
        read_group(OmegaConf.create({"workers": {"count": 3}}), "workers", WorkersConfig).count == 3
    )
    with pytest.raises(UserError, match=r"workers: [\s\S]*many[\s\S]*count[\s\S]*to do"):
        read_group(OmegaConf.create({"workers": {"count": "many"}}), "workers", WorkersConfig)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.seeds=0", "search.incumbents=-1"], "search.incumbents=-1: expected at least 0"),
        (["search.recommend=bogus"], "expected posterior or observed"),
        (["search.seeds=2", "pruner=percentile"], "more than 1 only without a pruner"),
    ],
)
def test_a_search_that_a_multirun_cannot_run_is_refused(tmp_path, words, message):
    ended = sweep(tmp_path, ROOT / "train.py", "scale=smoke", *words)
    assert ended.returncode == 2, ended.stderr
    assert words[0] in ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("study.db"))


def test_a_search_over_a_setting_of_the_search_is_refused(tmp_path):
    ended = sweep(tmp_path, ROOT / "train.py", "scale=smoke", "study.name=choice(a,b)")
    assert ended.returncode == 2, ended.stderr
    assert "study.name, which is a setting of the search itself" in ended.stderr
    assert not list(tmp_path.rglob("study.db"))


@pytest.mark.parametrize(
    "name", ["search_space", "search.seeds", "workers.count", "stop.hours", "objective", "name"]
)
def test_every_group_of_the_search_is_a_setting_of_it(name):
    base = compose_config(["scale=smoke"], study="s").base
    with pytest.raises(UserError, match=rf"over {name}, which is a setting"):
        check_search(base, ["synapse.calcium.alpha_ca", name])
    check_search(base, ["synapse.calcium.alpha_ca", "seed", "scale", "training.steps"])
