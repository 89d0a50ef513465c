"""A short, seeded run of `benchmarks.fuzz`: damaged files give PIL's pixels or are refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks import fuzz
from benchmarks.fuzz_bytes import damaged, damaged_text
from benchmarks.fuzz_images import Kind, Wrong, image_files, read_image
from benchmarks.fuzz_sets import kinds
from PIL import Image

from unlabeled.data.sources.base import CorruptSample
from unlabeled.errors import UserError

CASES = 30  # of every kind


@pytest.mark.slow
@pytest.mark.parametrize("sets", [False, True], ids=["images", "sets"])
def test_damaged_files_give_pils_pixels_or_are_refused(sets: bool) -> None:
    chosen = {name: kind for name, kind in kinds().items() if name.startswith("image-") != sets}
    findings, endings, last = fuzz.search(chosen, 0, 0, cases=len(chosen) * CASES)
    assert [f"{found.case} {found.kind}: {found.what}" for found in findings] == []
    assert last == len(chosen) * CASES - 1
    assert endings["read"] > 50 and endings["refused"] > 100  # both ends are met


def test_every_kind_is_whole_before_it_is_damaged(tmp_path: Path) -> None:
    for name, kind in kinds().items():
        for path, data in kind.files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        kind.read(tmp_path / name)
    assert len(image_files()) > 30


def test_what_is_wrong_is_found_and_repeated(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        data = (folder / "a.txt").read_bytes()
        if len(data) < 8:
            raise UserError(f"{folder}/a.txt is short")
        if data[0] != 65:
            raise KeyError("no A")
        if data[1] != 65:
            raise UserError("two\nlines")
        if data[2] != 65:
            raise UserError("some file is wrong")
        if data[3] != 65:
            raise CorruptSample("a", "the fourth")

    chosen = {"toy": Kind({"a.txt": b"A" * 40}, read)}
    findings, endings, _ = fuzz.search(chosen, 0, 3, cases=120, keep=tmp_path)
    assert {found.what.partition(" in ")[0].partition(":")[0] for found in findings} >= {
        "KeyError", "a refusal that is no line of text", "a refusal without the file"}
    assert endings["bad"] == len(findings) and endings["read"] and endings["refused"]
    for found in findings:
        assert fuzz.attempt(chosen, found.case, 3) == (found, "bad")
        assert (tmp_path / f"3-{found.case}-toy" / "a.txt").exists()


def test_crashes_hangs_and_memory_without_end_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path) -> None:
        number = json.loads((folder / "n").read_bytes())
        if number == 0:
            os._exit(7)
        if number == 1:
            while True:
                pass
        if number == 2:
            np.zeros(1 << 36, np.uint8)

    class Counted(Kind):
        def write(self, folder: Path, random: np.random.Generator) -> str:
            (folder / "n").write_text(str(self.files["n"][0] % 4))
            self.files["n"] = bytes([self.files["n"][0] + 1])
            return "n"

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    ends = []
    for start in range(4):
        findings, _, last = fuzz.search({"toy": Counted({"n": bytes([start])}, read)}, 0, 0, cases=1)
        ends += [found.what for found in findings]
        assert last == 0
    assert ends[0] == "the process ended with exit code 7" and "TimeoutError" in ends[1] and "MemoryError" in ends[2]
    assert len(ends) == 3


def test_damage_depends_on_the_seed_alone_and_reaches_every_part() -> None:
    data = bytes(range(256)) * 4
    cases = [damaged(data, np.random.default_rng([0, case])) for case in range(300)]
    assert cases == [damaged(data, np.random.default_rng([0, case])) for case in range(300)]
    assert len(set(cases)) > 250 and any(len(case) < 1024 for case in cases) and any(len(case) > 1024 for case in cases)
    assert damaged(b"", np.random.default_rng(0)) is not None
    text = b'{"a": [1, 2.5, "x"], "b": null}'
    texts = {damaged_text(text, np.random.default_rng(case)) for case in range(200)}
    assert any(b"NaN" in each for each in texts) and any(b'""' in each for each in texts) and len(texts) > 100


def test_the_oracle_tells_other_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(image_files()["plain.png"])
    read_image(tmp_path)
    monkeypatch.setattr("benchmarks.fuzz_images.decode", lambda *_: np.zeros((24, 16, 3), np.uint8))
    with pytest.raises(Wrong, match="differs from PIL's"):
        read_image(tmp_path)
    assert Image.MAX_IMAGE_PIXELS > 10**7
