"""The sweeper that Hydra finds.

Hydra imports this module at every start, so slow imports are made in `sweep`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydra_plugins.synaptune import config as _schema  # noqa: F401 - registers the schema


class SynaptuneSweeper(Sweeper):
    """Sweeper that searches with synaptune.protocols.sweep and runs jobs by Hydra's launcher."""

    def __init__(
        self,
        optim: DictConfig,
        params: DictConfig,
        parametrization: DictConfig,
        grid_points: int,
        version: int | None = None,
    ) -> None:
        self._optim = optim
        self._params: dict[str, Any] = {}
        for entries in (parametrization, params):
            plain: Any = OmegaConf.to_container(entries, resolve=True)
            self._params |= {str(name): entry for name, entry in plain.items()}
        self._grid_points = grid_points

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments; the launcher is created when the study's folder is known."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search; the same command continues an interrupted one.

        Raises:
            SystemExit: with code 2 after a user error, 130 after Ctrl-C.
        """
        from synaptune.config.sweep import SweepRequest
        from synaptune.core.errors import UserError
        from synaptune.core.secrets import protect_passwords
        from synaptune.protocols.sweep import run_sweep

        protect_passwords(arguments)
        request = SweepRequest(
            self._config,
            self._context,
            self._task,
            self._optim,
            self._params,
            self._grid_points,
            arguments,
        )
        try:
            return run_sweep(request, self._make_launcher)
        except UserError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(
                "\ninterrupted; the same command continues, every finished trial is kept",
                file=sys.stderr,
            )
            raise SystemExit(130) from None

    def _make_launcher(self, folder: str) -> Launcher:
        """Return Hydra's launcher for jobs in `folder`."""
        with read_write(self._config.hydra), open_dict(self._config.hydra):
            self._config.hydra.sweep.dir = folder
        return Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task, config=self._config
        )
