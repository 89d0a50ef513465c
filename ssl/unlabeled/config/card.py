"""The typed data card: where the images of a set are, and what is known of them. Imports no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag, ValidationInfo, field_validator, model_validator

from unlabeled.config.base.objects import is_dotted
from unlabeled.config.marks import Free
from unlabeled.config.recipe import Strict
from unlabeled.errors import UserError


def beside_the_card(place: str, info: ValidationInfo) -> str:
    """Put the folder of the card's file, if the reader tells it, in the place of $CARD."""
    folder = (info.context or {}).get("folder")
    return place if folder is None else re.sub(r"\$(CARD\b|\{CARD\})", lambda _: folder, place)


class _Tars(Strict):
    kind: str
    image: tuple[str, ...] = Field(("jpg", "jpeg", "png", "webp", "ppm"), description="extensions of the image member")
    label: str | None = Field(None, description="cls (a number as text), json:KEY (a number in a JSON member), or none")

    @model_validator(mode="after")
    def _label_form(self) -> _Tars:
        if self.label is not None and not re.fullmatch(r"cls|json:.+", self.label):
            raise ValueError(f"label is '{self.label}'; allowed: cls, json:KEY")
        return self


class Shards(_Tars):
    """Local webdataset tar shards; a split's path is a brace pattern, such as x-train-{000000..000007}.tar."""

    kind: Literal["shards"]


class Streamed(_Tars):
    """Webdataset tar shards read from front to back: a split's path may be a URL pattern or pipe:COMMAND."""

    kind: Literal["stream"]
    shuffle: int = Field(1000, gt=0, description="samples that wait, undecoded, in every loader process")


class Folder(Strict):
    """A flat or nested folder of images without labels."""

    kind: Literal["folder"]


class ClassFolder(Strict):
    """One sub-folder per class, images at any depth below it."""

    kind: Literal["classfolder"]
    order: Literal["name", "number"] = Field(
        "name", description="of the classes: folders sorted by name, or named 0, 1, 2, ... after their class's number"
    )


class Listed(Strict):
    """The samples of another card's split that a list names, without labels, such as those that a teacher has mined."""

    kind: Literal["listed"]
    card: str = Field(description="name or path of the other card; the root of this card overrides its own")
    split: str = Field("train", description="of the other card")
    list: str = Field(description="file of keys, one per line; $CARD is the folder of this card")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the list")

    @field_validator("list")
    @classmethod
    def _beside_the_card(cls, file: str, info: ValidationInfo) -> str:
        return beside_the_card(file, info)


class Torchvision(Strict):
    """Files in the layout that torchvision's own data-set class keeps under its root."""

    kind: Literal["torchvision"]
    dataset: Literal["cifar10", "cifar100", "stl10", "svhn", "fashionmnist", "imagenet"]


class Array(Strict):
    """A .npz file with `images` and perhaps `labels`, or a .npy file of images, [n, H, W, 3] or [n, H, W]."""

    kind: Literal["array"]


class Digits(Strict):
    """scikit-learn's 1,797 scanned digits, 8 x 8 pixels, divided class by class."""

    kind: Literal["digits"]
    held_out: int = Field(500, gt=0, lt=1797, description="images in the split val; the others are train")
    seed: int = Field(0, ge=0, description="of the division")


class Shapes(Strict):
    """Rendered objects: outline and texture belong to the kind, all else is free."""

    kind: Literal["shapes"]
    size: int = Field(48, ge=8, description="side of the image, pixels")
    objects: tuple[int, int] = Field((1, 1), description="fewest and most objects in one image")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _count(self) -> Shapes:
        if not 1 <= self.objects[0] <= self.objects[1] <= 5:
            raise ValueError(f"objects is {list(self.objects)}; allowed: [fewest, most] within 1 to 5")
        return self


class VocMasks(Strict):
    """PASCAL VOC's segmentation: JPEGImages, masks, and ImageSets/Segmentation/PATH.txt for a split's path."""

    kind: Literal["voc-masks"]
    masks: str = Field("SegmentationClass", description="folder of the masks; SegmentationClassAug: those of SBD too")


class CityscapesMasks(Strict):
    """Cityscapes' fine annotations: leftImg8bit/PATH/CITY and gtFine/PATH/CITY for a split's path."""

    kind: Literal["cityscapes-masks"]


class VocBoxes(Strict):
    """PASCAL VOC's detection: a split's path is YEAR/LIST, such as VOC2007/trainval, or several of them joined by +."""

    kind: Literal["voc-boxes"]


class CocoBoxes(Strict):
    """COCO's layout: images in ROOT/PATH for a split's path, objects in ROOT/annotations/instances_PATH.json."""

    kind: Literal["coco-boxes"]


class VideoShards(_Tars):
    """As shards, with a video in the place of the image."""

    kind: Literal["videoshards"]
    image: tuple[str, ...] = Field(("mp4", "mov", "avi", "mkv", "webm"), description="extensions of the video member")


class VideoFolder(Strict):
    """Video files at any depth below a split's path, or those that the list at its path names."""

    kind: Literal["videofolder"]
    labels: Literal["none", "folders", "list"] = Field(
        "none", description="folders: the first folder of a video's path is its class; list: as the list says")
    list: Literal["paths", "kinetics", "hmdb51"] | None = Field(
        None, description="form of the lists: lines of a path and perhaps a class; CSV with youtube_id, time_start and "
        "time_end; or one file per class (path: PATTERN#NUMBER for the lines with that number)")
    videos: str = Field(".", description="folder below the root from which paths in lists count")

    @model_validator(mode="after")
    def _list_has_a_user(self) -> VideoFolder:
        if self.list is None and (self.labels == "list" or self.videos != "."):
            raise ValueError("'labels: list' and 'videos' belong to lists of videos: say which form with 'list'")
        return self


class MovingShapes(Strict):
    """Rendered videos of one object; the class is how it moves, and what it looks like is free."""

    kind: Literal["moving-shapes"]
    size: int = Field(32, ge=16, multiple_of=2, description="side of the frames, pixels")
    frames: int = Field(60, gt=0, description="of each video, at 25 per second")
    appearance: Literal["changing", "constant"] = Field(
        "changing", description="changing: drawn anew every 12 frames, so that two clips share only their motion")
    seed: int = Field(0, ge=0)


class Own(Strict):
    """A kind of one's own: `module:object`, called with the card, a split and a root, gives a source of images."""

    kind: str = Field(description="module:object")
    options: dict[str, Any] = Field({}, description="for the object, which finds them as card.source.options")


def kind(source: Any) -> str | None:
    """Return the tag of a source's block or model; messages about it name the key by the name of this function."""
    name = source.get("kind") if isinstance(source, dict) else getattr(source, "kind", None)
    return "module:object" if is_dotted(name) else None if name is None else str(name)


class Split(Strict):
    """One split of a set."""

    path: str | None = Field(
        None,
        description="below the root: pattern of shards, folder or file; torchvision: its own name of the split; "
        "stream: also a pattern of URLs, or pipe:COMMAND; if not given, the name of the split",
    )
    labels: str | None = Field(None, description="array in .npy: the .npy file of labels beside it")
    samples: int | None = Field(None, gt=0, description="how many images it holds; checked where given")
    about: str = Field("", description="one sentence for people")


class ImageList(Strict):
    """A published list of images, one file name per line, such as the labelled part of a few-label benchmark."""

    file: str = Field(description="below the root of the data")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")
    samples: int = Field(gt=0, description="how many names it holds")
    about: str = Field("", description="where it is obtained")


class Card(Strict):
    """A data set: storage, splits, classes and statistics."""

    name: Free[str]
    about: Free[str] = Field("", description="one sentence for people")
    source: Annotated[
        Annotated[Shards, Tag("shards")]
        | Annotated[Streamed, Tag("stream")]
        | Annotated[Folder, Tag("folder")]
        | Annotated[ClassFolder, Tag("classfolder")]
        | Annotated[Listed, Tag("listed")]
        | Annotated[Torchvision, Tag("torchvision")]
        | Annotated[Array, Tag("array")]
        | Annotated[Digits, Tag("digits")]
        | Annotated[Shapes, Tag("shapes")]
        | Annotated[VocMasks, Tag("voc-masks")]
        | Annotated[CityscapesMasks, Tag("cityscapes-masks")]
        | Annotated[VocBoxes, Tag("voc-boxes")]
        | Annotated[CocoBoxes, Tag("coco-boxes")]
        | Annotated[VideoFolder, Tag("videofolder")]
        | Annotated[VideoShards, Tag("videoshards")]
        | Annotated[MovingShapes, Tag("moving-shapes")]
        | Annotated[Own, Tag("module:object")],
        Discriminator(kind),
    ]
    root: Free[str | None] = Field(
        None, description="folder of the data; may hold $VARIABLES; $CARD is the card's folder"
    )
    splits: Free[dict[str, Split]] = Field(min_length=1)
    classes: Free[list[str] | None] = Field(None, description="names of the classes, in the order of the labels")
    folds: Free[list[tuple[str, str]]] = Field(
        [], description="pairs [train, test] of splits over which published numbers are means, for evaluate --folds")
    records: Free[dict[str, dict[str, str]]] = Field(
        {}, description="folders of what is stored per image, by split and kind: {train: {labelmap: FOLDER}}; may hold "
        "$VARIABLES; $CARD is the card's folder")
    lists: Free[dict[str, ImageList]] = Field({}, description="published parts of the set, for data.STREAM.subset.list")
    image_size: Free[int | None] = Field(None, gt=0, description="side of the images in pixels, where all are equal")
    mean: tuple[float, float, float] | None = Field(None, description="of the training images in [0, 1], per channel")
    std: tuple[float, float, float] | None = None
    in_memory: Free[bool] = Field(
        False, description="decode all images at start into one array (small sets, equal sizes)"
    )
    orientation: Literal["apply", "ignore"] | None = Field(
        None, description="whether images are turned as their orientation tags say; if not given: ignore for layouts "
        "of published sets (torchvision, voc-*, coco-boxes, cityscapes-masks), whose numbers were made so, else apply")
    levels: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None, description="[low, high]: the values that become black and white where images have more than 8 bits; if "
        "not given: the whole range of 16 bits, 0 and 1 for floats, and nothing else is read")

    @model_validator(mode="after")
    def _options_have_a_user(self) -> Card:
        made = self.source.kind in ("digits", "shapes", "moving-shapes")
        if made and self.root is not None:
            raise ValueError(f"'root' has no effect with {self.source.kind}, which reads no files")
        if self.source.kind != "array" and any(split.labels for split in self.splits.values()):
            raise ValueError("'labels' of a split belongs to source kind array")
        if self.source.kind in ("shapes", "moving-shapes") and any(one.samples is None for one in self.splits.values()):
            raise ValueError(f"source kind {self.source.kind} needs 'samples' in every split: how many to render")
        if self.in_memory and self.source.kind in ("videofolder", "videoshards", "moving-shapes"):
            raise ValueError(f"'in_memory' does not go with source kind {self.source.kind}, whose clips stay in files")
        if self.source.kind == "stream":
            if any(split.samples is None or split.path is None for split in self.splits.values()):
                raise ValueError("source kind stream needs 'path' and 'samples' in every split: nobody counts a stream")
            if self.in_memory:
                raise ValueError("'in_memory' does not go with source kind stream, which is read in order")
        if self.in_memory and self.source.kind.endswith(("-masks", "-boxes")):
            raise ValueError(f"'in_memory' does not go with source kind {self.source.kind}, whose masks or boxes stay "
                             "in files")
        if self.source.kind == "digits" and set(self.splits) - {"train", "val"}:
            raise ValueError(f"source kind digits has the splits train and val, not {', '.join(self.splits)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        self._pixels_have_a_user()
        return self

    def _pixels_have_a_user(self) -> None:
        no_files = self.source.kind in ("digits", "shapes", "moving-shapes", "torchvision")
        if isinstance(self.source, Torchvision) and self.source.dataset == "imagenet":
            no_files = False
        if self.orientation is not None and (no_files or self.source.kind == "array"):
            raise ValueError(f"'orientation' has no effect with {self.source.kind}, which holds no image files")
        if self.levels is not None and self.source.kind in ("videofolder", "videoshards"):
            raise ValueError(f"'levels' has no effect with {self.source.kind}, whose files say what is black")
        if self.levels is not None and no_files:
            raise ValueError(f"'levels' has no effect with {self.source.kind}, whose images have 8 bits")
        if self.levels is not None and not self.levels[0] < self.levels[1]:
            raise ValueError(f"levels is {list(self.levels)}; allowed: [low, high], the values of black and white, "
                             "with low < high")

    @field_validator("folds")
    @classmethod
    def _folds_of_splits(cls, folds: list[tuple[str, str]], info: ValidationInfo) -> list[tuple[str, str]]:
        unknown = {split for fold in folds for split in fold} - set(info.data.get("splits", ()))
        if unknown and "splits" in info.data:
            raise ValueError(f"'folds' names the split '{min(unknown)}', which 'splits' does not")
        return folds

    @field_validator("records")
    @classmethod
    def _records_of_splits(cls, records: dict[str, dict[str, str]], info: ValidationInfo) -> dict[str, dict[str, str]]:
        unknown = set(records) - set(info.data.get("splits", records))
        if unknown:
            raise ValueError(f"'records' names the split '{min(unknown)}', which 'splits' does not")
        return {split: {kind: beside_the_card(folder, info) for kind, folder in stores.items()}
                for split, stores in records.items()}

    @field_validator("root")
    @classmethod
    def _beside_the_card(cls, root: str | None, info: ValidationInfo) -> str | None:
        return None if root is None else beside_the_card(root, info)

    def has(self, annotation: str) -> bool:
        """Say whether the images have `masks`, one class per pixel, or `boxes` around objects.

        Of a kind of the user's own only the opened source knows, so it may have both.
        """
        kinds = {"masks": ("shapes", "voc-masks", "cityscapes-masks"), "boxes": ("shapes", "voc-boxes", "coco-boxes")}
        return self.source.kind in kinds[annotation] or isinstance(self.source, Own)

    @property
    def upright(self) -> bool:
        """Return whether images are turned as their orientation tags say."""
        published = ("torchvision", "voc-masks", "voc-boxes", "coco-boxes", "cityscapes-masks")
        return self.source.kind not in published if self.orientation is None else self.orientation == "apply"

    def stores(self, split: str) -> dict[str, str]:
        """Return the folders of what is stored of every image of a split, by kind.

        Raises UserError if a variable in one is not set.
        """
        places = {kind: os.path.expanduser(os.path.expandvars(folder))
                  for kind, folder in self.records.get(split, {}).items()}
        for kind, place in places.items():
            if "$" in place and not os.path.lexists(place):
                raise UserError(f"data card '{self.name}' keeps its {kind} rows in {place}, in which a variable is not "
                                "set: set it")
        return places

    def folder(self, root: str | None = None) -> Path:
        """Return the folder of the data, as `location` does."""
        return Path(self.location(root))

    def location(self, root: str | None = None) -> str:
        """Return the folder (or the URL above streams) of the data: `root` if given, else the card's own.

        A path that exists as it is given is taken as it is; else $VARIABLES and ~ are resolved. Raises UserError if
        there is none or a variable in it is not set.
        """
        text = self.root if root is None else root
        cure = "give the folder with data.train.root=FOLDER (root=FOLDER in an evaluation)"
        if text is None:
            raise UserError(f"data card '{self.name}' names no folder of its own: {cure}")
        if "://" not in text and os.path.lexists(text):  # a name may hold $ or begin with ~
            return _looked_at(text, self.name)
        unset = sorted({a or b for a, b in re.findall(r"\$(?:(\w+)|\{(\w+)\})", text)} - set(os.environ))
        if unset:
            there = "" if root is None else " and there is no folder of that name"
            raise UserError(
                f"data card '{self.name}' reads from {text}, but ${unset[0]} is not set{there}: set it, or {cure}"
            )
        found = os.path.expanduser(os.path.expandvars(text))
        return found if "://" in found else _looked_at(found, self.name)


def _looked_at(place: str, card: str) -> str:
    """Return a path that the system takes; whether something is there is not asked. Raises UserError."""
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # a link to itself, too long, a zero byte
        shown = place if len(place) <= 200 else f"{place[:200]}..."
        raise UserError(f"data card '{card}': the folder {shown} cannot be read: "
                        f"{getattr(error, 'strerror', None) or error}") from error
    return place
