"""The folder of a run: that of a new one, and that from whose configuration one continues."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from synaptune.config.flat import flatten_references
from synaptune.core.errors import user_error
from synaptune.core.files import make_folder
from synaptune.core.text import get_first_line, get_override_key, show_path
from synaptune.training.config import CHECKPOINT_FILE, RESULT_FILE

_RUN_DIR, _RESUME = "hydra.run.dir", "training.resume"
_DEFAULT_SUBDIR = "${hydra.job.num}"


def expand_resume(words: Sequence[str]) -> list[str]:
    """Add the overrides of a run to a command line that continues it.

    `hydra.run.dir=FOLDER training.resume=true` gets the overrides that FOLDER/.hydra holds. A word
    of the command line takes precedence over a stored one of the same name; the run then refuses
    what would change its result. The files in .hydra stay those of the first command.

    Returns:
        The words; unchanged if they do not continue a run.

    Raises:
        UserError: the folder has no run and the words name none, or its overrides are damaged.
    """
    folder = _find_run_folder(words)
    if folder is None:
        return list(words)
    path = folder / ".hydra" / "overrides.yaml"
    given = {get_override_key(word) for word in words}
    if not path.is_file():
        # With the words of the run, a job that is started again after a kill starts it here.
        has_run = any(key != _RESUME and not key.startswith("hydra.") for key in given)
        if not has_run and not (folder / CHECKPOINT_FILE).exists():
            raise user_error(
                got=f"{_RESUME}=true with {_RUN_DIR}={folder}, which has no run",
                expected="the folder of an interrupted run",
                do=f"correct {_RUN_DIR}; or leave {_RESUME} out to start a new run",
            )
        return list(words)
    stored = _read_overrides(path)
    own = [word for word in stored if get_override_key(word) not in given]
    return [*own, *words, "hydra.output_subdir=null"]


def _read_overrides(path: Path) -> list[str]:
    import yaml

    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(stored, list) and all(isinstance(word, str) for word in stored):
            return stored
        reason = "no list of words"
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = get_first_line(error)
    raise user_error(
        got=f"{path}, which cannot be read: {reason}",
        expected="the overrides of the run, a list in YAML",
        do="restore the file; or remove it and give the overrides of the run again",
    )


def _find_run_folder(words: Sequence[str]) -> Path | None:
    """Return the folder of the run that a command line continues; None if it continues none."""
    if not {"-m", "--multirun"}.isdisjoint(words):
        return None
    parser, values = OverridesParser.create(), {}
    for word in words:
        if get_override_key(word) in (_RUN_DIR, _RESUME):
            try:
                values[get_override_key(word)] = parser.parse_override(word).value()
            except HydraException:  # Hydra reports it later
                return None
    return Path(str(values[_RUN_DIR])) if _RUN_DIR in values and values.get(_RESUME) else None


def make_run_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder of a single run.

    Raises:
        UserError: it has the results of another run, or cannot be made.
    """
    results = [name for name in (RESULT_FILE, CHECKPOINT_FILE) if (folder / name).exists()]
    if results and not resume:
        raise user_error(
            got=f"{_RUN_DIR}={folder}, which has the {' and '.join(results)} of a run",
            expected="a folder without results",
            do=f"choose another folder for a new run; {_RESUME}=true continues the run in it",
        )
    make_folder(folder)


def has_own_subdir(sweep: DictConfig) -> bool:
    """Return whether an application names the folders of the jobs of its sweep itself.

    Args:
        sweep: hydra.sweep.

    Raises:
        UserError: all jobs would have one folder.
    """
    subdir = str(flatten_references(sweep)["subdir"])
    if "${" not in subdir:
        raise user_error(
            got=f"hydra.sweep.subdir={subdir}, one folder for all runs of the sweep",
            expected=f"a name that differs between the runs, such as {_DEFAULT_SUBDIR}",
            do="leave it out, or add ${hydra.job.num} to it",
        )
    return subdir != _DEFAULT_SUBDIR


def describe_continuation(folder: Path) -> str:
    """Return the lines that tell how to continue an interrupted run."""
    from synaptune.search.space.override_text import format_value

    words = [f"{_RUN_DIR}={format_value(show_path(folder))}", f"{_RESUME}=true"]
    command = shlex.join(["python", sys.argv[0], *words])
    if (folder / CHECKPOINT_FILE).exists():
        return f"  to continue: {command}"
    return (
        "  it has no checkpoint yet (training.checkpoint_every=N writes one every N steps)\n"
        f"  to start it again: {command}"
    )
