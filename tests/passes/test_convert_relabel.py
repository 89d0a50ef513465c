"""Published label maps as a store: by key, in the orientation that a teacher confirms; bad files are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import teacher

from unlabeled.cli.main import main
from unlabeled.config.passes.convert_relabel import RelabelFiles
from unlabeled.config.read import read_card
from unlabeled.data.records.store import Store
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError
from unlabeled.passes import convert_relabel
from unlabeled.passes.convert_relabel import convert

CPU = torch.device("cpu")
N, K, HEIGHT, WIDTH = 24, 3, 4, 6
CARD = """\
name: mine
source: {kind: classfolder}
root: $CARD/images
splits: {train: {path: .}}
"""


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """24 noisy images of several sizes in ten class folders."""
    random = np.random.default_rng(0)
    for i in range(N):
        file = tmp_path / "images" / str(i % 10) / f"{i:02}.jpeg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20 + i, 40 - i, 3), np.uint8)).save(file)
    (tmp_path / "card.yaml").write_text(CARD)
    return tmp_path / "card.yaml"


LABELS = sorted(i % 10 for i in range(N))  # of the places


def planes(place: int, label: int | None = None) -> torch.Tensor:
    """A published map: logits and classes as floats [2, K, H, W], above all the image's label."""
    random = torch.Generator().manual_seed(place)
    logit = 10 * torch.rand(K, HEIGHT, WIDTH, generator=random).sort(0, descending=True).values
    logit[0] += 10
    found = torch.rand(10, HEIGHT, WIDTH, generator=random)
    found[LABELS[place] if label is None else label] = -1
    return torch.stack([logit, found.argsort(0)[:K].float()])


def publish(folder: Path, card: Path, made=planes) -> Path:
    source = open_source(read_card(card), "train")
    for place in range(len(source)):
        file = (folder / source.key(place)).with_suffix(".pt")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made(place), file)
    return folder


def settings(card: Path, out: Path, **own) -> RelabelFiles:
    return RelabelFiles(card=str(card), out=str(out), workers=0, precision="fp32", **own)


@pytest.mark.parametrize("orientation", ["hw", "wh"])
def test_maps_are_found_by_key_and_turned(card: Path, tmp_path: Path, orientation: str) -> None:
    source = open_source(read_card(card), "train")
    folder = publish(tmp_path / "published", card)
    store = convert(folder, source, settings(card, tmp_path / "store", orientation=orientation), CPU)
    assert isinstance(store, Store) and store.about["orientation"] == "row_major_HW"
    assert store.about["published_orientation"] == orientation and store.about["num_classes"] == 10
    rows = store.rows(np.arange(N))
    for place in range(N):
        logit, index = planes(place).numpy()
        if orientation == "wh":
            logit, index = logit.swapaxes(1, 2), index.swapaxes(1, 2)
        np.testing.assert_allclose(rows["logit"][place], logit, rtol=1e-3, atol=1e-3)
        assert np.array_equal(rows["index"][place], index)
    assert store.about["map_size"] == ([HEIGHT, WIDTH] if orientation == "hw" else [WIDTH, HEIGHT])


class Sighted:
    """A teacher that names a class by the place of the brightest quarter of what it sees: 0 to 3."""

    names = None

    def __init__(self) -> None:
        from unlabeled.methods.base import Input

        self.linear, self.input = torch.nn.Linear(1, 10), Input(16)

    def logits(self, crops: torch.Tensor) -> torch.Tensor:
        """Return logits that follow the mean colour, which marks the quarter of the image."""
        mean = crops.float().mean((2, 3))
        return torch.nn.functional.one_hot((mean[:, 0] / 70).long().clamp(0, 3), 10).float()


@pytest.mark.parametrize("orientation", ["hw", "wh"])
def test_a_teacher_tells_the_orientation(tmp_path: Path, orientation: str, monkeypatch, capsys) -> None:
    """Quarters of an image have four colours, whose classes the maps name."""
    image = np.zeros((40, 60, 3), np.uint8)
    for quarter, (y, x) in enumerate(((0, 0), (0, 30), (20, 0), (20, 30))):
        image[y : y + 20, x : x + 30] = 35 + 70 * quarter
    for i in range(N):
        (tmp_path / "images" / str(i % 10)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / str(i % 10) / f"{i:02}.png")
    card = tmp_path / "card.yaml"
    card.write_text(CARD)
    index = torch.arange(4.0).reshape(1, 2, 2).repeat_interleave(4, 1).repeat_interleave(4, 2)
    made = torch.stack([torch.full_like(index, 12.0), index if orientation == "hw" else index.mT])
    folder = publish(tmp_path / "published", card, lambda place: made)
    monkeypatch.setattr(convert_relabel, "open_teacher", lambda *arguments: Sighted())
    source = open_source(read_card(card), "train")
    store = convert(folder, source, settings(card, tmp_path / "store", teacher="some"), CPU)
    assert store is not None and store.about["published_orientation"] == orientation
    assert torch.equal(torch.from_numpy(store.rows(np.array([5]))["index"].astype(int))[0, 0], index[0].long())
    counts = {"hw": ("24", "0"), "wh": ("0", "24")}[orientation]
    said = "agree rows first (hw) on {} , columns first (wh) on {} of 24 crops".replace(" ,", ",").format(*counts)
    assert said in capsys.readouterr().out


def test_a_teacher_that_cannot_tell_is_not_believed(card: Path, tmp_path: Path) -> None:
    same = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)])
    folder = publish(tmp_path / "published", card, lambda place: same)
    source = open_source(read_card(card), "train")
    with pytest.raises(UserError, match=r"cannot be told: they agree with the teacher rows first \(hw\) .*say it"):
        convert(folder, source, settings(card, tmp_path / "store", teacher=str(teacher())), CPU)


BAD = {
    "missing": (None, "there is no .*07.pt"),
    "cut short": (b"PK\x03\x04", "is damaged"),
    "other shape": (torch.zeros(2, K, HEIGHT, WIDTH + 1), r"holds a map of \[3, 4, 7\], others \[3, 4, 6\]"),
    "no pair": (torch.zeros(3, K, HEIGHT, WIDTH), r"holds \[3, 3, 4, 6\] and no floats \[2, k, H, W\]"),
    "no tensor": ({"a": 1}, "holds dict and no floats"),
    "NaN": (torch.full((2, K, HEIGHT, WIDTH), float("nan")), "holds NaN or infinity"),
    "class": (torch.full((2, K, HEIGHT, WIDTH), 10.0), "names classes outside of 0 to 9"),
    "half a class": (torch.full((2, K, HEIGHT, WIDTH), 1.5), "names classes outside of 0 to 9"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_its_fault(card: Path, tmp_path: Path, kind: str) -> None:
    folder, (content, message) = publish(tmp_path / "published", card), BAD[kind]
    file = folder / "7" / "07.pt"
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    source = open_source(read_card(card), "train")
    store = convert(folder, source, settings(card, tmp_path / "store", orientation="hw"), CPU)
    assert store is not None
    place = next(i for i in range(N) if source.key(i) == "7/07.jpeg")
    assert list(store.unreadable) == [place]
    import re

    assert re.search(message, store.unreadable[place])
    assert not store.rows(np.array([place]))["logit"].any()


class Malicious:
    def __reduce__(self):
        return (open, (str(Path(__file__).parent / "written-by-a-pickle"), "w"))


def test_files_that_run_code_are_not_run(card: Path, tmp_path: Path) -> None:
    folder = publish(tmp_path / "published", card)
    (folder / "7" / "07.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save(Malicious(), folder / "8" / "08.pt")
    source = open_source(read_card(card), "train")
    store = convert(folder, source, settings(card, tmp_path / "store", orientation="hw"), CPU)
    assert store is not None and len(store.unreadable) == 2
    assert not (Path(__file__).parent / "written-by-a-pickle").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["format=relabel"], "unlabeled convert: format=relabel: allowed: relabel-pt, ml-dr. Did you mean 'relabel-pt'?"),
    ([], "unlabeled convert: say which format it is, format=FORMAT: relabel-pt, ml-dr"),
    (["format=relabel-pt"], "nobody published which axis of the maps is which: give teacher=TEACHER"),
    (["format=relabel-pt", "orientation=hw", "teacher=x"], "or orientation=hw (rows first) or wh, but not both"),
    (["format=relabel-pt", "orientation=xy"], "'orientation' is 'xy'; allowed: hw, wh"),
    (["format=relabel-pt", "orientation=hw"], "holds no label map of the first 24 images of split 'train' of"),
])  # fmt: skip
def test_what_cannot_be_converted_is_one_line(words: list[str], message: str, card: Path, tmp_path: Path, capsys,
                                              ) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / "empty"), f"card={card}", f"out={tmp_path / 'x'}", "workers=0", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_converts(card: Path, tmp_path: Path, capsys) -> None:
    folder = publish(tmp_path / "published", card)
    words = [f"card={card}", f"out={tmp_path / 'store'}", "workers=0", "format=relabel-pt", "orientation=hw"]
    assert main(["convert", str(folder), *words]) == 0
    said = capsys.readouterr().out
    assert "labelmap of 'train' of 'mine': 24 images" in said and f"records.labelmap={tmp_path / 'store'}\n" in said


def other_class(place: int) -> torch.Tensor:
    return planes(place, (LABELS[place] + 1) % 10)


@pytest.mark.parametrize("orientation", ["hw", "wh"])
def test_maps_of_other_images_are_told_by_labels(card: Path, tmp_path: Path, orientation: str, capsys) -> None:
    folder, source = publish(tmp_path / "published", card, other_class), open_source(read_card(card), "train")
    known = settings(card, tmp_path / "store", orientation=orientation)
    with pytest.raises(UserError, match="class of label maps is the label of 0 of 24 images only: they are of other"):
        convert(folder, source, known, CPU)
    assert not (tmp_path / "store").exists()
    convert(publish(folder, card), source, known, CPU)
    assert "label maps and labels agree for 24 of 24 images" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float16, 2048), (torch.bfloat16, 256)])
def test_numbers_of_classes_must_be_exact(card: Path, tmp_path: Path, dtype: torch.dtype, exact: int) -> None:
    """Halves hold no odd number beyond 2048, so that 2049 would be read as 2048."""
    folder = publish(tmp_path / "published", card, lambda place: planes(place).to(dtype))
    source = open_source(read_card(card), "train")
    known = settings(card, tmp_path / "store", orientation="hw")
    assert convert(folder, source, known.model_copy(update={"classes": exact + 1}), CPU) is not None
    words = rf"numbers of classes as {str(dtype)[6:]}, which are exact up to {exact} only, but there are {exact + 2}"
    with pytest.raises(UserError, match=words):
        convert(folder, source, known.model_copy(update={"classes": exact + 2}), CPU)


def test_a_map_that_came_later_is_taken_and_what_is_there_stays(card: Path, tmp_path: Path, capsys) -> None:
    """Images can be read all the time: what is asked is the file of the map."""
    folder, source = publish(tmp_path / "published", card), open_source(read_card(card), "train")
    known = settings(card, tmp_path / "store", orientation="hw", max_corrupt=0.5)
    (folder / "7" / "07.pt").rename(tmp_path / "07.pt")
    convert(folder, source, known, CPU)
    before = (tmp_path / "store" / "rows-000000").stat().st_ino
    capsys.readouterr()
    convert(folder, source, known, CPU)
    assert "made anew" not in capsys.readouterr().out
    assert (tmp_path / "store" / "rows-000000").stat().st_ino == before
    (tmp_path / "07.pt").rename(folder / "7" / "07.pt")
    store = convert(folder, source, known, CPU)
    assert store is not None and not store.unreadable
    assert "1 blocks in" in capsys.readouterr().out
