"""Clips of videos: their decoding beside PyAV alone, their colours beside those of images, and memory."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from benchmarks import measure
from benchmarks.pictures import photographs
from benchmarks.soak import GROWTH_BAR, children, resident
from unlabeled.augment import geometry, photometric
from unlabeled.config.card import Card
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.clips import ClipPair, clips_of
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.video.source import VideoSource
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.errors import UserError
from unlabeled.methods.cvrl.config import CVRLConfig
from unlabeled.methods.cvrl.method import draw_changes

QUESTION = "what do clips cost: decoded beside PyAV alone, changed beside as many images, and in memory?"
DECODING_BAR = 0.85  # clips/s over those of PyAV alone, a key frame every 16
COLOUR_BAR = 1.1  # time of a clip over that of its frames as images
HEIGHT, WIDTH, FRAMES = 256, 340, 300
PAIR = ClipPair(16, 2)
BATCH = 8  # videos
Frames = Callable[[], list[np.ndarray]]


def main(words: list[str] | None = None) -> int:
    """Measure all four."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("video", "Clips of videos", QUESTION, ["av", *([given.peer] if given.peer else [])])
    try:
        with tempfile.TemporaryDirectory() as folder:
            films = {gop: films_of(Path(folder) / str(gop), gop, given) for gop in (16, 250)}
            _leaks(report, given, films_of(Path(folder) / "small", 16, given, 112, 112))  # before all else
            _decoding(report, given, films)
            _colours(report, given)
            _memory(report, given, films[16])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments("video", QUESTION, repeats=9)
    parser.add_argument("--clips", type=int, default=10_000, help="decoded in search of leaks (default 10000)")
    parser.add_argument("--peer", choices=["torchcodec"], help="decode the same by this package, into equal frames")
    given = parser.parse_args(words)
    if given.quick:
        given.clips, given.repeats = 160, 1
    return given


def films_of(folder: Path, gop: int, given: argparse.Namespace, height: int = HEIGHT, width: int = WIDTH,
             ) -> VideoSource:
    """Write films of 10 s with a key frame every `gop`, and open them: a camera that moves over a photograph."""
    folder.mkdir()
    for number in range(1 if given.quick else 4):
        picture = photographs(1, HEIGHT + 80, WIDTH + 80, seed=number)[0]
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream: Any = container.add_stream("libx264", rate=30, options={"g": str(gop)})
            stream.height, stream.width, stream.pix_fmt, stream.thread_count = height, width, "yuv420p", 1
            for time in range(FRAMES // (4 if given.quick else 1)):
                top, left = int(40 + 39 * np.sin(time / 17)), int(40 + 39 * np.sin(time / 23 + number))
                part = np.ascontiguousarray(picture[top : top + height, left : left + width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(part, format="rgb24")))
            container.mux(stream.encode(None))
    card = Card.model_validate({"name": "films", "source": {"kind": "videofolder"}, "splits": {"train": {"path": "."}}})
    source = open_source(card, "train", str(folder))
    assert isinstance(source, VideoSource)
    return source


# ---- decoding


def _decoding(report: measure.Report, given: argparse.Namespace, films: dict[int, VideoSource]) -> None:
    rows = []
    for gop, source in films.items():
        draws = np.random.default_rng(0).random((2 if given.quick else 12, 1, PAIR.draws))
        calls = _decoders(source, draws, given.peer)
        expected = calls["unlabeled"]()
        for name, call in calls.items():
            if not all(map(np.array_equal, call(), expected)):
                raise UserError(f"{name} gives other frames")
        seconds = measure.take_turns(calls, given.repeats)
        for name, taken in seconds.items():
            share = measure.ratio(taken, seconds["unlabeled"])
            barred = gop == 16 and name.startswith("PyAV")
            rows.append([str(gop), name, f"{2 * len(draws) / measure.median(taken):.0f} ± {measure.spread(taken):.0%}",
                         f"{share:.2f}" if name != "unlabeled" else "",
                         measure.bar(share, at_least=DECODING_BAR) if barred else ""])
    report.say(f"**Two clips of {PAIR.frames} frames, stride {PAIR.stride}**, drawn as CVRL does, of H.264 files of "
               f"{WIDTH} x {HEIGHT}, opened anew for every two clips. The others are told which frames they are and "
               "when these are shown, and give the same bits; unlabeled draws them and looks that up. One pass: what "
               "both clips need of a file is decoded once, as unlabeled does.")
    report.table(["key frame every", "", "clips/s per core ± quartiles", "unlabeled's over these", "bar"], rows)


def _decoders(source: VideoSource, draws: np.ndarray, peer: str | None) -> dict[str, Frames]:
    """Return what gives the clips [2, T, H, W, 3] of every draw [1, 4], by name."""
    videos = [number % len(source) for number in range(len(draws))]
    paths = [str(source.folder / source.key(video)) for video in videos]
    lines = [source.index[video] for video in videos]
    wanted = [PAIR.places(draw, np.array([len(line)]), np.array([line.rate]))[0]
              for draw, line in zip(draws, lines, strict=True)]
    timed = [(path, places, line.times, line.keys) for path, places, line in zip(paths, wanted, lines, strict=True)]
    decoders: dict[str, Frames] = {
        "unlabeled": lambda: [clips_of(source, PAIR, draw, video) for draw, video in zip(draws, videos, strict=True)],
        "PyAV, one pass": lambda: [plain_pass(*one) for one in timed],
        "PyAV, a pass per clip": lambda: [
            np.stack([plain_pass(path, clip, *line) for clip in places]) for path, places, *line in timed],
    }
    if peer:
        try:
            from torchcodec.decoders import VideoDecoder
        except ImportError:
            raise UserError("--peer torchcodec: the package is not installed: pip install torchcodec") from None

        def decoded(path: str, places: np.ndarray) -> np.ndarray:
            frames, back = np.unique(places, return_inverse=True)
            decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
            return decoder.get_frames_at(frames.tolist()).data.numpy()[back.reshape(places.shape)]

        decoders["torchcodec"] = lambda: [decoded(path, places) for path, places, *_ in timed]
    return decoders


def plain_pass(path: str, places: np.ndarray, times: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the frames `places` of a file by as little as PyAV needs: open, seek, decode, convert on one thread."""
    frames, back = np.unique(places, return_inverse=True)
    convert, at = VideoReformatter(), 0
    out = np.empty((len(frames), HEIGHT, WIDTH, 3), np.uint8)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        decoded = container.decode(stream)
        for row, frame in enumerate(frames.tolist()):
            key = keys[keys <= frame][-1]
            if key > at + 4:
                container.seek(int(times[key]), stream=stream)
                decoded = container.decode(stream)
            shown = next(one for one in decoded if one.pts == times[frame])
            out[row] = convert.reformat(shown, format="rgb24", threads=1).to_ndarray()
            at = frame + 1
    return out[back.reshape(places.shape)]


# ---- colours


def _colours(report: measure.Report, given: argparse.Namespace) -> None:
    count, size = (1, 64) if given.quick else (BATCH, 224)
    still = torch.from_numpy(photographs(count, size, size)).permute(0, 3, 1, 2)
    clips = still[:, :, None].expand(-1, -1, PAIR.frames, -1, -1).contiguous()
    images = clips.transpose(1, 2).flatten(0, 1).contiguous()
    rows = []
    for view in (0, 1):
        drawn = draw_changes(count, CVRLConfig().augment, view, torch.Generator().manual_seed(0))
        same = photometric.Drawn(*(type(step)(*(values.repeat_interleave(PAIR.frames, 0) for values in step))
                                   for step in drawn if step is not None))
        seconds = measure.take_turns({"clips": lambda drawn=drawn: photometric.render(clips, drawn, "simclr"),
                                      "images": lambda same=same: photometric.render(images, same, "simclr")},
                                     given.repeats)
        share = measure.ratio(seconds["clips"], seconds["images"])
        rows.append([f"view {view + 1}", *(f"{1000 * measure.median(seconds[name]) / count:.0f} ± "
                                           f"{measure.spread(seconds[name]):.0%}" for name in ("clips", "images")),
                     f"{share:.2f}", measure.bar(share, at_most=COLOUR_BAR)])
    report.say(f"**CVRL's colours** of {count} clips of {PAIR.frames} frames of {size} px, and of all these frames as "
               "single images that get what is drawn for their clip")
    report.table(["", "ms per clip ± quartiles", f"ms per {PAIR.frames} images", "ratio", "bar"], rows)


# ---- memory


def stream_of(source: VideoSource, size: int, videos: int = BATCH, workers: int = 0) -> TrainStream:
    """Return the stream of CVRL's batches of `videos`, two clips each, crops of `size` pixels."""
    crop = geometry.build(CVRLConfig().crop.model_copy(update={"size": size}))
    return TrainStream(source, Stream((crop, crop), clips=PAIR), BatchShare(videos), Reading(workers), name="train",
                       seed=0, updates_per_epoch=1)


def views_of(batch: Batch) -> list[torch.Tensor]:
    """Return both views of a batch, float [b, 3, T, S, S], as CVRL makes them."""
    random, aug = torch.Generator().manual_seed(0), CVRLConfig().augment
    return [photometric.render(clips, draw_changes(len(clips), aug, view, random), "simclr")
            for view, clips in enumerate(batch.crops)]


def memory_of_a_batch(source: VideoSource, size: int, videos: int = BATCH) -> tuple[int, int, int]:
    """Return by how many bytes memory grew at most while a batch and its views were made, and the bytes of both.

    Raises OSError where the system does not measure that.
    """
    stream = stream_of(source, size, videos)

    def made(update: int) -> tuple[Batch, list[torch.Tensor]]:
        ((batch,),) = stream.updates(update, update + 1)
        return batch, views_of(batch)

    made(0)  # what is kept from the first use on
    before = resident(os.getpid())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    batch, views = made(1)
    status = Path("/proc/self/status").read_text().split()
    grown = int(status[status.index("VmHWM:") + 1]) * 1024 - round(before * 2**20)
    return grown, sum(clips.nbytes for clips in batch.crops), sum(view.nbytes for view in views)


def _memory(report: measure.Report, given: argparse.Namespace, source: VideoSource) -> None:
    size, videos = (64, 2) if given.quick else (224, 4 * BATCH)
    try:
        grown, crops, views = memory_of_a_batch(source, size, videos)
    except OSError as error:
        report.say(f"The peak of memory is not measured: {error.strerror}")
        return
    share = grown / (2 * crops + views)
    report.say(f"**Memory of a batch** of {videos} videos, two clips of {size} px each, and its views: growth of the "
               "resident memory at its highest, decoding included, beside twice the uint8 crops plus the float views")
    report.table(["uint8 crops", "float views", "highest growth", "share of 2 crops + views", "bar"],
                 [[*(f"{size / 2**20:.0f} MiB" for size in (crops, views, grown)), f"{share:.2f}",
                   measure.bar(share, at_most=1.0)]])


def _leaks(report: measure.Report, given: argparse.Namespace, source: VideoSource) -> None:
    updates, rows = max(10, given.clips // (2 * BATCH)), []
    for workers in (0, 2):
        stream = stream_of(source, 64, workers=workers)
        at: dict[int, dict[int, tuple[float, int]]] = {}
        with contextlib.closing(stream.updates(0, updates)) as running:
            for update, _ in enumerate(running):
                if update in (updates // 10, updates - 1):
                    at[update] = dict(_held(workers))
        start, end = at.values()
        for number, pid in enumerate(start):
            (memory, files), (memory_after, files_after) = start[pid], end[pid]
            growth = 100 * (memory_after / memory - 1)
            met = growth <= GROWTH_BAR and files_after <= files
            rows.append([("one process" if not workers else "training process" if not number else "loader process"),
                         f"{memory:.0f} → {memory_after:.0f} MiB, {growth:+.2f} %", f"{files} → {files_after}",
                         f"<= {GROWTH_BAR:g} %, none: {'met' if met else 'missed'}"])
    report.say(f"**Leaks** over {updates * 2 * BATCH} clips of files of 112 x 112 in one process, and as many in two "
               "loader processes: after a tenth of them and at the end")
    report.table(["", "resident memory", "open descriptors", "bar"], rows)


def _held(workers: int) -> Iterator[tuple[int, tuple[float, int]]]:
    """Yield memory in MiB and the number of open descriptors of this process and, if any, its loader processes."""
    for pid in [os.getpid(), *(children(os.getpid()) if workers else ())]:
        yield pid, (resident(pid), len(os.listdir(f"/proc/{pid}/fd")))


if __name__ == "__main__":
    sys.exit(main())
