"""Embeddings of a user's own folder."""

import os
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file
from tests.evaluation.fakes import FakeRuns

from unlabeled.cli.main import main
from unlabeled.config.passes.shared import Part
from unlabeled.config.read import read_card
from unlabeled.data.sources.open import open_source
from unlabeled.engine.exports.preparation import preparation, preparing_lines
from unlabeled.engine.passes import run as passes_run
from unlabeled.errors import UserError
from unlabeled.evaluation import export_features as module
from unlabeled.methods.base import Input


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "load_run", FakeRuns("digits", tmp_path / "run"))
    for name in ("b/2.png", "b/1.png", "a.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_one_row_and_one_line_per_readable_image(folder, tmp_path, suffix, capsys):
    out = tmp_path / "out" / f"mine{suffix}"
    assert module.export_features(tmp_path / "run", folder, out, precision="fp32", workers=0) == 3
    x = np.load(out) if suffix == ".npy" else load_file(out)["features"]
    assert x.shape == (3, 48) and x.dtype == np.float32
    assert out.with_suffix(".txt").read_text().splitlines() == ["a.png", "b/1.png", "b/2.png"]
    first = np.asarray(Image.open(folder / "a.png")).transpose(2, 0, 1) / np.float32(255)
    network = FakeRuns("digits", tmp_path)(tmp_path).method.exports()["backbone"].build()
    np.testing.assert_allclose(x[0], network(torch.from_numpy(first)[None])[0].numpy(), rtol=1e-4, atol=1e-4)
    printed = capsys.readouterr().out
    assert "left out, cannot be read: bad.png" in printed and "3 x 48" in printed


def test_other_endings_and_missing_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"must end in .npy or .safetensors"):
        module.export_features(tmp_path / "run", folder, tmp_path / "out.csv")
    with pytest.raises(UserError, match="is not a folder"):
        module.export_features(tmp_path / "run", tmp_path / "none", tmp_path / "out.npy")


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("mean", [None, (0.4, 0.5, 0.6)])
def test_the_printed_lines_prepare_images_as_features_does(tmp_path, monkeypatch, size, mean):
    """Odd sizes, a tall and a wide image, one of the network's size, one below it, gray, palette and alpha."""
    rng = np.random.default_rng(0)
    for number, shape in enumerate([(97, 131), (301, 64), (33, 200), (size, size), (size, size + 1), (21, 17)]):
        low = Image.fromarray(rng.integers(0, 256, (*(max(2, side // 9) for side in shape), 3), np.uint8))
        low.resize(shape[::-1], Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    picture = Image.open(tmp_path / "0.png")
    for mode in ("L", "P", "RGBA", "LA"):
        Image.open(tmp_path / "0.png").convert(mode).save(tmp_path / f"{mode}.png")
    picture.save(tmp_path / "x.jpg", quality=90)

    class Run:
        def __call__(self, path, device="cpu", **options):
            restored = FakeRuns("digits", tmp_path, size)(path)
            exports = restored.method.exports()
            image = Input(size, mean, None if mean is None else (0.2, 0.25, 0.3))
            restored.method.exports = lambda: {"backbone": replace(exports["backbone"], input=image)}
            return restored

    run = Run()
    monkeypatch.setattr(module, "load_run", run)
    out = tmp_path / "found" / "x.npy"
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(tmp_path.glob("*.*")):
        path.rename(photos / path.name)
    assert module.export_features(tmp_path / "run", photos, out, precision="fp32", workers=0) == 11
    export = run(tmp_path).method.exports()["backbone"]
    told = {"model": export.build()}
    exec(preparing_lines(export.input), told)
    Image.fromarray(np.full((9, 9), 700, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):  # PIL would make it white
        told["prepare"](tmp_path / "deep.png")
    for name, expected in zip(out.with_suffix(".txt").read_text().split(), torch.from_numpy(np.load(out)), strict=True):
        x = told["prepare"](photos / name)
        assert x.shape == (3, size, size) and x.dtype == torch.float32
        assert float(F.cosine_similarity(told["model"](x[None])[0], expected, dim=0)) > 0.9999, name
    about = preparation(export.input)
    assert (about["interpolation"], about["antialias"]) == ("bicubic", True)
    assert about["crop_share"] == (1 if size == 32 else 0.875) and about["mean"] == mean


def test_another_export_is_written_where_it_does_not_replace_the_default(folder, tmp_path, monkeypatch):
    assert main(["features", str(tmp_path), str(folder)]) == 0
    assert main(["features", str(tmp_path), str(folder), "export=poor"]) == 0
    default, poor = (np.load(tmp_path / "features" / f"photos{end}.npy") for end in ("", "-poor"))
    assert default.shape == poor.shape and np.abs(default - poor).max() > 0.1


def test_names_with_line_breaks_stay_on_their_line(folder, tmp_path):
    odd = ["c\nd.png", "e\\n.png", "f\x85\u2028.png", os.fsdecode(b"g\xff.png"), "ü.png"]
    for name in odd:
        (folder / "a.png").rename(folder / name)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    out = tmp_path / "mine.npy"
    assert module.export_features(tmp_path / "run", folder, out, workers=0) == 8
    lines = out.with_suffix(".txt").read_text(errors="surrogateescape").splitlines()
    expected = ["a.png", "b/1.png", "b/2.png", "c\\nd.png", "e\\\\n.png", "f\\x85\\u2028.png", odd[3], "ü.png"]
    assert sorted(lines) == sorted(expected) and len(lines) == len(np.load(out))


def test_deep_images_are_read_as_the_runs_card_says(monkeypatch, tmp_path):
    """12 bits in 16, which look nearly black without the card's levels."""
    (tmp_path / "scans.yaml").write_text(
        f"name: scans\nsource: {{kind: folder}}\nroot: {tmp_path}\nsplits: {{train: {{path: .}}}}\nlevels: [0, 4095]\n"
    )
    monkeypatch.setattr(module, "load_run", FakeRuns(str(tmp_path / "scans.yaml"), tmp_path / "run"))
    deep = np.random.default_rng(0).integers(0, 4096, (8, 8), np.uint16)
    (tmp_path / "photos").mkdir()
    Image.fromarray(deep).save(tmp_path / "photos" / "a.png")
    module.export_features(tmp_path / "run", tmp_path / "photos", tmp_path / "x.npy", precision="fp32", workers=0)
    network = FakeRuns("digits", tmp_path)(tmp_path).method.exports()["backbone"].build()
    seen = torch.from_numpy(np.rint(deep * (255 / 4095)).astype(np.float32) / 255).expand(1, 3, -1, -1)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy")[0], network(seen)[0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "load_run", FakeRuns("digits", tmp_path / "run"))
    return tmp_path / "run"


def test_a_card_gives_one_of_its_splits(run, tmp_path, capsys):
    run.mkdir()
    assert main(["features", str(run), "digits", "split=val", "precision=fp32"]) == 0
    source = open_source(read_card("digits"), "val")
    network = FakeRuns("digits", run)(run).method.exports()["backbone"].build()
    expected = network(torch.from_numpy(source.images).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(np.load(run / "features" / "digits-val.npy"), expected.numpy(), rtol=1e-4, atol=1e-4)
    keys = (run / "features" / "digits-val.txt").read_text().splitlines()
    assert keys == [source.key(i) for i in range(500)]
    assert "500 images, 96.0 kB in 8 blocks" in capsys.readouterr().out
    assert main(["features", str(run), "digits"]) == 0
    assert len(np.load(run / "features" / "digits-train.npy")) == 1297


def test_parts_leave_the_file_to_the_last_one(run, tmp_path, capsys):
    out = tmp_path / "x.npy"
    assert module.export_features(run, "digits", out, precision="fp32", part=Part(1, 2)) is None
    assert not out.exists() and sorted(path.name for path in (tmp_path / "x.rows").iterdir())[:2] == [
        "header.json", "rows-000000"]
    assert "11 of 21 blocks are missing yet" in capsys.readouterr().out
    assert module.export_features(run, "digits", out, precision="fp32", part=Part(2, 2)) == 1297
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "run") == ["x.npy", "x.txt"]
    assert module.export_features(run, "digits", tmp_path / "y.npy", precision="fp32") == 1297
    assert out.read_bytes() == (tmp_path / "y.npy").read_bytes()


@pytest.mark.parametrize(("changed", "words"), [
    ({"export": "poor"}, "export backbone there, poor now; network "), ({"split": "val"}, "rows 1297 there, 500 now"),
    ({"precision": "bf16"}, "network "), ({"images": "photos"}, "card digits there, photos now")])
def test_rows_of_another_network_or_set_are_not_taken(run, folder, tmp_path, changed, words):
    out = tmp_path / "x.npy"
    module.export_features(run, "digits", out, precision="fp32", part=Part(1, 2))
    known = {"images": "digits", "precision": "fp32", **changed}
    images = folder if known.pop("images") == "photos" else "digits"
    with pytest.raises(UserError, match="holds the rows of another pass") as caught:
        module.export_features(run, images, out, **known)
    assert words in str(caught.value)


def test_another_part_that_finishes_at_the_same_time(run, tmp_path, monkeypatch):
    out, real = tmp_path / "x.npy", module._write

    def late(*arguments):
        monkeypatch.setattr(module, "_write", real)
        assert module.export_features(run, "digits", out, precision="fp32") == 1297  # takes the rows away
        real(*arguments)

    monkeypatch.setattr(module, "_write", late)
    assert module.export_features(run, "digits", out, precision="fp32") == 1297
    assert np.load(out).shape == (1297, 48)
    assert not (tmp_path / "x.rows").exists()


@pytest.mark.parametrize("moment", ["computing", "opening"])
def test_another_job_that_finishes_before_this_one(run, tmp_path, monkeypatch, capsys, moment):
    """It takes the rows away while this one still computes, or behind its last block."""
    out = tmp_path / "x.npy"

    def other():
        monkeypatch.undo()
        monkeypatch.setattr(module, "load_run", FakeRuns("digits", tmp_path / "run"))
        assert module.export_features(run, "digits", out, precision="fp32") == 1297

    if moment == "computing":
        real = passes_run._Pass._write
        monkeypatch.setattr(passes_run._Pass, "_write", lambda *arguments: (other(), real(*arguments)))
    else:
        real = passes_run.finished
        monkeypatch.setattr(passes_run, "finished", lambda *arguments: (other(), real(*arguments))[1])
    assert module.export_features(run, "digits", out, precision="fp32") is None
    said = capsys.readouterr().out
    assert f"another job has finished meanwhile: {out} is there" in said and "missing yet" not in said
    assert np.load(out).shape == (1297, 48) and not (tmp_path / "x.rows").exists()


def test_rows_that_are_lost_are_no_success(run, tmp_path, monkeypatch):
    real = passes_run.finished
    monkeypatch.setattr(passes_run, "finished", lambda out, *rest: (shutil.rmtree(out), real(out, *rest)))
    with pytest.raises(UserError, match="was removed meanwhile, perhaps by another job that finished"):
        module.export_features(run, "digits", tmp_path / "x.npy", precision="fp32")


def test_unreadable_images_count_against_max_corrupt(folder, tmp_path):
    for number in range(11):
        (folder / f"bad{number}.png").write_bytes(b"no image")
    assert main(["features", str(tmp_path), str(folder), f"out={tmp_path / 'x.npy'}", "max_corrupt=0.5"]) == 2
    assert len((tmp_path / "x.rows" / "unreadable.txt").read_text().splitlines()) == 12
    assert main(["features", str(tmp_path), str(folder), f"out={tmp_path / 'x.npy'}"]) == 0
    assert len(np.load(tmp_path / "x.npy")) == 3


def test_neither_folder_nor_card(run, tmp_path):
    (tmp_path / "a.jpg").touch()
    for images, words in ((tmp_path / "photo", "is not a folder: it does not exist. Did you mean '.*/photos'"),
                          (tmp_path / "a.jpg", "is not a folder of images, nor a data card"),
                          ("digitz", "no folder 'digitz', and no data card 'digitz'. Did you mean 'digits'?")):
        (tmp_path / "photos").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=words):
            module.export_features(run, images, tmp_path / "x.npy")


def test_the_file_is_written_without_all_rows_in_memory(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 64)
    monkeypatch.setattr(module, "_finish", lambda *arguments: held.extend(arguments))
    held = []
    module.export_features(run, "digits", tmp_path / "x.npy", precision="fp32")
    store, _, readable, *_ = held
    tracemalloc.start()
    try:
        with open(tmp_path / "y.npy", "wb") as file:
            module._write(file, store, readable, ".npy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "y.npy").stat().st_size / 2
