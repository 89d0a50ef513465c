"""PixPro against arrays computed with the published code (PixContrast: from the formula)."""

from __future__ import annotations

import re

import golden_files
import numpy as np
import pytest
import torch
from golden_files import Case, close, tensor
from torch import Tensor, nn

from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.engine.optim.lars import LARS
from unlabeled.engine.plan import learning_rate
from unlabeled.methods import pixpro
from unlabeled.methods.base import Info, Step
from unlabeled.methods.pixpro_config import Byol, PixProConfig, Propagation
from unlabeled.ops.cells import coordinates, distances
from unlabeled.ops.curves import value_at
from unlabeled.ops.ema import rising

KINDS = (
    "pixpro_loss",
    "pixpro_ppm",
    "pixpro_model",
    "pixpro_model_instance",
    "pixpro_coords",
    "pixpro_schedule",
    "pixpro_lars",
    "pixpro_pixcontrast",
)
DTYPES = pytest.mark.parametrize(("dtype", "suffix"), [(torch.float64, "_f64"), (torch.float32, "_f32")], ids=str)


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


def near(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Agree to `tolerance` of the largest value."""
    close(actual, expected, abs=tolerance * float(np.abs(expected).max()))


# ---- places and pairs


@parametrize("pixpro_coords")
def test_coordinates(case: Case) -> None:
    crops = tensor(case["crop_top_left_height_width_imageheight_imagewidth"], torch.float32)
    for flipped, expected in ((0.0, "coords"), (1.0, "coords_after_hflip")):
        boxes = torch.cat([crops, torch.full((len(crops), 1), flipped)], 1)
        close(coordinates(boxes), case[expected], abs=1e-6)


@parametrize("pixpro_loss")
def test_distances_and_pairs(case: Case) -> None:
    shape = case["query"].shape[2:]
    first, second = tensor(case["coords_query"]), tensor(case["coords_key"])
    apart = distances(first, second, shape)
    close(apart, case["pair_distance_f64"], rel=1e-10, abs=1e-10)
    for dtype in (torch.float64, torch.float32):
        positive = distances(first.to(dtype), second.to(dtype), shape) < float(case["pos_ratio"])
        assert np.array_equal(positive.numpy(), case["positive_mask"])


# ---- losses


@parametrize("pixpro_loss")
@DTYPES
def test_consistency(case: Case, dtype: torch.dtype, suffix: str) -> None:
    query = tensor(case["query"], dtype).requires_grad_()
    key = tensor(case["key"], dtype)
    places = (tensor(case[name], dtype) for name in ("coords_query", "coords_key"))
    positive = distances(*places, query.shape[2:]) < float(case["pos_ratio"])
    loss = pixpro.consistency(query.flatten(2), key.flatten(2), positive)  # they are unit vectors already
    loss.backward()
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    close(loss, case[f"loss{suffix}"], abs=tolerance)
    near(query.grad, case[f"grad_query{suffix}"], tolerance)
    close(loss, -2 * case["per_image_mean_similarity_f64"].mean(), abs=tolerance)


@parametrize("pixpro_pixcontrast")
def test_pixcontrast(case: Case) -> None:
    q1, q2, k1, k2 = (tensor(case[f"{net}_view{v}"]).flatten(2) for net in ("online", "key") for v in (1, 2))
    shape = case["online_view1"].shape[2:]
    apart = distances(tensor(case["coords1"]), tensor(case["coords2"]), shape)
    close(apart, case["pair_distance"], rel=1e-9, abs=1e-9)
    positive, t = apart < float(case["distance_threshold"]), float(case["temperature"])
    first = pixpro.pixel_contrast(q1, k2, positive, t)
    second = pixpro.pixel_contrast(q2, k1, positive.transpose(1, 2), t)
    for number, found in ((1, first), (2, second)):
        has = case[f"pixel_has_positive_view{number}"]
        close(found[torch.from_numpy(has)], case[f"pixel_loss_view{number}"][has], abs=1e-9)
        assert not found[torch.from_numpy(~has)].any()
    assert np.array_equal(positive.flatten(1).any(1).numpy(), case["image_has_overlap"])
    images = torch.tensor(int(case["image_has_overlap"].sum()))
    close(pixpro.mean_of_pairs(first, second, positive, images), case["loss"], abs=1e-9)
    for n in np.flatnonzero(case["image_has_overlap"]):
        one = slice(n, n + 1)
        found = pixpro.mean_of_pairs(first[one], second[one], positive[one], torch.tensor(1))
        close(found, case["loss_per_image_pair"][n], abs=1e-9)


# ---- pixel propagation


@parametrize("pixpro_ppm")
@DTYPES
def test_propagation(case: Case, dtype: torch.dtype, suffix: str) -> None:
    layers = int(case["transform_layers"])
    cfg = Propagation(transform_layers=layers, sharpness=float(case["sharpness_p"]), clamp=float(case["clamp_value"]))
    module = pixpro.PixelPropagation(case["feature"].shape[1], cfg)
    given = {name.removeprefix("param."): array for name, array in case.items() if name.startswith("param.")}
    renamed = {f"linear1.{name}" if layers == 1 else name: torch.from_numpy(x) for name, x in given.items()}
    module.transform.load_state_dict(renamed)
    module = module.to(dtype).train()
    x = tensor(case["feature"], dtype).requires_grad_()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    if dtype == torch.float64:
        near(module.similarity(x), case["similarity_f64"], tolerance)
        module.load_state_dict({f"transform.{name}": y for name, y in renamed.items()})
    out = module(x)
    near(out, case[f"propagated{suffix}"], tolerance)
    unit = nn.functional.normalize(out, dim=1)
    near(unit, case[f"propagated_normalised{suffix}"], tolerance)
    (unit * tensor(case["cotangent"], dtype)).sum().backward()
    rough = max(tolerance, 1e-4) if dtype == torch.float32 and layers == 2 else tolerance
    near(x.grad, case[f"grad_feature{suffix}"], rough)
    for name, p in module.transform.named_parameters():
        expected = case[f"grad_param.{name.removeprefix('linear1.') if layers == 1 else name}{suffix}"]
        if layers > 1 and name == "linear1.bias":  # in theory zero: a bias before BatchNorm
            close(p.grad, expected, abs=1e-5)
        else:
            near(p.grad, expected, rough)


# ---- the whole method


class ToyBackbone(nn.Module):
    """The tiny encoder of the arrays: [b, 3, 14, 14] -> a map [b, C, 7, 7]."""

    input = gives = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = {
            "conv1": nn.Conv2d(3, channels, 3, 2, 1, bias=False),
            "bn1": nn.BatchNorm2d(channels),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            "bn2": nn.BatchNorm2d(channels),
            "relu2": nn.ReLU(),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward_features(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def ours(name: str, layers: int) -> str:
    """Return the name here of a weight of the published class."""
    part, _, rest = name.partition(".")
    if part == "value_transform" and layers == 1:
        rest = f"linear1.{rest}"
    prefix = {
        "encoder": "online.encoder.backbone",
        "encoder_k": "key.encoder.backbone",
        "projector": "online.projectors.0",
        "projector_k": "key.projectors.0",
        "projector_instance": "online.instance",
        "projector_instance_k": "key.instance",
        "value_transform": "queries.0.transform",
        "predictor": "predictor",
    }[part]
    return f"{prefix}.{rest}"


def state(case: Case, stem: str) -> dict[str, np.ndarray]:
    layers = int(case["transform_layers"])
    return {ours(name.removeprefix(stem), layers): x for name, x in case.items() if name.startswith(stem)}


def method_of(case: Case) -> pixpro.PixPro:
    hidden, channels = case["init.projector.linear1.weight"].shape[:2]
    weight = float(case["instance_loss_weight"])
    instance = None
    if weight:
        instance = Byol(weight=weight, predictor_hidden=len(case["init.predictor.linear1.weight"]))
    cfg = PixProConfig.model_validate(
        {
            "hidden": int(hidden),
            "dim": len(case["init.projector.linear2.weight"]),
            "pixel": Propagation(transform_layers=int(case["transform_layers"]), sharpness=float(case["sharpness_p"])),
            "threshold": float(case["pos_ratio"]),
            "instance": instance,
            "key_momentum": float(case["base_momentum"]),
            "crop": {"size": int(case["view1"].shape[-1])},
        }
    )
    method = pixpro.PixPro(cfg, lambda source=None: ToyBackbone(int(channels)), Info(0, 0, 1, None, {}))
    method.load_state_dict({name: torch.from_numpy(x) for name, x in state(case, "init.").items()})
    return method.train()


def check_steps(case: Case, dtype: torch.dtype, losses: np.ndarray) -> None:
    """Follow the published steps; the last move of the key network comes after what the arrays hold."""
    method, total = method_of(case).to(dtype), int(case["total_steps_K"])
    trained = [p for p in method.parameters() if p.requires_grad]
    assert set(state(case, "step0_grad.")) == {n for n, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained, lr=float(case["sgd_lr"]))
    steps = len(case["view1"])
    for k in range(steps):
        step = Step(k, total, total, 0, 1, total, 0.0, 0, torch.Generator(), torch.Generator())
        arrays = {"view1": "view1", "view2": "view2", "place1": "coords1", "place2": "coords2"}
        result = method({name: tensor(case[array][k], dtype) for name, array in arrays.items()}, step)
        loss = torch.stack(list(result.terms.values())).sum()
        close(loss, losses[k], abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        if k == 0:
            for name, expected in state(case, "step0_grad.").items():
                close(dict(method.named_parameters())[name].grad, expected, abs=1e-5)
        optimizer.step()
        if k < steps - 1:
            found = method.after_step(step, {})
            assert found["key_momentum"] == pytest.approx(float(case["momentum_used"][k + 1]), rel=1e-12)
    expected = state(case, "final.")
    assert set(expected) == set(method.state_dict())
    for name, value in method.state_dict().items():
        close(value, expected[name], abs=1e-5)


@pytest.mark.parametrize("kind", ["pixpro_model", "pixpro_model_instance"])
@DTYPES
def test_training_steps(kind: str, dtype: torch.dtype, suffix: str) -> None:
    for _, case in golden_files.cases(kind, KINDS):
        check_steps(case, dtype, case["loss_per_step" + suffix.replace("_f32", "")])


# ---- schedules and optimizer


@parametrize("pixpro_schedule")
def test_schedules(case: Case) -> None:
    per_epoch, epochs = int(case["steps_per_epoch"]), int(case["epochs"])
    warmup, total = int(case["warmup_epochs"]) * per_epoch, epochs * per_epoch
    rule = LearningRate(
        base=float(case["base_lr"]),
        warmup_start=1 / float(case["warmup_multiplier"]),
        final=float(case["eta_min"]),
    )
    curve = learning_rate(Optim(name="lars", lr=rule), 1, total, warmup, per_epoch)
    close(np.array([curve.at(t) for t in range(total)]), case["learning_rate_per_step"], rel=1e-10)
    momentum = rising(float(case["base_momentum"]))
    found = [value_at(momentum, k, total, per_epoch) for k in range(total)]
    close(np.array(found), case["key_momentum_per_step"], rel=1e-10)


@parametrize("pixpro_lars")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_lars(case: Case, dtype: torch.dtype) -> None:
    names = [match[1] for key in case if (match := re.fullmatch(r"init\.(.+)", key))]
    params = {name: nn.Parameter(tensor(case[f"init.{name}"], dtype)) for name in names}
    decay = float(case["weight_decay"])
    optimizer = LARS(
        [{"params": [p], "adapt": p.ndim > 1, "weight_decay": decay if p.ndim > 1 else 0.0} for p in params.values()],
        lr=float(case["lr"]),
        momentum=float(case["momentum"]),
        eta=float(case["trust_coefficient"]),
        lr_in_momentum=False,
        norm="decayed",
        eps=float(case["eps"]),
    )
    for step in range(int(case["num_steps"])):
        for name, p in params.items():
            p.grad = tensor(case[f"grad.{name}"][step], dtype)
        optimizer.step()
    for name, p in params.items():
        close(p, case[f"final.{name}"], abs=1e-5 * max(1.0, float(np.abs(case[f"final.{name}"]).max())))
