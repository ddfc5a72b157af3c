"""A Hydra application that means something of its own by the names of our groups, and writes a result.json of its own shape."""

import json
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=".", config_name="other")
def main(cfg: DictConfig) -> float:
    """The bowl's height."""
    text = json.dumps({"metrics": {"phase": 2.0, "seed": 3.0}}) if cfg.told is None else cfg.told
    (Path(HydraConfig.get().runtime.output_dir) / "result.json").write_text(text)
    return (cfg.x - cfg.search.depth) ** 2


if __name__ == "__main__":
    main()
