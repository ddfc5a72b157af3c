"""The entry point of a Hydra program: run it and report errors.

A user error is a message of a few lines on stderr and exit code 2; any other error keeps its
traceback. Hydra prints errors itself and exits with code 1 unless HYDRA_FULL_ERROR is set, so it is
set while Hydra runs.
"""

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
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.help import format_help
from synaptune.config.overrides import (
    check_overrides,
    expand_space_file,
    expand_tuned_groups,
    find_override_faults,
)
from synaptune.config.resume import describe_continuation, expand_resume, make_run_folder
from synaptune.core.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    UserError,
    discard_output,
    explain_disk_error,
    flush_output,
    is_memory_error,
    run_command,
    user_error,
)
from synaptune.core.files import make_absolute
from synaptune.core.secrets import protect_passwords
from synaptune.core.terminal import escape_unknown_characters, repeat_lost_interrupts
from synaptune.core.text import get_first_line

# The flags that say what Hydra does.
_FLAGS = ("--run", "--multirun", "--cfg", "--info", "--shell-completion")
_LONG_FLAGS: dict[str, str] = dict(zip(("-r", "-m", "-c", "-i", "-sc"), _FLAGS, strict=True))


class _SurfacedError(BaseException):
    """A user error of a single run. Hydra does not catch it, so it prints no line of its own."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error)
        self.error = error


class _RunInterrupted(KeyboardInterrupt):
    """Ctrl-C in a single run, with the folder of the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder


class RunFolderCheck(Callback):
    """Makes the folder of a single run, before Hydra writes into it; a callback of conf/."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        HydraConfig.instance().set_config(config)  # the name of the folder may refer to ${hydra:}
        try:
            folder, resume = Path(config.hydra.run.dir), config.training.resume
        except OmegaConfBaseException:  # Hydra reports it later
            return
        try:
            make_run_folder(folder, resume=resume)
        except UserError as error:
            raise _SurfacedError(error) from error


@contextlib.contextmanager
def surface_user_errors() -> Iterator[None]:
    """Wrap the body of a Hydra task.

    A UserError and Ctrl-C reach `run_program` in a single run, and the sweeper in a multirun. With
    hydra.job.chdir a relative path is still one of the folder where the command was started.
    """
    hydra = HydraConfig.get()
    try:
        with contextlib.chdir(hydra.runtime.cwd) if hydra.job.chdir else contextlib.nullcontext():
            yield
    except (MemoryError, RuntimeError) as error:
        if hydra.mode == RunMode.MULTIRUN or not is_memory_error(error):
            raise  # a search counts the failures by their kind
        raise _SurfacedError(
            user_error(
                got=f"too little memory: {get_first_line(error)}",
                expected="a run that fits into the memory",
                do="reduce training.batch (training.accumulate makes up for it), model.width,"
                " model.layers or model.context",
            )
        ) from error
    except (UserError, KeyboardInterrupt) as error:
        if hydra.mode == RunMode.MULTIRUN:
            raise
        if isinstance(error, UserError):
            raise _SurfacedError(error) from error
        raise _RunInterrupted(Path(hydra.runtime.output_dir)) from None


def run_program(program: Callable[[], object], conf: Path, config_name: str) -> int:
    """Run a Hydra program and return its exit code.

    With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback.

    Args:
        program: function decorated with hydra.main.
        conf: folder of the configuration.
        config_name: its primary file.
    """
    escape_unknown_characters()
    repeat_lost_interrupts()
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        return run_command(lambda: print(format_help(conf, config_name)), disk="make room")
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # On a full disk every line for train.log would print a traceback.
    logging.raiseExceptions = False
    try:
        make_absolute(".")  # refuses a working folder that was removed
        sys.argv[1:] = _arrange_words(sys.argv[1:])
        sys.argv[1:] = expand_resume(sys.argv[1:])
        check_overrides(sys.argv[1:])
        protect_passwords(sys.argv[1:])
        words = expand_tuned_groups(sys.argv[1:])
        sys.argv[1:] = expand_space_file(words, conf, config_name)
        _call_unwrapped(program)
        flush_output()
        return 0
    except BrokenPipeError:  # the run has ended before its result: this is no success
        discard_output()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt as interruption:
        print("\ninterrupted", file=sys.stderr)
        if isinstance(interruption, _RunInterrupted):
            print(describe_continuation(interruption.folder), file=sys.stderr)
        return EXIT_INTERRUPTED
    except (UserError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if full_error == "1":
            raise
        message = explain_error(error, conf, config_name)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return EXIT_USER_ERROR
    finally:
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _arrange_words(words: list[str]) -> list[str]:
    """Put the flags before the overrides: argparse takes no overrides on both sides of a flag.

    Raises:
        UserError: Hydra would answer the flags with a traceback.
    """
    flags = [flag for flag in map(_get_flag, words) if flag is not None]
    if len(set(flags)) > 1:
        raise user_error(
            got=" with ".join(dict.fromkeys(flags)),
            expected=f"one of {', '.join(_FLAGS)}",
            do="leave the others out; --cfg job without --multirun prints the configuration",
        )
    subcommands = ("install", "uninstall", "query")
    if "--shell-completion" in flags and not any(word.startswith(subcommands) for word in words):
        raise user_error(
            got="--shell-completion without what to do",
            expected=f"--shell-completion {'|'.join(subcommands)}=SHELL",
            do="python train.py --hydra-help shows the command for each shell",
        )
    if "--hydra-help" in words:  # it has none of the groups of conf/
        return [word for word in words if word.startswith(("-", "hydra"))]
    return sorted(words, key=_is_override)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _get_flag(word: str) -> str | None:
    """Return the long form of a flag that says what Hydra does; None for any other word."""
    flag = word.partition("=")[0]
    return flag if flag in _FLAGS else _LONG_FLAGS.get(flag)


def _call_unwrapped(program: Callable[[], object]) -> None:
    try:
        program()
    except _SurfacedError as surfaced:
        raise surfaced.error from None


def explain_error(error: Exception, conf: Path, config_name: str) -> str | None:
    """Return the message for a user error; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    # Some of Hydra's exceptions are also OSErrors.
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        explained = explain_disk_error(
            error, "make room, or set hydra.run.dir (of a search: study.dir)"
        )
        return None if explained is None else str(explained)
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return _explain_logging_error(error)
    GlobalHydra.instance().clear()
    try:
        faults = find_override_faults(
            [word for word in sys.argv[1:] if "=" in word or word.startswith("~")],
            conf,
            config_name,
        )
    except (HydraException, OmegaConfBaseException):
        # Without overrides the configuration does not compose either: the fault is in conf/.
        return None
    if faults:
        return "\n".join(map(str, faults))
    return str(
        user_error(
            got=get_first_line(error),
            expected="a configuration Hydra can compose",
            do="python train.py --help lists the groups",
        )
    )


def _explain_logging_error(error: ValueError) -> str | None:
    """Return the message for an error of logging.config; None for any other ValueError."""
    if not str(error).startswith("Unable to configure"):
        return None
    return str(
        user_error(
            got=f"a log that cannot be written: {get_first_line(error.__cause__ or error)}",
            expected="a writable folder, a plain hydra.job.name and levels such as INFO",
            do="correct hydra.run.dir, hydra.job.name or hydra.job_logging",
        )
    )
