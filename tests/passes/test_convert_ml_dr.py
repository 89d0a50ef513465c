"""Published reinforced sets: what is read, what is compared with the card, and pickles that would run something."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.passes.toys import CLASSES, Pictures, maker, taught

from unlabeled.augment.operations import RAND_AUGMENT
from unlabeled.config.augment import StoredResizedCrop
from unlabeled.config.passes.convert_ml_dr import MlDrFiles
from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError
from unlabeled.passes.convert_ml_dr import convert
from unlabeled.passes.ml_dr_format import compress, decompress, read_plain, row_of, transforms_of

SIZE, ENTRIES, TOPK = 12, 4, 3
ALL = {"uint8": True, "random_resized_crop": {"size": SIZE, "scale": [0.08, 1]}, "random_horizontal_flip": {"p": 0.5},
       "rand_augment": {"p": 1.0}, "to_tensor": True, "random_erase": {"p": 0.25}, "normalize": {}}
MIXED = {**ALL, "mixup": {"alpha": 1.0}, "cutmix": {"alpha": 1.0}}


def params_of(columns: dict[str, np.ndarray], place: int, entry: int, mix: bool) -> dict[str, Any]:
    """Return our fields of an entry as published parameters."""

    def pair(value):
        return [value(""), value("2")] if mix else value("")

    def box(name: str):
        numbers = columns[name][place, entry].tolist()
        return None if numbers[0] == 65535 else numbers

    def operations(suffix: str):
        both = zip(columns[f"op{suffix}"][place, entry], columns[f"magnitude{suffix}"][place, entry], strict=True)
        return [[RAND_AUGMENT[op], float(amount)] for op, amount in both]

    params: dict[str, Any] = {
        "uint8": [[], []],
        "random_resized_crop": pair(lambda suffix: columns[f"crop{suffix}"][place, entry].tolist()),
        "random_horizontal_flip": pair(lambda suffix: bool(columns[f"flip{suffix}"][place, entry])),
        "rand_augment": pair(operations),
        "random_erase": pair(lambda suffix: box(f"erase{suffix}")),
        "id2": place,
    }
    if mix:
        share, cut = float(columns["mixup"][place, entry]), box("cut")
        params |= {"id2": int(columns["partner"][place, entry]), "mixup": None if share == 1 else share,
                   "cutmix": None if cut is None else [0.5, cut]}
    return params


def publish(folder: Path, source: Source, transforms: dict[str, Any]) -> dict[str, np.ndarray]:
    """Write a published set of what the pass would store, and return that."""
    folder.mkdir(exist_ok=True)
    mix = "mixup" in transforms
    made = maker(source, StoredResizedCrop(size=SIZE), ENTRIES, mix=mix)
    columns, _ = taught(made, TOPK)
    label = np.broadcast_to((np.arange(len(source)) % CLASSES)[:, None], columns["class"].shape[:2])
    columns["class"] = ((label[..., None] + np.arange(TOPK)) % CLASSES).astype("<u2")
    order = list(transforms)
    for place in range(len(source)):
        entries = []
        for entry in range(ENTRIES):
            shuffled = np.random.default_rng(entry).permutation(TOPK)
            prob = [columns["prob"][place, entry][shuffled].tolist(), columns["class"][place, entry][shuffled].tolist()]
            entries.append({"params": compress(params_of(columns, place, entry, mix), order), "prob": tuple(prob)})
        torch.save((place, entries), folder / f"{place}.pth.tar", pickle_protocol=4)
    config = {"reinforce": OrderedDict(gpu=True), "data": [{"transforms": dict(reversed(transforms.items()))}]}
    torch.save(config, folder / "config.pth.tar", pickle_protocol=4)
    return columns


def converted(folder: Path, source: Source, **options: Any):
    settings = MlDrFiles(card="pictures", out=str(folder.with_name("store")), batch=2, workers=0, **options)
    return convert(folder, source, settings, torch.device("cpu"))


@pytest.mark.parametrize("transforms", [ALL, MIXED], ids=["alone", "mixed"])
def test_records_become_the_rows_that_our_pass_writes(
    transforms: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Pictures()
    columns = publish(tmp_path / "published", source, transforms)
    store = converted(tmp_path / "published", source)
    rows = store.rows(np.arange(9))
    assert rows.dtype.names == tuple(columns)
    unmixed = columns["partner"] < 0 if "partner" in columns else np.zeros((9, ENTRIES), bool)
    for name, values in columns.items():
        if name.endswith("2"):  # of what is not mixed the second set is the first, and not looked at
            values = np.where(unmixed.reshape(9, ENTRIES, *[1] * (values.ndim - 2)), columns[name[:-1]], values)
        assert np.array_equal(rows[name], values), name
    about = store.header.about
    assert about["crop"]["size"] == SIZE and about["mix"] == ("mixup" in transforms)
    assert (about["entries"], about["topk"], about["num_classes"]) == (ENTRIES, TOPK, CLASSES)
    assert "agree for 9 of 9 images" in capsys.readouterr().out


def test_a_padded_crop_is_known_by_its_padding(tmp_path: Path) -> None:
    source, folder = Pictures(), tmp_path / "published"
    folder.mkdir()
    transforms = {"resize": 16, "random_crop": {"size": (16, 16), "padding": 2, "padding_mode": "reflect"},
                  "random_horizontal_flip": {}}
    torch.save({"transforms": transforms}, folder / "config.pth.tar", pickle_protocol=4)
    for place in range(9):
        entry = {"params": [16, [place % 4, 3], True], "prob": ([0.5, 0.25], [place % CLASSES, (place + 1) % CLASSES])}
        torch.save((place, [entry]), folder / f"{place}.pth.tar", pickle_protocol=4)
    store = converted(folder, source)
    assert store.rows(np.array([6]))["crop"].tolist() == [[[2, 3, 16, 16]]]
    assert store.rows(np.array([6]))["op"].tolist() == [[[255, 255]]]
    crop = store.header.about["crop"]
    assert (crop["kind"], crop["size"], crop["pad"], crop["resize"]) == ("padded", 16, 2, 16)
    assert crop["border"] == "reflect"


@pytest.mark.parametrize("stated", ["bicubic", 3, "BICUBIC"])
def test_the_interpolation_is_the_published_one(stated: Any, tmp_path: Path) -> None:
    transforms = {**ALL, "random_resized_crop": {"size": SIZE, "interpolation": stated}}
    publish(tmp_path / "published", Pictures(), transforms)
    about = converted(tmp_path / "published", Pictures()).header.about
    assert about["crop"]["interpolation"] == "bicubic" and about["randaugment_interpolation"] == "nearest"


def test_a_transform_that_was_skipped_of_a_mixed_sample(tmp_path: Path) -> None:
    """Then a single None stands where the others have pairs, and is that of both images."""
    order = list(MIXED)
    params = {"random_resized_crop": [[1, 2, 9, 8], [0, 3, 7, 6]], "random_horizontal_flip": [True, False],
              "rand_augment": None, "random_erase": None, "id2": 5, "mixup": 0.25, "cutmix": None}
    values = compress(params, order)
    assert values[0] == 5 and values[3:5] == [None, None]
    row = row_of(decompress(values, order), SIZE, mix=True)
    assert row["partner"] == 5 and row["op"].tolist() == row["op2"].tolist() == [255, 255]
    assert row["erase"].tolist() == row["erase2"].tolist() == [65535] * 4
    assert row["crop"].tolist() == [1, 2, 9, 8] and row["crop2"].tolist() == [0, 3, 7, 6]
    assert (row["flip"], row["flip2"]) == (1, 0)


class Malicious:
    """Would make a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("content", ["function", "tensor", "array"])
def test_a_pickle_that_names_anything_is_refused(content: str, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "0.pth.tar"
    harmful = {"function": Malicious(trace), "tensor": torch.zeros(3), "array": np.zeros(3)}[content]
    torch.save((0, [{"params": [], "prob": harmful}]), file, pickle_protocol=4)
    with pytest.raises(UserError, match=r"0.pth.tar is not read: it (asks for|holds) .*plain containers only"):
        read_plain(file)
    assert not trace.exists(), "nothing was called"


def test_a_folder_of_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.pth\.tar, which says how its views were made; name the"):
        converted(tmp_path, Pictures())


@pytest.mark.parametrize("damage", ["cut short", "no archive", "another archive", "missing"])
def test_a_damaged_file_is_one_line(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "0.pth.tar"
    torch.save((0, [1.0] * 1000), file, pickle_protocol=4)
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:300])
    elif damage == "no archive":
        file.write_text("hello")
    elif damage == "another archive":
        np.savez(tmp_path / "x.npz", a=np.zeros(3))
        os.replace(tmp_path / "x.npz", file)
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"0.pth.tar (is no file of stored entries|cannot be read)") as caught:
        read_plain(file)
    assert "\n" not in str(caught.value)


def rewrite(file: Path, change) -> None:
    index, entries = read_plain(file)
    torch.save(change(index, entries), file, pickle_protocol=4)


def wider(index, entries):
    entries[1]["params"][0] = [0, 0, 40, 5]
    return index, entries


def shorter(index, entries):
    entries[0]["params"].pop()
    return index, entries


def beyond(index, entries):
    return index, [{**entries[0], "prob": ([0.5, 0.2, 0.1], [0, 1, 9])}, *entries[1:]]


@pytest.mark.parametrize(("change", "message"), [
    (lambda index, entries: (index + 1, entries), r"0.pth.tar is no record .*it says that it is of image 1"),
    (wider, r"a crop of record 0 reaches to \(40, \d+\), but image 'picture 0' has 18 x 30 pixels"),
    (shorter, r"an entry has 3 values, but its transforms draw 4 \(random_resized_crop, random_horizontal_flip"),
    (beyond, "its classes reach 9, but there are 5"),
    (lambda index, entries: "nothing", "0.pth.tar is no record of stored entries"),
])  # fmt: skip
def test_records_of_another_form_or_of_other_images(change, message: str, tmp_path: Path) -> None:
    source, folder = Pictures(), tmp_path / "published"
    publish(folder, source, ALL)
    rewrite(folder / "0.pth.tar", change)
    with pytest.raises(UserError, match=message):
        converted(folder, source)


def test_records_of_unequal_lengths(tmp_path: Path) -> None:
    source, folder = Pictures(), tmp_path / "published"
    publish(folder, source, ALL)
    rewrite(folder / "4.pth.tar", lambda index, entries: (index, entries[:2]))
    with pytest.raises(UserError, match=r"4.pth.tar has 2 entries of 3 classes, but others have 4 of 3"):
        converted(folder, source)


def test_numbers_of_images_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    publish(folder, Pictures(), ALL)
    with pytest.raises(UserError, match=r"lacks 2 records \(9, 10\): split 'train' of data card 'pictures' has 11"):
        converted(folder, Pictures(11))
    with pytest.raises(UserError, match=r"holds 9 records, but split .* has 7 images"):
        converted(folder, Pictures(7))


def test_labels_tell_files_in_another_order(tmp_path: Path) -> None:
    folder, source = tmp_path / "published", Pictures(30, in_memory=True)
    publish(folder, source, ALL)
    source.labels = (source.labels + 2) % CLASSES
    with pytest.raises(UserError, match="the label of 0 of 30 images only: they are of other images, or of files or"):
        converted(folder, source)


def test_the_number_of_classes_must_be_known(tmp_path: Path) -> None:
    folder, source = tmp_path / "published", Pictures()
    publish(folder, source, ALL)
    source.classes = source.labels = None
    with pytest.raises(UserError, match="names no classes; give their number with classes=N"):
        converted(folder, source)
    assert converted(folder, source, classes=7).header.about["num_classes"] == 7


@pytest.mark.parametrize(("config", "message"), [
    ({"a": 1}, "it names no transform; known are uint8"),
    ({"transforms": {"normalize": {}, "to_tensor": True}}, "names neither random_resized_crop nor random_crop"),
    ({**ALL, "resize": 256}, "config.pth.tar: it names resize before random_resized_crop, which a replay cannot show"),
    ({**ALL, "resize": 256, "center_crop": 224}, "it names resize and center_crop before random_resized_crop"),
    ({"random_crop": {"size": 8}, "center_crop": 8}, "it names center_crop before random_crop"),
    ({**ALL, "random_crop": {"size": 8}}, "it names random_resized_crop and random_crop, but stored views are of one"),
    ({"random_resized_crop": {"size": 8, "interpolation": "lanczos"}}, "interpolation lanczos; replayed are bilinear"),
    ({"random_resized_crop": {"size": 8, "interpolation": 0}}, "interpolation nearest; replayed are bilinear and bic"),
    ({**ALL, "rand_augment": {"interpolation": "bilinear"}}, "rand_augment has interpolation bilinear, but a"),
    ({**ALL, "rand_augment": {"interpolation": 2}}, "has interpolation bilinear, but a replay has nearest"),
    ({**ALL, "random_erase": {"value": "random"}}, "random_erase has value random, but a replay has 0"),
    ({"random_crop": {"size": 8, "padding_mode": "edge"}}, "padding_mode edge; replayed are constant and reflect"),
    ({"random_crop": {"size": 8}, "resize": {"size": 9, "interpolation": 3}}, "resize has interpolation bicubic, but"),
    ({"random_resized_crop": {"scale": 1}}, "'size' is None, no whole number; give the side of the views with size="),
])  # fmt: skip
def test_configurations_that_say_too_little(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    publish(folder, Pictures(), ALL)
    torch.save(config, folder / "config.pth.tar", pickle_protocol=4)
    with pytest.raises(UserError, match=message):
        converted(folder, Pictures())


def test_transforms_are_found_at_any_depth_and_put_in_order() -> None:
    inner = {"mixup": None, "cutmix": {"p": 1}, "random_crop": {"size": 4}, "resize": False}
    assert list(transforms_of({"a": [1, {"b": inner}]})) == ["random_crop", "cutmix"]
