"""What holds for all tests: a cache folder of their own; and the battery's cases.

Those are of the methods in the table, or of a file that `--methods` names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

for _name in ("rules", "accumulation", "rules_over_processes"):
    pytest.register_assert_rewrite(f"methods.battery.{_name}")


@pytest.fixture(scope="session", autouse=True)
def _no_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep fixtures of modules out of the user's cache folder; matplotlib's list of fonts, made once, stays there."""
    with pytest.MonkeyPatch.context() as patch:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(usual / "matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache folder of its own; features are kept in it only where a test asks for it.

    Else a second evaluation in a test would compute nothing.
    """
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("UNLABELED_FEATURES_GB", "0")
    return folder


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
    from methods.battery.cases import read_cases

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
