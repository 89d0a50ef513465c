"""`backbone.options` as timm's constructors take them, and as they are written in Python."""

from __future__ import annotations

from typing import Any

from unlabeled.config.recipe import Backbone


def constructor_options(cfg: Backbone) -> dict[str, Any]:
    """Return the options as keyword arguments; lists become tuples, as timm has them."""
    return {key: _tuples(value) for key, value in cfg.options.items()}


def written(cfg: Backbone) -> str:
    """Return the options as they stand behind other arguments of a call: ', img_size=32'."""
    return "".join(f", {key}={value!r}" for key, value in constructor_options(cfg).items())


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
