"""How a model is trained and where the run is written, as typed values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    steps: optimizer steps; batch: sequences per micro-batch; accumulate: micro-batches per optimizer step;
    warmup_fraction: part of the steps with rising rate; final_fraction: last learning rate over the peak;
    clip: largest global gradient norm (0 = no clipping); precision: `auto` is bf16 where the device has it in hardware;
    evaluations: validations during the run, the last one at its end; eval_batches: validation batches each time;
    checkpoint_every: steps between checkpoints (0 = only at the end); test: score the test split at the end;
    resume: continue bit-exactly from the run folder's last checkpoint.
    """

    steps: int = 200
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 8e-3
    weight_decay: float = 0.1
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1
    clip: float = 1.0
    precision: str = "auto"
    evaluations: int = 4
    eval_batches: int = 16
    checkpoint_every: int = 0
    device: str = "auto"
    test: bool = False
    compile: bool = False
    resume: bool = False


@dataclass(frozen=True)
class LoggerConfig:
    """What a run shows and writes, beside its metrics.csv.

    every: steps between logged training losses; progress: `auto` is a bar on a terminal and a few lines elsewhere,
    in a search a live table of all trials on a terminal and nothing elsewhere (`lines`: one for each trial, anywhere);
    tensorboard: event files; wandb: `auto` is on when wandb is installed, online when a key and a network are there;
    project, entity, group, job_type, run_id, tags, generation (of a search, for its configuration there): what the run is
    called in Weights & Biases (group null: the run's name).
    """

    every: int = 20
    progress: str = "auto"
    tensorboard: bool = True
    wandb: str = "auto"
    project: str = "synaptune"
    entity: str | None = None
    group: str | None = None
    job_type: str = "run"
    run_id: str | None = None
    tags: tuple[str, ...] = ()
    generation: int | None = None


TRAINING_CHOICES = {
    "training.precision": ("auto", "fp32", "bf16"),
    "training.device": ("auto", "cpu", "cuda"),
    "logger.progress": ("auto", "bar", "lines", "off"),
    "logger.wandb": ("auto", "off", "offline", "online"),
}
# name -> (lowest admitted, highest admitted)
TRAINING_BOUNDS: dict[str, tuple[float, float]] = {
    "training.steps": (1, 10**9),
    "training.batch": (1, 10**6),
    "training.accumulate": (1, 10**6),
    "training.learning_rate": (1e-8, 10.0),
    "training.weight_decay": (0.0, 10.0),
    "training.warmup_fraction": (0.0, 1.0),
    "training.final_fraction": (0.0, 1.0),
    "training.clip": (0.0, 1e6),
    "training.evaluations": (1, 10**6),
    "training.eval_batches": (1, 10**6),
    "training.checkpoint_every": (0, 10**9),
    "logger.every": (1, 10**9),
}


def find_training_faults(training: TrainingConfig, logger: LoggerConfig) -> list[str]:
    """Every value that no run can use, one line each; empty when all is well."""
    value = {f"training.{name}": entry for name, entry in vars(training).items()}
    value |= {f"logger.{name}": entry for name, entry in vars(logger).items()}
    found = [
        f"{name}={value[name]:g}: expected {low:g} to {high:g}"
        for name, (low, high) in TRAINING_BOUNDS.items()
        if not low <= value[name] <= high
    ]
    found += [
        f"{name}={value[name]}: expected one of {', '.join(known)}"
        for name, known in TRAINING_CHOICES.items()
        if value[name] not in known
    ]
    return found
