"""An objective that forks, ends its process, removes its study or returns enormous losses."""

import json
import math
import os
import shutil
import sys

import pytest

from helpers import processes
from synaptune import TrialManager
from synaptune.core.errors import UserError

SPACE = {"x": ("uniform", 0, 1)}


def make(folder, **options):
    given = {"n_trials": 4, "sampler": "random", "directory": folder, "progress": False}
    return TrialManager("s", **given | options)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_an_objective_forks_is_not_a_second_search(tmp_path, workers):
    def objective(params):
        child = os.fork()
        if child == 0 and params["kind"] == "exit":
            sys.exit(7)
        if child == 0 and params["kind"] == "error":
            raise RuntimeError("of the child")
        return float(child == 0 or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    made = make(tmp_path, sampler="grid", n_trials=None, workers=workers)
    made.optimize(objective, {"kind": ("categorical", ["exit", "error", "return"])})
    assert {trial.params["kind"]: trial.value for trial in made.trials} == {
        "exit": 7.0,
        "error": 1.0,
        "return": 0.0,
    }


def test_a_point_that_ends_its_process_fails_alone_with_several_workers(tmp_path):
    """With one it ends the search each time, and the next start says what to do."""
    code = (
        "import os, sys; from synaptune import TrialManager; "
        "m = TrialManager('s', n_trials=None, sampler='grid', directory='s', workers=WORKERS); "
        "m.optimize(lambda p: os._exit(11) if p['x'] == 2 else p['x'], "
        "{'x': ('categorical', [1, 2, 3])}); print([t.state for t in m.trials])"
    )
    for words in ("first", "again"):
        done = processes.run(["-c", code.replace("WORKERS", "1")], tmp_path)
        assert done.returncode == 11, words
    assert "running when their process ended, and started again: 1; if a trial" in done.stdout
    done = processes.run(["-c", code.replace("WORKERS", "2")], tmp_path)
    assert done.stdout.splitlines()[-1] == "['complete', 'failed', 'complete']", done.stderr


def test_losses_near_the_largest_float_are_losses(tmp_path):
    made = make(tmp_path, sampler="cma", n_trials=14)
    made.optimize(
        lambda params: 1.7e308 if params["x"] > 0.3 else params["x"], SPACE | {"y": SPACE["x"]}
    )
    lines = (tmp_path / "generations.jsonl").read_text().splitlines()
    means = [json.loads(line)["mean_loss"] for line in lines]
    assert len(made.trials) == 14
    assert max(means) > 1e308
    assert all(map(math.isfinite, means))


def test_a_study_whose_file_is_removed_ends_at_once(tmp_path):
    calls = []

    def objective(params):
        calls.append(params)
        if len(calls) == 3:
            shutil.rmtree(tmp_path)
        return params["x"]

    with pytest.raises(UserError, match="removed or moved while the study was running"):
        make(tmp_path, n_trials=6).optimize(objective, SPACE)
    assert len(calls) == 3
