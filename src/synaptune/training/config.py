"""Settings of training and logging."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

POLICY_TASKS = ("recall", "copy", "sums")
RESULT_FILE = "result.json"  # metrics and objective of a finished run, in its folder
CHECKPOINT_FILE = "checkpoint.pt"  # the latest checkpoint of a run, in its folder


@dataclass(frozen=True)
class BiostatisConfig:
    """Constants of training.optimizer=biostatis (biostatis.py).

    Attributes:
        coherence_target: c* of eqs. (2) and (4).
        energy_target: E* of eqs. (3) and (5).
        coherence_gain: rho of eqs. (2) and (4).
        energy_gain: lam of eqs. (3) and (5).
        beta2: rate of the second moment; that of our AdamW by default.
        targets: `fixed`, or `auto` for targets that are measured in the first steps.
        target_steps: steps that `auto` measures.
    """

    coherence_target: float = 0.8
    energy_target: float = 1e-3
    coherence_gain: float = 0.03
    energy_gain: float = 0.1
    beta2: float = 0.95
    targets: str = "fixed"
    target_steps: int = 100


@dataclass(frozen=True)
class PolicyConfig:
    """Settings of the `policy` group, for objective=policy (policy_job.py).

    Attributes:
        start: checkpoint that is trained, or the folder of its run.
        task: an entry of POLICY_TASKS (data/tasks.py).
        generations: sampled answers of a prompt; training.batch is the number of prompts.
        beta: weight of the divergence from the start.
        beta_warmup: optimizer steps over which beta rises from 0.
        entropy: weight of the entropy.
        evaluation_prompts: prompts of an evaluation.
    """

    start: str | None = None
    task: str = "recall"
    generations: int = 16
    beta: float = 0.04
    beta_warmup: int = 20
    entropy: float = 0.001
    evaluation_prompts: int = 512


def find_policy_faults(policy: PolicyConfig) -> list[str]:
    """Return one line for each invalid value."""
    least = {"generations": 2, "beta": 0.0, "beta_warmup": 0, "entropy": 0.0}
    faults = [
        f"policy.{name}={getattr(policy, name)}: expected at least {value:g}"
        for name, value in (least | {"evaluation_prompts": 1}).items()
        if not getattr(policy, name) >= value
    ]
    if policy.task not in POLICY_TASKS:
        faults.append(f"policy.task={policy.task}: expected one of {', '.join(POLICY_TASKS)}")
    return faults


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the `training` group.

    Attributes:
        steps: optimizer steps.
        batch: sequences of a micro-batch.
        accumulate: micro-batches of an optimizer step.
        optimizer: adamw, biostatis or sgd.
        learning_rate: peak of the learning rate.
        schedule: cosine or advanced (schedules.py).
        weight_decay: weight decay; decoupled, but for sgd.
        warmup_fraction: share of the steps with a rising learning rate.
        final_fraction: last learning rate over the peak.
        clip: largest global gradient norm; 0 for no clipping.
        precision: `auto` is bf16 on a device with hardware support, else fp32.
        evaluations: validations of the run, the last one at its end.
        eval_batches: batches of a validation.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        device: `auto` is CUDA when available.
        test: evaluate the test split at the end.
        compile: compile the model with torch.compile.
        graphs: record the steps as CUDA graphs on a GPU (cuda_graph.py).
        keep: checkpoints that a search keeps of its ended trials: all, none, or those of the best N
            of each phase, best:N. A single run keeps its own.
        resume: continue bit-exactly from the last checkpoint in the run folder.
        start: checkpoint of another run, which this run continues with its own settings; the run
            begins at the step of the checkpoint.
        last_step: step at which the run ends; None means `steps`. The schedules are those of
            `steps`.
        representation: measure the last hidden layer at the end (representation.py).
        biostatis: constants of the optimizer `biostatis`.
    """

    steps: int = 200
    batch: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 8e-3
    schedule: str = "cosine"
    weight_decay: float = 0.1
    warmup_fraction: float = 0.05
    final_fraction: float = 0.1
    clip: float = 1.0
    precision: str = "auto"
    evaluations: int = 4
    eval_batches: int = 16
    checkpoint_every: int = 0
    keep: str = "best:3"
    device: str = "auto"
    test: bool = False
    compile: bool = False
    graphs: bool = True
    resume: bool = False
    start: str | None = None
    last_step: int | None = None
    representation: bool = False
    biostatis: BiostatisConfig = field(default_factory=BiostatisConfig)

    @property
    def end(self) -> int:
        """The last step of the run."""
        return self.steps if self.last_step is None else self.last_step


@dataclass(frozen=True)
class LoggerConfig:
    """Settings of the `logger` group; metrics.csv is always written.

    Attributes:
        every: steps between logged training losses.
        progress: `auto` shows a bar on a terminal and lines elsewhere. In a search it shows a live
            table of all trials on a terminal, and elsewhere a line at the end of a generation or
            every 30 s; `lines` prints one line for each trial.
        tensorboard: write event files.
        wandb: `auto` logs to Weights & Biases when wandb is installed, online when there is an API
            key and a network.
        project: project in Weights & Biases.
        entity: entity in Weights & Biases; None for the default of the account.
        group: group in Weights & Biases; None for the name of the run.
        job_type: job type in Weights & Biases.
        run_id: id of the run in Weights & Biases; None for a random one.
        run_name: name of the run in Weights & Biases; None for the name of its folder.
        tags: tags in Weights & Biases.
        searched: names of the searched parameters, repeated under `searched.` in the configuration
            in Weights & Biases.
        record: what Weights & Biases records in addition: `system` (metrics of the machine),
            `git` (commit and changes), `code` (the source files of the package).
        generation: generation of the search, added to the configuration in Weights & Biases.
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
    run_name: str | None = None
    tags: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()
    record: tuple[str, ...] = ()
    generation: int | None = None


TRAINING_CHOICES = {
    "training.optimizer": ("adamw", "biostatis", "sgd"),
    "training.schedule": ("cosine", "advanced"),
    "training.biostatis.targets": ("fixed", "auto"),
    "training.precision": ("auto", "fp32", "bf16"),
    "training.device": ("auto", "cpu", "cuda"),
    "logger.progress": ("auto", "bar", "lines", "off"),
    "logger.wandb": ("auto", "off", "offline", "online"),
}
RECORDS = ("system", "git", "code")  # valid entries of logger.record
# name -> (lowest valid value, highest valid value)
TRAINING_BOUNDS: dict[str, tuple[float, float]] = {
    "training.steps": (1, 10**9),
    "training.batch": (1, 10**6),
    "training.accumulate": (1, 10**6),
    "training.learning_rate": (1e-8, 10.0),
    "training.weight_decay": (0.0, 10.0),
    "training.biostatis.coherence_target": (0.0, 1.0),
    "training.biostatis.energy_target": (0.0, 1e3),
    "training.biostatis.coherence_gain": (0.0, 1.0),
    "training.biostatis.energy_gain": (0.0, 1e3),
    "training.biostatis.beta2": (0.0, 0.999999),
    "training.biostatis.target_steps": (1, 10**6),
    "training.warmup_fraction": (0.0, 1.0),
    "training.final_fraction": (0.0, 1.0),
    "training.clip": (0.0, 1e6),
    "training.evaluations": (1, 10**6),
    "training.eval_batches": (1, 10**6),
    "training.checkpoint_every": (0, 10**9),
    "logger.every": (1, 10**9),
}


def parse_keep(text: str) -> int | None:
    """Return the number of trials whose checkpoints `training.keep` keeps; None means all.

    Raises:
        ValueError: the text is neither all, none nor best:N.
    """
    if text in ("all", "none"):
        return None if text == "all" else 0
    if not re.fullmatch(r"best:\d+", text):
        raise ValueError(text)
    return int(text.removeprefix("best:"))


def find_training_faults(training: TrainingConfig, logger: LoggerConfig) -> list[str]:
    """Return one line for each invalid value; empty without a fault."""
    value = {f"training.{name}": entry for name, entry in vars(training).items()}
    value |= {f"training.biostatis.{name}": v for name, v in vars(training.biostatis).items()}
    value |= {f"logger.{name}": entry for name, entry in vars(logger).items()}
    faults = [
        f"{name}={value[name]:g}: expected {low:g} to {high:g}"
        for name, (low, high) in TRAINING_BOUNDS.items()
        if not low <= value[name] <= high
    ]
    if training.last_step is not None and not 1 <= training.last_step <= training.steps:
        faults.append(
            f"training.last_step={training.last_step}: expected 1 to training.steps="
            f"{training.steps}, or null"
        )
    faults += [
        f"{name}={value[name]}: expected one of {', '.join(choices)}"
        for name, choices in TRAINING_CHOICES.items()
        if value[name] not in choices
    ]
    faults += [
        f"logger.record=[{entry}]: expected entries among {', '.join(RECORDS)}"
        for entry in logger.record
        if entry not in RECORDS
    ]
    try:
        parse_keep(training.keep)
    except ValueError:
        faults.append(f"training.keep={training.keep}: expected all, none or best:N")
    return faults
