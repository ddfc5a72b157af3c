"""A Hydra application whose task does what its key `what` says."""

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

CONFIG = {"what": "number", "x": 1, "width": 1, "password": "${oc.env:APP_PASSWORD,none}"}
ConfigStore.instance().store(name="failing", node=OmegaConf.create(CONFIG))
RETURNS = {
    "number": 2,
    "none": None,
    "text": "0.5",
    "flag": True,
    "list": [0.5],
    "tensor": torch.tensor(3.0, requires_grad=True),
    "f32": np.float32(4.0),
    "i64": np.int64(5),
    "array": np.array([[6.0]]),
    "arrays": np.zeros(2),
}


@hydra.main(version_base="1.3", config_path=None, config_name="failing")
def main(cfg: DictConfig) -> object:
    """Return what the key names, or raise an error."""
    if cfg.what == "error":
        raise RuntimeError("no such data set")
    return RETURNS[cfg.what]


if __name__ == "__main__":
    main()
