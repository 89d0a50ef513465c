"""`unlabeled reinforce`: the whole command, its store in training, and what it refuses."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import teacher

from unlabeled.cli.main import main
from unlabeled.config.passes.reinforce import ReinforceSettings
from unlabeled.config.read import read_card
from unlabeled.data.records.store import Header, Store, open_store
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError
from unlabeled.passes.entries import KIND
from unlabeled.passes.reinforce import reinforce as reinforce_set

N = 90  # images, of which a block holds 64
SMALL = ["entries=2", "topk=4", "workers=0", "randaugment=3", "crop={kind: padded, size: 8, pad: 1}"]


@functools.cache
def card() -> Path:
    """Write a card of a few digits."""
    folder = Path(tempfile.mkdtemp(prefix="few-digits-"))
    atexit.register(shutil.rmtree, folder, True)
    source = open_source(read_card("digits"), "train")
    for split, first in (("train", 0), ("other", N)):
        part = slice(first, first + N)
        np.savez(folder / f"{split}.npz", images=source.images[part], labels=source.labels[part])
    splits = {split: {"path": f"{split}.npz"} for split in ("train", "other")}
    about = {"name": "few", "source": {"kind": "array"}, "root": str(folder), "splits": splits,
             "classes": [str(number) for number in range(10)]}
    (folder / "few.yaml").write_text(json.dumps(about))
    return folder / "few.yaml"


def reinforce(out: Path, *settings: str, teachers: str = "") -> int:
    return main(["reinforce", teachers or str(teacher()), f"card={card()}", f"out={out}", *SMALL, *settings])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("entries") / "few"
    assert reinforce(out) == 0
    return out


def test_the_store_says_what_it_is(store: Path) -> None:
    header = Header.read(store)
    assert header.kind == KIND and header.dtype.itemsize == 2 * (27 + 4 * 4) and header.rows == N
    about = header.about
    assert about["num_classes"] == 10
    assert about["crop"]["pad"] == 1 and about["randaugment"] == 3 and about["mix"] is False
    (one,) = about["teachers"]
    assert one["teacher"] == str(teacher()) and len(one["network"]) >= 32
    rows = Store(store).rows(np.arange(N))
    prob = rows["prob"].astype(float)
    assert (np.diff(prob, axis=2) <= 0).all() and (prob.sum(2) <= 1.002).all() and (prob > 0).all()
    assert len(np.unique(rows["crop"].reshape(-1, 4), axis=0)) == 9, "places of 8 x 8 in 10 x 10 pixels"


def test_parts_and_batches_give_the_same_rows(store: Path, tmp_path: Path) -> None:
    """The batch only as far as the network's sums allow."""
    for part in ("1/2", "2/2"):
        assert reinforce(tmp_path / "parts", f"part={part}") == 0
    for file in store.glob("rows-*"):
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()
    assert reinforce(tmp_path / "batch", "batch=7") == 0
    ours, theirs = (Store(folder).rows(np.arange(N)) for folder in (store, tmp_path / "batch"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("crop", "flip", "op", "magnitude", "erase"))
    np.testing.assert_allclose(ours["prob"].astype(float), theirs["prob"].astype(float), atol=2e-3)


def test_a_run_learns_from_it_and_is_evaluated_without_it(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [f"data.train.records={{reinforcement: '{store}'}}", "method.replay=0.9", "method.erasing=0.25",
                f"data.train.card={card()}", "data.train.batch=30", "eval.at_end=[]",
                "method.crop={kind: padded, size: 8, pad: 1}", "train.epochs=null", "train.updates=3",
                "optim.warmup_epochs=0", f"run={run}"]
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    settings[0] = settings[0].replace(str(store), str(copy))
    assert main(["pretrain", "demo/reinforcement", *settings]) == 0
    shutil.rmtree(copy)
    assert main(["evaluate", "knn", str(run), f"card={card()}", "train=train", "test=other", "k=[20]"]) == 0


@pytest.mark.parametrize(("settings", "message"), [
    (["entriez=3"], "Did you mean 'entries'"),
    (["topk=11"], "topk=11, but the teachers know 10 classes; give no more than these"),
    (["crop={kind: affine, size: 8}"], "crop"),
    (["randaugment=31"], "must be at most 30"),
])  # fmt: skip
def test_settings_that_cannot_be(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reinforce(tmp_path / "out", *settings) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def network(file: Path, classes: int, seed: int = 0, **config: Any) -> str:
    torch.manual_seed(seed)
    about = {"config": json.dumps({"architecture": "resnet10t", "num_classes": classes, **config})}
    save_file(timm.create_model("resnet10t", num_classes=classes).state_dict(), file, metadata=about)
    return f"timm:resnet10t@{file}"


def test_of_few_classes_all_are_kept_where_no_number_is_given(tmp_path: Path) -> None:
    few = open_source(read_card(card()), "train")
    few.classes = None
    teachers = [network(tmp_path / "three.safetensors", 3)]
    known = ReinforceSettings(card="few", out=str(tmp_path / "out"), entries=1, workers=0,
                              crop={"kind": "padded", "size": 8, "pad": 1})
    written = reinforce_set(few, teachers, known, torch.device("cpu"))
    assert written is not None and written.about["topk"] == 3
    assert written.rows(np.arange(2))["class"].shape == (2, 1, 3)


def test_teachers_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seven = network(tmp_path / "seven.safetensors", 7)
    assert reinforce(tmp_path / "out", teachers=seven) == 2
    assert "knows 7 classes, but data card 'few' has 10" in capsys.readouterr().err
    assert reinforce(tmp_path / "out", teachers=f"{teacher()},{seven}") == 2
    assert "knows 7 classes" in capsys.readouterr().err
    assert reinforce(tmp_path / "out", teachers=f"{teacher()}:backbone") == 2
    assert "gives vector and no logits; name a network with its classifier" in capsys.readouterr().err
    assert reinforce(tmp_path / "out", teachers=",") == 2
    assert "no teacher is named" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_teachers_of_several_libraries(tmp_path: Path, store: Path) -> None:
    """Probabilities lie between those of the teachers alone; views and all else stay the same."""
    public = network(tmp_path / "ten.safetensors", 10)
    large = ["topk=10", "crop={kind: padded, size: 8, pad: 1, resize: 8}"]
    assert reinforce(tmp_path / "both", *large, teachers=f"{teacher()},{public}") == 0
    assert reinforce(tmp_path / "one", *large) == 0
    assert reinforce(tmp_path / "other", *large, teachers=public) == 0
    dense = []
    for name in ("one", "other", "both"):
        rows = Store(tmp_path / name).rows(np.arange(40))
        full = np.zeros((40, 2, 10))
        np.put_along_axis(full, rows["class"].astype(int), rows["prob"].astype(float), 2)
        dense.append(full)
    np.testing.assert_allclose(dense[2], (dense[0] + dense[1]) / 2, atol=1e-3)
    assert np.abs(dense[0] - dense[1]).max() > 0.1


def test_without_a_size_views_are_those_of_the_teacher(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [f"card={card()}", f"out={out}", *SMALL[:-1], "crop={area: [0.5, 1]}"]
    assert main(["reinforce", str(teacher()), *settings]) == 0
    crop = Header.read(out).about["crop"]
    assert (crop["size"], crop["interpolation"], crop["flip"]) == (8, "bilinear", 0.5)


def test_a_store_of_another_split_is_refused(store: Path) -> None:
    source = open_source(read_card(card()), "other")
    with pytest.raises(UserError, match="unlabeled reinforce"):
        open_store(store, source, KIND)


def test_public_networks_may_have_other_words_for_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                              ) -> None:
    """As torchvision says tench where a folder says n01440764: of one set, whatever stands beside it."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    theirs = network(tmp_path / "words.safetensors", 10, label_names=words)
    own = network(tmp_path / "own.safetensors", 10, label_names=[str(number) for number in range(10)])
    swapped = network(tmp_path / "swapped.safetensors", 10, label_names=words[::-1])
    for out, teachers, names, public in (("a", theirs, words, True), ("b", f"{theirs},{own}", words, True)):
        assert reinforce(tmp_path / out, teachers=teachers) == 0
        about = Header.read(tmp_path / out).about
        assert about["classes"] == names and about["public_names"] is public
        open_store(tmp_path / out, open_source(read_card(card()), "train"), KIND)
    assert reinforce(tmp_path / "c", teachers=f"{theirs},{swapped}") == 2
    assert "calls class 0 'nine', but" in (said := capsys.readouterr().err) and "can be averaged" in said
    assert not (tmp_path / "c").exists()


def test_another_input_of_a_teacher_is_another_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights, whose file states other statistics of images."""
    teachers = network(tmp_path / "t.safetensors", 10)
    assert reinforce(tmp_path / "out", teachers=teachers) == 0
    network(tmp_path / "t.safetensors", 10, pretrained_cfg={"mean": [0.4, 0.5, 0.6]})
    assert reinforce(tmp_path / "out", teachers=teachers) == 2
    assert "holds the rows of another pass (teachers" in capsys.readouterr().err
