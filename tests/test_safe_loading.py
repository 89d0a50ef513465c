"""Files of somebody else's run nothing, whatever they hold; code that a run's folder names needs consent."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.toy_stores import write_store
from engine.tiny_runs import rotnet
from tiny import teacher

from unlabeled.cli.main import main
from unlabeled.config.card import Card
from unlabeled.config.read import read_card
from unlabeled.data.records.store import open_store
from unlabeled.data.sources.arrays import ArraySource, open_array
from unlabeled.data.sources.files import reading
from unlabeled.data.sources.files.mat import read_mat
from unlabeled.data.sources.labels import read_label
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.tar import stream as tar_stream
from unlabeled.data.sources.tar.index import load_index
from unlabeled.data.sources.tar.stream import read_tar
from unlabeled.data.sources.video import index as video_index
from unlabeled.engine.method import load_export
from unlabeled.engine.nonfinite.kept import read_kept
from unlabeled.engine.passes import kept_features
from unlabeled.engine.public.files import read_weights
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.checkpoint import read_checkpoint
from unlabeled.engine.run.record import read_record
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.passes.convert_relabel import Files
from unlabeled.passes.ml_dr_format import read_plain

DEEP = b"[" * 200_000 + b"]" * 200_000


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def evil_torch(file: Path, evil: Evil) -> None:
    torch.save({"update": 1, "method": evil}, file)


def evil_pickle(file: Path, evil: Evil) -> None:
    file.write_bytes(pickle.dumps({"update": 1, "images": evil, "weight": evil}))


def evil_npz(file: Path, evil: Evil) -> None:
    with open(file, "wb") as stream:  # savez would change the name
        np.savez(stream, **dict.fromkeys(("images", "stamp", "version", "keys"), np.array([evil], object)))


def summed(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def checkpoint(file: Path) -> None:
    file.with_suffix(".json").write_text(json.dumps({"sha256": summed(file)}))
    read_checkpoint(file)


def kept(file: Path) -> None:
    folder = file.parent / "nonfinite" / "update-00000001"
    folder.mkdir(parents=True)
    shutil.copyfile(file, folder / "weights.pt")
    about = {"update": 1, "seed": 0, "world": 1, "grad_accum": 1, "precision": "no", "device": "cpu", "nonfinite": [[]],
             "sha256": {"weights.pt": summed(file)}}
    (folder / "update.json").write_text(json.dumps(about))
    read_kept(file.parent)


def export(file: Path) -> None:
    run = file.parent / "run"
    shutil.copytree(teacher(), run)
    about = json.loads((run / "export" / "backbone.json").read_text())
    shutil.copyfile(file, run / "export" / "backbone.safetensors")
    (run / "export" / "backbone.json").write_text(json.dumps({**about, "sha256": summed(file)}))
    load_export(f"{run}:backbone")


def array(ending: str) -> Callable[[Path], None]:
    def read(file: Path) -> None:
        file.rename(file.parent / f"train{ending}")
        card = {"name": "x", "source": {"kind": "array"}, "splits": {"train": {"path": f"train{ending}"}}}
        open_array(Card.model_validate(card), "train", str(file.parent))
    return read


def relabel(file: Path) -> None:
    folder = file.parent / "maps"
    folder.mkdir()
    source = ArraySource("x", "train", np.zeros((1, 8, 8, 3), np.uint8))
    file.rename(folder / f"{source.key(0)}.pt")
    Files(folder, source, 10)


FILES: dict[str, tuple[Callable[[Path, Evil], None], Callable[[Path], object]]] = {
    "checkpoint": (evil_torch, checkpoint),
    "checkpoint-pickle": (evil_pickle, checkpoint),
    "kept-update": (evil_torch, kept),
    "export": (evil_torch, export),
    "export-pickle": (evil_pickle, export),
    "weights": (evil_torch, read_weights),
    "weights-pickle": (evil_pickle, read_weights),
    "npz": (evil_npz, array(".npz")),
    "npy": (evil_pickle, array(".npy")),
    "npy-object": (lambda file, evil: np.save(file.open("wb"), np.array([evil], object)), array(".npy")),
    "mat": (evil_pickle, lambda file: read_mat(file, "images")),
    "label-map": (evil_torch, relabel),
    "stored-entries": (evil_torch, read_plain),
}


@pytest.mark.parametrize("kind", FILES)
def test_no_file_runs_code(kind: str, tmp_path: Path) -> None:
    write, read = FILES[kind]
    file, made = tmp_path / "file.pt", tmp_path / "made"
    write(file, Evil(made))
    with pytest.raises((UserError, ValueError)):
        read(file)
    assert not made.exists()


@pytest.mark.parametrize("read", [video_index._read, kept_features._read], ids=["videos", "features"])
@pytest.mark.parametrize("write", [evil_npz, evil_pickle])
def test_kept_files_of_others_are_passed_over(read: Callable, write: Callable, tmp_path: Path) -> None:
    write(tmp_path / "x.index", Evil(tmp_path / "made"))
    assert not read(tmp_path / "x.index") and not (tmp_path / "made").exists()


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_an_index_of_a_shard_is_made_again_if_it_is_not_its_own(tmp_path: Path) -> None:
    tar = shard(tmp_path / "x.tar", ("a.jpg", b"image"))
    sizes, beside = load_index(tar, None).sizes.tolist(), tmp_path / "x.tar.index"
    with np.load(beside, allow_pickle=False) as whole:
        arrays = dict(whole)
    for change in ({"sizes": np.array([[1 << 60]])}, {"offsets": np.array([[-1 << 50]])}):
        with beside.open("wb") as file:
            np.savez(file, **{**arrays, **change})
        assert load_index(tar, None).sizes.tolist() == sizes
    evil_npz(beside, Evil(tmp_path / "made"))
    assert load_index(tar, None).sizes.tolist() == sizes and not (tmp_path / "made").exists()


def test_stored_rows_hold_no_objects(tmp_path: Path) -> None:
    """Mapped into memory, the bytes of a file would be taken for addresses of objects."""
    source = ArraySource("x", "train", np.zeros((4, 8, 8, 3), np.uint8))
    folder = write_store(tmp_path / "store", source, "labelmap", {"top": np.zeros((4, 2), np.int64)})
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "fields": {"top": ["|O", [2]]}}))
    with pytest.raises(UserError, match="a field holds objects"):
        open_store(str(folder), source, "labelmap")


class Forged:
    """An array of objects made of bytes, as a pickle can ask for it."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("forged", [Forged(np.ndarray, (2,), "O", b"A" * 16), Forged(np.dtype, "O"),
                                    np.array([None, {}], object)], ids=["memory", "dtype", "objects"])
def test_a_pickle_of_images_makes_no_objects_of_bytes(forged: object, tmp_path: Path) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    (base / "test_batch").write_bytes(pickle.dumps({"data": forged, "labels": [0, 1]}))
    card = {"name": "c", "source": {"kind": "torchvision", "dataset": "cifar10"}, "splits": {"test": {}}}
    with pytest.raises(UserError, match=r"test_batch is damaged .*(takes no arguments|arrays of objects)"):
        open_source(Card.model_validate(card), "test", str(tmp_path))


# ---- bombs and names that climb


@pytest.mark.parametrize(("name", "size", "text"), [
    ("../../a.jpg", 4, "member ../../a.jpg is named to stand outside its folder"),
    ("b/../../a.jpg", 4, "is named to stand outside its folder"),
    ("a.jpg", 100 << 30, "member a.jpg is of 107374182400 bytes; a file of a sample has at most 4 GiB"),
])
def test_members_that_would_do_harm_are_refused_by_name(name: str, size: int, text: str, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    info = tarfile.TarInfo(name)
    info.size = size
    with tar.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + -(-size // 512) * 512 + 10240)
    for read in (lambda: load_index(tar, None), lambda: list(read_tar(str(tar)))):
        with pytest.raises(UserError) as caught:
            read()
        assert text in str(caught.value) and str(caught.value).startswith(f"shard {tar}")


def test_endless_zeros_behind_the_end_mark_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "_PADDING", 1 << 21)
    tar = shard(tmp_path / "x.tar", ("a.jpg", b"image"))
    bomb = tmp_path / "x.tar.gz"
    bomb.write_bytes(gzip.compress(tar.read_bytes() + bytes(1 << 23)))
    with pytest.raises(UserError, match="goes on after its end mark"):
        list(read_tar(str(bomb)))


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_UNPACKED", 1 << 20)
    path = tmp_path / "train.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as entry:
        for _ in range(11):
            entry.write(bytes(1 << 20))
    card = Card.model_validate({"name": "x", "source": {"kind": "array"}, "splits": {"train": {}}})
    with pytest.raises(UserError, match=r"train.npz is no readable .*images.npy unpacks from \d+ to 11534336 bytes"):
        open_array(card, "train", str(tmp_path))


def test_json_that_is_deep_or_large_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(DEEP)
    with pytest.raises(UserError, match=r"run.json is damaged: it is no JSON"):
        read_record(tmp_path)
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(UserError, match=r"run.json is damaged"):
        read_record(tmp_path)
    (tmp_path / "update-00000001.json").write_bytes(DEEP)
    (tmp_path / "update-00000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match="it is no JSON"):
        read_checkpoint(tmp_path / "update-00000001.pt")
    for text in (DEEP, b" " * (1 << 24) + b"1"):
        with pytest.raises(ValueError, match=r"no class number|a label of 16777217 bytes"):
            read_label(text, "json:label")


# ---- code that files name


MODULE = """\
from pathlib import Path
from torch import nn
Path("ran").touch()

class Net(nn.Module):
    num_features = 8
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
    def forward(self, x):
        return self.stem(x).mean((2, 3))
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, whose recipe somebody has made name a module of theirs, which stands in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"theirs_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    train(rotnet(), Path("run"))
    text = Path("run/recipe.yaml").read_text()
    block = text[text.index("backbone:"):text.index("data:")]
    Path("run/recipe.yaml").write_text(text.replace(block, f"backbone: {{name: \"{name}:Net\"}}\n"))
    return Path("run")


def test_what_a_run_names_needs_consent(theirs: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=r"run/recipe.yaml would run theirs_\w+:Net, and no command of yours has named"):
        load_run(theirs)
    for command in (["evaluate", "knn", "run"], ["features", "run", "."], ["replay", "run"], ["export", "run"],
                    ["pretrain", "cifar10/rotnet-cpu", "backbone={init: run}", "run=new"]):
        assert main(command) == 2, command
    assert not Path("ran").exists()
    capsys.readouterr()
    assert main(["evaluate", "knn", "run", "trust=true"]) == 2  # it runs, and is another network
    said = capsys.readouterr()
    assert "# run/recipe.yaml runs code that is not of this package: theirs_" in said.out
    assert "has no module 'layer3'. Its blocks: stem" in said.err and Path("ran").exists()
    assert "UNLABELED_TRUST" not in os.environ


def test_code_of_a_checkpoint_that_its_run_does_not_name_is_not_imported(theirs: Path) -> None:
    recipe = Path("run/recipe.yaml").read_text()
    name = recipe[recipe.index("theirs_"):].partition('"')[0]
    train(rotnet(), Path("other"))
    for file in Path("other/checkpoints").glob("*.json"):
        about = json.loads(file.read_text())
        about["recipe"]["method"] = {"name": name.replace(":Net", ":Other")}
        file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="is of another recipe than"):
        load_run(Path("other"))
    assert not Path("ran").exists()


PIPE = """\
name: piped
source: {{kind: stream, label: null}}
splits: {{train: {{path: "{path}", samples: 64}}}}
"""


@pytest.mark.parametrize("path", ["pipe:touch ran", "{{pipe:touch ran; x://,b}}", "s3://bucket/x'; touch ran; '.tar"])
def test_a_card_that_runs_commands_needs_a_command_that_names_it(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("card.yaml").write_text(PIPE.format(path=path))
    with pytest.raises(UserError, match=r"card.yaml would run .*, and no command of yours has named this file"):
        read_card("card.yaml")
    command = ["pretrain", "cifar10/rotnet-cpu", "data.train={card: card.yaml, batch: 8}", "run=r", "--print"]
    main(command)
    assert capsys.readouterr().out.startswith("# card.yaml runs code that is not of this package: ")
    read_card("card.yaml")
    assert not Path("ran").exists()
    Path("card.yaml").write_text(PIPE.format(path=path + "x"))  # consent is to the content
    with pytest.raises(UserError, match=r"card.yaml would run"):
        read_card("card.yaml")
