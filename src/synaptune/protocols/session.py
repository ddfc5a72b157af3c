"""What every protocol command begins with: options, composed configuration, study, workers; and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.config.compose import composed
from synaptune.core.errors import mistake
from synaptune.protocols.protocol import Protocol
from synaptune.protocols.stages import with_reference
from synaptune.protocols.trial_run import TrainingRun
from synaptune.search.loop import Plan
from synaptune.search.optimizers.registry import Engine
from synaptune.search.runner import interruptible
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.workers.base import Idle
from synaptune.search.workers.config import TrialConfig, WorkersConfig, check_execution, make_workers, side_by_side
from synaptune.study.callbacks.notify import Notifier, NotifyConfig
from synaptune.study.location import Home
from synaptune.study.reader import Record
from synaptune.study.study import Study
from synaptune.training.loggers.wandb_run import identity

VALIDATION_SEEDS = 5
OPTIMIZER = "cma"
FREELY_SET = ("workers", "trial", "logger", "notify")  # what may differ between two commands on one study


@contextmanager
def opened(
    base: DictConfig, place: Home, space: Space, *, budget: int, seeds: Sequence[int], go_on: bool, settings: dict[str, Any]
) -> Iterator[Protocol]:
    """The protocol of a study, with its workers, for as long as the block lasts.

    budget: evaluations of its (first) search; seeds: fresh ones of the validation; settings: of the search, beside the optimizer.
    Raises UserError for values that cannot be, and as storage/study.py does.
    """
    if len(seeds) < 2:
        raise mistake(got=f"--seeds {len(seeds)}", expected="at least 2, for an interval", do="correct it")
    workers, trial, stop, notifier = _execution(base, place)
    if base.search.seeds < 1 or (base.search.seeds > 1 and base.pruner.name != "none"):
        raise mistake(
            got=f"search.seeds={base.search.seeds} with pruner={base.pruner.name}",
            expected="at least 1; more than 1 only without a pruner, which would judge each seed alone",
            do="correct search.seeds, or set pruner=none",
        )
    from synaptune.config.search_space import configuration_of
    from synaptune.study.optimize import resumed_engine
    from synaptune.study.provenance import code_version, device_name

    plan = Plan(budget, retries=trial.retries)
    plan.check()
    engine = Engine(OPTIMIZER, int(base.seed), workers.places, budget)
    about = {"optimizer": engine.name, "seed": engine.seed, "maximize": False, **settings}
    with notifier.ending(), interruptible(), Study(place, configuration_of(base, space, about)) as study:
        engine = resumed_engine(study, engine)
        here = device_name(), code_version()
        protocol = Protocol(base, space, study, engine, plan, tuple(seeds), go_on, *here, Idle(), stop, notifier)
        base = with_reference(protocol)
        pool = make_workers(workers, trial, TrainingRun(base, place.name, place.trials, identity(study)), place.folder)
        try:
            yield replace(protocol, base=base, pool=pool)
        finally:
            pool.close()


@contextmanager
def reopened(record: Record, folder: Path, overrides: Sequence[str], *, space: Space, seeds: Sequence[int]) -> Iterator[Protocol]:
    """The protocol of an existing study, as its own command had it, with its workers, for as long as the block lasts.

    record: the study; folder: its; overrides: of `FREELY_SET`, everything else is the study's; space: that of its runs; seeds: those of
    the validation. Raises UserError for other overrides, a study of another version, and as storage/study.py does.
    """
    from synaptune.config.settings import check
    from synaptune.study.provenance import code_version, device_name

    _refuse_settled(overrides)
    base = composed(overrides, record.name).base
    _restore(base, record)
    check(base)
    place = Home(record.name, folder, record.url, "must")
    workers, trial, stop, notifier = _execution(base, place)
    engine = record.engine or Engine(OPTIMIZER, int(base.seed), workers.places)
    here = device_name(), code_version()
    with notifier.ending(), interruptible(), Study(place, record.configuration, maximize=record.maximize) as study:
        pool = make_workers(workers, trial, TrainingRun(base, place.name, place.trials, identity(study)), place.folder)
        plan = Plan(engine.budget, retries=trial.retries)
        try:
            yield Protocol(base, space, study, engine, plan, tuple(seeds), False, *here, pool, stop, notifier)
        finally:
            pool.close()


def _execution(base: DictConfig, place: Home) -> tuple[WorkersConfig, TrialConfig, StopConfig, Notifier]:
    """How the runs of a protocol are made, checked, and who is told; raises UserError for values that cannot be."""
    workers, trial, stop, told = (OmegaConf.to_object(base[group]) for group in ("workers", "trial", "stop", "notify"))
    assert isinstance(workers, WorkersConfig)
    workers = side_by_side(workers)
    assert isinstance(trial, TrialConfig)
    assert isinstance(stop, StopConfig)
    assert isinstance(told, NotifyConfig)
    check_execution(workers, trial)
    check_stop(stop)
    return workers, trial, stop, Notifier(told, place.name)


def _refuse_settled(overrides: Sequence[str]) -> None:
    settled = [word for word in overrides if word.lstrip("+~").split("=", 1)[0].split(".")[0] not in FREELY_SET]
    if settled:
        raise mistake(
            got=" ".join(settled),
            expected=f"overrides of {', '.join(FREELY_SET)}: the study's own configuration holds for everything else",
            do="leave it out",
        )


def _restore(base: DictConfig, record: Record) -> None:
    """Put a study's stored configuration back; raises UserError for a key that this version does not have."""
    from omegaconf.errors import OmegaConfBaseException

    unknown = []
    for key, value in record.configuration.items():
        if key.startswith("search.") and key.removeprefix("search.") not in base.search:
            continue  # of the search, not of a run
        try:
            OmegaConf.update(base, key, value)
        except (OmegaConfBaseException, KeyError):
            unknown.append(f"{key}={value}")
    if unknown:
        raise mistake(
            got=f"study {record.name} with settings that this version does not have: {', '.join(unknown)}",
            expected="a study of this version",
            do="use the synaptune that wrote it",
        )
