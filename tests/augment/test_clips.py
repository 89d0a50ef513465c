"""Clips [n, 3, T, H, W]: one draw for all frames, contrast about the mean of the clip, blur within a frame."""

from __future__ import annotations

import pytest
import torch

from unlabeled.augment import photometric
from unlabeled.augment.color import OPERATIONS, Jitter
from unlabeled.augment.photometric import Blur, Chosen, Drawn, draw_blur, draw_chosen, draw_jitter, render
from unlabeled.ops.random import generator

CONVENTIONS = pytest.mark.parametrize("convention", ["torchvision", "simclr"])


def drawn_for(n: int, seed: int) -> Drawn:
    make = generator(seed)
    return Drawn(draw_jitter(n, 0.8, 0.8, 0.8, 0.2, 0.8, make), draw_chosen(n, 0.2, make),
                 draw_blur(n, 0.5, (0.5, 2.0), make), draw_chosen(n, 0.3, make))


def alone(name: str) -> Drawn:
    """Return one operation for a single clip."""
    if name in OPERATIONS:
        amounts = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, name: 0.17}
        return Drawn(Jitter(torch.tensor([True]), torch.arange(4)[None],
                            **{key: torch.tensor([value], dtype=torch.float64) for key, value in amounts.items()}))
    on = torch.tensor([True])
    return Drawn(**{name: Blur(on, torch.tensor([1.2], dtype=torch.float64)) if name == "blur" else Chosen(on)})


@pytest.fixture(scope="module")
def clips(natural) -> torch.Tensor:
    """Clips uint8 [6, 3, 5, 40, 32] whose frames are other images each."""
    images = torch.from_numpy(natural(30, 40, 32, seed=3)).permute(0, 3, 1, 2)
    return images.unflatten(0, (6, 5)).transpose(1, 2).contiguous()


@CONVENTIONS
@pytest.mark.parametrize("name", [*OPERATIONS, "gray", "blur", "solarize"])
@pytest.mark.parametrize("values", [10**9, 1], ids=["whole", "by frame"])
def test_equal_frames_stay_equal(clips, name, convention, values, monkeypatch):
    monkeypatch.setattr(photometric, "_FRAMES_VALUES", values)
    still = clips[:1, :, :1].expand(-1, -1, 4, -1, -1).contiguous()
    out = render(still, alone(name), convention)
    assert out.shape == still.shape and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    assert (out - still / 255).abs().max() > 0.01


@CONVENTIONS
def test_all_but_contrast_is_what_it_is_for_every_frame_alone(clips, convention):
    drawn = drawn_for(6, 0)
    drawn = drawn._replace(jitter=drawn.jitter._replace(contrast=torch.ones(6, dtype=torch.float64)))
    out = render(clips, drawn, convention, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
    for t in range(clips.shape[2]):
        frame = render(clips[:, :, t], drawn, convention, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
        close = drawn.solarize.active[:, None, None, None] & ((frame - out[:, :, t]).abs() > 1e-5)  # at the threshold
        assert ((frame - out[:, :, t]).abs() < 1e-5).logical_or(close).all() and close.float().mean() < 0.01


def test_contrast_is_about_the_mean_of_the_clip(clips):
    x, c = clips.double() / 255, 0.17
    mean = x.mean((2, 3, 4), keepdim=True)
    gray = (mean * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1, 1)).sum(1, keepdim=True)
    for convention, centre in (("simclr", mean), ("torchvision", gray)):
        out = render(clips[:1], alone("contrast"), convention)
        torch.testing.assert_close(out.double(), (centre + c * (x - centre))[:1], atol=1e-6, rtol=0)


def test_another_frame_changes_the_blur_of_that_frame_only(clips):
    other = clips.clone()
    other[:, :, 2] = 255 - other[:, :, 2]
    drawn = Drawn(blur=Blur(torch.ones(6, dtype=torch.bool), torch.full((6,), 2.0, dtype=torch.float64)))
    changed = (render(clips, drawn, "simclr", taps=9) - render(other, drawn, "simclr", taps=9)).abs()
    assert changed.amax((0, 1, 3, 4)).gt(0).tolist() == [False, False, True, False, False]


@CONVENTIONS
def test_a_few_frames_at_a_time_make_no_difference(clips, convention, monkeypatch):
    drawn = drawn_for(6, 2)
    assert drawn.jitter.active.any() and not drawn.jitter.active.all()
    whole = render(clips, drawn, convention, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    alone = torch.cat([render(clips[i : i + 1], drawn.rows(slice(i, i + 1)), convention, mean=(0.4, 0.5, 0.6),
                              std=(0.2, 0.2, 0.3)) for i in range(6)])
    assert (alone - whole).abs().max() < 1e-5
    for frames in (1, 2):  # the last part of five is shorter
        monkeypatch.setattr(photometric, "_FRAMES_VALUES", frames * clips[0, :, 0].numel())
        assert (render(clips, drawn, convention, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)) - whole).abs().max() < 1e-5


def test_two_clips_of_one_input_differ_and_the_input_stays(clips):
    twice = clips[:1].repeat(2, 1, 1, 1, 1)
    held = twice.clone()
    drawn = Drawn(draw_jitter(2, 0.8, 0.8, 0.8, 0.2, 1.0, generator(4)))
    out = render(twice, drawn, "simclr")
    assert (out[0] - out[1]).abs().max() > 0.05
    assert torch.equal(twice, held)
    floats = twice.double() / 255
    held = floats.clone()
    assert (render(floats, drawn, "simclr") - out).abs().max() < 1e-5
    assert torch.equal(floats, held)
