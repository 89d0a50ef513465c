"""Correspondence: places against a naive loop, features whose accuracy is known, and the same views for all."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.dense.fakes import Blocks, MapRuns, Still, scene_runs, scenes
from tests.processes import run_processes

from unlabeled.augment.geometry import RandomResizedCrop
from unlabeled.data.evaluation import fixed_crops
from unlabeled.engine.run import progress
from unlabeled.errors import UserError
from unlabeled.evaluation import evaluate as evaluate_module
from unlabeled.evaluation.dense import networks as dense_module
from unlabeled.evaluation.dense.correspondence import tally
from unlabeled.evaluation.evaluate import evaluate

QUICK = ["workers=0", "card=scenes.yaml"]


def boxes(count: int, seed: int = 0) -> np.ndarray:
    crop = RandomResizedCrop(28, (0.1, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")
    uniforms = np.random.default_rng(seed).random((count, crop.draws))
    return crop.draw(uniforms, np.tile([60, 90], (count, 1)))


def naive(a: np.ndarray, b: np.ndarray, box_a: np.ndarray, box_b: np.ndarray, near: float) -> np.ndarray:
    """Queries, exact, near, chance of both, overlapping pairs, images: one image, one cell, one cell at a time."""
    height, width = a.shape[2:]
    sums = np.zeros(7)
    for n in range(len(a)):
        places = []
        for top, left, tall, wide, _, _, flip in (box[n].astype(int).tolist() for box in (box_a, box_b)):
            spots = {}
            for r in range(height):
                for c in range(width):
                    down, across = Fraction(2 * r + 1, 2 * height), Fraction(2 * c + 1, 2 * width)
                    spots[r, c] = (top + tall * down, left + wide * (1 - across if flip else across))
            places.append(spots)
        diagonal = max(math.hypot(box[n, 2] / height, box[n, 3] / width) for box in (box_a, box_b))
        queries = 0
        for (r, c), (y, x) in places[0].items():
            top, left, tall, wide = box_b[n, :4].astype(int).tolist()
            if not (top <= y < top + tall and left <= x < left + wide):
                continue
            queries += 1
            down, right = (y - top) * height // tall, (x - left) * width // wide
            home = (down, width - 1 - right if box_b[n, 6] else right)
            close = {cell for cell, (v, u) in places[1].items() if math.hypot(y - v, x - u) < near * diagonal}
            query = a[n, :, r, c] / np.linalg.norm(a[n, :, r, c])
            cosines = {(v, u): float(query @ b[n, :, v, u] / np.linalg.norm(b[n, :, v, u])) for v, u in places[1]}
            found = max(cosines, key=cosines.__getitem__)
            sums[:5] += (1, found == home, found in close, 1 / (height * width), len(close) / (height * width))
        sums[5:] += (queries > 0, 1)
    return sums


@pytest.mark.parametrize("shape", [(7, 7), (4, 6)])
def test_the_matches_are_those_of_a_loop(shape):
    box_a, box_b = boxes(40), boxes(40, 1)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 5, *shape, generator=generator) for _ in range(2))
    found = tally(a, b, torch.tensor(box_a), torch.tensor(box_b), 0.7)
    expected = naive(a.double().numpy(), b.double().numpy(), box_a, box_b, 0.7)
    assert 0 < expected[5] < 40 and expected[0] > 300
    np.testing.assert_allclose([float(value) for value in vars(found).values()], expected, rtol=1e-9)


def known(places: torch.Tensor, box: np.ndarray) -> torch.Tensor:
    """Features of a view [1, C, h, w] that are a function of the place in the image alone: waves of its coordinates."""
    top, left, tall, wide, _, _, flip = box
    cells = torch.arange(7) + 0.5
    y = top + tall * cells / 7
    x = left + wide * (cells / 7 if not flip else 1 - cells / 7)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), 0).flatten(1).double()
    waves = places @ grid
    return torch.cat([waves.sin(), waves.cos()]).view(1, -1, 7, 7)


def test_features_that_tell_the_place_match_perfectly_and_equal_ones_by_chance():
    places = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.05
    box_a, box_b = boxes(30), boxes(30, 1)
    told = [torch.cat([known(places, box) for box in each]) for each in (box_a, box_b)]
    found = tally(*told, torch.tensor(box_a), torch.tensor(box_b), 0.7)
    assert found.near == found.queries > 0 and float(found.exact) > 0.95 * float(found.queries)
    same = torch.ones(30, 3, 7, 7, dtype=torch.float64)
    guess = tally(same, same, torch.tensor(box_a), torch.tensor(box_b), 0.7)
    assert float(guess.exact) == pytest.approx(float(guess.exact_chance))
    assert float(guess.near) == pytest.approx(float(guess.near_chance))
    assert float(guess.exact_chance / guess.queries) == pytest.approx(1 / 49)


def test_the_same_view_matches_itself_and_its_mirror_image_mirrored():
    features = torch.randn(1, 16, 7, 7, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[3.0, 5.0, 40.0, 40.0, 60.0, 90.0, 0.0]], dtype=torch.float64)
    mirrored = box.clone()
    mirrored[0, 6] = 1
    for other, view in ((box, features), (mirrored, features.flip(3))):
        found = tally(features, view, box, other, 0.7)
        assert float(found.queries) == float(found.exact) == 49
    assert float(tally(features, features, box, mirrored, 0.7).exact) == 7  # the middle column


def test_views_without_a_common_place_ask_nothing():
    left, right = (torch.tensor([[0.0, x, 20.0, 20.0, 60.0, 90.0, 0.0]], dtype=torch.float64) for x in (0.0, 40.0))
    found = tally(torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4), left, right, 0.7)
    assert float(found.queries) == float(found.pairs) == 0 and float(found.images) == 1


def test_crops_depend_on_the_place_in_the_split_alone():
    source = scenes(9, 32)
    crop = RandomResizedCrop(16, (0.2, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")

    def whole(world: int, batch: int) -> list[torch.Tensor]:
        parts = [part for rank in range(world)
                 for part in fixed_crops(source, (crop, crop), (0, "x"), rank, world, batch)]
        assert torch.cat([part.index for part in parts]).tolist() == list(range(9))
        return [torch.cat([part.boxes[view] for part in parts]) for view in range(2)]

    first, second = whole(1, 9)
    assert not torch.equal(first, second)
    for again in (whole(3, 2), whole(2, 100)):
        assert torch.equal(again[0], first) and torch.equal(again[1], second)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MapRuns:
    return scene_runs(monkeypatch, tmp_path, train=8, val=20)


def test_the_report_holds_both_numbers_beside_chance_and_the_untrained_network(runs, monkeypatch, capsys):
    mild = [*QUICK, "jitter=0.25"]
    report = evaluate("correspondence", runs.run, mild)
    match, near = report.numbers
    assert (match.name, near.name) == ("match", "match@.7")
    assert match.chance == pytest.approx(100 / 64) and near.chance > match.chance
    assert near.network["value"] > match.network["value"] > 3 * match.chance  # colours tell much
    assert match.random_init["value"] < match.network["value"]
    assert report.classes is None and report.test.n == 20 and report.test.split == "val"
    printed = capsys.readouterr().out
    assert "correspondence, %" in printed and "overlapping pairs" in printed
    monkeypatch.setattr(progress, "PASS_AFTER", 0.0)
    assert evaluate("correspondence", runs.run, [*mild, "batch=3"]).numbers == report.numbers
    assert "correspondence in 'val' of 'scenes': 3 of 20 images, " in capsys.readouterr().out
    assert evaluate("correspondence", runs.run, [*mild, "seed=1"]).numbers != report.numbers


def test_a_collapsed_network_scores_chance(runs):
    runs.network = Still(8)
    for number in evaluate("correspondence", runs.run, [*QUICK, "random_init=false"]).numbers:
        assert number.network["value"] == pytest.approx(number.chance)


def test_without_jitter_and_crops_every_cell_finds_itself(runs):
    settings = [*QUICK, "jitter=0", "area=[1,1]", "flip=0", "random_init=false"]
    assert evaluate("correspondence", runs.run, settings)["match"].network["value"] > 90
def test_the_views_have_other_colours_each(runs):
    settings = [*QUICK, "jitter=1", "area=[1,1]", "flip=0", "random_init=false"]
    assert evaluate("correspondence", runs.run, settings)["match"].network["value"] < 50  # cells know colours only


def test_too_small_a_map_and_an_export_without_one_are_refused(runs):
    with pytest.raises(UserError, match=r"map of 1 x 1 cells for images of 4 x 4.*take larger images"):
        evaluate("correspondence", runs.run, [*QUICK, "size=4"])
    with pytest.raises(UserError, match=r"export 'classifier' gives logits and no map; choose one"):
        evaluate("correspondence", runs.run, [*QUICK, "export=classifier"])


def in_a_process(rank: int, run: Path, folder: Path) -> list[float] | None:
    fake = MapRuns(run, Blocks(4))
    evaluate_module.load_run = dense_module.load_run = fake
    report = evaluate("correspondence", run, ["workers=0", f"card={folder / 'scenes.yaml'}"])
    return None if report is None else [score["value"] for n in report.numbers for score in (n.network, n.random_init)]


def test_three_processes_give_the_numbers_of_one(runs, tmp_path):
    alone = in_a_process(0, tmp_path / "one", tmp_path)
    first, *others = run_processes(3, in_a_process, tmp_path / "three", tmp_path)
    assert first == pytest.approx(alone, rel=1e-12) and others == [None, None]  # ties are counted in part
