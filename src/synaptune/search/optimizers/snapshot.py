"""The state file of an optimizer, and the restoration of a search.

The trials of the study are authoritative. The file is a snapshot of the optimizer after its last
complete generation. A search is restored by asking again for all later points and comparing them
with the stored ones. Without the file the replay starts at the first trial and has the same result.
If the points differ (another version of a library), the search continues from the values of the
trials and no longer exactly. An optimizer that cannot be pickled is always restored by the replay.

The file is a pickle, which could run code when it is read. It is signed, and read only if this user
wrote it on this machine (core/signing.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from synaptune.core.files import write_atomic
from synaptune.core.signing import sign, verify
from synaptune.search.optimizers.base import Engine, Observation, Optimizer

SNAPSHOT_VERSION = 3
LIBRARIES = ("numpy", "scipy", "torch", "nevergrad", "cma", "optuna", "cmaes")


@dataclass(frozen=True)
class OptimizerSnapshot:
    """Content of a state file.

    Attributes:
        version: version of this layout.
        libraries: versions of the libraries that wrote the file.
        engine: engine of the optimizer.
        space: ranges of the search space by name.
        told: number of generations that the optimizer has learned.
        optimizer: the optimizer; None if it cannot be pickled.
    """

    version: int
    libraries: tuple[str, ...]
    engine: Engine
    space: tuple[tuple[str, str], ...]
    told: int
    optimizer: Optimizer | None


class StoredPoint(NamedTuple):
    """A trial of a search, as the restoration sees it.

    Attributes:
        point: the point with its loss.
        is_finished: whether the trial has ended.
        learned: number of imported trials that the optimizer had learned when the trial started.
    """

    point: Observation
    is_finished: bool
    learned: int = 0


class RestoredOptimizer(NamedTuple):
    """A restored optimizer.

    Attributes:
        optimizer: the optimizer, ready for the next point.
        generations: number of generations that the optimizer has learned.
        note: message for the user; None if the search continues exactly as it was left.
    """

    optimizer: Optimizer
    generations: int
    note: str | None


@dataclass(frozen=True)
class StateFile:
    """Reads and writes the snapshots of one search."""

    path: Path
    engine: Engine
    space: dict[str, str]

    def save(self, optimizer: Optimizer, generations: int) -> None:
        """Replace the file atomically; without a key to sign it, no file is written."""
        snapshot = OptimizerSnapshot(
            SNAPSHOT_VERSION,
            _get_library_versions(),
            self.engine,
            tuple(self.space.items()),
            generations,
            optimizer,
        )
        try:
            content = pickle.dumps(snapshot)
        # Some algorithms of Nevergrad hold threads or functions, or refuse to be pickled.
        except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError):
            content = pickle.dumps(replace(snapshot, optimizer=None))
        signed = sign(content)
        if signed is None:
            return
        write_atomic(self.path, signed)  # processes that share a study write it as well

    def load(self) -> OptimizerSnapshot | str:
        """Return the snapshot, or the reason why it cannot be used."""
        try:
            content = verify(self.path.read_bytes())
            if content is None:
                return "is not read, because it was not written by this user on this machine"
            snapshot = pickle.loads(content)
        except FileNotFoundError:
            return "is missing"
        except Exception as error:  # a damaged pickle can raise any exception
            return f"is damaged ({type(error).__name__})"
        if not isinstance(snapshot, OptimizerSnapshot) or snapshot.version != SNAPSHOT_VERSION:
            return "was written by another version of synaptune"
        if snapshot.libraries != _get_library_versions():
            return "was written with other versions of " + ", ".join(LIBRARIES)
        if (snapshot.engine, snapshot.space) != (self.engine, tuple(self.space.items())):
            return "belongs to another search"
        return snapshot


def restore_optimizer(
    state_file: StateFile,
    make_fresh: Callable[[], Optimizer],
    trials: Sequence[StoredPoint],
    imported: Sequence[Observation] = (),
) -> RestoredOptimizer:
    """Restore an optimizer to its state after the given trials.

    Args:
        state_file: the state file of the search.
        make_fresh: function that creates the optimizer in its initial state.
        trials: the trials in the order of the asks.
        imported: the imported trials in the order in which the optimizer learned them.
    """
    optimizer = make_fresh()
    if not optimizer.learns:  # its points depend on the number of asks only: it needs no file
        told = _replay(optimizer, 0, trials, imported)
        if told is not None:
            return RestoredOptimizer(optimizer, told, None)
    found = state_file.load()
    if isinstance(found, str):
        reason = found
    elif found.optimizer is None:
        reason = "cannot hold this optimizer"
    elif found.told * found.optimizer.generation_size > len(trials):
        reason = "is ahead of the study's trials"
    else:
        told = _replay(found.optimizer, found.told, trials, imported)
        if told is not None:
            return RestoredOptimizer(found.optimizer, told, None)
        reason = "does not fit the study's trials"
    note = (
        f"{state_file.path.name} {reason}: "
        f"the search is rebuilt from the study's {len(trials)} trials"
    )
    optimizer = make_fresh()
    told = _replay(optimizer, 0, trials, imported)
    if told is not None:
        is_expected = not trials or (not isinstance(found, str) and found.optimizer is None)
        return RestoredOptimizer(optimizer, told, None if is_expected else f"{note}, exactly")
    optimizer = make_fresh()
    optimizer.reseed(state_file.engine, len(trials))
    told = learned = 0
    for generation in _split_generations(optimizer, trials):
        learned = _learn(optimizer, generation, imported, learned)
        if not _is_complete(generation, optimizer.generation_size):
            break
        optimizer.tell([entry.point for entry in generation])
        told += 1
    return RestoredOptimizer(
        optimizer, told, f"{note}; its own points would differ, so it continues from their losses"
    )


def _replay(
    optimizer: Optimizer,
    generations: int,
    trials: Sequence[StoredPoint],
    imported: Sequence[Observation],
) -> int | None:
    """Ask and tell again, starting at generation `generations`.

    Returns:
        The number of generations learned at the end; None if a point differs.
    """
    # An optimizer that does not learn is also asked for points after an incomplete generation.
    leading = True
    before = trials[: generations * optimizer.generation_size]
    learned = max((entry.learned for entry in before), default=0)
    for generation in _split_generations(optimizer, trials)[generations:]:
        learned = _learn(optimizer, generation, imported, learned)
        asked = [entry.point.unit for entry in generation if entry.point.is_asked]
        if any(optimizer.ask() != unit for unit in asked):
            return None
        leading = leading and _is_complete(generation, optimizer.generation_size)
        if leading:
            optimizer.tell([entry.point for entry in generation])
            generations += 1
    return generations


def _learn(
    optimizer: Optimizer,
    generation: Sequence[StoredPoint],
    imported: Sequence[Observation],
    learned: int,
) -> int:
    """Learn the imported trials that the search learned before a generation; return their count."""
    count = max(learned, *(entry.learned for entry in generation))
    if count > learned:
        optimizer.learn(imported[learned:count])
    return count


def _is_complete(generation: Sequence[StoredPoint], size: int) -> bool:
    return len(generation) == size and all(entry.is_finished for entry in generation)


def _split_generations(
    optimizer: Optimizer, trials: Sequence[StoredPoint]
) -> list[Sequence[StoredPoint]]:
    size = optimizer.generation_size
    return [trials[first : first + size] for first in range(0, len(trials), size)]


def _get_library_versions() -> tuple[str, ...]:
    return tuple(version(name) for name in LIBRARIES)
