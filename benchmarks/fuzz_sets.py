"""What is damaged: small valid sets of every kind, how each is read whole, and what must come out."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.fuzz_bytes import Random, damaged, damaged_text
from unlabeled.config.card import Card
from unlabeled.data.base import CorruptSample, Pixels, Source
from unlabeled.data.decode import decode
from unlabeled.data.source import open_source

PHOTO = np.linspace(0, 255, 24 * 16 * 3).reshape(24, 16, 3).astype(np.uint8)
DEEP = (PHOTO[..., 0].astype(np.uint16) << 8) | PHOTO[..., 1]


class Wrong(AssertionError):
    """An answer that is neither right nor a refusal."""


@dataclass(frozen=True)
class Kind:
    """A kind of set: its files by path, which of them are text, and what reads them whole.

    read: given the folder of the set, raises UserError or CorruptSample for what it refuses, Wrong for wrong answers.
    """

    files: dict[str, bytes]
    read: Callable[[Path], None]
    text: tuple[str, ...] = ()

    def write(self, folder: Path, random: Random) -> str:
        """Write the set with one damaged file, and return that file's path below `folder`."""
        names = list(self.files)
        name = names[int(random.integers(len(names)))]
        for each, data in self.files.items():
            path = folder / each
            path.parent.mkdir(parents=True, exist_ok=True)
            if each == name:
                data = (damaged_text if each.endswith(self.text or ("?",)) else damaged)(data, random)
            path.write_bytes(data)
        return name


# ---- images


def image_files() -> dict[str, bytes]:
    """Return one valid image file of every kind that PIL writes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, gray = Image.fromarray(PHOTO), Image.fromarray(PHOTO[..., 0])
    deep, real = Image.fromarray(DEEP), Image.fromarray(PHOTO[..., 0].astype(np.float32) / 255)
    forms: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("plain.jpg", "JPEG", rgb, {}), ("gray.jpg", "JPEG", gray, {}), ("turned.jpg", "JPEG", rgb, {"exif": exif}),
        ("progressive.jpg", "JPEG", rgb, {"progressive": True}), ("cmyk.jpg", "JPEG", rgb.convert("CMYK"), {}),
        ("restart.jpg", "JPEG", rgb, {"restart_marker_blocks": 1}), ("plain.png", "PNG", rgb, {}),
        ("palette.png", "PNG", rgb.quantize(16), {"transparency": 3}), ("alpha.png", "PNG", gray.convert("LA"), {}),
        ("turned.png", "PNG", rgb, {"exif": exif}), ("deep.png", "PNG", deep, {}), ("bits.png", "PNG", gray.convert("1"), {}),
        ("frames.png", "PNG", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}), ("lossy.webp", "WEBP", rgb, {}),
        ("lossless.webp", "WEBP", rgb, {"lossless": True, "exif": exif}), ("plain.gif", "GIF", rgb, {}),
        ("frames.gif", "GIF", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}), ("plain.bmp", "BMP", rgb, {}),
        ("palette.bmp", "BMP", rgb.quantize(16), {}), ("plain.tif", "TIFF", rgb, {}), ("turned.tif", "TIFF", rgb, {"exif": exif}),
        ("lzw.tif", "TIFF", rgb, {"compression": "tiff_lzw"}), ("deflate.tif", "TIFF", deep, {"compression": "tiff_deflate"}),
        ("jpeg.tif", "TIFF", rgb, {"compression": "jpeg"}), ("deep.tif", "TIFF", deep, {}), ("float.tif", "TIFF", real, {}),
        ("cmyk.tif", "TIFF", rgb.convert("CMYK"), {}), ("plain.ppm", "PPM", rgb, {}), ("deep.pgm", "PPM", deep, {}),
        ("plain.jp2", "JPEG2000", rgb, {}), ("deep.jp2", "JPEG2000", deep, {}), ("plain.avif", "AVIF", rgb, {}),
        ("turned.avif", "AVIF", rgb, {"exif": exif}), ("plain.ico", "ICO", rgb, {}), ("plain.tga", "TGA", rgb, {}),
        ("plain.pcx", "PCX", rgb, {}), ("plain.sgi", "SGI", rgb, {}), ("plain.dds", "DDS", rgb, {}),
        ("plain.qoi", "QOI", rgb, {})]
    Image.init()
    found = {}
    for name, form, image, how in forms:
        if form in Image.SAVE:
            buffer = io.BytesIO()
            image.save(buffer, form, **how)
            found[name] = buffer.getvalue()
    found["text.pgm"] = b"P2 2 2 4095\n# a comment\n0 2048 4095 9\n"
    return found


def by_pil(data: bytes) -> np.ndarray:
    """Return what the documented rules make of PIL's own decoding, uint8 RGB [H, W, 3]. Raises what PIL raises."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "EPS":
            raise ValueError("refused")
        tags = getattr(image, "tag_v2", {})
        form, mode, bits, sign, white = image.format, image.mode, tags.get(258, (16,))[0], tags.get(339, (1,)), tags.get(262)
        image.load()
        if 0 in image.size:
            raise ValueError("refused")
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception:  # damaged metadata
            turned = image
        if mode not in ("I", "F") and not mode.startswith("I;16"):
            return np.array(turned.convert("RGB"))
        values = np.asarray(turned)
        if mode == "F":
            if not (values.min() >= 0 and values.max() <= 1):  # NaN neither
                raise ValueError("refused")
            values = np.rint(values.astype(float) * 255)
        elif (mode == "I" and form in ("PNG", "PPM")) or (mode != "I" and form in ("PNG", "PPM", "TIFF", "JPEG2000")):
            values = np.minimum(values.astype(np.int64) >> (bits - 8), 255)
        else:
            raise ValueError(f"refused: {mode} {form} {sign}")
        values = 255 - values if white == 0 else values
        return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def read_image(folder: Path) -> None:
    """Decode the one file of a folder and compare the pixels with PIL's, also those that are not turned."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    try:
        expected: np.ndarray | None = by_pil(data)
    except Exception:
        expected = None
    try:
        pixels = decode(data, path.name)
    except CorruptSample:
        if expected is not None:
            raise Wrong("refused, but PIL reads it") from None
        raise
    if expected is None:
        raise Wrong("read, but PIL refuses it")
    if pixels.dtype != np.uint8 or not np.array_equal(pixels, expected):
        raise Wrong(f"{pixels.shape} differs from PIL's {expected.shape}")
    stored = decode(data, path.name, Pixels(upright=False))
    if sorted(stored.shape) != sorted(pixels.shape) or stored.sum(dtype=np.int64) != pixels.sum(dtype=np.int64):
        raise Wrong("the pixels that are not turned are others")


# ---- sets


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
                _compare_or_refuse(lambda: decode(sample.image, sample.key), sample.image)
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
        _compare_or_refuse(lambda i=index: source.image(i), _raw(source, index), source.pixels.upright)
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


def _compare_or_refuse(read: Callable[[], np.ndarray], data: bytes | None, upright: bool = True) -> None:
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
    square = [2.0, 2.0, 10.0, 2.0, 10.0, 9.0, 2.0, 9.0]
    notes = [{"id": i, "image_id": i % 2 + 1, "category_id": 1 + i % 2, "bbox": [2, 2, 8, 7], "area": 56.0, "iscrowd": 0,
              "segmentation": [square]} for i in range(4)]
    notes[3] |= {"iscrowd": 1, "segmentation": {"size": [24, 16], "counts": [0, 200, 184]}}
    notes[2] |= {"segmentation": {"size": [24, 16], "counts": "i26f04e"}}
    return json.dumps({
        "images": [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 16} for i in (1, 2)], "annotations": notes,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}, indent=1).encode()


def _voc(name: str) -> bytes:
    return (f"<annotation><filename>{name}.jpg</filename><size><width>16</width><height>24</height></size><object><name>"
            "cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>20</ymax></bndbox>"
            "</object></annotation>").encode()


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
    cityscapes = "aachen/aachen_0_0_"
    idx = {"images": _idx(colours[..., 0]), "labels": _idx(np.array([1, 2], np.uint8))}
    tars = {"ustar": _tar(tarfile.USTAR_FORMAT), "gnu": _tar(tarfile.GNU_FORMAT), "pax": _tar(tarfile.PAX_FORMAT)}
    classes = ["a", "b", "c"]
    return {
        **images,
        **{f"shards-{form}": Kind({"x.tar": data}, read_set({"kind": "shards", "label": "cls"}, "x.tar", classes=classes))
           for form, data in tars.items()},
        **{f"stream-{form}": Kind({"x.tar": data}, read_set({"kind": "stream", "label": "cls"}, "x.tar", classes=classes,
                                                            split={"samples": 3})) for form, data in tars.items()},
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
        "voc": Kind({"V/Annotations/a.xml": _voc("a"), "V/JPEGImages/a.jpg": _jpg(), "V/ImageSets/Main/t.txt": b"a 1\n"},
                    read_set("voc-boxes", "V/t", classes=["cat"]), (".xml", ".txt")),
        "voc-masks": Kind({"SegmentationClass/a.png": _png(mask), "JPEGImages/a.jpg": _jpg(),
                           "ImageSets/Segmentation/t.txt": b"a\n"}, read_set("voc-masks", "t"), (".txt",)),
        "cityscapes": Kind({f"leftImg8bit/t/{cityscapes}leftImg8bit.png": _png(PHOTO),
                            f"gtFine/t/{cityscapes}gtFine_labelIds.png": _png(mask)}, read_set("cityscapes-masks", "t")),
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


def names_in_turn(all_kinds: dict[str, Kind]) -> Iterator[str]:
    """Yield names of kinds without end: images and sets in turn."""
    images = [name for name in all_kinds if name.startswith("image-")]
    others = [name for name in all_kinds if not name.startswith("image-")]
    place = 0
    while True:
        yield (images, others)[place % 2][place // 2 % len((images, others)[place % 2])]
        place += 1
