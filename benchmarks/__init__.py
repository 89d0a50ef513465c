"""Benchmarks of this checkout, run from its root: `python -m benchmarks.NAME`."""

import sys
from pathlib import Path

# what is measured is the code beside this folder, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))
