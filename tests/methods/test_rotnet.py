"""RotNet's identities and switches (the arrays of the published code are tested in tests/golden)."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_recipe, tiny_run
from torch import nn

from unlabeled.backbones.nin import Nin
from unlabeled.errors import UserError
from unlabeled.methods.probe.heads import conv_head, linear_head, mlp_head
from unlabeled.methods.rotnet import rotate_all, rotate_each


def images(n: int, size: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_corners_turn_counter_clockwise() -> None:
    turned, turns = rotate_all(torch.tensor([[[[1, 2], [3, 4]]]]))
    assert turned[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert turns.tolist() == [0, 1, 2, 3]


def test_four_quarter_turns_are_none_and_two_flip_both_axes() -> None:
    x = images(5)
    once = torch.ones(5, dtype=torch.int64)
    y = x
    for _ in range(4):
        y = rotate_each(y, once)
    assert torch.equal(x, y)
    assert torch.equal(rotate_each(x, 2 * once), x.flip(-1, -2))


def test_a_flip_belongs_before_the_rotation() -> None:
    x, once = images(4), torch.ones(4, dtype=torch.int64)
    assert torch.equal(rotate_each(x, once).flip(-1), rotate_each(x.flip(-1), 3 * once))


def test_the_rows_of_an_image_come_from_one_crop() -> None:
    x = images(7)
    turned, turns = rotate_all(x)
    back = rotate_each(turned, (4 - turns) % 4)
    assert torch.equal(back, x.repeat_interleave(4, 0))


def test_rectangles_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        rotate_all(torch.zeros(2, 3, 4, 6))


def test_the_first_loss_is_that_of_guessing() -> None:
    _, loss, _ = tiny_run(tiny_recipe("rotnet", "all")).first_gradients()
    assert float(loss) == pytest.approx(math.log(4), rel=0.15)


@pytest.mark.parametrize("width", [96, 192, 256])
def test_the_convolutional_classifier_is_the_third_block_of_the_nin_on_any_width(width: int) -> None:
    head, block = conv_head(width, 10), Nin(3).conv3
    assert sum(p.numel() for p in head.parameters()) == 408_586 + 9 * 192 * (width - 192)
    shapes = [tuple(p.shape) for p in block.parameters()]
    assert [tuple(p.shape) for p in head.parameters()][:-2] == [(192, width, 3, 3), *shapes[1:]]
    assert head(torch.zeros(2, width, 8, 8)).shape == (2, 10)


def test_one_rotation_each_gives_one_row_per_image_and_all_four_turns() -> None:
    tiny = tiny_run(tiny_recipe("rotnet", "one"))
    drawn = []
    for update in range(8):
        views = tiny.updater.views(update, 0, tiny.micros(update)[0])
        assert len(views["view"]) == len(views["turns"]) == 24
        drawn += views["turns"].tolist()
    assert min(drawn.count(turns) for turns in range(4)) > 24


def test_a_constant_image_looks_the_same_in_all_rotations() -> None:
    tiny = tiny_run(tiny_recipe("rotnet", "all"))
    method = tiny.updater.method.eval()
    turned, _ = rotate_all(torch.full((2, 3, 8, 8), 0.3))
    logits = method.classifier(method.backbone(turned))
    assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-6)


def test_a_few_images_are_learnt_by_heart() -> None:
    constant = ["backbone.width=0.25", "train.updates=40", "optim.schedule=constant"]
    tiny = tiny_run(tiny_recipe("rotnet", "all", constant))
    batch, found = tiny.micros(0), []
    for update in range(40):
        found.append(float(tiny.updater.update(update, batch, [0]).values["rotation_accuracy"]))
    assert found[0] < 0.6 and found[-1] > 0.95, found


def test_an_unknown_block_is_refused_before_training() -> None:
    with pytest.raises(UserError, match="no module 'layer9'"):
        tiny_run(tiny_recipe("rotnet", "all", ["method.block=layer9"]))


def test_the_named_block_is_the_default_export() -> None:
    tiny = tiny_run(tiny_recipe("rotnet", "all", ["method.block=layer2"]))
    exports = tiny.updater.method.exports()
    assert list(exports) == ["layer2", "backbone"] and exports["layer2"].gives == "map"
    assert exports["layer2"].build()(torch.rand(1, 3, 8, 8)).ndim == 4




def test_heads_start_with_the_published_deviations_and_their_plain_norms_learn_nothing() -> None:
    torch.manual_seed(0)
    made = [module for head in (mlp_head((300,), 10), conv_head(64, 10)) for module in head.modules()]
    for module in made:
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / module.out_features), rel=0.05)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    for shape, pool in (((8, 6, 6), 3), ((8,), None)):
        head = linear_head(shape, 10, pool, "max", norm=True)
        assert [name.rpartition(".")[2] for name, _ in head.named_parameters()] == ["weight", "bias"]
