"""Rules of the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "ssl").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
RECIPES = [path for folder in ("recipes", "eval", "data") for path in sorted((ROOT / folder).rglob("*.yaml"))]


def test_the_source_root_is_no_package():
    assert not (ROOT / "ssl" / "__init__.py").exists()


@pytest.mark.parametrize("options", [["-c"], ["-P", "-c"]])
def test_ssl_is_pythons_own_when_started_from_the_root(options):
    code = "import ssl; print(ssl.SSLContext.__module__, ssl.__file__)"
    done = subprocess.run([sys.executable, *options, code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ssl ")
    assert str(ROOT) not in done.stdout


def test_ssl_is_pythons_own_here():
    import ssl

    assert hasattr(ssl, "SSLContext")


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_packages_import_nothing(path):
    if path.parent.name != "unlabeled":
        assert path.read_text() == ""


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in SOURCES}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_page_of_promises_names_tests_that_exist():
    for row in (ROOT / "docs" / "reliability.md").read_text().splitlines():
        if not row.startswith("| ") or row.startswith("| fault"):
            continue
        named, file = re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", row.rpartition(" | ")[2]), ""
        assert any(path for path, _ in named), row
        for path, test in named:
            file = path or file
            assert (ROOT / file).is_file(), file
            assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_and_recipes_name_files_that_exist(path):
    """Links of pages, from where the page is; files of this tree that pages and recipes name, from the top.

    docs/NAME.md stands for the page of any method.
    """
    text = path.read_text()
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)  # code indexes, then calls
    links = [path.parent / link for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", prose)]
    names = re.findall(r"(?<![\w/.-])((?:docs|benchmarks/results)/(?!NAME)[\w./-]+\.(?:md|png))", text)
    assert [str(file) for file in (*links, *(ROOT / name for name in names)) if not file.exists()] == []


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_and_recipes_have_no_gaps_to_be_filled(path):
    """Such as a recipe that says "Expected: EXPECTED"."""
    gaps = r"\b(EXPECTED|REACHED|MEASURED|HOURS|TODO|FIXME|TBD|XXX)\b|^# *(Expected|Reached|Hours|Paper|Command): *$"
    assert re.findall(gaps, path.read_text(), re.MULTILINE) == []
