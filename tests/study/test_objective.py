"""What a program hands to a search: every fault of it stays in its trial, here and in workers."""

import decimal
import enum
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import optuna
import pytest
import torch
import yaml

from synaptune import HPOTrialManager, TrialManager, TrialPruned
from synaptune.core.errors import UserError
from synaptune.search.workers.config import WorkersConfig

SPACE = {"x": ("uniform", 0, 1)}


def make(folder, **options):
    given = {"n_trials": 4, "sampler": "random", "directory": folder, "progress": False}
    return TrialManager("s", **given | {"max_failure_rate": 1.0} | options)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class Unpicklable(Exception):
    def __init__(self):
        super().__init__(threading.Lock())


class OfTheBase(BaseException):
    pass


def leave():
    sys.exit(0)


def raise_optunas():
    raise optuna.TrialPruned("too slow")


def raise_ours():
    raise TrialPruned("too slow")


def throw(error):
    raise error


FAULTS = {
    "none": (lambda manager: None, "NoneType"),
    "text": (lambda manager: "0.5", "str"),
    "flag": (lambda manager: True, "bool"),
    "list": (lambda manager: [0.5], "list"),
    "array": (lambda manager: np.zeros(3), r"ndarray of shape \(3,\)"),
    "vector": (lambda manager: torch.zeros(2), r"Tensor of shape \(2,\)"),
    "complex": (lambda manager: 1j, "complex"),
    "huge": (lambda manager: 10**400, "int"),
    "masked": (lambda manager: np.ma.masked, "nan"),
    "masked mean": (lambda manager: np.ma.masked_greater(np.ones(3), 0.5).mean(), "nan"),
    "nan": (lambda manager: torch.tensor(float("nan")), "nan"),
    "exit": (lambda manager: leave(), r"sys\.exit"),
    "unprintable": (lambda manager: throw(Unprintable()), "Unprintable: .*cannot be read"),
    "unpicklable": (lambda manager: throw(Unpicklable()), "Unpicklable"),
    "base": (lambda manager: throw(OfTheBase("b")), "OfTheBase: b"),
    "mistake": (lambda manager: throw(UserError("got it wrong")), "got it wrong"),
    "report none": (lambda manager: manager.report(None, 1), "reported value NoneType"),
    "report text": (lambda manager: manager.report("a", 1), "reported value str"),
    "step": (lambda manager: manager.report(0.5, 1.5), r"reported step 1\.5"),
    "step text": (lambda manager: manager.report(0.5, "one"), "reported step 'one'"),
    "step huge": (lambda manager: manager.report(0.5, 2**40), "reported step"),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_faulty_point_is_one_failed_trial_with_its_reason(tmp_path, workers):
    names = list(FAULTS)

    def objective(params):
        if params["fault"] == "good":
            return 1.0
        return FAULTS[params["fault"]][0](made)

    made = make(tmp_path, sampler="grid", n_trials=None, workers=workers, retries=0)
    best = made.optimize(objective, {"fault": ("categorical", [*names, "good"])})
    assert best == {"fault": "good"}
    found = {trial.params["fault"]: trial for trial in made.trials}
    for name in names:
        assert found[name].state == "failed"
        assert re.search(FAULTS[name][1], found[name].reason), (name, found[name].reason)


@pytest.mark.parametrize("workers", [1, 2])
def test_numbers_of_other_libraries_are_numbers(tmp_path, workers):
    makers = [
        torch.tensor,
        lambda x: torch.tensor([x], requires_grad=True),
        np.float32,
        np.array,
        decimal.Decimal,
        lambda x: np.array([x]),
    ]

    def objective(params):
        value = makers[params["kind"]](params["x"])
        made.report(value, np.int64(1))
        return value

    made = make(tmp_path, sampler="grid", n_trials=None, workers=workers)
    made.optimize(objective, {"kind": ("int", 0, len(makers) - 1), "x": ("categorical", [0.5])})
    assert {trial.value for trial in made.trials} == {0.5}


class Activation(str, enum.Enum):  # noqa: UP042 (str() of a StrEnum is its text)
    RELU = "relu"
    TANH = "tanh"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_member_of_an_enum_of_texts_is_its_text(tmp_path, workers):
    made = make(tmp_path, sampler="grid", n_trials=None, workers=workers)
    best = made.optimize(
        lambda params: 1.0 if params["act"] == "relu" else 2.0,
        {"act": ("categorical", list(Activation))},
    )
    assert (best, made.best_value) == ({"act": "relu"}, 1.0)
    assert {trial.params["act"] for trial in made.trials} == {"relu", "tanh"}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("prune", [raise_ours, raise_optunas])
def test_either_exception_prunes(tmp_path, prune, workers):
    def objective(params):
        if params["x"] > 0:
            prune()
        return 1.0

    made = make(tmp_path, sampler="grid", workers=workers)
    made.optimize(objective, {"x": ("int", 0, 2)})
    assert [trial.state for trial in made.trials] == ["complete", "pruned", "pruned"]
    assert TrialManager.TrialPruned is TrialPruned


def test_an_objective_that_changes_the_folder_and_its_arguments_changes_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    seen = []

    def objective(params):
        seen.append((os.getcwd(), [*params["layers"]]))
        params["layers"].append(10)
        params["more"] = 1
        os.makedirs("below", exist_ok=True)
        os.chdir("below")
        return float(len(seen))

    made = TrialManager("s", sampler="grid", progress=False)
    made.optimize(objective, {"layers": ("categorical", [[64], [128]]), "k": ("int", 0, 2)})
    assert seen == [(str(tmp_path), [width]) for width in (64, 64, 64, 128, 128, 128)]
    assert [trial.params["layers"] for trial in made.trials] == [layers for _, layers in seen]
    assert (tmp_path / "outputs/studies/s/study.db").exists()


def test_a_report_from_a_thread_of_the_objective_counts(tmp_path):
    def objective(params):
        thread = threading.Thread(target=lambda: made.report(params["x"], 1))
        thread.start()
        thread.join()
        if made.should_prune():
            raise TrialPruned
        return params["x"]

    pruner = optuna.pruners.ThresholdPruner(upper=0.5)
    made = make(tmp_path, n_trials=10, pruner=pruner)
    made.optimize(objective, SPACE)
    for trial in made.trials:
        assert (trial.state == "pruned") == (trial.params["x"] > 0.5)


def test_callbacks_get_copies_and_their_errors_are_printed(tmp_path, capsys):
    def spoil(manager, trial):
        trial.values["x"] = "spoilt"
        trial.facts.clear()

    def fail(manager, trial):
        raise KeyError(trial.number)

    def finish(manager, trial):
        sys.exit(3)

    made = make(tmp_path)
    made.optimize(lambda params: params["x"], SPACE, callbacks=[spoil, fail, finish])
    assert [trial.state for trial in made.trials] == ["complete"] * 4
    assert all(isinstance(trial.params["x"], float) for trial in made.trials)
    said = capsys.readouterr().err
    assert "callback fail failed at trial 3, the search continues: KeyError: 3" in said
    assert "callback finish failed at trial 0" in said


def test_a_time_limit_outside_the_main_thread_works_through_a_process(tmp_path):
    states = []

    def search():
        made = make(tmp_path, timeout=0.5, n_trials=2, sampler="grid")
        made.optimize(lambda params: time.sleep(params["x"]) or 1.0, {"x": ("int", 0, 30, 30)})
        states.extend(trial.state for trial in made.trials)

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert states == ["complete", "failed"]


def test_a_time_limit_that_cannot_work_is_refused_before_there_is_a_study(tmp_path):
    errors = []

    def search():
        made = make(tmp_path / "s", timeout=0.5, workers=WorkersConfig("here", count=1))
        with pytest.raises(UserError, match=r"outside the main thread[\s\S]*to do") as refusal:
            made.optimize(lambda params: 1.0, SPACE)
        errors.append(refusal)

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert errors
    assert not (tmp_path / "s").exists()


def test_an_objective_that_catches_everything_does_not_outlive_its_time(tmp_path):
    def objective(params):
        try:
            time.sleep(5)
        except BaseException:
            return 0.0

    made = make(tmp_path, timeout=0.2, n_trials=1)
    with pytest.raises(UserError, match=r"still running after 0\.2 s"):
        made.optimize(objective, SPACE)


def test_numbers_of_numpy_and_no_seed_are_accepted(tmp_path):
    made = make(
        tmp_path, n_trials=np.int64(2), seed=None, timeout=np.float32(9), retries=np.int8(0)
    )
    space = {
        "x": ("uniform", np.float32(0), np.float64(1)),
        "n": ("int", np.int64(1), np.int64(8), np.int64(2)),
        "width": ("categorical", np.array([8, 16])),
        "rate": ("categorical", list(np.linspace(0, 1, 3, dtype=np.float32)), np.ones(3)),
    }
    made.optimize(lambda params: params["x"], space)
    first = [trial.params for trial in made.trials]
    assert {type(value) for params in first for value in params.values()} == {float, int}
    again = make(tmp_path, n_trials=4, seed=None)
    again.optimize(lambda params: params["x"], space)
    assert [trial.params for trial in again.trials][:2] == first
    assert len({str(trial.params) for trial in again.trials}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"n_trials": "10"},
        {"n_trials": 1.5},
        {"seed": "a"},
        {"workers": None},
        {"retries": float("nan")},
        {"timeout": "1"},
        {"sampler": None},
        {"sampler": optuna.samplers.TPESampler()},
        {"pruner": 3},
        {"progress": "lines"},
    ],
)
def test_an_option_of_another_type_is_refused(tmp_path, options):
    with pytest.raises(UserError, match="to do"):
        make(tmp_path, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objective": None},
        {"search_space": [("uniform", 0, 1)]},
        {"search_space": {1: ("uniform", 0, 1)}},
        {"search_space": {}},
        {"n_trials": 0},
        {"n_trials": [print]},
        {"callbacks": [None]},
        {"callbacks": 3},
    ],
)
def test_an_argument_of_optimize_that_cannot_be_is_refused(tmp_path, arguments):
    given = {"objective": lambda params: 1.0, "search_space": SPACE} | arguments
    with pytest.raises(UserError, match="to do"):
        make(tmp_path / "s").optimize(**given)
    assert not (tmp_path / "s").exists()


def test_the_home_is_known_in_folders_and_urls(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    make("~/a").optimize(lambda params: 1.0, SPACE)
    make("~/b", storage="sqlite:///~/c.db").optimize(lambda params: 1.0, SPACE)
    assert (home / "a/study.db").exists()
    assert (home / "c.db").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.slow
def test_a_program_without_a_usable_stdout_searches(tmp_path):
    code = """
import sys
from synaptune import TrialManager
class Tee:
    def write(self, text): pass
    def flush(self): pass
sys.stdout = {"none": None, "tee": Tee()}[sys.argv[1]]
for progress in (True, "bar"):
    manager = TrialManager("s", 2, sampler="random", directory=sys.argv[2], progress=progress)
    manager.optimize(lambda p: p["x"], {"x": ("uniform", 0, 1)}, n_trials=1)
"""
    for kind in ("none", "tee"):
        command = [sys.executable, "-c", code, kind, str(tmp_path / kind)]
        subprocess.run(command, check=True, env=os.environ | {"LC_ALL": "C"})


def test_workers_start_whatever_the_length_of_tmpdir(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    config = vars(multiprocessing.current_process())["_config"]
    monkeypatch.delitem(config, "tempdir", raising=False)
    made = make(tmp_path / "s", workers=2)
    made.optimize(lambda params: params["x"], SPACE)
    assert [trial.state for trial in made.trials] == ["complete"] * 4


def test_the_guides_calls(tmp_path, monkeypatch):
    """The calls of the guide of the manager, by its own defaults."""
    monkeypatch.chdir(tmp_path)
    manager = HPOTrialManager(study_name="guide")

    def objective(params):
        for step in range(3):
            manager.report(params["dropout"] + params["layers"] / (step + 1), step)
            if manager.should_prune():
                raise manager.TrialPruned()
        return params["dropout"] + params["layers"] + (params["kind"] == "sgd")

    seen = []
    best = manager.optimize(
        objective,
        {
            "lr": ("log_uniform", 1e-5, 1e-1),
            "dropout": ("uniform", 0.0, 0.5),
            "layers": ("int", 2, 8, 2),
            "kind": ("categorical", ["adam", "sgd"]),
        },
        n_trials=12,
        callbacks=[lambda manager, trial: seen.append((trial.number, trial.value, trial.state))],
    )
    assert isinstance(best, dict)
    assert best == manager.best_params == manager.best_trial.params
    assert yaml.safe_load(yaml.safe_dump(best)) == best
    assert [number for number, *_ in seen] == list(range(12))
    assert manager.best_value == min(value for _, value, state in seen if state == "complete")
    assert all(trial.params["layers"] in (2, 4, 6, 8) for trial in manager.trials)
    manager.optimize(
        objective,
        {
            "lr": ("log_uniform", 1e-5, 1e-1),
            "dropout": ("uniform", 0.0, 0.5),
            "layers": ("int", 2, 8, 2),
            "kind": ("categorical", ["adam", "sgd"]),
        },
        n_trials=3,
    )
    assert len(manager.trials) == 15


@pytest.mark.parametrize("sampler", ["cma", "tpe", "gp", "cmaes", "qmc", "random", "OnePlusOne"])
def test_an_integer_with_a_step_is_ordered_for_every_sampler(tmp_path, sampler):
    made = make(tmp_path, sampler=sampler, n_trials=12)
    made.optimize(lambda params: abs(params["n"] - 30), {"n": ("int", 5, 98, 10)})
    found = {trial.params["n"] for trial in made.trials}
    assert found <= set(range(5, 99, 10))
    assert len(found) > 2


def test_a_study_that_holds_a_step_as_choices_continues(tmp_path):
    """Version 0.1.0 stored ("int", 0, 8, 4) as the choices 0, 4 and 8."""
    made = make(tmp_path, n_trials=3)
    made.optimize(lambda params: 1.0, {"n": ("categorical", [0, 4, 8])})
    again = make(tmp_path, n_trials=6)
    again.optimize(lambda params: 1.0, {"n": ("int", 0, 8, 4)})
    assert len(again.trials) == 6


def test_the_importances_of_a_constant_objective_are_zero(tmp_path):
    made = make(tmp_path, n_trials=10)
    made.optimize(lambda params: 3.0, {"x": ("uniform", 0, 1), "c": ("categorical", [None, [1]])})
    assert made.get_param_importance() == {"x": 0.0, "c": 0.0}


def test_a_search_without_a_complete_trial_is_an_error(tmp_path):
    made = make(tmp_path)
    with pytest.raises(UserError, match="4 pruned"):
        made.optimize(lambda params: raise_ours(), SPACE)


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "sqlite:///:memory:"},
        {"storage": "sqlite://"},
        {"directory": "a\0b"},
        {"directory": "a\udce9"},
    ],
)
def test_a_place_that_cannot_hold_a_study_is_refused(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="to do"):
        make(tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["a" * 300, "loop/study", "file/study"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"writable folder[\s\S]*to do"):
        make(tmp_path, directory=folder).optimize(lambda _: 1.0, SPACE)
