"""One training step of a model, for tests that compare complete runs."""

import torch
import torch.nn.functional as F


def train_step(model, optimizer, tokens, noise, step):
    """Train one step on `tokens` (row, token) and return the loss before the step."""
    out = model(tokens[:, :-1], noise)
    loss = F.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    (loss + out.balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.apply_plasticity([out.activity], step, optimizer)
    return loss.item()
