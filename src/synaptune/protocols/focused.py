"""The focused sweep of policy training and the sweep before it (`synaptune focused`).

A first sweep of short runs, the refinement of its space by both rules, and a focused sweep of
longer runs in narrower ranges. Then the table of both sweeps and the answers to four questions. The
same command continues an interrupted one. Without `policy.start` a recall checkpoint is trained
first. conf/protocol/focused.yaml explains the settings.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from synaptune.analysis.compare import compute_interval
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.files import make_absolute, write_atomic
from synaptune.core.text import get_override_key, show_path
from synaptune.protocols.config import FocusedConfig, read_protocol_config
from synaptune.protocols.protocol import print_message
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import run_search
from synaptune.report.table_model import Column, Table, make_table
from synaptune.search.space.space import make_space
from synaptune.search.trial import Trial
from synaptune.training.config import CHECKPOINT_FILE, RESULT_FILE

_START = ("experiment=recall", "model=gpt", "training.steps=300", "training.evaluations=1")
_HALF = 50  # step of the first sweep's end, where both sweeps can be compared


@dataclass(frozen=True)
class SweepResult:
    """The runs of a sweep that ended with a score.

    Attributes:
        name: name of its study.
        trials: the complete trials.
        curves: the reported scores by step, by trial number.
        threshold: score above which a run is a success.
    """

    name: str
    trials: tuple[Trial, ...]
    curves: Mapping[int, Mapping[int, float]]
    threshold: float

    @property
    def scores(self) -> list[float]:
        """The change of the evaluation reward of each run."""
        return [trial.objective for trial in self.trials if trial.objective is not None]

    def get_scores_at(self, step: int) -> list[float]:
        """Return the scores that the runs reported at a step."""
        curves = (self.curves.get(trial.number, {}) for trial in self.trials)
        return [curve[step] for curve in curves if step in curve]

    def count_successes(self, scores: Sequence[float] | None = None) -> int:
        """Return the number of scores above the threshold."""
        return sum(score > self.threshold for score in (self.scores if scores is None else scores))


def run_focused(overrides: Sequence[str]) -> dict[str, Any]:
    """Run the protocol from wherever its studies have it; return the answers and the table.

    Raises:
        UserError: a mistake in the input, or too many failed runs.
    """
    from synaptune.core.console import make_console
    from synaptune.report.console import print_table
    from synaptune.report.table_model import to_records

    config = _read_config(overrides)
    if config.dry_run:
        runs = config.budget + config.focused_budget
        print_message(f"{runs} runs: {config.budget} of the first sweep; nothing was started")
        return {"runs": runs}
    if not any(get_override_key(word) == "policy.start" for word in overrides):
        overrides = [*overrides, f"policy.start={_train_start()}"]
    first = _run_sweep("policy-sweep", overrides, config.budget, config.threshold)
    _print_refinements(first)
    focused = _run_sweep("policy-focused", overrides, config.focused_budget, config.threshold)
    table = make_sweep_table([first, focused])
    print_table(table, make_console())
    answers = answer_questions(first, focused)
    for question, answer in answers.items():
        print_message(f"{question} {answer}")
    return {"answers": answers, "sweeps": to_records(table)}


def _read_config(overrides: Sequence[str]) -> FocusedConfig:
    words = [word for word in overrides if get_override_key(word) != "policy.start"]
    composed = compose_config(words, protocol="focused")
    assert composed.protocol is not None
    return read_protocol_config(FocusedConfig, composed.protocol)


def _train_start() -> Path:
    """Return the folder of a recall checkpoint; train it if there is none."""
    from synaptune.config.run import run

    folder = make_absolute("outputs/runs/policy-start")
    if not (folder / RESULT_FILE).exists():
        print_message("policy.start is not given: training a recall checkpoint of 300 steps")
        base = compose_config([*_START, "logger=csv", "training.resume=true"]).base
        outcome = run(base, folder, overrides=[])
        accuracy = outcome.metrics["val_recall_accuracy"]
        print_message(f"{show_path(folder / CHECKPOINT_FILE)}: recall accuracy {accuracy:.3f}")
    return folder


def _run_sweep(preset: str, overrides: Sequence[str], budget: int, threshold: float) -> SweepResult:
    from synaptune.config.search_space import check_search, read_dimensions
    from synaptune.study.reader import read_study

    composed = _compose(preset, overrides)
    space = make_space(
        dimension
        for dimension in read_dimensions(composed.base)
        if dimension.name not in composed.fixed_names
    )
    check_search(composed.base, space.names)
    location = composed.location
    with open_protocol(
        composed.base,
        location,
        space,
        optimizer="random",
        budget=budget,
        seeds=(),
        settings={"protocol": "focused"},
    ) as protocol:
        print_message(f"study {location.name} ({location.shown_folder})")
        run_search(protocol, protocol.make_ledger("search"), protocol.plan)
    snapshot = read_study(location.url, location.name)
    trials = [trial for trial in snapshot.search_trials if trial.state == "complete"]
    return SweepResult(location.name, tuple(trials), snapshot.curves, threshold)


def _compose(preset: str, overrides: Sequence[str]) -> ComposedConfig:
    words = [word for word in overrides if not get_override_key(word).startswith("protocol")]
    composed = compose_config([f"experiment={preset}", *words], study=preset)
    OmegaConf.update(composed.base, "training.keep", "none")
    return composed


def _print_refinements(sweep: SweepResult) -> None:
    """Print what both rules make of the first sweep, and write each as a search-space file."""
    from synaptune.analysis.refine.rule import refine
    from synaptune.analysis.refine.runs import RunSelection, read_study_runs
    from synaptune.core.console import make_console
    from synaptune.core.errors import UserError
    from synaptune.report.refinement import print_refinement
    from synaptune.search.space.file import format_space_file
    from synaptune.study.reader import find_study, get_study_folder

    for rule in ("tested", "plan"):
        try:
            runs = read_study_runs(find_study(sweep.name), RunSelection())
            refinement = refine(runs, threshold=sweep.threshold, quantile=None, rule=rule)
        except UserError as error:  # such as no run above the threshold; the sweeps go on
            print_message(f"refinement by the rule {rule}: {str(error).splitlines()[0]}")
            continue
        print_refinement(refinement, make_console())
        path = get_study_folder(sweep.name) / f"refined-{rule}.yaml"
        text = format_space_file(refinement.make_space_file(f"{sweep.name}-{rule}"))
        write_atomic(path, text.encode())
        print_message(f"written to {show_path(path)}")


def make_sweep_table(sweeps: Sequence[SweepResult]) -> Table:
    """Return both sweeps side by side."""
    rates = [_format_rate(sweep.count_successes(), len(sweep.scores)) for sweep in sweeps]
    cells: dict[Column, list[Any]] = {
        Column("sweep"): [sweep.name for sweep in sweeps],
        Column("runs", "count"): [len(sweep.scores) for sweep in sweeps],
        Column("success rate", "text", "%"): rates,
        Column("mean change", "text"): [_format_mean(sweep.scores) for sweep in sweeps],
        Column("variance", "value"): [
            statistics.variance(sweep.scores) if len(sweep.scores) > 1 else None for sweep in sweeps
        ],
        Column("worst", "value"): [min(sweep.scores, default=None) for sweep in sweeps],
    }
    note = (
        f"Change of the evaluation reward; a success is above {sweeps[0].threshold:+g}. 95 % "
        "intervals: Clopper and Pearson, Student."
    )
    return make_table("sweeps", "policy training: both sweeps", cells, note)


def answer_questions(first: SweepResult, focused: SweepResult) -> dict[str, str]:
    """Answer the four questions of the plan, each with its interval."""
    count, total = focused.count_successes(), len(focused.scores)
    low, high = compute_rate_interval(count, total)
    above = "yes" if low > 0.5 else "no" if high < 0.5 else "undecided"
    answers = {"Success rate above 50 %?": f"{above}: {_format_rate(count, total)} % of {total}."}
    pairs = [
        (curve[_HALF], trial.objective)
        for trial in focused.trials
        if _HALF in (curve := focused.curves.get(trial.number, {})) and trial.objective is not None
    ]
    gains = [end - half for half, end in pairs]
    question = "Plateau between 50 and 100 steps?"
    answers[question] = "undecided: too few runs report step 50."
    if len(gains) > 1:
        mean, low, high = compute_interval(gains)
        verdict = (
            "no, it rises" if low > 0 else "no, it falls" if high < 0 else "consistent with one"
        )
        answers[question] = f"{verdict}: {mean:+.3f} ({low:+.3f} to {high:+.3f})."
    halves = focused.get_scores_at(_HALF)
    question = "Narrower learning rates better, at step 50?"
    answers[question] = "undecided: too few runs report step 50."
    if halves and first.scores:
        sides = (
            (first.count_successes(halves), len(halves)),
            (
                first.count_successes(),
                len(first.scores),
            ),
        )
        mean, low, high = compute_rate_difference(*sides[0], *sides[1])
        verdict = "yes" if low > 0 else "no" if high < 0 else "undecided"
        answers[question] = (
            f"{verdict}: success {100 * mean:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})."
        )
    answers["Batch 8 still best?"] = _compare_batches(first)
    return answers


def _compare_batches(sweep: SweepResult) -> str:
    by_batch: dict[int, list[float]] = {}
    for trial in sweep.trials:
        if trial.objective is not None and "training.batch" in trial.values:
            by_batch.setdefault(int(trial.values["training.batch"]), []).append(trial.objective)
    if len(by_batch) < 2 or 8 not in by_batch:
        return "undecided: the first sweep has one batch size."
    means = {batch: statistics.fmean(values) for batch, values in by_batch.items()}
    best = max(means, key=lambda batch: means[batch])
    texts = [f"{batch}: {_format_mean(by_batch[batch])}" for batch in sorted(by_batch)]
    verdict = "it has the best mean" if best == 8 else f"the best mean is that of {best}"
    return f"{verdict} ({'; '.join(texts)})."


def compute_rate_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate: Clopper and Pearson, Biometrika 26:404 (1934)."""
    from scipy.stats import binomtest

    if total == 0:
        return 0.0, 1.0
    interval = binomtest(count, total).proportion_ci(0.95)
    return float(interval.low), float(interval.high)


def compute_rate_difference(
    count: int, total: int, other_count: int, other_total: int
) -> tuple[float, float, float]:
    """Return the difference of two rates and its 95 % interval.

    Source: Newcombe, Stat Med 17:873 (1998), method 10, from Wilson's intervals.
    """
    from scipy.stats import binomtest

    rates = count / total, other_count / other_total
    first, second = (
        binomtest(*pair).proportion_ci(0.95, method="wilson")
        for pair in ((count, total), (other_count, other_total))
    )
    mean = rates[0] - rates[1]
    low = mean - math.hypot(rates[0] - first.low, second.high - rates[1])
    return mean, low, mean + math.hypot(first.high - rates[0], rates[1] - second.low)


def _format_rate(count: int, total: int) -> str:
    low, high = compute_rate_interval(count, total)
    rate = count / total if total else 0.0
    return f"{100 * rate:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def _format_mean(scores: Sequence[float]) -> str:
    if len(scores) < 2:
        return f"{scores[0]:+.3f}" if scores else "none"
    mean, low, high = compute_interval(scores)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
