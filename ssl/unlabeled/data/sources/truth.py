"""What sets know of their images beyond a label: a mask per image, or objects with boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Objects:
    """The k objects of one image.

    boxes: float32 [k, 4], left, top, right, bottom in pixels. kinds: int64 [k], places in `Source.object_classes`.
    areas: float32 [k], square pixels, of the mask where there is one. crowd: bool [k], a region of many objects, which
    is neither trained on nor counted. difficult: bool [k], trained on, but not counted. masks: bool [k, H, W], if they
    were asked for. size: height and width of the image for which all this is stated; None if it is the image's own.
    """

    boxes: np.ndarray
    kinds: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    masks: np.ndarray | None = None
    size: tuple[int, int] | None = None


class Truth:
    """The part of a source that knows masks and objects; of most sets nothing.

    mask_classes: names of what masks tell apart; None if the set has no masks. object_classes: names of the kinds of
    objects with boxes; None if it has none. has_shapes: these have masks too, or else lacks_shape says which one has
    none. dropped: how many objects were left out, whose boxes enclose nothing.
    """

    mask_classes: list[str] | None = None
    object_classes: list[str] | None = None
    has_shapes = False
    lacks_shape = ""
    dropped = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray:
        """Return the class of every pixel, uint8 [H, W], 255 where it is not counted. Raises UserError.

        Only of sets that name `mask_classes`.
        """
        raise NotImplementedError

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image, with their masks if asked for. Only of sets that name `object_classes`."""
        raise NotImplementedError

    def with_objects(self) -> np.ndarray:
        """Return the images, int64, that hold an object to train on."""
        return np.arange(len(self))
