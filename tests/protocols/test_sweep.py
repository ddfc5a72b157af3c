"""A multirun and a protocol mean the same by an objective, by seeds and by incumbents."""

import json

import pytest
import yaml

from helpers import processes
from helpers.paths import APPS, ROOT
from helpers.phase1_study import NAMES, QUICK
from synaptune.config.compose import compose_config
from synaptune.protocols.phase1 import build_space
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import rerun_incumbents, run_search
from synaptune.study.reader import REFERENCE, find_study

BUDGET = 8  # two generations of `cma` over two parameters, the second one cut short
NO_CLOCK = ["objective.axes.tokens_per_second=0", "objective.axes.val_recall_accuracy=0"]
COMMON = [*QUICK, "seed=1", f"search_space.parameters=[{','.join(NAMES)}]", "logger.progress=off"]


def sweep(folder, *overrides):
    """Search with a multirun; return its study."""
    command = [str(ROOT / "train.py"), "-m", "hydra/sweeper=cma", "hydra.sweeper.optim.seed=1"]
    command += [f"hydra.sweeper.optim.budget={BUDGET}", "study.name=swept", *overrides]
    done = processes.run(command, folder)
    assert done.returncode == 0, done.stderr
    return find_study(str(folder / "outputs/studies/swept"))


def search(folder, *overrides):
    """Search as the protocols do; return the study and the best point after the incumbents."""
    composed = compose_config([*overrides, f"study.dir={folder}"], study="searched")
    with open_protocol(
        composed.base,
        composed.location,
        build_space(composed),
        optimizer="cma",
        budget=BUDGET,
        seeds=(),
        settings={},
    ) as protocol:
        ledger = protocol.make_ledger("search", seeds=protocol.search.seeds)
        best = rerun_incumbents(protocol, run_search(protocol, ledger, protocol.plan))
    return find_study(str(folder)), best


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=composite", "search.seeds=2", "search.incumbents=2"],
        ["objective=hybrid", "objective.switch=1"],
        ["objective=pareto", *NO_CLOCK],
    ],
    ids=["composite", "hybrid", "pareto"],
)
def test_a_multirun_and_a_protocol_give_the_same_points_and_scores(tmp_path, overrides):
    swept = sweep(tmp_path, *COMMON, *overrides)
    searched, best = search(tmp_path / "searched", *COMMON, *overrides)
    for phase in ("search", "incumbents"):
        pairs = [
            [(trial.values, trial.objective) for trial in study.get_phase_trials(phase)]
            for study in (swept, searched)
        ]
        assert pairs[0] == pairs[1]
    (reference,) = swept.get_phase_trials(REFERENCE)
    assert reference.number == 0
    trials = swept.get_phase_trials("search")
    if "objective=hybrid" in overrides:  # the kinds of score differ by an order of magnitude
        losses = [trial.facts["val_loss"] for trial in trials]
        scores = [trial.objective for trial in trials]
        kinds = [score == loss for score, loss in zip(scores, losses, strict=True)]
        assert kinds == [trial.facts["generation"] == 0 for trial in trials]
        assert not all(kinds)
    stored = yaml.safe_load((tmp_path / "outputs/studies/swept/best.yaml").read_text())
    assert stored["parameters"] == best.values


def test_a_sweep_directory_of_the_user_holds_study_and_jobs(tmp_path):
    command = [str(APPS / "app.py"), "-m", "hydra/sweeper=random", "seconds=0"]
    command += ["hydra.sweeper.optim.budget=2", "+hydra.sweeper.params.x='interval(0,1)'"]
    for name in "ab":
        done = processes.run([*command, f"hydra.sweep.dir=exp/{name}"], tmp_path)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "exp" / name
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {"0", "1"}
        assert (folder / "1/.hydra/overrides.yaml").is_file()
        best = yaml.safe_load((folder / "best.yaml").read_text())["parameters"]
        results = yaml.safe_load((folder / "optimization_results.yaml").read_text())
        trials = find_study(str(folder)).get_phase_trials("search")
        assert results == {
            "name": "nevergrad",
            "best_evaluated_params": best,
            "best_evaluated_result": min(trial.objective for trial in trials),
        }
        metrics = json.loads((folder / "0/result.json").read_text())["metrics"]
        assert trials[0].facts["height"] == metrics["height"]


def test_seeds_in_an_application_without_a_seed_are_refused(tmp_path):
    command = [str(APPS / "app.py"), "-m", "hydra/sweeper=random", "x=interval(0,1)"]
    done = processes.run([*command, "+search.seeds=2"], tmp_path)
    assert done.returncode == 2
    assert "without a fixed `seed`" in done.stderr
    assert not list(tmp_path.rglob("study.db"))
