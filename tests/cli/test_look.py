"""unlabeled look, on runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_recipe

from unlabeled.cli.main import main
from unlabeled.engine.train import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PixPro run, another one, and photos that differ in shape."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("pixpro", "simclrv2"):
        assert train(tiny_recipe(method, "plain", ["train.updates=2"]), folder / f"{method}-s0").finished
    random = np.random.default_rng(0)
    for name, shape in (("cat", (40, 60)), ("dog=1", (60, 33))):
        Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"no image")
    return folder


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_pixpro_run_draws_pairs_and_the_same_ones_again(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    capsys.readouterr()
    assert main(["look", "pixpro", "pixpro-s0", "cat.png", "torn.png", "dog=1.png"]) == 0
    said = capsys.readouterr().out
    assert "left out, cannot be read: torn.png" in said and "update 2, 4 x 4 cells of 64 numbers" in said
    first = pictures(runs / "pixpro-s0" / "look" / "update00000002")
    assert list(first) == ["1-cat-pairs.png", "3-dog=1-pairs.png"]
    newest = next((runs / "pixpro-s0" / "checkpoints").glob("*.pt"))
    files = ["cat.png", "torn.png", "dog=1.png"]
    assert main(["look", str(newest), *files, f"out={tmp_path / 'same'}"]) == 0
    assert main(["look", "pixpro-s0", *files, "seed=1", "pixel=0,3", f"out={tmp_path / 'other'}"]) == 0
    assert pictures(tmp_path / "same") == first
    other = pictures(tmp_path / "other")
    assert other.keys() == first.keys() and all(other[name] != first[name] for name in first)


def test_colours_of_every_method_and_of_inner_blocks(runs, tmp_path):
    for number, (run, given) in enumerate([("pixpro-s0", ["--pca"]), ("simclrv2-s0", ["size=32"]),
                                           ("simclrv2-s0", ["export=backbone.layer1", "size=16"])]):
        out = tmp_path / str(number)
        assert main(["look", str(runs / run), str(runs / "cat.png"), *given, f"out={out}"]) == 0
        assert list(pictures(out)) == ["1-cat-pca.png"]
    assert main(["look", str(runs / "simclrv2-s0"), "count=2", "size=32", f"out={tmp_path / 'own'}"]) == 0
    assert len(pictures(tmp_path / "own")) == 2


MISTAKES = [
    (["pixpro-s0", "kat.png"], "'kat.png' does not exist. Did you mean 'cat.png'?"),
    (["pixpro-s0", "."], "'.' is a folder; name image files, or take some of it: card=folder root=."),
    (["pixpro-s0", "cat.png", "sise=64"], "unknown key 'sise'. Did you mean 'size'?"),
    (["pixpro-s0", "cat.png", "card=digits"], "'card' has no effect with image files"),
    (["pixpro-s0", "cat.png", "--pca", "pixel=1,1"], "'pixel' has no effect with --pca"),
    (["pixpro-s0", "cat.png", "pixel=3"], "'pixel' needs ROW,COL"),
    (["pixpro-s0", "cat.png", "pixel=4,0"], "pixel=4,0 lies outside the map of 4 x 4 cells"),
    (["pixpro-s0", "torn.png"], "none of the 1 images can be read"),
    (["pixpro", "simclrv2-s0", "cat.png"], "trained with simclrv2, not with pixpro; leave 'pixpro' out"),
    (["simclrv2-s0", "cat.png", "seed=1"], "'seed' has no effect: simclrv2-s0 was trained with simclrv2"),
    (["none", "cat.png"], "'none' does not exist"),
]


@pytest.mark.parametrize(("given", "answer"), MISTAKES)
def test_mistakes(runs, monkeypatch, capsys, given, answer):
    monkeypatch.chdir(runs)
    monkeypatch.delenv("RANK", raising=False)
    assert main(["look", *given]) == 2
    assert answer in capsys.readouterr().err
