"""Evaluate from a clone: `python evaluate.py eval/knn.yaml RUN`, or under `accelerate launch`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "ssl"))

from unlabeled.cli.main import main  # after the line above: it must be on the path first

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
