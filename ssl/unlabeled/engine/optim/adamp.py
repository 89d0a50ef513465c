"""AdamP (arXiv 2006.08217): Adam without the part of a step that only makes scale-invariant weights longer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdamP(Optimizer):
    """AdamW whose step loses its part along weights that their gradient is orthogonal to (arXiv 2006.08217 section 4).

    Weights count as scale-invariant where |cos(g, w)| < delta / sqrt(numbers): every output channel of a tensor by
    itself or, failing that, the tensor as a whole. Their weight decay is multiplied by `wd_ratio`. Tensors of one
    axis are never projected. The published package decides on the CPU; here the choice stays on the device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                weight_decay=weight_decay,
                nesterov=nesterov,
                eps=eps,
                delta=delta,
                wd_ratio=wd_ratio,
            ),
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; there is no use for a closure."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, eps, decay, (beta1, beta2) = group["lr"], group["eps"], group["weight_decay"], group["betas"]
        grads, states = [p.grad for p in params if p.grad is not None], [self._state(p) for p in params]
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        for p, g, state in zip(params, grads, states, strict=True):
            first, second = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
            mean = beta1 * state["exp_avg"] + (1 - beta1) * g if group["nesterov"] else state["exp_avg"]
            update = mean / ((state["exp_avg_sq"] / second).sqrt_().add_(eps))
            factor: Tensor | float = 1.0
            if p.ndim > 1:
                update, factor = _projected(p, g, update, group)
            if decay:
                p.mul_(1 - lr * decay * factor)
            p.add_(update, alpha=-lr / first)

    def _state(self, p: Tensor) -> dict[str, Any]:
        """Return the moments of a parameter, and which step this is."""
        state: dict[str, Any] = self.state[p]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        return state


def _projected(p: Tensor, g: Tensor, update: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the update that is left, and the factor on weight decay, 0-d."""
    chosen, factor = update, p.new_ones(())
    for rows in (1, len(p)):  # the later choice, output channels, wins
        weight, grad = p.reshape(rows, -1), g.reshape(rows, -1)
        cosine = torch.cosine_similarity(grad, weight, dim=1, eps=group["eps"]).abs()
        invariant = cosine.max() < group["delta"] / weight.shape[1] ** 0.5
        unit = weight / (weight.norm(dim=1, keepdim=True) + group["eps"])
        flat = update.reshape(rows, -1)
        rest = flat - unit * (unit * flat).sum(1, keepdim=True)
        chosen = torch.where(invariant, rest.view(p.shape), chosen)
        factor = torch.where(invariant, group["wd_ratio"], factor)
    return chosen, factor
