"""What every method must pass on several processes, which see different data: together they are one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from methods.battery.rules_over_processes import RULES
from tiny import Case


@pytest.mark.battery
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_method_keeps_the_rules(rule: Callable[[Case], None], case: Case) -> None:
    rule(case)
