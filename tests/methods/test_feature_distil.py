"""Feature distillation: closed forms of targets and losses, what counts as a cell, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import Tiny, teacher, tiny_recipe, tiny_run
from torch import Tensor, nn

from unlabeled.backbones.intermediate import Intermediate
from unlabeled.errors import UserError
from unlabeled.methods.feature_distil.config import Cosine, SmoothL1
from unlabeled.methods.feature_distil.features import Features, Match, _weights
from unlabeled.methods.feature_distil.method import Moments, Standardise, by_itself, feature_loss, moments


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- losses


def test_the_cosine_loss_sees_directions_alone() -> None:
    target, prediction = vectors(5, 7), vectors(5, 7, seed=1)
    assert float(feature_loss(3 * target, target, Cosine())) == pytest.approx(0, abs=1e-12)
    assert float(feature_loss(-target, target, Cosine())) == pytest.approx(2)
    loss = feature_loss(prediction, target, Cosine())
    scale = torch.arange(1.0, 6.0)[:, None]
    assert float(feature_loss(scale * prediction, target / scale, Cosine())) == pytest.approx(float(loss))
    rows = [1 - float(p @ t / (p.norm() * t.norm())) for p, t in zip(prediction, target, strict=True)]
    assert float(loss) == pytest.approx(sum(rows) / 5)
    cells = feature_loss(prediction.view(5, 1, 1, 7).expand(5, 2, 3, 7), target.view(5, 1, 1, 7), Cosine())
    assert float(cells) == pytest.approx(float(loss))


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_smooth_l1_is_quadratic_up_to_beta_and_linear_beyond(beta: float) -> None:
    difference = beta * torch.tensor([[0.0, 0.3, -0.9], [1.1, -4.0, 7.0]], dtype=torch.float64)
    prediction = difference.clone().requires_grad_()
    loss = feature_loss(prediction, torch.zeros_like(difference), SmoothL1(kind="smooth_l1", beta=beta))
    loss.backward()
    near, far = difference[0], difference[1].abs()
    expected = (near.square() / (2 * beta)).sum() + (far - beta / 2).sum()
    assert float(loss.detach()) == pytest.approx(float(expected) / 6)
    torch.testing.assert_close(prediction.grad, (difference / beta).clamp(-1, 1) / 6)


def test_losses_are_float32_whatever_the_networks_are() -> None:
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        x, y = vectors(4, 6).to(dtype), vectors(4, 6, seed=1).to(dtype)
        assert feature_loss(x, y, Cosine()).dtype == expected
        assert feature_loss(x, y, SmoothL1(kind="smooth_l1")).dtype == expected


# ---- targets


def test_a_vector_by_itself_does_not_see_its_own_scale_and_offset() -> None:
    x = vectors(6, 9)
    torch.testing.assert_close(by_itself(x), by_itself(5 * x + 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_itself(x).mean(-1), torch.zeros(6, dtype=torch.float64))


def add(module: Standardise, *parts: Tensor) -> None:
    found = [moments(part) for part in parts]
    module.add(Moments(*(torch.stack(values) for values in zip(*found, strict=True))))


def test_dimensions_are_standardised_by_all_vectors_of_earlier_updates_however_they_are_cut() -> None:
    updates = [3 * vectors(12, 2, 5, seed=seed) + torch.arange(5) for seed in range(4)]
    whole, parts = Standardise(5).double(), Standardise(5).double()
    for update in updates:
        torch.testing.assert_close(parts(update), whole(update))
        add(whole, update)
        add(parts, *update.chunk(4))
    seen = torch.cat(updates).flatten(0, 1)
    assert int(whole.count) == int(parts.count) == len(seen)
    for module in (whole, parts):
        torch.testing.assert_close(module.mean, seen.mean(0))
        torch.testing.assert_close(module.variance, seen.var(0, correction=0))
        expected = (updates[0] - seen.mean(0)) / seen.std(0, correction=0)
        torch.testing.assert_close(module(updates[0]), expected)


def test_before_the_first_update_every_vector_is_standardised_by_itself() -> None:
    x = vectors(4, 6)
    module = Standardise(6).double()
    torch.testing.assert_close(module(x), by_itself(x))
    assert int(module.count) == 0


def test_scale_and_offset_of_a_teachers_dimensions_do_not_matter() -> None:
    x, scale, offset = vectors(50, 4), torch.tensor([1.0, 3.0, 0.2, 7.0]), torch.tensor([5.0, -2.0, 0.0, 1.0])
    plain, moved = Standardise(4).double(), Standardise(4).double()
    add(plain, x)
    add(moved, x * scale + offset)
    torch.testing.assert_close(plain(x), moved(x * scale + offset))


def test_a_dimension_in_which_nothing_happens_does_not_become_noise() -> None:
    x = vectors(64, 3)
    x[:, 2] = 1 + 1e-9 * x[:, 2]
    module = Standardise(3).double()
    add(module, x)
    standardised = module(x)
    assert float(standardised[:, 2].abs().max()) < 1e-5
    torch.testing.assert_close(standardised[:, :2].std(0, correction=0), torch.ones(2, dtype=torch.float64))
    constant = Standardise(3)
    add(constant, torch.ones(8, 3))
    assert constant(torch.ones(8, 3)).abs().max() == 0


# ---- grids


def test_both_grids_come_to_the_smaller_number_of_cells_as_an_image_is_resized() -> None:
    student, teacher_grid = vectors(2, 4, 9, 3), vectors(2, 6, 5, 8, seed=1)
    small, taught = Match((4, 9), (6, 5)).double()(student, teacher_grid)
    assert small.shape == (2, 4, 5, 3) and taught.shape == (2, 4, 5, 8)
    for got, given in ((small, student), (taught, teacher_grid)):
        images = F.interpolate(given.permute(0, 3, 1, 2), (4, 5), mode="bilinear", antialias=True)
        torch.testing.assert_close(got, images.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)
    # a tent as wide as two of the larger cells, cut at the border
    torch.testing.assert_close(_weights(4, 2), torch.tensor([[3.0, 3, 1, 0], [0, 1, 3, 3]]) / 7)
    ones = torch.ones(1, 7, 7, 2)
    torch.testing.assert_close(Match((7, 7), (3, 4))(ones, torch.ones(1, 3, 4, 2))[0], torch.ones(1, 3, 4, 2))


def test_equal_grids_stay_as_they_are() -> None:
    x, y = vectors(2, 3, 3, 4), vectors(2, 3, 3, 6, seed=1)
    first, second = Match((3, 3), (3, 3))(x, y)
    assert first is x and second is y


def test_a_single_cell_is_refused() -> None:
    with pytest.raises(UserError, match=r"compares 1 x 1 cells \(student 4 x 4, teacher 1 x 1\).*method.cells=0"):
        Match((4, 4), (1, 1))


# ---- what networks give

VIT = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 2}


def network(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options).eval()


def seen(net: nn.Module, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, and vector and cells that both are asked for."""
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = Features(net, size, "it", pooled=True, cells=True)(x)
    assert found.pooled is not None and found.cells is not None
    return x, found.pooled, found.cells


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}, {"global_pool": "avg", "class_token": False}],
                         ids=["class token", "registers", "mean"])  # fmt: skip
def test_tokens_for_the_whole_image_are_no_cells(options: dict[str, object]) -> None:
    net = network("vit_tiny_patch16_224", **VIT, **options)
    x, pooled, cells = seen(net, 16)
    with torch.no_grad():
        tokens = net.forward_features(x)
        torch.testing.assert_close(pooled, net(x))
    torch.testing.assert_close(cells.flatten(1, 2), tokens[:, -16:])
    assert cells.shape == (2, 4, 4, 12)


def test_maps_have_their_channels_last_whatever_the_network_calls_last() -> None:
    swin = network("swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=12, depths=(1, 1, 1, 1),
                   num_heads=(1, 1, 1, 1))  # fmt: skip
    x, pooled, cells = seen(swin, 64)
    with torch.no_grad():
        torch.testing.assert_close(cells, swin.forward_features(x))
        torch.testing.assert_close(pooled, swin(x))
    resnet = network("resnet18", channels=(4, 4, 8, 16))
    x, pooled, cells = seen(resnet, 64)
    with torch.no_grad():
        torch.testing.assert_close(cells, resnet.forward_features(x).permute(0, 2, 3, 1))
        torch.testing.assert_close(pooled, resnet(x))


def test_inner_blocks_give_cells_and_the_class_token_or_the_mean() -> None:
    vit = network("vit_tiny_patch16_224", **VIT)
    x, pooled, cells = seen(Intermediate(vit, "blocks.0"), 16)
    with torch.no_grad():
        tokens = Intermediate(vit, "blocks.0")(x)
    torch.testing.assert_close(pooled, tokens[:, 0])
    torch.testing.assert_close(cells.flatten(1, 2), tokens[:, 1:])
    x, pooled, cells = seen(Intermediate(network("resnet18", channels=(4, 4, 8, 16)), "layer2"), 32)
    torch.testing.assert_close(pooled, cells.mean((1, 2)))
    assert cells.shape == (2, 4, 4, 4)


class Own(nn.Module):
    """A network of a user's own, which pools as it likes."""

    def __init__(self, most: bool) -> None:
        super().__init__()
        self.conv, self.most = nn.Conv2d(3, 4, 3, 2, 1), most

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.forward_features(x)
        return maps.amax((2, 3)) if self.most else maps.mean((2, 3))


def test_a_network_without_timms_head_must_pool_by_the_mean() -> None:
    own = Own(most=False)
    x, pooled, _ = seen(own, 8)
    torch.testing.assert_close(pooled, own(x).detach())
    with pytest.raises(UserError, match="vector that it gives is not the mean of its last map"):
        seen(Own(most=True).eval(), 8)


def test_what_a_network_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="it gives vectors and no map or tokens; set"):
        Features(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 4, "it", pooled=False, cells=True)
    with pytest.raises(UserError, match=r"15 tokens of it, 1 of them for the whole image, are no square grid"):
        Features(nn.Flatten(2), 16, "it", pooled=False, cells=True)._grid(torch.zeros(2, 15, 3))


# ---- the method


def student_knows(tiny: Tiny) -> None:
    """Give the student the teacher's network, and projections that undo what is done to the teacher's features."""
    method = tiny.updater.method
    method.student = Features(method.teacher.network.network, 16, "it", pooled=True, cells=True).eval()
    for name in method.weights:
        layer, dim = method.projection[name], method.projection[name].out_features
        weight, bias = torch.eye(dim) - 1 / dim, torch.zeros(dim)
        if method.statistics:
            found = method.statistics[name]
            weight, bias = torch.diag(1 / found.deviation), -found.mean / found.deviation
        method.projection[name] = nn.Linear(dim, dim)
        with torch.no_grad():
            method.projection[name].weight.copy_(weight)
            method.projection[name].bias.copy_(bias)
        assert layer.out_features == dim


@pytest.mark.parametrize("standardise", ["dimensions", "vectors"])
@pytest.mark.parametrize("loss", ["{kind: cosine}", "{kind: smooth_l1}"])
def test_a_student_that_predicts_its_teacher_has_no_loss(standardise: str, loss: str) -> None:
    tiny = tiny_run(tiny_recipe("feature-distil", "both", [f"method.standardise={standardise}", f"method.loss={loss}"]))
    tiny.train(0, 2)
    student_knows(tiny)
    views = tiny.updater.views(2, 0, tiny.micros(2)[0])
    views["view"] = views["teacher_view"]
    losses = tiny.updater.method(views, tiny.losses(2)[1])
    assert set(losses.terms) == {"pooled", "cells"}
    if loss == "{kind: cosine}" or standardise == "dimensions":  # of vectors by themselves the length differs
        for name, term in losses.terms.items():
            assert float(term.detach()) < 1e-4, name
    for name, cosine in losses.metrics.items():
        assert float(cosine) == pytest.approx(1, abs=1e-4), name


def test_statistics_are_those_of_the_teachers_features_of_all_updates() -> None:
    tiny = tiny_run(tiny_recipe("feature-distil", "both", ["method.standardise=dimensions"]))
    method, features = tiny.updater.method, []
    for update in range(3):
        views = tiny.updater.views(update, 0, tiny.micros(update)[0])
        features.append(method.teacher(views["teacher_view"]))
    tiny.train(0, 3)
    for name in ("pooled", "cells"):
        rows = torch.cat([getattr(found, name) for found in features]).flatten(0, -2)
        found = method.statistics[name]
        assert int(found.count) == len(rows) == 3 * 24 * (4 if name == "cells" else 1)
        torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.variance, rows.var(0, correction=0), rtol=1e-4, atol=1e-5)


def test_the_teacher_is_left_alone_and_labels_are_not_asked_for() -> None:
    tiny = tiny_run(tiny_recipe("feature-distil", "pooled"))
    method = tiny.updater.method
    held = method.teacher.network
    before = {name: value.clone() for name, value in held.state_dict().items()}
    tiny.train(0, 3)
    assert tiny.micros(3)[0]["train"].label is None
    assert not held.training and not any(p.requires_grad or p.grad is not None for p in held.parameters())
    assert all(torch.equal(before[name], value) for name, value in held.state_dict().items())
    assert [name for name in method.state_dict() if name.startswith("teacher.")] == ["teacher.digest"]


def test_the_image_that_asks_for_shapes_leaves_no_trace() -> None:
    student = tiny_run(tiny_recipe("feature-distil", "both")).updater.method.student
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and student.training and all(norm.training for norm in norms)
    assert all(int(norm.num_batches_tracked) == 0 and not norm.running_mean.any() for norm in norms)


def test_what_only_the_vector_depends_on_is_frozen_where_cells_are_compared() -> None:
    """A norm behind the mean over tokens gets no gradient from them."""
    method = tiny_run(tiny_recipe("feature-distil", "cells")).updater.method
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {"student.network.fc_norm.weight", "student.network.fc_norm.bias"}


def test_every_network_sees_the_crop_by_its_own_statistics(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(network("vit_tiny_patch16_224", **(VIT | {"embed_dim": 192, "num_heads": 3})).state_dict(), file)
    given = f"method.teacher='timm:vit_tiny_patch16_224@{file}'"
    options = "method.teacher_options={img_size: 16, patch_size: 4, depth: 2}"
    tiny = tiny_run(tiny_recipe("feature-distil", "both", [given, options]))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    crop = tiny.micros(0)[0]["train"].crops[0] / 255
    torch.testing.assert_close(views["teacher_view"], (crop - 0.5) / 0.5)  # those of the published network
    ours = tiny.updater.method.input
    mean, std = (torch.tensor(x)[:, None, None] for x in (ours.mean, ours.std))
    torch.testing.assert_close(views["view"], (crop - mean) / std)
    assert len(tiny.train(0, 2)) == 2


def test_a_teacher_that_takes_other_images_is_refused_with_the_option_that_cures_it(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(network("vit_tiny_patch16_224", depth=1).state_dict(), file)
    given = [f"method.teacher='timm:vit_tiny_patch16_224@{file}'", "method.teacher_options={depth: 1}"]
    cure = r"its own are 224 x 224; set method\.teacher_options\.img_size=16, or method\.crop\.size=224"
    with pytest.raises(UserError, match=cure):
        tiny_run(tiny_recipe("feature-distil", "pooled", given))
    cured = [given[0], "method.teacher_options={depth: 1, img_size: 16}"]  # its position embedding is resized
    method = tiny_run(tiny_recipe("feature-distil", "pooled", cured)).updater.method
    assert method.projection["pooled"].out_features == 192
    with pytest.raises(UserError, match=r"method\.teacher_options\.dept.*no such option\. Did you mean 'depth'"):
        tiny_run(tiny_recipe("feature-distil", "pooled", [given[0], "method.teacher_options={dept: 1}"]))


@pytest.mark.parametrize(("overrides", "said"), [
    (["method.pooled=0.0"], "'pooled' and 'cells' are both 0"),
    (["method.teacher_options={img_size: 16}"], "'teacher_options' has no effect with .*which is a run"),
    (["method.teacher='timm:resnet18'", "method.teacher_options={num_classes: 3}"],
     r"'teacher_options\.num_classes' is set by the package itself"),
    (["method.loss={kind: cosine, beta: 1.0}"], "unknown key 'method.loss.*beta'"),
    (["data.train.batch=1"], "deviation over images"),
])  # fmt: skip
def test_settings_without_effect_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny_recipe("feature-distil", "pooled", overrides)


def test_a_teacher_that_gives_logits_is_refused() -> None:
    with pytest.raises(UserError, match=r"gives logits; name an export that gives features.* or take method ssld"):
        tiny_run(tiny_recipe("feature-distil", "pooled", [f"method.teacher={teacher()}:classifier"]))
    without = tiny_run(tiny_recipe("feature-distil", "pooled", [f"method.teacher={teacher()}"]))  # its network alone
    assert without.updater.method.projection["pooled"].out_features == 64
