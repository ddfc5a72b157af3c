"""The outermost level of a Hydra program: a user's mistake is three lines on stderr and exit code 2, anything else a traceback.

Hydra prints errors itself and ends with code 1 unless HYDRA_FULL_ERROR is set. It is set here while Hydra runs, so that errors
arrive whole; a sweeper, which runs the program's function in-process, still sees every exception of its trials.
"""

from __future__ import annotations

import contextlib
import logging
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

from synaptune.errors import UserError, mistake, of_disk
from synaptune.hints import nearest
from synaptune.schema import CHOSEN
from synaptune.search.space_file import named_file, read_space, unknown_names

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
    logging.raiseExceptions = False  # on a full disk every line for train.log would print a traceback
    try:
        check_words(sys.argv[1:])
        sys.argv[1:] = with_space_file(sys.argv[1:], conf, config_name)
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
        found = of_disk(error, "make room, or set hydra.run.dir (of a search: study.dir)")
        return None if found is None else str(found)
    GlobalHydra.instance().clear()
    try:
        found = override_faults([word for word in sys.argv[1:] if "=" in word or word.startswith("~")], conf, config_name)
    except (HydraException, OmegaConfBaseException):
        return None  # the configuration does not compose without any override: a slip in conf/, not of the command line
    if found:
        return "\n".join(str(fault) for fault in found)
    return str(mistake(got=_first_line(error), expected="a configuration Hydra can compose", do="python train.py --help lists the groups"))


def check_words(words: Iterable[str]) -> None:
    """Raise UserError for an override without a name, and for no choice of a group: Hydra ends both with an error of its own making."""
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if word.lstrip("+~").startswith("="):
            raise mistake(got=f"{word}, a value without a name", expected="NAME=VALUE", do="write the name before the =, without a space")
        if value == "null" and (key in CHOSEN or "/" in key):
            raise mistake(got=f"{word}, no choice of a group", expected=f"{key}=CHOICE", do="leave it out for the default choice")


def with_space_file(words: Sequence[str], conf: Path, config_name: str) -> list[str]:
    """The words of a command line, a `search_space=FILE.yaml` among them replaced by what the file says (search/space_file.py).

    Values that the command line gives win over those the file fixes. Raises UserError for a file that cannot be used.
    """
    files = {place: path for place, word in enumerate(words) if (path := named_file(word)) is not None}
    if not files:
        return list(words)
    if len(files) > 1:
        raise mistake(got=" ".join(words[place] for place in files), expected="one search_space", do="leave the others out")
    ((place, path),) = files.items()
    file, rest = read_space(path), [*words[:place], *words[place + 1 :]]
    if unknown := unknown_names(file, _names_with(rest, conf, config_name)):
        raise mistake(
            got=f"search_space={path} with unknown names: {'; '.join(unknown)}",
            expected="names of the configuration (python train.py --cfg job lists all)",
            do="correct the file",
        )
    given = [word.lstrip("+~").split("=", 1)[0] for word in rest]
    return [*words[:place], *file.words(given), *words[place + 1 :]]


def _names_with(words: Sequence[str], conf: Path, config_name: str) -> list[str]:
    """The names of the configuration that the choices and values of a command line give; of the bare one when they are at fault."""
    parser, kept = OverridesParser.create(), []
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            overrides = [word for word in words if ("=" in word or word.startswith("~")) and not word.startswith(("-", "hydra"))]
            kept = [word for word in overrides if not parser.parse_override(word).is_sweep_override()]
            return list(names_of(compose(config_name, overrides=kept)))
        except (HydraException, OmegaConfBaseException):  # Hydra says so itself
            return list(names_of(compose(config_name)))


def override_faults(overrides: Sequence[str], conf: Path, config_name: str) -> list[UserError]:
    """Every override that does not fit the configuration on its own, with near names."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        base = compose(config_name)
        names = list(names_of(base))
        groups = _groups()
        found = _hydra_faults([override for override in overrides if override.startswith("hydra")], config_name)
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


def _hydra_faults(overrides: Sequence[str], config_name: str) -> list[UserError]:
    """The overrides of Hydra's own configuration that do not fit: its choices first, then the values of what was chosen."""
    loader, found = GlobalHydra.instance().config_loader(), []
    choices = [override for override in overrides if override.startswith("hydra/")]
    for choice in choices:
        group, _, option = choice.partition("=")
        options = loader.get_group_options(group)
        if option not in options:
            expected = f"{group}={'|'.join(options)}" if options else "hydra/sweeper=cma|random|grid|..., or hydra/launcher=..."
            found.append(mistake(got=choice, expected=expected, do="choose one of them"))
    if found:
        return found
    names = list(names_of(compose(config_name, overrides=choices, return_hydra_config=True).hydra, "hydra."))
    for override in set(overrides).difference(choices):
        try:
            compose(config_name, overrides=[*choices, override])
        except (HydraException, OmegaConfBaseException) as error:
            found.append(_fault(override, error, names, {}))
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
        options = loader.get_group_options(group, ObjectType.CONFIG)
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
        chosen = [name.strip() for name in value.strip("[]").split(",")]
        wrong = next((name for name in chosen if name not in groups[key]), None)
        near = "none" if wrong is None else nearest(wrong, groups[key])
        do = "write it without +" if wrong is None else "choose one of them" + (f" (closest: {near})" if near != "none" else "")
        return mistake(got=override, expected=f"{key}={'|'.join(groups[key])}", do=do)
    known = [*names, *groups]
    of_hydra = key.startswith("hydra")
    if key not in known:
        listing = "--cfg hydra with the same hydra/sweeper=" if of_hydra else "--cfg job"
        return mistake(
            got=f"{override}: no such name",
            expected=f"a name of the configuration (closest: {nearest(key, known)})",
            do=f"correct the name; python train.py {listing} lists all",
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    return mistake(
        got=f"{override}: {_first_line(cause)}",
        expected="a value of the right kind",
        do="correct it; python train.py --cfg " + ("hydra" if of_hydra else f"job --package {key.split('.')[0]}") + " shows the kinds",
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
