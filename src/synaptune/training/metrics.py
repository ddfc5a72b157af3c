"""Metrics of a language model as pure functions of tensors.

    loss               L = mean over scored targets of -ln p(target)                [nats/token](1)
    perplexity         exp(L)                                                       [tokens]    (2)
    bits per byte      L_text / ln 2 / (bytes per token)                            [bit/byte]  (3)
    recall accuracy    right answers / answers                                      [0..1]      (4)
    calibration error  sum_b n_b / n |accuracy_b - confidence_b|, 15 equal bins     [0..1]      (5)
    expert Gini        sum_ij |u_i - u_j| / (2 E^2 mean u), mean over layers        [0..1]      (6)
    dead fraction      part of the experts with less than a tenth of an even share  [0..1]      (7)

Source: (5) Guo et al. 2017, eq. 3; (6) Gini 1912 as the relative mean absolute difference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synaptune.core.parameters import constant
from synaptune.data.recall import IGNORE_INDEX

CALIBRATION_BINS = int(
    constant(
        "metrics.calibration_bins",
        15,
        unit="bin",
        meaning="confidence bins of the calibration error",
        source="Guo et al. 2017",
    )
)
DEAD_SHARE = constant(
    "metrics.dead_share",
    0.1,
    meaning="share of an even load below which an expert is dead",
    source="chosen: a tenth of its even share",
)


class Tally(NamedTuple):
    """Sums over scored targets, on the device of the model.

    Attributes:
        loss: sum of the losses [nats].
        text_loss: sum of the losses of text targets [nats].
        scored: number of scored targets.
        text: number of text targets, which are scored and no recall answers.
        recall_right: number of correct recall answers.
        recall: number of recall answers.
        confidence: sum of the largest probabilities in each bin.
        right: number of correct predictions in each bin.
        filled: number of targets in each bin.
    """

    loss: Tensor
    text_loss: Tensor
    scored: Tensor
    text: Tensor
    recall_right: Tensor
    recall: Tensor
    confidence: Tensor
    right: Tensor
    filled: Tensor

    def add(self, other: Tally) -> Tally:
        """Return the sums over the targets of both tallies."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


def training_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over targets other than IGNORE_INDEX [nats/token], eq. (1)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)


def tally(logits: Tensor, targets: Tensor, recall: Tensor) -> Tally:
    """Sum the quantities of the metrics over one batch.

    Args:
        logits: (batch, token, vocabulary).
        targets: (batch, token); IGNORE_INDEX where a token is not scored.
        recall: (batch, token), True at recall answers.
    """
    scored = targets != IGNORE_INDEX
    answers = recall & scored
    text = scored & ~recall
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view_as(targets)
    best, guess = torch.log_softmax(logits, -1).max(-1)
    confidence = best.exp()
    right = (guess == targets) & scored
    bins = F.one_hot(
        (confidence * CALIBRATION_BINS).long().clamp_(0, CALIBRATION_BINS - 1), CALIBRATION_BINS
    ) * scored.unsqueeze(-1)
    return Tally(
        loss=losses.sum(dtype=torch.float64),
        text_loss=(losses * text).sum(dtype=torch.float64),
        scored=scored.sum(),
        text=text.sum(),
        recall_right=(right & answers).sum(),
        recall=answers.sum(),
        confidence=(bins * confidence.unsqueeze(-1)).sum((0, 1), dtype=torch.float64),
        right=(bins * right.unsqueeze(-1)).sum((0, 1)),
        filled=bins.sum((0, 1)),
    )


def compute_metrics(sums: Tally, bytes_per_token: float) -> dict[str, float]:
    """Return the metrics of a tally by name.

    `bits_per_byte` is present with text targets, `recall_accuracy` with recall answers.
    """
    scored = max(1, int(sums.scored))
    loss = float(sums.loss) / scored
    gaps = (sums.right - sums.confidence).abs()  # n_b |accuracy_b - confidence_b|, eq. (5)
    metrics = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # eq. (2); exp overflows a float above 709
        "calibration_error": float(gaps.sum()) / scored,
    }
    if int(sums.text):
        metrics["bits_per_byte"] = (
            float(sums.text_loss) / int(sums.text) / math.log(2.0) / bytes_per_token
        )  # eq. (3)
    if int(sums.recall):
        metrics["recall_accuracy"] = int(sums.recall_right) / int(sums.recall)  # eq. (4)
    return metrics


def gini(utilisation: Tensor) -> float:
    """Return the Gini coefficient of a utilisation (layer, expert), eq. (6).

    It is 0 for equal use and approaches 1 when one expert has all tokens.
    """
    use = utilisation.double()
    spread = (use.unsqueeze(-1) - use.unsqueeze(-2)).abs().mean((-1, -2))
    return float((spread / (2.0 * use.mean(-1).clamp_min(1e-12))).mean())


def dead_fraction(utilisation: Tensor) -> float:
    """Return the share of experts with less than DEAD_SHARE of an even share, eq. (7)."""
    use = utilisation.double()
    return float((use < DEAD_SHARE * use.mean(-1, keepdim=True)).double().mean())
