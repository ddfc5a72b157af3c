"""The phase-1 protocol: sanity, baseline, search, validation, verdict (`make sweep-phase1`).

    python -m synaptune.phase1 [--budget N] [--seeds N] [--study NAME] [--go-on] [overrides of conf/train.yaml]

All candidates share initialisation and data order (common random numbers), so that ranks reflect parameters; the validation
seeds are fresh and its text, the test split, is untouched by the choice. Every finished piece is in the study at once: the
same command goes on after Ctrl-C or a kill, and shows the verdict again when all is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.cost import Stage
from synaptune.errors import UserError, mistake, of_disk
from synaptune.notify import Notifier, NotifyConfig
from synaptune.protocol import Protocol, TrainingRun, measured
from synaptune.search.config import Home, StudyConfig, home
from synaptune.search.execution import TrialConfig, WorkersConfig, check_execution, make_workers
from synaptune.search.loop import Plan, search
from synaptune.search.optimizers import Engine, make_optimizer
from synaptune.search.space import Space
from synaptune.search.state import StateFile
from synaptune.search.stopping import StopConfig, rules
from synaptune.search.trial import Trial, best_of
from synaptune.storage.study import Study

CONF = Path(__file__).parents[2] / "conf"
BUDGET = 40
VALIDATION_SEEDS = 5
SANITY_SEEDS = 3
SANITY_CANDIDATES = 6
SANITY_REPEATED = 2  # of the candidates, those run on every sanity seed
_FRESH = 1000  # distance of the validation seeds from the search's
_OPTIMIZER = "cma"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(options)
        return 0
    except (UserError, OSError) as error:
        found = of_disk(error, "make room (or set study.dir) and give the same command") if isinstance(error, OSError) else error
        if found is None:
            raise
        print(found, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on, every finished run is kept", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m synaptune.phase1", description="Tune the parameters of phase 1 and say what they are worth."
    )
    parser.add_argument("--budget", type=int, default=BUDGET, help=f"evaluations of the search (default {BUDGET})")
    parser.add_argument("--seeds", type=int, default=VALIDATION_SEEDS, help=f"fresh seeds of the validation (default {VALIDATION_SEEDS})")
    parser.add_argument("--study", default=None, help="name of the study (default: that of the search space)")
    parser.add_argument("--go-on", action="store_true", help="search even when the sanity checks fail")
    parser.add_argument("overrides", nargs="*", help="overrides of conf/train.yaml, e.g. scale=smoke data=text data.path=FILE")
    return parser.parse_intermixed_args(arguments)


def _run(options: argparse.Namespace) -> None:
    plan = Plan(options.budget)
    plan.check()
    if options.seeds < 2:
        raise mistake(got=f"--seeds {options.seeds}", expected="at least 2, for an interval", do="correct it")
    base, place, space = composed(options.overrides, options.study)
    workers, trial, stop = (OmegaConf.to_object(base[group]) for group in ("workers", "trial", "stop"))
    receivers = OmegaConf.to_object(base.notify)
    assert isinstance(workers, WorkersConfig)
    assert isinstance(trial, TrialConfig)
    assert isinstance(stop, StopConfig)
    assert isinstance(receivers, NotifyConfig)
    ending = rules(stop, maximize=False)
    check_execution(workers, trial)
    from synaptune.spaces import configuration_of, resumed_engine
    from synaptune.storage.environment import code_version, device_name

    engine = Engine(_OPTIMIZER, int(base.seed), workers.count, plan.budget)
    settings = {"optimizer": engine.name, "seed": engine.seed, "maximize": False, "protocol": "phase1"}
    notifier = Notifier(receivers, place.name)
    with notifier.ending(), Study(place, configuration_of(base, space, settings)) as study:
        seeds = tuple(int(base.seed) + _FRESH + number for number in range(options.seeds))
        engine = resumed_engine(study, engine)
        pool = make_workers(workers, trial, TrainingRun(base, place.name, place.trials), place.folder)
        plan = Plan(plan.budget, retries=trial.retries)
        try:
            facts = device_name(), code_version()
            _stages(Protocol(base, space, study, engine, plan, seeds, options.go_on, *facts, pool, ending, notifier))
        finally:
            pool.close()


def stages(budget: int, seeds: int, space: Space, *, workers: int = 1) -> list[Stage]:
    """The training runs of a protocol over a space.

    The baseline and the search's first evaluation are copies of a sanity run.
    """
    population = make_optimizer(Engine(_OPTIMIZER, 0, workers, budget), space).generation_size
    sanity = SANITY_SEEDS + SANITY_CANDIDATES + SANITY_REPEATED * (SANITY_SEEDS - 1)
    return [Stage("sanity", sanity), Stage("search", budget - 1, at_once=population), Stage("validation", 2 * seeds, tested=True)]


def composed(overrides: Sequence[str], study: str | None) -> tuple[DictConfig, Home, Space]:
    """The resolved base configuration, the place of a study (null: named by the configuration) and the space.

    Raises UserError for every override that does not fit.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from synaptune.build import apply_tuned
    from synaptune.entry import check_words, override_faults
    from synaptune.schema import register
    from synaptune.spaces import check_base, declared_space

    register()
    overrides = list(overrides)
    check_words(overrides)
    if of_hydra := [override for override in overrides if override.lstrip("+~").startswith("hydra")]:
        raise mistake(
            got=" ".join(of_hydra),
            expected="overrides of conf/train.yaml: the protocol brings its own optimizer",
            do="leave it out; --budget sets the evaluations",
        )
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            base = compose("train", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        found = override_faults(overrides, CONF, "train")
        if found:
            raise UserError("\n".join(map(str, found))) from error
        raise mistake(got=str(error), expected="overrides of conf/train.yaml", do="correct them") from error
    if base.tuned is not None:
        apply_tuned(base, overrides)
        base.tuned = None
    given = {override.lstrip("+~").split("=", 1)[0] for override in overrides}
    space = Space(tuple(dimension for dimension in declared_space(base) if dimension.name not in given))
    check_base(base, space.names)
    config = OmegaConf.to_object(base.study)
    assert isinstance(config, StudyConfig)
    config.name = study or config.name
    return base, home(config, str(base.search_space.name)), space


def _stages(protocol: Protocol) -> None:
    from rich.console import Console

    from synaptune.report.summary import summarise
    from synaptune.report.verdict import show_verdict
    from synaptune.storage.export import write_best, write_json

    folder = protocol.study.place.folder
    _say(f"study {protocol.study.place.name} ({folder}): {protocol.plan.budget} evaluations of {len(protocol.space.names)} parameters")
    _sanity(protocol)
    baseline = _baseline(protocol)
    trials = _search(protocol)
    best = best_of([baseline, *trials])
    assert best is not None
    write_best(folder / "best.yaml", protocol.study.place.name, best)
    pairs = _validation(protocol, baseline, best)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.trials())
    summary = summarise(protocol.study.place.name, trials, best, pairs=pairs, defaults=baseline.values, seconds=seconds)
    write_json(folder / "summary.json", summary)
    show_verdict(summary, Console())
    print(f"written to {folder}/summary.json; use: python train.py tuned={folder}/best.yaml", flush=True)


def _sanity(protocol: Protocol) -> None:
    """Check the optimizer and the objective once; raises UserError when they fail and nobody said to go on."""
    from synaptune.search.sanity import SOLVED, check_optimizer, signal_of

    study, faults = protocol.study, []
    signal = study.note("sanity.signal")
    reference = _unigram_entropy(protocol.base) if signal is None else None  # before anything costly: it reads the text
    check = study.note("sanity.optimizer")
    if check is None:
        _say("sanity: the optimizer on Rosenbrock's function")
        result = check_optimizer(protocol.engine.name, protocol.seed)
        check = result._asdict() | {"solved": result.solved}
        study.put_note("sanity.optimizer", check)
    spent = f"{check['evaluations']} evaluations, {check['attempts']} attempts"
    _say(f"sanity: Rosenbrock in 10 dimensions reached {check['best']:.2g} ({spent}; solved below {SOLVED:g})")
    if not check["solved"]:
        faults.append(f"optimizer: Rosenbrock's function stayed at {check['best']:.3g}, expected below {SOLVED:g}")
    if signal is None:
        ledger = protocol.ledger("sanity")
        seeds = [protocol.seed + number for number in range(SANITY_SEEDS)]
        stream = make_optimizer(Engine("random", protocol.seed), protocol.space)
        units = [unit for unit in (stream.ask() for _ in range(SANITY_CANDIDATES)) if unit is not None]
        points = [(protocol.space.start(), seed) for seed in seeds] + [(unit, protocol.seed) for unit in units]
        points += [(unit, seed) for unit in units[:SANITY_REPEATED] for seed in seeds[1:]]
        found = dict(zip(points, measured(protocol, ledger, points, label="sanity run"), strict=True))
        signal = signal_of(
            [_objective(found[protocol.space.start(), seed]) for seed in seeds],
            [found[unit, protocol.seed].objective for unit in units],
            [[found[unit, seed].objective for seed in seeds] for unit in units[:SANITY_REPEATED]],
            reference,
        ).facts()
        study.put_note("sanity.signal", signal)
    compared = "" if signal["reference"] is None else f" (unigram entropy {signal['reference']:.3f})"
    spread = "unknown" if signal["spread_over_candidates"] is None else f"{signal['spread_over_candidates']:.4f}"
    _say(f"sanity: loss {signal['loss']:.3f}{compared}, spread over random candidates {spread}")
    _say(f"sanity: spread over seeds {signal['spread_over_seeds']:.4f}, of differences between candidates {signal['noise']:.4f}")
    faults += signal["faults"]
    if faults and not protocol.go_on:
        raise UserError(
            "got an objective or optimizer that a search would be wasted on\n  "
            + "\n  ".join(faults)
            + "\n  expected: sanity checks that pass\n  to do: change what is named (and the study's name), or go on with --go-on"
        )
    for fault in faults:
        _say(f"going on in spite of {fault}")


def _baseline(protocol: Protocol) -> Trial:
    (trial,) = measured(protocol, protocol.ledger("baseline"), [(protocol.space.start(), protocol.seed)], label="baseline run")
    _say(f"baseline: objective {_objective(trial):.4f} at the defaults")
    return trial


def _search(protocol: Protocol) -> list[Trial]:
    from synaptune.report.lines import TrialLines

    ledger, budget = protocol.ledger("search"), protocol.plan.budget
    trials = ledger.trials()
    ended = [trial for trial in trials if trial.state != "running"]
    assert budget is not None
    size = make_optimizer(protocol.engine, protocol.space).generation_size
    watch = protocol.notifier.watch(TrialLines(budget, "evaluation", earlier=ended), size=size, total=budget, earlier=ended)
    if len(ended) < max(budget, len(trials)):
        _say(f"search: {budget} evaluations" + (f", {len(ended)} of them done before" if ended else ""))
        trials = search(
            protocol.space,
            protocol.engine,
            protocol.plan,
            ledger=ledger,
            state=StateFile(protocol.study.place.folder / "optimizer.pkl", protocol.engine, protocol.space.describe()),
            workers=protocol.workers(),
            watch=watch,
            stop=protocol.stop,
            say=_say,
        )
    best = best_of(trials)
    if best is not None:
        _say(f"search: best objective {best.objective:.4f} in trial {best.number}")
    return trials


def _validation(protocol: Protocol, baseline: Trial, best: Trial) -> list[tuple[Trial, Trial]]:
    """Baseline and best on each fresh seed, test split included; pairs with a failed run are left out, and said."""
    _say(f"validation: defaults and best on {len(protocol.seeds)} fresh seeds, test split")
    points = [(unit, seed) for seed in protocol.seeds for unit in (baseline.unit, best.unit)]
    runs = measured(protocol, protocol.ledger("validation"), points, label="validation run", test=True)
    pairs = [(runs[index], runs[index + 1]) for index in range(0, len(runs), 2)]
    whole = [pair for pair in pairs if all(trial.state == "complete" for trial in pair)]
    for trial in (trial for pair in pairs for trial in pair if trial.state == "failed"):
        _say(f"validation: the run with seed {trial.facts['seed']} failed and its pair is left out ({trial.reason})")
    if len(whole) < 2:
        raise mistake(got=f"{len(whole)} whole pairs of validation runs", expected="at least 2", do="see the reasons above")
    return whole


def _objective(trial: Trial) -> float:
    if trial.objective is None:
        raise mistake(
            got=f"a failed run at the defaults (trial {trial.number}): {trial.reason}",
            expected="defaults that train",
            do="mend the configuration and give the study another name",
        )
    return trial.objective


def _unigram_entropy(base: DictConfig) -> float | None:
    """Cross-entropy of the validation text under the training text's token frequencies [nats/token]; null when rows are not text."""
    import numpy as np

    from synaptune.build import settings
    from synaptune.data.corpus import load_corpus

    built = settings(base)
    if built.objective.name != "val_loss" or built.data.recall_fraction > 0.0:
        return None
    corpus = load_corpus(built.data, built.model.context)
    counts = np.bincount(corpus.train, minlength=corpus.vocab) + 1.0  # one more of each: no token is impossible
    shares = np.bincount(corpus.val, minlength=corpus.vocab) / len(corpus.val)
    return float(-(shares * np.log(counts / counts.sum())).sum())


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
