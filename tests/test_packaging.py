"""The same names are found from a wheel, an editable install and a clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAME = "demo/simclrv2"

pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is part of the extra dev")


def build(target, folder):
    """Build a wheel, in the sense of PEP 517 or PEP 660, and unpack it as pip would."""
    code = f"import sys; from hatchling import build; print(build.{target}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = folder / "site"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def command(site, *arguments):
    """Run the installed command elsewhere, with only `site` added to the interpreter's own packages."""
    code = (
        "import site, sys; site.addsitedir(sys.argv[1]); sys.path.insert(0, sys.argv[1])\n"
        "from unlabeled.cli.main import main; sys.exit(main(sys.argv[2:]))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code, site, *arguments], cwd=site.parent, env=environment,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    return build("build_editable", tmp_path_factory.mktemp("editable"))


def test_wheel_holds_the_package_and_its_files(wheel):
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"unlabeled"}
    for kind, ending in (("recipes", "yaml"), ("data", "yaml"), ("eval", "yaml"), ("slurm", "sbatch")):
        there = {path.relative_to(ROOT / kind) for path in (ROOT / kind).rglob(f"*.{ending}")}
        packed = wheel / "unlabeled" / "_files" / kind
        assert {path.relative_to(packed) for path in packed.rglob(f"*.{ending}")} == there
        assert there
    assert (wheel / "unlabeled" / "data" / "batch.py").exists()
    (information,) = wheel.glob("*.dist-info")
    assert "unlabeled = unlabeled.cli.main:main" in (information / "entry_points.txt").read_text()
    assert (information / "licenses" / "LICENSE").exists()


def test_editable_points_to_the_source_root(editable):
    (pth,) = editable.glob("*.pth")
    assert pth.read_text().split() == [str(ROOT / "ssl")]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_names_are_found_anywhere(kind, request):
    site = request.getfixturevalue(kind)
    home = site / "unlabeled" / "_files" / "recipes" if kind == "wheel" else ROOT / "recipes"
    listed = command(site, "recipes")
    assert listed.returncode == 0, listed.stderr
    assert any(line.split()[0] == NAME for line in listed.stdout.splitlines())
    done = command(site, "pretrain", NAME, "run=x", "optim=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "override 'optim=3'" in done.stderr
    where = command(site, "pretrain", f"recipes/{NAME}.yaml", "train.epochs=1", "train.updates=1")
    assert where.stderr.startswith(str(home.resolve() if kind == "editable" else home.relative_to(site.parent)))


def test_names_are_found_from_a_clone(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, ROOT / "pretrain.py", NAME, "optim=3"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert "override 'optim=3'" in done.stderr
