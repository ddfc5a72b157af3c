"""A table of runs with all published numbers of the 48-run design of the focused-sweep plan."""

import csv
from pathlib import Path

METRIC = "eval_change"
THRESHOLD = 0.1  # of the metric; a run above it is a high performer
BATCH = 8
# Runs, high performers and mean change by learning rate.
BINS = {(1e-7, 3e-7): (19, 6, -0.132), (3e-7, 1e-6): (19, 5, -0.151), (1e-6, 2e-6): (10, 5, -0.189)}
_WINNING_RATES = (
    (1.02e-7, 1.3e-7, 1.6e-7, 1.9e-7, 2.2e-7, 2.7e-7),
    (3.4e-7, 4.6e-7, 5.8e-7, 7e-7, 9e-7),
    (1.04e-6, 1.1e-6, 1.19e-6, 1.28e-6, 1.37e-6),
)
# Ranks of the high performers by order of the runs; 0 is the best.
_RANKS = (3, 12, 0, 8, 15, 6, 10, 1, 13, 5, 9, 14, 2, 7, 11, 4)
_SCHEDULES = ("advanced", "advanced", "cosine") * 3 + (
    "advanced",
    "cosine",
    "advanced",
    "cosine",
    "cosine",
    "advanced",
    "cosine",
)
_GENERATIONS = (16, 24, 32, 24, 16, 32, 24, 16, 32, 16, 24, 32, 16, 24, 32, 24)
_LOSING_GENERATIONS = (40, 16, 24, 32, 40, 16, 24, 32)
_ENTROPY = (0.001, 0.002, 0.005)


def make_plan_runs() -> list[dict[str, object]]:
    """Make one row for each run."""
    rows: list[dict[str, object]] = []
    winner = loser = 0
    for (low, high), (runs, winners, mean), rates in zip(
        BINS, BINS.values(), _WINNING_RATES, strict=True
    ):
        changes = []
        for rate in rates:
            rank = _RANKS[winner]
            changes.append(0.155 - 0.0025 * rank)
            rows.append(
                _make_row(
                    rate,
                    changes[-1],
                    BATCH,
                    _GENERATIONS[rank],
                    _SCHEDULES[rank],
                    _ENTROPY[winner % 3],
                )
            )
            winner += 1
        losers = runs - winners
        level = (mean * runs - sum(changes)) / losers
        for index in range(losers):
            rate = float(f"{low + (high - low) * (index + 0.5) / losers:.3g}")
            change = level + 0.002 * (index - (losers - 1) / 2)
            schedule = "advanced" if loser * 15 // 32 < (loser + 1) * 15 // 32 else "cosine"
            batch = BATCH if loser % 2 else (4, 12)[loser // 2 % 2]
            rows.append(
                _make_row(
                    rate,
                    change,
                    batch,
                    _LOSING_GENERATIONS[loser % 8],
                    schedule,
                    _ENTROPY[(loser + 1) % 3],
                )
            )
            loser += 1
    return rows


def _make_row(
    rate: float, change: float, batch: int, generations: int, schedule: str, entropy: float
) -> dict[str, object]:
    return {
        "learning_rate": rate,
        "batch_size": batch,
        "generations": generations,
        "schedule": schedule,
        "entropy_coef": entropy,
        METRIC: round(change, 9),
        # A measurement: the better in training, the worse in the evaluation.
        "train_reward": round(0.4 - change, 6),
    }


def write_runs(path: Path, rows: list[dict[str, object]], *, exported: bool = False) -> Path:
    """Write the rows as CSV and return the path.

    exported uses the format of a Weights & Biases export: all quoted, with its own columns.
    """
    if exported:
        columns = {
            "State": "finished",
            "Notes": "",
            "User": "someone",
            "Tags": "",
            "Created": "",
            "Runtime": "",
            "Sweep": "",
            "seed": 7,
            "model": "small",
        }
        rows = [
            {"Name": f"run-{n}"}
            | columns
            | {"Created": f"2025-01-01T00:{n:02d}:00.000Z", "Runtime": 600 + n}
            | row
            for n, row in enumerate(rows)
        ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, list(rows[0]), quoting=csv.QUOTE_ALL if exported else csv.QUOTE_MINIMAL
        )
        writer.writeheader()
        writer.writerows(rows)
    return path
