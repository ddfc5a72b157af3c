"""Opening the study of a protocol with its workers, new or existing, and closing both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.config.compose import compose_config
from synaptune.config.flat import read_group
from synaptune.core.errors import user_error
from synaptune.core.text import get_override_key
from synaptune.protocols.population import PopulationEvaluation, resolve_workers
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.stages import measure_baseline
from synaptune.protocols.trial_run import TrainingEvaluation
from synaptune.search.config import SearchConfig, check_search_config
from synaptune.search.objective.score import MAXIMIZED
from synaptune.search.optimizers.auto import plan_engine
from synaptune.search.optimizers.pbt import PBT, count_trials
from synaptune.search.optimizers.registry import Engine
from synaptune.search.plan import Plan
from synaptune.search.runner import catch_interrupts
from synaptune.search.space.file import is_user_setting
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.workers.base import NoWorkers
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    make_workers,
)
from synaptune.study.callbacks.notify import Notifier, NotifyConfig
from synaptune.study.database.keys import WRITER
from synaptune.study.location import StudyLocation
from synaptune.study.reader import StudySnapshot
from synaptune.study.study import Study
from synaptune.training.loggers.wandb_run import get_study_identity

# Groups that may differ between two commands on one study.
FREE_GROUPS = ("workers", "trial", "logger", "notify")


@contextmanager
def open_protocol(
    base: DictConfig,
    location: StudyLocation,
    space: Space,
    *,
    optimizer: str,
    budget: int,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    search_seed: int = 0,
    final_steps: int | None = None,
) -> Iterator[Protocol]:
    """Open the study of a protocol and its workers, and close both at the end of the block.

    Args:
        base: the resolved configuration.
        location: location of the study, which is created if it does not exist.
        space: dimensions of the (first) search.
        optimizer: of the search, a name of `hydra/sweeper`.
        budget: evaluations of the search.
        seeds: fresh seeds of the validation.
        settings: what identifies the search in the study beside the optimizer.
        search_seed: distance of the seed of the optimizer from `seed`.
        final_steps: training steps of the runs of the validation; None means training.steps.

    Raises:
        UserError: a value that cannot run, or a study that cannot be opened (study/study.py).
    """
    from synaptune.config.flat import resolve_references
    from synaptune.config.search_space import (
        check_slices,
        list_study_defaults,
        make_study_configuration,
    )
    from synaptune.study.optimize import resume_engine, resume_space
    from synaptune.study.provenance import get_code_version, get_device_name

    workers, trial, stop, notifier = _read_execution(base, location)
    search_config = read_group(base, "search", SearchConfig)
    check_search_config(search_config)
    _check_search_seeds(base)
    maximize = base.objective.name in MAXIMIZED
    plan = Plan(budget, maximize, retries=trial.retries)
    plan.check()
    engine, reason = plan_engine(
        search_config,
        optimizer=optimizer,
        seed=int(base.seed) + search_seed,
        workers=workers.slots,
        budget=budget,
    )
    if engine.name == PBT:
        check_slices(base, search_config)
        plan = replace(plan, budget=count_trials(engine))
    search = {"optimizer": optimizer, "seed": engine.seed, "maximize": maximize, **settings}
    if final_steps is not None:
        search["final_steps"] = final_steps
    configuration = make_study_configuration(base, space, search)
    defaults, references = list_study_defaults(base), resolve_references(base)
    with (
        notifier.send_end(),
        catch_interrupts(),
        Study(
            location,
            configuration,
            maximize=maximize,
            defaults=defaults,
            references=references,
        ) as study,
    ):
        protocol = Protocol(
            base=base,
            space=resume_space(space, study.read_trials()),
            study=study,
            engine=resume_engine(study, engine),
            plan=plan,
            seeds=tuple(seeds),
            device=get_device_name(),
            code_version=get_code_version(),
            pool=NoWorkers(),
            stop=stop,
            notifier=notifier,
        )
        if reason and protocol.engine == engine:
            print_message(reason)
        elif reason:
            print_message(f"auto: {protocol.engine.name}, as the study began")
        identity = get_study_identity(study)

        def make_evaluation(cfg: DictConfig) -> TrainingEvaluation:
            return TrainingEvaluation(cfg, location.name, location.trials_folder, identity)

        baseline = measure_baseline(protocol, make_evaluation)
        if baseline is not None:
            base = base.copy()
            base.objective.baseline = OmegaConf.structured(baseline)
        evaluation = make_evaluation(base)
        batch = PopulationEvaluation(evaluation, workers.populations_per_device)
        pool = make_workers(workers, trial, evaluation, location.folder, batch)
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
    """Open an existing study with the configuration that it was made with, and its workers.

    Args:
        snapshot: the study.
        folder: of the study.
        overrides: of FREE_GROUPS; everything else is the study's.
        space: of its runs.
        seeds: of its validation.

    Raises:
        UserError: another override, a study of another version, or one that cannot be opened.
    """
    from synaptune.config.settings import check_config
    from synaptune.study.provenance import get_code_version, get_device_name

    _refuse_fixed_overrides(overrides)
    base = compose_config(overrides, study=snapshot.name).base
    _restore_config(base, snapshot)
    check_config(base)
    location = StudyLocation(snapshot.name, folder, snapshot.url, "must")
    workers, trial, stop, notifier = _read_execution(base, location)
    engine = snapshot.engine or Engine("cma", int(base.seed), workers.slots)
    with (
        notifier.send_end(),
        catch_interrupts(),
        Study(location, snapshot.configuration, maximize=snapshot.maximize) as study,
    ):
        evaluation = TrainingEvaluation(
            base, location.name, location.trials_folder, get_study_identity(study)
        )
        batch = PopulationEvaluation(evaluation, workers.populations_per_device)
        pool = make_workers(workers, trial, evaluation, location.folder, batch)
        try:
            yield Protocol(
                base=base,
                space=space,
                study=study,
                engine=engine,
                plan=Plan(engine.budget, retries=trial.retries),
                seeds=tuple(seeds),
                device=get_device_name(),
                code_version=get_code_version(),
                pool=pool,
                stop=stop,
                notifier=notifier,
            )
        finally:
            pool.close()


def _read_execution(
    base: DictConfig, location: StudyLocation
) -> tuple[WorkersConfig, TrialConfig, StopConfig, Notifier]:
    """Return how trials run, when a search stops and who is notified.

    Raises:
        UserError: a setting has a fault.
    """
    workers = resolve_workers(base)
    trial, stop, notify = (
        OmegaConf.to_object(base[group]) for group in ("trial", "stop", "notify")
    )
    assert isinstance(trial, TrialConfig)
    assert isinstance(stop, StopConfig)
    assert isinstance(notify, NotifyConfig)
    check_execution(workers, trial)
    check_stop(stop)
    return workers, trial, stop, Notifier(notify, location.name)


def _check_search_seeds(base: DictConfig) -> None:
    if base.search.seeds > 1 and base.pruner.name != "none":
        raise user_error(
            got=f"search.seeds={base.search.seeds} with pruner={base.pruner.name}",
            expected="more than 1 only without a pruner, which judges each seed alone",
            do="correct search.seeds, or set pruner=none",
        )


def _refuse_fixed_overrides(overrides: Sequence[str]) -> None:
    fixed = [word for word in overrides if get_override_key(word).split(".")[0] not in FREE_GROUPS]
    if fixed:
        raise user_error(
            got=" ".join(fixed),
            expected=f"overrides of {', '.join(FREE_GROUPS)}:"
            " the study's own configuration holds for everything else",
            do="leave it out",
        )


def _restore_config(base: DictConfig, snapshot: StudySnapshot) -> None:
    """Put a study's stored configuration back; raise UserError for a key of another version."""
    from omegaconf.errors import OmegaConfBaseException

    unknown = []
    for key, value in snapshot.configuration.items():
        if key.startswith("search.") and key.removeprefix("search.") not in base.search:
            continue  # a setting of the search, not of a run
        if is_user_setting(key):
            continue  # of the command; the study may come from another person
        try:
            OmegaConf.update(base, key, value)
        except (OmegaConfBaseException, KeyError):
            unknown.append(f"{key}={value}")
    if unknown:
        raise user_error(
            got=f"study {snapshot.name} with settings that this version does not have:"
            f" {', '.join(unknown)}",
            expected="a study of this version",
            do=f"use synaptune {snapshot.notes.get(WRITER, '(unknown)')}, which wrote it",
        )
