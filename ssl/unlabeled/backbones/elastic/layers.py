"""The slicing rules that all elastic networks share: a layer that meets a narrower input works as a narrower layer.

arXiv 2408.01031 section 3.2, its code in mode "order": always the first channels. The width of a sub-network flows
through these layers with its activations: each takes the share of its channels that its input has. Linear layers and
convolutions are scaled by alpha = widest input / input, their biases are not. At full width every layer does exactly
what the class of torch does that it stands for. `narrowed` makes the plain layer that computes the same, for
extraction; on the meta device at first, since random weights that are then replaced take seconds.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unlabeled.errors import UserError


class Elastic(Protocol):
    """What the layers of this file offer; width: of the widest input, in channels."""

    width: int

    def narrowed(self, width: int) -> nn.Module:
        """Return the plain layer of torch for inputs of `width` channels, with weights of its own."""


class Linear(nn.Linear):
    """A linear layer whose channels are `groups_in` and `groups_out` runs, of each of which the first are taken.

    Queries, keys and values are three runs of outputs; the neighbours that are merged are four runs of inputs. fixed:
    the outputs are not sliced, as in a head.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, groups_in: int = 1, groups_out: int = 1,
                 fixed: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.width, self.groups_in, self.groups_out, self.fixed = inputs, groups_in, groups_out, fixed

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., outputs * share] for x [..., inputs * share]."""
        width = x.shape[-1]
        if width == self.in_features:
            return F.linear(x, self.weight, self.bias)
        weight, bias = self._slices(width)
        alpha = self.in_features / width
        if bias is None:
            return F.linear(x, weight) * alpha
        # alpha scales the product and not a copy of the weights
        product = torch.addmm(bias, x.reshape(-1, width), weight.T, alpha=alpha)
        return product.view(*x.shape[:-1], len(bias))

    def narrowed(self, width: int) -> nn.Linear:
        """Return the plain layer for inputs of `width` channels, scaled."""
        weight, bias = self._slices(width)
        plain = nn.Linear(width, len(weight), bias=bias is not None, device="meta")
        plain.weight = copied(weight * (self.in_features / width))
        if bias is not None:
            plain.bias = copied(bias)
        return plain

    def _slices(self, width: int) -> tuple[Tensor, Tensor | None]:
        outputs = self.out_features if self.fixed else self.out_features * width // self.in_features
        weight, bias = self.weight, self.bias
        if self.groups_in > 1:
            columns = rearrange(weight, "o (g i) -> o g i", g=self.groups_in)[:, :, : width // self.groups_in]
            weight = rearrange(columns, "o g i -> o (g i)")
        else:
            weight = weight[:, :width]
        return _first_rows(weight, outputs, self.groups_out), None if bias is None else _first_rows(bias, outputs,
                                                                                                  self.groups_out)


class LayerNorm(nn.LayerNorm):
    """Normalises over the channels that there are; they are `groups` runs, of each of which the first are taken."""

    def __init__(self, width: int, eps: float, *, groups: int = 1) -> None:
        super().__init__(width, eps)
        self.width, self.groups = width, groups

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., channels] normalised, scaled and shifted."""
        width = x.shape[-1]
        if width == self.normalized_shape[0]:
            return super().forward(x)
        return F.layer_norm(x, (width,), _first_rows(self.weight, width, self.groups),
                            _first_rows(self.bias, width, self.groups), self.eps)

    def narrowed(self, width: int) -> nn.LayerNorm:
        """Return the plain norm of `width` channels."""
        plain = nn.LayerNorm(width, self.eps, device="meta")
        plain.weight = copied(_first_rows(self.weight, width, self.groups))
        plain.bias = copied(_first_rows(self.bias, width, self.groups))
        return plain


class LayerScale(nn.Module):
    """A factor per channel (arXiv 2103.17239), as timm names it."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.width = width
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., channels] scaled."""
        return x * self.gamma[: x.shape[-1]]

    def narrowed(self, width: int) -> LayerScale:
        """Return the plain factors of `width` channels."""
        plain = LayerScale(width, 0.0)
        plain.gamma = copied(self.gamma[:width])
        return plain


class Conv2d(nn.Conv2d):
    """A convolution without bias, whose outputs are as many as the call says."""

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """Return [b, outputs, H, W] for x [b, channels, H, W]."""
        weight = self._slices(x.shape[1], outputs)
        return self._conv_forward(x, weight, None)

    def narrowed(self, width: int, outputs: int | None = None) -> nn.Conv2d:
        """Return the plain convolution of `width` channels, scaled."""
        weight = self._slices(width, outputs)
        shape: dict[str, Any] = {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}
        plain = nn.Conv2d(width, len(weight), **shape, bias=False, device="meta")
        plain.weight = copied(weight)
        return plain

    def _slices(self, width: int, outputs: int | None) -> Tensor:
        weight = self.weight if outputs is None else self.weight[:outputs]  # the gradient of a slice is a copy
        # a convolution copies a slice in any case, so the copy may as well be scaled
        return weight if width == self.in_channels else weight[:, :width] * (self.in_channels / width)


class GroupNorm(nn.GroupNorm):
    """Normalises the channels that there are in as many groups as at full width."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [b, channels, H, W] normalised, scaled and shifted."""
        width = x.shape[1]
        return F.group_norm(x, self.num_groups, self.weight[:width], self.bias[:width], self.eps)

    def narrowed(self, width: int) -> nn.GroupNorm:
        """Return the plain norm of `width` channels."""
        plain = nn.GroupNorm(self.num_groups, width, self.eps, device="meta")
        plain.weight, plain.bias = copied(self.weight[:width]), copied(self.bias[:width])
        return plain


def refuse_uneven(widths: tuple[int, ...], unit: int, name: str) -> None:
    """Raise UserError if a width is no multiple of `unit`, the channels of a head or the groups of a norm."""
    for width in widths:
        if width % unit:
            raise UserError(f"backbone.options.widths: {width} is no multiple of {unit}, {name}; "
                            f"{multiples_beside(width, unit)}")


def multiples_beside(value: int, unit: int) -> str:
    """Return in words which multiples of `unit`, above 0, are nearest to a value that is none."""
    low = value // unit * unit
    return f"the nearest ones are {low} and {low + unit}" if low else f"the smallest is {unit}"


def _first_rows(x: Tensor, rows: int, groups: int) -> Tensor:
    """Return the first rows / groups rows of every run of x [rows, ...]."""
    if groups == 1:
        return x[:rows]
    return rearrange(x, "(g r) ... -> g r ...", g=groups)[:, : rows // groups].flatten(0, 1)


def copied(x: Tensor) -> nn.Parameter:
    """Return a parameter of its own with the values of x."""
    return nn.Parameter(x.detach().clone(memory_format=torch.contiguous_format))
