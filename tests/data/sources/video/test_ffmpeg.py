"""Frames of every kind of file beside those that the program ffmpeg gives of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.data.toy_videos import KINDS, coloured, opener, timeline, write_kind, write_video

from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.video.frames import read

FFMPEG = shutil.which("ffmpeg")
pytestmark = pytest.mark.skipif(FFMPEG is None, reason="the program ffmpeg is not here (.ci/run installs it as root)")
ODD = {"vp9.webm": (31, 45), "mpeg4.avi": (31, 45), "mpeg4-b.avi": (31, 48), "motion.avi": (32, 45)}


def ffmpeg(*words: str | Path) -> bytes:
    """Run it, and return what it writes to its output; what it says of damaged files is nothing to see."""
    return subprocess.run([str(FFMPEG), "-v", "quiet", "-y", *words], capture_output=True, check=True).stdout


def plain(path: Path, height: int = 32, width: int = 48) -> np.ndarray:
    """Return all frames, uint8 [L, H, W, 3], that ffmpeg gives, none of them doubled or dropped for an even rate."""
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def compare(path: Path, expected: np.ndarray) -> None:
    """Assert that the frames of a file are these, within two grey levels."""
    line = timeline(path)
    assert len(line) == len(expected)
    got = read(opener(path), line, np.arange(len(line)), path.name)
    assert np.abs(got.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("name", KINDS)
def test_frames_of_every_kind_are_those_of_ffmpeg(name: str, tmp_path: Path) -> None:
    path = write_kind(tmp_path / name, coloured(60))
    compare(path, plain(path))


@pytest.mark.parametrize("name", ODD)
def test_frames_of_odd_sides_are_those_of_ffmpeg(name: str, tmp_path: Path) -> None:
    path = write_kind(tmp_path / name, coloured(12, *ODD[name]))
    compare(path, plain(path, *ODD[name]))


@pytest.mark.parametrize("name", ["one-gop.mp4", "b-frames.mkv", "mpeg4.avi", "vp9.webm", "stream.ts", "program.mpg"])
def test_a_single_frame_is_that_of_ffmpeg(name: str, tmp_path: Path) -> None:
    path = write_kind(tmp_path / name, coloured(1))
    compare(path, plain(path))


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_turned_frames_are_those_of_ffmpeg(rotation: int, tmp_path: Path) -> None:
    """As of a phone that is held upright: 60 frames per second, with sound."""
    silent = write_video(tmp_path / "silent.mp4", coloured(30), rotation=rotation, rate=60)
    phone = tmp_path / "phone.mp4"
    ffmpeg("-i", silent, "-f", "lavfi", "-i", "sine=duration=0.5", "-c:v", "copy", "-c:a", "aac", phone)
    compare(phone, plain(phone, *((48, 32) if rotation % 180 else (32, 48))))
    assert timeline(phone).rate == pytest.approx(60)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.ts"])
def test_frames_of_a_part_cut_without_decoding_are_those_of_ffmpeg(name: str, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", coloured(60), g="12", bf="2")
    ffmpeg("-ss", "0.5", "-i", whole, "-c", "copy", tmp_path / name)
    expected = plain(tmp_path / name)
    assert 40 < len(expected) < 60
    compare(tmp_path / name, expected)


@pytest.mark.parametrize("name", ["one-gop.mp4", "short-gop.mp4", "stream.ts", "b-frames.mkv", "mpeg4.avi", "old.flv"])
def test_a_truncated_file_gives_frames_of_ffmpeg_or_a_reason(name: str, tmp_path: Path) -> None:
    path = write_kind(tmp_path / name, coloured(60))
    if name == "short-gop.mp4":  # with its index in front, as of the net; else it is behind, and lost
        ffmpeg("-i", path, "-c", "copy", "-movflags", "+faststart", tmp_path / "net.mp4")
        path = tmp_path / "net.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    if name == "one-gop.mp4":
        with pytest.raises(CorruptSample, match="Invalid data"):
            timeline(path)
        return
    line, expected = timeline(path), plain(path)
    assert 20 < len(line) <= 60
    same = 0
    for number in range(len(line)):
        try:
            picture = read(opener(path), line, np.array([number]), path.name)[0]
        except CorruptSample as error:
            assert f"frame {number} of {len(line)} cannot be decoded" in str(error)
            continue
        assert np.abs(picture.astype(int) - expected[number]).max() <= 2
        same += 1
    assert same >= len(line) - 2, "only what the end cuts through is lost"
