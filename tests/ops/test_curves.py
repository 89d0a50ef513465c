"""Curves against closed forms, published code and other libraries."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlabeled.config.base.curve import CurveRule
from unlabeled.ops.curves import Curve, curve_of, table_rate, value_at
from unlabeled.ops.ema import rising

WARM = Curve(2.0, 0.0, 100, warmup=10)


def test_the_ends_and_the_middle_of_every_shape() -> None:
    assert (WARM.at(0), WARM.at(5), WARM.at(10)) == (0, 1, 2)
    assert WARM.at(55) == pytest.approx(1) and WARM.at(100) == WARM.at(150) == 0
    assert Curve(2.0, 0.0, 100).at(0) == 2
    constant, straight = replace(WARM, shape="constant"), replace(WARM, shape="linear", end=1.0)
    assert (constant.at(5), constant.at(99), constant.at(200)) == (1, 2, 2)
    assert (straight.at(55), straight.at(100), straight.at(150)) == (1.5, 1, 1)
    quarter = replace(WARM, shape="quarter_cosine")
    assert quarter.at(55) == pytest.approx(2 * math.cos(math.pi / 4)) and quarter.at(100) == pytest.approx(0)


def test_a_wave_that_rises() -> None:
    rising = Curve(0.992, 0.9999, 60)
    found = [rising.at(update) for update in range(61)]
    assert found[0] == 0.992 and found[60] == pytest.approx(0.9999) and found == sorted(found)


@pytest.mark.parametrize("portion", [0.875, 0.5])
def test_a_portion_of_a_wave_is_a_longer_wave_cut_off(portion: float) -> None:
    for shape in ("cosine", "quarter_cosine", "linear"):
        part = Curve(2.0, 0.1, 70, shape, portion)
        whole = Curve(2.0, 0.1, int(70 / portion), shape)
        assert [part.at(u) for u in range(71)] == pytest.approx([whole.at(u) for u in range(71)])


def test_seven_sixteenths_of_a_half_wave() -> None:
    """The decay of arXiv 2001.07685."""
    curve = Curve(0.03, 0.0, 1000, "quarter_cosine", 0.875)
    expected = [0.03 * math.cos(7 * math.pi * update / 16 / 1000) for update in range(1001)]
    assert [curve.at(update) for update in range(1001)] == pytest.approx(expected, rel=1e-12)


def test_the_three_rules_of_a_warm_up() -> None:
    rises = {rule: [replace(WARM, warmup=4, warmup_rule=rule).at(k) for k in range(5)]
             for rule in ("k/w", "(k+1)/w", "k/(w-1)")}
    assert rises["k/w"] == [0, 0.5, 1, 1.5, 2]
    assert rises["(k+1)/w"] == [0.5, 1, 1.5, 2, 2]
    assert rises["k/(w-1)"] == pytest.approx([0, 2 / 3, 4 / 3, 2, 2])
    assert replace(WARM, warmup=1, warmup_rule="k/(w-1)", warmup_start=0.5).at(0) == 0.5  # linspace of one value


def test_a_warm_up_from_a_share_of_the_peak() -> None:
    curve = replace(WARM, warmup_start=0.2)
    assert [curve.at(k) for k in (0, 5, 10)] == pytest.approx([0.2, 1.1, 2.0])


def test_a_wave_counted_from_the_start_of_the_run() -> None:
    """As `tf.keras` schedules with a warm-up do: it rises to the wave, which does not wait for it."""
    curve, plain = replace(WARM, count_from="start"), Curve(2.0, 0.0, 100)
    assert [curve.at(u) for u in range(10, 101)] == [plain.at(u) for u in range(10, 101)]
    assert [curve.at(u) for u in range(10)] == pytest.approx([u / 10 * plain.at(10) for u in range(10)])


def test_a_wave_that_moves_by_epoch() -> None:
    curve = replace(WARM, horizon=20, warmup=6, warmup_rule="(k+1)/w", hold=4)  # the warm-up ends within an epoch
    rates, plain = [curve.at(update) for update in range(20)], replace(WARM, horizon=20, warmup=6)
    assert rates[:6] == pytest.approx([2 * n / 6 for n in range(1, 7)]) and rates[6:8] == [2, 2]
    assert rates[8:] == [plain.at(8 + 4 * epoch) for epoch in range(3) for _ in range(4)]


def test_cosine_and_line_against_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    torch_s = torch.optim.lr_scheduler
    schedules = {
        "cosine": torch_s.CosineAnnealingLR(optimizer, 30, 0.01),
        "linear": torch_s.LinearLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4), 1.0, 0.025, 30),
    }
    for shape, schedule in schedules.items():
        expected = []
        for _ in range(31):
            expected.append(schedule.get_last_lr()[0])
            schedule.optimizer.step()
            schedule.step()
        curve = Curve(0.4, 0.01, 30, shape)
        np.testing.assert_allclose([curve.at(update) for update in range(31)], expected, rtol=1e-10)


def test_a_table_holds_its_last_rate() -> None:
    table = [(35, 0.1), (70, 0.02)]
    assert [table_rate(epoch, table) for epoch in (0, 34.9, 35, 69, 70, 500)] == [0.1, 0.1, 0.02, 0.02, 0.02, 0.02]


def test_every_key_of_a_rule_reaches_the_curve() -> None:
    rule = CurveRule(start=0.8, end=0.01, shape="linear", portion=0.5, every="epoch", warmup_epochs=2.5,
                     warmup_start=0.1, warmup_rule="(k+1)/w", count_from="start")  # fmt: skip
    assert curve_of(rule, 100, 4) == Curve(0.8, 0.01, 100, "linear", 0.5, 10, 0.1, "(k+1)/w", "start", 4)
    assert curve_of(CurveRule(start=0.8, shape="constant"), 100, 4) == Curve(0.8, 0.8, 100, "constant")


def test_a_number_stays_and_a_table_moves_between_epochs() -> None:
    assert [value_at(0.3, update, 10, 5) for update in (0, 9, 100)] == [0.3] * 3
    table = CurveRule(table=[(1, 0.1), (3, 0.02)])
    assert [value_at(table, update, 1, 2) for update in range(8)] == [0.1, 0.1, *[0.02] * 6]
    within = CurveRule(table=[(0.5, 0.1), (1.5, 0.05), (3, 0.02)])  # an end within an epoch holds until the next one
    assert [value_at(within, update, 1, 2) for update in range(6)] == [0.1, 0.1, 0.05, 0.05, 0.02, 0.02]


def test_the_four_curves_of_a_published_self_distillation() -> None:
    """Decay, momentum and teacher temperature as numpy makes them: half cosines, a rise by linspace."""
    k, wave = np.arange(76), 0.5 * (1 + np.cos(np.pi * np.arange(76) / 76))
    decay, momentum = CurveRule(start=0.04, end=0.4), CurveRule(start=0.992, end=0.9999)
    np.testing.assert_allclose([value_at(decay, u, 76, 5) for u in k], 0.4 + (0.04 - 0.4) * wave, rtol=1e-12)
    np.testing.assert_allclose([value_at(momentum, u, 76, 5) for u in k], 0.9999 - 0.0079 * wave, rtol=1e-12)
    assert value_at(decay, 76, 76, 5) == value_at(decay, 500, 76, 5) == 0.4
    temperature = CurveRule(start=0.07, shape="constant", warmup_epochs=3, warmup_start=0.04, warmup_rule="k/(w-1)")
    expected = [*np.linspace(0.04, 0.07, 15), *[0.07] * 20]
    np.testing.assert_allclose([value_at(temperature, u, 76, 5) for u in range(35)], expected, rtol=1e-12)


def test_a_plain_momentum_rises_to_1_by_a_half_cosine_and_a_curve_is_itself() -> None:
    found = [value_at(rising(0.99), u, 60, 7) for u in range(61)]
    np.testing.assert_allclose(found, 1 - 0.01 * (np.cos(np.pi * np.arange(61) / 60) + 1) / 2, rtol=1e-14)
    flat = CurveRule(start=0.9, shape="constant")
    assert rising(flat) is flat and value_at(rising(flat), 60, 60, 7) == 0.9
