"""An update in float16, whose loss is scaled: on the GPU or, where there is none, on the CPU in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.gpu.devices import CPU, computing_on
from tiny import Tiny, snapshot, tiny_recipe, tiny_run


@pytest.fixture
def device() -> Iterator[torch.device]:
    device = torch.device("cuda") if torch.cuda.is_available() else CPU
    with computing_on(device):
        yield device


def scaled(device: torch.device, scale: float) -> Tiny:
    precision = ["train.precision=fp16"] if device.type == "cuda" else []
    tiny = tiny_run(tiny_recipe("simclrv2", "memory", precision))
    scaler = tiny.updater.accelerator.scaler = torch.amp.GradScaler(device.type, init_scale=scale)
    assert scaler.is_enabled()
    return tiny


def test_an_update_that_overflows_in_fp16_is_dropped_and_no_error(device: torch.device) -> None:
    tiny = scaled(device, 2.0**127)
    before = snapshot(tiny)
    outcome = tiny.updater.update(0, tiny.micros(0), [0])
    assert outcome.dropped and all(torch.equal(x, before[name]) for name, x in snapshot(tiny).items())
    assert tiny.updater.accelerator.scaler.get_scale() == 2.0**126
    calm = scaled(device, 2.0**10)
    outcome = calm.updater.update(0, calm.micros(0), [0])
    assert not outcome.dropped and calm.updater.accelerator.scaler.get_scale() == 2.0**10
    plain = tiny_run(tiny_recipe("simclrv2", "memory")).updater
    norm = float(plain.update(0, calm.micros(0), [0]).values["grad_norm"])
    assert float(outcome.values["grad_norm"]) == pytest.approx(norm, rel=0.05), "gradients are logged unscaled"
