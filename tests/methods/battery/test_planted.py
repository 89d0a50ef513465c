"""The battery finds what is wrong: toy methods that break one rule each, and one that breaks none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from methods.battery import rules, rules_over_processes
from methods.battery.accumulation import accumulation_is_exact_or_refused
from tiny import Case

Rule = Callable[[Case], None]

RULES = (*rules.RULES, accumulation_is_exact_or_refused, *rules_over_processes.RULES)

PLANTED: dict[str, tuple[Rule, str]] = {
    "StillStatistics": (rules.every_copy_moves, r"teacher.2.running_mean is what it was"),
    "StillWeights": (rules.every_copy_moves, r"no weight of teacher moves"),
    "CountsInPython": (rules.everything_that_training_changes_is_in_the_state, r"'method..done'"),
    "CountsInFile": (rules.everything_that_training_changes_is_in_the_state, r"planted._calls\['after_step'\]"),
    "KeepsGenerator": (rules.everything_that_training_changes_is_in_the_state, r"'method..random'"),
    "SumsCentre": (rules_over_processes.processes_hold_the_state_of_one_process, r"centre: off by"),
    "DrawsByRank": (rules_over_processes.draws_do_not_depend_on_the_processes, r"view view1 of update 6 depends"),
    "CouplesBatch": (accumulation_is_exact_or_refused, r"^(loss|grad_norm|Not equal)"),
    "CountsDropped": (rules.a_nonfinite_update_is_dropped_and_leaves_no_trace, r"changed \['state of bad'\]"),
    "ParameterView": (rules.views_are_no_state, r"view weight is memory of student.1.weight"),
}


def toy(name: str) -> Case:
    overrides = ("data.train.card=digits", f"method={{name: 'methods.battery.planted:{name}'}}")
    return Case(name, "cifar10/rotnet-cpu", overrides, batch=24, processes=(2,))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_method_without_fault_keeps_every_rule(rule: Rule) -> None:
    rule(toy("Toy"))


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_found(name: str) -> None:
    rule, message = PLANTED[name]
    with pytest.raises(AssertionError, match=message):
        rule(toy(name))
