"""A method outside the package, written against the contract alone, keeps every rule of the battery."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from methods.battery import rules, rules_over_processes
from methods.battery.accumulation import accumulation_is_exact_or_refused
from methods.battery.cases import read_cases
from tiny import Case

HERE = Path(__file__).parent


RULES = [*rules.RULES, accumulation_is_exact_or_refused, *rules_over_processes.RULES]


@pytest.fixture(scope="module", params=["crops-of-two-sizes", "crops-of-one-size"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """Return a case of dino-cases.yaml; its folder is on Python's path until the test is over."""
    before = [*sys.path]
    yield next(case for case in read_cases(HERE / "dino-cases.yaml") if case.name == request.param)
    sys.path[:] = before


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_dino_keeps_the_rule(rule: Callable[[Case], None], case: Case) -> None:
    rule(case)


def test_the_loss_is_the_mean_over_pairs_of_different_views(case: Case) -> None:
    import dino  # found in the folder of the cases

    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).softmax(2)
    pairs = [(t, s) for t in range(2) for s in range(4) if t != s]
    expected = torch.stack([F.cross_entropy(student[s], targets[t]) for t, s in pairs]).mean()
    torch.testing.assert_close(dino.dino_loss(tuple(student), tuple(targets)), expected)
