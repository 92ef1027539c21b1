"""Muon for the matrices, Adam for everything else: several times fewer steps than Adam alone at this size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Muon:
    """Momentum, with each matrix's update made orthogonal (Keller Jordan's Muon: five Newton-Schulz steps)."""

    def __init__(self, matrices: list[nn.Parameter], *, momentum: float = 0.95) -> None:
        self.matrices = matrices
        self.momentum = momentum
        self.buffers = [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, rate: float) -> None:
        with torch.no_grad():
            self._update(rate)

    def _update(self, rate: float) -> None:
        for matrix, buffer in zip(self.matrices, self.buffers, strict=True):
            assert matrix.grad is not None
            buffer.lerp_(matrix.grad, 1 - self.momentum)
            update = orthogonal(matrix.grad.lerp(buffer, self.momentum))
            matrix.mul_(1 - rate * 0.05)
            matrix.add_(update, alpha=-rate * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)
            matrix.grad = None


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with all singular values about 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """Both optimizers under one schedule."""

    def __init__(self, model: nn.Module, *, muon_rate: float, adam_rate: float) -> None:
        parameters = list(model.named_parameters())
        matrices = [p for name, p in parameters if p.ndim == 2 and "embedding" not in name]
        others = [p for name, p in parameters if p.ndim != 2 or "embedding" in name]
        self.muon, self.muon_rate, self.adam_rate = Muon(matrices), muon_rate, adam_rate
        self.adam = torch.optim.Adam(others, lr=adam_rate, betas=(0.9, 0.98), eps=1e-10)

    def step(self, share: float) -> None:
        """One update with both rates at `share` of their peak."""
        self.muon.step(self.muon_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * share
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
