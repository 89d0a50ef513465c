"""Layers that drop at random: what they give on average, and that an image's masks follow it through any division."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.layers import drop
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from unlabeled.errors import UserError
from unlabeled.ops.drop_path import Rows, convert

# layer, its input without the rows
LAYERS = {
    "path": (drop.DropPath(0.3), (4, 5)),
    "path-unscaled": (drop.DropPath(0.3, scale_by_keep=False), (4, 5)),
    "depth": (StochasticDepth(0.3, "row"), (4, 5)),
    "dropout": (nn.Dropout(0.3), (6, 7)),
    "dropout1d": (nn.Dropout1d(0.3), (6, 7)),
    "dropout2d": (nn.Dropout2d(0.3), (6, 2, 3)),
    "dropout3d": (nn.Dropout3d(0.3), (6, 2, 3, 2)),
    "alpha": (nn.AlphaDropout(0.3), (6, 7)),
    "feature-alpha": (nn.FeatureAlphaDropout(0.3), (6, 7)),
    "block": (drop.DropBlock2d(0.2, 3), (2, 8, 8)),
    "block-channels": (drop.DropBlock2d(0.2, 2, gamma_scale=0.5, couple_channels=False), (2, 8, 8)),
    "patches": (PatchDropout(0.5, 1), (9, 2)),
    "patches-ordered": (PatchDropout(0.5, 0, ordered=True), (9, 2)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def converted(layer: nn.Module) -> tuple[nn.Module, Rows]:
    rows = Rows()
    convert(layer, rows)
    return layer.train(), rows


def call(layer: nn.Module, rows: Rows, views: list[Tensor], part: int = 0, parts: int = 1, seed: int = 0) -> Tensor:
    """Call the layer on views behind one another, as part of the global batch."""
    rows.begin(dict(enumerate(views)), part, parts)
    torch.manual_seed(seed)
    return layer(torch.cat(views))


@every_layer
def test_parts_of_two_unequal_views_are_the_whole(name: str) -> None:
    layer, shape = LAYERS[name]
    layer, rows = converted(copy.deepcopy(layer))
    few, many = torch.rand(4, *shape) + 1, torch.rand(12, *shape) + 1
    whole = call(layer, rows, [few, many])
    for part, (a, b) in enumerate(zip(few.chunk(2), many.chunk(2), strict=True)):
        mine = call(layer, rows, [a, b], part, 2)
        expected = torch.cat([whole[:4].chunk(2)[part], whole[4:].chunk(2)[part]])
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)
    assert not torch.equal(call(layer, rows, [few, many], seed=1), whole)
    assert torch.equal(layer.eval()(few), few)


def test_views_of_unequal_sizes_in_turn_keep_their_order() -> None:
    layer, rows = converted(drop.DropPath(0.5))
    views = [torch.ones(count, 1) for count in (16, 8, 16)]
    whole = call(layer, rows, views).split([16, 8, 16])
    for part in range(2):
        mine = call(layer, rows, [x.chunk(2)[part] for x in views], part, 2)
        assert torch.equal(mine, torch.cat([y.chunk(2)[part] for y in whole]))
    rows.begin(dict(enumerate(views)), 0, 1)
    with pytest.raises(UserError, match="met 24 rows"):  # the first and the second, or the second and the third
        layer(torch.ones(24, 1))


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("patches")])
def test_mean_and_kept_share_are_the_plain_layers(name: str) -> None:
    plain, shape = LAYERS[name]
    layer, rows = converted(copy.deepcopy(plain))
    x = torch.ones(4000, *shape)
    ours = call(layer, rows, [x])
    theirs = plain.train()(x)
    assert torch.allclose(ours.mean(), theirs.mean(), atol=0.06 if name in ("path", "depth") else 0.02)
    changed = [(y != y.flatten()[y.flatten().argmax()]).float().mean() for y in (ours, theirs)]
    assert torch.allclose(*changed, atol=0.02)
    values = [y.unique().sort()[0] for y in (ours, theirs)]
    if not name.startswith("block"):  # whose scale is that of the mask
        torch.testing.assert_close(*values)
    # as many equal numbers in a row, in a channel
    for dims in ((1,), tuple(range(2, x.ndim))):
        spread = [y.std(dims, correction=0).mean() if dims else y.std() for y in (ours, theirs)]
        assert torch.allclose(*spread, atol=0.02)


def test_whole_images_lose_their_depth_and_each_row_by_itself() -> None:
    layer, rows = converted(drop.DropPath(0.5))
    y = call(layer, rows, [torch.ones(400, 3, 2)]).flatten(1)
    assert bool((y == y[:, :1]).all()) and set(y.flatten().tolist()) == {0.0, 2.0}
    views = call(layer, rows, [torch.ones(200, 3, 2)] * 2).flatten(1)[:, 0]
    assert 0.35 < float((views[:200] == views[200:]).float().mean()) < 0.65  # two views of an image are independent


def test_single_numbers_are_dropped_independently() -> None:
    layer, rows = converted(nn.Dropout(0.3))
    dropped = (call(layer, rows, [torch.ones(300, 500)]) == 0).double()
    bound = 5 / 150_000**0.5
    centred = (dropped - 0.3) / 0.21**0.5
    assert abs(float(centred.mean())) < bound
    for apart in (1, 2, 3, 64, 128):
        assert abs(float((centred[:, apart:] * centred[:, :-apart]).mean())) < 1.2 * bound
        assert abs(float((centred[apart:] * centred[:-apart]).mean())) < 1.4 * bound
    assert dropped.mean(0).std() < 1.3 * (0.21 / 300) ** 0.5 and dropped.mean(1).std() < 1.3 * (0.21 / 500) ** 0.5


@pytest.mark.parametrize("layer", [drop.DropPath(0.0), nn.Dropout(0.0), nn.Dropout1d(0.0), StochasticDepth(0.0, "row")])
def test_a_rate_of_zero_gives_the_same_bits_and_draws_nothing(layer: nn.Module) -> None:
    layer, rows = converted(layer)
    x = torch.rand(4, 3, 2)
    before = torch.get_rng_state()
    rows.begin({"x": x}, 0, 1)
    assert layer(x) is x and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", [drop.DropPath(1 - 1e-7), nn.Dropout(1.0), nn.Dropout(1 - 1e-7), nn.AlphaDropout(1)])
def test_a_rate_near_one_leaves_nothing(layer: nn.Module) -> None:
    layer, rows = converted(layer)
    y = call(layer, rows, [torch.rand(50, 3)])
    assert float(y.abs().sum()) == 0


def test_places_of_patches_belong_to_the_tokens() -> None:
    layer, rows = converted(PatchDropoutWithIndices(0.5, 1))
    x = torch.arange(4 * 9.0).view(4, 9, 1)
    kept, places = call(layer, rows, [x])
    assert torch.equal(kept[:, 0], x[:, 0]) and torch.equal(kept[:, 1:, 0], x[:, 1:, 0].gather(1, places))
    assert layer.eval()(x)[1] is None


@pytest.mark.parametrize(("prob", "left"), [(0.25, 6), (0.75, 2), (0.99, 1)])
def test_so_many_patches_are_left_as_in_the_plain_layer(prob: float, left: int) -> None:
    plain = PatchDropout(prob, 1)
    layer, rows = converted(copy.deepcopy(plain))
    x = torch.rand(3, 1 + 8, 2)
    assert call(layer, rows, [x]).shape == plain.train()(x).shape == (3, 1 + left, 2)


def test_windows_of_an_image_follow_it() -> None:
    layer, rows = converted(nn.Dropout(0.5))
    layer.inner = 4
    one, two = torch.rand(4, 3), torch.rand(4, 3)
    rows.begin({"one": one, "two": two}, 0, 1)
    torch.manual_seed(0)
    x = torch.ones(8 * 4, 6)
    whole = layer(x).view(2, 4, 4, 6)
    assert len({tuple(row.tolist()) for row in whole.flatten(0, 2)}) > 16  # of 32, so windows are independent
    for part in range(2):
        rows.begin({"one": one[:2], "two": two[:2]}, part, 2)
        torch.manual_seed(0)
        assert torch.equal(layer(x[:16]).view(2, 2, 4, 6), whole[:, 2 * part : 2 * part + 2])


def test_recomputation_meets_the_same_masks() -> None:
    layer, rows = converted(nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.ReLU(), drop.DropPath(0.5)))
    grads = []
    for again in (False, True):
        layer.zero_grad()
        x = torch.ones(6, 5)
        rows.begin({"x": x}, 0, 1)
        torch.manual_seed(0)
        y = sum((checkpoint(layer, x, use_reentrant=False) if again else layer(x)).square().sum() for _ in range(2))
        y.backward()
        grads.append(layer[0].weight.grad.clone())
    assert torch.equal(*grads) and float(grads[0].abs().sum()) > 0


def test_compiled_layers_drop_the_same() -> None:
    layer, rows = converted(nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), drop.DropPath(0.5)))
    x = torch.ones(6, 5)
    outputs = [call(network, rows, [x]) for network in (layer, torch.compile(layer, backend="eager"))]
    assert torch.equal(*outputs) and bool((outputs[0] == 0).any())


@pytest.mark.parametrize("rows_met", [3, 10, 36])
def test_rows_that_are_no_views_are_refused(rows_met: int) -> None:
    layer, rows = converted(nn.Dropout(0.5))
    rows.begin({"few": torch.rand(4, 3), "many": torch.rand(12, 3), "more": torch.rand(12, 3)}, 0, 1)
    with pytest.raises(UserError, match=rf"met {rows_met} rows.*\(1 of 4 rows and 2 of 12 rows\)"):
        layer(torch.rand(rows_met, 3))


def test_rows_that_may_be_either_are_refused() -> None:
    layer, rows = converted(nn.Dropout(0.5))
    rows.begin({"a": torch.rand(4, 3), "b": torch.rand(4, 3), "both": torch.rand(8, 3)}, 0, 1)
    with pytest.raises(UserError, match="met 8 rows"):
        layer(torch.rand(8, 3))


@every_layer
def test_copies_and_pickles_are_plain(name: str) -> None:
    plain, _ = LAYERS[name]
    layer, _ = converted(nn.Sequential(copy.deepcopy(plain)))
    assert type(layer[0]) is not type(plain) and isinstance(layer[0], type(plain))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other[0]) is type(plain) and "rows" not in vars(other[0])
        assert repr(other) == repr(layer)


def test_what_has_no_form_stays() -> None:
    for layer in (drop.DropBlock2d(with_noise=True), StochasticDepth(0.5, "batch")):
        assert type(converted(layer)[0]) is type(layer) and "rows" not in vars(layer)
