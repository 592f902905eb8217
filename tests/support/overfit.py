"""A few training steps on one batch, to test that a task learns."""

from typing import Any

import torch


def losses_on_one_batch(task: Any, optimizer: torch.optim.Optimizer, steps: int, step: int = 0) -> list[float]:
    """The loss before each update, with the same two samples and the same noise every time."""
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)
        loss = task.loss(step, 2, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
