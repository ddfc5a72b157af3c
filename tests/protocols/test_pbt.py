"""Population-based training of real runs: slices continue, a kill loses nothing finished."""

import time

import pytest

from helpers import processes
from helpers.paths import ROOT
from synaptune.analysis.evidence import gather_evidence
from synaptune.config.compose import compose_config
from synaptune.config.run import run
from synaptune.core.errors import UserError
from synaptune.protocols.phase1 import run_phase1
from synaptune.report.figures import draw_figure
from synaptune.search.trial import PARENT, SLICE
from synaptune.study.reader import find_study

MEMBERS, SLICES = 4, 3
# fmt: off
SMALL = [
    "scale=smoke", "model.width=16", "training.steps=12", "logger=csv", "logger.progress=off",
    "search_space.parameters=[synapse.calcium.tau_c,synapse.attention.lambda_loge]",
]
COMMAND = [
    str(ROOT / "train.py"), "-m", "hydra/sweeper=pbt", f"search.slices={SLICES}",
    f"hydra.sweeper.optim.budget={MEMBERS * SLICES}", "study.name=p", *SMALL,
]
# fmt: on


def read(folder):
    return find_study(str(folder / "outputs/studies/p"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a search that was not interrupted."""
    folder = tmp_path_factory.mktemp("pbt")
    done = processes.run(COMMAND, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_member_that_copies_nothing_ends_like_one_whole_run(folder, tmp_path):
    study = read(folder)
    trials = {trial.number: trial for trial in study.search_trials}
    assert len(trials) == MEMBERS * SLICES
    lineages = []
    for trial in trials.values():
        line = [trial]
        while (parent := line[-1].facts[PARENT]) is not None:
            line.append(trials[parent])
        lineages.append(line)
    whole = next(x for x in lineages if len(x) == SLICES and len({t.unit for t in x}) == 1)
    cfg = compose_config(SMALL, study="s").base
    for name, value in whole[0].values.items():
        group, subsystem, key = name.split(".")
        cfg[group][subsystem][key] = value
    outcome = run(cfg, tmp_path / "run", overrides=[])
    assert outcome.metrics["val_loss"] == whole[0].objective


def test_the_worst_member_of_each_slice_is_replaced_and_the_lineage_is_drawn(folder):
    study = read(folder)
    for part in range(SLICES - 1):
        now = [trial for trial in study.search_trials if trial.facts[SLICE] == part]
        after = [trial for trial in study.search_trials if trial.facts[SLICE] == part + 1]
        worst = max(now, key=lambda trial: trial.objective)
        best = min(now, key=lambda trial: trial.objective)
        assert worst.number not in {trial.facts[PARENT] for trial in after}
        assert sum(trial.facts[PARENT] == best.number for trial in after) == 2
    evidence = gather_evidence(study, deep=False)
    assert evidence.best is not None
    assert evidence.best.facts[SLICE] == SLICES - 1
    assert sum(loss is not None for loss in evidence.losses) == MEMBERS  # whole runs only
    assert {trial.facts[SLICE] for trial in study.whole_runs} == {SLICES - 1}
    figure = draw_figure("lineage", evidence)
    assert figure is not None
    assert f"{SLICES - 1} of them continue a copy" in figure.caption


def test_checkpoints_remain_of_the_best_members_only(folder):
    kept = {int(p.parent.name) for p in (folder / "outputs/studies/p").rglob("checkpoint.pt")}
    last = [trial for trial in read(folder).search_trials if trial.facts[SLICE] == SLICES - 1]
    assert kept == {t.number for t in sorted(last, key=lambda trial: trial.objective)[:3]}


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_trials(folder, tmp_path):
    process = processes.start(COMMAND, tmp_path)
    deadline = time.monotonic() + processes.TIMEOUT
    while not (tmp_path / "outputs/studies/p/trials/6").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = [trial for trial in read(tmp_path).search_trials if trial.state == "complete"]
    assert len(finished) >= MEMBERS
    done = processes.run([*COMMAND, "workers=processes", "workers.count=2"], tmp_path)
    assert done.returncode == 0, done.stderr
    pairs = zip(read(tmp_path).search_trials, read(folder).search_trials, strict=True)
    for trial, expected in pairs:
        assert trial.unit == expected.unit
        assert trial.objective == expected.objective
        assert trial.facts[PARENT] == expected.facts[PARENT]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("pruner=median", "expected none"),
        ("search.seeds=2", "one set of weights"),
        ("objective=hybrid", "a validation of a slice"),
        ("protocol.budget=11", "at least 12 trials"),
    ],
)
def test_a_search_that_slices_cannot_train_is_refused(tmp_path, word, expected):
    words = [*SMALL, f"search.slices={SLICES}", f"study.dir={tmp_path}"]
    with pytest.raises(UserError, match=expected):
        run_phase1([*words, "protocol.optimizer=pbt", "search_space=phase1", word])


def test_the_start_of_a_run_must_be_a_checkpoint_of_its_model(folder, tmp_path):
    path = next((folder / "outputs/studies/p").rglob("checkpoint.pt"))
    for words, expected in (
        (["model.width=32"], "do not fit the model"),
        (["training.last_step=8"], "a step before the end"),
    ):
        cfg = compose_config([*SMALL, f"training.start={path}", *words], study="s").base
        with pytest.raises(UserError, match=expected):
            run(cfg, tmp_path / "run", overrides=[])
