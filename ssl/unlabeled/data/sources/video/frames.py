"""Frames of a video file by their numbers, exactly: a first pass lists when each is shown, later ones look that up.

Arithmetic with a frame rate would be wrong for files of variable rate, of a late start, or cut without decoding.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from unlabeled.data.sources.base import CorruptSample, unreadable
from unlabeled.errors import UserError

try:
    import av
    from av.stream import Disposition
    from av.video.reformatter import VideoReformatter
except ImportError:  # an extra
    av = None  # type: ignore[assignment]

File = Callable[[], AbstractContextManager[IO[bytes]]]  # opens a video anew
_PYAV = 18  # the first version whose filters take a number of threads
_NEAR = 4  # a key frame so little ahead is not worth a seek
_PACKETS_WITHOUT_FRAME = {"vp8"}  # so that only decoding tells which frames there are
# formats that store when each frame is shown; in others it is guessed, after a seek otherwise than from the beginning
_TIMED = {"mov", "mp4", "matroska", "webm", "mpegts", "flv", "asf"}


@dataclass(frozen=True)
class Timeline:
    """When the frames of one video are shown.

    times: int64 [L], ascending, in the stream's own unit; where the file does not tell they are 0 to L - 1 and
    `counted`: such frames are only found by decoding from the first one on. keys: int64 [k], ascending: frames at which
    decoding may begin. rate: frames per second on average, 0 where unknown.
    """

    times: np.ndarray
    keys: np.ndarray
    rate: float
    counted: bool = False

    def __len__(self) -> int:
        return len(self.times)


def refuse_no_decoder() -> None:
    """Raise UserError if PyAV is not installed, or too old."""
    if av is None or int(av.__version__.split(".")[0]) < _PYAV:
        raise UserError(f"videos are read by PyAV (av>={_PYAV}), which is not here: pip install 'unlabeled[video]'")


def measure(file: File, key: str) -> Timeline:
    """List the frames of a video without decoding it, where the file tells. Raises CorruptSample if it holds none."""
    with _video(file, key) as (container, stream):
        rate, unit, codec = float(stream.average_rate or 0), float(stream.time_base or 0), stream.codec_context
        guessed = not _TIMED & set(container.format.name.split(",")) and (
            container.format.name != "avi" or codec.has_b_frames)
        if not guessed and codec.name not in _PACKETS_WITHOUT_FRAME:
            times, keys = _packets(container, stream)
            if times and keys and None not in times and len(set(times)) == len(times):
                shown = np.sort(np.array(times, np.int64))
                shown = shown[np.searchsorted(shown, min(keys)) :]  # what comes before cannot be decoded
                return Timeline(shown, np.unique(np.searchsorted(shown, keys)), _rate(shown, unit) or rate)
    with _video(file, key) as (container, stream):
        frames = [(frame.pts, frame.key_frame) for frame in _whole(container, stream)]
    if not frames:
        raise CorruptSample(key, "holds no frame that can be decoded")
    shown = np.array([-1 if time is None else time for time, _ in frames], np.int64)
    if guessed or None in dict(frames) or (np.diff(shown) <= 0).any():
        return Timeline(np.arange(len(frames)), np.zeros(1, np.int64), rate, counted=True)
    marks = np.flatnonzero([is_key for _, is_key in frames])
    return Timeline(shown, np.unique(np.append(marks, 0)), _rate(shown, unit) or rate)


def _rate(times: np.ndarray, unit: float) -> float:
    """Return frames per second from `times`, `unit` seconds each; 0 of a single frame."""
    return (len(times) - 1) / (int(times[-1] - times[0]) * unit) if len(times) > 1 and unit else 0.0


def _whole(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the frames from the first on that are whole, up to where the file is damaged."""
    try:
        yield from (frame for frame in container.decode(stream) if not frame.is_corrupt)
    except av.FFmpegError:
        return


def _packets(container: Any, stream: Any) -> tuple[list[int | None], list[int]]:
    """Return the times of all frames, in the order of the file, and those of key frames."""
    times: list[int | None] = []
    keys: list[int] = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_corrupt:
                if not packet.is_discard:
                    times.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:  # of a cut also one that is decoded, but not shown
                    keys.append(packet.pts)
    except av.FFmpegError:
        if not times:
            raise
    return times, keys  # of a file that ends too early what is there


def read(file: File, timeline: Timeline, frames: np.ndarray, key: str, *, upright: bool = True) -> np.ndarray:
    """Return frames, uint8 [..., H, W, 3], by their numbers `frames` int64 [...], each below the timeline's length.

    upright: whether they are turned as the file says. Raises CorruptSample if one cannot be decoded.
    """
    places, back = np.unique(frames, return_inverse=True)
    missing = dict.fromkeys(places.tolist())
    out: np.ndarray | None = None
    for pictures_of in (_counted,) if timeline.counted else (_sought, _counted):  # a seek may lead too far
        if missing:
            with _video(file, key) as (container, stream):
                for place, picture in pictures_of(container, stream, timeline, list(missing), upright):
                    if out is None:
                        out = np.empty((back.size, *picture.shape), np.uint8)
                    if picture.shape != out.shape[1:]:
                        raise CorruptSample(key, "its frames differ in size")
                    out[back.reshape(-1) == np.searchsorted(places, place)] = picture
                    del missing[place]
    if missing:
        raise CorruptSample(key, f"frame {min(missing)} of {len(timeline)} cannot be decoded")
    assert out is not None
    return out.reshape(*np.shape(frames), *out.shape[1:])


def _sought(container: Any, stream: Any, timeline: Timeline, places: Sequence[int], upright: bool,
            ) -> Iterator[tuple[int, np.ndarray]]:
    """Yield pictures of ascending `places`, with a seek wherever a key frame lies between two of them."""
    decoded: Iterator[Any] = container.decode(stream)
    at = 0  # the frame that is decoded next
    for place in places:
        key = int(timeline.keys[max(0, int(np.searchsorted(timeline.keys, place, "right")) - 1)])
        if key > at + _NEAR:
            container.seek(int(timeline.times[key]), stream=stream, backward=True)
            decoded = container.decode(stream)
        time = int(timeline.times[place])
        frame = _shown(decoded, time)
        if frame is None:
            return
        yield place, _picture(frame, upright)
        at = place + 1


def _shown(decoded: Iterator[Any], time: int) -> Any:
    """Return the next frame that is shown at a time; None if it does not come whole."""
    try:
        for frame in decoded:
            if frame.pts is not None and frame.pts >= time:
                return None if frame.pts > time or frame.is_corrupt else frame
    except av.FFmpegError:
        pass
    return None


def _counted(container: Any, stream: Any, timeline: Timeline, places: Sequence[int], upright: bool,
             ) -> Iterator[tuple[int, np.ndarray]]:
    """Yield pictures of ascending `places`, decoding the file from its beginning."""
    wanted = {int(timeline.times[place]): place for place in places}
    for number, frame in enumerate(_whole(container, stream)):
        place = wanted.pop(number if timeline.counted else frame.pts, None)
        if place is not None:
            yield place, _picture(frame, upright)
        if not wanted:
            return


def _picture(frame: Any, upright: bool) -> np.ndarray:
    """Return a decoded frame as uint8 [H, W, 3], turned as the file says if it is to be upright."""
    convert = _to_rgb(frame.width, frame.height, frame.format.name, threading.get_ident())
    convert.vpush(frame)
    picture: np.ndarray = convert.vpull().to_ndarray()
    quarters = round(frame.rotation / 90) % 4 if upright else 0  # counterclockwise
    return np.rot90(picture, quarters) if quarters else picture


@functools.lru_cache(8)  # making one takes as long as converting a small clip
def _to_rgb(width: int, height: int, pixels: str, thread: int) -> Any:
    """Return the filter of one thread that gives the pixels that the program ffmpeg gives, of any space and range.

    PyAV's own conversion takes the colours of interlaced, 10-bit and odd frames from other places, 50 levels off.
    """
    graph = av.filter.Graph()
    graph.threads = 1
    graph.link_nodes(graph.add_buffer(width=width, height=height, format=av.VideoFormat(pixels), time_base=Fraction(1)),
                     graph.add("scale", "flags=bicubic"), graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    return graph


@contextmanager
def _video(file: File, key: str) -> Iterator[tuple[Any, Any]]:
    """Open a file at its first video stream, decoded by this thread alone. Raises CorruptSample for what goes wrong."""
    try:
        with file() as data, av.open(data, metadata_errors="replace") as container:
            streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not streams:
                raise CorruptSample(key, "holds no video, but " + _contents(container))
            streams[0].thread_type = "NONE"
            yield container, streams[0]
    except (CorruptSample, UserError):
        raise
    except av.FFmpegError as error:
        raise CorruptSample(key, error.strerror or str(error)) from error
    except OSError as error:  # of the file itself; EINVAL: bytes that are no video name places outside of it
        if error.errno == errno.EINVAL:
            raise CorruptSample(key, "no video, or damaged") from error
        raise unreadable(key, error) from error
    except Exception as error:  # such as a stream of which the library knows no decoder
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptSample(key, f"cannot be decoded: {reason}") from error


def _contents(container: Any) -> str:
    kinds = [kind for kind, _ in itertools.groupby(sorted(stream.type for stream in container.streams))]
    return " and ".join(kinds) or "nothing"


def write(file: Path, frames: np.ndarray, rate: int) -> None:
    """Write frames, uint8 [T, H, W, 3] with even sides, as H.264 at `rate` per second, a key frame every 16.

    The same frames give the same bytes: where x264 chooses the quantiser of small frames (crf), it reads memory that it
    has not written.
    """
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "qp": "18", "g": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.thread_count = 1  # small frames are not worth the threads, which take longer to start
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def shrunk(file: File, key: str, short_side: int, *, upright: bool = True) -> bytes:
    """Return a video as H.264 in MP4 with a key frame every 16: each frame at its time, without sound.

    Frames whose shorter side is larger than `short_side` pixels are resized; sides are made even. Raises CorruptSample.
    """
    out = io.BytesIO()
    resize, target, unit = VideoReformatter(), None, Fraction(1)
    with _video(file, key) as (container, stream), av.open(out, "w", format="mp4") as copy:
        rate = stream.average_rate or Fraction(25)
        for number, frame in enumerate(_whole(container, stream)):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(_picture(frame, upright)), format="rgb24")
            if target is None:
                scale = min(1.0, short_side / min(picture.width, picture.height))
                # without mbtree the same frames give the same bytes, see `write`
                target = copy.add_stream("libx264", rate=rate, options={
                    "preset": "fast", "crf": "20", "g": "16", "x264-params": "mbtree=0"})
                target.width, target.height = (max(2, round(side * scale / 2) * 2)
                                               for side in (picture.width, picture.height))
                target.pix_fmt, target.thread_count = "yuv420p", 1
                timed, begin = frame.pts is not None, frame.pts or 0
                unit = stream.time_base or unit if timed else 1 / rate
                target.codec_context.time_base = unit
            small = resize.reformat(picture, target.width, target.height, interpolation="BICUBIC", threads=1)
            small.pts, small.time_base = (frame.pts - begin if timed else number), unit
            copy.mux(target.encode(small))
        if target is None:
            raise CorruptSample(key, "holds no frame that can be decoded")
        copy.mux(target.encode(None))
    return out.getvalue()
