"""What no probe may do: learn from what it is chosen on, or look at the test set before it answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.evaluation.dense.fakes import Blocks, Painted, painted

from unlabeled.config.protocols.dense import SegmentationLinear
from unlabeled.config.protocols.vectors import FewLabels, Linear, Logistic
from unlabeled.engine.passes.features import Features
from unlabeled.evaluation.dense import segmentation_linear
from unlabeled.evaluation.dense.segmentation_linear import Maps
from unlabeled.evaluation.vectors import few_labels, linear, logistic

CPU = torch.device("cpu")
LINEAR = Linear(protocol="linear", lr=[0.03], weight_decay=[0.0], epochs=1, min_updates=60, held_out=0.4)
LOGISTIC = Logistic(protocol="logistic", c=[1.0], held_out=0.4)
FEW = FewLabels(protocol="few-labels", labels_per_class=[8], draws=2)


def noise(n: int, width: int, seed: int) -> Features:
    """Features that tell nothing of two classes; with more of them than images any labels can be learnt by heart."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return Features(x, torch.arange(n), torch.arange(n) % 2)


@pytest.mark.parametrize(("protocol", "cfg"), [(linear, LINEAR), (logistic, LOGISTIC)], ids=["linear", "logistic"])
def test_on_noise_held_out_images_are_guessed(protocol, cfg):
    score = next(iter(protocol.run(cfg, noise(120, 200, 0), noise(200, 200, 1), 2, CPU).values()))
    assert 35 < score.details["held_out"] < 65 and 35 < score.value < 65
    learnt = noise(120, 200, 0)
    assert next(iter(protocol.run(cfg, learnt, learnt, 2, CPU).values())).value > 95  # so the test can fail


def test_on_noise_held_out_images_are_guessed_by_the_linear_segmentation():
    draw = torch.Generator().manual_seed(0)
    maps = Maps(torch.randn(30, 250, 2, 2, generator=draw), torch.randint(0, 2, (30, 2, 2), generator=draw).byte())
    cfg = SegmentationLinear(protocol="segmentation-linear", lr=[0.3], epochs=1, min_updates=60, held_out=0.4)
    weight, bias, details = segmentation_linear.learn(cfg, maps, 2, CPU)
    assert 20 < details["held_out"] < 50  # IoU of guesses: a third
    predicted = torch.nn.functional.conv2d(maps.x, weight, bias).argmax(1)
    assert (predicted == maps.mask).float().mean() > 0.95


def told(n: int, shift: float) -> Features:
    """One feature that tells the class by its sign, off by `shift`, and one of noise."""
    label = torch.arange(n) % 2
    x = torch.stack([2.0 * label - 1, torch.randn(n, generator=torch.Generator().manual_seed(n))], 1)
    return Features(x + shift, torch.arange(n), label)


@pytest.mark.parametrize(("protocol", "cfg"), [(linear, LINEAR), (logistic, LOGISTIC), (few_labels, FEW)],
                         ids=["linear", "logistic", "few labels"])
def test_a_test_set_that_lies_elsewhere_is_judged_by_the_training_sets_scale(protocol, cfg):
    """Standardised by its own mean, it would be answered as if it lay where the training set lies."""
    there, elsewhere = (next(iter(protocol.run(cfg, told(80, 0.0), told(60, shift), 2, CPU).values())).value
                        for shift in (0.0, 20.0))
    assert there == 100 and elsewhere == 50


class Dark(Painted):
    """Painted in half the brightness."""

    def image(self, index: int) -> np.ndarray:
        return super().image(index) // 2


def test_dark_test_images_are_segmented_by_the_training_sets_scale():
    network, splits = painted(Blocks(1))
    dark = type(splits)(splits.card, splits.train, Dark(5, "val"), splits.names)
    cfg = SegmentationLinear(protocol="segmentation-linear", workers=0, lr=[1.0], min_updates=60, epochs=1)
    bright, dim = (segmentation_linear.judge(cfg, network, each, CPU)[0].value for each in (splits, dark))
    assert bright > 99 and dim < 80


def test_the_setting_is_that_which_is_best_on_images_that_were_held_out():
    """A rate of almost nothing learns nothing; a rate that learns must be taken, and named with its accuracy."""
    cfg = LINEAR.model_copy(update={"lr": [1e-9, 0.03]})
    score = linear.run(cfg, told(80, 0.0), told(60, 0.0), 2, CPU)["linear"]
    assert score.details["lr"] == 0.03 and score.details["held_out"] == 100


@pytest.mark.parametrize(("protocol", "cfg"), [
    (linear, LINEAR.model_copy(update={"lr": [1e-4, 0.003, 0.03]})),
    (logistic, LOGISTIC.model_copy(update={"c": [1e-4, 0.01, 1.0]})),
], ids=["linear", "logistic"])
def test_the_choice_is_the_same_whatever_the_test_set_says(protocol, cfg):
    train, test = told(80, 0.0), noise(60, 2, 5)
    lied = Features(train.x, train.index, 1 - train.label)
    choices = [next(iter(protocol.run(cfg, train, each, 2, CPU).values())).details for each in (train, test, lied)]
    assert choices[0] == choices[1] == choices[2]
