"""Where recipes, cards and protocols are found."""

from pathlib import Path

import pytest

from unlabeled.config import files
from unlabeled.config.files import find, listing, run_name, shown
from unlabeled.errors import UserError


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return the root of a pretended clone, whose package also has files of its own, as in a wheel."""
    root = tmp_path / "clone"
    package = root / "ssl" / "unlabeled"
    for name in ("recipes/simclrv2.yaml", "recipes/cifar10/simclrv2.yaml", "data/digits.yaml", "eval/knn.yaml",
                 "ssl/unlabeled/_files/eval/knn.yaml", "ssl/unlabeled/_files/eval/linear.yaml", "data/make.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("a: 1\n")
    (root / "pyproject.toml").write_text("")
    monkeypatch.setattr(files, "_PACKAGE", package)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return root


@pytest.mark.parametrize("name", ["cifar10/simclrv2", "cifar10/simclrv2.yaml", "recipes/cifar10/simclrv2.yaml"])
def test_names_from_anywhere(checkout, name):
    assert find("recipes", name) == checkout / "recipes/cifar10/simclrv2.yaml"


def test_a_path_as_given_comes_first(checkout):
    Path("digits.yaml").write_text("")
    Path("my").mkdir()
    Path("my/card.yml").write_text("")
    assert find("data", "digits") == Path("digits.yaml")
    assert find("data", "my/card.yml") == Path("my/card.yml")
    assert find("data", Path.cwd() / "digits.yaml") == Path.cwd() / "digits.yaml"


def test_the_checkout_comes_before_the_wheel(checkout):
    assert find("eval", "knn") == checkout / "eval/knn.yaml"
    assert find("eval", "eval/linear.yaml") == checkout / "ssl/unlabeled/_files/eval/linear.yaml"


def test_without_a_checkout_only_the_wheel_counts(checkout):
    (checkout / "pyproject.toml").unlink()
    assert find("eval", "knn") == checkout / "ssl/unlabeled/_files/eval/knn.yaml"
    assert listing("recipes") == []


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("recipes", "cifar10/simclr", "no recipe 'cifar10/simclr'. Did you mean 'cifar10/simclrv2'"),
        ("data", "didgits", "no data card 'didgits'. Did you mean 'digits'?"),
        ("eval", "eval/knnn.yaml", "no evaluation protocol 'eval/knnn.yaml'. Did you mean 'knn'?"),
        ("data", "zzz", "no data card 'zzz'. Known: digits; or give the path of a .yaml file"),
        ("data", "", "no data card ''."),
        ("data", "folder", "'folder' is a folder; name a .yaml file"),
        ("data", "notes.txt", "'notes.txt' does not end in .yaml"),
    ],
)
def test_nearest_names(checkout, kind, name, message):
    Path("folder").mkdir()
    Path("notes.txt").write_text("")
    with pytest.raises(UserError) as caught:
        find(kind, name)
    assert message in str(caught.value)


def test_listing(checkout):
    assert listing("recipes") == ["cifar10/simclrv2", "simclrv2"]
    assert listing("data") == ["digits"]


def test_run_names(checkout):
    assert run_name(find("recipes", "cifar10/simclrv2")) == "cifar10-simclrv2"
    assert run_name(Path("experiments/mine.yaml")) == "mine"


def test_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a" / "b.yaml") == "a/b.yaml"
    assert shown(Path("/elsewhere/b.yaml")) == "/elsewhere/b.yaml"
