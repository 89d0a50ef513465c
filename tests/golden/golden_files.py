"""Find golden arrays: files of a kind K are K.npz and K_*.npz, the longest kind first; arrays are `case__array`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "arrays"))

Case = dict[str, np.ndarray]


def kind_of(stem: str, kinds: tuple[str, ...]) -> str | None:
    """Return the longest kind that `stem` is or begins with (followed by an underscore)."""
    fitting = [kind for kind in kinds if stem == kind or stem.startswith(f"{kind}_")]
    return max(fitting, key=len, default=None)


def files(kind: str, kinds: tuple[str, ...]) -> list[Path]:
    """Return the files of `kind`, told apart from the other `kinds`; there must be at least one."""
    found = [path for path in sorted(FOLDER.glob("*.npz")) if kind_of(path.stem, kinds) == kind]
    assert found, f"no golden file of kind {kind} in {FOLDER}"
    return found


def cases(kind: str, kinds: tuple[str, ...]) -> list[tuple[str, Case]]:
    """Return (file:case, arrays) of every case in every file of `kind`; arrays without a case form one of their own."""
    result: list[tuple[str, Case]] = []
    for path in files(kind, kinds):
        by_case: dict[str, Case] = {}
        with np.load(path) as arrays:
            for name in arrays.files:
                case, split, array = name.partition("__")
                by_case.setdefault(case if split else "", {})[array if split else name] = arrays[name]
        result += [(f"{path.stem}:{case}", arrays) for case, arrays in by_case.items()]
    return result


def parametrize(kind: str, kinds: tuple[str, ...]) -> pytest.MarkDecorator:
    """Run a test once for every case of `kind`, as its argument `case`."""
    found = cases(kind, kinds)
    return pytest.mark.parametrize("case", [case for _, case in found], ids=[name for name, _ in found])


def close(actual, expected, *, rel: float = 0.0, abs: float = 0.0) -> None:
    """Assert that arrays or tensors agree: |actual - expected| <= abs + rel |expected|."""
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, rtol=rel, atol=abs)


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return the array as a tensor of `dtype`."""
    return torch.as_tensor(array).to(dtype)
