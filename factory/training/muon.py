"""The Muon optimizer, with AdamW for parameters that Muon does not suit.

Muon (Jordan et al., 2024) replaces the gradient momentum of a weight matrix by the nearest semi-orthogonal matrix, so
that every direction of the matrix is updated at the same rate. On the embedded text-to-image model, it reached in 600
steps what AdamW reached in 2,000 (`docs/log.md`). `torch.optim.Muon` only supports two-dimensional weights, and nearly
all weights here are convolutions; hence this implementation.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from factory.training.precision import bfloat16_is_faster

_MOMENTUM = 0.95
_ADAM_BETAS = (0.9, 0.99)
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: steep at zero, and close to 1 everywhere after five iterations."""
_NEWTON_SCHULZ_STEPS = 5


def muon_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of `model` as the two groups of `Muon`.

    Muon updates matrices and convolutions. AdamW updates embeddings, norms and biases, and also the first and the last
    convolution, whose few input or output channels are pixels or latents rather than features.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    outer = {id(module.weight) for module in (*convolutions[:1], *convolutions[-1:])}
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for weight in model.parameters():
        suits_muon = weight.ndim >= 2 and id(weight) not in outer and id(weight) not in embedded
        (matrices if suits_muon else others).append(weight)
    return [
        {"params": matrices, "muon": True, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": others, "muon": False, "lr": learning_rate, "weight_decay": 0.0},
    ]


class Muon(torch.optim.Optimizer):
    """Muon for the groups marked `muon`, AdamW for the others, with one learning rate for both.

    The orthogonal update of a (rows, columns) matrix is scaled by 0.2 sqrt(max(rows, columns)), which matches the
    root mean square of an AdamW update (Liu et al., 2025, section 2.2). A convolution is treated as a matrix of
    (out, in * height * width).
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"muon": False, "lr": 1e-3, "weight_decay": 0.0, "momentum": _MOMENTUM})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon(weight, weight.grad, group) if group["muon"] else self._adam(weight, weight.grad)
                weight.add_(update, alpha=-group["lr"])

    def _muon(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(momentum, group["momentum"])
        matrix = nesterov.reshape(len(weight), -1)
        scale: float = 0.2 * max(matrix.shape) ** 0.5
        return scale * orthogonalized(matrix).reshape(weight.shape).to(weight.dtype)

    def _adam(self, weight: Tensor, gradient: Tensor) -> Tensor:
        beta1, beta2 = _ADAM_BETAS
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(weight), torch.zeros_like(weight)
        first: Tensor = state["first"].lerp_(gradient, 1 - beta1)
        second: Tensor = state["second"].lerp_(gradient.square(), 1 - beta2)
        state["step"] += 1
        step = float(state["step"])
        spread = (second / (1 - beta2**step)).sqrt() + 1e-8
        update: Tensor = first / spread.mul_(1 - beta1**step)
        return update


def orthogonalized(matrix: Tensor) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix of (rows, columns), by Newton-Schulz iteration.

    Computed in bfloat16 on devices with fast bfloat16 multiplication, else in float32. The iteration corrects its own
    rounding errors.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16 if bfloat16_is_faster(matrix.device.type) else torch.float32)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
