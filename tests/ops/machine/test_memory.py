"""Freed memory is kept where glibc allows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "ssl"
COUNT = """
import ctypes, resource, sys
from unlabeled.ops.machine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 64 << 20
for turn in range(5):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has the setting")
def test_a_large_block_is_used_again():
    """Page faults of four more blocks of 64 MB, after the first: new pages each time, or the same ones."""
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", COUNT, how], env={"PYTHONPATH": str(SOURCE)}, text=True,
                              capture_output=True, check=True)
        faults[how] = int(done.stdout)
    if faults["leave"] < 100:
        pytest.skip("this C library keeps memory anyway")
    assert faults["keep"] < faults["leave"] / 10
