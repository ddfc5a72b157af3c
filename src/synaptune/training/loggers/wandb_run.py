"""Weights & Biases: offline without a key, online with a key and a live server; never a prompt, never a stall.

The mode is decided once per process: the server is asked one question with a time limit, and after a failure every
later run of the process stays offline.
"""

from __future__ import annotations

import functools
import importlib.util
import netrc
import os
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from synaptune.core.errors import user_error
from synaptune.training.config import LoggerConfig

PROBE_SECONDS = 4.0
LOGIN_SECONDS = 10.0
UPLOAD_SECONDS = 60.0
MARGIN_SECONDS = 10.0  # for a client that does not keep to that
OPEN_MARKER = "open"  # a file in the folder of a run that has not ended, or whose upload has not; a kill leaves it behind
IDENTITY_KEY = "identity"  # the note of a study that tells it from another of its name
_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}  # WANDB_MODE
_LONGEST_TAG = 64
_LONGEST_NAME = 64  # of a study within an id, which may have 128 characters


class NoteStore(Protocol):
    """What a study keeps with its trials."""

    def read_note(self, key: str) -> Any:
        """A note; null when it is not there."""
        ...

    def write_note(self, key: str, value: Any) -> None:
        """Store a note."""
        ...


def get_study_identity(study: NoteStore) -> str:
    """Eight characters that are the same for ever in a study, and others in a study begun anew under its name."""
    found = study.read_note(IDENTITY_KEY)
    if found is None:
        found = os.urandom(4).hex()
        study.write_note(IDENTITY_KEY, found)
    return str(found)


def make_run_id(study: str, *parts: object) -> str:
    """The id of a study's run in W&B, which allows neither every character nor every length."""
    return "-".join(
        [
            re.sub(r"[^\w.-]", "_", study)[:_LONGEST_NAME],
            *(str(part) for part in parts if part != ""),
        ]
    )


def make_run_labels(
    study: str,
    unique: str,
    number: int | str,
    *,
    facts: Mapping[str, Any],
    tags: Sequence[str] = (),
) -> dict[str, Any]:
    """What the run of a trial is called, by name of LoggerConfig; unique: identity of the study; number: the trial's, with its seed
    where it has several runs; facts: of the trial; tags: given ones."""
    phase, generation = facts["phase"], facts["generation"]
    about = {
        "group": study,
        "job_type": phase,
        "run_id": make_run_id(study, unique, number),
        "generation": generation,
    }
    return about | {"tags": [*tags, study, phase, f"generation-{generation}"]}


class WandbWriter:
    """One W&B run, closed with the trial it belongs to; run: the client's own object."""

    def __init__(self, run: Any, online: bool) -> None:
        self.run, self.online = run, online
        self.folder = Path(run.dir).parent
        (self.folder / OPEN_MARKER).touch()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the values of a step."""
        self.run.log(dict(values), step=step)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Record the figures of the whole run."""
        self.run.summary.update(dict(metrics))

    def finish(self, exit_code: int) -> bool:
        """End the run; False when not all of it has arrived in time."""
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            return False
        (self.folder / OPEN_MARKER).unlink(missing_ok=True)
        return True

    def close(self, exit_code: int) -> None:
        """End the run, in a bounded time."""
        if not self.online:
            self.finish(exit_code)
        elif run_with_timeout(UPLOAD_SECONDS + MARGIN_SECONDS, lambda: self.finish(exit_code)) != (
            True,
            True,
        ):
            self.abandon_upload()

    def abandon_upload(self) -> None:
        """Leave an upload that takes too long to `synaptune wandb sync`, and keep later runs offline."""
        _go_offline(
            f"the upload did not end within {UPLOAD_SECONDS:.0f} s; `synaptune wandb sync STUDY` sends the rest"
        )


def open_run(
    config: LoggerConfig, run_dir: Path, *, name: str, flat_config: Mapping[str, Any]
) -> WandbWriter | None:
    """A W&B run in `run_dir`, or None when wandb is not installed or switched off.

    Raises UserError when `logger.wandb` asks for W&B by name and it is not installed.
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
    import wandb

    settings = wandb.Settings(
        reinit="create_new",
        x_save_requirements=False,
        disable_git=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        silent=True,
        init_timeout=LOGIN_SECONDS,
    )
    about: dict[str, Any] = dict(
        project=config.project,
        entity=config.entity,
        group=config.group or name,
        job_type=config.job_type,
        id=config.run_id,
    )
    about |= dict(
        resume="allow" if config.run_id else None,
        name=run_dir.name,
        tags=[tag[:_LONGEST_TAG] for tag in dict.fromkeys(config.tags)],
        dir=str(run_dir),
        config=dict(flat_config)
        | ({} if config.generation is None else {"generation": config.generation}),
        settings=settings,
    )
    if mode == "online":
        # A key the server refuses and a server that went away both end here; the run itself must not.
        try:
            settings.finish_timeout, settings.finish_timeout_raises = (
                UPLOAD_SECONDS,
                True,
            )  # also when the process ends
            return WandbWriter(wandb.init(mode="online", **about), online=True)
        except Exception as error:
            _go_offline(f"{get_base_url()} did not accept the run: {type(error).__name__}")
    try:
        return WandbWriter(wandb.init(mode="offline", **about), online=False)
    except (
        Exception
    ) as error:  # such as an id whose upload was given up in this process, and still goes on
        print(
            f"wandb: no run of {config.run_id or name} ({type(error).__name__}: {error})",
            file=sys.stderr,
        )
        return None


def read_wandb_mode() -> str:
    """What WANDB_MODE asks for: `online`, `offline` or `disabled`, empty when it is not set; a word that is none of W&B's sends nothing."""
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    if asked and asked not in _MODES:
        _go_offline(f"WANDB_MODE={asked}, expected one of {', '.join(_MODES)}")
    return _MODES.get(asked, "offline") if asked else ""


def _choose_mode(wanted: str) -> str:
    """`online`, `offline` or `disabled` for this run."""
    wanted = (read_wandb_mode() if wanted == "auto" else "") or wanted
    if wanted in ("disabled", "offline"):
        return wanted
    if _offline_reason is not None:
        return "offline"
    if not has_api_key():
        if wanted == "online":
            _go_offline("no API key; `wandb login` stores one")
        return "offline"
    return "online" if is_server_reachable() else "offline"


def get_base_url() -> str:
    """Address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")


def has_api_key() -> bool:
    """Whether an API key is at hand, in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return (
            path.exists()
            and netrc.netrc(path).authenticators(
                urllib.parse.urlsplit(get_base_url()).hostname or ""
            )
            is not None
        )
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
    """Whether the server sends any HTTP answer in time; asked once per process."""
    # In a thread: a dead name server can hold a look-up far longer than any socket's time limit.
    finished, alive = run_with_timeout(PROBE_SECONDS, _probe)
    if finished and alive:
        return True
    _go_offline(f"no answer from {get_base_url()} within {PROBE_SECONDS:.0f} s")
    return False


def _probe() -> bool:
    try:
        with urllib.request.urlopen(get_base_url(), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def run_with_timeout(seconds: float, work: Callable[[], Any]) -> tuple[bool, Any]:
    """(finished in time, result); work that takes longer goes on in a thread that does not keep the process alive."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(results), results[0] if results else None


_offline_reason: str | None = None


def _go_offline(reason: str) -> None:
    """Keep every later run of this process offline, and say why once."""
    global _offline_reason
    if _offline_reason is None:
        print(f"wandb: offline ({reason})", file=sys.stderr)
    _offline_reason = reason
