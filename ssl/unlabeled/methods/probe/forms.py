"""Forms of the features of a frozen network: its vector, class tokens of several blocks, the mean patch token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlabeled.backbones.intermediate import outputs

_CLOSE = 1e-4  # of the largest number of the network's vector


def spread_blocks(depth: int) -> list[int]:
    """Return the places of four evenly spaced blocks of `depth`, the last among them; fewer where some coincide.

    round(depth / 4), round(depth / 2), round(3 depth / 4) and depth - 1, halves to even (arXiv 2408.01031, its code).
    """
    return sorted({min(round(depth * quarter / 4), depth - 1) for quarter in (1, 2, 3)} | {depth - 1})


class Forms(nn.Module):
    """The features of images in every form that a network has, of one pass: [b, 3, S, S] -> {form: [b, F]}.

    A network whose vector is the class token of its last block after the last norm has four: `last`, that vector;
    `four`, the class tokens of four blocks (see `spread_blocks`), the norm applied to each; and both with the mean
    patch token of the last block behind them. Any other network has one, its `vector`. size: of a random image that
    tells which kind it is, in pixels.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        depth = len(getattr(network, "blocks", ()))
        self.blocks = [f"blocks.{place}" for place in spread_blocks(depth)] if depth else []
        self.prefix = getattr(network, "num_prefix_tokens", 1)  # the class token, and registers
        if self.blocks and not self._gives_its_class_token(size):
            self.blocks = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features by form."""
        if not self.blocks:
            return {"vector": self.network(x)}
        tokens = [self._normed(found) for found in outputs(self.network, self.blocks, x).values()]
        last, patches = tokens[-1][:, 0], tokens[-1][:, self.prefix :].mean(1)
        four = torch.cat([found[:, 0] for found in tokens], 1)
        return {"last": last, "last+mean": torch.cat([last, patches], 1),
                "four": four, "four+mean": torch.cat([four, patches], 1)}

    def _normed(self, tokens: Tensor) -> Tensor:
        """Return tokens [b, T, C] after the last norm, which timm keeps in either of two places."""
        for name in ("norm", "fc_norm"):
            tokens = getattr(self.network, name, nn.Identity())(tokens)
        return tokens

    @torch.no_grad()
    def _gives_its_class_token(self, size: int) -> bool:
        x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        x = x.to(next(self.network.parameters()))
        found = outputs(self.network, self.blocks[-1:], x, whole=True)
        tokens, vector = found[self.blocks[-1]], found[""]
        if tokens.ndim != 3 or tokens.shape[2:] != vector.shape[1:]:
            return False
        return bool((self._normed(tokens)[:, 0] - vector).abs().max() <= _CLOSE * vector.abs().max())
