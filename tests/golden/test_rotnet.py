"""RotNet against arrays computed with the published code, in float64 with weights by rule."""

from __future__ import annotations

import re
from collections import OrderedDict

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor
from torch import Tensor, nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.intermediate import Intermediate
from unlabeled.config.recipe import Backbone, Subset
from unlabeled.data.batch import Batch
from unlabeled.data.sources.subset import choose
from unlabeled.methods.base import Info, Step
from unlabeled.methods.probe.heads import conv_head, linear_head, mlp_head
from unlabeled.methods.rotnet import RotNet, rotate_all, rotate_each
from unlabeled.methods.rotnet_config import RotNetConfig
from unlabeled.ops.curves import table_rate

KINDS = (
    "rotnet_rotation_batch",
    "rotnet_nin",
    "rotnet_alexnet",
    "rotnet_classifiers",
    "rotnet_subset",
    "rotnet_lr_lookup",
)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


def near(actual: Tensor | float, expected: np.ndarray, tolerance: float) -> None:
    """Agree to `tolerance` of the largest value."""
    close(actual, expected, abs=tolerance * max(1.0, float(np.abs(expected).max())))


# ---- networks


def fill_by_rule(network: nn.Module, phase: float) -> None:
    """Give every parameter the value of the rule: sines of its number and of the place in it."""
    modules = [m for m in network.modules() if any(True for _ in m.parameters(recurse=False))]
    pairs = [(m, name) for m in modules for name in ("weight", "bias") if getattr(m, name) is not None]
    for number, (module, name) in enumerate(pairs):
        p = getattr(module, name)
        wave = torch.arange(p.numel(), dtype=torch.float64).mul_(0.7).add_(phase + 1 + number).sin_().view(p.shape)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            value = wave.mul_(0.1).add_(1 if name == "weight" else 0)
        else:
            value = wave.mul_(2 / p[0].numel() ** 0.5 if name == "weight" else 0.1)
        with torch.no_grad():
            p.copy_(value)


def with_classifier(cfg: Backbone, case: Case, dtype: torch.dtype) -> nn.Module:
    """The backbone and a linear classifier, with the weights of the case."""
    backbone = build_backbone(cfg)
    classifier = nn.Linear(backbone.num_features, int(case["num_classes"]))
    network = nn.Sequential(OrderedDict(backbone=backbone, classifier=classifier)).to(dtype)
    fill_by_rule(network, float(case["phase"]))
    assert sum(p.numel() for p in network.parameters()) == int(case["num_parameters"])
    return network


def check_features(network: nn.Module, x: Tensor, case: Case, mode: str, tolerance: float) -> None:
    """Compare every inner map that the case holds; a training pass must not change the statistics of the network."""
    found = [match[1] for key in case if (match := re.fullmatch(rf"{mode}_(\w+)_shape", key))]
    assert found
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for name in found:
        output = Intermediate(network, name if name == "classifier" else f"backbone.{name}")(x).detach()
        network.load_state_dict(before)
        assert list(output.shape) == case[f"{mode}_{name}_shape"].tolist()
        flat, prefix = output.flatten(), f"{mode}_{name}"
        near(flat[:64], case[f"{prefix}_first64_float64"], tolerance)
        near(flat[-16:], case[f"{prefix}_last16_float64"], tolerance)
        near(flat.mean(), case[f"{prefix}_mean_float64"], tolerance)
        near(flat.abs().mean(), case[f"{prefix}_abs_mean_float64"], tolerance)
        near(flat.std(correction=0), case[f"{prefix}_std_float64"], tolerance)


def nin(case: Case, dtype: torch.dtype) -> nn.Module:
    blocks = int(case["num_stages"])
    # without effect on 3 blocks, where a recipe may not ask for it
    pool = bool(case["use_avg_on_conv3"]) and blocks > 3
    return with_classifier(Backbone(name="nin", blocks=blocks, avg_after_block3=pool), case, dtype)


@parametrize("rotnet_nin")
def test_nin(case: Case) -> None:
    network, x = nin(case, torch.float64).train(), tensor(case["input_nchw_float32"])
    check_features(network, x, case, "train", 1e-8)
    check_outputs(network, x, case, 1e-8)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    near(first.weight.grad.norm(), case["train_grad_norm_first_conv_float64"], 1e-8)
    near(network.classifier.weight.grad.norm(), case["train_grad_norm_classifier_weight_float64"], 1e-8)
    check_features(network.eval(), x, case, "eval", 1e-8)


@parametrize("rotnet_nin")
def test_nin_float32(case: Case) -> None:
    """What comes out; with the sine weights, training mode magnifies rounding inside beyond what float32 can hold."""
    check_outputs(nin(case, torch.float32), tensor(case["input_nchw_float32"], torch.float32), case, 1e-4)


def check_outputs(network: nn.Module, x: Tensor, case: Case, tolerance: float) -> None:
    """Compare logits and loss of one training pass, and logits with the statistics which that leaves."""
    logits = network.train()(x)
    near(logits, case["train_logits_float64"], tolerance)
    loss = nn.functional.cross_entropy(logits, torch.arange(len(x)) % int(case["num_classes"]))
    near(loss, case["train_loss_float64"], tolerance)
    loss.backward()
    near(network.eval()(x), case["eval_logits_float64"], tolerance)


@parametrize("rotnet_alexnet")
def test_alexnet(case: Case) -> None:
    network = with_classifier(Backbone(name="alexnet_bn"), case, torch.float64).eval()
    k = torch.arange(3 * 224 * 224, dtype=torch.float64)
    x = torch.sin(float(case["phase"]) + 0.37 * k).view(1, 3, 224, 224)
    with torch.no_grad():
        check_features(network, x, case, "eval", 1e-7)
        near(network(x), case["eval_logits_float64"], 1e-7)


# ---- rotations and loss


class Given(nn.Identity):
    """Stands in for a network whose output is the input."""

    num_features, input, gives = 4, None, None


def method(case: Case) -> RotNet:
    info = Info(0, 0, 1, None, {}, tuple(case["mean_rgb"].tolist()), tuple(case["std_rgb"].tolist()))
    return RotNet(RotNetConfig(), lambda source=None: Given(), info)


def step() -> Step:
    return Step(0, 1, 1, 0, 1, 1, 0.0, 0, torch.Generator(), torch.Generator())


def images(case: Case) -> Tensor:
    return torch.from_numpy(case["images_uint8_nhwc"]).permute(0, 3, 1, 2)


@parametrize("rotnet_rotation_batch")
def test_rotations_move_pixels_exactly(case: Case) -> None:
    turned, turns = rotate_all(images(case))
    assert turned.dtype == torch.uint8 and turns.tolist() == [0, 1, 2, 3] * len(images(case))
    for quarter in range(4):
        expected = torch.from_numpy(case[f"rotated_{90 * quarter}_uint8_nhwc"]).permute(0, 3, 1, 2)
        assert torch.equal(turned[quarter::4], expected)
        each = rotate_each(images(case), torch.full((len(expected),), quarter))
        assert torch.equal(each, expected)
    with pytest.raises(ValueError, match="square"):
        rotate_all(torch.from_numpy(case["rectangular_uint8_hwc"]).permute(2, 0, 1)[None])


@parametrize("rotnet_rotation_batch")
def test_batch_is_image_major_and_normalised(case: Case) -> None:
    size, crops = int(case["batch_size"]), images(case)
    assert -(-len(crops) // size) == int(case["num_batches"])
    first, *_, last = crops.split(size)

    def views(part: Tensor) -> dict[str, Tensor]:
        return method(case).views({"train": Batch([part], [None], torch.arange(len(part)))}, step())

    close(views(first)["view"], case["batch0_images_nchw_float32"], abs=1e-6)
    assert views(first)["turns"].tolist() == case["batch0_rotation_labels"].tolist()
    assert views(last)["turns"].tolist() == case["last_batch_rotation_labels"].tolist()


@parametrize("rotnet_rotation_batch")
def test_loss_and_accuracy(case: Case) -> None:
    model = method(case).double()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(4))
        model.classifier.bias.zero_()
    logits = tensor(case["logits"]).requires_grad_()
    turns = torch.from_numpy(case["batch0_rotation_labels"])
    losses = model({"view": logits, "turns": turns}, step())
    losses.terms["rotation"].backward()
    close(losses.terms["rotation"], case["loss_float64"], abs=1e-10)
    close(logits.grad, case["grad_logits_float64"], abs=1e-10)
    close(100 * losses.metrics["rotation_accuracy"], case["top1_percent"], abs=1e-6)


# ---- classifiers on features, label subsets, learning rates


@parametrize("rotnet_classifiers")
def test_classifiers(case: Case) -> None:
    classes = int(case["num_classes"])
    if "pool_size" in case:
        x = tensor(case["input"])
        head = linear_head(tuple(x.shape[1:]), classes, int(case["pool_size"]), str(case["pool_type"]), norm=True)
        head = head.double()
        with torch.no_grad():
            head[-1].weight.copy_(tensor(case["weight"]))
            head[-1].bias.copy_(tensor(case["bias"]))
        near(head(x), case["train_logits_float64"], 1e-8)
        norm = next(m for m in head if isinstance(m, nn.BatchNorm2d))
        near(norm.running_mean, case["running_mean_after"], 1e-8)
        near(norm.running_var, case["running_var_after"], 1e-8)
        near(head.eval()(x), case["eval_logits_after_one_train_step_float64"], 1e-8)
        return
    x = tensor(case["input_nchw_float32"])
    shape = tuple(x.shape[1:])
    # the two are told apart by their size, as the file names them
    options = [conv_head(shape[0], classes), mlp_head(shape, classes)]
    head = next(h for h in options if sum(p.numel() for p in h.parameters()) == int(case["num_parameters"])).double()
    fill_by_rule(head, float(case["phase"]))
    near(head.train()(x), case["train_logits_float64"], 1e-8)
    near(head.eval()(x), case["eval_logits_float64"], 1e-8)


@parametrize("rotnet_subset")
def test_subset_takes_the_first_of_every_class(case: Case) -> None:
    labels = case["labels"]
    chosen = choose(labels, Subset(per_class=int(case["images_per_class"]), order="first"))
    assert chosen.tolist() == case["selected_indices_sorted"].tolist()
    assert labels[chosen].tolist() == case["selected_labels"].tolist()


@parametrize("rotnet_lr_lookup")
def test_learning_rate_tables(case: Case) -> None:
    tables = [name.removesuffix("_end_epochs") for name in case if name.endswith("_end_epochs")]
    assert tables
    for name in tables:
        table = list(zip(case[f"{name}_end_epochs"].tolist(), case[f"{name}_learning_rates"].tolist(), strict=True))
        assert [table_rate(epoch, table) for epoch in case["epoch_index"].tolist()] == case[name].tolist()
