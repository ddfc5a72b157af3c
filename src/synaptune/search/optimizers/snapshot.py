"""The optimizer's state file, and how a search is brought back to where it stopped.

The study's trials are the truth; the file is a snapshot of the optimizer after its latest whole generation. A search is
restored by asking again for every later point and comparing with what is stored. Without the file the replay begins at the
first trial, with the same result. Only when the points differ (another version of a library) is the search continued from
the trials' values instead of exactly.

The file is a pickle: read only those of your own studies.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from synaptune.core.files import replace_file
from synaptune.search.optimizers.base import Engine, Observation, Optimizer

SNAPSHOT_VERSION = 2

# Where the classes that the snapshots of synaptune 0.1.0 name are now: version 0.2.0 moved and
# renamed them, and changed none of their attributes. By old module, the new one and the classes.
_MOVED_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "synaptune.search.state": (
        "synaptune.search.optimizers.snapshot",
        {"Snapshot": "OptimizerSnapshot"},
    ),
    "synaptune.search.contract": (
        "synaptune.search.optimizers.base",
        {"Engine": "Engine", "Told": "Observation"},
    ),
    "synaptune.search.space": (
        "synaptune.search.space.space",
        {"Dimension": "Dimension", "Space": "Space"},
    ),
    "synaptune.search.evolution": ("synaptune.search.optimizers.cma", {"Cma": "CmaOptimizer"}),
    "synaptune.search.plain": (
        "synaptune.search.optimizers.uniform_grid",
        {"Uniform": "UniformOptimizer", "Grid": "GridOptimizer"},
    ),
    "synaptune.search.optuna_samplers": (
        "synaptune.search.optimizers.optuna_samplers",
        {
            "Sampler": "OptunaOptimizer",
            "Axis": "OptunaDimension",
            "_Ended": "_StoredTrial",
            "_Compact": "_CompactStudy",
        },
    ),
    "synaptune.search.optuna_cmaes": (
        "synaptune.search.optimizers.optuna_cmaes",
        {"BoxCmaEsSampler": "BoxCmaEsSampler"},
    ),
    "synaptune.search.nevergrad_registry": (
        "synaptune.search.optimizers.nevergrad_registry",
        {"Nevergrad": "NevergradOptimizer"},
    ),
}
LIBRARIES = ("numpy", "scipy", "torch", "nevergrad", "cma", "optuna", "cmaes")


@dataclass(frozen=True)
class OptimizerSnapshot:
    """version: of this layout; libraries: versions that made it; engine, space: what the optimizer is for; told: generations."""

    version: int
    libraries: tuple[str, ...]
    engine: Engine
    space: tuple[tuple[str, str], ...]
    told: int
    optimizer: Optimizer


class RestoredOptimizer(NamedTuple):
    """optimizer: ready for the next point; told: generations it knows; note: what a person should hear, null when all is exact."""

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
        """Replace the file atomically."""
        snapshot = OptimizerSnapshot(
            SNAPSHOT_VERSION,
            _get_library_versions(),
            self.engine,
            tuple(self.space.items()),
            generations,
            optimizer,
        )
        with replace_file(self.path) as draft:
            draft.write_bytes(pickle.dumps(snapshot))

    def load(self) -> OptimizerSnapshot | str:
        """The snapshot, or why there is none to use."""
        try:
            snapshot = _SnapshotUnpickler(io.BytesIO(self.path.read_bytes())).load()
        except FileNotFoundError:
            return "is missing"
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to spell
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
    trials: Sequence[tuple[Observation, bool]],
) -> RestoredOptimizer:
    """Bring an optimizer to the end of `trials`, which are (point with loss, finished) in the order they were asked for."""
    optimizer = make_fresh()
    if not optimizer.learns:  # its points are its asks alone: there is no state worth a file
        told = _replay(optimizer, 0, trials)
        if told is not None:
            return RestoredOptimizer(optimizer, told, None)
    found = state_file.load()
    note = None
    if isinstance(found, OptimizerSnapshot) and found.told * found.optimizer.generation_size <= len(
        trials
    ):
        replayed = _replay(found.optimizer, found.told, trials)
        if replayed is not None:
            return RestoredOptimizer(found.optimizer, replayed, None)
        found = "does not fit the study's trials"
    elif isinstance(found, OptimizerSnapshot):
        found = "is ahead of the study's trials"
    if trials:
        note = f"{state_file.path.name} {found}: the search is rebuilt from the study's {len(trials)} trials"
    optimizer = make_fresh()
    told = _replay(optimizer, 0, trials)
    if told is not None:
        return RestoredOptimizer(optimizer, told, note and f"{note}, exactly")
    optimizer = make_fresh()
    told = 0
    for generation in _split_generations(optimizer, trials):
        if len(generation) == optimizer.generation_size and all(
            finished for _, finished in generation
        ):
            optimizer.tell([point for point, _ in generation])
            told += 1
    return RestoredOptimizer(
        optimizer, told, f"{note}; its own points would differ, so it goes on from their losses"
    )


def _replay(
    optimizer: Optimizer, generations: int, trials: Sequence[tuple[Observation, bool]]
) -> int | None:
    """Ask and tell again from generation `told` on; the generations known at the end, or null at the first point that differs."""
    leading = (
        True  # an optimizer that does not learn is asked past a generation that is not whole yet
    )
    for generation in _split_generations(optimizer, trials)[generations:]:
        if any(optimizer.ask() != point.unit for point, _ in generation):
            return None
        leading = (
            leading
            and len(generation) == optimizer.generation_size
            and all(finished for _, finished in generation)
        )
        if leading:
            optimizer.tell([point for point, _ in generation])
            generations += 1
    return generations


def _split_generations(
    optimizer: Optimizer, trials: Sequence[tuple[Observation, bool]]
) -> list[Sequence[tuple[Observation, bool]]]:
    size = optimizer.generation_size
    return [trials[first : first + size] for first in range(0, len(trials), size)]


class _SnapshotUnpickler(pickle.Unpickler):
    """Reads snapshots of this version and of synaptune 0.1.0."""

    def find_class(self, module: str, name: str) -> Any:
        new_module, classes = _MOVED_CLASSES.get(module, (module, {}))
        if name in classes:
            return super().find_class(new_module, classes[name])
        return super().find_class(module, name)


def _get_library_versions() -> tuple[str, ...]:
    return tuple(version(name) for name in LIBRARIES)
