"""Tests that are marked `gpu` are skipped where there is no CUDA device."""

from __future__ import annotations

import os

import pytest
import torch
from tests.gpu.devices import DEVICE, computing_on

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine without network may not resolve its own name
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, so before the first of several trainings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = DEVICE.type == "cuda" and not torch.cuda.is_available()
    for item in items:
        if missing and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device():
    """The GPU, on which the runs of the test start."""
    with computing_on(DEVICE):
        yield DEVICE
