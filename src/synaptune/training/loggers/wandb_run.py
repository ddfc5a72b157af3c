"""Logging to Weights & Biases: online with an API key and a server that answers, else offline.

The module never prompts, and every wait has a time limit. It probes the server once per process.
After a failure all later runs of the process are offline.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import netrc
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import synaptune
from synaptune.core.errors import user_error
from synaptune.core.network import is_reachable, run_with_timeout
from synaptune.core.text import get_first_line
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.base import Writer

PROBE_SECONDS = 4.0
LOGIN_SECONDS = 10.0
UPLOAD_SECONDS = 60.0
MARGIN_SECONDS = 10.0  # tolerance for a client that exceeds the limit
# A file in the folder of a run that has not ended or is not uploaded; it remains after a kill.
OPEN_MARKER = "open"
IDENTITY_KEY = "identity"  # note of a study that distinguishes it from others of the same name
# Values of WANDB_MODE and their meaning.
_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
# Prefix of the searched parameters in the configuration of a run, which lists them as `searched`.
SEARCHED_PREFIX = "searched."
_LONGEST_TAG = 64
_LONGEST_NAME = 64  # of a study in an id or a name; W&B allows 128 characters in total


class NoteStore(Protocol):
    """Notes that a study stores with its trials."""

    def read_note(self, key: str) -> Any:
        """Return a note; None when it does not exist."""
        ...

    def write_note(self, key: str, value: Any) -> None:
        """Store a note."""
        ...


def get_study_identity(study: NoteStore) -> str:
    """Return the eight characters that identify a study; a new study of its name gets others."""
    identity = study.read_note(IDENTITY_KEY)
    if identity is None:
        identity = os.urandom(4).hex()
        study.write_note(IDENTITY_KEY, identity)
    return str(identity)


def make_run_id(study: str, *parts: object) -> str:
    """Return the W&B id of a study's run, with the characters and the length that W&B allows."""
    name = re.sub(r"[^\w.-]", "_", study)[:_LONGEST_NAME]
    return "-".join([name, *(str(part) for part in parts if part != "")])


def make_run_labels(
    study: str,
    unique: str,
    number: int | str,
    *,
    facts: Mapping[str, Any],
    searched: Iterable[str],
    tags: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the W&B labels of the run of a trial, by the names of LoggerConfig.

    Args:
        study: name of the study.
        unique: identity of the study.
        number: number of the trial, with the seed when the trial has several runs.
        facts: phase and generation of the trial.
        searched: names of the searched parameters.
        tags: further tags.
    """
    phase, generation = facts["phase"], facts["generation"]
    return {
        "group": study,
        "job_type": phase,
        "run_id": make_run_id(study, unique, number),
        "run_name": f"{study[:_LONGEST_NAME]}-{number}",
        "searched": list(searched),
        "generation": generation,
        "tags": [*tags, study, phase, f"generation-{generation}"],
    }


class WandbWriter(Writer):
    """Writer of one W&B run.

    Attributes:
        run: run object of the wandb client.
        online: whether the run is uploaded while it runs.
        folder: folder of the run's files.
    """

    def __init__(self, run: Any, online: bool) -> None:
        self.run, self.online = run, online
        self.folder = Path(run.dir).parent
        (self.folder / OPEN_MARKER).touch()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log(dict(values), step=step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def finish(self, exit_code: int) -> bool:
        """End the run and return whether the upload was complete in time."""
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            return False
        (self.folder / OPEN_MARKER).unlink(missing_ok=True)
        return True

    def close(self, exit_code: int) -> None:
        """End the run within a time limit."""
        if not self.online:
            self.finish(exit_code)
        elif run_with_timeout(UPLOAD_SECONDS + MARGIN_SECONDS, lambda: self.finish(exit_code)) != (
            True,
            True,
        ):
            self.abandon_upload()

    def abandon_upload(self) -> None:
        """Stop waiting for the upload and keep later runs offline."""
        _go_offline(
            f"the upload did not end within {UPLOAD_SECONDS:.0f} s; "
            "`synaptune wandb sync STUDY` sends the rest"
        )


def open_run(
    config: LoggerConfig, run_dir: Path, *, name: str, flat_config: Mapping[str, Any]
) -> WandbWriter | None:
    """Start a W&B run in `run_dir`; None when wandb is not installed or switched off.

    Args:
        config: settings of logging.
        run_dir: folder of the run.
        name: name of the run, the default of its group.
        flat_config: the configuration by dotted names.

    Raises:
        UserError: `logger.wandb` requires W&B, and it is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        if config.wandb == "auto":
            return None
        raise user_error(
            got=f"logger.wandb={config.wandb} without wandb",
            expected="the wandb package",
            do="pip install wandb, or logger.wandb=off",
        )
    mode = _choose_mode(config.wandb)
    if mode == "disabled":
        return None
    arguments = _make_init_arguments(config, run_dir, name, flat_config)
    if mode == "online":
        # A refused key or a lost server must not end the run: it continues offline.
        try:
            # The limits hold at the end of the process too.
            arguments["settings"].finish_timeout = UPLOAD_SECONDS
            arguments["settings"].finish_timeout_raises = True
            return _start_writer(config, arguments, "online")
        except Exception as error:
            _go_offline(f"{get_base_url()} did not accept the run: {type(error).__name__}")
    try:
        return _start_writer(config, arguments, "offline")
    except Exception as error:  # such as an id whose abandoned upload still runs
        reason = f"{type(error).__name__}: {get_first_line(error)}"
        print(f"wandb: no run of {config.run_id or name} ({reason})", file=sys.stderr)
        return None


def _start_writer(
    config: LoggerConfig, arguments: Mapping[str, Any], mode: Literal["online", "offline"]
) -> WandbWriter:
    import wandb

    _replace_unknown_mode()
    writer = WandbWriter(wandb.init(mode=mode, **arguments), online=mode == "online")
    writer.run.define_metric("val_loss", summary="min")
    if "code" in config.record and config.generation is None:  # one copy for all trials of a study
        writer.run.log_code(str(Path(synaptune.__file__).parent))
    return writer


def _make_init_arguments(
    config: LoggerConfig, run_dir: Path, name: str, flat_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of wandb.init for both modes."""
    import wandb

    settings = wandb.Settings(
        reinit="create_new",
        x_save_requirements=False,
        disable_git="git" not in config.record,
        console="off",
        x_disable_stats="system" not in config.record,
        x_disable_meta=not {"git", "system"} & {*config.record},
        silent=True,
        init_timeout=LOGIN_SECONDS,
    )
    content = {name: value for name, value in flat_config.items() if name != "logger.searched"}
    content |= {} if config.generation is None else {"generation": config.generation}
    content |= {"searched": list(config.searched)} if config.searched else {}
    content |= {
        f"{SEARCHED_PREFIX}{name}": flat_config[name]
        for name in config.searched
        if name in flat_config
    }
    return dict(
        project=config.project,
        entity=config.entity,
        group=config.group or name,
        job_type=config.job_type,
        id=config.run_id,
        resume="allow" if config.run_id else None,
        name=config.run_name or run_dir.name,
        tags=[tag[:_LONGEST_TAG] for tag in dict.fromkeys(config.tags)],
        dir=str(run_dir),
        config=content,
        settings=settings,
    )


def list_run_files(folder: Path) -> list[Path]:
    """List the files of the W&B client in a folder and below it, sorted by name."""
    return sorted(folder.glob("**/wandb/*run-*-*/*.wandb"))


def find_run_ids(folder: Path, *, online: bool = False) -> list[str]:
    """Return the W&B ids of the runs in a folder and below it.

    Args:
        folder: folder of runs.
        online: whether to leave out the offline runs.
    """
    ids = (
        path.stem.removeprefix("run-")
        for path in list_run_files(folder)
        if not online or path.parent.name.startswith("run-")
    )
    return list(dict.fromkeys(ids))


def update_summary(path: str, values: Mapping[str, Any]) -> None:
    """Change the summary of an uploaded run; an error of W&B is printed.

    Args:
        path: `entity/project/id`, or `project/id` for the entity of the account.
        values: values by name.
    """
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        run = wandb.Api(timeout=math.ceil(LOGIN_SECONDS)).run(path)
        run.summary.update(dict(values))
    except Exception as error:  # the run is logged; only this value is missing
        print(
            f"wandb: the summary of run {path} lacks {', '.join(values)} "
            f"({type(error).__name__}: {get_first_line(error)})",
            file=sys.stderr,
        )


def read_wandb_mode() -> str:
    """Return the mode of WANDB_MODE: `online`, `offline` or `disabled`; empty when it is not set.

    An unknown value means offline.
    """
    value = os.environ.get("WANDB_MODE", "").strip().lower()
    if value and value not in _MODES:
        _go_offline(f"WANDB_MODE={value}, expected one of {', '.join(_MODES)}")
    return _MODES.get(value, "offline") if value else ""


def _replace_unknown_mode() -> None:
    """Replace a WANDB_MODE that the W&B client refuses by its meaning, here and in the workers."""
    if os.environ.get("WANDB_MODE") not in (None, *_MODES):
        os.environ["WANDB_MODE"] = read_wandb_mode() or "online"


def _choose_mode(choice: str) -> str:
    """Return `online`, `offline` or `disabled` for a value of `logger.wandb`."""
    mode = (read_wandb_mode() if choice == "auto" else "") or choice
    if mode == "disabled":
        return mode
    if mode == "online" and not has_api_key():
        _go_offline("no API key; `wandb login` stores one")
    # In this order: the server is probed only if a run would be uploaded.
    is_online = (
        mode != "offline" and _offline_reason is None and has_api_key() and is_server_reachable()
    )
    return "online" if is_online else "offline"


def get_base_url() -> str:
    """Return the address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def has_api_key() -> bool:
    """Return whether the environment, or the netrc file of `wandb login`, has an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.path.expanduser(os.environ.get("NETRC", "~/.netrc")))
    host = urllib.parse.urlsplit(get_base_url()).hostname or ""
    try:
        return path.exists() and netrc.netrc(path).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False


def explain_unreachable() -> str | None:
    """Say why nothing can be sent to the W&B server; None when it can."""
    if importlib.util.find_spec("wandb") is None:
        return "no wandb"
    if not has_api_key():
        return f"no API key for {get_base_url()}; `wandb login` stores one"
    return None if is_server_reachable() else f"no answer from {get_base_url()}"


@functools.cache
def is_server_reachable() -> bool:
    """Return whether the server sends an HTTP answer in time; probe it once per process."""
    if is_reachable(get_base_url(), PROBE_SECONDS):
        return True
    _go_offline(f"no answer from {get_base_url()} within {PROBE_SECONDS:.0f} s")
    return False


_offline_reason: str | None = None


def _go_offline(reason: str) -> None:
    """Keep every later run of this process offline and print the first reason."""
    global _offline_reason
    if _offline_reason is None:
        print(f"wandb: offline ({reason})", file=sys.stderr)
    _offline_reason = reason
