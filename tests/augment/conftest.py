from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _natural(n: int, height: int, width: int, seed: int) -> np.ndarray:
    """Colour images uint8 [n, H, W, 3] with the 1/f spectrum and the correlated channels of photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n, 3, height, width))) / frequency, s=(height, width))
    noise /= noise.std((2, 3), keepdims=True)
    mixed = np.einsum("cd,ndhw->nhwc", np.array([[1, 0.35, 0.2], [1, -0.05, -0.2], [1, -0.3, 0.3]]), noise)
    brightness = rng.uniform(70, 180, (n, 1, 1, 1))
    return np.clip(brightness + 45 * mixed, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def natural():
    return _natural
