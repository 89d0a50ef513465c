"""What every method must pass: the rules that make training exact, whatever the method."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from methods.battery.rules import RULES
from tiny import TINY, Case

from unlabeled.config.tables import METHODS


def test_every_method_of_the_table_is_here() -> None:
    assert set(TINY) == set(METHODS)


@pytest.mark.battery
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_method_keeps_the_rules(rule: Callable[[Case], None], case: Case) -> None:
    rule(case)
