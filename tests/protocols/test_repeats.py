"""Phase 1 with repeated searches, killed in the second and continued."""

import json
import signal
import time

import pytest

from helpers import processes
from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.repeats import collect_repeats
from synaptune.search.space.space import Dimension, Space
from synaptune.study.reader import find_study

WORDS = [
    "protocol.repeats=2",
    "protocol.budget=3",
    "protocol.seeds=2",
    "protocol.ablation=false",
    "protocol.screen=false",
    "search_space.parameters=[synapse.calcium.tau_c,synapse.vesicles.tau_rrp]",
    "scale=smoke",
    "training.steps=6",
    "model.width=16",
    "workers.count=1",
    "logger.wandb=off",
]
COMMAND = ["-m", "synaptune.cli.main", "phase1", *WORDS]


@pytest.mark.slow
def test_a_repeated_search_killed_in_its_second_goes_on_to_the_spread(tmp_path):
    root = tmp_path / "outputs/studies"
    process = processes.start(COMMAND, tmp_path)
    deadline = time.monotonic() + 900
    while not (root / "phase1-repeat2/trials/3").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = find_study(str(root / "phase1"))
    ended = processes.run(COMMAND, tmp_path)
    assert ended.returncode == 0, ended.stderr
    again, second = (find_study(str(root / name)) for name in ("phase1", "phase1-repeat2"))
    assert again.trials == first.trials
    assert second.notes["repeat_of"] == "phase1"
    assert [len(second.get_phase_trials(phase)) for phase in ("sanity", "search")] == [0, 3]
    # Other points, and the same seeds.
    points = [[trial.unit for trial in study.search_trials] for study in (again, second)]
    assert points[0][0] == points[1][0]
    assert points[0][1:] != points[1][1:]
    for phase in ("search", "validation"):
        seeds = [
            [trial.facts["seed"] for trial in study.get_phase_trials(phase)]
            for study in (again, second)
        ]
        assert seeds[0] == seeds[1]
    summaries = [
        json.loads((root / name / "summary.json").read_text())
        for name in ("phase1", "phase1-repeat2")
    ]
    spread = summaries[0]["repeats"]
    assert spread["studies"] == ["phase1", "phase1-repeat2"]
    assert spread["gains"] == [summary["improvement"]["mean"] for summary in summaries]
    found = gather_evidence(again, deep=False).repeats
    assert found is not None
    assert list(found.gains) == spread["gains"]
    page = (root / "phase1/report/report.html").read_text()
    assert "2 searches with different search seeds" in page
    assert not (root / "phase1-repeat2/report").exists()


def test_a_move_counts_from_a_tenth_of_the_range_on():
    space = Space(
        (Dimension("a", "lin", 0.0, 1.0, start=0.5), Dimension("b", "log", 1.0, 100.0, start=10.0))
    )

    def summarise(name, gain, a, b):
        return {
            "study": name,
            "improvement": {"mean": gain},
            "best": {"test_perplexity": [8.0, 9.0]},
            "parameters": {"a": {"start": 0.5, "best": a}, "b": {"start": 10.0, "best": b}},
        }

    repeats = collect_repeats(
        [summarise("s", 4.0, 0.7, 20.0), summarise("t", 6.0, 0.45, 5.0)], space
    )
    assert (repeats.mean, repeats.perplexities) == (5.0, [8.5, 8.5])
    assert [(entry.raised, entry.lowered) for entry in repeats.parameters] == [(1, 0), (1, 1)]
