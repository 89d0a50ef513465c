"""Small valid sets of every kind, how each is read whole, and what must come out."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz_images import DEEP, PHOTO, Kind, Wrong, by_pil, image_files, read_image
from unlabeled.config.card import Card
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.open import open_source


def read_set(kind: dict[str, Any] | str, path: str | None = None, **more: Any) -> Callable[[Path], None]:
    """Return what opens a set of a kind of source and reads everything in it."""

    def read(folder: Path) -> None:
        source_rule = {"kind": kind} if isinstance(kind, str) else kind
        card = Card.model_validate({"name": "fuzzed", "source": source_rule, "root": str(folder),
                                    "splits": {"train": {"path": path, **more.get("split", {})}},
                                    **{key: value for key, value in more.items() if key != "split"}})
        source = open_source(card, "train", in_order=True)
        if source.random_access:
            _read_all(source)
        else:
            for sample in source.read(0):  # type: ignore[attr-defined]
                _compare(functools.partial(decode, sample.image, sample.key), sample.image)
                if not -1 <= sample.label < 3:
                    raise Wrong(f"label {sample.label}")

    return read


def _read_all(source: Source) -> None:
    if source.labels is not None:
        count = len(source.classes) if source.classes else 2**62
        if source.labels.dtype != np.int64 or source.labels.shape != (len(source),):
            raise Wrong(f"labels {source.labels.dtype} {source.labels.shape}")
        if len(source.labels) and not (source.labels.min() >= -1 and source.labels.max() < count):
            raise Wrong(f"labels from {source.labels.min()} to {source.labels.max()}")
    for index in range(len(source)):
        _compare(functools.partial(source.image, index), _raw(source, index), source.pixels.upright)
        if source.mask_classes is not None:
            mask = source.mask(index)
            if mask.ndim != 2 or not (mask[mask != 255] < len(source.mask_classes)).all():
                raise Wrong(f"mask {mask.shape}")
        if source.object_classes is not None:
            _check_objects(source, index)


def _raw(source: Source, index: int) -> bytes | None:
    try:
        return source.raw(index)
    except CorruptSample:
        return None


def _compare(read: Callable[[], np.ndarray], data: bytes | None, upright: bool = True) -> None:
    try:
        pixels = read()
    except CorruptSample:
        return
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise Wrong(f"pixels {pixels.dtype} {pixels.shape}")
    if data is not None and upright and not np.array_equal(pixels, by_pil(data)):
        raise Wrong("pixels other than PIL's")


def _check_objects(source: Source, index: int) -> None:
    objects = source.objects(index, masks=source.has_shapes)
    height, width = objects.size or (0, 0)
    assert source.object_classes is not None
    if not (np.isfinite(objects.boxes).all() and (objects.boxes >= 0).all()
            and (objects.boxes <= [width, height, width, height]).all()
            and (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()):
        raise Wrong(f"boxes {objects.boxes.tolist()} in {height} x {width}")
    if not ((objects.kinds >= 0) & (objects.kinds < len(source.object_classes))).all():
        raise Wrong(f"kinds {objects.kinds.tolist()}")
    if not (np.isfinite(objects.areas).all() and (objects.areas >= 0).all()):
        raise Wrong(f"areas {objects.areas.tolist()}")
    if objects.masks is not None and objects.masks.shape != (len(objects.kinds), height, width):
        raise Wrong(f"masks {objects.masks.shape}")


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def _jpg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "JPEG")
    return buffer.getvalue()


def _tar(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for i in range(3):
            for name, data in ((f"{'long/' * 30}n{i}.jpg", _jpg()), (f"{'long/' * 30}n{i}.cls", str(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _saved(save: Callable[..., Any], *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def _coco() -> bytes:
    from pycocotools import mask

    square = [2.0, 2.0, 10.0, 2.0, 10.0, 9.0, 2.0, 9.0]
    notes = [{"id": i, "image_id": i % 2 + 1, "category_id": 1 + i % 2, "bbox": [2, 2, 8, 7], "area": 56.0,
              "iscrowd": 0, "segmentation": [square]} for i in range(4)]
    notes[3] |= {"iscrowd": 1, "segmentation": {"size": [24, 16], "counts": [0, 200, 184]}}
    runs = mask.encode(np.asfortranarray(PHOTO[..., 0] > 99, np.uint8))
    notes[2] |= {"segmentation": {**runs, "counts": runs["counts"].decode()}}
    return json.dumps({
        "images": [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 16} for i in (1, 2)], "annotations": notes,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}, indent=1).encode()


def _voc(name: str) -> bytes:
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>20</ymax></bndbox>"
    return (f"<annotation><filename>{name}.jpg</filename><size><width>16</width><height>24</height></size><object>"
            f"<name>cat</name><difficult>0</difficult>{box}</object></annotation>").encode()


def _cifar(labels: str, **more: Any) -> bytes:
    rng = np.random.default_rng(0)
    return pickle.dumps({"data": rng.integers(0, 256, (4, 3072), np.uint8), labels: [0, 1, 2, 1], **more}, protocol=2)


def _idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def _svhn() -> bytes:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    return _saved(savemat, {"X": rng.integers(0, 256, (32, 32, 3, 4), np.uint8),
                            "y": np.array([[1], [2], [10], [3]], np.uint8)})  # type: ignore[arg-type]


def _torchvision(dataset: str) -> dict[str, Any]:
    return {"kind": "torchvision", "dataset": dataset}


def kinds() -> dict[str, Kind]:
    """Return every kind of set by name."""
    images = {f"image-{name}": Kind({name: data}, read_image) for name, data in image_files().items()}
    colours = np.stack([PHOTO, PHOTO[::-1]])
    mask = (PHOTO[..., 0] // 13).astype(np.uint8)
    street = "aachen/aachen_0_0_"
    idx = {"images": _idx(colours[..., 0]), "labels": _idx(np.array([1, 2], np.uint8))}
    named = {"classes": ["a", "b", "c"]}
    tars = {"ustar": _tar(tarfile.USTAR_FORMAT), "gnu": _tar(tarfile.GNU_FORMAT), "pax": _tar(tarfile.PAX_FORMAT)}
    shards = read_set({"kind": "shards", "label": "cls"}, "x.tar", **named)
    streamed = read_set({"kind": "stream", "label": "cls"}, "x.tar", split={"samples": 3}, **named)
    return {
        **images,
        **{f"shards-{form}": Kind({"x.tar": data}, shards) for form, data in tars.items()},
        **{f"stream-{form}": Kind({"x.tar": data}, streamed) for form, data in tars.items()},
        "npz": Kind({"x.npz": _saved(np.savez, images=colours, labels=np.array([0, 1]))}, read_set("array", "x.npz")),
        "npz-packed": Kind({"x.npz": _saved(np.savez_compressed, images=colours, labels=np.array([0, 1]))},
                           read_set("array", "x.npz")),
        "npy": Kind({"x.npy": _saved(np.save, colours), "y.npy": _saved(np.save, np.array([0, 1]))},
                    read_set("array", "x.npy", split={"labels": "y.npy"})),
        "npy-float": Kind({"x.npy": _saved(np.save, colours / 255)}, read_set("array", "x.npy")),
        "npy-deep": Kind({"x.npy": _saved(np.save, DEEP[None])}, read_set("array", "x.npy", levels=[0, 4095])),
        "folder": Kind({"a.png": _png(PHOTO), "b.jpg": _jpg()}, read_set("folder", ".")),
        "coco": Kind({"annotations/instances_p.json": _coco(), "p/1.png": _png(PHOTO), "p/2.png": _png(PHOTO)},
                     read_set("coco-boxes", "p"), (".json",)),
        "voc": Kind({"V/Annotations/a.xml": _voc("a"), "V/JPEGImages/a.jpg": _jpg(),
                     "V/ImageSets/Main/t.txt": b"a 1\n"},
                    read_set("voc-boxes", "V/t", classes=["cat"]), (".xml", ".txt")),
        "voc-masks": Kind({"SegmentationClass/a.png": _png(mask), "JPEGImages/a.jpg": _jpg(),
                           "ImageSets/Segmentation/t.txt": b"a\n"}, read_set("voc-masks", "t"), (".txt",)),
        "cityscapes": Kind({f"leftImg8bit/t/{street}leftImg8bit.png": _png(PHOTO),
                            f"gtFine/t/{street}gtFine_labelIds.png": _png(mask)}, read_set("cityscapes-masks", "t")),
        "cifar10": Kind({f"cifar-10-batches-py/{name}": _cifar("labels") for name in ("test_batch",)}
                        | {"cifar-10-batches-py/batches.meta": pickle.dumps({"label_names": ["a", "b", "c"]})},
                        read_set(_torchvision("cifar10"), "test")),
        "cifar100": Kind({"cifar-100-python/test": _cifar("fine_labels", coarse_labels=[0, 0, 1, 1])},
                         read_set(_torchvision("cifar100"), "test")),
        "stl10": Kind({"stl10_binary/test_X.bin": bytes(3 * 96 * 96 * 2), "stl10_binary/test_y.bin": b"\1\2",
                       "stl10_binary/class_names.txt": b"a\nb\nc\n"}, read_set(_torchvision("stl10"), "test")),
        "svhn": Kind({"test_32x32.mat": _svhn()}, read_set(_torchvision("svhn"), "test")),
        "fashionmnist": Kind({f"FashionMNIST/raw/t10k-{name}-idx{3 if name == 'images' else 1}-ubyte": data
                              for name, data in idx.items()}, read_set(_torchvision("fashionmnist"), "test")),
        "fashionmnist-gz": Kind({f"FashionMNIST/raw/t10k-{name}-idx{3 if name == 'images' else 1}-ubyte.gz":
                                 gzip.compress(data, mtime=0) for name, data in idx.items()},
                                read_set(_torchvision("fashionmnist"), "test")),
    }
