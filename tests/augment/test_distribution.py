"""Views against those of torchvision's own transform of PIL images, as distributions."""

from __future__ import annotations

import pytest
from benchmarks.augment import STATISTICS, many_photographs, p_values


@pytest.mark.slow
@pytest.mark.parametrize(("size", "taps"), [(32, 0), (224, 9)])
def test_views_are_distributed_as_torchvisions(size, taps):
    """Two-sample tests of 5,000 views of each side, every one of another image; 9 taps, because 23 take minutes."""
    found = p_values(many_photographs(5000, size, seed=0), many_photographs(5000, size, seed=10**9), size, taps)
    assert tuple(found) == STATISTICS
    assert min(found.values()) > 0.01, found


def test_another_strength_is_seen(monkeypatch):
    """The tests can tell: with a quarter less jitter on one side they fail."""
    from benchmarks import augment

    plain = augment.ours

    def weaker(*arguments, **named):
        with monkeypatch.context() as changed:
            changed.setitem(augment.STRENGTH, 32, 0.3)
            return plain(*arguments, **named)

    monkeypatch.setattr(augment, "ours", weaker)
    found = p_values(many_photographs(5000, 32, seed=0), many_photographs(5000, 32, seed=10**9), 32, 0)
    assert min(found.values()) < 0.01
