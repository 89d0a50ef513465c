"""ReLabel against arrays computed with the published code (generation of maps: from the authors' description)."""

from __future__ import annotations

import re

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor
from torch import Tensor, nn

from unlabeled.augment import regularise
from unlabeled.config.base.optim import AdamP as AdamPOptions
from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.engine.optim.optimizer import build_optimizer, set_learning_rate
from unlabeled.engine.plan import learning_rate
from unlabeled.methods.base import Group, Info, Method, Step, StreamInfo
from unlabeled.methods.relabel.config import RelabelConfig
from unlabeled.methods.relabel.method import Relabel
from unlabeled.ops.targets.label_pooling import edges, pool
from unlabeled.passes.labelmaps import cell_logits, strongest

KINDS = (
    "relabel_labelpool",
    "relabel_labelpool_small_map",
    "relabel_map_generation",
    "relabel_cutmix",
    "relabel_lr_schedule",
    "relabel_adamp_steps",
)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


# ---- label pooling


def stored(case: Case) -> tuple[Tensor, Tensor]:
    """Logits and classes of the case's map [b, k, M, M], as a store has them; the published file has floats."""
    logit, index = torch.from_numpy(case["label_map_topk"]).unbind(1)
    return logit, index.to(torch.uint16)


def boxes_of(case: Case) -> Tensor:
    """The case's crops as the loader gives them, [b, 7]."""
    width, height = case["image_width_height"].T
    columns = [*case["crop_top_left_height_width"].T, height, width, np.zeros(len(width))]
    return tensor(np.stack(columns, 1), torch.float32)


@parametrize("relabel_labelpool")
def test_places_of_crops(case: Case) -> None:
    close(edges(boxes_of(case)), case["box_fraction_left_top_right_bottom"], abs=1e-6)


@parametrize("relabel_labelpool")
@PRECISIONS
@pytest.mark.parametrize("order", ["xy", "published_order"])
def test_pooling(case: Case, dtype: torch.dtype, order: str) -> None:
    logit, index = stored(case)
    name = {"xy": "left_top_right_bottom", "published_order": "top_left_bottom_right"}[order]
    box, classes = tensor(case[f"box_fraction_{name}"], dtype), int(case["num_classes"])
    assert logit.shape[1:] == (int(case["topk"]), int(case["map_size"]), int(case["map_size"]))
    found = pool(logit.to(dtype), index, box, classes)
    if dtype == torch.float64:
        close(found, case[f"pooled_logits_{order}_float64_formula"], abs=1e-6)
    close(found, case[f"pooled_logits_{order}"], abs=1e-5)
    close(found.softmax(1), case[f"target_{order}"], abs=5e-6)
    # the published order of the axes is that of transposed maps
    turned = pool(logit.to(dtype).mT, index.mT, box[:, [1, 0, 3, 2]], classes)
    close(turned, found.numpy(), abs=1e-5)


@parametrize("relabel_labelpool")
def test_pooling_of_the_boxes_that_the_loader_gives(case: Case) -> None:
    target = pool(*stored(case), edges(boxes_of(case)), int(case["num_classes"])).softmax(1)
    close(target, case["target_xy"], abs=5e-6)
    flipped = boxes_of(case)
    flipped[:, -1] = 1
    close(pool(*stored(case), edges(flipped), int(case["num_classes"])).softmax(1), target.numpy())


@parametrize("relabel_labelpool_small_map")
@PRECISIONS
def test_pooling_of_boxes_smaller_than_a_cell(case: Case, dtype: torch.dtype) -> None:
    logit, classes = tensor(case["dense_label_map"], dtype), int(case["num_classes"])
    index = torch.arange(classes)[:, None, None].expand(logit.shape)
    assert logit.shape[2:] == (int(case["map_size"]),) * 2
    found = pool(logit, index, tensor(case["box_fraction_left_top_right_bottom"], dtype), classes)
    close(found, case["pooled_logits_float64"], abs=1e-6 if dtype == torch.float64 else 1e-5)
    close(found, case["pooled_logits"], abs=1e-5)
    close(found.softmax(1), case["target"], abs=5e-6)
    differs = np.abs(found.numpy() - case["contrast_aligned_true_pooled_logits_float64"]).max(1) > 1e-4
    assert np.array_equal(differs, case["box_smaller_than_one_cell"])


# ---- loss


class Logits(nn.Module):
    """The student of the arrays: logits, whatever comes in."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


class NoFeatures(nn.Identity):
    input = gives = None
    num_features = 1


@parametrize("relabel_labelpool")
@PRECISIONS
def test_loss(case: Case, dtype: torch.dtype) -> None:
    classes = int(case["num_classes"])
    about = {"num_classes": classes, "orientation": "row_major_HW", "resize": "squash"}
    info = Info(0, 0, 1, classes, {"train": StreamInfo(4, 4, records={"labelmap": about})})
    method = Relabel(RelabelConfig(), lambda source=None: NoFeatures(), info)
    method.classifier = Logits(tensor(case["student_logits"], dtype))
    step = Step(0, 1, 1, 0, 1, 1, 0.0, 0, torch.Generator(), torch.Generator())
    losses = method({"view": torch.zeros(1), "target": tensor(case["target_xy"], dtype)}, step)
    assert list(losses.terms) == ["labels"]
    losses.terms["labels"].backward()
    width = "64" if dtype == torch.float64 else "32"
    close(losses.terms["labels"], case[f"soft_ce_loss_float{width}"], rel=1e-6)
    close(method.classifier.logits.grad, case["soft_ce_grad_student_float32"], abs=1e-7)


# ---- generation of maps


@parametrize("relabel_map_generation")
def test_generation(case: Case) -> None:
    weight, bias = tensor(case["classifier_weight"]), tensor(case["classifier_bias"])
    linear = nn.Linear(weight.shape[1], weight.shape[0]).double()
    linear.load_state_dict({"weight": weight, "bias": bias})
    dense = cell_logits(tensor(case["features_before_pooling"]), linear)
    close(dense, case["dense_logits"], abs=1e-10)
    close(dense.mean((2, 3)), case["pooled_classifier_logits"], abs=1e-10)
    value, index = strongest(dense, int(case["topk"]))
    close(value, case["topk_values"], abs=1e-10)
    assert np.array_equal(index.numpy(), case["topk_indices"])


# ---- CutMix


@parametrize("relabel_cutmix")
def test_cutmix(case: Case) -> None:
    image, target = torch.from_numpy(case["image"]), torch.from_numpy(case["target"])
    height, width = image.shape[2:]
    centre = int(case["centre_axis2"]), int(case["centre_axis3"])
    cut = regularise.cut_around(centre, float(case["lambda_drawn"]), height, width)
    assert list(cut) == case["box_axis2_start_axis3_start_axis2_end_axis3_end"].tolist()
    assert cut.left_over(height, width) == float(case["lambda_after_clipping"])
    mixed, mixed_target = regularise.paste(image, target, torch.from_numpy(case["permutation"]), cut)
    assert np.array_equal(mixed.numpy(), case["mixed_image"])
    close(mixed_target, case["mixed_target"], abs=1e-6)


# ---- schedule and optimizer


@parametrize("relabel_lr_schedule")
def test_learning_rate(case: Case) -> None:
    per_epoch, epochs = int(case["steps_per_epoch"]), int(case["epochs"])
    warmup, total = int(case["warmup_epochs"]) * per_epoch, epochs * per_epoch
    curve = learning_rate(Optim(name="sgd", lr=LearningRate(base=float(case["base_lr"]))), 1, total, warmup, per_epoch)
    expected = case["learning_rate_per_step"]
    assert len(expected) == total
    close(np.array([curve.at(k) for k in range(total)]), expected, abs=1e-12)


class Weights(Method):
    """A method of the parameters of the arrays."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    def param_groups(self) -> list[Group]:
        return [Group(tuple(name for name, _ in self.named_parameters()))]


@parametrize("relabel_adamp_steps")
def test_adamp(case: Case) -> None:
    names = [match[1] for key in case if (match := re.fullmatch(r"(param\d+)_initial", key))]
    assert names
    method = Weights({name: tensor(case[f"{name}_initial"]) for name in names})
    switches = AdamPOptions(**{key: float(case[key]) for key in ("eps", "delta", "wd_ratio")})
    decay, lr = float(case["weight_decay"]), float(case["lr"])
    optim = Optim(name="adamp", lr={"base": lr}, betas=(float(case["beta1"]), float(case["beta2"])), adamp=switches,
                  nesterov=bool(case["nesterov"]), weight_decay=decay, exclude_decay=[])  # fmt: skip
    optimizer = build_optimizer(method, optim)
    for step in range(int(case["steps"])):
        set_learning_rate(optimizer, lr, 0.0)
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        for name, p in method.named_parameters():
            p.grad = tensor(case[f"{name}_grad_step{step}"])
        optimizer.step()
        for name, p in method.named_parameters():
            close(p, case[f"{name}_after_step{step}"], abs=1e-12)
            along = (p.detach() - before[name]).flatten() @ before[name].flatten() / before[name].square().sum()
            only_decays = float(along) == pytest.approx(-lr * decay * switches.wd_ratio, rel=1e-6)
            assert only_decays == bool(case[f"{name}_projected_at_step"][step]), name
