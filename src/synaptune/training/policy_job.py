"""Reinforcement fine-tuning of a checkpoint: group-relative policy optimisation.

    advantage  A_ij = (r_ij - mean_j r_ij) / (std_j r_ij + 1e-4)                              (1)
    loss       -mean A_ij ln p(y_ij) + beta_t KL(p || p_0) - c H(p)                           (2)
    beta_t     beta min(1, t / beta_warmup)                                                   (3)
    reward     R = mean over evaluation prompts of p(right answer)                            (4)

j counts the `generations` samples y_ij of prompt i, r_ij is 1 for the right answer and 0 otherwise,
p_0 the start checkpoint, t the step. KL and entropy H are exact sums over the vocabulary, mean over
the sampled tokens. Each sample is used once, so that no ratio of policies is needed. (4) is the
expected reward of a sampled answer, without the noise of sampling. The score of a run is the change
of (4) from the start; the training reward is logged and never the score.
Source: (1), (2) Shao et al. 2024 (DeepSeekMath), eqs. 3 and 4.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from synaptune.data.config import DataConfig
from synaptune.data.corpus import Corpus
from synaptune.data.tasks import (
    PolicyBatch,
    check_task,
    make_evaluation_batches,
    make_policy_batch,
)
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.training import checkpoint
from synaptune.training.config import PolicyConfig
from synaptune.training.device import to_device
from synaptune.training.job import Job, Split, StepOutput

_COLUMNS = (
    *("step", "seconds", "train_loss", "learning_rate", "samples_per_second"),
    *("val_loss", "val_reward", "val_greedy_reward", "reward_delta", "train_reward"),
)


@dataclass(frozen=True, kw_only=True)
class PolicyJob(Job):
    """A run that trains a checkpoint by rewards.

    Attributes:
        model: the model.
        reference: the model at the start, which does not change.
        about: what describes the model in a checkpoint.
        config: configuration of the model.
        corpus: the tokenizer and the vocabulary.
        data: settings of the data of the checkpoint.
        policy: settings of the group `policy`.
        sums: sum and number of the training rewards since the last validation.
    """

    model: GPT
    reference: GPT
    about: dict[str, Any]
    config: ModelConfig
    corpus: Corpus
    data: DataConfig
    policy: PolicyConfig
    unit: ClassVar[str] = "sample"
    columns: ClassVar[tuple[str, ...]] = _COLUMNS

    @property
    def units_per_step(self) -> int:
        return self.training.batch * self.training.accumulate * self.policy.generations

    def make_batch(self, number: int) -> PolicyBatch:
        return make_policy_batch(
            self.policy.task,
            self.corpus,
            self.data,
            context=self.config.context,
            seed=self.seed,
            number=number,
            size=self.training.batch,
        )

    def compute_loss(self, batch: PolicyBatch, noise: torch.Generator) -> StepOutput:
        policy, count = self.policy, self.policy.generations
        samples = self._sample(batch, noise)  # (prompt, generation, token)
        rewards = (samples == batch.answers[:, None]).all(-1).float()
        advantages = rewards - rewards.mean(1, keepdim=True)
        advantages = advantages / (rewards.std(1, keepdim=True, correction=0) + 1e-4)  # eq. (1)
        logs = self._compute_logs(self.model, batch.prompts, samples)
        with torch.no_grad():
            start = self._compute_logs(self.reference, batch.prompts, samples)
        chosen = logs.gather(-1, samples[..., None])[..., 0].expand(-1, count, -1)
        reward_loss = -(advantages[..., None] * chosen).mean()
        probabilities = logs.exp()
        divergence = (probabilities * (logs - start)).sum(-1).mean()
        entropy = -(probabilities * logs).sum(-1).mean()
        step = 1.0 + float(batch.number // self.training.accumulate)
        beta = policy.beta * min(1.0, step / max(1, policy.beta_warmup))  # eq. (3)
        self.sums[0] += float(rewards.mean())
        self.sums[1] += 1.0
        loss = reward_loss + beta * divergence - policy.entropy * entropy  # eq. (2)
        return StepOutput(loss, loss)

    @torch.no_grad()
    def _sample(self, batch: PolicyBatch, noise: torch.Generator) -> Tensor:
        """Sample answers, (prompt, generation, token)."""
        count, length = self.policy.generations, batch.answers.shape[1]
        prompts, samples = batch.prompts, []
        logits = self.model(prompts).logits[:, -1]
        first = torch.multinomial(logits.softmax(-1), count, replacement=True, generator=noise)
        samples.append(first)
        rows = prompts.repeat_interleave(count, 0)
        for _ in range(length - 1):
            rows = torch.cat([rows, samples[-1].reshape(-1, 1)], 1)
            chances = self.model(rows).logits[:, -1].softmax(-1)
            drawn = torch.multinomial(chances, 1, generator=noise)
            samples.append(drawn.view(-1, count))
        return torch.stack(samples, -1)

    def _compute_logs(self, model: GPT, prompts: Tensor, samples: Tensor) -> Tensor:
        """Return ln p of the tokens that may follow, (prompt, generation, token, vocabulary).

        The generations share the prompt, so answers of one token need one pass for each prompt.
        """
        count, length = samples.shape[1:]
        if length == 1:
            logs = model(prompts).logits[:, -1].log_softmax(-1)
            return logs[:, None, None].expand(-1, count, 1, -1)
        rows = torch.cat(
            [prompts.repeat_interleave(count, 0), samples.flatten(0, 1)[:, :-1]], dim=1
        )
        logs = model(rows).logits[:, -length:].log_softmax(-1)
        return logs.unflatten(0, (-1, count))

    def score_split(self, device: torch.device, split: Split) -> dict[str, float]:
        scores = self._score(self.model, device, split)
        delta = scores["reward"] - self._score_start(device, split)
        return {f"{split}_{name}": value for name, value in scores.items()} | {
            "reward_delta" if split == "val" else "test_reward_delta": delta
        }

    def validate(self, device: torch.device) -> dict[str, float]:
        """Return the evaluation, and the mean training reward since the last one."""
        metrics = self.score_split(device, "val")
        total, count = self.sums
        self.sums[:] = [0.0, 0.0]
        return metrics | ({"train_reward": total / count} if count else {})

    def compute_final_metrics(self, device: torch.device) -> dict[str, float]:
        return {"reward_before": self._score_start(device, "val")}

    def describe(self) -> dict[str, Any]:
        return self.about

    def _score_start(self, device: torch.device, split: Split) -> float:
        if split not in self._starts:
            self._starts[split] = self._score(self.reference, device, split)["reward"]
        return self._starts[split]

    @cached_property
    def _starts(self) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def _score(self, model: GPT, device: torch.device, split: Split) -> dict[str, float]:
        """Return the loss of the answers, the reward of eq. (4) and that of the likeliest."""
        batches = make_evaluation_batches(
            self.policy.task,
            self.corpus,
            self.data,
            context=self.config.context,
            test=split == "test",
            prompts=self.policy.evaluation_prompts,
        )
        model.to(device)
        loss = reward = greedy = 0.0
        for batch in batches:
            on_device = to_device(batch, device)
            answers = on_device.answers
            logs = self._compute_logs(model, on_device.prompts, answers[:, None])[:, 0]
            chosen = -F.nll_loss(logs.flatten(0, 1), answers.flatten(), reduction="none")
            chosen = chosen.view(answers.shape)
            loss -= float(chosen.mean(1).sum())
            reward += float(chosen.sum(1).exp().sum())
            greedy += float((logs.argmax(-1) == answers).all(1).sum())
        count = self.policy.evaluation_prompts
        names = ("loss", "reward", "greedy_reward")
        return {
            name: total / count for name, total in zip(names, (loss, reward, greedy), strict=True)
        }


def load_policy_parts(policy: PolicyConfig) -> tuple[dict[str, Any], str]:
    """Return the parts of a PolicyJob that its start checkpoint gives, and a fingerprint of it.

    Raises:
        UserError: the checkpoint is missing or no language model, or cannot do the task.
    """
    from synaptune.data.corpus import load_corpus

    path = Path(str(policy.start)).expanduser()
    path = path / "checkpoint.pt" if path.is_dir() else path
    model, config, data = checkpoint.load_model(path)
    reference = copy.deepcopy(model).requires_grad_(False)
    corpus = load_corpus(data, config.context)
    check_task(policy.task, corpus, data, config.context)
    parts = dict(
        model=model,
        reference=reference,
        about=checkpoint.load(path)["about"],
        config=config,
        corpus=corpus,
        data=data,
        policy=policy,
        sums=[0.0, 0.0],
    )
    return parts, hashlib.sha256(path.read_bytes()).hexdigest()
