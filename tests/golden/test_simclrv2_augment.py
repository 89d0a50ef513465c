"""SimCLR's colour operations, blur and centre crop against arrays computed with the published code (TensorFlow)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.augment.blur import Blur, blur, default_taps
from unlabeled.augment.color import OPERATIONS, Chosen, Jitter, gray, jitter
from unlabeled.augment.geometry import central_boxes
from unlabeled.augment.resample import resample, resize_weights

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "arrays"))
KIND = "simclrv2_augment"
Case = dict[str, np.ndarray]


def cases() -> list:
    """Every case of every file of the kind; arrays are `case__array`, those without a case form one of their own."""
    found = {}
    for path in sorted([*FOLDER.glob(f"{KIND}.npz"), *FOLDER.glob(f"{KIND}_*.npz")]):
        with np.load(path) as arrays:
            for name in arrays.files:
                case, split, array = name.partition("__")
                key = f"{path.stem}:{case if split else ''}"
                found.setdefault(key, {})[array if split else name] = arrays[name]
    if not found:
        return [pytest.param({}, id="none", marks=pytest.mark.skip(f"no {KIND} in {FOLDER}"))]
    return [pytest.param(case, id=name) for name, case in found.items()]


pytestmark = pytest.mark.parametrize("case", cases())


def image(case: Case, name: str = "image_chw") -> Tensor:
    return torch.from_numpy(case[name]).float()[None]


def numbered(case: Case, stem: str) -> list[str]:
    """Prefixes `stem`, `stem0`, `stem1`, ... of the parts that the case holds."""
    return sorted({match[1] for name in case if (match := re.match(rf"({stem}\d*)_", name))})


def steps(case: Case, order: list[str]) -> Jitter:
    """Jitter with the case's factors; operations that are not in `order` come last and are neutral."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    names = {
        "brightness": "brightness_factor",
        "contrast": "contrast_factor",
        "saturation": "saturation_factor",
        "hue": "hue_delta",
    }
    amounts = {op: float(case[names[op]]) if op in order else neutral[op] for op in OPERATIONS}
    rest = [op for op in OPERATIONS if op not in order]
    return Jitter(
        torch.ones(1, dtype=torch.bool),
        torch.tensor([[OPERATIONS.index(op) for op in [*order, *rest]]]),
        *(torch.tensor([amounts[op]], dtype=torch.float64) for op in OPERATIONS),
    )


def difference(ours: Tensor, expected: np.ndarray) -> float:
    return (ours[0].double() - torch.from_numpy(expected).double()).abs().max().item()


def test_single_operations(case):
    present = [op for op in OPERATIONS if f"{op}_clipped_chw" in case]
    if not present:
        pytest.skip("the case has no single colour operation")
    for op in present:
        ours = jitter(image(case), steps(case, [op]), "simclr")
        assert difference(ours, case[f"{op}_clipped_chw"]) <= (2e-6 if op in ("hue", "saturation") else 1e-6), op


def test_jitter_in_order(case):
    if "jitter_order" not in case:
        pytest.skip("the case has no jitter")
    ours = jitter(image(case), steps(case, [str(op) for op in case["jitter_order"]]), "simclr")
    assert difference(ours, case["jitter_in_that_order_chw"]) <= 2e-6


def test_grayscale(case):
    if "grayscale_chw" not in case:
        pytest.skip("the case has no grayscale")
    assert difference(gray(image(case), Chosen(torch.ones(1, dtype=torch.bool))), case["grayscale_chw"]) <= 1e-6


def test_blurs(case):
    if not numbered(case, "blur"):
        pytest.skip("the case has no blur")
    for name in numbered(case, "blur"):
        taps, sigma = int(case[f"{name}_taps"]), case[f"{name}_sigma"].astype(np.float64).reshape(1)
        assert taps == default_taps(10 * int(case[f"{name}_kernel_size_argument"]))
        params = Blur(torch.ones(1, dtype=torch.bool), torch.from_numpy(sigma))
        assert difference(blur(image(case), params, taps=taps, padding="zeros"), case[f"{name}_chw"]) <= 1e-6, name


def test_centre_crops(case):
    """The box is EvalCrop's; the published resize has no antialiasing."""
    if not numbered(case, "centercrop"):
        pytest.skip("the case has no centre crop")
    for name in numbered(case, "centercrop"):
        x, size = image(case, f"{name}_image_chw"), int(case[f"{name}_size"])
        box = central_boxes(np.array([x.shape[2:]]), float(case[f"{name}_proportion"]))
        expected = [case[f"{name}_{key}"] for key in ("offset_top", "offset_left", "crop_height", "crop_width")]
        assert box[0, :4].tolist() == [float(value) for value in expected]
        place = torch.from_numpy(box).float()
        rows = resize_weights(place[:, 0], place[:, 2], size, x.shape[2], "bicubic", antialias=False)
        columns = resize_weights(place[:, 1], place[:, 3], size, x.shape[3], "bicubic", antialias=False)
        ours = resample(x, rows, columns).permute(0, 2, 1, 3)
        assert difference(ours, case[f"{name}_bicubic_unclipped_chw"]) <= 5e-4, name
