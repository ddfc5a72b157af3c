"""A training with Lightning reports to its search, and is pruned by it."""

import re

import lightning.pytorch as lightning
import optuna
import pytest
import torch

from helpers import processes
from helpers.paths import ROOT
from synaptune import LightningTrial, TrialManager, UserError

QUIET = dict(
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
BATCHES = torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=2)


class Constant(lightning.LightningModule):
    """A module whose validation loss is a constant."""

    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(1, 1), loss

    def training_step(self, batch, _):
        return self.layer(batch).mean()

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(loss, monitor="val_loss"):
    trainer = lightning.Trainer(max_epochs=3, callbacks=[LightningTrial(monitor)], **QUIET)
    trainer.fit(Constant(loss), BATCHES, BATCHES)
    return trainer


def search(folder, objective, count):
    manager = TrialManager(
        "s", n_trials=count, sampler="grid", pruner="median", directory=folder, progress=False
    )
    manager.optimize(objective, {"x": ("categorical", list(range(count)))})
    return manager.trials


def test_each_validation_is_reported_at_its_step_and_a_bad_run_is_pruned(tmp_path):
    trials = search(tmp_path, lambda p: float(fit(p["x"]).callback_metrics["val_loss"]), 7)
    assert [trial.state for trial in trials[:5]] == ["complete"] * 5
    assert "pruned" in {trial.state for trial in trials[5:]}
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert stored[1].intermediate_values == {2: 1.0, 4: 1.0, 6: 1.0}
    pruned = next(trial for trial in stored if trial.state.name == "PRUNED")
    assert list(pruned.intermediate_values) == [2]


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(tmp_path):
    manager = TrialManager("s", n_trials=1, directory=tmp_path, progress=False)
    with pytest.raises(UserError, match=r"monitor=.accuracy.*; expected: one of val_loss"):
        manager.optimize(lambda p: fit(p["x"], "accuracy") and 0.0, {"x": ("uniform", 0, 1)})


def test_outside_a_trial_the_callback_changes_nothing():
    assert fit(1.0).global_step == 6


@pytest.mark.slow
def test_the_example_of_a_model_of_ones_own_runs_to_its_verdict(tmp_path):
    text = (ROOT / "docs/your_model.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    for size in ("n_trials=30", "max_epochs=12"):
        assert size in code
        code = code.replace(size, re.sub(r"\d+", "6", size))
    (tmp_path / "classify.py").write_text(code)
    done = processes.run(["classify.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"test accuracy 0\.\d+ -> 0\.\d+, difference .* interval", done.stdout)
    report = processes.run(["-m", "synaptune.cli.main", "report", "classify"], tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "outputs/studies/classify/report/report.html").exists()
