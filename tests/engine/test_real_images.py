"""The published recipe's command on real photographs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif("DATA" not in os.environ, reason="DATA is not set: no real images")
def test_the_cifar_recipe_runs_on_real_shards(tmp_path: Path) -> None:
    small = ["backbone.width=0.125", "data.train.batch=64", "train.epochs=null", "train.updates=4",
             "optim.warmup_epochs=0", "eval.every=0", "eval.at_end=[]", "train.log_every=1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "pretrain.py", "recipes/cifar10/simclrv2.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, f"run={tmp_path / 'run'}", *small], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 process on cpu" in done.stdout and "4 updates (781 per epoch), 64 images each" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and lines[0]["data_wait"] < 0.5
    assert (tmp_path / "run" / "views.png").exists() and (tmp_path / "run" / "export" / "backbone.safetensors").exists()
