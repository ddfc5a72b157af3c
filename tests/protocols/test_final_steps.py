"""Both phases with longer runs in their validation; the first is killed in one and continued."""

import json
import signal
import time

import pytest

from helpers import processes
from synaptune.analysis.ablation import compute_ablation
from synaptune.study.reader import find_study

COMMON = [
    "protocol.final_steps=12",
    "protocol.seeds=2",
    "scale=smoke",
    "training.steps=6",
    "model.width=16",
    "workers.count=1",
    "logger.wandb=off",
]
COMMAND = [
    "-m",
    "synaptune.cli.main",
    "phase1",
    *COMMON,
    "protocol.budget=3",
    "protocol.screen=false",
    "search_space.parameters=[synapse.calcium.tau_c,synapse.vesicles.tau_rrp]",
]
SECOND = [
    "-m",
    "synaptune.cli.main",
    "phase2",
    *COMMON,
    "protocol.budget=2",
    "protocol.group_budget=2",
    "protocol.gate_seeds=2",
    "protocol.go_on=true",
]


def read_steps(folder, number):
    return json.loads((folder / f"trials/{number}/result.json").read_text())["curve"][-1][0]


@pytest.mark.slow
def test_a_validation_of_longer_runs_killed_in_one_goes_on_to_the_same_end(tmp_path):
    folder = tmp_path / "outputs/studies/phase1"
    process = processes.start(COMMAND, tmp_path)
    deadline = time.monotonic() + 900
    while not (folder / "trials/18").exists():  # after 13 + 1 + 3 runs
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    early = find_study(str(folder)).trials[:18]
    assert early[17].facts["phase"] == "validation"
    for _ in range(2):
        ended = processes.run(COMMAND, tmp_path)
        assert ended.returncode == 0, ended.stderr
        study = find_study(str(folder))
        assert study.trials[:18] == early
        validation = study.get_phase_trials("validation")
        assert [trial.facts["run_steps"] for trial in validation] == [12] * 4
        assert len({(trial.unit, trial.facts["seed"]) for trial in validation}) == 4
    # The ablation and the inspection run as long as the validation, with which they are compared.
    assert all(trial.facts["run_steps"] == 12 for trial in study.get_phase_trials("ablation"))
    assert [row.reverted.count for row in compute_ablation(study)] == [2, 2]
    assert read_steps(folder, validation[0].number) == 12
    assert read_steps(folder, 0) == 6
    assert {side["reproduced"] for side in study.notes["portraits"].values()} == {True}
    ended = processes.run(SECOND, tmp_path)
    assert ended.returncode == 0, ended.stderr
    study = find_study(str(tmp_path / "outputs/studies/phase2"))
    validation = study.get_phase_trials("validation")
    assert [trial.facts["run_steps"] for trial in validation] == [12] * 4
    assert all("run_steps" not in trial.facts for trial in study.get_phase_trials("joint"))
    assert {side["reproduced"] for side in study.notes["portraits"].values()} == {True}
