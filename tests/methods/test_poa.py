"""POA: closed forms of targets and losses, masks, who learns from whom, blocks, what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_processes
from tiny import Tiny, tiny_recipe, tiny_run
from torch import Tensor

from unlabeled.augment import photometric
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.plan import describe
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.methods.base import Block
from unlabeled.methods.poa import masks as masks_module
from unlabeled.methods.poa.config import POAConfig
from unlabeled.methods.poa.losses import cross_entropy, cross_view_loss, koleo, patch_loss, same_view_loss
from unlabeled.methods.poa.masks import _hide_rectangle, draw_masks
from unlabeled.methods.poa.networks import Head, Logits
from unlabeled.methods.poa.targets import Centering, Targets, entropy, targets_of_blocks
from unlabeled.methods.poa.views import Views, hidden_tokens, views_of_blocks
from unlabeled.ops.targets.sinkhorn import sinkhorn


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- targets


def test_sinkhorn_gives_rows_a_mass_of_one_and_prototypes_equal_mass() -> None:
    x = normal(12, 5)
    q = sinkhorn(x, 0.5, iterations=50)
    torch.testing.assert_close(q.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(q.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(sinkhorn(x + 700.0, 0.5), sinkhorn(x, 0.5))
    torch.testing.assert_close(sinkhorn(torch.zeros(3, 4), 0.04), torch.full((3, 4), 0.25))


def test_sinkhorn_divides_by_the_mass_of_a_prototype_first() -> None:
    x = normal(6, 4, seed=1)
    q = (x / 0.3).exp()
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(x, 0.3), q)


def test_sinkhorn_takes_no_rows_and_very_different_ones() -> None:
    assert sinkhorn(torch.zeros(0, 4), 0.04).shape == (0, 4)
    q = sinkhorn(torch.tensor([[1.0, -1.0], [-60.0, -60.0]]), 0.04)
    assert q.isfinite().all()
    assert sinkhorn(normal(3, 4).half(), 0.04).dtype == torch.float32


def test_entropy_of_targets_is_a_share_of_the_largest() -> None:
    even, sure = torch.full((3, 8), 1 / 8), torch.eye(3, 5)
    assert float(entropy([Targets(even, even)])) == pytest.approx(1)
    assert float(entropy([Targets(even, even), Targets(sure, even)])) == pytest.approx(0.5)


def test_a_centre_waits_while_nothing_is_hidden() -> None:
    centering = Centering(3, 0.5)
    centering.patches.fill_(6)
    centering.move(Centering.sums(Targets(torch.full((2, 3), 4.0), torch.zeros(0, 3))))
    assert centering.crops.tolist() == [2, 2, 2] and centering.patches.tolist() == [6, 6, 6]


def _part_of_sinkhorn(rank: int) -> Tensor:
    rows = normal(7, 5)[:3] if rank == 0 else normal(7, 5)[3:]
    return sinkhorn(rows, 0.2)


def test_sinkhorn_of_two_processes_with_unequal_rows_is_that_of_one() -> None:
    parts = run_processes(2, _part_of_sinkhorn)
    torch.testing.assert_close(torch.cat(parts), sinkhorn(normal(7, 5), 0.2))


# ---- losses


def test_uniform_targets_and_logits_of_zero_cost_the_logarithm_of_the_prototypes() -> None:
    target, zero = torch.full((4, 8), 1 / 8), torch.zeros(4, 8)
    logits = Logits(zero, torch.zeros(6, 8), zero)
    assert float(cross_view_loss(target, logits, 0.1)) == pytest.approx(math.log(8))
    assert float(patch_loss(target, logits, torch.ones(4), 0.1)) == pytest.approx(math.log(8))
    assert float(same_view_loss(logits, logits, 0.1)) == pytest.approx(2 * math.log(8))  # global plus local


def test_cross_view_is_the_mean_over_all_pairs_of_crops() -> None:
    images, local = 3, 4
    target, logits = normal(2 * images, 6).softmax(1), normal(2 * images, 6, seed=1)
    locals_ = normal(local * images, 6, seed=2)
    total = [cross_entropy(target[r : r + images], logits[r : r + images], 0.1).mean() for r in (0, images)]
    for v in range(local):
        for g in (0, images):
            crop = locals_[v * images : (v + 1) * images]
            total.append(cross_entropy(target[g : g + images], crop, 0.1).mean())
    assert len(total) == 2 + 2 * local
    loss = cross_view_loss(target, Logits(logits, locals_, logits[:0]), 0.1)
    torch.testing.assert_close(loss, torch.stack(total).mean())


def test_same_view_has_no_gradient_where_both_students_agree_and_none_for_the_intact_one() -> None:
    intact, elastic = normal(4, 6).requires_grad_(), normal(4, 6).requires_grad_()
    empty = torch.zeros(0, 6, dtype=torch.float64)
    same_view_loss(Logits(intact, empty, empty), Logits(elastic, empty, empty), 0.1).backward()
    assert intact.grad is None
    torch.testing.assert_close(elastic.grad, torch.zeros(4, 6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_koleo_is_the_log_distance_of_nearest_neighbours() -> None:
    angles = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    z = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    gaps = 2 * torch.tensor([0.3, 0.3, 1.7]).div(2).sin()
    assert float(koleo(z)) == pytest.approx(-float(gaps.log().mean()), abs=1e-6)
    assert koleo(z.half()).dtype == torch.float32
    assert koleo(torch.ones(2, 3)).isfinite()
    near = torch.tensor([0.0, 0.02, 0.05])  # whose cosines are all 1 in bfloat16
    near = torch.stack([near.cos(), near.sin()], 1)
    with torch.autocast("cpu", torch.bfloat16):
        half = koleo(near)
    assert torch.equal(half, koleo(near))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    target, logits = torch.full((4, 8), 1 / 8), normal(4, 8).to(dtype)
    loss = cross_view_loss(target, Logits(logits, logits[:0], logits[:0]), 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_view_loss(target, Logits(logits.float(), logits[:0], logits[:0]), 0.1))


def test_heads_begin_with_small_weights() -> None:
    head = Head(64, 128, 32, 8)
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert 0.018 < float(layer.weight.detach().std()) < 0.022 and not layer.bias.any()


# ---- masks


def random(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_half_of_the_crops_are_masked_with_stratified_shares() -> None:
    masks = draw_masks(21, 14, 0.5, (0.1, 0.5), random())
    shares = np.sort(masks.mean((1, 2)))
    assert (shares > 0).sum() == 10
    edges = np.linspace(0.1, 0.5, 11)
    hidden = shares[shares > 0]
    assert (hidden <= edges[1:]).all()  # never more than the i-th part of the range says
    assert (hidden >= edges[:-1] - 0.04).mean() >= 0.8  # where rectangles cannot be placed it is less


def test_masks_are_made_of_rectangles_and_shuffled() -> None:
    first, again = (draw_masks(40, 14, 0.5, (0.1, 0.3), random(3)) for _ in range(2))
    assert (first == again).all()
    hidden = first.any((1, 2))
    assert 0 < hidden[:20].sum() < 20
    neighbours = first & (np.roll(first, 1, 1) | np.roll(first, 1, 2))
    assert neighbours.sum() > 0.7 * first.sum()


def test_rectangles_reach_every_place_but_never_span_the_grid() -> None:
    for cells, most in ((4, 8), (14, 60)):
        seen, tall = np.zeros((cells, cells), bool), []
        for seed in range(400):
            mask = np.zeros((cells, cells), bool)
            new = _hide_rectangle(mask, most, random(seed))
            height, width = mask.any(1).sum(), mask.any(0).sum()
            assert new == mask.sum() == height * width <= most and max(height, width) < cells
            seen |= mask
            tall.append(np.sign(height - width))
        assert seen.all() and abs(np.mean(tall)) < 0.1


def test_no_rectangle_hides_more_than_half_of_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    monkeypatch.setattr(masks_module, "_hide_rectangle",
                        lambda mask, most, random: seen.append(most) or _hide_rectangle(mask, most, random))
    draw_masks(4, 8, 1.0, (0.9, 0.9), random())
    assert max(seen) == 32 and min(seen) < 32


@pytest.mark.parametrize("cells", [1, 2, 4])
def test_masks_of_small_grids_end(cells: int) -> None:
    for seed in range(20):
        masks = draw_masks(8, cells, 1.0, (0.1, 0.5), random(seed))
        assert masks.shape == (8, cells, cells)
        assert (masks.sum((1, 2)) <= 0.5 * cells * cells).all()


def blocks_of_four_images() -> list[Views]:
    """Return two blocks of two images, whose crops have four patches and the numbers of their images as values."""
    crop = torch.arange(4.0).view(4, 1, 1, 1)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0, :2] = masks[1, 0, 2] = masks[0, 3, 0] = masks[1, 3, 1:] = True
    views = {"view0": crop, "view1": crop + 10, "view2": crop + 20, "mask0": masks[0], "mask1": masks[1]}
    return views_of_blocks(views, [Block(2, slice(0, 2)), Block(3, slice(2, 4))], cells=2)


def test_a_block_has_its_crops_and_its_hidden_patches() -> None:
    first, second = blocks_of_four_images()
    assert first.crops.flatten().tolist() == [0, 1, 10, 11] and second.crops.flatten().tolist() == [2, 3, 12, 13]
    assert first.local.flatten().tolist() == [20, 21] and second.local.flatten().tolist() == [22, 23]
    assert first.hidden.tolist() == [0, 1, 10] and second.hidden.tolist() == [4, 13, 14, 15]
    assert second.masks.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    tokens = torch.arange(16.0).view(4, 4, 1)
    assert torch.equal(hidden_tokens(tokens, second.hidden), tokens[second.masks])


def test_weights_of_the_hidden_patches_of_a_crop_sum_to_one() -> None:
    first, second = blocks_of_four_images()
    torch.testing.assert_close(first.weights(), torch.tensor([0.5, 0.5, 1.0]))
    torch.testing.assert_close(second.weights(), torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3]))


def test_a_block_gets_its_own_targets() -> None:
    whole = Targets(torch.arange(8.0)[:, None], torch.arange(7.0)[:, None])
    [[first], [second]] = targets_of_blocks([whole], blocks_of_four_images())
    assert first.crops.flatten().tolist() == [0, 1, 2, 3] and second.crops.flatten().tolist() == [4, 5, 6, 7]
    assert first.patches.flatten().tolist() == [0, 1, 2] and second.patches.flatten().tolist() == [3, 4, 5, 6]
    assert second.patches.data_ptr() == whole.patches[3:].data_ptr()  # no copy


# ---- the method


def poa(variant: str = "sinkhorn", *more: str) -> Tiny:
    return tiny_run(tiny_recipe("poa", variant, more))


def terms(tiny: Tiny, **changes: Tensor) -> dict[str, Tensor]:
    views, step, _ = tiny.losses(0)
    return tiny.updater.method(views | changes, step).terms


def test_exchanging_the_global_crops_changes_nothing_when_nothing_is_hidden() -> None:
    tiny = poa("sinkhorn", "method.patches=null", "method.targets=centering")
    tiny.updater.method.eval()
    views, _, _ = tiny.losses(0)
    before, after = terms(tiny), terms(tiny, view0=views["view1"], view1=views["view0"])
    for name, term in before.items():
        torch.testing.assert_close(after[name], term)
    hidden = terms(tiny, mask0=torch.ones(len(views["view0"]), 16).bool(), mask1=torch.zeros(24, 16).bool())
    assert not torch.allclose(hidden["cross_view"], before["cross_view"])


def test_before_patches_are_hidden_there_is_no_term_of_them_and_the_token_stays() -> None:
    tiny = poa("later")
    views, _, losses = tiny.losses(0)
    assert "mask0" not in views and "patches" not in losses.terms
    sum(losses.terms.values()).backward()
    token = tiny.updater.method.student.backbone.mask_token.grad
    assert token is not None and not token.any()


def test_patches_are_hidden_from_an_epoch_on_by_masks_of_the_update_and_the_block() -> None:
    tiny = poa("later")  # from 0.02 of an epoch of 54 updates
    assert "mask0" not in tiny.losses(1)[0]
    two, three = (tiny.losses(update)[0]["mask0"].unflatten(0, (4, 6)) for update in (2, 3))
    assert not torch.equal(two, three)
    assert len({tuple(block.flatten().tolist()) for block in two}) == 4


def test_views_are_drawn_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities of greyscale, solarisation and blur of the global crops and of a local one."""
    seen: list = []
    for name in ("draw_chosen", "draw_blur"):
        real = getattr(photometric, name)
        monkeypatch.setattr(photometric, name, lambda n, *how, real=real: seen.append(how[:-1]) or real(n, *how))
    poa("sinkhorn", "method.local_crops=1").losses(0)
    blur = (0.1, 2.0)
    assert seen == [(0.2,), (0.0, blur), (0.0,), (0.2,), (0.9, blur), (0.2,), (0.2,), (0.5, blur), (0.0,)]


def test_random_depth_is_drawn_by_block_update_and_size_and_only_in_training() -> None:
    tiny = poa()
    backbone, seen = tiny.updater.method.student.backbone, []
    features = backbone.features
    backbone.features = lambda x, size, mask, depth: seen.append((size, depth)) or features(x, size, mask, depth)
    for update in range(2):
        tiny.losses(update)
    drawn = {str([kept.rows.tolist() for pair in depth for kept in pair]) for _, depth in seen}
    assert len(drawn) == len(seen) == 32  # of 4 blocks, two students each, their global and local crops
    tiny.updater.method.eval()
    seen.clear()
    tiny.losses(0)
    assert seen and all(depth is None for _, depth in seen)


def test_blocks_train_sub_networks_of_their_own_and_never_the_whole() -> None:
    tiny = poa()
    method, seen = tiny.updater.method, []
    forward = method.student.forward
    method.student.forward = lambda views, size, depth: seen.append(size) or forward(views, size, depth)
    for update in range(4):
        tiny.losses(update)
    full = method.student.backbone.grid.full
    elastic = [size for size in seen if size != full]
    assert len(seen) == 32 and len(elastic) == 16  # of 4 blocks, an intact and an elastic one in 4 updates
    assert len({tuple(elastic[i::4]) for i in range(4)}) == 4


def test_the_teacher_moves_by_its_momentum_heads_included() -> None:
    tiny = poa("sinkhorn", "method.momentum=0.75", "method.freeze_prototypes=0")
    method = tiny.updater.method
    before = {name: p.clone() for name, p in method.teacher.named_parameters()}
    tiny.train(0, 1)
    student = dict(method.student.named_parameters())
    for name, p in method.teacher.named_parameters():
        torch.testing.assert_close(p, 0.75 * before[name] + 0.25 * student[name].detach())
        assert not p.requires_grad


def test_prototypes_wait_and_backbone_and_heads_are_clipped_apart() -> None:
    tiny = poa("sinkhorn", "method.freeze_prototypes=10", "method.layer_decay=0.5", "method.patch_embed_lr=0.2")
    method = tiny.updater.method
    before = {name: p.clone() for name, p in method.student.heads.named_parameters()}
    tiny.train(0, 2)
    for name, p in method.student.heads.named_parameters():
        assert torch.equal(p, before[name]) == (".prototypes." in name), name
    groups = method.param_groups()
    rates = {name: group.lr_mult for group in groups for name in group.names}
    assert rates["student.backbone.norm.weight"] == 1 and rates["student.backbone.blocks.2.norm1.weight"] == 0.5
    assert rates["student.backbone.pos_embed"] == 0.5**4
    assert rates["student.backbone.patch_embed.proj.weight"] == 0.2 * 0.5**4
    assert {group.part for group in groups} == {"backbone", "heads"}


def test_without_an_elastic_student_koleo_counts_once() -> None:
    both, alone = poa("sinkhorn", "method.koleo=1.0"), poa("sinkhorn", "method.koleo=1.0", "method.elastic=null")
    for tiny in (both, alone):
        tiny.updater.method.eval()
    views, step, _ = both.losses(0)
    grid = both.updater.method.student.backbone.grid
    object.__setattr__(grid, "drawn", lambda *_: grid.full)  # both students are the whole network
    torch.testing.assert_close(both.updater.method(views, step).terms["koleo"],
                               alone.updater.method(views, step).terms["koleo"])


def test_blur_is_the_effective_one_unless_the_papers_is_asked_for() -> None:
    one, other = (poa("sinkhorn", f"method.blur={name}", "method.patches=null").losses(0)[0]
                  for name in ("effective", "paper"))
    assert (one["view0"] != other["view0"]).flatten(1).any(1).all()  # never against always
    torch.testing.assert_close(one["view2"], other["view2"])


@pytest.mark.parametrize(("epoch", "line"), [
    ("0.5", ["method.patches from update 27 on: never, for the run ends before"]),
    ("0.02", ["method.patches from update 2 on"]),
    ("0", []),
])  # fmt: skip
def test_the_plan_says_when_patches_are_hidden(epoch: str, line: list[str]) -> None:
    tiny = poa("sinkhorn", f"method.patches.start_epoch={epoch}")
    said = [line for line in describe(tiny.updater.plan, tiny.updater.recipe) if line.startswith("method.patches")]
    assert said == line


# ---- what is refused


@pytest.mark.parametrize(("overrides", "words"), [
    (["backbone={name: resnet18}"], "needs an elastic backbone; 'resnet18' offers: map"),
    (["backbone={name: vit_tiny_patch16_224, options: {img_size: 8, patch_size: 2, dynamic_img_size: true}}"],
     "needs an elastic backbone"),  # which is known only once it is built
    (["backbone.options.depths=[3, 3]", "backbone.options.widths=[12, 12, 4]"], "one size"),
    (["backbone.options.widths=[4, 13, 4]"], "does not end at 13, the full size, but at 12"),
    (["backbone.options.head_width=3"], "4 is no multiple of 3"),
    (["method.crop.size=9"], "method.crop.size is 9, but elastic_vit_tiny takes no images of 9 x 9: 9 is no"),
    (["method.local_crop.size=5"], "local_crop.size is 5, but elastic_vit_tiny takes no images of 5 x 5: 5 is no"),
    (["train.blocks=24"], "one image each"),
    (["method.prototypes=[100000000000]"], "method.prototypes"),
    (["train.grad_accum=2"], "grad_accum"),
    (["train.compile=true"], "train.compile"),
    (["method.elastic={cross_view: false, same_view: false}"], "no term"),
    (["method.center_momentum=0.5"], "no effect"),
])  # fmt: skip
def test_what_cannot_be_is_refused(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        train(tiny_recipe("poa", "sinkhorn", overrides), tmp_path / "run")


# ---- what it hands on


def test_the_lines_of_a_run_load_the_teacher(tmp_path: Path) -> None:
    tiny = poa()
    lines = write_exports(RunFolder(tmp_path), tiny.updater.recipe, tiny.updater.method, 0)
    names: dict = {}
    exec(lines.partition("\n\n")[0], names)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(names["model"].eval()(x), tiny.updater.method.teacher.backbone.float()(x))


def test_teacher_and_student_are_handed_on() -> None:
    method = poa().updater.method
    with torch.no_grad():
        method.student.backbone.norm.bias.add_(1)
    states = {name: export.build().state_dict()["norm.bias"] for name, export in method.exports().items()}
    assert list(states) == ["teacher", "student"] and torch.equal(states["student"], states["teacher"] + 1)


@pytest.mark.parametrize("options", [{}, {"elastic": None, "patches": None}, {"targets": "centering"}])
def test_the_options_that_a_run_keeps_are_read_again(options: dict[str, object]) -> None:
    cfg = POAConfig.model_validate(options)
    assert POAConfig.model_validate(cfg.model_dump(mode="json")) == cfg


def test_random_depth_is_refused_where_nobody_draws_it() -> None:
    with pytest.raises(UserError, match=r"drop_path_rate' of elastic_vit_tiny has no effect with finetune"):
        tiny_recipe("finetune", "plain", ["backbone={name: elastic_vit_tiny, options: {drop_path_rate: 0.1}}"])
