"""Elastic networks: a sub-network is a plain network, and what is sampled, dropped, recomputed and refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.random_depth import Kept, add_branch
from unlabeled.backbones.elastic.sizes import Size, chosen_blocks, size_of, steps
from unlabeled.backbones.elastic.timm_names import timm_agrees, timm_lines, timm_state
from unlabeled.backbones.intermediate import Intermediate, names
from unlabeled.backbones.maps import maps
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError
from unlabeled.ops.machine.activations import kept_for_backward

TINY = {
    "vit": {"name": "elastic_vit_tiny", "options": {
        "widths": [16, 32, 8], "depths": [2, 5], "head_width": 8, "patch_size": 4, "img_size": 32, "layer_scale": 1.0,
    }},
    "swin": {"name": "elastic_swin_tiny", "options": {"widths": [16, 32, 8], "depths": [2, 5], "head_width": 8}},
    "resnet": {"name": "elastic_resnet_tiny"},
}  # fmt: skip
SIZES = {"vit": ("16x2", "24x4", "32x3"), "swin": ("16x2", "24x4", "32x3"), "resnet": ("16x1-1", "24x2-2", "32x1-3")}
FAMILIES = pytest.mark.parametrize("family", TINY)
EACH_SIZE = pytest.mark.parametrize(
    ("family", "size"), [(family, size_of(text)) for family in TINY for text in SIZES[family]], ids=str
)  # fmt: skip
SIDES = {"vit": (32, 24), "swin": (32, 27), "resnet": (32, 27)}  # of the images it is built for, and others


def tiny(family: str, **options: object) -> ElasticNetwork:
    """A small network with opened branches, the same at every call."""
    torch.manual_seed(0)
    block = TINY[family]
    network = build_backbone(Backbone(name=block["name"], options={**block.get("options", {}), **options}))
    for p in network.parameters():
        nn.init.normal_(p, 0.5 if p.ndim == 1 else 0.0, 0.2)
    return network.eval()


def images(side: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def places(network: ElasticNetwork, side: int, count: int = 3) -> Tensor:
    return torch.rand(count, network.cells(side) ** 2, generator=torch.Generator().manual_seed(2)) < 0.4


# ---- sub-networks are plain networks


@FAMILIES
def test_the_whole_is_the_plain_network_to_the_bit(family: str) -> None:
    network = tiny(family)
    plain = network.extract(network.grid.full)
    assert not any("elastic" in type(layer).__module__ for layer in plain.modules() if isinstance(
        layer, nn.Linear | nn.LayerNorm | nn.Conv2d | nn.GroupNorm))
    for side in SIDES[family]:
        x = images(side)
        for ours, theirs in zip(network.features(x), plain.features(x), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(network(x), plain(x)) and torch.equal(network.forward_features(x), plain.forward_features(x))


@EACH_SIZE
def test_a_sub_network_is_what_is_extracted(family: str, size: Size) -> None:
    network = tiny(family)
    plain = network.extract(size)
    assert plain.grid.sizes == [size] and sum(p.numel() for p in plain.parameters()) < sum(
        p.numel() for p in network.parameters())
    for side in SIDES[family]:
        ours, theirs = network.features(images(side), size), plain.features(images(side))
        assert ours.tokens.shape[1] == network.cells(side) ** 2
        torch.testing.assert_close(ours.vector, theirs.vector, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=1e-5, atol=1e-5)
        assert ours.vector.shape[1] == plain.num_features


@FAMILIES
def test_extraction_draws_nothing_and_shares_nothing(family: str) -> None:
    network = tiny(family).requires_grad_(False)
    state, before = torch.get_rng_state(), network(images(32))
    plain = network.extract(network.grid.full)
    assert torch.equal(torch.get_rng_state(), state)  # random weights would take seconds
    assert all(p.requires_grad and p.device.type == "cpu" for p in plain.parameters())
    for x in (*plain.parameters(), *plain.buffers()):
        x.data.zero_()
    assert torch.equal(network(images(32)), before)


@pytest.mark.parametrize(("family", "size"), [("swin", "16x2"), ("swin", "32x3"), ("resnet", "24x2-2")])
def test_an_extracted_network_is_built_from_options(family: str, size: str) -> None:
    network, (width, depth) = tiny(family), size_of(size)
    depths = [[count, count] for count in depth]
    own = tiny(family, widths=[width, width, 8], depths=depths[0] if family == "swin" else depths,
               cut_from=str(network.grid.full))
    plain = network.extract(Size(width, depth))
    assert own.load_state_dict(plain.state_dict(), strict=False).missing_keys == ["mask_token"]
    torch.testing.assert_close(own(images(32)), plain(images(32)))


@EACH_SIZE
def test_gradients_stay_inside_the_slice(family: str, size: Size) -> None:
    """A whole parameter has the extracted one's gradient where that was cut out, times alpha, and zero elsewhere.

    Blocks that are left out have none.
    """
    network = tiny(family).double()
    numbered = copy.deepcopy(network)
    for p in numbered.parameters():
        p.data = torch.arange(1, p.numel() + 1).double().view(p.shape)
    plain, numbers = network.extract(size), [p.detach() for p in numbered.extract(size).parameters()]
    network.features(images(32).double(), size).vector.square().sum().backward()
    plain.features(images(32).double()).vector.square().sum().backward()
    grads = [(name, p.grad.flatten()) for name, p in network.named_parameters() if p.grad is not None]
    scale = network.grid.full.width / size.width
    for (name, grad), part, number in zip(grads, plain.parameters(), numbers, strict=True):
        alpha = float(number.flatten()[0])  # every slice begins with the first entry, whose number is 1
        assert alpha == 1 or (alpha == scale and name.endswith(".weight") and "norm" not in name)
        inside = (number / alpha).flatten().round().long() - 1
        torch.testing.assert_close(grad[inside], alpha * part.grad.flatten())
        outside = torch.ones(len(grad), dtype=torch.bool).index_fill(0, inside, False)
        assert not grad[outside].any()
    if family != "resnet":  # whose stem, and so the token of masked places, is never narrower
        network.features(images(32).double(), size, places(network, 32)).vector.square().sum().backward()
        token = network.mask_token.grad[0]
        assert token[: size.width].all() and not token[size.width :].any()


def test_published_sizes() -> None:
    """The whole ResNet of POA has 172.6 million parameters, and its smallest those of the plain ResNet-50."""
    with torch.device("meta"):
        network = build_backbone(Backbone(name="elastic_resnet152"))
        masked = network.mask_token.numel()
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 172.6
        fifty = build_backbone(Backbone(name="elastic_resnet152", options={
            "widths": [64, 64, 64], "depths": [[4, 4], [6, 6]], "cut_from": "128x8-36"}))
        assert sum(p.numel() for p in fifty.parameters()) - masked == 23_508_032
        swin = build_backbone(Backbone(name="elastic_swin_b"))
        assert swin.grid.full == Size(128, (18,))
        wide = timm.create_model("swin_base_patch4_window7_224", num_classes=0)  # whose heads are 32 channels wide
        biases = [p.numel() for name, p in wide.named_parameters() if "bias_table" in name]
        own = sum(p.numel() for p in swin.parameters()) - swin.mask_token.numel()
        assert own == sum(p.numel() for p in wide.parameters()) + sum(biases)


def test_a_vit_begins_with_small_weights_and_nearly_closed_branches() -> None:
    network = build_backbone(Backbone(name="elastic_vit_tiny"))
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            assert 0.017 < float(layer.weight.detach().std()) < 0.022 and not layer.bias.any(), name
    assert 0.017 < float(network.pos_embed.detach().std()) < 0.022
    factors = [p for name, p in network.named_parameters() if name.endswith("gamma")]
    assert len(factors) == 24 and all((p == 1e-5).all() for p in factors)


@FAMILIES
def test_masked_places_are_not_seen(family: str) -> None:
    network = tiny(family)
    x, hidden = images(32), places(network, 32)
    side, cells = 32 // network.cells(32), network.cells(32)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    if family == "resnet":  # the stem is wider than a place: only the middle of a masked image is surely hidden
        hidden[:] = True
        hidden.view(-1, cells, cells)[:, :, -2:] = False
        noise[..., -4 * side :] = 0
    cover = hidden.view(-1, 1, cells, cells).repeat_interleave(side, 2).repeat_interleave(side, 3)
    changed = x + noise * cover
    assert not torch.allclose(network(changed), network(x), atol=1e-3)
    if family == "resnet":  # its norm looks at the whole image: compare without one
        network.norm1 = nn.Identity()
    torch.testing.assert_close(network.features(changed, mask=hidden).vector, network.features(x, mask=hidden).vector)
    assert not torch.allclose(network.features(x, mask=hidden).vector, network(x), atol=1e-3)


@pytest.mark.parametrize("side", [28, 30])
def test_masks_reach_the_edge_of_maps_that_were_padded(side: int) -> None:
    network = tiny("swin", patch_size=4)
    everything = torch.ones(1, network.cells(side) ** 2, dtype=torch.bool)
    one, other = (network.features(scale * images(side, 1), mask=everything).vector for scale in (1, 5))
    assert torch.equal(one, other)


# ---- other libraries and tools


@pytest.mark.parametrize(("family", "size", "side"), [
    ("vit", "24x4", 32), ("vit", "32x5", 32), ("swin", "32x5", 32), ("resnet", "64x1-2", 64), ("resnet", "128x2-2", 48),
])  # fmt: skip
def test_timms_classes_load_what_is_extracted(family: str, size: str, side: int) -> None:
    wide = {"widths": [64, 128, 32], "depths": [[1, 2], [1, 2]], "outer_blocks": [1, 2], "groups": 32,
            "stem": "imagenet"}
    network = tiny(family, **(wide if family == "resnet" else {})).extract(size_of(size))
    found: dict = {}
    exec(timm_lines(network), found)
    found["model"].load_state_dict(timm_state(network))
    ours = network(images(side))
    assert ours.isfinite().all()
    torch.testing.assert_close(found["model"].eval()(images(side)), ours, rtol=1e-5, atol=1e-5)


def test_on_which_images_timms_networks_agree() -> None:
    sides = (16, 24, 32, 48, 64, 96, 128)
    assert [side for side in sides if timm_agrees(tiny("swin"), side)] == [64, 128]  # patches of 2, windows of 4
    assert [side for side in sides if timm_agrees(tiny("vit"), side)] == [32]
    assert all(timm_agrees(tiny("resnet"), side) for side in sides)


def test_what_timm_cannot_hold_has_no_lines() -> None:
    assert timm_lines(tiny("swin").extract(size_of("24x4"))) is None  # a norm over channels that are then left out
    assert timm_lines(tiny("swin").extract(size_of("32x4"))) is None  # two shifted blocks next to each other
    assert timm_lines(tiny("resnet")) is None  # a narrower stem


@pytest.mark.parametrize(("family", "options", "reduction"), [
    ("swin", {}, 2), ("resnet", {}, 1), ("resnet", {"stem": "imagenet"}, 4)])
def test_maps_have_channels_first(family: str, options: dict, reduction: int) -> None:
    network, x = tiny(family, **options), images(32)
    assert network.feature_info[0]["reduction"] == reduction
    for info, name in zip(network.feature_info, names(network), strict=True):
        expected = (3, info["num_chs"], 32 // info["reduction"], 32 // info["reduction"])
        assert Intermediate(network, name)(x).shape == expected
    inner, last = maps(network, x, [names(network)[1]])
    assert inner.shape[1] == network.feature_info[1]["num_chs"]
    torch.testing.assert_close(last.mean((2, 3)), network(x))


def test_positions_of_oblong_images_keep_rows_and_columns_apart() -> None:
    network = tiny("vit")
    rows = torch.rand(8, 1, 32).expand(8, 8, 32).reshape(1, 64, 32)  # the same in every column
    network.pos_embed.data = torch.cat([torch.zeros(1, 1, 32), rows], 1)
    found = network._positions((6, 8))[0, 1:].unflatten(0, (6, 8))
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@FAMILIES
def test_double_precision_stays(family: str) -> None:
    network = tiny(family)
    size, hidden = network.grid.sizes[0], places(network, 32)
    single = network.features(images(32), size, hidden)
    double = network.double().features(images(32).double(), size, hidden)
    assert {x.dtype for x in double} == {torch.float64}
    torch.testing.assert_close(double.vector.float(), single.vector, rtol=1e-4, atol=1e-4)


@FAMILIES
def test_bfloat16_gives_finite_gradients(family: str) -> None:
    network = tiny(family, **({} if family == "resnet" else {"drop_path_rate": 0.5}))
    size = network.grid.sizes[0]
    depth = network.random_depth(size, 3, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        vector, tokens = network.features(images(32), size, places(network, 32), depth)
    (vector.float().square().mean() + tokens.float().mean()).backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() and grad.dtype == torch.float32 for grad in grads)


@FAMILIES
def test_copies_and_exported_programs_compute_the_same(family: str) -> None:
    network, x = tiny(family, depths=[[1, 1], [1, 1]] if family == "resnet" else [1, 1]), images(32)
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


# ---- random depth


def test_a_subset_takes_every_branch() -> None:
    """floor((1 - rate) B) images, with factor B / subset; at least one image."""
    network = tiny("vit", drop_path_rate=0.3)
    depth, *more = (network.random_depth(Size(16, (2,)), 7, torch.Generator().manual_seed(s)) for s in range(6))
    assert len(depth) == 2
    for kept in (kept for drawn in (depth, *more) for pair in drawn for kept in pair):
        assert len(kept.rows.unique()) == len(kept.rows) == 4 and kept.factor == 7 / 4
    assert len({tuple(kept.rows.tolist()) for pair in depth for kept in pair}) == 4  # each branch has its own
    ((kept, _), _) = network.random_depth(Size(16, (2,)), 1, torch.Generator())
    assert kept.rows.tolist() == [0] and kept.factor == 1
    assert tiny("vit").random_depth(Size(16, (2,)), 7, torch.Generator()) is None


def test_rates_of_swin_rise_with_the_place_in_the_whole() -> None:
    network = tiny("swin", drop_path_rate=0.5)
    depth = network.random_depth(Size(16, (2,)), 4000, torch.Generator().manual_seed(0))
    numbers = [0, 1, 2, 3, 4, 8, 9, 10]  # of all eleven blocks
    assert network._numbers(Size(16, (2,))) == numbers and len(depth) == len(numbers)
    for number, pair in zip(numbers, depth, strict=True):
        for kept in pair:
            rate = 0.5 * number / 10
            assert kept.factor == pytest.approx(1 / (1 - rate)) and len(kept.rows) / 4000 == pytest.approx(1 - rate,
                                                                                                        abs=0.04)
    rows = depth[-1][1].rows
    again, other = (network.random_depth(Size(16, (2,)), 4000, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(again[-1][1].rows, rows) and not torch.equal(other[-1][1].rows, rows)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_every_branch_is_skipped_by_its_own_draw(family: str) -> None:
    """A branch that no image takes is one whose last layer gives zeros."""
    network, x, size = tiny(family), images(32, 2), Size(16, (2,))
    blocks = [block for block in network.modules() if hasattr(block, "mlp")]
    taken = [blocks[number] for number in (network._numbers(size) if family == "swin" else chosen_blocks(2, 5))]
    everyone, nobody = Kept(torch.arange(2), 1.0), Kept(torch.arange(0), 1.0)
    for place, block in enumerate(taken):
        for branch, last in enumerate((block.attn.proj, block.mlp.fc2)):
            depth = [[everyone, everyone] for _ in taken]
            depth[place][branch] = nobody
            found = network.features(x, size, depth=depth).vector
            weight, bias = last.weight.detach().clone(), last.bias.detach().clone()
            with torch.no_grad():
                last.weight.zero_(), last.bias.zero_()
                torch.testing.assert_close(found, network.features(x, size).vector)
                last.weight.copy_(weight), last.bias.copy_(bias)
            assert not torch.allclose(found, network.features(x, size).vector, atol=1e-4)


def test_images_that_skip_a_branch_pass_unchanged() -> None:
    x = torch.randn(5, 2, 3)
    out = add_branch(x, lambda part: part + 1, Kept(torch.tensor([3, 0]), 1.5))
    expected = x.clone()
    expected[[0, 3]] += 1.5 * (x[[0, 3]] + 1)
    torch.testing.assert_close(out, expected)
    assert torch.equal(add_branch(x, lambda part: part, Kept(torch.tensor([], dtype=torch.int64), 2.0)), x)


@FAMILIES
def test_recomputing_changes_no_gradient(family: str) -> None:
    network = tiny(family, **({} if family == "resnet" else {"drop_path_rate": 0.5})).train()
    size = network.grid.sizes[0]
    depth = network.random_depth(size, 3, torch.Generator().manual_seed(0))

    def gradients() -> tuple[list[Tensor | None], int]:
        network.zero_grad()
        with kept_for_backward(network.parameters()) as kept:
            loss = network.features(images(32), size, places(network, 32), depth).vector.square().sum()
            size_kept = kept.sizes()["all else"]
        loss.backward()
        return [p.grad for p in network.parameters()], size_kept

    expected, much = gradients()
    network.set_grad_checkpointing()
    found, little = gradients()
    assert little < 0.7 * much
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


# ---- what is refused


@pytest.mark.parametrize(("name", "options", "message"), [
    ("elastic_vit_l", {"widths": [384, 1024, 192]}, "steps of 192 does not end at 1024, the full size, but at 960"),
    ("elastic_swin_b", {"widths": [96, 136, 8]}, "104 is no multiple of 16, the .* ones are 96 and 112$"),
    ("elastic_resnet152", {"widths": [64, 128, 16]}, "80 is no multiple of 32, the groups of every norm"),
    ("elastic_resnet152", {"widths": [64, 96, 32]}, "96 is no multiple of 64, twice the groups of every norm"),
    ("elastic_resnet152", {"depths": [6, 36]}, r"depths needs \[smallest, largest\], whole numbers above 0, given 6"),
    ("elastic_resnet152", {"depths": [[4, 8]]}, r"depths needs \[\[smallest, largest\], \[smallest, largest\]\]"),
    ("elastic_resnet152", {"stem": "deep"}, "stem is imagenet or cifar, given deep"),
    ("elastic_resnet_tiny", {"outer_blocks": [1]}, r"outer_blocks needs \[of stage 1, of stage 4\].*given \[1\]"),
    ("elastic_swin_b", {"depths": [18, 6]}, "18 to 6 in steps of 1 does not end at 6"),
    ("elastic_swin_b", {"depths": [6, 18.5]}, r"depths needs \[smallest, largest\], whole numbers.*given \[6, 18.5\]"),
    ("elastic_vit_s", {"widths": [32, 96, 32]}, "32 is no multiple of 64, the width of a head; the smallest is 64"),
    ("elastic_vit_s", {"widths": [32, 96, 32], "head_width": 32, "patch_size": 0}, "patch_size needs a whole"),
    ("elastic_vit_s", {"widths": [32, 96, 32], "head_width": 32.0}, "head_width needs a whole.*given 32.0"),
    ("elastic_vit_s", {"widths": [32, 96, 32], "head_width": 32, "layer_scale": "x"}, "layer_scale needs a"),
    ("elastic_vit_s", {"layer_scale": 0}, "layer_scale needs a number above 0, given 0"),
    ("elastic_swin_b", {"sample_bias": 0.5}, "sample_bias needs a number from 1 on, given 0.5"),
    ("elastic_resnet_tiny", {"groups": True}, "groups needs a whole number above 0, given True"),
    ("elastic_swin_b", {"layer_scale": 1}, "'elastic_swin_b' has no such option"),
    ("elastic_swin_b", {"cut_from": "128x18"}, "cut_from is for a network of one size, but this one has 39"),
    ("elastic_swin_b", {"cut_from": 128}, "cut_from is a size such as 128x18, given 128"),
    ("elastic_swin_b", {"cut_from": "96x6", "widths": [128, 128, 16], "depths": [6, 6]}, "does not contain 128x6"),
    ("elastic_resnet152", {"cut_from": "128x4-36", "widths": [64, 64, 64], "depths": [[6, 6], [6, 6]]},
     "cut_from 128x4-36 does not contain 64x6-6"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught, torch.device("meta"):
        build_backbone(Backbone(name=name, options=options))
    assert len(str(caught.value).splitlines()) == 1


def test_steps_end_at_the_full_size() -> None:
    assert steps(384, 1024, 64)[-1] == 1024 and steps(5, 5, 3) == (5,)
    for broken in ((8, 4, 2), (4, 8, 0), (4, 9, 2)):
        with pytest.raises(UserError, match="does not end at"):
            steps(*broken)


@FAMILIES
def test_sizes_that_were_not_trained_are_refused_with_the_nearest(family: str) -> None:
    network = tiny(family)
    with pytest.raises(UserError, match=r"size 20x3 was not trained; the nearest are (16|24)x"):
        network.extract(Size(20, (3,)))
