"""A pass over a split: its rows, and that nothing but its samples decides on them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.toys import shard_card
from tests.engine.passes.toys import contents, sums, toy_pass
from tests.evaluation.fakes import Noise

from unlabeled.config.card import Card
from unlabeled.config.passes.shared import Part, SplitPassSettings
from unlabeled.data.batch import Batch
from unlabeled.data.records.store import HEADER, Header, block_file, open_store, write_block
from unlabeled.data.sources import base as corrupt_rule
from unlabeled.engine.passes import folder as folder_module
from unlabeled.engine.passes import run as module
from unlabeled.engine.passes.folder import block_rows
from unlabeled.engine.passes.source import open_cards, open_split
from unlabeled.engine.run import progress
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import disk_error

BLOCKS = 5  # of 300 samples


class Counted:
    """Counts the samples that are computed, and may do something before a batch."""

    def __init__(self, before: Any = lambda batch: None) -> None:
        self.samples, self.before = 0, before

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.before(batch)
        self.samples += len(batch.index)
        return sums(batch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "rows"
    toy_pass(out)
    return out


@pytest.fixture
def partial(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "rows"))


def test_every_sample_has_its_row(whole: Path) -> None:
    source = Noise(300)
    rows = open_store(whole, source, "toys").rows(np.arange(300))
    np.testing.assert_array_equal(rows["place"], np.arange(300))
    np.testing.assert_allclose(rows["mean"], source.pixels.mean((1, 2)) / 255, atol=5e-4)
    assert (rows["mean"].dtype, rows["mean"].shape) == (np.dtype("<f2"), (300, 3))


def test_the_header_tells_of_what_and_by_what(whole: Path) -> None:
    header = Header.read(whole)
    assert (header.kind, header.card, header.split, header.rows, header.block) == ("toys", "noise", "all", 300, 64)
    assert header.about["teacher"] == "sums" and header.about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert sorted(contents(whole)) == [HEADER, *(block_file(whole, n).name for n in range(BLOCKS))]


@pytest.mark.parametrize("how", [{"workers": 2}, {"batch": 64}, {"batch": 1000}, {"parts": (3, 1, 2)},
                                 {"parts": (2, 1)}, {"parts": range(1, 10)}])
def test_the_bytes_are_the_same_whoever_computes_them(whole: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    *others, last = how.pop("parts", (1,))
    count = len(others) + 1
    assert all(toy_pass(tmp_path, part=Part(number, count), **how) is None for number in others)
    assert toy_pass(tmp_path, part=Part(last, count), **how) is not None
    assert contents(tmp_path) == contents(whole)


def test_batches_do_not_reach_from_block_to_block(tmp_path: Path) -> None:
    sizes: list[int] = []
    toy_pass(tmp_path, batch=40, compute=Counted(lambda batch: sizes.append(len(batch.index))))
    assert sizes == [40, 24, 40, 24, 40, 24, 40, 24, 40, 4]


def test_only_missing_and_damaged_blocks_are_computed_anew(
        partial: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(block_file(partial, 1).read_bytes())
    content[100] ^= 1  # of a row
    block_file(partial, 1).write_bytes(content)
    block_file(partial, 3).write_bytes(block_file(partial, 3).read_bytes()[:-1])
    block_file(partial, 4).unlink()
    counted = Counted()
    assert toy_pass(partial, compute=counted) is not None
    assert counted.samples == 64 + 64 + 44
    assert contents(partial) == contents(whole)
    assert f"2 blocks in {partial} are damaged: they are made anew" in capsys.readouterr().out
    again = Counted()
    assert toy_pass(partial, compute=again) is not None and again.samples == 0


def test_what_another_job_wrote_meanwhile_is_skipped(tmp_path: Path, whole: Path) -> None:
    def other_job(batch: Batch) -> None:
        if int(batch.index[0]) == 0:
            for number in (2, 3):
                shutil.copy(block_file(whole, number), block_file(tmp_path, number))

    counted = Counted(other_job)
    assert toy_pass(tmp_path, compute=counted) is not None
    assert counted.samples == 300 - 128 and contents(tmp_path) == contents(whole)


def test_a_folder_that_is_taken_away_ends_the_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was removed meanwhile, perhaps by another job that finished"):
        toy_pass(tmp_path / "rows", compute=Counted(lambda batch: shutil.rmtree(tmp_path / "rows", ignore_errors=True)))


def renamed(source: Noise) -> Noise:
    source.key = lambda index: f"other-{index}"  # type: ignore[method-assign]
    return source


@pytest.mark.parametrize(("changed", "words"), [
    ({"about": {"teacher": "products"}}, "teacher sums there, products now"),
    ({"about": {"teacher": "sums", "k": 5}}, "k null there, 5 now"),
    ({"kind": "tools"}, "kind toys there, tools now"),
    ({"fields": {"mean": ("<f4", (3,)), "place": ("<u2", ())}}, 'fields {"mean": ["<f2", [3]], "place": ["<u2", []]} '),
    ({"source": Noise(299)}, "rows 300 there, 299 now"),
    ({"source": renamed(Noise(300))}, "its samples have other names, or another order"),
])
def test_the_folder_of_another_pass_is_refused(partial: Path, changed: dict[str, Any], words: str) -> None:
    before = contents(partial)
    with pytest.raises(UserError) as caught:
        toy_pass(partial, **changed)
    assert str(caught.value).startswith(f"{partial} holds the rows of another pass ({words}")
    assert str(caught.value).endswith("name another folder with out=, or remove that one")
    assert contents(partial) == before


def test_other_versions_and_sizes_of_blocks_go_on(partial: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.loads((partial / HEADER).read_bytes())
    about["about"]["versions"]["torch"] = "1.0"
    (partial / HEADER).write_text(json.dumps(about))
    block_file(partial, 2).unlink()
    monkeypatch.setattr(folder_module, "block_rows", lambda rows, itemsize: 32)
    assert toy_pass(partial) is not None
    (partial / HEADER).write_bytes((whole / HEADER).read_bytes())
    assert contents(partial) == contents(whole)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="is not empty and holds no rows of a pass; name another folder with out="):
        toy_pass(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_unreadable_samples_have_no_row_and_are_listed(tmp_path: Path, whole: Path) -> None:
    store = toy_pass(tmp_path, Noise(300, broken=(3, 70, 299)), max_corrupt=1, workers=1)
    assert store is not None
    assert store.unreadable == dict.fromkeys((3, 70, 299), "broken for the test")
    rows = store.rows(np.arange(300))
    assert not rows[[3, 70, 299]]["mean"].any() and not rows[[3, 70, 299]]["place"].any()
    readable = np.setdiff1d(np.arange(300), [3, 70, 299])
    expected = open_store(whole, Noise(300), "toys").rows(readable)
    np.testing.assert_array_equal(rows[readable], expected)


def test_a_batch_or_a_block_without_any_readable_sample(tmp_path: Path) -> None:
    broken = (*range(16, 32), *range(64, 128))
    store = toy_pass(tmp_path, Noise(300, broken=broken), max_corrupt=1)
    assert store is not None and sorted(store.unreadable) == sorted(broken)
    assert store.rows(np.array([32]))["place"] == 32


def test_too_many_unreadable_samples_are_refused_with_all_their_names_and_nothing_is_lost(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrupt_rule, "FORGIVEN", 1)
    source, counted = Noise(300, broken=(1, 66, 131, 299)), Counted()
    with pytest.raises(UserError) as caught:  # at the third, of the third block
        toy_pass(tmp_path, source, max_corrupt=0.008, compute=counted)
    assert str(caught.value) == (
        "data 'noise', split 'all': 3 of 300 images cannot be read, more than max_corrupt 0.008 allows; the first: "
        "noise-1: broken for the test; noise-66: broken for the test; noise-131: broken for the test. "
        f"{tmp_path}/unreadable.txt names all. Mend them, or raise max_corrupt; the same command goes on")
    assert (tmp_path / "unreadable.txt").read_text().splitlines()[2] == "noise-131: broken for the test"
    assert counted.samples < 300 and block_file(tmp_path, 2).exists()
    again = Counted()
    store = toy_pass(tmp_path, source, max_corrupt=0.05, compute=again)
    assert store is not None and counted.samples + again.samples <= 296 + 16  # a batch may have been under way
    assert sorted(store.unreadable) == [1, 66, 131, 299]


def test_unreadable_samples_count_over_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrupt_rule, "FORGIVEN", 1)
    source = Noise(300, broken=(1, 299))
    assert toy_pass(tmp_path, source, part=Part(1, 2)) is None
    with pytest.raises(UserError, match="2 of 300 images cannot be read"):
        toy_pass(tmp_path, source, part=Part(2, 2))


def test_samples_that_were_mended_get_their_rows(
        tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_pass(tmp_path, Noise(300, broken=(70, 200)), max_corrupt=1)
    counted = Counted()
    assert toy_pass(tmp_path, Noise(300), compute=counted) is not None
    assert counted.samples == 128 and contents(tmp_path) == contents(whole)
    assert "2 blocks in" in capsys.readouterr().out


def test_what_cannot_fit_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2500)  # 300 rows of 8 bytes are 2400
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage)
    counted = Counted()
    with pytest.raises(UserError, match=r"2.6 kB are to come, but the disk has only 2.5 kB free; free some space, or"):
        toy_pass(tmp_path, compute=counted, more=200)
    assert counted.samples == 0
    assert toy_pass(tmp_path, compute=counted) is not None
    assert toy_pass(tmp_path, compute=counted, more=10**9) is not None  # nothing is to come


@pytest.mark.parametrize("last", [2, 4])
def test_a_disk_that_gets_full_keeps_what_was_written(
        last: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(out: Path, header: Header, number: int, *more: Any) -> None:
        if number == last:
            raise disk_error(block_file(out, number), OSError(28, "No space left on device"))
        write_block(out, header, number, *more)

    monkeypatch.setattr(module, "write_block", full)
    with pytest.raises(UserError, match=f"rows-00000{last}: the disk is full"):
        toy_pass(tmp_path)
    assert sorted(contents(tmp_path)) == [HEADER, *(f"rows-00000{number}" for number in range(last))]
    monkeypatch.undo()
    counted = Counted()
    assert toy_pass(tmp_path, compute=counted) is not None and counted.samples == 300 - 64 * last
    assert contents(tmp_path) == contents(whole)


def spoilt(field: str, value: float) -> Any:
    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        out = {name: part.clone() for name, part in sums(batch).items()}
        out[field][batch.index == 70] = value
        return out

    return compute


@pytest.mark.parametrize(("field", "value", "dtype"), [
    ("mean", float("nan"), "float16"), ("mean", 1e5, "float16"), ("place", 70_000, "uint16"), ("place", -1, "uint16")])
def test_numbers_that_a_row_cannot_hold_are_refused(tmp_path: Path, field: str, value: float, dtype: str) -> None:
    with pytest.raises(UserError, match=rf"toys: the {field} of 1 of 16 samples are NaN or beyond what {dtype} holds, "
                                        r"the first of 'noise-70'; take precision=fp32, or another network"):
        toy_pass(tmp_path, compute=spoilt(field, value))
    assert sorted(contents(tmp_path)) == [HEADER, "rows-000000"]


def test_values_of_another_form_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"'mean' has the shape \(16, 1\)"):
        toy_pass(tmp_path, compute=lambda batch: {**sums(batch), "mean": sums(batch)["mean"][:, :1]})
    with pytest.raises(AssertionError, match="fields"):
        toy_pass(tmp_path, compute=lambda batch: {"mean": sums(batch)["mean"]})


def test_bfloat16_is_kept(tmp_path: Path, whole: Path) -> None:
    store = toy_pass(tmp_path, compute=lambda batch: {**sums(batch), "mean": sums(batch)["mean"].bfloat16()})
    assert store is not None
    exact = open_store(whole, Noise(300), "toys").rows(np.arange(300))["mean"].astype(np.float32)
    np.testing.assert_allclose(store.rows(np.arange(300))["mean"], exact, rtol=2**-8)


def test_what_comes_is_said_before_it_starts(
        tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_pass(tmp_path / "a", part=Part(2, 3))
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"toys of 'all' of 'noise': 300 images, 2.4 kB in 5 blocks \(part 2/3: 2\); 2.4 kB to come, "
                        rf"[\d.]+ GB free in {tmp_path}/a", said[0])
    assert said[1:] == [f"part 2/3 of {tmp_path}/a is complete; 3 of 5 blocks are missing yet, those of other parts"]
    toy_pass(tmp_path / "a")
    assert "300 images, 2.4 kB in 5 blocks; 2 of them are there, 1.4 kB to come" in capsys.readouterr().out


def test_speed_and_time_left_count_from_where_the_pass_goes_on(
        partial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "PASS_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    for number in (1, 2):
        block_file(partial, number).unlink()
    toy_pass(partial)
    lines = [line for line in capsys.readouterr().out.splitlines() if "images/s" in line]
    assert len(lines) == 7  # the last batch ends it
    assert re.fullmatch(r"toys of 'all' of 'noise': 16 of 128 images, \d+ images/s, 0 s left", lines[0])


@pytest.mark.parametrize(("rows", "itemsize", "block"), [
    (1, 8, 64), (300, 8, 64), (5_000, 8192, 64), (50_000, 4, 512), (1_281_167, 4_500, 512), (1_281_167, 8, 1024),
    (100_000_000, 8, 16384), (100_000_000, 4096, 1024), (1_281_167, 1 << 20, 64)])
def test_a_block_is_a_few_megabytes_and_a_small_set_has_several(rows: int, itemsize: int, block: int) -> None:
    assert block_rows(rows, itemsize) == block


@pytest.mark.parametrize("blocks", [1, 5, 16, 1000])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_parts_share_the_blocks(blocks: int, count: int) -> None:
    shares = [Part(number, count).of(blocks) for number in range(1, count + 1)]
    assert [block for share in shares for block in share] == list(range(blocks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_streamed_split_has_no_places(tmp_path: Path) -> None:
    url = Card.model_validate({**shard_card(tmp_path).model_dump(), "source": {"kind": "stream"},
                               "splits": {"train": {"path": "{000..001}.tar", "samples": 4}}})
    (tmp_path / "000.tar").touch()
    (tmp_path / "001.tar").touch()
    with pytest.raises(UserError, match=r"is streamed: its samples have no places at which rows could be kept; copy"):
        open_split(url, "train", str(tmp_path))
    source = Noise(300)
    source.random_access = False
    with pytest.raises(UserError, match="is streamed"):
        toy_pass(tmp_path / "rows", source)
    assert not (tmp_path / "rows").exists()


def test_several_cards_are_one_set(tmp_path: Path) -> None:
    settings = SplitPassSettings(card=["digits", "digits"], split="val", out=str(tmp_path))
    assert len(open_cards(settings)) == 1000
    assert len(open_cards(settings.model_copy(update={"card": "digits"}))) == 500
    with pytest.raises(UserError, match="'root' goes with one card"):
        open_cards(settings.model_copy(update={"root": "."}))
