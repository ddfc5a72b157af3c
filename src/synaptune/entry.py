"""The outermost level of a Hydra program: a user's mistake is three lines on stderr and exit code 2, anything else a traceback.

Hydra prints errors itself and ends with code 1 unless HYDRA_FULL_ERROR is set. It is set here while Hydra runs, so that errors
arrive whole; a sweeper, which runs the program's function in-process, still sees every exception of its trials.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from synaptune.errors import UserError, mistake
from synaptune.hints import nearest

USER_ERROR = 2
INTERRUPTED = 130


class _Surfaced(BaseException):
    """Carries the mistake of a single run past Hydra, which would put a line of its own before it."""

    def __init__(self, error: UserError) -> None:
        super().__init__(error)
        self.mistake = error


@contextlib.contextmanager
def surfacing() -> Iterator[None]:
    """Around the body of a Hydra task: in a single run a UserError goes straight to `guarded`; in a multirun the sweeper gets it."""
    try:
        yield
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        raise _Surfaced(error) from error


def guarded(program: Callable[[], object], conf: Path, config_name: str) -> int:
    """Run a Hydra program; returns the exit code. With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback."""
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _unwrapped(program)
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted\n  a search: the same command goes on", file=sys.stderr)
        print("  a run: the same command with hydra.run.dir=<its folder> training.resume=true goes on", file=sys.stderr)
        return INTERRUPTED
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if wanted == "1":
            raise
        message = explain(error, conf, config_name)
        if message is None:
            raise
        print(message, file=sys.stderr)
        return USER_ERROR
    finally:
        if wanted is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = wanted


def _unwrapped(program: Callable[[], object]) -> None:
    try:
        program()
    except _Surfaced as surfaced:
        raise surfaced.mistake from None


def explain(error: Exception, conf: Path, config_name: str) -> str | None:
    """The message for a user's mistake; None when the error is not of his making."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # some of Hydra's are both
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return None
        where = f" ({error.filename})" if error.filename else ""
        return str(
            mistake(
                got=f"{error.strerror}{where}", expected="a folder with space that can be written", do="make room, or set hydra.run.dir"
            )
        )
    GlobalHydra.instance().clear()
    try:
        found = override_faults([word for word in sys.argv[1:] if "=" in word or word.startswith("~")], conf, config_name)
    except (HydraException, OmegaConfBaseException):
        return None  # the configuration does not compose without any override: a slip in conf/, not of the command line
    if found:
        return "\n".join(str(fault) for fault in found)
    return str(mistake(got=_first_line(error), expected="a configuration Hydra can compose", do="python train.py --help lists the groups"))


def override_faults(overrides: Sequence[str], conf: Path, config_name: str) -> list[UserError]:
    """Every override that does not fit the configuration on its own, with near names."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        base = compose(config_name)
        names = list(names_of(base))
        groups = _groups()
        found = []
        for override in overrides:
            if override.startswith("hydra"):
                continue
            try:
                parsed = OverridesParser.create().parse_override(override)
                if not parsed.is_sweep_override():
                    compose(config_name, overrides=[override])
            except (HydraException, OmegaConfBaseException) as error:
                found.append(_fault(override, error, names, groups))
    return found


def names_of(cfg: DictConfig, prefix: str = "") -> Iterable[str]:
    """Every dotted name of a configuration that holds a value."""
    for key in cfg:
        path = f"{prefix}{key}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from names_of(node, f"{path}.")
        else:
            yield path


def _groups() -> dict[str, list[str]]:
    """Options by group, of the composition under way."""
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()
    found: dict[str, list[str]] = {}

    def walk(group: str) -> None:
        options = [name for name in loader.get_group_options(group, ObjectType.CONFIG) if name != "base"]
        if group and options:
            found[group] = options
        for child in loader.get_group_options(group, ObjectType.GROUP):
            if child != "hydra":
                walk(f"{group}/{child}" if group else child)

    walk("")
    return found


def _fault(override: str, error: Exception, names: Iterable[str], groups: dict[str, list[str]]) -> UserError:
    key, _, value = override.lstrip("+~").partition("=")
    if key in groups:
        return mistake(
            got=override, expected=f"{key}={'|'.join(groups[key])}", do=f"choose one of them (closest: {nearest(value, groups[key])})"
        )
    known = [*names, *groups]
    if key not in known:
        return mistake(
            got=f"{override}: no such name",
            expected=f"a name of the configuration (closest: {nearest(key, known)})",
            do="correct the name; python train.py --cfg job lists all",
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    return mistake(
        got=f"{override}: {_first_line(cause)}",
        expected="a value of the right kind",
        do=f"correct it; python train.py --cfg job --package {key.split('.')[0]} shows the kinds",
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
