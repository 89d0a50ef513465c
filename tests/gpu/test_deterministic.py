"""`train.deterministic` as far as it shows without a GPU; that no method needs what it refuses: `test_placement`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tests.gpu.kernels import Recorded
from tiny import tiny_recipe

from unlabeled.engine import launch


def test_what_raises_is_noticed() -> None:
    x = torch.rand(1, 2, 6, 6, requires_grad=True)
    with Recorded() as seen:
        small = F.adaptive_avg_pool2d(x, 2)
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        loss = F.cross_entropy(large, torch.zeros(1, 12, 12, dtype=torch.int64))
        (loss + small.sum() + F.adaptive_avg_pool2d(x, 1).sum() + F.max_pool2d(x, 2).sum()).backward()
    assert seen.raising() == ["_adaptive_avg_pool2d_backward", "nll_loss2d_forward", "upsample_bilinear2d_backward"]


def test_a_later_training_is_not_deterministic_by_accident() -> None:
    train = tiny_recipe("rotnet", "one").train
    for wanted in (True, False):
        launch.start(train.model_copy(update={"deterministic": wanted}))
        assert torch.are_deterministic_algorithms_enabled() == wanted
