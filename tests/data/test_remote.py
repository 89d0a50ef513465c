"""Shards that are read in order: from a folder, a command or a server on this machine."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from pydantic import ValidationError
from tests.data.test_stream import equal
from tests.data.toys import Corner, jpeg, write_shards, write_tar

from unlabeled.config.card import Card
from unlabeled.config.read import read_recipe
from unlabeled.data import remote
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.remote import InOrder, StreamSource
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.tar import stream as tar_stream
from unlabeled.data.sources.tar.index import make_index
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.engine.train import train
from unlabeled.errors import UserError

STREAM = Stream((Corner(), Corner()), labels=True)
SHARDS, EACH = 6, 8
ALL = SHARDS * EACH


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "WAIT", 0.0)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "d", SHARDS, EACH)


def stream_card(root: Path | str | None, path: str = "toy-{000000..000005}.tar", samples: int = ALL, **rule: Any,
                ) -> Card:
    return Card.model_validate({
        "name": "far", "source": {"kind": "stream", "label": "cls", "shuffle": 5, **rule}, "classes": ["a", "b", "c"],
        "root": None if root is None else str(root), "splits": {"train": {"path": path, "samples": samples}}})


def opened(root: Path | str | None, **more: Any) -> StreamSource:
    source = open_source(stream_card(root, **more), "train", in_order=True)
    assert isinstance(source, StreamSource)
    return source


def make(source: StreamSource, rank: int = 0, world: int = 1, accum: int = 1, workers: int = 0, batch: int = 12,
         seed: int = 3) -> TrainStream:
    return TrainStream(source, STREAM, BatchShare(batch, rank, world, accum), Reading(workers), name="train", seed=seed,
                       updates_per_epoch=len(source) // batch)


def flat(updates: Iterator[list[Batch]]) -> list[Batch]:
    return [batch for micros in updates for batch in micros]


def indices(batches: list[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_takes_every_sample_once_and_the_next_in_another_order(folder: Path, world: int) -> None:
    source = opened(folder)
    shares = [flat(make(source, rank, world).updates(0, 8)) for rank in range(world)]
    epochs = [[i for share in shares for i in indices(share[first : first + 4])] for first in (0, 4)]
    everything = sorted(shard << 32 | place for shard in range(SHARDS) for place in range(EACH))
    assert sorted(epochs[0]) == everything == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert epochs[0] != everything
    assert all(len(batch.index) == 12 // world for share in shares for batch in share)


def test_two_lanes_take_turns_and_every_sample_once(folder: Path) -> None:
    maker = InOrder(opened(folder), STREAM, "train", 3, 0, 1, 2)
    units = [maker.unit(0, np.arange(12 * turn, 12 * turn + 12), turn) for turn in range(ALL // 12)]
    assert [unit.lane for unit in units] == [0, 1, 0, 1]
    taken = indices([maker.make(unit) for unit in units])
    assert sorted(taken) == sorted(shard << 32 | place for shard in range(SHARDS) for place in range(EACH))


def test_one_shard_is_shuffled_otherwise_in_every_epoch(tmp_path: Path) -> None:
    one = opened(write_shards(tmp_path / "one", 1, 24), path="toy-000000.tar", samples=24, shuffle=24)
    found = indices(flat(make(one).updates(0, 4)))
    assert sorted(found[:24]) == sorted(found[24:]) and found[:24] != found[24:]


def test_samples_are_those_that_webdataset_reads(folder: Path) -> None:
    tars = sorted(map(str, folder.glob("*.tar")))
    theirs = [(s["__key__"], s["jpg"], int(s["cls"]))
              for s in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)]
    source = opened(folder)
    assert [(s.key, s.image, s.label) for shard in range(SHARDS) for s in source.read(shard)] == theirs
    for batch in flat(make(source).updates(0, 4)):
        numbers = (batch.index >> 32) * EACH + (batch.index & 0xFFFFFFFF)
        assert torch.equal(batch.label, numbers % 3)


def test_crops_are_drawn_by_position_and_cut_from_the_named_image(folder: Path) -> None:
    source = opened(folder)
    batches = flat(make(source).updates(0, 4))
    images = {s.index: s.image for shard in range(SHARDS) for s in source.read(shard)}
    for batch in batches:
        for crop, box, index in zip(batch.crops[0], batch.boxes[0], batch.index.tolist(), strict=True):
            top, left, _, _, _, _, flip = box.int().tolist()
            image = torch.from_numpy(remote.decode(images[index], "x"))[top : top + 4, left : left + 4].permute(2, 0, 1)
            assert torch.equal(crop, image.flip(2) if flip else image)
    ordered = make(opened(folder, shuffle=1))
    for batch, other in zip(batches, flat(ordered.updates(0, 4)), strict=True):
        assert torch.equal(batch.boxes[1], other.boxes[1])  # other samples at the same positions
    assert indices(batches) != indices(flat(make(opened(folder, shuffle=1)).updates(0, 4)))


@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_repeats_the_rest(folder: Path, workers: int, accum: int) -> None:
    write_tar(folder / "toy-000003.tar", {f"x{i}.{e}": jpeg(i)[: 600 if i == 2 else None] if e == "jpg" else b"1"
                                          for i in range(EACH) for e in ("jpg", "cls")})
    source = opened(folder)
    straight = flat(make(source, workers=workers, accum=accum).updates(0, 11))
    assert any(batch.corrupt for batch in straight)
    for start in (1, 3, 4, 6, 10):
        stream = make(source, workers=workers, accum=accum)
        rest = flat(stream.updates(start, 11))
        stream.close()
        assert all(equal(a, b) for a, b in zip(straight[start * accum :], rest, strict=True))
    stream = make(source, workers=workers, accum=accum)
    early = stream.updates(0, 11)
    next(early)
    assert all(equal(a, b) for a, b in zip(straight[2 * accum :], flat(stream.updates(2, 11)), strict=True))
    stream.close()


def test_loader_processes_read_what_their_lanes_say(folder: Path) -> None:
    source = opened(folder)
    stream = make(source, rank=1, world=2, workers=2)
    got = flat(stream.updates(0, 9))
    stream.close()
    alone = InOrder(source, STREAM, "train", 3, 1, 2, source.lanes(2, 2))
    assert alone.lanes == min(2, remote.usable(2))
    copy = pickle.loads(pickle.dumps(alone))
    for update, batch in enumerate(got):
        unit = make(source, rank=1, world=2, workers=2).unit(update, 0)
        assert equal(batch, alone.make(unit))
        assert equal(batch, copy.make(unit))


def test_what_was_taken_is_passed_over_without_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = remote.decode
    monkeypatch.setattr(remote, "decode", lambda data, key, *how: (made.append(key), original(data, key, *how))[1])
    list(make(opened(folder)).updates(3, 4))
    assert len(made) == 12


def test_lanes_with_fewer_samples_go_on_with_another_permutation(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "d", 3, EACH)  # one of two processes has two shards, the other one
    source = opened(folder, path="toy-{000000..000002}.tar", samples=24)
    shares = [indices(flat(make(source, rank, 2).updates(0, 2))) for rank in range(2)]
    assert [len(share) for share in shares] == [12, 12]
    assert sorted(len(set(share)) for share in shares)[1] == 12
    assert len({i >> 32 for share in shares for i in share}) == 3


def test_unreadable_samples_are_replaced_and_named(folder: Path) -> None:
    bad = {f"img-{i:03d}": i for i in (9, 10, 30)}
    for shard in (1, 3):
        members = {}
        for i in range(shard * EACH, (shard + 1) * EACH):
            members |= {f"img-{i:03d}.jpg": jpeg(i)[:-300] if i in bad.values() else jpeg(i), f"img-{i:03d}.cls": b"0"}
        write_tar(folder / f"toy-{shard:06d}.tar", members)
    source = opened(folder)
    batches = flat(make(source).updates(0, 4))
    assert {key for batch in batches for key in batch.corrupt} == set(bad)
    assert all(len(batch.index) == 12 for batch in batches)
    assert not {(i // EACH) << 32 | i % EACH for i in bad.values()} & set(indices(batches))
    assert len(set(indices(batches))) == ALL - 3


def test_nothing_but_corrupt_samples_is_refused_in_one_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"{i}.{e}": b"1" for i in range(12) for e in ("jpg", "cls")})
    with pytest.raises(UserError, match="10 samples in a row are unreadable, the last one ") as error:
        list(make(opened(tmp_path, path="x.tar", samples=12)).updates(0, 1))
    assert "\n" not in str(error.value)


# ---- where shards come from


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the first `broken` answers end in the middle."""

    broken = 0

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if type(self).broken > 0:
            type(self).broken -= 1
            outputfile.write(source.read(7000))
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    Server.broken = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_servers_and_commands_give_what_the_folder_gives(folder: Path, address: str) -> None:
    expected = flat(make(opened(folder)).updates(0, 5))
    pattern = "toy-{000000..000005}.tar"
    for source in (opened(address), opened(None, path=f"{address}/{pattern}"), opened(f"{address}/"),
                   opened(None, path=f"pipe:cat {folder}/{pattern}"), opened(None, path=f"file://{folder}/{pattern}")):
        assert len(source.urls) == SHARDS
        assert all(equal(a, b) for a, b in zip(expected, flat(make(source).updates(0, 5)), strict=True))


@pytest.mark.parametrize("name", ["a:b", "{x,y}", "{0..1}", "c#d?e", "%41", "$x", "e f"])
def test_a_folder_may_be_called_anything(tmp_path: Path, name: str) -> None:
    root = write_shards(tmp_path / name, 1, EACH)
    source = opened(root, path="toy-{000000..000000}.tar", samples=EACH)
    assert source.urls == [f"{root}/toy-000000.tar"]
    assert len(list(source.read(0))) == EACH


def test_an_opener_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard nowhere://x/a.tar cannot be opened: "):
        list(opened(None, path="nowhere://x/a.tar", samples=EACH).read(0))


def test_a_connection_that_breaks_off_is_made_again(folder: Path, address: str) -> None:
    expected = flat(make(opened(folder)).updates(0, 4))
    Server.broken = 3
    assert all(equal(a, b) for a, b in zip(expected, flat(make(opened(address)).updates(0, 4)), strict=True))
    assert Server.broken == 0
    Server.broken = 100
    with pytest.raises(UserError, match=r"shard http://127.0.0.1:\d+/toy-00000\d.tar cannot be read, 4 tries: "):
        list(make(opened(address)).updates(0, 4))


@pytest.mark.parametrize(("command", "reason"), [
    ("false", "exit code 1"),
    ("cat {}; exit 3", "exit code 3"),
    ("head -c 5000 {}", "unexpected end of data"),
    ("cat {}x 2>/dev/null", "exit code 1|empty file"),
])
def test_a_dead_command_is_named(folder: Path, command: str, reason: str) -> None:
    refuses(command.format(folder / "toy-000000.tar"), reason)


def test_a_stream_cut_between_two_samples_is_not_taken_for_whole(folder: Path) -> None:
    index = make_index(folder / "toy-000000.tar", None)
    refuses(f"head -c {int(index.offsets[3].min()) - 512} {folder / 'toy-000000.tar'}", "it ends without an end mark")


def refuses(command: str, reason: str) -> None:
    source = opened(None, path=f"pipe:{command}", samples=EACH)
    with pytest.raises(UserError, match=rf"^shard pipe:.* cannot be read, 4 tries: .*({reason})") as error:
        list(make(source, batch=8).updates(0, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_shards_are_named(folder: Path, address: str, workers: int) -> None:
    for root, reason in ((address, "HTTP Error 404: "), (folder, r"No such file or directory")):
        with pytest.raises(UserError, match=rf"absent.tar cannot be read, 4 tries: .*{reason}"):
            list(make(opened(root, path="absent.tar"), workers=workers).updates(0, 1))


@pytest.mark.parametrize(("members", "text"), [
    ({"a.txt": b"x", "a.cls": b"0"}, r"x.tar, sample a: no image member \(jpg.*; it has: txt, cls"),
    ({"a.jpg": b"x", "a.cls": b"cat"}, r"x.tar, sample a: no class number \(cls\) in b'cat'"),
    ({"a.jpg": b"x", "a.cls": b"3"}, r"x.tar, sample a: label 3, but only 3 classes are named"),
    ({}, r"there are no samples in .*x.tar"),
])
def test_strange_content_is_named(tmp_path: Path, members: dict[str, bytes], text: str) -> None:
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=text):
        list(make(opened(tmp_path, path="x.tar", samples=12)).updates(0, 1))


def test_labels_from_json_and_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": jpeg(0), "a.json": b'{"y": 2}', "b.jpg": jpeg(1)})
    source = opened(tmp_path, path="x.tar", samples=2, label="json:y")
    assert [sample.label for sample in source.read(0)] == [2, -1]
    unlabelled = opened(tmp_path, path="x.tar", samples=12, label=None)
    with pytest.raises(UserError, match=r"data\.train needs labels"):
        make(unlabelled)


# ---- what a stream cannot do


def test_evaluation_is_refused_and_so_are_too_few_shards(folder: Path) -> None:
    with pytest.raises(UserError, match=r"card 'far', split 'train', is streamed.* with card=CARD root=FOLDER"):
        open_source(stream_card(folder), "train")
    with pytest.raises(UserError, match=r"6 shards do not suffice for 7 processes; pack"):
        make(opened(folder), world=7, batch=14)


@pytest.mark.parametrize(("change", "text"), [
    ({"splits": {"train": {"path": "x.tar"}}}, "needs 'path' and 'samples' in every split"),
    ({"splits": {"train": {"samples": 3}}}, "needs 'path' and 'samples' in every split"),
    ({"in_memory": True}, "'in_memory' does not go with source kind stream"),
])
def test_cards_that_make_no_sense_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Card.model_validate(stream_card(".").model_dump() | change)


@pytest.mark.slow
def test_a_run_trains_resumes_and_measures_nothing_meanwhile(
        folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "far.yaml"
    card.write_text("name: far\nsource: {kind: stream, shuffle: 5}\nroot: $CARD/d\n"
                    f"splits:\n  train: {{path: 'toy-{{000000..000005}}.tar', samples: {ALL}}}\n")
    settings = [f"data.train.card={card}", "data.train.batch=12", "data.workers=2", "backbone.width=0.125",
                "method.crop.size=16", "train.epochs=2", "train.checkpoint_every=3", "train.keep=3", "eval.every=1",
                "optim.warmup_epochs=0", "optim.lr.base=0.1"]
    name = "demo/simclrv2-shapes"
    with pytest.raises(UserError, match=r"'knn' evaluates on the card of the training data, which is streamed"):
        read_recipe(name, [*settings, "eval.at_end=[knn]"], check_files=True)
    recipe = read_recipe(name, [*settings, "eval.at_end=[]"], check_files=True)
    run = tmp_path / "run"
    assert train(recipe, run).update == 8
    said = capsys.readouterr().out
    assert said.count("no health or kNN while training: split 'train' of 'far' is streamed") == 1
    whole = torch.load(run / "checkpoints" / "update-00000008.pt")["method"]
    for late in [*run.glob("checkpoints/update-00000008*"), *run.glob("checkpoints/update-00000006*"), run / "DONE"]:
        late.unlink()
    assert train(recipe, run).update == 8
    assert "going on from update 3" in capsys.readouterr().out
    again = torch.load(run / "checkpoints" / "update-00000008.pt")["method"]
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert np.isfinite([float(x.double().sum()) for x in whole.values()]).all()
