"""The lines of docs/howto-passes.md do what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.passes.toys import toy_pass
from tests.evaluation.fakes import Noise

from unlabeled.augment.geometry import EvalCrop
from unlabeled.data.evaluation import ImageMaker

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "howto-passes.md").read_text()
READING, OWN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_rows_are_read_without_this_package(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    store = toy_pass(Path("photos.rows"))
    told: dict[str, object] = {}
    exec(READING, told)
    assert store is not None
    np.testing.assert_array_equal(told["block"], store.rows(np.arange(64)))
    assert capsys.readouterr().out.splitlines()[-1].startswith("('mean', 'place') (")
    assert len([line for line in READING.splitlines() if line and not line.startswith("import")]) <= 5


def test_a_pass_of_ones_own(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    source = Noise(20)
    own = OWN.replace("EvalCrop(224)", "EvalCrop(8)")
    known = {"ImageMaker": ImageMaker, "EvalCrop": EvalCrop, "Path": Path, "torch": torch, "np": np}
    exec(own, {**known, "source": source})
    shown = capsys.readouterr().out.splitlines()[-1]
    found = np.array(re.findall(r"[\d.]+", shown), float)
    np.testing.assert_allclose(found, source.pixels[7].mean((0, 1)), rtol=1e-4)
