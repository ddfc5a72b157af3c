"""Which checkpoints of ended trials are kept (`training.keep`).

Validation, report and a continued search read the database and train again, so that they need no
checkpoint of an ended trial. A checkpoint serves `synaptune sample` and a look at the model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from synaptune.search.callback import Callback
from synaptune.search.trial import SLICE, Trial, get_loss, is_partial
from synaptune.study.database import keys as schema
from synaptune.training.config import CHECKPOINT_FILE


def choose_kept_trials(trials: Iterable[Trial], count: int, *, maximize: bool) -> set[int]:
    """Return the numbers of the trials with the best `count` runs of each phase.

    A trial that is a copy of another one stands for the run of that one.
    """
    phases: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for trial in trials:
        loss = get_loss(trial, maximize)
        if trial.state == "complete" and loss is not None and not is_partial(trial):
            number = trial.facts.get("copied_from", trial.number)
            phases[trial.facts.get(schema.PHASE, "")].append((loss, number))
    return {number for losses in phases.values() for _, number in sorted(losses)[:count]}


def find_continued_trials(trials: Sequence[Trial]) -> set[int]:
    """Return the numbers of the trials whose weights a later slice may continue.

    Those are the trials of a slice until all trials of the next slice have ended.
    """
    slices: dict[tuple[str, int], list[int]] = defaultdict(list)
    for trial in filter(is_partial, trials):
        slices[trial.facts.get(schema.PHASE, ""), trial.facts[SLICE]].append(trial.number)
    ended = Counter((trial.facts.get(schema.PHASE, ""), trial.facts.get(SLICE)) for trial in trials)
    return {
        number
        for (phase, part), numbers in slices.items()
        if ended[phase, part + 1] < len(numbers)
        for number in numbers
    }


def list_checkpoints(folder: Path, number: int) -> list[Path]:
    """Return the checkpoints of a trial, which has one for each of its seeds.

    Args:
        folder: folder of the run folders.
        number: number of the trial.
    """
    run = folder / str(number)
    return [*run.glob(CHECKPOINT_FILE), *run.glob(f"seed-*/{CHECKPOINT_FILE}")]


class CheckpointRetention(Callback):
    """Removes the checkpoints of ended trials that are not among the best of their phase.

    The trials of earlier processes count, but their checkpoints are not touched.
    """

    def __init__(
        self, folder: Path, count: int, *, maximize: bool, earlier: Sequence[Trial] = ()
    ) -> None:
        """Start with the earlier trials.

        Args:
            folder: folder of the run folders.
            count: number of trials of each phase whose checkpoints are kept.
            maximize: whether larger objectives are better.
            earlier: trials that ended before this process started.
        """
        self._folder, self._count, self._maximize = folder, count, maximize
        self._trials, self._held = list(earlier), set()

    def on_end(self, trial: Trial, finished: int) -> None:
        """Remove the checkpoints that the end of a trial makes superfluous."""
        self._trials.append(trial)
        self._held.add(trial.number)
        kept = choose_kept_trials(self._trials, self._count, maximize=self._maximize)
        kept |= find_continued_trials(self._trials)
        for number in self._held - kept:
            for path in list_checkpoints(self._folder, number):
                path.unlink(missing_ok=True)
        self._held &= kept
