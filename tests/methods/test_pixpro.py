"""PixPro's identities and limits (the arrays of the published code are tested in tests/golden)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from tiny import snapshot, tiny_recipe, tiny_run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unlabeled.augment import photometric
from unlabeled.config.read import read_recipe
from unlabeled.engine.plan import make_plan
from unlabeled.engine.steps import make_step
from unlabeled.errors import UserError
from unlabeled.methods import pixpro
from unlabeled.methods.base import Info, Step
from unlabeled.methods.pixpro import PixelPropagation, PixPro, cells, consistency, mean_of_pairs, pixel_contrast
from unlabeled.methods.pixpro_config import PixProConfig, Propagation
from unlabeled.ops.cells import centres, coordinates, distances
from unlabeled.ops.curves import value_at
from unlabeled.ops.ema import rising

GRID = (7, 7)
WHOLE = [0.0, 0.0, 1.0, 1.0]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def boxes(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def places(n: int, seed: int = 0) -> Tensor:
    """Coordinates of random crops, some of them flipped."""
    u = torch.rand(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    side = 0.2 + 0.8 * u[:, 2:4]
    start = u[:, :2] * (1 - side)
    x0, y0, x1, y1 = torch.cat([start, start + side], 1).unbind(1)
    flip = u[:, 4] < 0.5
    return torch.stack([torch.where(flip, x1, x0), y0, torch.where(flip, x0, x1), y1], 1)


def positives(first: list[float], second: list[float], threshold: float = 0.7) -> Tensor:
    return (distances(torch.tensor([first]), torch.tensor([second]), GRID) < threshold)[0]


# ---- places and pairs


def test_the_whole_image_goes_from_0_to_1_and_a_flip_exchanges_left_and_right() -> None:
    assert coordinates(boxes((0, 0, 30, 50, 30, 50, 0), (0, 0, 30, 50, 30, 50, 1))).tolist() == [
        [0, 0, 1, 1],
        [1, 0, 0, 1],
    ]


def test_images_one_pixel_wide_divide_by_nothing() -> None:
    assert coordinates(boxes((0, 0, 5, 1, 5, 1, 0))).tolist() == [[0, 0, 0, 1]]


def test_cells_are_counted_row_by_row() -> None:
    x, y = centres(torch.tensor([WHOLE]), (2, 4))[0].unbind(1)
    assert x.tolist() == [0.125, 0.375, 0.625, 0.875] * 2 and y.tolist() == [0.25] * 4 + [0.75] * 4


def test_equal_square_crops_pair_every_cell_with_itself_only() -> None:
    crop = [0.25, 0.5, 0.5, 0.75]
    assert torch.equal(positives(crop, crop), torch.eye(49, dtype=torch.bool))


def test_a_flipped_view_pairs_every_cell_with_its_mirror_image() -> None:
    mirrored = torch.eye(49, dtype=torch.bool).unflatten(1, GRID).flip(2).flatten(1)
    assert torch.equal(positives(WHOLE, [1.0, 0.0, 0.0, 1.0]), mirrored)


def test_crops_apart_have_no_pair_and_count_nothing() -> None:
    apart = positives([0.0, 0.0, 0.3, 0.3], [0.6, 0.6, 1.0, 1.0])[None]
    assert not apart.any()
    q, k = (F.normalize(random(2, 5, 49, seed=s), dim=1) for s in (1, 2))
    q.requires_grad_()
    both = torch.cat([apart, positives(WHOLE, WHOLE)[None]])
    loss = consistency(q, k, both)
    loss.backward()
    assert q.grad.isfinite().all() and not q.grad[0].any() and q.grad[1].any()
    q = q.detach()
    assert float(consistency(q[:1], k[:1], apart)) == 0  # ... and still counts among the images:
    assert float(loss.detach()) == pytest.approx(float(consistency(q[1:], k[1:], both[1:])) / 2, rel=1e-6)


def test_distances_know_no_order_and_a_larger_threshold_loses_no_pair() -> None:
    first, second = places(20), places(20, seed=1)
    apart = distances(first, second, (7, 5))
    assert torch.equal(apart.transpose(1, 2), distances(second, first, (7, 5)))
    counts = [int((apart < t).sum()) for t in np.linspace(0, 3, 30)]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > counts[10] > 0


def test_the_unit_is_the_diagonal_of_the_larger_cell() -> None:
    small, large = [0.0, 0.0, 0.35, 0.35], WHOLE
    apart = distances(torch.tensor([small]), torch.tensor([large]), GRID)[0]
    first, second = 0.35 / 14, 1 / 14  # centres of the first cells on the diagonal
    assert float(apart[0, 0]) == pytest.approx((second - first) * math.sqrt(2) / (math.sqrt(2) / 7))


# ---- propagation


def test_orthogonal_cells_are_left_alone_without_a_transform() -> None:
    x = torch.diag(torch.arange(1.0, 17))[None].unflatten(2, (4, 4))
    assert torch.allclose(PixelPropagation(16, Propagation(transform_layers=0))(x), cells(x).unflatten(2, (4, 4)))


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_sharp_similarities_leave_every_cell_its_own_value(layers: int) -> None:
    module = PixelPropagation(8, Propagation(transform_layers=layers, sharpness=1e4)).double()
    x = random(3, 8, 4, 5)
    assert torch.allclose(module(x).flatten(2), cells(module.transform(x)), atol=1e-12)
    assert sum(isinstance(m, nn.Conv2d) for m in module.modules()) == layers


def test_a_constant_map_stays_its_value() -> None:
    module = PixelPropagation(8, Propagation()).double()
    x = random(2, 8, 1, 1).expand(2, 8, 3, 3)
    assert torch.allclose(cells(module(x)), cells(module.transform(x)), atol=1e-12)


def test_permuted_cells_give_permuted_results() -> None:
    module, order = PixelPropagation(6, Propagation(transform_layers=2)).double().eval(), torch.randperm(20)
    x = random(2, 6, 4, 5)
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (4, 5))
    assert torch.allclose(module(shuffled).flatten(2), module(x).flatten(2)[:, :, order], atol=1e-12)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_gradients_stay_finite_where_similarities_are_cut_at_zero(sharpness: float) -> None:
    x = torch.stack([random(6, 2, 2), -random(6, 2, 2)]).requires_grad_()
    PixelPropagation(6, Propagation(sharpness=sharpness)).double()(x).sum().backward()
    assert x.grad.isfinite().all()


def test_under_autocast_the_weights_are_float32_and_close() -> None:
    module = PixelPropagation(32, Propagation())
    x = random(2, 32, 4, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found, module(x)).min() > 0.999


# ---- losses


def test_the_loss_lies_between_minus_4_and_4_and_reaches_both() -> None:
    everything = torch.ones(3, 49, 49, dtype=torch.bool)
    same = F.normalize(random(1, 8, 1), dim=1).expand(3, 8, 49)
    assert float(2 * consistency(same, same, everything)) == pytest.approx(-4)
    assert float(2 * consistency(same, -same, everything)) == pytest.approx(4)


def test_the_size_of_the_projections_does_not_matter() -> None:
    module = PixelPropagation(8, Propagation(), output_bias=False).double()
    x, k = random(3, 8, 7, 7), cells(random(3, 8, 7, 7, seed=1))
    positive = distances(places(3), places(3, seed=1), GRID) < 0.7
    losses = [consistency(cells(module(scale * x)), k, positive).item() for scale in (1.0, 0.01, 100.0)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)


def test_pixcontrast_without_negatives_is_0_and_with_equal_cells_log_of_their_number() -> None:
    q = k = F.normalize(random(2, 8, 1), dim=1).expand(2, 8, 49)
    everything = torch.ones(2, 49, 49, dtype=torch.bool)
    assert pixel_contrast(q, k, everything, 0.3).abs().max() < 1e-12
    one = torch.eye(49, dtype=torch.bool).expand(2, 49, 49)
    found = pixel_contrast(q, k, one, 0.3)
    assert torch.allclose(found, torch.full_like(found, math.log(49)))
    assert float(mean_of_pairs(found, found, one, torch.tensor(2))) == pytest.approx(math.log(49))


def test_pixcontrast_leaves_out_images_without_overlap() -> None:
    q, k = (cells(random(3, 8, 7, 7, seed=s)) for s in (1, 2))
    q.requires_grad_()
    eye = torch.eye(49, dtype=torch.bool)
    positive = torch.stack([eye, torch.zeros_like(eye), eye])

    def loss(rows: slice, images: int) -> Tensor:
        p = positive[rows]
        first, second = (pixel_contrast(q[rows], k[rows], p, 0.3), pixel_contrast(k[rows], q[rows], p.mT, 0.3))
        return mean_of_pairs(first, second, p, torch.tensor(images))

    everything = loss(slice(None), 2)
    everything.backward()
    assert q.grad.isfinite().all() and not q.grad[1].any()
    q, everything = q.detach(), everything.detach()
    assert float(everything) == pytest.approx(float(loss(slice(0, 1), 1) + loss(slice(2, 3), 1)) / 2)
    assert float(loss(slice(1, 2), 1)) == 0


def test_the_monitor_tells_spread_from_collapse() -> None:
    eye = torch.eye(49, dtype=torch.bool).expand(6, 49, 49)
    spread = cells(random(6, 32, 7, 7))
    pairs, others = eye.sum(), (~eye).sum()
    found = pixpro.watch(spread, spread, eye, pairs, others)
    assert float(found["sigma"]) == pytest.approx(1, abs=0.02)
    assert float(found["cosine_positive"]) == pytest.approx(1) and abs(float(found["cosine_other"])) < 0.02
    same = F.normalize(random(1, 32, 1), dim=1).expand(6, 32, 49)
    assert float(pixpro.watch(same, same, eye, pairs, others)["sigma"]) < 1e-6


# ---- the method


def test_the_first_loss_is_near_0_and_the_monitor_shows_healthy_keys() -> None:
    tiny = tiny_run(tiny_recipe("pixpro", "plain"))
    losses = tiny.updater.model(tiny.updater.views(0, 0, tiny.micros(0)[0]), make_step(tiny.updater.plan, 0, 0, 0, 0))
    assert abs(float(losses.terms["pixel"].detach())) < 1 and set(losses.terms) == {"pixel"}
    assert 0.4 < float(losses.metrics["sigma"]) < 1.1


def test_the_key_network_follows_one_update_behind() -> None:
    tiny = tiny_run(tiny_recipe("pixpro", "instance"))
    start = snapshot(tiny)
    assert all(torch.equal(x, start[f"online.{n[4:]}"]) for n, x in start.items() if n.startswith("key."))
    seen: list[dict[str, Tensor]] = []
    method = tiny.updater.method
    handle = method.key.register_forward_pre_hook(
        lambda *_: seen.append({n: p.clone() for n, p in method.key.named_parameters()})
    )
    tiny.train(0, 1)
    after = {n: p.detach().clone() for n, p in method.online.named_parameters()}
    tiny.train(1, 2)
    handle.remove()
    m = tiny.updater.plan.value(rising(method.cfg.key_momentum), 1)
    assert method.cfg.key_momentum < m < 1
    for name, first in seen[0].items():
        old = start[f"key.{name}"]
        assert torch.equal(first, old)
        assert torch.allclose(seen[2][name], m * old + (1 - m) * after[name], atol=1e-7)


def test_the_key_networks_statistics_are_its_own() -> None:
    tiny = tiny_run(tiny_recipe("pixpro", "plain"))
    tiny.train(0, 2)
    own = {n: b for n, b in tiny.updater.method.key.named_buffers() if n.endswith("num_batches_tracked")}
    assert own and {int(b) for b in own.values()} == {4}  # two views, two updates


def test_the_key_momentum_rises_from_its_start_and_stays_below_1() -> None:
    found = [value_at(rising(0.99), k, 500, 1) for k in range(500)]
    assert found[0] == pytest.approx(0.99, rel=1e-15) and found == sorted(found) and found[-1] < 1


def test_the_learning_rate_starts_at_a_hundredth_and_peaks_after_the_warm_up() -> None:
    plan = make_plan(read_recipe("pixpro"), "train", 1_281_167, 8)
    assert plan.lr(0) == pytest.approx(0.04) and plan.lr(5 * plan.updates_per_epoch) == pytest.approx(4.0)
    assert plan.lr(plan.total) == pytest.approx(1e-6)


def test_what_is_off_does_not_exist() -> None:
    plain = tiny_run(tiny_recipe("pixpro", "plain")).updater.method
    assert plain.online.instance is None and not list(plain.predictor.parameters()) and plain.online.encoder.fpn is None
    contrast = tiny_run(tiny_recipe("pixpro", "contrast")).updater.method
    assert not list(contrast.queries.parameters()) and not list(contrast.predictor.parameters())


def test_heads_have_an_output_bias_unless_told_otherwise() -> None:
    def last_biases(*overrides: str) -> list[bool]:
        method = tiny_run(tiny_recipe("pixpro", "instance", overrides)).updater.method
        heads = [method.online.projectors[0], method.online.instance, method.queries[0].transform, method.predictor]
        return [list(head)[-1].bias is not None for head in heads]

    assert last_biases("method.head_output_bias=true") == [True] * 4
    assert last_biases("method.head_output_bias=false") == [False] * 4


def test_every_level_of_the_pyramid_has_its_own_heads_and_the_pyramid_is_handed_out() -> None:
    method = tiny_run(tiny_recipe("pixpro", "fpn")).updater.method
    assert len(method.online.projectors) == len(method.queries) == len(method.key.projectors) == 3
    exports = method.exports()
    assert list(exports) == ["backbone", "fpn"] and exports["fpn"].gives == "map"
    finest = exports["fpn"].build()(torch.rand(2, 3, 32, 32))
    assert finest.shape == (2, 16, 16, 16)
    levels = method.online.eval().encoder(torch.rand(2, 3, 32, 32))[1]
    assert [x.shape[-1] for x in levels] == [16, 8, 4]


def test_levels_of_the_pyramid_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_run(tiny_recipe("pixpro", "fpn"))
    method, levels = tiny.updater.method, len(tiny.updater.method.queries)
    monkeypatch.setattr(method, "_pixels", lambda i, *more: {"loss": torch.tensor(float(i)), "x": torch.tensor(2.0)})
    losses = method(tiny.updater.views(0, 0, tiny.micros(0)[0]), make_step(tiny.updater.plan, 0, 0, 0, 0))
    assert levels > 1 and float(losses.terms["pixel"]) == (levels - 1) / 2 and float(losses.metrics["x"]) == 2


def test_a_sixth_level_halves_the_fifth() -> None:
    recipe = tiny_recipe("pixpro", "fpn", ["method.fpn.levels=[6, 2, 5]", "method.crop.size=64"])
    levels = tiny_run(recipe).updater.method.online.eval().encoder(torch.rand(1, 3, 64, 64))[1]
    assert [x.shape[-1] for x in levels] == [64, 8, 4] and torch.equal(levels[2], levels[1][:, :, ::2, ::2])


@pytest.mark.parametrize(("size", "stem", "cure"), [(32, "imagenet", 128), (24, "cifar", 32)])
def test_maps_too_small_are_refused_with_a_cure_that_works(size: int, stem: str, cure: int) -> None:
    def build(size: int) -> None:
        tiny_run(tiny_recipe("pixpro", "plain", [f"method.crop.size={size}", f"backbone.stem={stem}"]))

    with pytest.raises(UserError, match=rf"crop.size {size};.*backbone.stem=cifar.*method.crop.size={cure}$") as error:
        build(size)
    assert "\n" not in str(error.value)
    build(cure)


def test_a_backbone_without_a_map_or_with_too_few_stages_is_refused() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=1, embed_dim=12, num_heads=1)
    with pytest.raises(UserError, match="no feature map"):
        made(vit, 64)
    with pytest.raises(UserError, match="names only 0 stages"):
        made(Bare(), 16, fpn={"levels": [4, 5]})


class Bare(nn.Module):
    """A network that names no stages."""

    input = gives = None

    def forward_features(self, x: Tensor) -> Tensor:
        return x


def made(backbone: nn.Module, size: int, **options: object) -> PixPro:
    """A method with narrow heads around `backbone`."""
    backbone.input = backbone.gives = None
    cfg = PixProConfig.model_validate({"hidden": 16, "dim": 8, "crop": {"size": size}, **options})
    return PixPro(cfg, lambda source=None: backbone, Info(0, 0, 1, None, {}))


HIERARCHICAL = {
    "channels last": lambda: SwinTransformer(
        img_size=128, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4, num_classes=0
    ),
    "norm behind the pool": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=0),
}


@pytest.mark.parametrize("options", [{}, {"fpn": {"levels": [3, 4, 5], "width": 8}}], ids=["plain", "fpn"])
@pytest.mark.parametrize("name", HIERARCHICAL)
def test_hierarchical_networks_of_timm_are_trained_whole(name: str, options: dict[str, object]) -> None:
    method = made(HIERARCHICAL[name](), 128, **options).train()
    x = random(4, 3, 128, 128).float()
    views = {"view1": x[:2], "view2": x[2:], "place1": torch.tensor([WHOLE] * 2), "place2": torch.tensor([WHOLE] * 2)}
    step = Step(0, 10, 10, 0, 1, 10, 0.0, 0, torch.Generator(), torch.Generator())
    method(views, step).terms["pixel"].backward()
    trained = {n: p for n, p in method.online.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    frozen = [n for n, p in method.online.named_parameters() if not p.requires_grad]
    assert all(n.startswith("encoder.backbone.head.") for n in frozen)
    last, compared = method.online.encoder(x)
    assert last.shape[2:] == (4, 4) and last.shape[1] == method.online.encoder.backbone.num_features
    assert [y.shape[-1] for y in compared] == ([16, 8, 4] if options else [4])


def test_crops_without_a_box_are_refused_by_the_reader() -> None:
    with pytest.raises(UserError, match=r"method\.crop"):
        tiny_recipe("pixpro", "plain", ["method.crop={kind: affine, size: 32}"])


def test_the_views_are_those_of_the_table() -> None:
    """View 1 is always blurred and never solarised; view 2 is seldom blurred and sometimes solarised."""
    calm = ["method.augment={jitter_p: 0, gray_p: 0, blur_p: [1, 0], solarize_p: [0, 1], blur_sigma: [2, 2]}"]
    tiny = tiny_run(tiny_recipe("pixpro", "plain", calm))
    batch = tiny.micros(0)[0]["train"]
    views = tiny.updater.views(0, 0, {"train": batch})
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (tiny.updater.method.input.mean, tiny.updater.method.input.std)
    )
    first, second = (views[name] * std + mean for name in ("view1", "view2"))
    plain1, plain2 = (crop.float() / 255 for crop in batch.crops)
    assert torch.allclose(second, torch.where(plain2 >= 0.5, 1 - plain2, plain2), atol=1e-5)
    blurred = photometric.blur(plain1, photometric.Blur(torch.ones(24, dtype=torch.bool), torch.full((24,), 2.0)))
    assert torch.allclose(first, blurred, atol=1e-5) and not torch.allclose(first, plain1, atol=1e-2)
    assert torch.equal(views["place1"], coordinates(batch.boxes[0]))


def test_the_published_recipe_has_the_published_values() -> None:
    recipe = read_recipe("pixpro")
    assert recipe.optim.lr.peak(recipe.data.train.batch) == 4.0
    method_parts = {
        "projector": pixpro.mlp(2048, 4096, 256),
        "transform": PixelPropagation(256, recipe.method.pixel),
        "predictor": pixpro.mlp(256, 4096, 256),
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in method_parts.items()}
    assert counts == {"projector": 9_449_728, "transform": 65_792, "predictor": 2_109_696}


def test_the_demo_with_the_instance_branch_differs_by_the_branch_alone() -> None:
    plain, branch = (read_recipe(f"demo/{name}").model_dump() for name in ("pixpro", "pixpro-instance"))
    assert plain["method"].pop("instance") is None and branch["method"].pop("instance")["kind"] == "infonce"
    assert branch == plain


def test_propagation_and_pairs_are_a_small_share_of_the_products() -> None:
    """The measured share is that of benchmarks/pixpro_share.py; this counts the multiplications of a forward pass."""
    backbone = timm.create_model("resnet50", num_classes=0).to("meta")
    with FlopCounterMode(display=False) as network:
        backbone.forward_features(torch.empty(2, 3, 224, 224, device="meta"))
    with FlopCounterMode(display=False) as propagation:
        PixelPropagation(256, Propagation())(torch.ones(2, 256, 7, 7))
    assert 0 < propagation.get_total_flops() < 0.005 * network.get_total_flops()


def test_what_is_counted_is_every_pair_of_cells_once() -> None:
    tiny = tiny_run(tiny_recipe("pixpro", "plain"))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    counts, shape = tiny.updater.method.counts(views), tiny.updater.method.online.encoder.shapes[0]
    positive = distances(views["place1"], views["place2"], shape) < tiny.updater.method.cfg.threshold
    assert int(counts["pairs0"]) == int(positive.sum()) > 0 and int(counts["others0"]) == int((~positive).sum()) > 0
    assert int(counts["images0"]) == int(positive.flatten(1).any(1).sum())
