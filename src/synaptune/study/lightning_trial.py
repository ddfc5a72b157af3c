"""A callback that lets any Lightning training report to the search that runs it."""

from __future__ import annotations

from typing import Any

from synaptune.core.errors import user_error
from synaptune.search.trial import TrialPruned
from synaptune.search.workers.reporting import report
from synaptune.training.lightning_import import lightning


class LightningTrial(lightning.Callback):
    """Reports a metric after each validation, and ends a trial that the pruner stops.

    The trial is that of the objective which runs the trainer, in this process or in a worker. The
    callback does nothing outside a trial, so the same trainer also serves a run of its own.

    Args:
        monitor: name of a logged metric that the objective optimizes.
    """

    def __init__(self, monitor: str = "val_loss") -> None:
        super().__init__()
        self.monitor = monitor

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the metric at the trainer's `global_step`.

        Raises:
            UserError: the module does not log the metric.
            TrialPruned: the pruner stops the trial.
        """
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise user_error(
                got=f"LightningTrial(monitor={self.monitor!r}), which the module does not log",
                expected=f"one of {', '.join(metrics) or '(no metric is logged)'}",
                do="log it in validation_step, or name another metric",
            )
        if report(trainer.global_step, metrics[self.monitor]):
            raise TrialPruned
