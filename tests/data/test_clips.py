"""Clips as samples: how they are drawn, cut, replaced and repeated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.toys import Corner, Numbered, Whole

from unlabeled.data.batch import Batch, Stream
from unlabeled.data.clips import ClipPair, EvenClips, RandomClip, even_starts, frame_indices
from unlabeled.data.crops import ClipCrop, cut
from unlabeled.data.evaluation import ImageMaker, eval_batches
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.engine.run.preview import views_png
from unlabeled.errors import UserError

PAIR = ClipPair(frames=4, stride=2)


class NumberedVideos(Source):
    """n videos of 8 x 8, of 30 to 36 frames, made from their number; of some a frame cannot be read."""

    has_clips = True

    def __init__(self, n: int, bad: Sequence[int] = ()) -> None:
        super().__init__("numbered", "train")
        self.n, self.bad = n, frozenset(bad)
        self.labels = np.arange(n, dtype=np.int64) % 7
        self.unreadable = {i: "holds no video" for i in bad if i % 2}

    def __len__(self) -> int:
        return self.n

    def key(self, index: int) -> str:
        """Return the number."""
        return f"video-{index}"

    def length(self, index: int) -> int:
        """Return the number of frames."""
        return 30 + index % 7

    def rate(self, index: int) -> float:
        """Return the frames per second."""
        return 25.0

    def whole(self, index: int) -> np.ndarray:
        """Return all frames."""
        return np.random.default_rng(index).integers(0, 256, (self.length(index), 8, 8, 3), np.uint8)

    def clip(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Return frames."""
        if index in self.bad:
            raise CorruptSample(self.key(index), "broken")
        return self.whole(index)[frames]


def make(source: Source, rank: int = 0, world: int = 1, accum: int = 1, workers: int = 0, seed: int = 3,
         ) -> TrainStream:
    stream = Stream((Corner(), Corner()), labels=True, clips=PAIR)
    return TrainStream(source, stream, BatchShare(12, rank, world, accum), Reading(workers), name="train", seed=seed,
                       updates_per_epoch=len(source) // 12)


def equal(a: Batch, b: Batch) -> bool:
    tensors = zip([*a.crops, *a.boxes, a.index, a.label], [*b.crops, *b.boxes, b.index, b.label], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and a.corrupt == b.corrupt


# ---- which frames


def test_frames_of_a_clip_wrap_around_the_end_of_the_video() -> None:
    assert frame_indices(17, 4, 2, 20).tolist() == [17, 19, 1, 3]
    assert frame_indices(0, 5, 1.5, 100).tolist() == [0, 1, 3, 4, 6]
    assert even_starts(250, 32, 2, 10).tolist() == [0, 20, 41, 62, 82, 103, 124, 144, 165, 186]
    assert even_starts(64, 32, 2, 10).tolist() == [0] * 10
    assert even_starts(100, 10, 2, 1).tolist() == [40]


@pytest.mark.parametrize("law", ["decreasing", "uniform", "increasing"])
@pytest.mark.parametrize("length", [7, 8, 9, 20, 200])
def test_a_pair_keeps_inside_the_video_where_there_is_room(length: int, law: str) -> None:
    pair = ClipPair(4, 2, 1.0, law)
    places = pair.places(np.random.default_rng(0).random((500, 4)), np.full(500, length), np.zeros(500))
    assert places.shape == (500, 2, 4)
    assert places.min() >= 0 and places.max() < length
    if length > 6:
        assert (np.diff(places, axis=2) == 2).all()
        assert set(places[:, 0, 0].tolist()) == set(places[:, 1, 0].tolist()) or length == 200
    if length > 9:
        earlier = (places[:, 0, 0] < places[:, 1, 0]).sum() / (places[:, 0, 0] != places[:, 1, 0]).sum()
        assert 0.4 < earlier < 0.6


def test_clips_per_second_take_more_frames_of_a_faster_video() -> None:
    for kind in (ClipPair(4, 3, per_second=10), RandomClip(4, 3, per_second=10), EvenClips(4, 3, per_second=10)):
        places = kind.places(np.full((3, kind.draws), 0.4), np.full(3, 300), np.array([25.0, 60.0, 0.0]))
        assert [(clip - clip[0]).tolist() for clip in places[:, 0]] == [[0, 2, 5, 7], [0, 6, 12, 18], [0, 3, 6, 9]]


def test_a_random_clip_starts_wherever_it_has_room() -> None:
    places = RandomClip(4, 2).places(np.linspace(0, 0.999, 50)[:, None], np.full(50, 10), np.zeros(50))
    assert set(places[:, 0, 0].tolist()) == {0, 1, 2, 3}


# ---- batches


def test_a_batch_holds_frames_that_one_draw_cut_from_the_video() -> None:
    source = NumberedVideos(30)
    ((batch,),) = make(source).updates(0, 1)
    for number in (0, 1):
        assert batch.crops[number].dtype == torch.uint8
        assert batch.crops[number].shape == (12, 3, 4, 4, 4)
        assert batch.boxes[number].shape == (12, 7)
        for crop, box, index in zip(batch.crops[number], batch.boxes[number], batch.index.tolist(), strict=True):
            top, left, _, _, height, width, flip = box.int().tolist()
            assert (height, width) == (8, 8)
            video = torch.from_numpy(source.whole(index)[:, top : top + 4, left : left + 4]).permute(3, 0, 1, 2)
            video = video.flip(3) if flip else video
            starts = [start for start in range(len(source.whole(index)) - 6)
                      if torch.equal(crop, video[:, start : start + 7 : 2])]
            assert len(starts) == 1
    assert torch.equal(batch.label, batch.index % 7)
    assert not torch.equal(batch.crops[0], batch.crops[1])


@pytest.mark.parametrize(("world", "accum"), [(2, 1), (3, 2), (4, 1)])
def test_processes_and_micro_batches_change_nothing(world: int, accum: int) -> None:
    source = NumberedVideos(40, bad=(4, 5, 17))
    alone = [micro for (micro,) in make(source).updates(0, 5)]
    shares = [list(make(source, rank, world, accum).updates(0, 5)) for rank in range(world)]
    for update, whole in enumerate(alone):
        parts = [share[update][micro] for micro in range(accum) for share in shares]
        for number in (0, 1):
            assert torch.equal(whole.crops[number], torch.cat([part.crops[number] for part in parts]))
        assert whole.corrupt == [key for part in parts for key in part.corrupt]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_mid_epoch_repeats_the_rest(workers: int) -> None:
    source = NumberedVideos(40, bad=(4, 5, 17))
    straight = [micro for (micro,) in make(source).updates(0, 7)]
    stream = make(source, workers=workers)
    rest = [micro for (micro,) in stream.updates(4, 7)]
    stream.close()
    assert all(equal(a, b) for a, b in zip(straight[4:], rest, strict=True))


def test_unreadable_videos_are_replaced_and_named() -> None:
    bad = tuple(range(0, 40, 3))
    keys = [key for (batch,) in make(NumberedVideos(40, bad)).updates(0, 6) for key in batch.corrupt]
    assert {f"video-{i}" for i in bad} == set(keys)
    for (batch,) in make(NumberedVideos(40, bad)).updates(0, 6):
        assert len(batch.index) == 12 and not set(bad) & set(batch.index.tolist())


def test_a_position_has_other_clips_in_every_epoch() -> None:
    stream = TrainStream(NumberedVideos(1), Stream((Whole(), Whole()), clips=PAIR), BatchShare(12), name="train",
                         seed=3, updates_per_epoch=1)
    first, second = ([crop for crop in batch.crops[0]] for (batch,) in stream.updates(0, 2))
    assert len({crop.numpy().tobytes() for crop in first + second}) > 12


@pytest.mark.parametrize("in_memory", [False, True])
def test_images_are_no_clips(in_memory: bool) -> None:
    with pytest.raises(UserError, match=r"'numbered' holds images, and videos are needed: use a card such as moving-"):
        make(Numbered(30, in_memory=in_memory))


# ---- evaluation and previews


def test_every_clip_of_a_video_is_cut_by_every_geometry() -> None:
    source, clips = NumberedVideos(5, bad=(2, 3)), EvenClips(4, 2, 3)
    batch = ImageMaker(source, [ClipCrop(Whole(), clips), ClipCrop(Whole(), clips)]).make(np.arange(5))
    assert batch.index.tolist() == [0, 1, 4]
    assert batch.corrupt == ["video-3", "video-2"]
    assert [tuple(crop.shape) for crop in batch.crops] == [(3, 3, 4, 4, 4)] * 6
    for row, index in enumerate(batch.index.tolist()):
        for number, start in enumerate(even_starts(source.length(index), 4, 2, 3).tolist()):
            frames = source.whole(index)[start : start + 7 : 2, :4, :4].transpose(3, 0, 1, 2)
            assert np.array_equal(batch.crops[number][row].numpy(), frames)
            assert np.array_equal(batch.crops[3 + number][row].numpy(), frames)
    parts = list(eval_batches(source, ClipCrop(Whole(), EvenClips(4, 2)), 0, 1, 2))
    assert torch.cat([part.index for part in parts]).tolist() == [0, 1, 4]
    (empty,) = eval_batches(NumberedVideos(2, bad=(0, 1)), ClipCrop(Whole(), EvenClips(4, 2)), 0, 1, 2)
    assert empty.crops[0].shape == (0, 3, 4, 4, 4)
    with pytest.raises(UserError, match="holds images, and videos are needed"):
        ImageMaker(Numbered(3), [ClipCrop(Whole(), clips)])


def test_a_clip_of_an_array_is_cut_as_each_of_its_frames() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    draws = np.full((2, 3), 0.9)
    one, box = cut(ClipCrop(Corner(), EvenClips(4)), [clip, clip], draws)
    each = [cut(Corner(), [frame], draws[:1])[0][0] for frame in clip]
    assert torch.equal(one[1], torch.stack(each, 1)) and len(box) == 2
    batch = torch.from_numpy(np.stack([clip, clip])).permute(0, 4, 1, 2, 3)
    assert torch.equal(ClipCrop(Corner(), EvenClips(4)).apply_batch(batch, box.numpy()), one)


def test_previews_of_clips_are_strips_of_their_frames(tmp_path: Path) -> None:
    from PIL import Image

    clips = torch.rand(6, 3, 5, 32, 32)
    (tmp_path / "views.png").write_bytes(views_png({"one": clips, "two": clips.flip(2), "aside": torch.rand(6, 7)}))
    picture = np.asarray(Image.open(tmp_path / "views.png"))
    assert picture.shape[:2] == (8 * 98 + 2, 5 * 98 + 2)
    tiles = [picture[2 + 98 * row : 98 + 98 * row, 2 + 98 * column : 98 + 98 * column]
             for row in range(2) for column in range(5)]
    assert [np.array_equal(tile, other) for tile, other in zip(tiles[:5], tiles[:4:-1], strict=True)] == [True] * 5
