"""Which operations run, and which of them have no deterministic kernel on a GPU: with `train.deterministic` they raise.

The names are those of which `torch.use_deterministic_algorithms` says so.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

RAISING = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d",
    "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d_forward",
    "_ctc_loss_backward", "put_", "histc", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
}  # fmt: skip


class Recorded(TorchDispatchMode):
    """Keeps the names of operations, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().removeprefix("aten::").partition(".")[0])
        return func(*args, **(kwargs or {}))

    def raising(self) -> list[str]:
        """Return those that raise under `train.deterministic`."""
        return sorted(self.names & RAISING)
