"""One training step of a bare model, for tests that compare whole runs."""

import torch
import torch.nn.functional as F


def train_step(model, optimizer, tokens, noise, step):
    """Train on (row, token) `tokens`, each predicting its next; returns the loss before the step."""
    out = model(tokens[:, :-1], noise)
    loss = F.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    (loss + out.balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.apply_plasticity([out.activity], step, optimizer)
    return loss.item()
