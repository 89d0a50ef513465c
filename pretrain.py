"""Pretrain from a clone: `python pretrain.py recipes/demo/simclrv2.yaml`, or under `accelerate launch`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "ssl"))

from unlabeled.cli.main import main  # after the line above: it must be on the path first

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
