"""Random depth and dropout drawn for the global batch: an image's masks do not depend on the number of processes.

Every call of such a layer takes one number from torch's global generator on the CPU, which the engine seeds alike on
all processes before `forward`. The mask of a row is a function of that number, of the row's place in the global batch
and of the place in the row, so each process draws its own rows only, and every device the same ones. Gradient
checkpointing puts the global generator back before it recomputes, hence meets the same masks.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from timm.layers import drop
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torchvision import ops as vision

from unlabeled.errors import UserError
from unlabeled.ops.machine.memory import to_device
from unlabeled.ops.random import uniforms

# one draw of the global generator; uniforms of the rows are functions of it
_DRAWS = 2**62
# odd constants of MurmurHash3's finaliser and the golden ratio, as int32
_MIX1, _MIX2, _GOLDEN = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32, 0x9E3779B9 - 2**32


class Rows:
    """Which rows of the global batch this process holds in the forward pass that has begun.

    A network's input is one view of the method, or several behind one another in the order in which `views` gives them.
    A view of m rows is part `part` of `parts` (micro-batches x processes, the former outside) of a view of the batch.
    """

    def __init__(self) -> None:
        self.views: tuple[int, ...] = ()  # rows of every view, in the order of `views`
        self.part, self.parts = 0, 1

    def begin(self, views: Mapping[str, Tensor], part: int, parts: int) -> None:
        """Begin a forward pass on these views; those of images [m, C, H, W] and clips count, all if there are none."""
        images = [x for x in views.values() if x.ndim >= 4 and x.is_floating_point()]
        self.views = tuple(len(x) for x in images or views.values() if x.ndim)
        self.part, self.parts = part, parts

    def numbers(self, rows: int, inner: int = 1) -> np.ndarray:
        """Return the places in the global batch of a tensor's rows, int64 [rows]; inner: consecutive rows of one image.

        inner: 0 for rows that belong to the network, such as places of a table, and are the same for all images. Raises
        UserError for rows that are no views.
        """
        if inner == 0:
            return np.arange(rows)
        parts: list[np.ndarray] = []
        start = 0
        for length in self._lengths(rows, inner):
            parts.append(start + self.part * length + np.arange(length))
            start += self.parts * length
        numbers: np.ndarray = np.concatenate(parts)
        return (numbers[:, None] * inner + np.arange(inner)).reshape(-1)

    def _lengths(self, rows: int, inner: int) -> tuple[int, ...]:
        images, rest = divmod(rows, inner)
        if not self.views:  # outside of a training run: the rows are all there are
            return (images,)
        fitting = _selections(self.views, images)
        if len(fitting) != 1 or rest or not rows:
            sizes = " and ".join(f"{count} of {length} rows" for length, count in Counter(self.views).items())
            raise UserError(
                f"random depth or dropout met {rows} rows, which are not clearly views of this process ({sizes}); call "
                "the network on whole views, one or several behind one another, or set its drop rates to 0"
            )
        return fitting[0]


@functools.lru_cache(64)  # every layer asks in every pass
def _selections(lengths: tuple[int, ...], total: int) -> list[tuple[int, ...]]:
    """Return the different sequences with the sum `total` that are left of `lengths` if some of them are left out."""
    chosen: set[tuple[int, ...]] = {()}
    for length in lengths:
        chosen |= {(*head, length) for head in chosen if sum(head) + length <= total}
    return [sequence for sequence in chosen if sum(sequence) == total]


class FromGlobalBatch(nn.Module):
    """What the layers share; each is a layer of torch or timm that keeps its name, and whose copies are plain again.

    rows: of the method that it belongs to. inner: rows that it meets per image, such as windows (see
    `Rows.numbers`). recorded: while a network is tried, the shapes that each layer met.
    """

    rate: ClassVar[str] = "p"  # the name of its probability
    rows: Rows
    inner: int = 1
    recorded: ClassVar[dict[int, list[tuple[int, ...]]] | None] = None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return what makes the plain layer: exports and EMA copies carry nothing of the training."""
        kept = {key: value for key, value in self.__dict__.items() if key not in ("rows", "inner")}
        return object.__new__, (PLAIN[type(self)],), kept

    def _get_name(self) -> str:
        return PLAIN[type(self)].__name__

    def forward(self, x: Tensor) -> Any:
        """Return x where nothing is dropped: in evaluation, and for a rate of 0."""
        if not self.training or not getattr(self, self.rate):
            return self.nothing(x)
        if FromGlobalBatch.recorded is not None:
            FromGlobalBatch.recorded.setdefault(id(self), []).append(tuple(x.shape))
            return self.nothing(x)
        return self.dropped(x)

    def nothing(self, x: Tensor) -> Any:
        """Return what the layer gives where it drops nothing."""
        return x

    def dropped(self, x: Tensor) -> Any:
        """Return x with random parts of it zero."""
        raise NotImplementedError

    @torch.compiler.disable
    def uniforms(self, x: Tensor, count: int = 1, rows: np.ndarray | None = None) -> Tensor:
        """Return numbers in [0, 1), float64 [n, count], on the device of x: one row per row of x, or of `rows`."""
        draw = int(torch.randint(_DRAWS, ()))
        rows = self.rows.numbers(len(x), self.inner) if rows is None else rows
        return to_device(torch.from_numpy(uniforms(rows, count, draw)), x.device)

    def kept(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return in which of `shape` places of every row nothing is dropped, bool [n, *shape].

        Hashed on the device from 64 bits per row, since the places of a layer's input are many.
        """
        count = int(np.prod(shape))
        keys = (self.uniforms(x, 2) * 2.0**32 - 2.0**31).to(torch.int32)
        h = torch.arange(count, dtype=torch.int32, device=x.device) * _GOLDEN + keys[:, :1]
        h *= keys[:, 1:] | 1
        h ^= (h >> 16) & 0xFFFF
        h *= _MIX1
        h ^= (h >> 13) & 0x7FFFF
        h *= _MIX2  # its high bits, which are compared, depend on all bits before
        return (h >= min(round(getattr(self, self.rate) * 2**32), 2**32 - 1) - 2**31).view(len(x), *shape)


class DropPath(FromGlobalBatch, drop.DropPath):
    """timm's random depth: whole rows are zero."""

    rate = "drop_prob"
    drop_prob: float
    scale_by_keep: bool

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled by 1 / keep if the layer says so."""
        return _rows(x, self.uniforms(x), self.drop_prob, scaled=self.scale_by_keep)


class StochasticDepth(FromGlobalBatch, vision.StochasticDepth):
    """torchvision's random depth in its mode `row`."""

    p: float

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled by 1 / keep."""
        return _rows(x, self.uniforms(x), self.p)


class Dropout(FromGlobalBatch, nn.Dropout):
    """Single numbers are zero."""

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled by 1 / keep."""
        return _scaled(x, self.kept(x, tuple(x.shape[1:])), self.p)


class _Channels(FromGlobalBatch):
    """Whole channels are zero; input [n, C, ...], never without the first dimension."""

    p: float
    dimensions: ClassVar[int]

    def channels(self, x: Tensor) -> Tensor:
        if x.ndim != self.dimensions:
            raise UserError(f"{self._get_name()} needs {self.dimensions} dimensions, rows first, given {list(x.shape)}")
        return self.kept(x, (x.shape[1],)).view(*x.shape[:2], *[1] * (x.ndim - 2))

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled by 1 / keep."""
        return _scaled(x, self.channels(x), self.p)


class Dropout1d(_Channels, nn.Dropout1d):
    """Input [n, C, L]."""

    dimensions = 3


class Dropout2d(_Channels, nn.Dropout2d):
    """Input [n, C, H, W]."""

    dimensions = 4


class Dropout3d(_Channels, nn.Dropout3d):
    """Input [n, C, T, H, W]."""

    dimensions = 5


class AlphaDropout(FromGlobalBatch, nn.AlphaDropout):
    """Single numbers become the lower limit of SELU; mean and variance stay (arXiv 1706.02515 section 2)."""

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled and shifted."""
        return _alpha(x, self.kept(x, tuple(x.shape[1:])), self.p)


class FeatureAlphaDropout(FromGlobalBatch, nn.FeatureAlphaDropout):
    """The same of whole channels; input [n, C, ...]."""

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled and shifted."""
        return _alpha(x, self.kept(x, (x.shape[1],)).view(*x.shape[:2], *[1] * (x.ndim - 2)), self.p)


class DropBlock2d(FromGlobalBatch, drop.DropBlock2d):
    """timm's DropBlock (arXiv 1810.12890): squares of the map are zero; scaled by what the global batch keeps."""

    rate = "drop_prob"
    drop_prob: float
    gamma_scale: float
    block_size: int
    couple_channels: bool
    scale_by_keep: bool

    def dropped(self, x: Tensor) -> Tensor:
        """Return x [n, C, H, W] without the squares."""
        n, channels, height, width = x.shape
        kh, kw = min(self.block_size, height), min(self.block_size, width)
        places = (height - kh + 1) * (width - kw + 1)
        gamma = self.gamma_scale * self.drop_prob * height * width / (kh * kw) / places
        depth = 1 if self.couple_channels else channels
        rows = self.rows.numbers(n, self.inner)
        everywhere = self.uniforms(x, depth * height * width, np.arange(n * self.rows.parts))  # the scale is all rows'
        centres = (everywhere < gamma).float().view(-1, depth, height, width)
        blocks = nn.functional.max_pool2d(centres, (kh, kw), 1, (kh // 2, kw // 2))
        kept = 1 - blocks[..., (kh + 1) % 2 :, (kw + 1) % 2 :]
        scale = kept.numel() / (kept.sum() + 1e-7) if self.scale_by_keep else 1.0
        return x * (kept[to_device(torch.from_numpy(rows), x.device)] * scale).to(x.dtype)


class _Patches(FromGlobalBatch):
    """A part of an image's tokens goes on, the prefix tokens always; input [n, T, d]."""

    rate = "prob"
    prob: float
    num_prefix_tokens: int
    ordered: bool

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that are kept and their places among those that are no prefix, int64 [n, k]."""
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        length = patches.shape[1]
        places = self.uniforms(x, length).argsort(stable=True, dim=1)[:, : max(1, int(length * (1 - self.prob)))]
        places = places.sort(1)[0] if self.ordered else places
        kept = patches.gather(1, places[..., None].expand(-1, -1, *patches.shape[2:]))
        return torch.cat([prefix, kept], 1), places


class PatchDrop(_Patches, PatchDropout):
    """timm's PatchDropout (arXiv 2208.07220)."""

    def dropped(self, x: Tensor) -> Tensor:
        """Return the tokens that are kept."""
        return self.chosen(x)[0]


class PatchDropWithIndices(_Patches, PatchDropoutWithIndices):
    """The same with the places of the tokens, None where all are kept."""

    def nothing(self, x: Tensor) -> tuple[Tensor, None]:
        """Return all tokens."""
        return x, None

    def dropped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that are kept and their places."""
        return self.chosen(x)


class HeadDropout(FromGlobalBatch, nn.Identity):
    """Dropout of the features that a network gives, in the place of a classifier that it has not."""

    p: float

    def dropped(self, x: Tensor) -> Tensor:
        """Return x, scaled by 1 / keep."""
        return _scaled(x, self.kept(x, tuple(x.shape[1:])), self.p)


_OURS: dict[type[nn.Module], type[FromGlobalBatch]] = {
    drop.DropPath: DropPath,
    drop.DropBlock2d: DropBlock2d,
    PatchDropout: PatchDrop,
    PatchDropoutWithIndices: PatchDropWithIndices,
    vision.StochasticDepth: StochasticDepth,
    nn.Dropout: Dropout,
    nn.Dropout1d: Dropout1d,
    nn.Dropout2d: Dropout2d,
    nn.Dropout3d: Dropout3d,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: FeatureAlphaDropout,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    **{ours: plain for plain, ours in _OURS.items()},
    HeadDropout: nn.Identity,
}


def convert(module: nn.Module, rows: Rows) -> None:
    """Make every layer of `module` that drops at random one that draws for the global batch, `rows` being its part.

    Only classes change: names, state and hooks stay. What draws in other ways stays as it is.
    """
    for child in module.modules():
        ours = _OURS.get(type(child))
        if ours is not None and "forward" not in vars(child) and _has_form(child):
            adopt(child, ours, rows)


def adopt(layer: nn.Module, kind: type[FromGlobalBatch], rows: Rows) -> None:
    """Turn one layer into `kind`."""
    layer.__class__ = kind
    layer.rows = rows  # type: ignore[assignment]


def _has_form(layer: nn.Module) -> bool:
    """Return whether the layer does what ours does: DropBlock's noise and torchvision's whole batches have no form."""
    return not getattr(layer, "with_noise", False) and getattr(layer, "mode", "row") == "row"


def _rows(x: Tensor, uniforms: Tensor, p: float, *, scaled: bool = True) -> Tensor:
    kept = (uniforms >= p).view(-1, *[1] * (x.ndim - 1))
    return _scaled(x, kept, p) if scaled else x * kept.to(x.dtype)


def _scaled(x: Tensor, kept: Tensor, p: float) -> Tensor:
    return x * (kept.to(x.dtype) / (1 - p) if p < 1 else kept.to(x.dtype))


def _alpha(x: Tensor, kept: Tensor, p: float) -> Tensor:
    limit = -1.7580993408473766  # -scale * alpha of SELU
    scale = ((1 - p) * (1 + p * limit**2)) ** -0.5 if p < 1 else 0.0
    return scale * torch.where(kept, x, limit) - scale * p * limit
