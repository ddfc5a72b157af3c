"""Studies of analytic objectives, for the tests that read a study."""

from pathlib import Path

from synaptune import TrialManager
from synaptune.study.reader import StudySnapshot, find_study

UNIFORM = ("uniform", 0.0, 1.0)


def make_study(
    folder: Path, objective, names, *, trials: int, sampler: str = "cma", seed: int = 0, **settings
) -> StudySnapshot:
    """Run the search of an objective and return the study.

    names are names of uniform parameters, or a search space of TrialManager.
    """
    space = names if isinstance(names, dict) else dict.fromkeys(names, UNIFORM)
    manager = TrialManager(
        folder.name,
        n_trials=trials,
        sampler=sampler,
        seed=seed,
        directory=folder,
        progress=False,
        **settings,
    )
    manager.optimize(objective, space)
    return find_study(str(folder))
