"""What a network says of an image, as one vector and as the cells of a grid, in one pass; and how grids are matched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.sizes import try_image
from unlabeled.errors import UserError
from unlabeled.ops.machine.compiler import features
from unlabeled.ops.precision import at_least_float32

SMALLEST = 2  # cells along a side of a grid; a single one is a pooled vector


@dataclass
class Seen:
    """What a network gives for b images: one vector each [b, D], and cells [b, H, W, D]; None where not asked for."""

    pooled: Tensor | None = None
    cells: Tensor | None = None

    def grid(self) -> tuple[int, int]:
        """Return the numbers of rows and columns of the cells."""
        assert self.cells is not None
        return self.cells.shape[1], self.cells.shape[2]


class Features(nn.Module):
    """The vector and the cells of a network's last layer: [b, 3, S, S] -> Seen.

    The network gives a vector itself (by its own pooling: a mean over places, or a class token), or only a map
    [b, D, H, W] or tokens [b, T, D], such as an inner block: then the vector is the class token where there is one,
    else the mean of the cells. Class and register tokens are no cells. Raises UserError, with `name`, if it lacks what
    is asked for.
    """

    def __init__(self, network: nn.Module, size: int, name: str, *, pooled: bool, cells: bool) -> None:
        super().__init__()
        self.network, self.pooled, self.cells, self.name = network, pooled, cells, name
        given, problem = try_image(network, size)
        if not isinstance(given, Tensor) or given.ndim not in (2, 3, 4):
            shown = list(given.shape) if isinstance(given, Tensor) else problem or type(given).__name__
            raise UserError(f"{name} gives no vector, map or tokens for an image of {size} x {size}: {shown}")
        self.vector = given.ndim == 2
        if cells and self.vector and not hasattr(network, "forward_features"):
            raise UserError(f"{name} gives vectors and no map or tokens; set method.cells=0, or name an inner block "
                            "that gives them, as in RUN:backbone.layer4")
        if cells and pooled and self.vector and not hasattr(network, "forward_head"):
            self._refuse_other_pooling(size)

    def _refuse_other_pooling(self, size: int) -> None:
        """Raise UserError unless the network's vector is the mean of its cells, so that one pass gives both."""
        image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))  # a black one tells nothing
        training = self.network.training
        with torch.no_grad():
            vector, mean = self.network.eval()(image), self._grid(features(self.network, image)).mean((1, 2))
        self.network.train(training)
        if mean.shape != vector.shape or not torch.allclose(mean, vector, rtol=1e-4, atol=1e-5):
            raise UserError(f"the vector that {self.name} gives is not the mean of its last map, so both take two "
                            "passes; set method.pooled=0 or method.cells=0")

    def forward(self, x: Tensor) -> Seen:
        """Return what is asked for."""
        if self.vector and not self.cells:
            return Seen(self.network(x))
        out = features(self.network, x) if self.vector else self.network(x)
        grid = self._grid(out)
        return Seen(self._pool(out, grid) if self.pooled else None, grid if self.cells else None)

    def _pool(self, out: Tensor, grid: Tensor) -> Tensor:
        if self.vector and hasattr(self.network, "forward_head"):  # timm's way from the last layer to the vector
            vector: Tensor = self.network.forward_head(out)  # type: ignore[operator]
            return vector
        if not self.vector and out.ndim == 3 and self._prefix(out) > 0:
            return out[:, 0]
        return grid.mean((1, 2))

    def _grid(self, out: Tensor) -> Tensor:
        """Return the cells [b, H, W, D] of a map or of tokens."""
        if out.ndim == 4:
            # maps of a whole network have their channels last in timm's Swin and kin; inner blocks are turned already
            last = self.vector and any(getattr(m, "output_fmt", None) == "NHWC" for m in self.network.modules())
            return out if last else out.permute(0, 2, 3, 1)
        if out.ndim != 3:
            raise UserError(f"{self.name} gives {list(out.shape)} and no map or tokens; set method.cells=0, or name an "
                            "inner block that gives them")
        prefix = self._prefix(out)
        side = math.isqrt(out.shape[1] - prefix)
        if side * side != out.shape[1] - prefix:
            raise UserError(f"the {out.shape[1]} tokens of {self.name}, {prefix} of them for the whole image, are no "
                            "square grid of cells; set method.cells=0, or choose another network")
        return out[:, prefix:].unflatten(1, (side, side))

    def _prefix(self, tokens: Tensor) -> int:
        """Return how many tokens stand for the whole image: as the network says, else one if that leaves a square."""
        for module in self.network.modules():
            if hasattr(module, "num_prefix_tokens"):
                return int(module.num_prefix_tokens)  # type: ignore[arg-type]
        return int(math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1])


class Match(nn.Module):
    """Two grids of one image brought to the smaller number of cells on each axis: [b, H, W, D] twice -> same shapes.

    Bilinear with antialiasing, as matrices along each axis, whose gradient is deterministic on every device. Raises
    UserError for a grid of fewer than 2 x 2 cells.
    """

    def __init__(self, student: tuple[int, int], teacher: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (min(student[0], teacher[0]), min(student[1], teacher[1]))
        if min(self.shape) < SMALLEST:
            raise UserError(
                f"method.cells compares {self.shape[0]} x {self.shape[1]} cells (student {student[0]} x {student[1]}, "
                f"teacher {teacher[0]} x {teacher[1]}), but {SMALLEST} x {SMALLEST} are the least; take larger crops, "
                "backbone.stem=cifar for small images (ResNets), or method.cells=0"
            )
        for name, sides in (("student", student), ("teacher", teacher)):
            for axis, (side, wanted) in enumerate(zip(sides, self.shape, strict=True)):
                self.register_buffer(f"{name}{axis}", _weights(side, wanted), persistent=False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both at the smaller grid, in at least float32 where they are resized."""
        return self._resized("student", student), self._resized("teacher", teacher)

    def _resized(self, name: str, grid: Tensor) -> Tensor:
        if grid.shape[1:3] == self.shape:
            return grid
        rows, columns = (self.get_buffer(f"{name}{axis}") for axis in (0, 1))
        with torch.autocast(grid.device.type, enabled=False):
            return torch.einsum("ih,bhwd,jw->bijd", rows, at_least_float32(grid), columns)


def _weights(side: int, wanted: int) -> Tensor:
    """Return the matrix [wanted, side] that resizes a line of cells; its rows add up to 1."""
    lines = torch.eye(side)[None, None]
    return F.interpolate(lines, (wanted, side), mode="bilinear", antialias=True)[0, 0]
