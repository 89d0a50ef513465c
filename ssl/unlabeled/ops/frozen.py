"""What is never trained: a whole network, such as a teacher or the backbone under a probe, and idle parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.ops.norms import tracking_batchnorms


class Frozen(nn.Module):
    """Holds a network in evaluation mode without gradient; a checkpoint keeps the hash of its weights in their place.

    The network is no sub-module: it has no part in `parameters`, in DDP or in `state_dict`, but moves with `to`.
    Loading a state whose hash differs raises UserError, which names `source`.

    by_batch: its BatchNorms normalise by the statistics of what they see and not by the running ones, which stay as
    they are; everything else, such as dropout, is in evaluation mode.
    """

    digest: Tensor
    _held: nn.Module

    def __init__(self, network: nn.Module, source: str, *, by_batch: bool = False) -> None:
        super().__init__()
        self.source, self.by_batch = source, by_batch
        self.__dict__["_held"] = network.requires_grad_(False).eval()  # past nn.Module, which would register it
        self.register_buffer("digest", _weights_digest(network))
        if by_batch:
            for norm in tracking_batchnorms(network):
                norm.training = True  # and not train(), which would switch on the dropout that is fused with some
                norm.track_running_stats = False

    @torch.no_grad()
    def forward(self, x: Tensor, blocks: Sequence[slice] = (slice(None),)) -> Any:
        """Return what the network gives for x; by_batch: for every block of its rows apart, which may be several."""
        if len(blocks) == 1 or not self.by_batch:
            return self._held(x)
        return torch.cat([self._held(x[rows]) for rows in blocks])

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self._held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self._held._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}digest")
        if stored is not None and not torch.equal(stored.cpu(), self.digest.cpu()):
            raise UserError(f"the checkpoint was made with other weights of the frozen network '{self.source}'; "
                            "put the former ones back, or start anew with fresh=true")
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_unreached(module: nn.Module, outputs: Iterable[Tensor]) -> None:
    """Freeze the trainable parameters of `module` that none of its `outputs` depends on."""
    params = [p for p in module.parameters() if p.requires_grad]
    reached = torch.autograd.grad([x.sum() for x in outputs], params, allow_unused=True)
    for p, grad in zip(params, reached, strict=True):
        p.requires_grad_(grad is not None)


def _weights_digest(network: nn.Module) -> Tensor:
    """Return the SHA-256 of all names, shapes and values, uint8 [32]."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(total.digest()), dtype=torch.uint8)
