"""A small Hydra application to sweep: a bowl with its minimum at x=3, y=30.

Its trials seed the global generators, and sleep or fail on request.
"""

import json
import random
import time
from pathlib import Path

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg: DictConfig) -> float:
    """Return the height of the bowl; each evaluation appends a line to cfg.log."""
    random.seed(0)
    np.random.seed(0)
    number = HydraConfig.get().job.num
    if cfg.log:
        with Path(cfg.log).open("a") as log:
            log.write(f"{number} {cfg.x} {cfg.y}\n")
    time.sleep(cfg.seconds)
    if number in cfg.fail:
        raise ArithmeticError(f"trial {number} was told to fail")
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "result.json").write_text(
        json.dumps({"metrics": {"height": 1.0}, "data_fingerprint": "d1"})
    )
    return (cfg.x - 3.0) ** 2 + (np.log10(cfg.y) - np.log10(30.0)) ** 2


if __name__ == "__main__":
    main()
