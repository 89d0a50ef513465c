"""Folders as people have them: links, leftovers, runs, names of every kind, other files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.sources.test_folder import CLASSES, FOLDER, write

from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.files import formats
from unlabeled.data.sources.files.listing import class_names, scan
from unlabeled.data.sources.files.said import say_once
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError


@pytest.fixture(autouse=True)
def _say_again() -> None:
    say_once.cache_clear()


def test_every_real_folder_is_read_once(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.jpg" for folder in "abcdefg" for i in (0,)]
    write(tmp_path, *names)
    for folder in "abcdefg":
        for other in "abcdefg":
            (tmp_path / folder / f"to-{other}").symlink_to(f"../{other}")
    (tmp_path / "0-first").symlink_to("a")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "top").symlink_to("/")
    assert scan(tmp_path) == names


def test_a_folder_outside_is_read_under_the_first_link_to_it(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", "x.jpg", "deep/y.jpg")
    (outside / "again").symlink_to(outside)
    root = write(tmp_path / "set", "m/a.jpg")
    for name in ("b", "c"):
        (root / name).symlink_to(outside)
    (root / "m" / "d").symlink_to(outside / "deep")
    assert scan(root) == ["b/deep/y.jpg", "b/x.jpg", "m/a.jpg"]


def test_links_that_lead_nowhere_and_what_is_no_file_is_counted(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    write(tmp_path, "a.jpg", "folder.jpg/b.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "same.jpg").symlink_to("a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.jpg")
    assert scan(tmp_path) == ["a.jpg", "folder.jpg/b.jpg", "same.jpg"]
    assert capsys.readouterr().err == (f"{tmp_path}: 3 images; passed over 4 other files: 2 links that lead nowhere, "
                                       "2 pipes and devices\n")


def test_a_pipe_that_a_list_names_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    source = FolderSource("x", "train", tmp_path, ["pipe.jpg", ".", "absent.jpg"])
    for index, text in enumerate(("no plain file", "Is a directory", "No such file")):
        with pytest.raises(CorruptSample, match=text):
            source.image(index)


@pytest.mark.parametrize("name", [
    "__MACOSX", "@eaDir", ".thumbnails", ".hidden", "$RECYCLE.BIN", "System Volume Information", "lost+found",
    "#recycle",
    "@Recycle", "__pycache__", ".ipynb_checkpoints"])
def test_leftovers_of_systems_are_neither_images_nor_classes(tmp_path: Path, name: str,
                                                             capsys: pytest.CaptureFixture[str],
                                                             ) -> None:
    root = write(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", f"train/{name}/c.jpg", f"train/cat/{name}/d.jpg",
                 "train/cat/._a.jpg", "train/._dog")
    for other in ("train/.DS_Store", "train/cat/Thumbs.db", "train/dog/desktop.ini"):
        (root / other).write_bytes(b"x")
    source = open_source(CLASSES, "train", str(root))
    assert source.classes == ["cat", "dog"]
    assert [source.key(i) for i in range(len(source))] == ["cat/a.jpg", "dog/b.jpg"]
    assert capsys.readouterr().err == ""


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    root = write(tmp_path, "train/ant/a.jpg", "train/cat/deep/b.jpg", "val/cat/c.jpg")
    (root / "train" / "bee").mkdir()
    (root / "train" / "bat" / "deep").mkdir(parents=True)
    (root / "train" / "bug").mkdir()
    (root / "train" / "bug" / "notes.txt").write_text("x")
    (root / "train" / "again").symlink_to("ant")
    (root / "train" / "far").symlink_to(write(tmp_path / "outside", "d.jpg"))
    for split, labels in (("train", [0, 1, 2]), ("val", [1])):
        source = open_source(CLASSES, split, str(root))
        assert source.classes == ["ant", "cat", "far"]
        assert source.labels.tolist() == labels
    write(root, "val/bee/e.jpg")
    with pytest.raises(UserError, match=r"val/bee is no class of card 'mine' \(3 classes: ant, cat, far\)"):
        open_source(CLASSES, "val", str(root))


def test_classes_that_hold_only_links_to_others_count_alike_for_all_splits(tmp_path: Path) -> None:
    root = write(tmp_path, "train/ant/a.jpg", "val/ant/b.jpg")
    (root / "train" / "bee").mkdir()
    (root / "train" / "bee" / "link").symlink_to("../ant")
    assert open_source(CLASSES, "train", str(root)).classes == ["ant"] == open_source(CLASSES, "val", str(root)).classes
    assert class_names(root / "train") == ["ant"]


@pytest.mark.parametrize("mark", ["run.json", "checkpoints/x", "metrics.jsonl", "export/x"])
def test_a_run_inside_its_data_is_no_data(tmp_path: Path, mark: str) -> None:
    write(tmp_path, "a.jpg", "b/c.jpg", "runs/x/views.png", "runs/x/eval/y.png", "runs/x.replaced-1/views.png",
          "runs/d.jpg",
          "kitchen/e.jpg")
    for folder in ("runs/x", "runs/x.replaced-1"):
        (tmp_path / folder / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "recipe.yaml").write_text("method: rotnet")
        (tmp_path / folder / mark).write_bytes(b"")
    (tmp_path / "kitchen" / "recipe.yaml").write_text("flour: 500")
    assert scan(tmp_path) == ["a.jpg", "b/c.jpg", "kitchen/e.jpg", "runs/d.jpg"]
    (tmp_path / "run").symlink_to("runs/x")
    assert class_names(tmp_path) == ["b", "kitchen", "runs"]
    assert scan(tmp_path / "runs" / "x") == ["eval/y.png", "views.png"]  # who names it means it


FORMATS = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "jp2": "JPEG2000", "j2k": "JPEG2000", "avif": "AVIF",
           "tga": "TGA",
           "dib": "DIB", "pcx": "PCX", "sgi": "SGI", "pbm": "PPM", "pnm": "PPM", "apng": "PNG", "ico": "ICO",
           "mpo": "MPO",
           "TIF": "TIFF", "qoi": "QOI", "webp": "WEBP"}


def test_what_pil_reads_is_read_and_the_rest_is_counted_in_one_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    written = []
    for ending, form in FORMATS.items():
        if form in Image.SAVE:
            (pixels.convert("1") if ending == "pbm" else pixels).save(tmp_path / f"x.{ending}", form)
            written.append(f"x.{ending}")
    monkeypatch.setattr(formats, "pillow_heif", None)
    monkeypatch.setattr(formats, "EXTENSIONS", tuple(set(formats.EXTENSIONS) - {"heic"}))
    for name in ("a.heic", "b.HEIC", "clip.mov", "c.pdf", "d.eps", "e.mpg", "notes", "odd.\udcff", "x.index",
                 "y.images"):
        (tmp_path / name).write_bytes(b"x")
    source = open_source(FOLDER, "train", str(tmp_path))
    assert [source.key(i) for i in range(len(source))] == sorted(written)
    assert len(written) >= 15
    for i in range(len(source)):
        assert source.image(i).shape == (16, 16, 3)
    assert capsys.readouterr().err == (
        f"{tmp_path}: {len(written)} images; passed over 8 other files: 2 .heic, "
        "2 without a known ending, 1 .eps, 1 .mov, 1 .mpg, 1 .pdf (to read HEIC: pip install pillow-heif)\n")


def test_files_of_other_programs_are_no_images_whatever_their_ending(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8))
    for name, form in (("a.bw", "SGI"), ("b.vda", "TGA"), ("c.msp", "MSP")):
        (pixels.convert("1") if form == "MSP" else pixels).save(tmp_path / name, form)
    for name in ("cloud.pcd", "run.fit", "patch.msp", "board.gbr"):
        (tmp_path / name).write_bytes(b"# another program's file\n" * 20)
    assert scan(tmp_path) == ["a.bw", "b.vda", "c.msp"]
    assert capsys.readouterr().err.endswith("passed over 4 other files: 1 .fit, 1 .gbr, 1 .msp, 1 .pcd\n")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    pixels = Image.new("RGB", (64, 48), (200, 60, 30))
    heif.from_pillow(pixels).save(tmp_path / "a.heic", quality=90)
    source = open_source(FOLDER, "train", str(tmp_path))
    assert source.key(0) == "a.heic"
    assert np.abs(source.image(0).astype(int) - (200, 60, 30)).max() < 12
    assert source.image(0).shape == (48, 64, 3)


def test_nothing_but_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "pillow_heif", None)
    monkeypatch.setattr(formats, "EXTENSIONS", tuple(set(formats.EXTENSIONS) - {"heic"}))
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError,
                       match=r"holds no images \(looked .*\); passed over: 1 .heic \(to read HEIC: pip install"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["bräu \udcff.jpg", "a\nb.jpg", " b.jpg", "b.jpg ".strip() + "\u2028.jpg",
                                  "$HOME.jpg", "~.jpg", "c\\d.jpg"])
def test_names_of_every_kind(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, f"sub{name}/x.png")
    source = open_source(FOLDER, "train", str(tmp_path))
    assert sorted(source.key(i) for i in range(2)) == sorted([name, f"sub{name}/x.png"])
    assert source.image(0).shape == (16, 16, 3)


def test_roots_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "self").symlink_to("self")
    for root, text in ((tmp_path / "a.jpg", "a.jpg is a file, not a folder; give the folder that holds the images"),
                       (tmp_path / "no", "is not a folder"), (tmp_path / "self", "Too many levels|is not a folder"),
                       (tmp_path / ("x" * 256), "File name too long"),
                       (tmp_path / "x/" / ("y/" * 2100), "File name too long"),
                       (tmp_path / "a\0b", "null|is not a folder"), (tmp_path / "a.jpg" / "b", "is not a folder")):
        with pytest.raises(UserError, match=text) as error:
            scan(root)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


def test_a_path_longer_than_the_system_takes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(UserError, match=r"ddd... cannot be read: File name too long") as error:
        scan(tmp_path)
    assert len(str(error.value)) < 300


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_sub_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(UserError, match=r"closed may not be read by this user"):
            scan(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_another_layout_than_the_cards_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", "cat/1.jpg", "dog/2.jpg", "eel/3.jpg", "fox/4.jpg")
    with pytest.raises(UserError) as error:
        open_source(CLASSES, "train", str(root))
    assert str(error.value) == (
        f"data card 'mine', split 'train': no folder {root}/train with a folder per class; {root} itself holds 4 "
        f"folders of images (cat, dog, eel, ...). Move them into {root}/train, copy the card and set the split's path "
        "to '.', or leave the classes out with card 'folder'")
    write(root, "train/cat/1.jpg")
    with pytest.raises(UserError, match=r"no folder .*/val with a folder per class; .*photos holds only: train"):
        open_source(CLASSES, "val", str(root))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no class folders either"):
        open_source(CLASSES, "train", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"is not a folder; give the folder that holds the images"):
        open_source(CLASSES, "train", str(tmp_path / "absent"))


def test_of_links_to_one_folder_the_first_by_name_counts(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "1.jpg")
    (tmp_path / "root").mkdir()
    for name in "hgfedcbaijklmnop":
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    assert scan(tmp_path / "root") == ["a/1.jpg"]


def test_a_run_among_folders_of_classes_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/2.jpg", "a_run/views.png")
    (tmp_path / "a_run" / "recipe.yaml").write_text("")
    assert class_names(tmp_path) == ["cat", "dog"]


def test_common_formats_are_tried_first() -> None:
    """PIL tries them in this order for every file: behind all others JPEG took three times as long to open."""
    assert set(Image.ID[:6]) == {"BMP", "DIB", "GIF", "JPEG", "PPM", "PNG"}
