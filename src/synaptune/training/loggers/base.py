"""Loggers of a run: metrics.csv, TensorBoard event files and Weights & Biases."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.training.config import LoggerConfig

CSV_COLUMNS = (
    "step",
    "seconds",
    "train_loss",
    "learning_rate",
    "tokens_per_second",
    "val_loss",
    "val_perplexity",
    "val_bits_per_byte",
    "val_recall_accuracy",
    "val_calibration_error",
    "expert_gini",
    "expert_dead_fraction",
    "merges",
    "splits",
)


class Writer:
    """One destination of a run's metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of an optimizer step."""
        raise NotImplementedError

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Record the final values of the run if the destination has a place for them."""

    def close(self, exit_code: int) -> None:
        """Close the destination; `exit_code` is 0 for a run without an error."""


class CsvWriter(Writer):
    """metrics.csv with one row per logged step, flushed after each row.

    A resumed run drops the rows after its checkpoint.
    """

    def __init__(self, path: Path, resumed_from: int, columns: Sequence[str] = CSV_COLUMNS) -> None:
        rows = _read_rows_until(path, resumed_from) if resumed_from else []
        self._file = path.open("w", newline="")
        self._writer: csv.DictWriter[str] = csv.DictWriter(
            self._file, columns, extrasaction="ignore"
        )
        self._writer.writeheader()
        self._writer.writerows(rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.writerow({"step": step, **values})
        self._file.flush()

    def close(self, exit_code: int) -> None:
        self._file.close()


def _read_rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        # A killed run can leave an incomplete row; its step is after the checkpoint or no number.
        try:
            return [
                row
                for row in csv.DictReader(file)
                if (row["step"] or "").isdecimal() and int(row["step"]) <= step
            ]
        except (KeyError, ValueError, csv.Error) as error:  # no column, no UTF-8, no CSV
            raise user_error(
                got=f"{path}, which cannot be read ({type(error).__name__}: {error})",
                expected="the metrics of the run so far",
                do="restore the file; or remove it, and the run goes on without the earlier rows",
            ) from error


class TensorBoardWriter(Writer):
    """Event files in the run folder; a resumed run purges the steps after its checkpoint."""

    def __init__(self, folder: Path, resumed_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(folder), purge_step=resumed_from + 1 if resumed_from else None
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int) -> None:
        self._writer.close()


class RunLogger:
    """All writers of one run; `close` closes all of them even when one fails.

    Args:
        config: settings of logging.
        run_dir: folder of the run.
        name: name of the run.
        flat_config: the configuration by dotted names.
        resumed_from: step of the checkpoint; 0 for a fresh run.
        columns: columns of metrics.csv.
    """

    def __init__(
        self,
        config: LoggerConfig,
        run_dir: Path,
        *,
        name: str,
        flat_config: Mapping[str, Any],
        resumed_from: int,
        columns: Sequence[str] = CSV_COLUMNS,
    ) -> None:
        self._writers: list[Writer] = [CsvWriter(run_dir / "metrics.csv", resumed_from, columns)]
        if config.tensorboard:
            self._writers.append(TensorBoardWriter(run_dir, resumed_from))
        if config.wandb != "off":
            from synaptune.training.loggers.wandb_run import open_run

            if (run := open_run(config, run_dir, name=name, flat_config=flat_config)) is not None:
                self._writers.append(run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of an optimizer step."""
        for writer in self._writers:
            writer.log(step, values)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Record the final values of the run."""
        for writer in self._writers:
            writer.log_summary(values)

    def close(self, exit_code: int = 0) -> None:
        """Close every writer, then raise the error of one that failed."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close, exit_code)
            self._writers = []
