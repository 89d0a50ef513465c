"""From a card to a set of images."""

from __future__ import annotations

import numpy as np

from unlabeled.config.base.objects import is_dotted, load_object, refuse_other_arguments
from unlabeled.config.card import Card
from unlabeled.data.sources.base import CorruptSample, Pixels, Source
from unlabeled.data.sources.memory import InMemory
from unlabeled.errors import UserError, did_you_mean, nearest

# kind of source -> its opener, (card, split, root) -> Source
_OPENERS = {
    "shards": "unlabeled.data.sources.tar.shards:open_shards",
    "stream": "unlabeled.data.remote:open_stream",
    "folder": "unlabeled.data.sources.folder:open_folder",
    "classfolder": "unlabeled.data.sources.folder:open_class_folder",
    "listed": "unlabeled.data.sources.subset:open_listed",
    "torchvision": "unlabeled.data.sources.torchvision_sets:open_torchvision",
    "array": "unlabeled.data.sources.arrays:open_array",
    "digits": "unlabeled.data.sources.arrays:open_digits",
    "shapes": "unlabeled.data.sources.shapes:open_shapes",
    "voc-masks": "unlabeled.data.sources.dense.masks:open_voc",
    "cityscapes-masks": "unlabeled.data.sources.dense.masks:open_cityscapes",
    "voc-boxes": "unlabeled.data.sources.dense.boxes:open_voc",
    "videofolder": "unlabeled.data.sources.video.folder:open_videos",
    "videoshards": "unlabeled.data.sources.video.source:open_video_shards",
    "moving-shapes": "unlabeled.data.sources.video.moving:open_moving_shapes",
    "coco-boxes": "unlabeled.data.sources.dense.coco:open_coco",
}


def open_source(card: Card, split: str, root: str | None = None, *, in_order: bool = False) -> Source:
    """Open one split of a card; `root` overrides the card's folder; in_order: a split without random access will do.

    Raises UserError if the split is not in the card, or if files are missing or not as many as the card says.
    """
    if split not in card.splits:
        question = did_you_mean(nearest(split, card.splits))
        raise UserError(f"data card '{card.name}' has no split '{split}' (it has: {', '.join(card.splits)}).{question}")
    if card.source.kind == "stream" and not in_order:
        raise UserError(f"data card '{card.name}', split '{split}', is streamed: that serves training, but evaluation "
                        "needs random access. Evaluate on another card, with card=CARD root=FOLDER")
    source = _opened(card, split, root)
    source.pixels = Pixels(card.levels, card.upright)
    expected = card.splits[split].samples
    if expected is not None and len(source) != expected:
        raise UserError(
            f"data card '{card.name}', split '{split}': {len(source)} images found, but the card says {expected}; "
            "complete the files, or correct 'samples' in the card"
        )
    return InMemory(source, card) if card.in_memory and source.images is None else source


def _opened(card: Card, split: str, root: str | None) -> Source:
    """Call the card's opener. Raises UserError if one of the user's own is not there or opens something else."""
    try:
        opener = load_object(card.source.kind, _OPENERS)
        refuse_other_arguments(opener, card.source.kind, "card", "split", "root")
    except UserError as error:
        raise UserError(f"data card '{card.name}': source.kind {error}") from error
    source = opener(card, split, root)
    if not isinstance(source, Source):
        raise UserError(f"data card '{card.name}': source.kind '{card.source.kind}' must give a "
                        f"{Source.__module__}.Source, but gives a {type(source).__name__}")
    if is_dotted(card.source.kind) and (fault := _fault(source)):
        raise UserError(f"data card '{card.name}': source.kind '{card.source.kind}' {fault}")
    return source


def _fault(source: Source) -> str | None:
    """Return what a source of the user's own does not keep of what `Source` says of labels and images."""
    labels = source.labels
    if labels is not None:
        if not (isinstance(labels, np.ndarray) and labels.dtype == np.int64 and labels.shape == (len(source),)):
            return f"must give labels as int64 [{len(source)}], one per image, but gives {_kind(labels)}"
        if source.classes is None or (labels < -1).any() or (labels >= len(source.classes)).any():
            return "must give classes, the names of the labels, of which -1 (unknown) has none"
    if not source.random_access or len(source) == 0:
        return None
    try:
        image = source.image(0)
    except CorruptSample:
        return None
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        return f"must give images as uint8 [H, W, 3], but gives {_kind(image)}"
    return None


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
