"""What the benchmark of clips measures also holds in a small form."""

from __future__ import annotations

import argparse

import pytest
import torch

video = pytest.importorskip("benchmarks.video", reason="PyAV reads videos; it is part of the extra video")


def test_a_batch_of_clips_and_its_views_never_take_more_than_twice_the_one_plus_the_other(tmp_path):
    films = video.films_of(tmp_path / "16", 16, argparse.Namespace(quick=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        grown, crops, views = video.memory_of_a_batch(films, size=112)
    except OSError as error:
        pytest.skip(f"the peak of memory is not measured here: {error.strerror}")
    finally:
        torch.set_num_threads(threads)
    assert (crops, views) == (2 * 8 * 3 * 16 * 112 * 112, 4 * crops)
    assert grown <= 2 * crops + views
