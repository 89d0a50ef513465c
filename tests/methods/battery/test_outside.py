"""The battery runs on methods outside the table: on the example of docs/methods.md, as a package of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from methods.battery import rules, rules_over_processes
from methods.battery.accumulation import accumulation_is_exact_or_refused
from methods.battery.cases import read_cases

from unlabeled.errors import UserError

ROOT = Path(__file__).resolve().parents[3]

CASES = """
simsiam:
  recipe: demo/simclrv2
  overrides:
    - backbone.width=0.125
    - data.train.batch=24
    - "method={name: 'simsiam:SimSiam', out_dim: 64, hidden: 16, crop: {kind: affine, size: 12, degrees: 15}}"
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page's example as two modules of a folder of one's own, with a file of cases beside them."""
    folder = tmp_path_factory.mktemp("own")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL | re.MULTILINE)
    config, method = (next(b for b in blocks if f"class {name}" in b) for name in ("SimSiamConfig", "SimSiam(Method)"))
    (folder / "simsiam_config.py").write_text(config.replace('Literal["simsiam"] = "simsiam"', "str"))
    (folder / "simsiam.py").write_text(method.replace("unlabeled.methods.simsiam_config", "simsiam_config"))
    (folder / "cases.yaml").write_text(CASES)
    return folder / "cases.yaml"


def test_the_example_keeps_every_rule(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (case,) = read_cases(file)
    for rule in (*rules.RULES, accumulation_is_exact_or_refused, *rules_over_processes.RULES):
        rule(case)


def test_the_option_runs_the_battery_on_a_file_and_nothing_else(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods", "--methods", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "ssl")}
    done = subprocess.run([*command, "--collect-only"], cwd=ROOT, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "::" in line]
    count = len(rules.RULES) + len(rules_over_processes.RULES) + 1
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(found) == count and all("[simsiam" in line for line in found)


@pytest.mark.parametrize(("text", "said"), [
    ("a: {recipe: demo/simclrv2, override: []}", r"cases.yaml:1: unknown key 'a.override'. Did you mean 'overrides'"),
    ("a: {recipe: demo/simclrv3}", "simclrv3"),
    ("a: {recipe: demo/simclrv2, overrides: ['method.nam=x']}", "method.nam"),
])  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "cases.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_cases(tmp_path / "cases.yaml")
