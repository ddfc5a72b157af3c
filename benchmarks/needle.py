"""Needle in a haystack: accuracy of plain and synaptic models by the length of the text.

    python benchmarks/needle.py [--seeds 3] [--rows 64] [overrides of conf/train.yaml ...]

Each model is trained on rows of its context, half text and half associative recall, and then asked
for a fact in real text of 1, 2, 3 and 4 times that length (data/needle.py), at five depths. The
finished runs are kept in outputs/needle, so that the same command continues.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from ladder import compose_config, format_table

from synaptune.config.run import run
from synaptune.core.errors import UserError
from synaptune.data.corpus import load_corpus
from synaptune.training.checkpoint import load_model
from synaptune.training.config import CHECKPOINT_FILE, RESULT_FILE
from synaptune.training.needle import DEPTHS, ROWS, measure_needle

VARIANTS = {
    "plain, RoPE": ("model=gpt",),
    "plain, ALiBi": ("model=gpt", "position=alibi"),
    "synaptic": ("model=synaptic",),
}
COMMON = ("data.recall_fraction=0.5", "training.steps=1000", "training.learning_rate=2e-3")
MULTIPLES = (1, 2, 3, 4)
FOLDER = Path("outputs/needle")
FIRST_SEED = 7000


def train(name: str, overrides: list[str], seed: int) -> Path:
    """Train a variant unless its run is finished; return its checkpoint."""
    folder = FOLDER / f"{name.replace(', ', '-')}-{seed}"
    if not (folder / RESULT_FILE).exists():
        print(f"training {name}, seed {seed}", flush=True)
        words = [*COMMON, *VARIANTS[name], *overrides, f"seed={seed}", "logger.wandb=off"]
        run(compose_config(words), folder, overrides=[])
    return folder / CHECKPOINT_FILE


def main() -> int:
    """Train the models and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    options, overrides = parser.parse_known_args()
    cells = [["accuracy [%]", *(f"{multiple} x" for multiple in MULTIPLES)]]
    try:
        for name in VARIANTS:
            by_seed = []
            for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
                model, config, data = load_model(train(name, overrides, seed))
                accuracies = measure_needle(
                    model,
                    load_corpus(data, config.context),
                    data,
                    split="test",
                    multiples=MULTIPLES,
                    depths=DEPTHS,
                    rows=options.rows,
                )
                by_seed.append([statistics.fmean(accuracies[multiple]) for multiple in MULTIPLES])
            row = []
            for values in zip(*by_seed, strict=True):
                spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
                row.append(f"{100 * statistics.fmean(values):.1f}{spread}")
            cells.append([name, *row])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_table(cells))
    print(f"chance {100 / data.recall_values:.1f} %; mean over {len(DEPTHS)} depths")
    return 0


if __name__ == "__main__":
    sys.exit(main())
