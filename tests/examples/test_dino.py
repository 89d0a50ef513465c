"""A method outside the package, written against the contract alone, keeps every rule of the battery."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from methods import battery, battery_processes
from methods.battery_accumulation import accumulation_is_exact_or_refused
from methods.cases import read_cases
from tiny import Case

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def case() -> Case:
    """Return the one case of dino-cases.yaml, with this folder on Python's path."""
    before = [*sys.path]
    (found,) = read_cases(HERE / "dino-cases.yaml")
    yield found
    sys.path[:] = before


@pytest.mark.parametrize(
    "rule", [*battery.RULES, accumulation_is_exact_or_refused, *battery_processes.RULES], ids=lambda rule: rule.__name__
)
def test_dino_keeps_the_rule(rule, case: Case) -> None:
    rule(case)
