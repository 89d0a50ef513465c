"""unlabeled pack: shards or arrays, index, card and checksums; resumed, the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from tests.data.toys import jpeg, shard_card, write_shards

from unlabeled.config.card import Card
from unlabeled.config.pack import PackSettings
from unlabeled.config.read import read_file
from unlabeled.config.yaml.write import to_yaml
from unlabeled.data.packing import parts as pack_parts
from unlabeled.data.packing.split import pack
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import read_list
from unlabeled.data.sources.tar.index import make_index
from unlabeled.data.sources.tar.shards import ShardSource
from unlabeled.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ["ant", "bee", "cat"]


def settings(**given: Any) -> PackSettings:
    return PackSettings.model_validate({"workers": 0, **given})


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return a folder with 24 images of three classes in train and 6 in val, of several formats and sizes."""
    root = tmp_path / "set"
    for number in range(30):
        split, name = "train" if number < 24 else "val", CLASSES[number % 3]
        (root / split / name).mkdir(parents=True, exist_ok=True)
        form, ending = [("JPEG", "jpg"), ("PNG", "png"), ("JPEG", "JPEG"), ("WEBP", "webp")][number % 4]
        (root / split / name / f"im.{number:03d}.{ending}").write_bytes(jpeg(number, 12 + number, form))
    return root


def contents(out: Path) -> dict[str, bytes]:
    """Return the files that a pack promises to make equal."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix != ".index"}


def reopened(out: Path, split: str = "train") -> Source:
    return open_source(read_file(out / "card.yaml", Card), split)


def by_number(source: Source, original: Source) -> dict[int, int]:
    """Return the place in a packed split of every sample of the original one."""
    places = {source.key(i): i for i in range(len(source))}
    return {number: places[pack_parts.plain(original.key(number))] for number in range(len(original))}


def test_class_folders_become_shards_with_index_card_and_checksums(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(str(labelled), out, settings(shard_samples=7))
    original = {split: open_source(Card.model_validate({
        "name": "x", "source": {"kind": "classfolder"}, "root": str(labelled),
        "splits": {"train": {}, "val": {}}}), split) for split in ("train", "val")}
    card = read_file(out / "card.yaml", Card)
    assert card.classes == CLASSES
    assert card.splits["train"].path == "train-{000000..000003}.tar"
    assert (card.splits["train"].samples, card.splits["val"].samples) == (24, 6)
    for split in ("train", "val"):
        source = reopened(out, split)
        assert isinstance(source, ShardSource)
        places = by_number(source, original[split])
        assert sorted(places.values()) == list(range(len(original[split])))
        for number, place in places.items():
            assert source.raw(place) == original[split].raw(number)  # the files' own bytes
            assert source.labels[place] == original[split].labels[number]
        assert list(places.values()) != sorted(places.values())
        assert {source.key(place).split("/")[0] for place in places.values()} == set(CLASSES)
    lines = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sorted(lines) == ["card.yaml", *(f"train-{i:06d}.tar" for i in range(4)), "val-000000.tar"]
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == value for name, value in lines.items())
    assert (out / "train-000003.tar.index").is_file()
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out).returncode == 0


def test_webdataset_reads_the_same_samples(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(str(labelled), out, settings(shard_samples=7))
    source = reopened(out)
    assert isinstance(source, ShardSource)
    theirs = []
    for sample in webdataset.WebDataset([str(tar) for tar in source.tars], shardshuffle=False, empty_check=False):
        image = next(sample[e] for e in ("jpg", "png", "webp") if e in sample)
        theirs.append((sample["__key__"], image, int(sample["cls"])))
    assert theirs == [(source.key(i), source.raw(i), int(source.labels[i])) for i in range(len(source))]


def test_statistics_are_those_of_the_training_pixels(labelled: Path, tmp_path: Path) -> None:
    pack(str(labelled), tmp_path / "out", settings())
    source = reopened(tmp_path / "out")
    pixels = np.concatenate([source.image(i).reshape(-1, 3) for i in range(len(source))]) / 255
    card = read_file(tmp_path / "out" / "card.yaml", Card)
    assert np.allclose(pixels.mean(0), card.mean, atol=6e-5)
    assert np.allclose(pixels.std(0), card.std, atol=6e-5)
    assert card.image_size is None


def test_the_same_input_gives_the_same_bytes_whoever_writes_them(labelled: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        pack(str(labelled), tmp_path / name, settings(shard_samples=5, workers=workers, short_side=20))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    pack(str(labelled), tmp_path / "d", settings(shard_samples=5, seed=1, short_side=20))
    assert contents(tmp_path / "a")["train-000000.tar"] != contents(tmp_path / "d")["train-000000.tar"]


def test_headers_say_nothing_of_time_and_user(labelled: Path, tmp_path: Path) -> None:
    pack(str(labelled), tmp_path / "out", settings())
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
            assert info.isreg() and "." not in info.name.split(".", 1)[0]


# ---- going on


def cut_short(folder: Path, out: Path, files: int, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    """Begin a pack that is stopped in the middle of writing file number `files`."""
    original = pack_parts.encode
    written: set[str] = set()

    def encode(*arguments: Any) -> tuple[bytes, str]:
        written.update(path.name for path in out.glob("*.tar"))
        if len(written) >= files and any(out.glob(".*.part")):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pack_parts, "encode", encode)
        pack(str(folder), out, settings(shard_samples=5, **given))


def test_a_pack_that_was_cut_short_goes_on(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(str(labelled), tmp_path / "whole", settings(shard_samples=5))
    out = tmp_path / "out"
    cut_short(labelled, out, 2, monkeypatch)
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-000000.tar", "train-000001.tar"]
    assert not (out / "card.yaml").exists()
    assert not list(out.glob(".*.part"))
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    with open(out / "pack.jsonl", "a") as record:
        record.write('{"file": "train-00')  # a power cut
    pack(str(labelled), out, settings(shard_samples=5))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert contents(out) == contents(tmp_path / "whole")


def test_damaged_and_missing_shards_are_written_again(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(str(labelled), out, settings(shard_samples=5))
    whole = contents(out)
    data = bytearray(whole["train-000001.tar"])
    data[700] ^= 1
    (out / "train-000001.tar").write_bytes(data)
    (out / "val-000000.tar").unlink()
    kept = (out / "train-000002.tar").stat().st_mtime_ns
    pack(str(labelled), out, settings(shard_samples=5))
    assert contents(out) == whole
    assert (out / "train-000002.tar").stat().st_mtime_ns == kept


def test_another_set_or_other_settings_are_refused(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(str(labelled), out, settings(shard_samples=5))
    with pytest.raises(UserError, match=r"holds another pack \(seed 0 there, 1 now\); name another folder"):
        pack(str(labelled), out, settings(shard_samples=5, seed=1))
    (labelled / "train" / "ant" / "new.jpg").write_bytes(jpeg(99))
    with pytest.raises(UserError, match=r"holds another pack \(source \w+ there, \w+ now\)"):
        pack(str(labelled), out, settings(shard_samples=5))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no pack"):
        pack(str(labelled), tmp_path / "full", settings())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_line_and_the_pack_goes_on(labelled: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*/train-\d+.tar: .* again, it goes on") as error:
            pack(str(labelled), out, settings(shard_samples=5, workers=workers))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert not list(out.glob(".*.part"))
    pack(str(labelled), out, settings(shard_samples=5, workers=workers))
    pack(str(labelled), tmp_path / "whole", settings(shard_samples=5))
    assert contents(out) == contents(tmp_path / "whole")


# ---- what is packed


def test_unreadable_images_are_left_out_and_named(labelled: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    (labelled / "train" / "bee" / "half.jpg").write_bytes(jpeg(50)[:-200])
    (labelled / "val" / "cat" / "none.png").touch()
    out = tmp_path / "out"
    pack(str(labelled), out, settings())
    lines = [line.split("\t") for line in (out / "unreadable.txt").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["train", "bee/half.jpg"], ["val", "cat/none.png"]]
    assert "runcated" in lines[0][2]
    assert lines[1][2] == "the file is empty"
    assert (len(reopened(out)), len(reopened(out, "val"))) == (24, 6)
    assert "2 unreadable images are left out" in capsys.readouterr().out
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out).returncode == 0
    for number in range(11):
        (labelled / "train" / "ant" / f"bad{number}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"split 'train': 12 of 36 images cannot be read, more than max_corrupt 0.001"):
        pack(str(labelled), tmp_path / "other", settings())
    pack(str(labelled), tmp_path / "more", settings(max_corrupt=0.5))
    assert len(reopened(tmp_path / "more")) == 24


def test_larger_images_are_resized_smaller_ones_stored_as_they_are(labelled: Path, tmp_path: Path) -> None:
    tall = np.random.default_rng(0).integers(0, 256, (100, 50, 3), np.uint8)
    Image.fromarray(tall).save(labelled / "train" / "ant" / "0.png")
    for name, quality in (("out", 95), ("rough", 40)):
        pack(str(labelled), tmp_path / name, settings(short_side=24, jpeg_quality=quality))
    source = reopened(tmp_path / "out")
    original = open_source(Card.model_validate({"name": "x", "source": {"kind": "folder"}, "root": str(labelled),
                                                "splits": {"train": {}}}), "train")
    assert isinstance(source, ShardSource)
    places = by_number(source, original)
    for number, place in places.items():
        height, width = original.image(number).shape[:2]
        if min(height, width) <= 24:
            assert source.raw(place) == original.raw(number)
        else:
            assert source.image(place).shape == (round(24 * height / min(height, width)), 24, 3)
            assert Image.open(io.BytesIO(source.raw(place))).format == "JPEG"
    assert source.image(places[0]).shape == (48, 24, 3)
    rough = reopened(tmp_path / "rough")
    assert isinstance(rough, ShardSource)
    assert len(rough.raw(by_number(rough, original)[0])) < len(source.raw(places[0])) / 2


def test_flat_and_nested_folders_have_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "photos"
    (root / "2023" / "may").mkdir(parents=True)
    (root / "2024").mkdir()
    for i in range(3):
        (root / "2023" / "may" / f"ä {i}.jpg").write_bytes(jpeg(i))
        (root / "2024" / f"{i}.jpg").write_bytes(jpeg(10 + i))
    pack(str(root), tmp_path / "guessed", settings())
    assert "sub-folders are taken as 2 classes (classes=false: no labels)" in capsys.readouterr().out
    assert reopened(tmp_path / "guessed").labels.tolist().count(1) == 3
    pack(str(root), tmp_path / "told", settings(classes=False))
    source = reopened(tmp_path / "told")
    assert source.labels is None and source.classes is None
    assert sorted(source.key(i) for i in range(6))[0] == "2023/may/ä-0"
    (root / "top.jpg").write_bytes(jpeg(9))
    pack(str(root), tmp_path / "flat", settings())
    assert reopened(tmp_path / "flat").labels is None
    assert "7 images, without labels" in capsys.readouterr().out


def test_keys_stay_unique_and_short(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "__x__" / ("deep" * 30)).mkdir(parents=True)
    names = ["a.jpg", "a.jpeg", "a.b.jpg", "a-b.jpg", "é.jpg", "__x__/in.jpg", f"__x__/{'deep' * 30}/long.jpg"]
    for i, name in enumerate(names):
        (root / name).write_bytes(jpeg(i))
    pack(str(root), tmp_path / "out", settings())
    source = reopened(tmp_path / "out")
    keys = sorted(source.key(i) for i in range(len(source)))
    assert keys == ["00000000-" + ("deep" * 30 + "/long")[-80:], "00000002-a-b", "00000003-a-b", "00000004-a",
                    "00000005-a", "x__/in", "é"]
    tars = [str(tar) for tar in source.tars]
    assert len(list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))) == len(names)


def test_published_lists_are_packed_too(labelled: Path, tmp_path: Path) -> None:
    names = [f"im.{number:03d}.jpg" for number in (0, 4, 8)]
    text = "\n".join(names).encode()
    (labelled / "few.txt").write_bytes(text)
    card = {"name": "mine", "source": {"kind": "classfolder"}, "root": str(labelled), "splits": {"train": {}},
            "lists": {"few": {"file": "few.txt", "sha256": hashlib.sha256(text).hexdigest(), "samples": 3},
                      "gone": {"file": "x/gone.txt", "sha256": "0" * 64, "samples": 3}}}
    (tmp_path / "mine.yaml").write_text(to_yaml(Card.model_validate(card)))
    pack(str(tmp_path / "mine.yaml"), tmp_path / "out", settings())
    made = read_file(tmp_path / "out" / "card.yaml", Card)
    assert read_list(made, "few") == names
    assert made.lists["gone"].file == "gone.txt"
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out").returncode == 0


def test_a_card_in_arrays_is_packed_without_loss(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), np.uint8)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "train.npz", images=pixels, labels=np.arange(20) % 3 - 1)
    card = tmp_path / "mine.yaml"
    card.write_text("name: mine\nsource: {kind: array}\nsplits: {train: {}}\nclasses: [a, b]\n")
    pack(str(card), tmp_path / "out", settings(root=str(tmp_path / "in"), shard_samples=6))
    source = reopened(tmp_path / "out")
    assert source.key(0).startswith("train-0000")
    for place in range(20):
        number = int(source.key(place).removeprefix("train-"))
        assert np.array_equal(source.image(place), pixels[number])
        assert source.labels[place] == number % 3 - 1
    assert read_file(tmp_path / "out" / "card.yaml", Card).image_size == 9


def test_shards_can_be_packed_again_and_moved(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "in")
    card = tmp_path / "toy.yaml"
    card.write_text(to_yaml(shard_card(root)))
    pack(str(card), tmp_path / "out", settings(shard_mb=0.003))
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    source, original = reopened(moved), open_source(shard_card(root), "train")
    assert isinstance(source, ShardSource) and len(source.tars) > 2
    assert {source.raw(i) for i in range(10)} == {original.raw(i) for i in range(10)}
    sizes = [len(make_index(tar, None).keys) for tar in source.tars]
    assert max(sizes) - min(sizes) <= 1


# ---- arrays


def test_images_of_one_size_become_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlabeled.data.packing.split._PIECE", 4)
    root = write_shards(tmp_path / "in")
    card = tmp_path / "toy.yaml"
    card.write_text(to_yaml(shard_card(root)))
    for name, workers in (("out", 0), ("again", 2)):
        pack(str(card), tmp_path / name, settings(store="array", workers=workers))
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert set(contents(tmp_path / "out")) == {"card.yaml", "pack.jsonl", "SHA256SUMS", "train.npy", "train-labels.npy"}
    source, original = reopened(tmp_path / "out"), open_source(shard_card(root), "train")
    assert np.array_equal(source.images, np.stack([original.image(i) for i in range(10)]))
    assert source.labels.tolist() == original.labels.tolist()
    assert np.array_equal(np.load(tmp_path / "out" / "train.npy"), source.images)


def test_labels_of_an_array_are_those_of_its_images_where_some_cannot_be_read(tmp_path: Path) -> None:
    for number, name in enumerate([*CLASSES, *CLASSES]):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name / f"{number}.png").write_bytes(b"no image" if number == 0 else jpeg(number, 12, "PNG"))
    pack(str(tmp_path / "set"), tmp_path / "out", settings(store="array", max_corrupt=0.5))
    assert reopened(tmp_path / "out").labels.tolist() == [0, 1, 1, 2, 2]


def test_a_finished_array_is_left_alone_and_a_damaged_one_made_again(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for i in range(5):
        (root / f"{i}.png").write_bytes(jpeg(i, form="PNG"))
    (root / "bad.png").write_bytes(jpeg(7, form="PNG")[:200])
    out = tmp_path / "out"
    pack(str(root), out, settings(store="array"))
    whole = contents(out)
    assert reopened(out).images.shape == (5, 16, 16, 3)
    pack(str(root), out, settings(store="array"))
    assert f"{out} is complete: all checksums in SHA256SUMS hold" in capsys.readouterr().out
    (out / "train.npy").write_bytes(whole["train.npy"][:-1] + b"x")
    pack(str(root), out, settings(store="array"))
    assert contents(out) == whole
    (root / "large.png").write_bytes(jpeg(8, 20, form="PNG"))
    with pytest.raises(UserError, match=r"needs images of one size, but 'large.png' is 20 x 20 and others 16 x 16"):
        pack(str(root), tmp_path / "other", settings(store="array"))


# ---- the command


def test_what_cannot_be_packed_is_answered(tmp_path: Path, labelled: Path) -> None:
    card = tmp_path / "far.yaml"
    card.write_text("name: far\nsource: {kind: stream}\nsplits: {train: {path: 'pipe:cat x', samples: 3}}\n")
    for source, given, text in (
            ("fotos", {}, r"no folder 'fotos', and no data card 'fotos'"),
            (str(card), {}, "data card 'far' is streamed"),
            (str(card), {"classes": True}, "'classes' goes with a folder"),
            (str(labelled), {"root": "x"}, "'root' goes with a data card"),
            (str(labelled), {"splits": ["trian"]}, "no split 'trian' .* Did you mean 'train'")):
        with pytest.raises(UserError, match=text):
            pack(source, tmp_path / "out", settings(**given))
    assert not (tmp_path / "out").exists()


def test_the_record_holds_no_place_or_time(labelled: Path, tmp_path: Path) -> None:
    pack(str(labelled), tmp_path / "out", settings())
    for name, content in contents(tmp_path / "out").items():
        if not name.endswith(".tar"):
            assert str(tmp_path).encode() not in content
    lines = [json.loads(line) for line in (tmp_path / "out" / "pack.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines[1:]] == ["train-000000.tar", "val-000000.tar"]
    assert lines[1]["samples"] == 24


DIES = """
import os, signal, sys
from pathlib import Path
from unlabeled.config.pack import PackSettings
from unlabeled.data.packing import split as pack
pack._refuse_corrupt = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
pack.pack(sys.argv[1], Path(sys.argv[2]), PackSettings(shard_samples=5, workers=2))
"""


def test_a_killed_command_leaves_no_process_and_goes_on(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # returns when the last process has closed its end of the pipe
    done = subprocess.run([sys.executable, "-c", DIES, str(labelled), str(out)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "ssl")}, timeout=60)
    assert done.returncode == -9, done.stderr
    assert len((out / "pack.jsonl").read_text().splitlines()) == 2
    pack(str(labelled), out, settings(shard_samples=5))
    pack(str(labelled), tmp_path / "whole", settings(shard_samples=5))
    assert contents(out) == contents(tmp_path / "whole")


def test_what_killed_calls_left_is_removed_at_the_start(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    out.mkdir()
    (out / ".packed.jsonl.999999.part").write_bytes(b"cut off")  # killed before it had begun
    (out / f".train-000000.tar.{os.getppid()}.part").write_bytes(b"of a call that runs")
    with pytest.raises(UserError, match="is not empty and holds no pack"):
        pack(str(labelled), out, settings())
    (out / f".train-000000.tar.{os.getppid()}.part").unlink()
    pack(str(labelled), out, settings())
    (out / ".train-000000.tar.999999.part").write_bytes(b"cut off")
    pack(str(labelled), out, settings())
    assert not list(out.glob(".*.part"))
