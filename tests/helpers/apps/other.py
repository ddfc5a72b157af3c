"""A Hydra application that uses the names of Synaptune's config groups for its own keys.

It also writes a result.json with a different structure.
"""

import json
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=".", config_name="other")
def main(cfg: DictConfig) -> float:
    """Return the height of the bowl."""
    text = json.dumps({"metrics": {"phase": 2.0, "seed": 3.0}}) if cfg.told is None else cfg.told
    (Path(HydraConfig.get().runtime.output_dir) / "result.json").write_text(text)
    return (cfg.x - cfg.search.depth) ** 2


if __name__ == "__main__":
    main()
