"""Continuing an interrupted run from the configuration in its own folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from synaptune.core.text import get_override_key, show_path
from synaptune.training.config import CHECKPOINT_FILE

_RUN_DIR, _RESUME = "hydra.run.dir", "training.resume"


def expand_resume(words: Sequence[str]) -> list[str]:
    """Add the overrides of a run to a command line that continues it.

    `hydra.run.dir=FOLDER training.resume=true` gets the overrides that FOLDER/.hydra holds. A word
    of the command line takes precedence over a stored one of the same name; the run then refuses
    what would change its result. The files in .hydra stay those of the first command.

    Returns:
        The words; unchanged if they do not continue a run.
    """
    folder = _find_run_folder(words)
    path = None if folder is None else folder / ".hydra" / "overrides.yaml"
    if path is None or not path.is_file():
        return list(words)
    from omegaconf import OmegaConf

    given = {get_override_key(word) for word in words}
    stored = [str(word) for word in OmegaConf.to_container(OmegaConf.load(path)) or ()]
    own = [word for word in stored if get_override_key(word) not in given]
    return [*own, *words, "hydra.output_subdir=null"]


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
