"""Train one configuration, or search with -m.

python train.py                                   the default run
python train.py model=gpt position=alibi seed=1   choices and values by name
python train.py -m hydra/sweeper=cma              a search over search_space
"""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from synaptune.config.conf import CONF_DIR
from synaptune.config.guard import run_program, surface_user_errors
from synaptune.config.schema import register

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one configuration and return its objective.

    Raises:
        UserError: the input has a fault.
    """
    from synaptune.config.run import run

    with surface_user_errors():
        outcome = run(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return outcome.objective
    names = (
        "val_loss",
        "val_perplexity",
        "val_bits_per_byte",
        "val_recall_accuracy",
        "val_accuracy",
        "test_accuracy",
        "parameters",
        "val_reward",
        "reward_delta",
        "test_loss",
        "test_perplexity",
        "tokens_per_second",
        "images_per_second",
        "samples_per_second",
    )
    learned = [name for name in outcome.metrics if name.startswith("learned.")]
    for line in (names, learned):
        if shown := [name for name in line if name in outcome.metrics]:
            print("  ".join(f"{name} {outcome.metrics[name]:,.4g}" for name in shown))
    print(f"written to {outcome.run_dir}")
    return outcome.objective


if __name__ == "__main__":
    sys.exit(run_program(main, CONF_DIR, "train"))
