"""Synchronised norms on the GPU, in one process and in two that share it; batches from page-locked memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_processes
from tests.gpu.devices import DEVICE
from tests.ops.test_batchnorm import images, odd_norms, outcome
from tiny import tiny_recipe
from torch import Tensor

from unlabeled.data.batch import Batch
from unlabeled.data.streams import open_streams
from unlabeled.engine import build
from unlabeled.engine.plan import make_plan
from unlabeled.ops.batchnorm import convert, unsynchronised_buffers

pytestmark = pytest.mark.gpu
DTYPES = [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.1)]  # as on the CPU, `tests/ops`


def assert_close(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    scale = max(1.0, float(expected.double().abs().max()))
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
def test_one_process_has_the_norms_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    for convert_to in (None, DEVICE):
        torch.manual_seed(0)
        found = {}
        for name, (module, shape) in odd_norms().items():
            norm = module.to(DEVICE, dtype)
            norm = norm if convert_to is None else convert(norm, DEVICE)
            found[name] = outcome(norm, images(shape, dtype).to(DEVICE))
        if convert_to is None:
            expected = found
    for name, values in expected.items():
        for key, value in values.items():
            assert_close(found[name][key], value, tolerance, f"{name}: {key}")


def on_one_gpu(number: int, dtype: torch.dtype) -> dict[str, dict[str, object]]:
    torch.manual_seed(0)
    found = {}
    for name, (module, shape) in odd_norms().items():
        synchronised = convert(module.to(DEVICE, dtype), DEVICE)
        assert not unsynchronised_buffers(synchronised)
        part = images(shape, dtype)[(0, 7)[number] : (7, 10)[number]].to(DEVICE)
        found[name] = {key: x.double().cpu().numpy() for key, x in outcome(synchronised, part).items()}
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
def test_two_processes_on_one_gpu_are_one(dtype: torch.dtype, tolerance: float) -> None:
    """They are joined by gloo, which takes tensors of a GPU; NCCL refuses two processes on one."""
    parts = run_processes(2, on_one_gpu, dtype)
    torch.manual_seed(0)
    for name, (module, shape) in odd_norms().items():
        for key, value in outcome(module.to(DEVICE, dtype), images(shape, dtype).to(DEVICE)).items():
            got = [torch.as_tensor(part[name][key]) for part in parts]
            assert_close(torch.cat(got) if key in ("y", "dx") else got[0], value, tolerance, f"{name}: {key}")


def stream_batches(overrides: list[str], pin_memory: bool) -> list[Batch]:
    recipe = tiny_recipe("pixpro", "plain", overrides)
    opened = open_streams(recipe)
    plan = make_plan(recipe, "train", len(opened["train"].source), 1)
    stream = build.train_streams(recipe, opened, plan, pin_memory=pin_memory)["train"]
    return [batch for update in stream.updates(0, 8) for batch in update]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(48):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_page_locked_memory_are_the_same(workers: int, device: torch.device, photos: Path) -> None:
    """Made ahead by a thread of images in memory, by processes of files."""
    if device.type == "cpu":
        pytest.skip("only a GPU has page-locked memory")
    overrides = [f"data.workers={workers}", "data.train.card=folder", f"data.train.root={photos}"] if workers else []
    plain, locked = (stream_batches(overrides, pin) for pin in (False, True))
    assert len(plain) == len(locked) == 8
    moved = [batch.to(device) for batch in locked]  # all copies are under way before one is read
    for batch, there, expected in zip(locked, moved, plain, strict=True):
        assert batch.crops[0].is_pinned() and batch.index.is_pinned()
        assert torch.equal(there.index.cpu(), expected.index)
        for crop, other in zip(there.crops, expected.crops, strict=True):
            assert crop.is_cuda and torch.equal(crop.cpu(), other)
        for box, other in zip(there.boxes, expected.boxes, strict=True):
            assert torch.equal(box.cpu(), other)
