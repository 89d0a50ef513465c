"""The battery's cases: those of the methods in the table, or of a file that `--methods` names."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("methods.battery", "methods.battery_accumulation", "methods.battery_processes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--methods", metavar="FILE", help="run the battery alone, on the cases of a YAML file: "
                     "NAME: {recipe: PATH or name, overrides: [key=value, ...], dtype: float64}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "battery(*cases): runs on every method's cases, and on these of the table's")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("battery")
    if mark is None:
        return
    from tiny import VARIANTS, tiny_case  # imports torch, which most tests do without

    file = metafunc.config.getoption("methods")
    found = _read(file) if file else [*(tiny_case(*variant) for variant in VARIANTS), *mark.args]
    metafunc.parametrize("case", found, ids=[case.name for case in found])


def _read(file: str) -> list:
    from methods.cases import read_cases

    from unlabeled.errors import UserError

    try:
        return read_cases(Path(file))
    except UserError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("methods"):
        others = [item for item in items if not item.get_closest_marker("battery")]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)
