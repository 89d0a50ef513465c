"""What an evaluation runs on: device, network, splits, labels; everything that can be refused is refused here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from unlabeled.augment.plain_crops import EdgeCrop
from unlabeled.backbones.video.r3d import NETWORKS
from unlabeled.config.card import Card
from unlabeled.config.protocols.vectors import ClipViews, Nearest, Protocol
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Backbone, SetData
from unlabeled.data.batch import Geometry
from unlabeled.data.clips import EvenClips
from unlabeled.data.crops import ClipCrop
from unlabeled.data.overlap import twins
from unlabeled.data.sources.files.levels import Levels
from unlabeled.data.sources.open import Source, open_source
from unlabeled.engine.exports.inflated import inflated
from unlabeled.engine.exports.networks import find_export, inner
from unlabeled.engine.restore import Restored
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Method
from unlabeled.ops.distributed import rank

SCORED = ("test", "val")  # splits that are scored where a protocol names none


@dataclass(frozen=True)
class Splits:
    """The opened splits: train always, test if there are labels; names: of the classes.

    twins: int64 [len(test)], the place in train of every test image that stands there too, else -1. trained: the
    run's stream that reads the very split that is scored, if one does.
    """

    card: str
    train: Source
    test: Source | None
    names: list[str]
    twins: np.ndarray | None = None
    trained: str | None = None

    def check(self, cfg: Protocol) -> None:
        """Raise UserError if there are too few labels for `cfg`."""
        if self.test is not None and self.train.labels is not None:
            self.check_labels(cfg, self.train.labels)

    def check_labels(self, cfg: Protocol, labels: np.ndarray) -> None:
        """Raise UserError if the training labels, int64 [n], -1 where unknown, are too few for `cfg`."""
        counts = np.bincount(labels[labels >= 0], minlength=len(self.names))
        if isinstance(cfg, Nearest) and self.shared(cfg):
            counts[counts.argmax()] -= 1  # a test image that stands in train is no neighbour of itself
        cfg.check(counts.tolist(), self.names)

    def shared(self, cfg: Protocol) -> int:
        """Return how many of the test images whose label is known stand in the split that `cfg` learns from."""
        if self.twins is None or self.test is None or self.test.labels is None or not cfg.learns:
            return 0
        return int(((self.twins >= 0) & (self.test.labels >= 0)).sum())


def pick_export(method: Method, name: str | None, size: int | None = None, clip: ClipViews | None = None,
                ) -> tuple[str, Export]:
    """Return the export `name`, or the first that gives features, for images of `size`, or of its own, or for clips.

    Raises UserError as `find_export` and `shown` do.
    """
    exports = method.exports()
    if name is None:
        name = next((each for each, export in exports.items() if export.gives != "logits"), None)
    outer, inside, export = find_export(exports, name)
    if inside is not None:
        export = inner(export, inside)
    return name or outer, shown(export, size, clip or ClipViews())


def shown(export: Export, size: int | None, clip: ClipViews) -> Export:
    """Return an export for images of `size`, or of its own, and for the clips that are asked for.

    Raises UserError if it is for images, of which there are no clips.
    """
    spacing = export.input.clip
    if spacing is None and clip.model_fields_set:
        raise UserError(f"'clip.{min(clip.model_fields_set)}' has no effect: the network is for images, not for clips")
    if spacing is not None and clip.frames == 1:
        spacing = None
    elif spacing is not None:
        spacing = replace(spacing, frames=clip.frames or spacing.frames, stride=clip.stride or spacing.stride,
                          per_second=None if clip.stride else spacing.per_second)
    return replace(export, input=replace(export.input, size=size or export.input.size, clip=spacing))


def views_of(export: Export, clip: ClipViews) -> tuple[Geometry, ...]:
    """Return how samples are cut for an export: once, or videos by all the views that are asked for."""
    crop = export.crop
    if not isinstance(crop, ClipCrop):
        return (crop,)
    clips = replace(cast(EvenClips, crop.clips), count=clip.count)
    squares = [crop.crop] if clip.crops == 1 else [EdgeCrop(crop.size, place) for place in range(clip.crops)]
    return tuple(ClipCrop(square, clips) for square in squares)


def refuse_images_for_clips(export: Export, source: Source) -> None:
    """Raise UserError if an export is for clips and the samples of a source are images."""
    if export.input.clip is not None and not source.has_clips:
        raise UserError(f"the network is for clips of {export.input.clip.frames} frames, and split '{source.split}' of "
                        f"data card '{source.name}' holds images; choose a card of videos, or clip.frames=1")


def protocol_export(cfg: Protocol, restored: Restored, *, weights: bool = True) -> tuple[str, Export]:
    """Return the export that a protocol measures, by name: inflated into a network for clips where it says so.

    weights: False where `restored` has random ones: then those of the network for clips are its own. Raises UserError
    as `find_export`, `inflated` and `shown` do.
    """
    if cfg.inflate is None:
        return pick_export(restored.method, cfg.export, cfg.size, cfg.clip)
    name, flat = pick_export(restored.method, cfg.export)
    backbone = inflated_backbone(cfg.inflate, restored)
    if not weights:
        seed_everything(restored.recipe.train.seed, "init")
    export = inflated(flat, backbone, restored.public or f"{restored.run}:{name}", weights=weights)
    return name, shown(export, cfg.size, cfg.clip)


def inflated_backbone(name: str, restored: Restored) -> Backbone:
    """Return the block of a recipe that builds the network for clips `name`, as wide as that of `restored`.

    Raises UserError if that is one for clips already.
    """
    own = restored.recipe.backbone
    if own.name in NETWORKS:
        raise UserError(f"inflate={name}: {restored.name} is a network for clips already, {own.name}; leave it out")
    return Backbone(name=name, width=own.width, grad_checkpointing=own.grad_checkpointing)


def middle_frames(export: Export, *sources: Source | None) -> str | None:
    """Say in one line that a network for images sees one frame of each video, or return None if nothing is to be said.
    """
    videos = next((source for source in sources if source is not None and source.has_clips), None)
    if videos is None or export.input.clip is not None:
        return None
    return f"data card '{videos.name}' holds videos: of each, the network sees the middle frame, as an image"


def check_samples(exports: Sequence[Export], *sources: Source | None) -> None:
    """Refuse images for networks for clips, and say, on rank 0, where one for images sees frames of videos.

    exports: of one method, which see the same. Raises UserError as `refuse_images_for_clips` does.
    """
    for export, source in itertools.product(exports, sources):
        if source is not None:
            refuse_images_for_clips(export, source)
    if rank() == 0 and (line := middle_frames(exports[0], *sources)):
        print(line)


def scored_stream(restored: Restored) -> tuple[str, SetData]:
    """Return the stream, by name, and its set, whose card a run is evaluated on, unless a protocol names another.

    That is the first set of the method's clock or, where streams read different cards, of the one whose labels the
    method reads, if its card has a split to score; in a mix the first one that has such a split.
    """
    streams, clock = restored.recipe.data.streams(), type(restored.method).clock
    if restored.public is not None:
        raise UserError(f"{restored.public} belongs to no data that is known here; name a set, such as "
                        "card=classfolder root=FOLDER or card=imagenet")
    if len({(one.card, one.root) for _, one in _sets(restored)}) > 1:
        read = type(restored.method).streams(restored.recipe.method)
        labelled = [name for name in streams if name in read and read[name].labels]
        for name in [*labelled, *([clock] if streams[clock].mix else [])]:
            for one in streams[name].sets():
                if _has_split_to_score(one.card):
                    return name, one
    return clock, streams[clock].sets()[0]


def _has_split_to_score(card: str) -> bool:
    return any(split in SCORED for split in read_card(card).splits)


def _sets(restored: Restored) -> list[tuple[str, SetData]]:
    """Return everything that a run reads, each with the name of its stream."""
    return [(name, one) for name, stream in restored.recipe.data.streams().items() for one in stream.sets()]


def own_levels(restored: Restored) -> Levels | None:
    """Return the levels by which a run's images became gray, for files that belong to no card; None if it has none."""
    try:
        return read_card(scored_stream(restored)[1].card).levels
    except UserError:  # a card of one's own that is gone: nothing is known
        return None


def other_cards(restored: Restored) -> str | None:
    """Say which of the run's cards is scored and what the others are good for, or None if there is one card."""
    scored, stream = scored_stream(restored)
    others = [_another(name, other) for name, other in _sets(restored)
              if (other.card, other.root) != (stream.card, stream.root)]
    if not others:
        return None
    verb = "scored" if _has_split_to_score(stream.card) else "measured without a score"
    return "; ".join([f"{verb} on data card '{stream.card}', which data.{scored} reads", *dict.fromkeys(others)])


def _another(stream: str, other: SetData) -> str:
    """Say how a set that is not scored can be, or that nothing in it can."""
    words = f"card={other.card}" + (f" root={other.root}" if other.root else "")
    try:
        scores = _has_split_to_score(other.card)
    except UserError:  # a card of one's own that is gone
        return f"data.{stream} reads '{other.card}' too, which is not there"
    does = "scores on that instead" if scores else "measures its features without a score: it has no split test or val"
    return f"data.{stream} reads '{other.card}': {words} {does}"


def find_card(card: str | None, root: str | None, restored: Restored) -> tuple[Card, str | None, str | None]:
    """Return card and root, those given or the run's, and the run's own split where the card is the run's."""
    if card is not None:
        return read_card(card), root, None
    _, stream = scored_stream(restored)
    return read_card(stream.card), stream.root if root is None else root, stream.split


def open_train(wanted: str | None, card: Card, root: str | None, own: str | None) -> Source:
    """Open the split that gives the labels: `wanted`, else train, else the run's own."""
    return open_source(card, wanted or ("train" if "train" in card.splits else own or "train"), root)


def scored_split(wanted: str | None, card: Card, other: str | None = None) -> str:
    """Return the split that is scored: `wanted`, else test, val or `other`. Raises UserError if there is none."""
    name = wanted or next((split for split in SCORED if split in card.splits), other)
    if name is None:
        raise UserError(f"data card '{card.name}' has neither split test nor val (it has: {', '.join(card.splits)}); "
                        "choose one with test=SPLIT")
    return name


def open_splits(cfg: Protocol, restored: Restored) -> Splits:
    """Open the splits of a protocol: its own card's, or the run's. Raises UserError if there is nothing to score."""
    card, root, own = find_card(cfg.card, cfg.root, restored)
    wanted = cfg.train
    if not cfg.learns and wanted is None and own is None and "train" not in card.splits:
        wanted = scored_split(cfg.test, card)  # nothing is learned: a card of test images is enough
    train = open_train(wanted, card, root, own)
    if train.labels is None or not (train.labels >= 0).any():
        return Splits(card.name, train, None, [])
    name = scored_split(cfg.test, card)
    test = open_source(card, name, root)
    if test.labels is None or not (test.labels >= 0).any():
        raise UserError(f"data card '{card.name}': split '{name}' has no labels to score against; "
                        "choose another with test=SPLIT")
    return Splits(card.name, train, test, _class_names(card.name, train, test), find_twins(card, train, test),
                  _trained_on(card, root, name, restored))


def find_twins(card: Card, train: Source, test: Source) -> np.ndarray:
    """Return the place in `train` of every image of `test`, two splits of a card, that stands there too, else -1."""
    kind = card.source.kind
    whole = {card.splits[split].path or (f"{split}.npz" if kind == "array" else split)
             for split in (train.split, test.split)}  # what an array's rows, or torchvision's own split, stand in
    if train.split == test.split or (kind in ("array", "torchvision") and len(whole) == 1):
        return np.arange(len(test))
    return twins(train, test)


def count_twins(card: Card, train: Source, test: Source, first: int | None = None) -> int:
    """Return how many images of `test`, or of its `first` ones, stand in `train` too."""
    return int((find_twins(card, train, test)[:first] >= 0).sum())


def _trained_on(card: Card, root: str | None, split: str, restored: Restored) -> str | None:
    """Return the name of the run's stream that reads this split of this card, or None."""
    for name, stream in _sets(restored):
        if stream.split == split and (stream.root or card.root) == (root or card.root):
            try:
                own = read_card(stream.card)
            except UserError:  # a run may be evaluated on another card where its own is not at hand
                continue
            if own.name == card.name:
                return f"data.{name}"
    return None


def _class_names(card: str, train: Source, test: Source) -> list[str]:
    """Return the names of the classes, or their numbers. Raises UserError if the two splits number them differently."""
    assert train.labels is not None and test.labels is not None
    if train.classes is None:
        return [str(i) for i in range(int(max(train.labels.max(), test.labels.max())) + 1)]
    if train.classes != test.classes:
        raise UserError(f"data card '{card}': splits '{train.split}' and '{test.split}' have different classes; "
                        "name them in the card with 'classes'")
    return train.classes
