"""Metrics compared with values computed by hand or by a second implementation."""

from __future__ import annotations

import math

import pytest
import torch

from synaptune.training.metrics import compute_metrics, dead_fraction, gini, tally, training_loss


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 10, 7, generator=generator)
    targets = torch.randint(0, 7, (4, 10), generator=generator)
    recall = torch.zeros(4, 10, dtype=torch.bool)
    recall[2:, 5:] = True
    targets[2:, :5] = -100
    return logits, targets, recall


def test_loss_and_perplexity_are_those_of_the_scored_targets():
    logits, targets, recall = batch()
    metrics = compute_metrics(tally(logits, targets, recall), bytes_per_token=2.0)
    scored = targets >= 0
    expected = -torch.log_softmax(logits, -1)[scored].gather(1, targets[scored].unsqueeze(1)).mean()
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-6)
    assert metrics["loss"] == pytest.approx(float(training_loss(logits, targets)), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(float(expected)), rel=1e-6)


def test_bits_per_byte_counts_text_only():
    logits, targets, recall = batch()
    text = compute_metrics(tally(logits[:2], targets[:2], recall[:2]), 2.0)
    both = compute_metrics(tally(logits, targets, recall), 2.0)
    assert both["bits_per_byte"] == pytest.approx(text["loss"] / math.log(2) / 2)
    assert "recall_accuracy" not in text


def test_recall_accuracy_counts_answers_only():
    logits, targets, recall = batch()
    logits[recall] = torch.nn.functional.one_hot(targets[recall], 7) * 20.0
    logits[3, 9] = -logits[3, 9]
    assert compute_metrics(tally(logits, targets, recall), 1.0)["recall_accuracy"] == pytest.approx(
        9 / 10
    )


def test_the_sums_of_two_parts_add_up_to_those_of_the_whole():
    logits, targets, recall = batch()
    expected = compute_metrics(tally(logits, targets, recall), 1.0)
    parts = tally(logits[:1], targets[:1], recall[:1]).add(
        tally(logits[1:], targets[1:], recall[1:])
    )
    assert compute_metrics(parts, 1.0) == pytest.approx(expected)


def test_calibration_error_is_zero_for_true_probabilities_and_high_for_overconfident_ones():
    targets = torch.zeros(1, 100, dtype=torch.long)
    targets[:, 60:] = 1
    recall = torch.zeros(1, 100, dtype=torch.bool)
    calibrated = torch.tensor([0.6, 0.4]).log().expand(1, 100, 2)
    overconfident = torch.tensor([1.0 - 1e-6, 1e-6]).log().expand(1, 100, 2)
    assert compute_metrics(tally(calibrated, targets, recall), 1.0)[
        "calibration_error"
    ] == pytest.approx(0.0, abs=1e-6)
    assert compute_metrics(tally(overconfident, targets, recall), 1.0)[
        "calibration_error"
    ] == pytest.approx(0.4, abs=1e-5)


def test_gini_is_zero_for_equal_use_and_high_if_one_expert_is_used():
    assert gini(torch.full((2, 4), 0.25)) == pytest.approx(0.0)
    assert gini(torch.tensor([[1.0, 0.0, 0.0, 0.0]])) == pytest.approx(0.75)  # 1 - 1/E


def test_dead_experts_get_less_than_a_tenth_of_an_even_share():
    assert dead_fraction(
        torch.tensor([[0.5, 0.48, 0.02, 0.0], [0.25, 0.25, 0.25, 0.25]])
    ) == pytest.approx(2 / 8)
