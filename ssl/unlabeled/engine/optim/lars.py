"""LARS (arXiv 1708.03888) with the switches in which published training codes differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Tensors = tuple[Tensor, ...] | list[Tensor]


class LARS(Optimizer):
    """Momentum SGD whose step is scaled per tensor by eta |p| / |g|; `adapt` of a parameter group switches this off.

    The defaults are SimCLR's: g <- g + wd p; r = eta |p| / |g| (1 if either is 0); v <- m v + lr r g; p <- p - v.
    lr_in_momentum=False keeps lr out of v. norm: "decayed" |g + wd p|; "sum" |g| + wd |p|; "update": the norm of the
    momentum update, which is then what is scaled. eps is added to the denominator. Tensors are also adapted at wd = 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        adapt: bool = True,
        eta: float = 0.001,
        lr_in_momentum: bool = True,
        norm: str = "decayed",
        eps: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                nesterov=nesterov,
                adapt=adapt,
                eta=eta,
                lr_in_momentum=lr_in_momentum,
                norm=norm,
                eps=eps,
            ),
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; there is no use for a closure."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params, [p.grad for p in params])

    def _step_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        buffers = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
        decay, lr, late = group["weight_decay"], group["lr"], group["norm"] == "update"
        update: Tensors = torch._foreach_add(grads, params, alpha=decay) if decay else grads
        if group["adapt"] and not late:
            update = torch._foreach_mul(update, self._ratios(group, params, grads, update))
        if group["lr_in_momentum"]:
            update = torch._foreach_mul(update, lr)
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, update)
        update = torch._foreach_add(update, buffers, alpha=group["momentum"]) if group["nesterov"] else buffers
        if group["adapt"] and late:
            update = torch._foreach_mul(update, self._ratios(group, params, grads, update))
        torch._foreach_add_(params, update, alpha=-1.0 if group["lr_in_momentum"] else -lr)

    def _ratios(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], update: Tensors
    ) -> list[Tensor]:
        p_norm = torch.stack(torch._foreach_norm(params))
        if group["norm"] == "sum":
            g_norm = torch.stack(torch._foreach_norm(grads)) + group["weight_decay"] * p_norm
        else:
            g_norm = torch.stack(torch._foreach_norm(update))
        ratio = group["eta"] * p_norm / (g_norm + group["eps"])
        return list(torch.where((p_norm > 0) & (g_norm > 0), ratio, torch.ones_like(ratio)).unbind())
