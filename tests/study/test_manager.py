"""The Python API: documented example, resume, pruning, worker processes, invalid input."""

import json
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import ROOT
from synaptune import TrialManager, TrialPruned
from synaptune.core.errors import UserError

SPACE = {
    "x": ("uniform", 0.0, 10.0),
    "rate": ("log_uniform", 1e-3, 1.0),
    "n": ("int", 1, 9),
    "even": ("int", 0, 8, 2),
    "mode": ("categorical", ["a", "b"]),
}


def bowl(params):
    return (
        (params["x"] - 3.0) ** 2
        + math.log10(params["rate"]) ** 2
        + params["n"]
        + params["even"]
        + (params["mode"] == "b")
    )


def make_manager(folder, **options):
    return TrialManager("m", **{"n_trials": 12, "directory": folder, "progress": False, **options})


def list_results(trials):
    return [(trial.index, trial.values, trial.objective) for trial in trials]


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/python_api.md").read_text(), flags=re.S
    )
    scope = {}
    exec(code, scope)
    assert scope["manager"].best_value == min(
        trial.objective for trial in scope["manager"].trials if trial.objective is not None
    )
    assert "trial 0:" in capsys.readouterr().out
    assert len(scope["manager"].trials) == 40
    assert (tmp_path / "outputs/studies/branin/study.db").exists()


@pytest.mark.parametrize("sampler", ["cma", "random"])
def test_a_search_in_two_calls_is_the_search_in_one(tmp_path, sampler):
    single = make_manager(tmp_path / "single", sampler=sampler)
    single.optimize(bowl, SPACE)
    make_manager(tmp_path / "parts", sampler=sampler, n_trials=5).optimize(bowl, SPACE)
    rest = make_manager(tmp_path / "parts", sampler=sampler)
    assert len(rest.trials) == 5
    rest.optimize(bowl, SPACE)
    assert list_results(rest.trials) == list_results(single.trials)
    assert rest.best_params == single.best_params


def test_values_have_the_types_and_ranges_of_the_space(tmp_path):
    manager = make_manager(tmp_path, sampler="random", n_trials=30)
    manager.optimize(bowl, SPACE)
    for trial in manager.trials:
        assert 0.0 <= trial.values["x"] <= 10.0
        assert 1e-3 <= trial.values["rate"] <= 1.0
        assert trial.values["n"] in range(1, 10)
        assert trial.values["even"] in range(0, 9, 2)
        assert trial.values["mode"] in ("a", "b")


def test_failed_pruned_and_complete_trials_have_their_states(tmp_path):
    def objective(params):
        if params["n"] > 6:
            raise ArithmeticError("too many")
        if params["n"] > 3:
            manager.report(5.0, 1)
            raise TrialPruned(7.0)
        return bowl(params)

    manager = make_manager(tmp_path, sampler="random", n_trials=20, max_failure_rate=1.0)
    manager.optimize(objective, SPACE)
    for trial in manager.trials:
        expected = (
            "failed" if trial.values["n"] > 6 else "pruned" if trial.values["n"] > 3 else "complete"
        )
        assert trial.state == expected
    assert {trial.state for trial in manager.trials} == {"failed", "pruned", "complete"}
    assert manager.best_trial.state == "complete"


def test_the_direction_decides_what_is_best_and_callbacks_see_every_trial(tmp_path):
    seen = []
    manager = make_manager(tmp_path, sampler="random", direction="maximize")
    best = manager.optimize(
        bowl,
        SPACE,
        callbacks=[lambda manager, trial: seen.append((trial.index, manager.best_value))],
    )
    assert best == manager.best_params
    assert best.objective == manager.best_value == max(trial.objective for trial in manager.trials)
    assert [index for index, _ in seen] == list(range(12))
    assert [value for _, value in seen] == [
        max(trial.objective for trial in manager.trials[: n + 1]) for n in range(12)
    ]


def test_worker_processes_give_the_results_of_one_process(tmp_path):
    def reporting(params):
        parallel.report(bowl(params), 1)
        return bowl(params)

    serial = make_manager(tmp_path / "serial", n_trials=10)
    serial.optimize(bowl, SPACE)
    parallel = make_manager(tmp_path / "parallel", n_trials=10, workers=2)
    parallel.optimize(reporting, SPACE)
    assert len(parallel.trials) == 10
    assert list_results(parallel.trials) == list_results(serial.trials)


def test_weights_of_choices_are_their_fractions_of_random_points(tmp_path):
    manager = make_manager(tmp_path, sampler="random", n_trials=80)
    manager.optimize(lambda params: 0.0, {"mode": ("categorical", ["rare", "often"], [1, 9])})
    assert 1 <= sum(trial.values["mode"] == "rare" for trial in manager.trials) <= 20


def test_the_most_important_parameter_comes_first(tmp_path):
    manager = make_manager(tmp_path, sampler="random", n_trials=80)
    manager.optimize(
        lambda params: (params["x"] - 3.0) ** 2 + 1e-3 * params["n"],
        {name: SPACE[name] for name in ("x", "n")},
    )
    importance = manager.get_param_importance()
    assert next(iter(importance)) == "x"
    assert importance["x"] > 0.8
    assert sum(importance.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("unifrom", 0, 1), "closest: uniform"),
        (("uniform", 1, 0), "not below"),
        (("log_uniform", 0, 1), "log range"),
        (("int", 0, 5, 0), "int"),
        (("categorical", []), "no choices"),
        (("categorical", ["a", "b"], [1.0]), "1 weights for 2 choices"),
        ((), r"search_space x: \(\)"),
        (3, r"search_space x: 3[\s\S]*to do"),
        (None, r"search_space x: None[\s\S]*to do"),
        ("uniform", r"search_space x: 'uniform'[\s\S]*to do"),
    ],
)
def test_an_invalid_space_is_refused(tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        make_manager(tmp_path).optimize(bowl, {"x": entry})
    assert not (tmp_path / "study.db").exists()


@pytest.mark.parametrize("name", ["", 1, "a\ud800", "a\0b"])
def test_a_name_that_a_database_cannot_store_is_refused(tmp_path, name):
    manager = TrialManager("s", n_trials=2, directory=tmp_path / "s", progress=False)
    with pytest.raises(UserError, match=r"names to entries[\s\S]*to do"):
        manager.optimize(lambda _: 0.0, {name: ("uniform", 0.0, 1.0)})


def test_an_objective_that_cannot_be_pickled_is_refused_and_one_worker_runs_it(tmp_path):
    lock = threading.Lock()

    def locked(params):
        with lock:
            return bowl(params)

    manager = make_manager(tmp_path, n_trials=4, workers=2)
    with pytest.raises(
        UserError, match=r"cannot be sent to a worker[\s\S]*lock[\s\S]*to do: .*one worker"
    ):
        manager.optimize(locked, SPACE)
    make_manager(tmp_path, n_trials=4).optimize(locked, SPACE)
    assert len(manager.trials) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"direction": "up"},
        {"n_trials": 0},
        {"workers": 0},
        {"timeout": -1.0},
        {"timeout": 1e18},
        {"timeout": math.inf},
        {"retries": -1},
        {"max_failure_rate": 2.0},
    ],
)
def test_an_invalid_option_is_refused(tmp_path, options):
    with pytest.raises(UserError, match="to do"):
        make_manager(tmp_path, **options)


@pytest.mark.parametrize(
    ("storage", "shown"), [("study.db", "study.db"), ("me:word@host", r"\(unreadable\)")]
)
def test_a_storage_that_is_no_url_is_refused_without_its_password(tmp_path, storage, shown):
    with pytest.raises(UserError, match=f"got the database address {shown}\n.*sqlite:///FILE"):
        make_manager(tmp_path, storage=storage).optimize(bowl, SPACE)


def stop_at(number):
    def stop(manager, trial):
        if trial.number == number:
            manager.stop()

    return stop


@pytest.mark.parametrize("sampler", ["random", "cma", "tpe"])
def test_a_callback_ends_a_search_and_the_next_call_goes_on(tmp_path, sampler):
    whole = make_manager(tmp_path / "whole", sampler=sampler)
    whole.optimize(bowl, SPACE)
    manager = make_manager(tmp_path / "stopped", sampler=sampler)
    best = manager.optimize(bowl, SPACE, callbacks=stop_at(4))
    assert [trial.number for trial in manager.trials] == list(range(5))
    assert best.objective == min(trial.objective for trial in manager.trials)
    manager.optimize(bowl, SPACE)
    assert list_results(manager.trials) == list_results(whole.trials)


def test_a_stop_lets_the_running_trials_of_workers_finish(tmp_path):
    manager = make_manager(tmp_path, sampler="random", workers=2, n_trials=40)
    manager.optimize(bowl, SPACE, callbacks=stop_at(2))
    assert 3 <= len(manager.trials) <= 5
    assert {trial.state for trial in manager.trials} == {"complete"}


def test_an_objective_of_this_process_can_stop_and_nobody_can_outside_a_search(tmp_path):
    manager = make_manager(tmp_path)

    def objective(params):
        manager.stop()
        return params["x"]

    manager.optimize(objective, SPACE)
    assert len(manager.trials) == 1
    with pytest.raises(UserError, match=r"got stop\(\) where no optimize runs[\s\S]*in a callback"):
        manager.stop()


def test_a_search_of_a_study_within_its_own_trial_is_refused(tmp_path):
    manager = make_manager(tmp_path, n_trials=2)

    def nested(params):
        return make_manager(tmp_path).optimize(bowl, SPACE).objective

    with pytest.raises(UserError, match=r"within a trial or a callback of its own"):
        manager.optimize(nested, SPACE)

    def inner(params):
        other = make_manager(tmp_path / "inner", n_trials=1)
        return other.optimize(bowl, SPACE).objective

    make_manager(tmp_path / "outer", n_trials=2).optimize(inner, SPACE)


def test_an_existing_study_is_continued_only_on_request_and_with_its_space(tmp_path):
    make_manager(tmp_path, n_trials=3).optimize(bowl, SPACE)
    with pytest.raises(UserError, match="resume=never"):
        make_manager(tmp_path, load_if_exists=False).optimize(bowl, SPACE)
    with pytest.raises(UserError, match="another configuration"):
        make_manager(tmp_path).optimize(bowl, SPACE | {"x": ("uniform", 0.0, 5.0)})
    assert len(make_manager(tmp_path).trials) == 3


def test_the_best_value_of_an_empty_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="call optimize first"):
        _ = make_manager(tmp_path).best_value


def test_the_search_distribution_of_each_generation_is_written(tmp_path):
    make_manager(tmp_path, n_trials=20, sampler="cma").optimize(bowl, SPACE)
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [1, 2]
    for line in lines:
        assert list(line["mean"]) == list(line["sigma"]) == list(SPACE)
        assert len(line["covariance"]) == len(line["eigenvalues"]) == len(SPACE)
        assert line["condition"] == pytest.approx(line["eigenvalues"][-1] / line["eigenvalues"][0])


def test_an_objective_can_return_a_number_of_numpy(tmp_path):
    manager = TrialManager("s", 2, sampler="random", directory=tmp_path, progress=False)
    manager.optimize(lambda p: np.float32(p["x"]), {"x": ("uniform", 0, 1)})
    assert [trial.state for trial in manager.trials] == ["complete"] * 2
    assert manager.best_value == pytest.approx(
        min(trial.values["x"] for trial in manager.trials), rel=1e-6
    )


@pytest.mark.parametrize("progress", [True, "bar", False])
def test_a_search_prints_lines_into_a_pipe_and_nothing_when_it_is_quiet(tmp_path, capsys, progress):
    manager = make_manager(tmp_path, sampler="cma", progress=progress)
    manager.enqueue({"n": 3})
    manager.optimize(bowl, SPACE)
    out = capsys.readouterr().out
    if not progress:
        assert out == ""
    else:
        assert "trials 12/12  best" in out
        assert len(out.splitlines()) < 12  # not one for each trial


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: TrialManager("a", storage=Path("a.db")), "a URL such as sqlite:///study.db"),
        (lambda: TrialManager("a").enqueue([0.5]), "a dict of values by name"),
        (lambda: TrialManager("a").add_trial(None, 1.0), "a dict of values by name"),
        (lambda: TrialManager("a").add_trial({"x": 0.5}, 10**400), "a number that a float can"),
        (lambda: TrialManager("a").add_trial({"x": 0.5}, math.nan), "a finite number, or None"),
        (
            lambda: TrialManager("a").optimize(bowl, {}),
            "a dict from names to entries, at least one",
        ),
    ],
)
def test_an_argument_of_another_type_is_refused_at_its_call(tmp_path, monkeypatch, call, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"expected: {expected}"):
        call()
    assert not list(tmp_path.iterdir())
