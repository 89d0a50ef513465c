"""The kinds of rendered objects: an outline and a family of texture each.

An outline is a signed distance (negative inside) and a texture a share of the second colour in [0, 1], both of points
x, y [n, H, W] in the object's own frame, where the object fills about the unit disc. A texture has two free numbers in
[0, 1] per object, a and b [n, 1, 1]. Distances: Quilez, iquilezles.org/articles/distfunctions2d (exact or bounds).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Points = np.ndarray
Outline = Callable[[Points, Points], np.ndarray]
Texture = Callable[[Points, Points, np.ndarray, np.ndarray], np.ndarray]

_TURN = np.float32(2 * np.pi)


def _disc(x: Points, y: Points) -> np.ndarray:
    return np.hypot(x, y) - np.float32(0.9)


def _square(x: Points, y: Points) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.78)


def _triangle(x: Points, y: Points) -> np.ndarray:
    return np.maximum(np.abs(x) * np.float32(0.866) + y * np.float32(0.5), -y) - np.float32(0.52)


def _star(x: Points, y: Points) -> np.ndarray:
    radius = np.hypot(x, y)
    fifth = _TURN / 5
    angle = np.abs(np.mod(np.arctan2(x, y) + fifth / 2, fifth) - fifth / 2)
    # the edge from the tip (0, 1) to the notch at 36 degrees and radius 0.45
    tip, notch = np.array([0, 1.05]), 0.47 * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)])
    normal = np.array([tip[1] - notch[1], notch[0] - tip[0]])
    normal = (normal / np.hypot(*normal)).astype(np.float32)
    return radius * (np.sin(angle) * normal[0] + np.cos(angle) * normal[1]) - np.float32(tip @ normal)


def _ring(x: Points, y: Points) -> np.ndarray:
    return np.abs(np.hypot(x, y) - np.float32(0.68)) - np.float32(0.26)


def _cross(x: Points, y: Points) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - np.float32(0.92), np.minimum(x, y) - np.float32(0.32))


def _heart(x: Points, y: Points) -> np.ndarray:
    x, y = np.abs(x) / np.float32(1.6), (np.float32(0.9) - y) / np.float32(1.6)
    lobe = np.hypot(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(0.35355)
    along = np.maximum(x + y, 0) / 2
    flank = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, flank) * np.float32(1.6)


def _moon(x: Points, y: Points) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - np.float32(0.95), np.float32(0.72) - np.hypot(x - np.float32(0.5), y))


def _hexagon(x: Points, y: Points) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(x * np.float32(0.866) + y * np.float32(0.5), y) - np.float32(0.8)


def _ellipse(x: Points, y: Points) -> np.ndarray:
    return (np.hypot(x, y / np.float32(0.55)) - np.float32(0.98)) * np.float32(0.6)


def _edge(wave: np.ndarray) -> np.ndarray:
    """Sharpen a wave in [-1, 1] to two tones with soft borders."""
    return np.clip(np.float32(2.5) * wave + np.float32(0.5), 0, 1)


def _stripes(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _edge(np.sin(y * (7 + 5 * a) + b * _TURN))


def _checker(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = 5 + 3 * a
    return _edge(np.float32(1.5) * np.sin(x * scale + b * _TURN) * np.sin(y * scale + b * 5))


def _dots(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = 6 + 4 * a
    return _edge(np.cos(x * scale + b * _TURN) + np.cos(y * scale + b * 5) - np.float32(0.7))


def _rays(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _edge(np.sin(np.arctan2(y, x) * np.floor(5 + 5 * a) + b * _TURN))


def _zigzag(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = 7 + 4 * a
    teeth = np.abs(np.mod(x * 2 + b, 1) - np.float32(0.5))
    return _edge(np.sin((y + teeth) * scale + b * _TURN))


def _grid(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale = 4 + 3 * a
    lines = np.maximum(np.abs(np.sin(x * scale + b * 3)), np.abs(np.sin(y * scale + b * 5)))
    return _edge((lines - np.float32(0.88)) * 4)


def _circles(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _edge(np.sin(np.hypot(x, y) * (9 + 5 * a) + b * _TURN))


def _fade(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(np.float32(0.5) + (y * np.cos(a) + x * np.sin(a)) * (np.float32(0.55) + b * np.float32(0.3)), 0, 1)


def _clouds(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    scale, phase = 4 + 2 * a, b * _TURN
    warped = x + np.float32(0.35) * np.sin(y * scale + phase)
    return _edge(np.float32(0.6) * (np.sin(warped * scale + 2 * phase) + np.sin((y - warped) * scale * 1.3 + phase)))


def _waves(x: Points, y: Points, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.float32(0.5) + np.float32(0.5) * np.sin(
        x * (10 + 6 * a) + np.float32(1.6) * np.sin(y * 6 + b * _TURN))


KINDS: dict[str, tuple[Outline, Texture]] = {
    "disc": (_disc, _stripes), "square": (_square, _checker), "triangle": (_triangle, _dots), "star": (_star, _rays),
    "ring": (_ring, _zigzag), "cross": (_cross, _grid), "heart": (_heart, _circles), "moon": (_moon, _fade),
    "hexagon": (_hexagon, _clouds), "ellipse": (_ellipse, _waves),
}
