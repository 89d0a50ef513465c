"""Pictures of maps: colours that can be foretold, similarities, pairs, and what is drawn of them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.patches import ConnectionPatch, Rectangle
from tests.evaluation.dense.fakes import Blocks, MapRuns, Painted, painted
from torch import nn

from unlabeled.augment.geometry import RandomResizedCrop
from unlabeled.config.look import LookSettings
from unlabeled.errors import UserError
from unlabeled.evaluation.dense import look as module
from unlabeled.evaluation.dense.look import Colours, ImageViews, look, pair_of, see, similarity
from unlabeled.report.look import draw_pairs, lines, write_figure

CPU = torch.device("cpu")
CROP = RandomResizedCrop(12, (0.2, 1.0), (3 / 4, 4 / 3), 0.5, "bilinear")


def corners() -> tuple[torch.Tensor, np.ndarray]:
    """Eight unit vectors [8, 5] that differ by 1.0, 0.6 and 0.2 along three directions, and the signs of these."""
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    steps = signs * [0.5, 0.3, 0.1]
    rest = math.sqrt(1 - 0.25 - 0.09 - 0.01)
    return torch.tensor(np.column_stack([np.full(8, rest), steps, np.zeros(8)])), signs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_colours_are_the_directions_in_which_cells_differ_most(seed):
    cells, signs = corners()
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    # lengths do not count, and of both signs of a direction the one whose largest number is positive is taken
    cells = (cells @ turn.T) * (0.1 + torch.rand(8, 1, generator=generator))
    upright = [1 if turn[turn[:, axis].abs().argmax(), axis] > 0 else -1 for axis in (1, 2, 3)]
    found = Colours(cells)(cells.T.reshape(5, 2, 4))
    np.testing.assert_allclose(found.reshape(8, 3), (signs * upright + 1) / 2, atol=1e-9)
    middle = Colours(cells)((turn[:, 0] / 3).reshape(5, 1, 1))
    assert found.min() == 0 and found.max() == 1 and 0.49 < middle.mean() < 0.51


def test_single_cells_do_not_take_the_colours_from_the_others():
    angles = torch.linspace(0, 0.1, 1000)
    angles[0] = 3.0
    cells = torch.stack([angles.cos(), angles.sin(), torch.ones(1000)], 1)
    red = np.sort(Colours(cells)(cells.T.reshape(3, 1, 1000))[0, :, 0])
    assert np.unique(red).size > 900 and 0.3 < red[500] < 0.7


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_cells_that_are_all_alike_are_gray(channels):
    generator = torch.Generator().manual_seed(0)
    cells = torch.full((49, channels), 0.3) * (1 + torch.rand(49, 1, generator=generator))
    assert (Colours(cells)(cells.T.reshape(channels, 7, 7)) == 0.5).all()


def test_two_channels_give_the_one_direction_that_unit_vectors_have():
    cells = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = Colours(cells)(cells.T.reshape(2, 1, 2))[0]
    assert sorted(found[:, 0]) == [0, 1] and (found[:, 1:] == 0.5).all()


def test_similarities_are_cosines():
    x = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = similarity(2 * x[:, 1, 4], x)
    for row, column in itertools.product(range(3), range(5)):
        a, b = x[:, 1, 4].numpy(), x[:, row, column].numpy()
        assert found[row, column] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found[1, 4] == pytest.approx(1) == found.max()


def image_with(box1: list[float], box2: list[float], cells: int = 4) -> ImageViews:
    """An image of 24 x 36 pixels with two views, and random maps."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(6, cells, cells, generator=generator) for _ in range(3)]
    boxes = torch.tensor([[0.0, 0, 24, 36, 24, 36, 0], [*box1[:4], 24, 36, box1[4]], [*box2[:4], 24, 36, box2[4]]])
    return ImageViews(0, [torch.zeros(3, 12, 12, dtype=torch.uint8)] * 3, list(boxes), maps)


class One(Painted):
    """One image of 24 x 36 pixels."""

    def image(self, index: int) -> np.ndarray:
        return np.zeros((24, 36, 3), np.uint8)


def picture(seen: ImageViews, threshold: float = 0.7, pixel: tuple[int, int] | None = None):
    return pair_of(seen, One(1), Colours(torch.cat([each.flatten(1).T for each in seen.maps])), threshold, pixel)


def naive_pairs(box1: list[float], box2: list[float], threshold: float, cells: int = 4) -> np.ndarray:
    """The pairs, one cell at a time: places as shares of the distance between the image's outermost pixels."""
    places, diagonals = [], []
    for top, left, height, width, flip in (box1, box2):
        tall, wide = (height - 1) / 23 / cells, (width - 1) / 35 / cells
        diagonals.append(math.hypot(tall, wide))
        places.append([(top / 23 + (row + 0.5) * tall,
                        left / 35 + ((cells - 1 - column if flip else column) + 0.5) * wide)
                       for row in range(cells) for column in range(cells)])
    return np.array([[math.dist(a, b) / max(diagonals) < threshold for b in places[1]] for a in places[0]])


@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.5])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_pairs_are_the_cells_that_lie_near_each_other_in_the_image(threshold, flip):
    box1, box2 = [2, 3, 16, 20, 0.0], [5, 9, 14, 24, flip]
    panels, boxes, positive = picture(image_with(box1, box2), threshold)
    assert positive.any() and (positive == naive_pairs(box1, box2, threshold)).all()
    assert boxes[1] == pytest.approx((9 / 36, 5 / 24, 24 / 36, 14 / 24))
    assert [panel.title for panel in panels] == ["image", "view 1", "view 2, flipped" if flip else "view 2"]


def test_the_chosen_cell_is_marked_where_it_lies():
    seen = image_with([2, 3, 16, 20, 0.0], [2, 3, 16, 20, 1.0])
    panels, _, positive = picture(seen, 0.6, (1, 3))  # at 0.7 neighbours in a row are pairs too
    assert (positive == np.kron(np.eye(4), np.eye(4)[::-1]).astype(bool)).all()  # the mirror image
    assert panels[1].spot == pytest.approx((3.5 / 4, 1.5 / 4)) and panels[2].spot == pytest.approx((0.5 / 4, 1.5 / 4))
    assert panels[0].spot == pytest.approx(((3 + 19 * 3.5 / 4) / 35, (2 + 15 * 1.5 / 4) / 23))
    cell = seen.maps[1][:, 1, 3]
    expected = F.cosine_similarity(cell[:, None], seen.maps[2].flatten(1), dim=0).reshape(4, 4)
    np.testing.assert_allclose(panels[2].similarity, expected, atol=1e-6)
    assert panels[1].similarity.argmax() == 7
    assert picture(seen)[0][1].spot == pytest.approx((2.5 / 4, 2.5 / 4))
    far = image_with([0, 0, 8, 8, 0.0], [12, 20, 8, 8, 0.0])
    assert picture(far)[0][2].spot is None and not picture(far)[2].any()
    with pytest.raises(UserError, match="pixel=4,0 lies outside the map of 4 x 4 cells"):
        picture(seen, pixel=(4, 0))


def test_lines_join_the_cells_of_the_mask():
    positive = np.random.default_rng(0).random((6, 6)) < 0.3
    found = {tuple(np.floor(row * [3, 2, 3, 2]).astype(int)) for row in lines(positive, (2, 3))}
    assert found == {(i % 3, i // 3, j % 3, j // 3) for i, j in zip(*np.nonzero(positive), strict=True)}
    assert lines(np.zeros((6, 6), bool), (2, 3)).shape == (0, 4)


def test_the_figure_holds_pairs_boxes_and_cells(tmp_path):
    panels, boxes, positive = picture(image_with([2, 3, 16, 20, 0.0], [5, 9, 14, 24, 1.0]))
    figure = draw_pairs(panels, boxes, positive)
    patches = figure.findobj(ConnectionPatch)
    drawn = np.array([[*patch.xy1, *patch.xy2] for patch in patches])
    np.testing.assert_allclose(drawn, lines(positive, (4, 4)))
    axes = figure.axes
    assert axes[0].get_ylabel() == f"{positive.sum()} positive pairs"
    assert {(patch.axesA, patch.axesB) for patch in patches} == {(axes[1], axes[2])}
    frames = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in axes[0].findobj(Rectangle)]
    np.testing.assert_allclose([frame for frame in frames if frame != (0, 0, 1, 1)], boxes)
    for column, panel in enumerate(panels):
        shown = [axes[3 * row + column].images[0].get_array() for row in range(3)]
        for values, own in zip(shown, (panel.image, panel.similarity, panel.colours), strict=True):
            np.testing.assert_array_equal(values, own)
    first = write_figure(figure, tmp_path / "new" / "a.png").read_bytes()
    assert first[:4] == b"\x89PNG"
    assert write_figure(draw_pairs(panels, boxes, positive), tmp_path / "b.png").read_bytes() == first


def test_of_very_many_pairs_some_are_drawn_and_it_is_said():
    panels, boxes, _ = picture(image_with([0, 0, 24, 36, 0.0], [0, 0, 24, 36, 0.0], cells=8))
    figure = draw_pairs(panels, boxes, np.ones((64, 64), bool))
    starts = {patch.xy1 for patch in figure.findobj(ConnectionPatch)}
    assert len(figure.findobj(ConnectionPatch)) == 400 and len(starts) == 64
    assert figure.axes[0].get_ylabel() == "400 of 4096 positive pairs"


def test_views_depend_on_the_seed_and_unreadable_images_are_named(capsys):
    network, _ = painted(Blocks(3))
    source = Painted(5, bad=(3,))
    first, again, other = (see(network, source, (CROP, CROP), seed, CPU) for seed in (0, 0, 1))
    assert capsys.readouterr().out.count("left out, cannot be read: train-3") == 3
    assert [image.index for image in first] == [0, 1, 2, 4]
    for a, b, c in zip(first, again, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.boxes + a.maps, b.boxes + b.maps, strict=True))
        assert torch.equal(a.boxes[0], c.boxes[0]) and not torch.equal(a.boxes[1], c.boxes[1])
        assert not torch.equal(a.boxes[1], a.boxes[2])
        whole = torch.from_numpy(source.image(a.index)).permute(2, 0, 1)
        torch.testing.assert_close(a.maps[0], network(whole[None])[0])
        torch.testing.assert_close(a.maps[1], network(a.crops[1][None])[0])
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        see(network, Painted(2, bad=(0, 1)), (), 0, CPU)


def test_a_network_that_diverged_is_refused():
    network, _ = painted(Blocks(3))
    nn.init.constant_(network.map.network.scale, float("nan"))
    with pytest.raises(UserError, match="NaN"):
        see(network, Painted(2), (), 0, CPU)


def test_any_network_with_a_map_is_drawn_and_one_without_is_refused(monkeypatch, tmp_path):
    fake = MapRuns(tmp_path / "run", Blocks(4))
    monkeypatch.setattr(module, "load_run", fake)
    monkeypatch.chdir(tmp_path)
    fake.write_card(Path("scenes.yaml"), train=6, val=9)
    written = look(tmp_path / "run", [], LookSettings(card="scenes.yaml", count=3))
    assert [path.name for path in written] == ["1-val-000000-pca.png", "2-val-000003-pca.png", "3-val-000006-pca.png"]
    assert {path.parent for path in written} == {tmp_path / "run" / "look" / "update00000012"}
    whole = look(tmp_path / "run", [], LookSettings(card="scenes.yaml", split="train", count=99, out="new"))
    assert [path.name for path in whole] == [f"{i + 1}-train-{i:06d}-pca.png" for i in range(6)]
    with pytest.raises(UserError, match="export 'classifier' gives logits and no map"):
        look(tmp_path / "run", [], LookSettings(card="scenes.yaml", export="classifier"))
    with pytest.raises(UserError, match="2 x 2 are the least"):
        look(tmp_path / "run", [], LookSettings(card="scenes.yaml", size=4))
    with pytest.raises(UserError, match=r"'seed' has no effect: .* trained with fake"):
        look(tmp_path / "run", [], LookSettings(card="scenes.yaml", seed=1))
    with pytest.raises(UserError, match="was trained with fake, not with pixpro"):
        look(tmp_path / "run", [], LookSettings(card="scenes.yaml"), method="pixpro")
