"""metrics.jsonl: one line per logged update, of plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.sinks import Metrics


def lines(folder: RunFolder) -> list[dict]:
    return [json.loads(line, parse_constant=None) for line in folder.metrics.read_text().splitlines()]


def test_values_of_one_update_share_a_line_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    metrics = Metrics(folder, [], 0)
    metrics.write(0, {"loss": 2.0, "lr": 0.1})
    metrics.write(3, {"loss": float("nan"), "grad_norm": float("inf")})
    metrics.write(3, {"knn": 50.0})
    assert "NaN" not in folder.metrics.read_text() and "Infinity" not in folder.metrics.read_text()
    assert lines(folder) == [{"update": 0, "loss": 2.0, "lr": 0.1},
                             {"update": 3, "loss": None, "grad_norm": None, "knn": 50.0}]
    again = Metrics(folder, [], 4)  # a run that goes on
    again.write(3, {"health": 1.0})
    again.write(4, {"loss": 1.0})
    assert [line["update"] for line in lines(folder)] == [0, 3, 4]
    assert lines(folder)[1]["knn"] == 50.0 and lines(folder)[1]["health"] == 1.0
