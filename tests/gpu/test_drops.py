"""Masks of random depth and dropout on the GPU are those of the CPU, which other processes may compute on."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.gpu.devices import DEVICE
from tests.ops.test_drop_path import LAYERS

from unlabeled.ops.drop_path import Rows, convert

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", LAYERS)
def test_masks_are_those_of_the_cpu(name: str) -> None:
    plain, shape = LAYERS[name]
    layer, rows = copy.deepcopy(plain).train(), Rows()
    convert(layer, rows)
    x = torch.rand(10, *shape, generator=torch.Generator().manual_seed(0)) + 0.5
    rows.begin({"view": torch.empty(10, 3, 8, 8)}, 1, 2)
    outputs = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(7)
        outputs.append(layer.to(device)(x.to(device)).cpu())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-6, atol=1e-6)
    assert not torch.equal(outputs[0], x), "something was dropped"
