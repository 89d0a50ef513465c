"""Training curves."""

import json

import pytest
from PIL import Image

from unlabeled.errors import UserError
from unlabeled.report.curves import group, read_metrics, write_curves


def test_values_are_grouped_and_drawn(tmp_path):
    lines = [{"update": u, "loss": 5 - u, "loss/contrast": 5 - u, "lr": 0.1, "images_per_s": 9.0} for u in range(4)]
    lines[2] |= {"online_knn20@.07": 50.0, "feature_std": 0.4, "effective_rank": 12.0}
    lines[3]["loss"] = float("nan")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"update": 4, "lo')
    panels = group(read_metrics(tmp_path / "metrics.jsonl"))
    assert list(panels) == ["loss", "kNN", "lr", "effective_rank", "feature_std"]
    assert list(panels["loss"]) == ["loss"]  # its only term is the loss itself
    assert panels["loss"]["loss"] == ([0, 1, 2], [5, 4, 3])
    assert panels["kNN"]["online_knn20@.07"] == ([2], [50.0])
    assert Image.open(write_curves(tmp_path)).size[0] > 1000


def test_a_run_without_measurements_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no measurements"):
        write_curves(tmp_path)
