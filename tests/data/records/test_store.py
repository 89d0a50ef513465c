"""Rows kept per sample: read back as they were, and refused where they belong to something else."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from tests.data.toy_stores import write_store
from tests.data.toys import Numbered

from unlabeled.config.card import Card
from unlabeled.data.records.store import HEADER, Header, Store, block_file, open_store, whole_block
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.errors import UserError

N = 25
RANDOM = np.random.default_rng(0)
COLUMNS = {"logit": RANDOM.normal(size=(N, 2, 3)).astype("<f2"),
           "index": RANDOM.integers(0, 9, (N, 2, 3)).astype("<u2"),
           "flag": RANDOM.integers(0, 2, N).astype("|u1")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", Numbered(N), "labelmap", COLUMNS, unreadable={9: "broken"})


def test_rows_are_read_back_in_any_order_in_any_process(folder: Path) -> None:
    store = open_store(folder, Numbered(N), "labelmap")
    places = np.array([24, 0, 7, 6, 7, 13])
    for copy in (store, pickle.loads(pickle.dumps(store))):
        for name, values in COLUMNS.items():
            assert np.array_equal(copy.rows(places)[name], values[places])
    assert store.unreadable == {9: "broken"} and len(store) == N
    assert store.header.dtype.itemsize == 2 * 6 + 2 * 6 + 1, "without gaps"


def test_the_files_are_what_the_description_says(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_bytes())
    dtype = np.dtype([(name, code, tuple(shape)) for name, (code, shape) in header["fields"].items()])
    rows = np.concatenate([np.fromfile(folder / f"rows-{n:06d}", dtype, min(7, N - 7 * n)) for n in range(4)])
    assert np.array_equal(rows["logit"], COLUMNS["logit"])


def test_another_kind_other_samples_another_order_and_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    for source, kind, said in (
        (Numbered(N), "features", "holds labelmap rows, but features is asked for; make them with: unlabeled features"),
        (Numbered(N + 1), "labelmap", "holds rows of 25 samples of 'train' of 'numbered', but split 'train' of data "
                                      "card 'numbered' has 26"),
        (Part(Numbered(N), np.arange(N)[::-1]), "labelmap", "other names, or another order"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            open_store(folder, source, kind)
    none = tmp_path / "none"
    makes = f"TEACHER card=CARD split=train out={none}, or name the folder"
    for kind, cure in (("labelmap", f"'numbered'; make them with: unlabeled labelmaps {makes}"),
                       ("reinforcement", f"'numbered'; make them with: unlabeled reinforce {makes}"),
                       ("other", "'numbered'; name the folder that has them with records.other=FOLDER")):
        with pytest.raises(UserError, match=re.escape(cure)):
            open_store(none, Numbered(N), kind)
    none.mkdir()
    (none / "header.json").mkdir()
    with pytest.raises(UserError, match=r"holds no rows of a pass: .*header\.json cannot be read"):
        open_store(none, Numbered(N), "labelmap")


def test_classes_of_another_count_or_order_are_refused(tmp_path: Path) -> None:
    source = Numbered(N)
    source.classes = ["cat", "dog"]
    about = {"classes": ["dog", "cat"], "num_classes": 2}
    with pytest.raises(UserError, match="calls class 0 'dog', but data card 'numbered' 'cat'"):
        open_store(write_store(tmp_path / "a", source, "labelmap", COLUMNS, **about), source, "labelmap")
    with pytest.raises(UserError, match="knows 3 classes, but data card 'numbered' has 2"):
        open_store(write_store(tmp_path / "b", source, "labelmap", COLUMNS, num_classes=3), source, "labelmap")
    open_store(write_store(tmp_path / "c", source, "labelmap", COLUMNS, classes=["cat", "dog"]), source, "labelmap")


def test_missing_and_shortened_blocks_are_listed(folder: Path) -> None:
    block_file(folder, 1).unlink()
    content = block_file(folder, 3).read_bytes()
    block_file(folder, 3).write_bytes(content[:-1])
    said = "the rows of 11 of 25 samples are missing or cut short (rows-000001, rows-000003); give its command"
    with pytest.raises(UserError, match=re.escape(said)):
        Store(folder)


def test_a_changed_byte_is_seen_by_the_checksum(folder: Path) -> None:
    header = Header.read(folder)
    assert all(whole_block(folder, header, n) for n in range(4)) and not whole_block(folder, header, 4)
    content = bytearray(block_file(folder, 2).read_bytes())
    content[5] ^= 1
    block_file(folder, 2).write_bytes(content)
    assert not whole_block(folder, header, 2)
    store = open_store(folder, Numbered(N), "labelmap")
    assert len(store.rows(np.arange(14))) == 14
    with pytest.raises(UserError, match=r"rows-000002 is damaged: its rows have another checksum; give the command"):
        store.rows(np.array([15]))


def test_rendered_sets_of_another_split_or_rule_are_told_apart(tmp_path: Path) -> None:
    def rendered(split: str, seed: int) -> Source:
        return open_source(Card.model_validate({
            "name": "s", "source": {"kind": "shapes", "size": 16, "seed": seed},
            "splits": {"train": {"samples": N}, "test": {"samples": N}}}), split)

    folder = write_store(tmp_path / "s", rendered("train", 0), "labelmap", COLUMNS)
    open_store(folder, rendered("train", 0), "labelmap")
    for split, seed in (("test", 0), ("train", 1)):
        with pytest.raises(UserError, match="other names, or another order"):
            open_store(folder, rendered(split, seed), "labelmap")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"fields": 3}', b'{"fields": {"x": ["<f9", []]}}'])
def test_damaged_headers_are_one_line(folder: Path, content: bytes) -> None:
    (folder / HEADER).write_bytes(content)
    with pytest.raises(UserError, match=r"header.json is damaged \(.+\); remove .+ and make it anew"):
        Header.read(folder)


def test_mapped_blocks_hold_no_files_open(tmp_path: Path) -> None:
    source = Numbered(300)
    store = open_store(write_store(tmp_path, source, "x", {"v": np.arange(300)}, block=1), source, "x")
    before = len(os.listdir("/proc/self/fd"))
    assert store.rows(np.arange(300))["v"].tolist() == list(range(300))
    assert len(os.listdir("/proc/self/fd")) == before
