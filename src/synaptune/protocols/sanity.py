"""The sanity stage of phase 1: can the optimizer optimize, and does the objective have a signal."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from synaptune.core.errors import UserError
from synaptune.protocols.config import Phase1Config, SanityConfig
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.stages import require_objective, run_points
from synaptune.search.optimizers.pbt import PBT
from synaptune.search.optimizers.registry import Engine, make_optimizer

PROMISING_RATIO = 0.9  # objective of a random point over that of the defaults; the plan's
# Runs below this number of steps only try the commands: a model that has learned nothing is
# expected; chosen: between scale=smoke and the shortest scale that learns.
TRYOUT_STEPS = 100


def run_sanity(protocol: Protocol, config: Phase1Config) -> None:
    """Check the optimizer and the objective, once for a study, and print what was measured.

    Raises:
        UserError: a check failed, and the protocol stops.
    """
    signal = protocol.study.read_note("sanity.signal")
    # The entropy reads the text: a mistake there shows before anything costly.
    entropy = _measure_unigram_entropy(protocol.base) if signal is None else None
    faults = _check_optimizer(protocol)
    if signal is None:
        signal = _measure_signal(protocol, config.sanity, entropy)
        protocol.study.write_note("sanity.signal", signal)
    _print_signal(signal)
    faults += signal["faults"]
    go_on = config.go_on
    if go_on is None:
        go_on = protocol.base.training.steps < TRYOUT_STEPS
    if faults and not go_on:
        raise UserError(
            "got an objective or optimizer that fails the sanity checks\n  "
            + "\n  ".join(faults)
            + "\n  expected: sanity checks that pass"
            + "\n  to do: correct these causes and choose another study.name,"
            + " or continue with protocol.go_on=true"
        )
    for fault in faults:
        print_message(f"sanity: a check failed, continuing ({fault})")


def _check_optimizer(protocol: Protocol) -> list[str]:
    """Run the optimizer on Rosenbrock's function; return its faults."""
    from synaptune.search.sanity import SOLVED_LOSS, check_optimizer

    if protocol.engine.name == PBT:
        return []  # its points are slices of a training, and a function has none
    check = protocol.study.read_note("sanity.optimizer")
    if check is None:
        print_message("sanity: the optimizer on Rosenbrock's function")
        result = check_optimizer(protocol.engine.name, protocol.seed)
        check = result._asdict() | {"solved": result.is_solved}
        protocol.study.write_note("sanity.optimizer", check)
    limit = check.get("limit", SOLVED_LOSS)
    print_message(
        f"sanity: Rosenbrock in 10 dimensions reached {check['best']:.2g}"
        f" in {check['evaluations']} evaluations (attempt {check['attempts']};"
        f" below {limit:.3g} it passes)"
    )
    if check["solved"]:
        return []
    return [
        f"optimizer: Rosenbrock's function stayed at {check['best']:.3g},"
        f" expected below {limit:.3g}"
    ]


def _measure_signal(
    protocol: Protocol, config: SanityConfig, entropy: float | None
) -> dict[str, Any]:
    """Run the defaults on several seeds and random candidates; return the facts of the check."""
    from synaptune.search.sanity import check_objective

    start = protocol.space.get_start()
    seeds = [protocol.seed + number for number in range(config.seeds)]
    sampler = make_optimizer(Engine("random", protocol.seed), protocol.space)
    asked = (sampler.ask() for _ in range(config.candidates))
    candidates = [unit for unit in asked if unit is not None]
    repeated = candidates[: config.repeats]
    points = [(start, seed) for seed in seeds] + [(unit, protocol.seed) for unit in candidates]
    points += [(unit, seed) for unit in repeated for seed in seeds[1:]]
    trials = run_points(protocol, protocol.make_ledger("sanity"), points, label="sanity run")
    by_point = dict(zip(points, trials, strict=True))
    return check_objective(
        [require_objective(by_point[start, seed]) for seed in seeds],
        [by_point[unit, protocol.seed].objective for unit in candidates],
        [[by_point[unit, seed].objective for seed in seeds] for unit in repeated],
        entropy,
    ).to_facts()


def _print_signal(signal: dict[str, Any]) -> None:
    entropy, spread = signal["reference"], signal["spread_over_candidates"]
    value = f"objective {signal['loss']:z.3f}"
    if entropy is not None:  # only known where the objective is the validation loss
        value = f"loss {signal['loss']:z.3f} (unigram entropy {entropy:z.3f})"
    print_message(
        f"sanity: {value}, spread over random candidates "
        + ("unknown" if spread is None else f"{spread:z.4f}")
    )
    best = signal.get("best_candidate")
    if best is not None and signal["loss"] > 0.0:
        share = best / signal["loss"]
        place = "below" if share < PROMISING_RATIO else "not below"
        print_message(
            f"sanity: the best random point has {share:z.3f} times the objective of the defaults,"
            f" {place} {PROMISING_RATIO:g} times"
        )
    print_message(
        f"sanity: spread over seeds {signal['spread_over_seeds']:z.4f},"
        f" of the difference between two candidates over seeds {signal['noise']:z.4f}"
    )


def _measure_unigram_entropy(base: DictConfig) -> float | None:
    """Return the cross-entropy of the validation text under the training text's token frequencies.

    In nats per token; None when the rows are not text or the objective is no loss.
    """
    import numpy as np

    from synaptune.config.settings import read_settings
    from synaptune.data.corpus import load_corpus

    settings = read_settings(base)
    is_text = settings.data.recall_fraction == 0.0 and settings.data.source != "chains"
    if settings.objective.name != "val_loss" or not is_text:
        return None
    corpus = load_corpus(settings.data, settings.model.context)
    # One more of each, so that no token is impossible.
    counts = np.bincount(corpus.train, minlength=corpus.vocab) + 1.0
    shares = np.bincount(corpus.val, minlength=corpus.vocab) / len(corpus.val)
    return float(-(shares * np.log(counts / counts.sum())).sum())
