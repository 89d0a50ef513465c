"""Label maps of a split: what is read back is what the teacher gave, whatever the parts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import teacher

from unlabeled.augment.plain_crops import Whole
from unlabeled.cli.main import main
from unlabeled.cli.passes import tell_kept
from unlabeled.config.passes.labelmaps import LabelmapSettings
from unlabeled.config.read import read_card
from unlabeled.data.records.store import Store, open_store
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError
from unlabeled.ops.targets.label_pooling import pool, whole
from unlabeled.passes import labelmaps
from unlabeled.passes.labelmaps import open_teacher, write_labelmaps

CPU = torch.device("cpu")
SIZE = 32  # of which the tiny network makes 4 x 4 cells


def settings(out: Path, **own) -> LabelmapSettings:
    return LabelmapSettings(card="digits", out=str(out), workers=0, precision="fp32", **{"size": SIZE, "k": 4, **own})


@pytest.fixture(scope="module")
def source():
    return open_source(read_card("digits"), "val")


@pytest.fixture(scope="module")
def store(tmp_path_factory, source) -> Store:
    out = tmp_path_factory.mktemp("maps") / "a"
    written = write_labelmaps(source, str(teacher()), settings(out), CPU)
    assert written is not None
    return written


@torch.inference_mode()
def dense_maps(source, places: np.ndarray) -> torch.Tensor:
    """What the teacher says of the cells, with nothing of the pass but its way to open a network."""
    known = open_teacher(str(teacher()), CPU, "fp32", SIZE)
    images = torch.from_numpy(source.images[places]).permute(0, 3, 1, 2)
    large = torch.nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    squash = Whole(SIZE)
    crops = squash.apply_batch(images, squash.draw(np.zeros((len(places), 0)), np.full((len(places), 2), 8)))
    assert (crops.int() - large.int()).abs().max() <= 1
    mean, std = (torch.tensor(x)[:, None, None] for x in (known.input.mean, known.input.std))
    features = known.features((crops / 255 - mean) / std)
    return torch.einsum("bdhw,cd->bchw", features, known.linear.weight) + known.linear.bias[:, None, None]


def test_a_map_read_back_is_what_the_teacher_gave(store: Store, source) -> None:
    assert store.header.fields == {"logit": ("<f2", (4, 4, 4)), "index": ("<u2", (4, 4, 4))}
    places = np.array([3, 77, 499])
    rows, expected = store.rows(places), dense_maps(source, places)
    value, index = expected.topk(4, dim=1)
    assert np.array_equal(rows["index"], index.numpy())
    np.testing.assert_allclose(rows["logit"], value.numpy(), rtol=2**-10, atol=1e-4)
    assert (np.diff(rows["logit"].astype(float), axis=1) <= 0).all()


def test_the_header_says_how_the_maps_lie(store: Store, source) -> None:
    about = store.about
    assert about["classes"] == source.classes and about["num_classes"] == 10
    assert (about["orientation"], about["resize"], about["interpolation"]) == ("row_major_HW", "squash", "bilinear")
    assert (about["size"], about["k"], about["map_size"]) == (32, 4, [4, 4])
    assert about["teacher"] == str(teacher()) and len(about["network"]) >= 32
    assert open_store(store.folder, source, "labelmap").header == store.header


def test_with_all_classes_the_pooled_whole_map_is_the_logits(tmp_path: Path, source, capsys) -> None:
    written = write_labelmaps(source, str(teacher()), settings(tmp_path / "all", k=10), CPU)
    assert written is not None
    assert "maps and teacher name the same class of 100 of 100 images" in capsys.readouterr().out
    rows = written.rows(np.arange(8))
    logit, index = torch.from_numpy(rows["logit"].copy()), torch.from_numpy(rows["index"].copy())
    expected = dense_maps(source, np.arange(8)).mean((2, 3))
    torch.testing.assert_close(pool(logit, index, whole(logit), 10), expected, rtol=2e-3, atol=2e-3)


def test_a_map_of_one_cell_is_said_to_be_one(tmp_path: Path, source, capsys) -> None:
    few = f"the map of '{teacher()}' is a single cell, which says the same of every crop"
    for size, said in ((8, True), (SIZE, False)):
        written = write_labelmaps(source, str(teacher()), settings(tmp_path / str(size), size=size), CPU)
        assert written is not None and (written.about["map_size"] == [1, 1]) is said
        assert (few in capsys.readouterr().out) is said


def test_parts_give_the_same_bytes(store: Store, tmp_path: Path, source) -> None:
    out = tmp_path / "parts"
    for part in ("2/2", "1/2"):
        done = write_labelmaps(source, str(teacher()), settings(out, part=part), CPU)
    assert done is not None
    files = sorted(file.name for file in store.folder.iterdir() if not file.name.startswith("."))
    assert len(files) == 9 and files == sorted(file.name for file in out.iterdir() if not file.name.startswith("."))
    for name in files:
        assert (out / name).read_bytes() == (store.folder / name).read_bytes(), name


def test_other_batches_round_otherwise_at_most(store: Store, tmp_path: Path, source) -> None:
    done = write_labelmaps(source, str(teacher()), settings(tmp_path / "batches", batch=50), CPU)
    assert done is not None
    whole_rows, other = (one.rows(np.arange(500)) for one in (store, done))
    assert np.array_equal(whole_rows["index"], other["index"])
    np.testing.assert_allclose(whole_rows["logit"], other["logit"], rtol=1e-3)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory, source) -> str:
    """A classifier that names the digits differently enough that neighbours have other classes."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10).eval()
    known = Whole(SIZE)
    images = torch.from_numpy(source.images[:200]).permute(0, 3, 1, 2)
    crops = known.apply_batch(images, known.draw(np.zeros((200, 0)), np.full((200, 2), 8))) / 255
    card = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(values)[:, None, None] for values in (card.mean, card.std))
    with torch.no_grad():
        features = network.forward_features((crops - mean) / std).mean((2, 3)).double()
        features = torch.cat([features, torch.ones(200, 1).double()], 1)
        target = 20.0 * torch.nn.functional.one_hot(torch.from_numpy(source.labels[:200]), 10).double()
        found = torch.linalg.lstsq(features, target, driver="gelsd", rcond=1e-6).solution.float()
        network.get_classifier().weight.copy_(found[:-1].T)
        network.get_classifier().bias.copy_(found[-1])
    file = tmp_path_factory.mktemp("network") / "w.safetensors"
    save_file(network.state_dict(), file)
    return f"timm:test_resnet@{file}"


def test_maps_of_the_images_beside_are_found_out_before_the_pass(fine_tuned, tmp_path: Path, source, monkeypatch,
                                                                 ) -> None:
    real = labelmaps.strongest
    monkeypatch.setattr(labelmaps, "strongest", lambda x, k: real(x.roll(1, 0), k))
    with pytest.raises(UserError, match=r"the pooled maps name its class of \d+ of 100 images only: k is too small"):
        write_labelmaps(source, fine_tuned, settings(tmp_path / "wrong", k=10), CPU)
    assert not (tmp_path / "wrong").exists()


def test_kept_maps_of_the_images_beside_are_found_out(fine_tuned, tmp_path: Path, source, monkeypatch, capsys) -> None:
    """Rows that stand one place further than their images."""
    known = settings(tmp_path / "kept", k=10)
    assert write_labelmaps(source, fine_tuned, known, CPU) is not None
    assert "maps and teacher name the same class of 100 of 100 images" in capsys.readouterr().out
    real = Store.rows
    monkeypatch.setattr(Store, "rows", lambda store, places: real(store, (places + 1) % 500))
    with pytest.raises(UserError, match=r"kept: the pooled maps name the teacher's class of \d+ of 100 images only"):
        write_labelmaps(source, fine_tuned, known, CPU)


def test_negative_logits_are_found_out_with_the_reason(fine_tuned, tmp_path: Path, source) -> None:
    """As of binary cross-entropy: none of the classes is probable in itself."""
    state = load_file(fine_tuned.partition("@")[2])
    state["fc.bias"] -= 100.0
    save_file(state, tmp_path / "bce.safetensors")
    source_of = f"timm:test_resnet@{tmp_path / 'bce.safetensors'}"
    with pytest.raises(UserError, match=r"is negative, as with .*cross-entropy.* count as 0, .*all of them with k=10"):
        write_labelmaps(source, source_of, settings(tmp_path / "wrong"), CPU)
    assert not (tmp_path / "wrong").exists()
    assert write_labelmaps(source, source_of, settings(tmp_path / "all", k=10), CPU) is not None


def test_another_input_is_another_pass(fine_tuned, tmp_path: Path, source) -> None:
    """The same weights, whose file states other statistics of images."""
    out, file = tmp_path / "maps", Path(fine_tuned.partition("@")[2])
    write_labelmaps(source, fine_tuned, settings(out, k=10), CPU)
    before, known = file.read_bytes(), timm.get_pretrained_cfg("test_resnet").to_dict()
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": {
        "input_size": known["input_size"], "mean": [0.4, 0.5, 0.6], "std": known["std"]}}
    save_file(load_file(file), file, metadata={"config": json.dumps(config)})
    try:
        with pytest.raises(UserError, match=r"holds the rows of another pass \(network"):
            write_labelmaps(source, fine_tuned, settings(out, k=10), CPU)
    finally:
        file.write_bytes(before)


def test_a_public_network_may_have_other_words_for_the_classes(fine_tuned, tmp_path: Path, source) -> None:
    """As torchvision says tench where a folder says n01440764: then the store is read with this card too."""
    file = tmp_path / "named.safetensors"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    def named(names: list[str]) -> str:
        config = {"architecture": "test_resnet", "num_classes": 10, "label_names": names}
        save_file(load_file(fine_tuned.partition("@")[2]), file, metadata={"config": json.dumps(config)})
        return f"timm:test_resnet@{file}"

    written = write_labelmaps(source, named(words), settings(tmp_path / "a", k=10), CPU)
    assert written is not None and written.about["classes"] == words and written.about["public_names"] is True
    assert open_store(written.folder, source, "labelmap").header == written.header
    with pytest.raises(UserError, match="calls class 0 '1', but data card 'digits' '0'"):
        write_labelmaps(source, named([*"1023456789"]), settings(tmp_path / "b", k=10), CPU)


def test_the_command_writes_maps_and_goes_on(tmp_path: Path, capsys) -> None:
    where = ["card=digits", "split=val", f"out={tmp_path / 'maps'}"]
    words = ["labelmaps", str(teacher()), *where, "size=32", "workers=0"]
    assert main(words) == 0
    assert "labelmap of 'val' of 'digits': 500 images" in capsys.readouterr().out
    next((tmp_path / "maps").glob("rows-*")).unlink()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "are there" in said
    assert said.endswith(f"{tmp_path / 'maps'} is complete: labelmap rows of 500 images. Train on them: unlabeled "
                         "pretrain relabel data.train.card=digits data.train.split=val "
                         f"data.train.records.labelmap={tmp_path / 'maps'}\n")
    known = LabelmapSettings(card=["digits", "a b.yaml"], root=None, out=str(tmp_path / "maps"))
    tell_kept(Store(tmp_path / "maps"), known)
    assert ("relabel 'data.train={mix: [{card: digits, split: train}, {card: a b.yaml, split: train}], batch: BATCH, "
            f"records: {{labelmap: {tmp_path / 'maps'}}}}}'" in capsys.readouterr().out)
    tell_kept(None, known)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["k=11"], r"k=11, but the teacher knows 10 classes"),
    (["sise=32"], r"'sise=32': unknown key 'sise'. Did you mean 'size'"),
    (["card=shapes"], r"calls class 0 '0', but data card 'shapes' 'disc'; take a teacher"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(words: list[str], message: str, tmp_path: Path, capsys) -> None:
    import re

    own = [word for word in ("card=digits",) if not any(given.startswith("card=") for given in words)]
    assert main(["labelmaps", str(teacher()), *own, f"out={tmp_path / 'x'}", "workers=0", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_teacher_of_vectors_is_refused(tmp_path: Path, source) -> None:
    with pytest.raises(UserError, match="gives vector and no logits; label maps need a classifier"):
        write_labelmaps(source, f"{teacher()}:backbone", settings(tmp_path / "x"), CPU)


def test_more_classes_than_two_bytes_tell_apart_are_refused(tmp_path: Path, source, monkeypatch) -> None:
    monkeypatch.setattr("unlabeled.passes.labelmaps.MOST_CLASSES", 9)
    with pytest.raises(UserError, match="knows 10 classes; label maps hold the numbers of 9 at most"):
        write_labelmaps(source, str(teacher()), settings(tmp_path / "x"), CPU)


def test_wide_images_are_squashed_whole() -> None:
    squash = Whole(8)
    image = np.zeros((4, 32, 3), np.uint8)
    image[:, 24:] = 255
    box = squash.draw(np.zeros((1, 0)), np.array([[4, 32]]))
    assert box.tolist() == [[0, 0, 4, 32, 4, 32, 0]]
    made = squash.apply(image, box[0])
    assert made.shape == (3, 8, 8) and (made[:, :, 7] == 255).all() and (made[:, :, :5] == 0).all()
    many = squash.apply_batch(torch.from_numpy(image).permute(2, 0, 1)[None], box)
    assert (many[0].int() - torch.from_numpy(made).int()).abs().max() <= 1
