"""BatchNorm whose statistics cover the batch of all processes, on any device.

`torch.nn.SyncBatchNorm` refuses tensors on the CPU, so on gloo this one takes its place; on a GPU torch's is faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import norm_act
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from unlabeled.errors import UserError
from unlabeled.ops.distributed import gather, sum_over_ranks, world
from unlabeled.ops.norms import keeps_statistics
from unlabeled.ops.precision import at_least_float32


def convert(module: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm of `module`, which may be one itself, a synchronised one for `device`; return `module`.

    Only classes change: each norm stays the same object, with its parameters, buffers, hooks and, where it is fused
    with them (timm), dropout and activation. Raises UserError for one that no synchronised class stands for; nothing
    is changed then.
    """
    classes = _FOR_CUDA if device.type == "cuda" else _FOR_ANY
    for name, child in module.named_modules():
        if _has_no_synchronised_form(child, classes):
            kind = getattr(child, "original_name", type(child).__name__)  # the former: what torch.jit has compiled
            raise UserError(f"the statistics of the norm '{name or kind}', a {kind}, cannot be taken over several "
                            "processes: start one process, choose another network or, in pretraining, set "
                            "train.sync_bn=false")
    for child in module.modules():
        if type(child) in classes:
            child.__class__ = classes[type(child)]
            child.process_group = None  # type: ignore[assignment]  # torch's class looks for it
    return module


def _has_no_synchronised_form(module: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]) -> bool:
    """Return whether the module normalises by its own process's batch and would go on to do so."""
    if type(module) in classes:
        return "forward" in vars(module)  # another function in place of its class's
    if isinstance(module, torch.jit.ScriptModule):
        kind = module.original_name
        return "BatchNorm" in kind or (keeps_statistics(module) and "InstanceNorm" not in kind)
    if type(module) in classes.values() or isinstance(module, SyncBatchNorm | _InstanceNorm):
        return False
    return isinstance(module, _BatchNorm) or keeps_statistics(module)


def unsynchronised_buffers(module: nn.Module) -> list[Tensor]:
    """Return the running statistics that may differ between ranks."""
    synchronised = (SyncBatchNorm, nn.SyncBatchNorm)
    return [
        b
        for m in module.modules()
        if keeps_statistics(m) and not isinstance(m, synchronised)
        for b in m.buffers(recurse=False)
    ]


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes; input [N, C, ...], N may differ between ranks.

    The running variance is the unbiased one, as everywhere in torch.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x by the statistics of all ranks in training, by the running ones in evaluation."""
        if not self.training or world() == 1:
            return super().forward(x)
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, var, count)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = var * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class SyncBatchNormAct(SyncBatchNorm):
    """The same, followed by the dropout and the activation of timm's BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, then drop and activate."""
        activated: Tensor = self.act(self.drop(super().forward(x)))
        return activated


_FOR_CUDA: dict[type[nn.Module], type[nn.Module]] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), nn.SyncBatchNorm),
    norm_act.BatchNormAct2d: norm_act.SyncBatchNormAct,
}
_FOR_ANY: dict[type[nn.Module], type[nn.Module]] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), SyncBatchNorm),
    **dict.fromkeys((norm_act.BatchNormAct2d, norm_act.SyncBatchNormAct), SyncBatchNormAct),
}


class _Normalise(torch.autograd.Function):
    """Means and squared deviations of the ranks are combined exactly (Chan et al. 1979), not by sums of squares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        wide = at_least_float32(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        channels, count = x.shape[1], x.numel() // x.shape[1]
        # in float64 and rounded once, as torch's own does on a CPU: else the ranks drift from a single process
        near = wide.mean(dims)
        centred = wide - near.view(shape)
        shift = centred.sum(dims, dtype=torch.float64) / count
        deviation = centred.square().sum(dims, dtype=torch.float64) - count * shift**2
        row = torch.cat([shift.new_tensor([count]), near + shift, deviation])
        counts, means, deviations = gather(row[None]).split([1, channels, channels], 1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = (deviations + counts * (means - mean) ** 2).sum(0) / total
        mean, var, total = (v.to(wide.dtype) for v in (mean, var, total))
        ctx.save_for_backward(x, weight, bias, mean, (var + eps).rsqrt(), total)
        scale, offset = (None if v is None else v.to(wide.dtype) for v in (weight, bias))
        y = F.batch_norm(wide, mean, var, scale, offset, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, var, total)
        return y.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, total = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.dim() - 2)
        dims = [d for d in range(x.dim()) if d != 1]
        dy = dy.to(mean.dtype)
        unit = (x.to(mean.dtype) - mean.view(shape)) * invstd.view(shape)
        local = torch.stack([dy.sum(dims), (dy * unit).sum(dims)])
        both = sum_over_ranks(local.clone()) / total
        scale = invstd if weight is None else invstd * weight
        dx = (dy - both[0].view(shape) - unit * both[1].view(shape)) * scale.view(shape)
        grad_weight = None if weight is None else local[1].to(weight.dtype)
        grad_bias = None if bias is None else local[0].to(bias.dtype)
        return dx.to(x.dtype), grad_weight, grad_bias, None
