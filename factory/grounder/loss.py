"""Losses of the grounding modules: means over the pixels and objects of a batch, even if processes share the batch."""

import torch
from torch import Tensor
from torch.nn import functional

from factory.dataset.masks import IGNORE
from factory.training.processes import mean_over_batch

_MASKED_LOGIT = -1e4


def competing_loss(logits: Tensor, labels: Tensor, found: Tensor, dice: float = 1.0) -> Tensor:
    """Cross-entropy over background and objects, plus soft dice of each object.

    `logits` (B, K, H, W), `labels` uint8 (B, H, W): 0 background, k the k-th class, 255 ignored; `found` bool (B, K).
    Classes that the detector did not find are left out, so their pixels only count as not belonging to other classes.
    """
    logits = logits.float().masked_fill(~found[:, :, None, None], _MASKED_LOGIT)
    # The background is an additional class with a logit of 0.
    with_background = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    total_loss = functional.cross_entropy(with_background, labels.long(), ignore_index=IGNORE, reduction="sum")
    loss = mean_over_batch(total_loss, (labels != IGNORE).sum())
    if not dice:
        return loss
    probabilities = with_background.softmax(1)[:, 1:]
    counted = (labels != IGNORE)[:, None]
    truth = _one_hot(labels, logits.shape[1])
    overlap = (probabilities * truth * counted).sum((2, 3))
    total = ((probabilities + truth) * counted).sum((2, 3))
    misses = 1 - (2 * overlap + 1) / (total + 1)
    return loss + mean_over_batch(dice * (misses * found).sum(), found.sum())


def binary_loss(logits: Tensor, labels: Tensor, found: Tensor) -> Tensor:
    """The paper's loss: binary cross-entropy of each found class (equation 3); shapes as in `competing_loss`."""
    truth = _one_hot(labels, logits.shape[1])
    counted = (labels != IGNORE)[:, None] & found[:, :, None, None]
    loss = functional.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return mean_over_batch((loss * counted).sum(), counted.sum())


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """float (B, K, H, W)."""
    numbers = torch.arange(1, classes + 1, device=labels.device)
    return (labels[:, None] == numbers[None, :, None, None]).float()
