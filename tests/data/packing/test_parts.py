"""A pack that several jobs write: the same bytes as one job's, in any order, at once, and after a kill."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from tests.data.toys import jpeg

from unlabeled.config.pack import PackSettings
from unlabeled.config.read import read_settings
from unlabeled.data.packing import split as module
from unlabeled.data.packing.split import pack
from unlabeled.errors import UserError


def settings(**given: Any) -> PackSettings:
    return PackSettings.model_validate({"workers": 0, "shard_samples": 4, **given})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 30 images of two classes, one of which cannot be read: eight shards."""
    for number in range(30):
        file = tmp_path / "set" / "ab"[number % 2] / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number, 12, "JPEG") if number != 5 else b"none")
    return tmp_path / "set"


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix != ".index"}


def test_parts_in_any_order_give_the_bytes_of_one_job(photos: Path, tmp_path: Path, capsys) -> None:
    pack(str(photos), tmp_path / "whole", settings(max_corrupt=0.1))
    capsys.readouterr()
    pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part="1/20"))  # more jobs than files: none for it
    assert "part 1/20 is written; 8 of 8 files are missing" in capsys.readouterr().out
    for number in (3, 1, 2):
        pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part=f"{number}/3"))
    said = capsys.readouterr().out
    assert "part 3/3 is written; 5 of 8 files are missing" in said and "part 1/3 is written; 3 of 8 files" in said
    assert said.count("use it: ") == 1
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1))  # goes on with what all have written
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_parts_at_once_give_the_bytes_of_one_job(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), tmp_path / "whole", settings(max_corrupt=0.1))
    jobs = [multiprocessing.get_context("fork").Process(
        target=pack, args=(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part=f"{number}/4")))
        for number in range(1, 5)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_part_that_was_cut_short_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(str(photos), tmp_path / "whole", settings(max_corrupt=0.1))
    pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part="1/2"))
    record = tmp_path / "parts" / "pack-0001-of-0002.jsonl"
    lines = record.read_text().splitlines()
    assert len(lines) == 5
    record.write_text("\n".join(lines[:3]) + "\n" + lines[3][:10])  # killed while it wrote the third
    before = (tmp_path / "parts" / json.loads(lines[1])["file"]).stat().st_mtime_ns
    pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part="1/2"))
    assert (tmp_path / "parts" / json.loads(lines[1])["file"]).stat().st_mtime_ns == before
    pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part="2/2"))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_unreadable_images_of_all_parts_count_together(photos: Path, tmp_path: Path) -> None:
    for number in range(4, 28, 2):
        (photos / "a" / f"{number:03d}.jpg").write_bytes(b"none")
    allowed = settings(max_corrupt=0)  # no part has more than the few that are always forgiven
    with pytest.raises(UserError, match="13 of 30 images cannot be read"):
        for number in range(1, 9):
            pack(str(photos), tmp_path / "parts", allowed.model_copy(update={"part": f"{number}/8"}))
    assert not (tmp_path / "parts" / module.CARD).exists()


def test_what_does_not_go_together_is_refused(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part="1/2"))
    with pytest.raises(UserError, match=r"holds another pack \(seed 0 there, 1 now\)"):
        pack(str(photos), tmp_path / "parts", settings(max_corrupt=0.1, part="2/2", seed=1))
    with pytest.raises(UserError, match="there is no '3/2'; allowed: 1/16 to 16/16"):
        read_settings("unlabeled pack", PackSettings, ["part=3/2"])
    with pytest.raises(UserError, match="'part' has no effect with store=array"):
        read_settings("unlabeled pack", PackSettings, ["part=1/2", "store=array"])
