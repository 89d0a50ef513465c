"""Where data and runs are: names with $ and ~, relative roots, names that no run can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlabeled.cli.arguments import existing, run_folder
from unlabeled.cli.main import main
from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.placed import placed
from unlabeled.config.read import read_card, read_recipe
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError

CARD = Card.model_validate({"name": "mine", "source": {"kind": "folder"}, "splits": {"train": {"path": "."}}})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("e", raising=False)
    monkeypatch.setenv("PHOTOS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HOME", str(tmp_path / "dwelling"))


@pytest.mark.parametrize("name", ["pri$e", "$PHOTOS", "a${PHOTOS}b", "~", "~/x", "$e/sub", "100$", " ", "a b ",
                                  "new\nline", "\udcff"])
def test_a_path_that_exists_as_it_is_given_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    Path(name).mkdir(parents=True)
    assert CARD.location(name) == name
    assert CARD.location(str(tmp_path / name)) == str(tmp_path / name)
    assert CARD.model_copy(update={"root": name}).location() == name


def test_other_paths_are_resolved_and_a_variable_that_is_not_set_is_refused(tmp_path: Path) -> None:
    assert CARD.location("$PHOTOS/x") == str(tmp_path / "elsewhere/x") == CARD.location("${PHOTOS}/x")
    assert CARD.location("~/x") == str(tmp_path / "dwelling/x")
    for name in ("pri$e", "$e/x", "${e}"):
        with pytest.raises(UserError, match=r"but \$e is not set and there is no folder of that name: set it, or give"):
            CARD.location(name)
    assert CARD.location("s3://bucket/~x") == "s3://bucket/~x"


@pytest.mark.parametrize(("root", "text"), [
    ("x" * 256, "File name too long"), ("x/" * 2100, "File name too long"), ("self", "Too many levels"),
    ("a\0b", "null")])
def test_a_root_that_the_system_does_not_take_is_refused_at_once(root: str, text: str) -> None:
    Path("self").symlink_to("self")
    for kind in ("folder", "classfolder", "shards", "array", "voc-masks", "coco-boxes", "cityscapes-masks"):
        card = Card.model_validate({"name": "mine", "source": {"kind": kind}, "splits": {"train": {"path": "x"}}})
        with pytest.raises(UserError, match=text) as error:
            open_source(card, "train", root)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


RECIPE = """\
method: simclrv2
backbone: {name: resnet18}
data: {train: {card: CARD, batch: 8}}
optim: {name: lars, lr: {base: 0.3}}
train: {epochs: 1}
"""


def stored(card: str, *settings: str) -> tuple[str, str | None]:
    Path("r.yaml").write_text(RECIPE.replace("CARD", card))
    stream = placed(read_recipe("r.yaml", settings)).data.train
    assert stream is not None
    return stream.card, stream.root


def test_a_run_keeps_absolute_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cards").mkdir()
    Path("cards/mine.yaml").write_text("name: mine\nsource: {kind: folder}\nroot: photos\nsplits: {train: {path: .}}\n")
    Path("cards/own.yaml").write_text(Path("cards/mine.yaml").read_text().replace("photos", "$CARD/photos"))
    Path("cards/far.yaml").write_text("name: far\nsource: {kind: stream}\nroot: https://host/x\n"
                                      "splits: {train: {path: a.tar, samples: 3}}\n")
    here = str(tmp_path)
    assert stored("folder", "data.train.root=photos") == ("folder", f"{here}/photos")
    assert stored("folder", "data.train.root=.") == ("folder", here)
    assert stored("folder", "data.train.root=../x/") == ("folder", f"{tmp_path.parent}/x")
    assert stored("folder", "data.train.root=~/x") == ("folder", f"{here}/dwelling/x")
    assert stored("folder", "data.train.root=$PHOTOS/x") == ("folder", f"{here}/elsewhere/x")
    assert stored("cards/mine.yaml") == (f"{here}/cards/mine.yaml", f"{here}/photos")
    assert stored("cards/mine") == (f"{here}/cards/mine.yaml", f"{here}/photos")
    assert stored("cards/own.yaml") == (f"{here}/cards/own.yaml", None)
    assert stored("cards/far.yaml") == (f"{here}/cards/far.yaml", None)
    assert stored("cards/far.yaml", "data.train.root=http://other/y") == (f"{here}/cards/far.yaml", "http://other/y")
    assert stored("digits") == ("digits", None)
    monkeypatch.setenv("DATA", "/data")
    assert stored("cifar10") == ("cifar10", None)  # a root of its own, absolute, stays the card's


@pytest.mark.parametrize(("name", "text"), [
    ("a:b", "holds no colon, since RUN:EXPORT names one of its exports"), ("runs/a:b/c", "holds no colon"),
    ("x" * 256, "cannot be a folder: File name too long"), ("x/" * 2100, "cannot be a folder: File name too long"),
    ("self", "leads nowhere"), ("gone", "leads nowhere"), ("file", "is a file"),
    ("file/run", "cannot be a folder: Not a directory"),
    ("a\0b", "cannot be a folder"),
])
def test_names_that_no_run_can_have_are_refused(name: str, text: str) -> None:
    Path("self").symlink_to("self")
    Path("gone").symlink_to("nowhere")
    Path("file").touch()
    with pytest.raises(UserError) as error:
        run_folder(name)
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_names_that_a_run_can_have(tmp_path: Path) -> None:
    Path("there").mkdir()
    Path("link").symlink_to("there")
    for name in ("new", "a/b/c", "there", "link", "with blank", "ü", "$x", str(tmp_path)):
        assert run_folder(name) == Path(name)
    assert run_folder("~/runs/x") == tmp_path / "dwelling/runs/x"


def test_pretrain_refuses_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("unlabeled.engine.train.train", never)
    assert main(["pretrain", "demo/simclrv2", "run=x:y"]) == 2
    assert "run=x:y: the name of a run holds no colon" in capsys.readouterr().err
    assert main(["chain", "demo", "run=x:y"]) == 2
    assert "holds no colon" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    assert main(["pretrain", "demo/simclrv2", "data.train.card=folder", "data.train.root=photos", "run=./photos"]) == 2
    assert "run=photos is the folder of data.train.root" in capsys.readouterr().err
    assert not (tmp_path / "x:y").exists()


def test_names_that_are_too_long_are_unknown_names() -> None:
    for long in ("x" * 300, "y/" * 2100, "a\0b"):
        for kind in ("recipes", "data", "eval"):
            with pytest.raises(UserError, match=r"^no (recipe|data card|evaluation protocol) '"):
                find(kind, long)
        with pytest.raises(UserError, match="does not exist"):
            existing(Path(long))
    with pytest.raises(UserError, match="no data card"):
        read_card("z" * 5000)
