"""Blocks of the global batch: who holds which, what is refused, and the number that a run keeps."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny import teacher, tiny_recipe

from unlabeled.config.batches import block_problem
from unlabeled.engine.build import info_from_record, info_record, kept_blocks
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.record import read_record
from unlabeled.engine.train import train
from unlabeled.engine.updater import Updater
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, StreamInfo

KEPT = ["train.blocks=null", "train.checkpoint_every=2", "train.precision=fp32", "train.channels_last=false"]


def info(world: int = 1, rank: int = 0, grad_accum: int = 1, blocks: int = 4, batch: int = 96) -> Info:
    return Info(0, rank, world, 10, {"train": StreamInfo(1000, batch)}, grad_accum=grad_accum, block_count=blocks)


@pytest.mark.parametrize(("world", "grad_accum"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_blocks_are_contiguous_parts_of_the_batch_whoever_holds_them(world: int, grad_accum: int) -> None:
    """Micro-batches are contiguous parts of the batch, and the processes' shares contiguous parts of those."""
    images, blocks = torch.arange(96), {}
    for micro, part in enumerate(images.chunk(grad_accum)):
        for rank, rows in enumerate(part.chunk(world)):
            for block in info(world, rank, grad_accum).blocks(len(rows), micro):
                assert block.number not in blocks
                blocks[block.number] = rows[block.rows].tolist()
    assert blocks == {number: rows.tolist() for number, rows in enumerate(images.chunk(4))}


def test_a_method_that_is_built_again_knows_the_number() -> None:
    assert info_from_record(json.loads(json.dumps(info_record(info(2, 1)))), 0).block_count == 4


def test_what_cannot_be_shared_is_refused() -> None:
    assert block_problem(4, 96, 2, 2) is None
    assert "must be a multiple of 3" in (block_problem(4, 96, 3, 1) or "")
    assert "8 blocks do not divide 60 images" in (block_problem(8, 60, 2, 1) or "")
    with pytest.raises(UserError, match=r"train.blocks with data.train.batch 64: 3 blocks do not divide 64 images"):
        train(tiny_recipe("ssld", "batch", ["train.blocks=3"]), Path("never"), dry_run=True)


def test_a_run_keeps_its_number_if_its_processes_can_share_it(tmp_path: Path) -> None:
    recipe = tiny_recipe("ssld", "batch", KEPT)
    (tmp_path / "run.json").write_text(json.dumps({"info": {"blocks": 2}}))
    assert kept_blocks(recipe, info(1, blocks=1), tmp_path) == kept_blocks(recipe, info(2, blocks=2), tmp_path) == 2
    with pytest.raises(UserError, match=r"was begun with 2 blocks per batch.*multiple of 3\. Start it with a number of "
                                        r"processes that divides 2"):
        kept_blocks(recipe, info(3, blocks=3), tmp_path)
    other = tiny_recipe("ssld", "running")
    assert kept_blocks(other, info(3, blocks=3), tmp_path) == 3  # it does nothing by blocks
    (tmp_path / "run.json").write_text(json.dumps({"info": {}}))  # begun before blocks were kept
    assert kept_blocks(recipe, info(2, blocks=2), tmp_path) == 2
    (tmp_path / "run.json").write_text(json.dumps({"info": {"blocks": "two"}}))
    with pytest.raises(UserError, match=r"run.json is damaged: 'info.blocks' is 'two'"):
        kept_blocks(recipe, info(2, blocks=2), tmp_path)


def settings() -> list[str]:
    """Return overrides with this process's teacher, for others would make one of their own."""
    return [*KEPT, f"method.teacher={teacher()}"]


class _Ended(Exception):
    pass


def begin(rank: int, run: Path, settings: list[str]) -> None:
    """Do three of six updates, of which two are saved."""
    update = Updater.update

    def end(self: Updater, number: int, *args, **kwargs):
        if number == 3:
            raise _Ended
        return update(self, number, *args, **kwargs)

    Updater.update = end  # type: ignore[method-assign]
    try:
        with contextlib.suppress(_Ended):
            train(tiny_recipe("ssld", "batch", settings), run)
    finally:
        Updater.update = update  # type: ignore[method-assign]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).method.state_dict()


def furthest(run: Path, other: Path) -> float:
    """Return the largest difference of weights, in parts of the largest of the tensor."""
    one, two = weights(run), weights(other)
    return max(float((one[n].double() - two[n].double()).abs().max() / two[n].double().abs().max().clamp_min(1e-3))
               for n in two)


def test_a_run_of_two_processes_goes_on_alone_with_their_blocks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    moved, whole, other = (tmp_path / name for name in ("moved", "whole", "other"))
    run_processes(2, begin, moved, settings())
    assert read_record(moved)["info"]["blocks"] == 2
    assert train(tiny_recipe("ssld", "batch", [*settings(), "train.allow_rescale=true"]), moved).finished
    assert "2 blocks of 32 images per update" in capsys.readouterr().out
    assert read_record(moved)["info"]["blocks"] == 2
    train(tiny_recipe("ssld", "batch", [*settings(), "train.blocks=2"]), whole)
    train(tiny_recipe("ssld", "batch", settings()), other)
    assert "1 block of 64 images per update" in capsys.readouterr().out
    assert furthest(moved, whole) < 1e-3 < furthest(other, whole)


def test_a_lost_record_is_written_anew_with_the_number(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_processes(2, begin, run, settings())
    (run / "run.json").unlink()
    assert train(tiny_recipe("ssld", "batch", settings()), run).finished
    assert read_record(run)["info"]["blocks"] == 2
