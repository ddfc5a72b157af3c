"""What every protocol command begins with: options, composed configuration, study, workers; and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.config.compose import compose_config
from synaptune.core.errors import user_error
from synaptune.core.text import get_override_key
from synaptune.protocols.protocol import Protocol
from synaptune.protocols.stages import measure_reference
from synaptune.protocols.trial_run import TrainingEvaluation
from synaptune.search.loop import Plan
from synaptune.search.optimizers.registry import Engine
from synaptune.search.runner import catch_interrupts
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.workers.base import NoWorkers
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    make_workers,
    resolve_worker_count,
)
from synaptune.study.callbacks.notify import Notifier, NotifyConfig
from synaptune.study.location import StudyLocation
from synaptune.study.reader import StudySnapshot
from synaptune.study.study import Study
from synaptune.training.loggers.wandb_run import get_study_identity

VALIDATION_SEEDS = 5
OPTIMIZER = "cma"
FREE_GROUPS = (
    "workers",
    "trial",
    "logger",
    "notify",
)  # what may differ between two commands on one study


@contextmanager
def open_protocol(
    base: DictConfig,
    location: StudyLocation,
    space: Space,
    *,
    budget: int,
    seeds: Sequence[int],
    go_on: bool,
    settings: dict[str, Any],
) -> Iterator[Protocol]:
    """The protocol of a study, with its workers, for as long as the block lasts.

    budget: evaluations of its (first) search; seeds: fresh ones of the validation; settings: of the search, beside the optimizer.
    Raises UserError for values that cannot be, and as storage/study.py does.
    """
    if len(seeds) < 2:
        raise user_error(
            got=f"--seeds {len(seeds)}", expected="at least 2, for an interval", do="correct it"
        )
    workers, trial, stop, notifier = _build_execution(base, location)
    if base.search.seeds < 1 or (base.search.seeds > 1 and base.pruner.name != "none"):
        raise user_error(
            got=f"search.seeds={base.search.seeds} with pruner={base.pruner.name}",
            expected="at least 1; more than 1 only without a pruner, which would judge each seed alone",
            do="correct search.seeds, or set pruner=none",
        )
    from synaptune.config.search_space import make_study_configuration
    from synaptune.study.optimize import resume_engine
    from synaptune.study.provenance import get_code_version, get_device_name

    plan = Plan(budget, retries=trial.retries)
    plan.check()
    engine = Engine(OPTIMIZER, int(base.seed), workers.slots, budget)
    about = {"optimizer": engine.name, "seed": engine.seed, "maximize": False, **settings}
    with (
        notifier.send_end(),
        catch_interrupts(),
        Study(location, make_study_configuration(base, space, about)) as study,
    ):
        engine = resume_engine(study, engine)
        here = get_device_name(), get_code_version()
        protocol = Protocol(
            base,
            space,
            study,
            engine,
            plan,
            tuple(seeds),
            go_on,
            *here,
            NoWorkers(),
            stop,
            notifier,
        )
        base = measure_reference(protocol)
        pool = make_workers(
            workers,
            trial,
            TrainingEvaluation(
                base, location.name, location.trials_folder, get_study_identity(study)
            ),
            location.folder,
        )
        try:
            yield replace(protocol, base=base, pool=pool)
        finally:
            pool.close()


@contextmanager
def reopen_protocol(
    snapshot: StudySnapshot,
    folder: Path,
    overrides: Sequence[str],
    *,
    space: Space,
    seeds: Sequence[int],
) -> Iterator[Protocol]:
    """The protocol of an existing study, as its own command had it, with its workers, for as long as the block lasts.

    record: the study; folder: its; overrides: of `FREELY_SET`, everything else is the study's; space: that of its runs; seeds: those of
    the validation. Raises UserError for other overrides, a study of another version, and as storage/study.py does.
    """
    from synaptune.config.settings import check_config
    from synaptune.study.provenance import get_code_version, get_device_name

    _refuse_study_settings(overrides)
    base = compose_config(overrides, snapshot.name).base
    _restore_configuration(base, snapshot)
    check_config(base)
    place = StudyLocation(snapshot.name, folder, snapshot.url, "must")
    workers, trial, stop, notifier = _build_execution(base, place)
    engine = snapshot.engine or Engine(OPTIMIZER, int(base.seed), workers.slots)
    here = get_device_name(), get_code_version()
    with (
        notifier.send_end(),
        catch_interrupts(),
        Study(place, snapshot.configuration, maximize=snapshot.maximize) as study,
    ):
        pool = make_workers(
            workers,
            trial,
            TrainingEvaluation(base, place.name, place.trials_folder, get_study_identity(study)),
            place.folder,
        )
        plan = Plan(engine.budget, retries=trial.retries)
        try:
            yield Protocol(
                base, space, study, engine, plan, tuple(seeds), False, *here, pool, stop, notifier
            )
        finally:
            pool.close()


def _build_execution(
    base: DictConfig, location: StudyLocation
) -> tuple[WorkersConfig, TrialConfig, StopConfig, Notifier]:
    """How the runs of a protocol are made, checked, and who is told; raises UserError for values that cannot be."""
    workers, trial, stop, told = (
        OmegaConf.to_object(base[group]) for group in ("workers", "trial", "stop", "notify")
    )
    assert isinstance(workers, WorkersConfig)
    workers = resolve_worker_count(workers)
    assert isinstance(trial, TrialConfig)
    assert isinstance(stop, StopConfig)
    assert isinstance(told, NotifyConfig)
    check_execution(workers, trial)
    check_stop(stop)
    return workers, trial, stop, Notifier(told, location.name)


def _refuse_study_settings(overrides: Sequence[str]) -> None:
    settled = [
        word for word in overrides if get_override_key(word).split(".")[0] not in FREE_GROUPS
    ]
    if settled:
        raise user_error(
            got=" ".join(settled),
            expected=f"overrides of {', '.join(FREE_GROUPS)}: the study's own configuration holds for everything else",
            do="leave it out",
        )


def _restore_configuration(base: DictConfig, snapshot: StudySnapshot) -> None:
    """Put a study's stored configuration back; raises UserError for a key that this version does not have."""
    from omegaconf.errors import OmegaConfBaseException

    unknown = []
    for key, value in snapshot.configuration.items():
        if key.startswith("search.") and key.removeprefix("search.") not in base.search:
            continue  # of the search, not of a run
        try:
            OmegaConf.update(base, key, value)
        except (OmegaConfBaseException, KeyError):
            unknown.append(f"{key}={value}")
    if unknown:
        raise user_error(
            got=f"study {snapshot.name} with settings that this version does not have: {', '.join(unknown)}",
            expected="a study of this version",
            do="use the synaptune that wrote it",
        )
