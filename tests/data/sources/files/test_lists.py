"""Lists of keys: one line per key whatever files are called, and back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tests.data.sources.test_folder import write

from unlabeled.config.card import Card
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.files.lists import one_line, read_lines, write_lines
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import listed, read_list
from unlabeled.errors import UserError

KEYS = ["a.jpg", "two\nlines.jpg", "\n", "cr\r.jpg", "tab\t.jpg", "back\\slash.jpg", "back\\nslash.jpg", "\\\n",
        "ü.jpg",
        "\udcff\udcfe.jpg", " blank ", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029.jpg", "\\x0b", "", "\\\\n", "x" * 300]


def test_every_key_is_one_line_and_reads_back() -> None:
    data = write_lines(KEYS)
    assert data.count(b"\n") == len(KEYS)
    assert len(data.decode("utf-8", "surrogateescape").splitlines()) == len(KEYS)
    assert read_lines(data) == KEYS
    assert read_lines(b"") == []
    assert read_lines(b"a\nb") == ["a", "b"]
    assert read_lines(b"C:\\dir\\q.jpg\n") == ["C:\\dir\\q.jpg"]  # of an earlier version
    assert one_line("plain/name-1.jpg") == "plain/name-1.jpg"


def list_card(root: Path, data: bytes, samples: int) -> Card:
    (root / "list.txt").write_bytes(data)
    return Card.model_validate({
        "name": "mine", "source": {"kind": "classfolder"}, "root": str(root), "splits": {"train": {}},
        "lists": {"few": {"file": "list.txt", "sha256": hashlib.sha256(data).hexdigest(), "samples": samples,
                          "about": "Take it from the authors"}}})


def test_a_published_list_keeps_the_bytes_of_its_names(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a/b\udcff.jpg", "train/b/2.jpg", "train/a/3.jpg")
    card = list_card(root, b"b\xff.jpg\r\n\n2.jpg \n", 2)
    source = open_source(card, "train")
    assert listed(source, read_list(card, "few")).tolist() == [1, 2]
    for damaged in ("b.jpg\n2.jpg\n".encode("utf-16"), b"\xff\xfe\n", b"", bytes(100)):
        (root / "list.txt").write_bytes(damaged)
        with pytest.raises(UserError,
                           match=r"list.txt is not the list 'few' of data card 'mine': .*Take it from") as error:
            read_list(card, "few")
        assert "\n" not in str(error.value)


def test_a_name_that_two_images_have_is_refused_where_the_list_means_it(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a/1.jpg", "train/b/1.png", "train/a/2.jpg", "train/b/3.jpg")
    source: Source = open_source(list_card(root, b"", 1), "train")
    assert listed(source, ["2.jpg", "3.jpg"]).tolist() == [1, 3]
    with pytest.raises(UserError,
                       match=r"names '1', which split 'train' of data 'mine' holds twice: 'a/1.jpg' and 'b/1.png'"):
        listed(source, ["1.jpg", "3.jpg"])
    assert isinstance(source.labels, np.ndarray)
