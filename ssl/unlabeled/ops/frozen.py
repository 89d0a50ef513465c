"""A network that is never trained, such as a teacher or the backbone under a probe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.errors import UserError


class Frozen(nn.Module):
    """Holds a network in evaluation mode without gradient; a checkpoint keeps the hash of its weights in their place.

    The network is no sub-module: it has no part in `parameters`, in DDP or in `state_dict`, but moves with `to`.
    Loading a state whose hash differs raises UserError, which names `source`.
    """

    digest: Tensor
    _held: nn.Module

    def __init__(self, network: nn.Module, source: str) -> None:
        super().__init__()
        self.source = source
        self.__dict__["_held"] = network.requires_grad_(False).eval()  # past nn.Module, which would register it
        self.register_buffer("digest", weights_digest(network))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """Return what the network gives for x."""
        return self._held(x)

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


def weights_digest(network: nn.Module) -> Tensor:
    """Return the SHA-256 of all names, shapes and values, uint8 [32]."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(total.digest()), dtype=torch.uint8)
