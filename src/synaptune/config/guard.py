"""The outermost level of a Hydra program: a user error is a message of a few lines on stderr and exit code 2."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.help import format_help
from synaptune.config.overrides import (
    check_overrides,
    expand_space_file,
    find_override_faults,
)
from synaptune.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    UserError,
    explain_disk_error,
    user_error,
)
from synaptune.core.text import get_first_line


class _SurfacedError(BaseException):
    """Carries the mistake of a single run past Hydra, which would put a line of its own before it."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def surface_user_errors() -> Iterator[None]:
    """Around the body of a Hydra task: in a single run a UserError goes straight to `guarded`; in a multirun the sweeper gets it."""
    try:
        yield
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        raise _SurfacedError(error) from error


def run_program(program: Callable[[], object], conf: Path, config_name: str) -> int:
    """Run a Hydra program; returns the exit code. With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback."""
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        print(format_help(conf, config_name))
        return 0
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = (
        False  # on a full disk every line for train.log would print a traceback
    )
    try:
        check_overrides(sys.argv[1:])
        sys.argv[1:] = expand_space_file(sys.argv[1:], conf, config_name)
        _call_unwrapped(program)
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted\n  a search: the same command goes on", file=sys.stderr)
        print(
            "  a run: the same command with hydra.run.dir=<its folder> training.resume=true goes on",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if wanted == "1":
            raise
        message = explain_error(error, conf, config_name)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        if wanted is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = wanted


def _call_unwrapped(program: Callable[[], object]) -> None:
    try:
        program()
    except _SurfacedError as surfaced:
        raise surfaced.error from None


def explain_error(error: Exception, conf: Path, config_name: str) -> str | None:
    """The message for a user's mistake; None when the error is not of his making."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(
        error, HydraException
    ):  # some of Hydra's are both
        found = explain_disk_error(
            error, "make room, or set hydra.run.dir (of a search: study.dir)"
        )
        return None if found is None else str(found)
    GlobalHydra.instance().clear()
    try:
        found = find_override_faults(
            [word for word in sys.argv[1:] if "=" in word or word.startswith("~")],
            conf,
            config_name,
        )
    except (HydraException, OmegaConfBaseException):
        return None  # the configuration does not compose without any override: a slip in conf/, not of the command line
    if found:
        return "\n".join(str(fault) for fault in found)
    return str(
        user_error(
            got=get_first_line(error),
            expected="a configuration Hydra can compose",
            do="python train.py --help lists the groups",
        )
    )
