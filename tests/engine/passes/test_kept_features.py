"""Features that are kept: found again where nothing changed, computed anew where anything did, and never in the way."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.fakes import FakeMethod, Noise
from torch import nn

from unlabeled.augment.geometry import EvalCrop
from unlabeled.config.card import Card
from unlabeled.data.sources.arrays import ArraySource
from unlabeled.data.sources.open import open_source
from unlabeled.engine.passes import kept_features as module
from unlabeled.engine.passes.features import Embedder, extract, network_embedder
from unlabeled.engine.passes.kept_features import LIMIT, KeptFeatures, network_digest
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A linear map of the pixels that counts the images it sees."""

    def __init__(self, size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * size**2, 5, generator=torch.Generator().manual_seed(seed)))
        self.gain = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return self.gain * x.flatten(1) @ self.weight


seen: list[int] = []


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "1")
    seen.clear()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(6):
        write(tmp_path / "photos" / f"{i}.png", i)
    return tmp_path / "photos"


def write(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def source(folder: Path, **card):
    return open_source(Card.model_validate({"name": "photos", "source": {"kind": "folder"}, "root": str(folder),
                                            "splits": {"all": {"path": "."}}, **card}), "all")


def run(data, network=None, image=None, precision="fp32", kept=True, max_corrupt=1.0):
    """Return the features, and of how many images the network was asked."""
    before = sum(seen)
    network = network or Counting(image.size if image else 8)
    embedder = network_embedder(Export(lambda: network, "vector", image or Input(8)), CPU, precision)
    found = extract({"network": embedder}, data, batch=4, workers=0, device=CPU, max_corrupt=max_corrupt,
                    kept=KeptFeatures(CPU) if kept else None)["network"]
    return found, sum(seen) - before


def test_the_second_pass_over_equal_images_by_an_equal_network_is_found_again(photos: Path, own_cache: Path, capsys):
    first, images = run(source(photos))
    again, none = run(source(photos))
    assert images == 6 + 1 and none == 0  # one black image tells whether the network takes the size
    assert torch.equal(first.x, again.x) and torch.equal(first.index, again.index)
    folder = own_cache / "unlabeled" / "features"
    assert f"found again (network) in {folder}; keep_features=false computes them anew" in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 1 and folder.stat().st_mode & 0o077 == 0
    assert run(source(photos), kept=False)[1] == 7


def test_features_of_another_kind_of_device_are_another_file(photos: Path):
    places = {KeptFeatures(torch.device(kind))._place(lambda: "network", source(photos)) for kind in ("cpu", "cuda")}
    assert len(places) == 2 and None not in places


def test_another_folder_is_another_set_whatever_names_sizes_and_times_its_files_have(photos: Path, tmp_path: Path):
    shutil.copytree(photos, tmp_path / "copy")  # keeps times
    (tmp_path / "link").symlink_to(photos)
    run(source(photos))
    assert run(source(tmp_path / "copy"))[1] == 7 and run(source(tmp_path / "link"))[1] == 0


def other_weight():
    network = Counting()
    network.weight.data[7, 3] += 1e-6
    return {"network": network}


def other_setting():
    network = Counting()
    network.gain = 2.0
    return {"network": network}


class Halved(Counting):
    """The same weights and settings, computed otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x / 2)


@pytest.mark.parametrize("change", [
    other_weight, other_setting, lambda: {"network": Halved()}, lambda: {"precision": "bf16"},
    lambda: {"image": Input(8, (0.5,) * 3, (0.2,) * 3)}, lambda: {"image": Input(16)},
], ids=["weight", "setting", "code", "precision", "statistics", "crop"])  # fmt: skip
def test_another_network_precision_or_crop_is_computed(photos: Path, change):
    run(source(photos))
    assert run(source(photos), **change())[1] >= 6
    assert run(source(photos))[1] == 0 and run(source(photos), **change())[1] == 0  # both stay


def touched(photos: Path) -> None:  # other pixels in as many bytes, as a PNG of noise may have
    os.utime(photos / "2.png", ns=(1, 1))


@pytest.mark.parametrize("change", [
    lambda photos: write(photos / "2.png", 99), lambda photos: write(photos / "9.png", 99),
    lambda photos: (photos / "0.png").unlink(), touched, lambda photos: (photos / "0.png").rename(photos / "10.png"),
], ids=["image", "more", "fewer", "time", "name"])  # fmt: skip
def test_changed_images_are_computed_anew(photos: Path, change):
    run(source(photos))
    change(photos)
    assert run(source(photos))[1] > 0


def test_a_card_that_reads_the_files_otherwise_computes_anew(photos: Path):
    run(source(photos))
    assert run(source(photos, levels=[0, 1000]))[1] > 0
    assert run(source(photos, in_memory=True))[1] > 0


def test_pixels_in_memory_are_told_apart_by_all_of_them():
    def noise() -> ArraySource:
        return ArraySource("noise", "all", Noise(300).pixels)

    run(noise())
    assert run(noise())[1] == 0
    other = noise()
    other.images[123, 4, 5, 1] ^= 1
    assert run(other)[1] > 0
    lazy = ArraySource("noise", "all", Noise(3).pixels.astype(np.uint16))
    assert lazy.images_digest is None and run(lazy)[1] == run(lazy)[1] == 4  # nothing tells them apart


def test_labels_are_those_of_today(photos: Path):
    data = source(photos)
    run(data)
    data = source(photos)
    data.labels = np.arange(6)
    again, none = run(data)
    assert none == 0 and again.label.tolist() == [0, 1, 2, 3, 4, 5]


def test_unreadable_images_are_kept_with_their_reason_until_they_can_be_read(photos: Path):
    (photos / "3.png").write_bytes(b"no image")
    first, _ = run(source(photos))
    again, none = run(source(photos))
    assert none == 0 and again.index.tolist() == [0, 1, 2, 4, 5]
    assert again.corrupt == first.corrupt == ["3.png"] and again.corrupt[0].reason == first.corrupt[0].reason
    with pytest.raises(UserError, match="1 of 6 images cannot be read"):
        limited(source(photos))

def limited(data):
    from unlabeled.data.sources import base

    before, base.FORGIVEN = base.FORGIVEN, 0
    try:
        run(data, max_corrupt=0.0)
    finally:
        base.FORGIVEN = before


def test_an_image_that_became_readable_is_not_left_out_for_ever(photos: Path, monkeypatch):
    data = source(photos)
    real = type(data).image
    broken = Noise(1, broken=(0,))
    monkeypatch.setattr(type(data), "image", lambda self, i: broken.image(0) if i == 2 else real(self, i))
    assert run(data)[0].index.tolist() == [0, 1, 3, 4, 5]
    assert run(source(photos))[1] == 0
    monkeypatch.setattr(type(data), "image", real)  # a permission was given, which is no time of the file
    again, images = run(source(photos))
    assert images > 0 and len(again.x) == 6


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:-1], lambda data: data + b"x", lambda data: b"\x00" + data[1:],
    lambda data: data[:-60] + bytes([data[-60] ^ 1]) + data[-59:], lambda data: b'{"shape": [-1, -1]}\n',
    lambda data: b"[]\n", lambda data: b"\xff\n",
])  # fmt: skip
def test_damaged_files_are_computed_anew_and_replaced(photos: Path, own_cache: Path, damage):
    first, _ = run(source(photos))
    (path,) = (own_cache / "unlabeled" / "features").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again, images = run(source(photos))
    assert images > 0 and torch.equal(first.x, again.x)
    assert run(source(photos))[1] == 0


def test_a_full_disk_or_a_folder_that_takes_no_files_costs_one_line(photos: Path, monkeypatch, tmp_path, capsys):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        assert len(run(source(photos))[0].x) == 6
    said = capsys.readouterr().out
    assert said.count("features of 'all' of 'photos' are not kept in") == 1 and "No space left on device" in said
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
        run(source(photos))
    assert "the disk has less room than twice their" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(run(source(photos))[0].x) == 6 and "are not kept in" in capsys.readouterr().out


def test_the_files_unused_for_longest_make_room(photos: Path, own_cache: Path, monkeypatch, capsys):
    size = 6 * (5 * 4 + 8)
    for seed in range(3):
        run(source(photos), Counting(seed=seed))
    files = sorted((own_cache / "unlabeled" / "features").iterdir(), key=lambda path: path.stat().st_mtime)
    for age, path in enumerate(files):
        os.utime(path, (1e9 + age, 1e9 + age))
    run(source(photos), Counting(seed=0))  # used now
    monkeypatch.setenv(LIMIT, f"{(3.5 * (files[0].stat().st_size)) / 1e9}")
    run(source(photos), Counting(seed=3))
    assert "of kept features that were last used until 2001-09-09 made room for new ones" in capsys.readouterr().out
    asked = [run(source(photos), Counting(seed=seed))[1] for seed in (0, 2, 3)]
    assert asked == [0, 0, 0] and not files[1].exists()
    monkeypatch.setenv(LIMIT, f"{(size - 1) / 1e9:.12f}")
    run(source(photos), Counting(seed=4))
    assert f"are more than {LIMIT}=" in capsys.readouterr().out


def test_the_limit_switches_it_off_and_is_a_number(photos: Path, own_cache: Path, monkeypatch):
    monkeypatch.setenv(LIMIT, "0")
    run(source(photos))
    assert run(source(photos))[1] == 7 and not (own_cache / "unlabeled").exists()
    for wrong in ("much", "nan", "-1"):
        monkeypatch.setenv(LIMIT, wrong)
        with pytest.raises(UserError, match=f"{LIMIT}={wrong}: a number of GB is needed"):
            KeptFeatures(CPU)


def test_other_code_of_this_package_computes_anew(photos: Path, monkeypatch):
    run(source(photos))
    monkeypatch.setattr(module, "_code", lambda: "another version")
    assert run(source(photos))[1] == 7


def test_only_what_is_missing_is_computed(photos: Path):
    def both(data):
        embedders = {name: network_embedder(Export(lambda rank=rank: Counting(seed=rank), "vector", Input(8)), CPU)
                     for name, rank in (("network", 0), ("random_init", 1))}
        pixels = Embedder((EvalCrop(8),), lambda crops: crops.float().flatten(1))
        before = sum(seen)
        found = extract({**embedders, "raw_pixels": pixels}, data, batch=4, workers=0, device=CPU, max_corrupt=1,
                        kept=KeptFeatures(CPU))
        return found, sum(seen) - before

    run(source(photos))
    found, images = both(source(photos))
    assert images == 7 and list(found) == ["network", "random_init", "raw_pixels"]
    assert not torch.equal(found["network"].x, found["random_init"].x) and found["raw_pixels"].x.shape == (6, 192)
    assert both(source(photos))[1] == 0


def test_other_code_of_a_network_of_ones_own_is_another_network(tmp_path: Path):
    def digest_of(body: str) -> str:
        (tmp_path / "own.py").write_text(f"from torch import nn\n\n\nclass Own(nn.Module):\n    def forward(self, x):\n"
                                         f"        return {body}\n")
        spec = importlib.util.spec_from_file_location("own_network", tmp_path / "own.py")
        sys.modules["own_network"] = own = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(own)
        module._file_digest.cache_clear()  # a process reads a file once
        return network_digest(own.Own())

    try:
        assert digest_of("x") == digest_of("x") != digest_of("2 * x")
    finally:
        del sys.modules["own_network"]


def test_a_network_has_one_digest_in_every_process_and_another_after_any_change():
    from timm.models.vision_transformer import VisionTransformer

    def vit(**options):
        torch.manual_seed(0)
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0}
        return VisionTransformer(**sizes, **options)

    same = {network_digest(vit().eval()) for _ in range(2)}
    assert len(same) == 1
    others = {network_digest(vit(global_pool="avg", fc_norm=False).eval()), network_digest(vit().eval(), "more")}
    assert len(others | same) == 3
    buffers = FakeMethod(8).exports()["backbone"].build()
    before = network_digest(buffers)
    buffers.weight[0, 0] += 1
    assert network_digest(buffers) != before
