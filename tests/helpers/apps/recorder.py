"""A Hydra application that writes down what each of its jobs saw.

The configuration is in the folder `conf` of the working directory. A job appends one line of JSON
to the file that SEEN names.
"""

import json
import os
from enum import Enum
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

Color = Enum("Color", ["RED", "BLUE"])
SCHEMA = {"color": Color.RED, "width": 1, "rate": 0.5}
ConfigStore.instance().store(name="typed", node=OmegaConf.create(SCHEMA))
OmegaConf.register_new_resolver("double", lambda number: 2 * number, replace=True)


@hydra.main(version_base="1.3", config_path=f"{os.getcwd()}/conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Return the value of the key `result`, or 1.0."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    seen = {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "overrides": sorted(job.overrides.task),
        "dirname": job.job.override_dirname,
        "choices": {key: job.runtime.choices[key] for key in job.runtime.choices if "/" not in key},
        "in_its_folder": folder == Path.cwd(),
        "stored": sorted(path.name for path in (folder / ".hydra").iterdir()),
        "environment": os.environ.get("FROM_HYDRA"),
    }
    text = json.dumps(seen, sort_keys=True, default=str).replace(str(folder), "OUTPUT_DIR")
    with Path(os.environ["SEEN"]).open("a") as file:
        file.write(text + "\n")
    return float(cfg.get("result", 1.0))


if __name__ == "__main__":
    main()
