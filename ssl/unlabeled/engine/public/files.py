"""Files of weights from anywhere: safetensors, or pickles that hold nothing but tensors and plain containers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlabeled.errors import UserError

State = dict[str, Tensor]

CONFIG = "config"  # key of a safetensors file's metadata, with what timm writes into the file of the next name
CONFIG_FILE = "config.json"  # beside weights that timm saved
_CLASS = re.compile(r"\bGLOBAL (\S+)")  # in what torch says of a pickle that builds more than tensors


@dataclass(frozen=True)
class Weights:
    """Tensors by name, those of inner containers under dotted names, and what the file says of its network."""

    state: State
    config: Mapping[str, Any] = field(default_factory=dict)


def read_weights(file: Path) -> Weights:
    """Read a file of weights onto the CPU. Raises UserError, with the cure, if it is missing, damaged or unsafe."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(9)
        is_safe = head[8:] == b"{"  # safetensors begin with the length of a JSON header
        weights = _safetensors(file) if is_safe else Weights(dict(_tensors(_unpickled(file))))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{file} is damaged, or no safetensors file ({error}); fetch or copy it again") from error
    if not weights.state:
        raise UserError(f"{file} holds no tensors; give safetensors, or a state dict that torch.save wrote")
    return Weights(weights.state, {**_beside(file), **weights.config})


def _safetensors(file: Path) -> Weights:
    with safe_open(file, "pt") as content:
        state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        return Weights(state, _config((content.metadata() or {}).get(CONFIG)))


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch answers damage with many kinds
        unsafe = _CLASS.search(str(error))
        if unsafe is None:
            raise UserError(f"{file} is damaged, or neither a safetensors file nor one of torch.save; fetch or copy it "
                            "again") from error
        raise UserError(
            f"{file} holds {unsafe[1]} besides tensors, and such a pickle could run any code when it is read. If you "
            f"trust it, convert it{_taken(file)}:\n{_converting(file)}"
        ) from error


def _taken(file: Path) -> str:
    """Say what to do where a file has the name under which the pickle would be converted."""
    there = file.with_suffix(".safetensors")
    return f" ({there} is there already: name that, if it was made of this, else move it away first)" * there.exists()


def _converting(file: Path) -> str:
    """Return the line of Python that turns an unsafe pickle into safetensors, a whole module or nested states too.

    It overwrites nothing.
    """
    return (
        'python -c "import torch; from safetensors.torch import save; '
        f"x = torch.load('{file}', map_location='cpu', weights_only=False); "
        "x = x.state_dict() if hasattr(x, 'state_dict') else x; "
        "x = x.get('state_dict', x.get('model', x)); "
        "x = save({k: v.clone().contiguous() for k, v in x.items() if torch.is_tensor(v)}); "
        f"open('{file.with_suffix('.safetensors')}', 'xb').write(x)\""
    )


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested containers with dotted names."""
    if isinstance(content, Tensor) and prefix:
        yield prefix[:-1], content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _tensors(value, f"{prefix}{name}.")


def _beside(file: Path) -> Mapping[str, Any]:
    """Return what timm's configuration file says beside weights; nothing of any other file."""
    try:
        return _config((file.parent / CONFIG_FILE).read_text())
    except (OSError, UnicodeDecodeError):
        return {}


def _config(text: str | None) -> Mapping[str, Any]:
    """Return timm's configuration as one level; nothing of another form."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or not isinstance(value.get("architecture"), str):
        return {}
    inner = value.get("pretrained_cfg")
    return {**(inner if isinstance(inner, dict) else {}), **{k: v for k, v in value.items() if k != "pretrained_cfg"}}
