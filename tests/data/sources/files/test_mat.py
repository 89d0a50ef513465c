"""MATLAB's files: what scipy reads from them, and what is answered where they are damaged."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from unlabeled.data.sources.files.mat import read_mat

TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def saved(compress: bool, **content: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=compress)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_are_those_that_scipy_reads(tmp_path: Path, dtype: str, compress: bool) -> None:
    path = tmp_path / "x.mat"
    arrays = {f"a{n}": np.arange(120).astype(dtype).reshape(shape, order="F") for n, shape in enumerate(
        ((4, 5, 3, 2), (120, 1), (1, 120)))} | {"small": np.array([[3]], dtype), "n": np.zeros((2, 0), dtype)}
    path.write_bytes(saved(compress, text="other", cell=np.array([1, "a"], object), **arrays))
    ours, theirs = read_mat(path, *arrays, "absent"), loadmat(path)
    assert set(ours) == set(arrays)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert np.array_equal(array, theirs[name])
    with pytest.raises(ValueError, match="'text' is no array of numbers"):
        read_mat(path, "text")


@pytest.mark.parametrize("compress", [False, True])
def test_damage_is_an_error_and_never_another_array(tmp_path: Path, compress: bool) -> None:
    whole = saved(compress, X=np.arange(48, dtype=np.uint8).reshape(4, 4, 3, 1), y=np.array([[1], [2]], np.uint8))
    path, random = tmp_path / "x.mat", np.random.default_rng(0)
    for case in range(600):
        data = bytearray(whole)
        if case % 2:
            data = data[: int(random.integers(len(data)))]
        else:
            for place in random.integers(128, len(data), 1 + case % 5):
                data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            arrays = read_mat(path, "X", "y")
        except (ValueError, zlib.error):
            continue
        assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_a_small_file_does_not_claim_much_memory(tmp_path: Path) -> None:
    bomb = zlib.compress(np.array([14, 64], "<u4").tobytes() + bytes(1 << 24))
    header = saved(False)[:128]
    (tmp_path / "x.mat").write_bytes(header + np.array([15, len(bomb)], "<u4").tobytes() + bomb)
    with pytest.raises(ValueError, match="a compressed element is damaged"):
        read_mat(tmp_path / "x.mat", "X")
