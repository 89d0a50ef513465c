"""A SLURM for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm.rig import Rig, what_is_missing


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """Start a SLURM of two nodes; skip where that cannot be."""
    missing = what_is_missing()
    if missing:
        pytest.skip(f"no SLURM: {missing}")
    folder = Path(tempfile.mkdtemp(prefix="rig-"))  # pytest's own are too long for the path of a socket, and private
    folder.chmod(0o755)
    rig = Rig(folder)
    try:
        rig.start()
        yield rig
    finally:
        rig.stop()
        if "KEEP_RIG" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)
