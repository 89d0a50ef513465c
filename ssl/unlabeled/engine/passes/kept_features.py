"""Features of earlier passes, kept in the user's cache folder and found again by what they depend on.

That is the network (weights, modules, their code), its precision, crop and statistics, the images, the kind of device,
and all the code of this package and of what decodes images: another of any of these is another name of a file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

import unlabeled
from unlabeled.config.base.cache import cache_folder
from unlabeled.data.sources.base import CorruptKey, CorruptSample, Source
from unlabeled.data.sources.files.kept import keep
from unlabeled.data.sources.fingerprint import digest
from unlabeled.engine.run.progress import volume
from unlabeled.errors import UserError

Identity = Callable[[], str]  # gives a digest of all that features depend on beside the images
LIMIT = "UNLABELED_FEATURES_GB"  # environment variable: what all files together may take
_LIMIT = 10.0  # GB, unless it says otherwise
_SUFFIX = ".features"
_TORCHS_OWN = set(vars(nn.Module())) - {"training"}
# what computes networks and pixels
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "pillow-heif", "simplejpeg")


@dataclass(frozen=True)
class Rows:
    """Features float32 [n, F] of the images at the places int64 [n] of a split, and keys of those left out."""

    x: Tensor
    index: Tensor
    corrupt: list[str] = field(default_factory=list)


class KeptFeatures:
    """The files of kept features, and what is said of them; nothing that goes wrong here ends an evaluation.

    Only rank 0 reads and writes them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.folder, self.limit = cache_folder("features"), _limit()
        self.written: list[int] = []  # bytes of new files
        self._refused = False  # which is said once

    def find(self, identities: Mapping[str, Identity], source: Source) -> dict[str, Rows]:
        """Return by name what is kept of `source` for these networks."""
        try:
            kept = {name: self._read(identity, source) for name, identity in identities.items()}
        except Exception:  # whatever it is, the features can be computed
            return {}
        return {name: rows for name, rows in kept.items() if rows is not None}

    def keep(self, identity: Identity, source: Source, rows: Rows) -> None:
        """Write features, if there is room; the files unused for longest make place."""
        size = rows.x.nbytes + rows.index.nbytes
        refused: Exception | None
        try:
            place = self._place(identity, source)
            if place is None:
                return
            if size > self.limit:
                raise OSError(0, f"{volume(size)} are more than {LIMIT}={self.limit / 1e9:g} allows")
            place.parent.mkdir(0o700, parents=True, exist_ok=True)  # they tell something of the images
            if shutil.disk_usage(place.parent).free < 2 * size:
                raise OSError(0, f"the disk has less room than twice their {volume(size)}")
            self._make_room(place, size)
            refused = keep([place], functools.partial(_fill, rows=rows))
        except Exception as error:  # whatever it is, the features are worth more
            refused = error
        if refused is None:
            self.written.append(size)
        elif not self._refused:
            self._refused = True
            print(f"features of '{source.split}' of '{source.name}' are not kept in {self.folder}: "
                  f"{getattr(refused, 'strerror', None) or refused}", flush=True)

    def report(self) -> None:
        """Say what was written since the last report."""
        if self.written:
            print(f"features kept for other protocols: {volume(sum(self.written))} in {self.folder} "
                  "(keep_features=false keeps none)", flush=True)
        self.written = []

    def _place(self, identity: Identity, source: Source) -> Path | None:
        images = source.images_digest if self.folder is not None and self.limit > 0 else None
        if self.folder is None or images is None:
            return None
        return self.folder / (digest(json.dumps([identity(), images, self.device.type, _code()]).encode()) + _SUFFIX)

    def _read(self, identity: Identity, source: Source) -> Rows | None:
        place = self._place(identity, source)
        rows = None if place is None else _read(place)
        if place is None or rows is None or _readable_again(source, rows.index):
            return None
        with contextlib.suppress(OSError):  # somebody else's, or on a read-only disk
            os.utime(place)  # the time of its last use
        return rows

    def _make_room(self, place: Path, size: int) -> None:
        """Remove the files that were not used for longest until `size` bytes fit in the limit."""
        files = []
        for path in place.parent.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except OSError:  # another process was faster
                continue
            if path != place:
                files.append((stat.st_mtime, stat.st_size, path))
        total, dropped, newest = size + sum(each for _, each, _ in files), [], 0.0
        for used, each, path in sorted(files):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            total, newest = total - each, used
            dropped.append(each)
        if dropped:
            day = time.strftime("%Y-%m-%d", time.localtime(newest))
            print(f"{volume(sum(dropped))} of kept features that were last used until {day} made room for new "
                  f"ones ({LIMIT}={self.limit / 1e9:g})", flush=True)


def network_digest(network: nn.Module, *more: str) -> str:
    """Return a hash of all that a network's output depends on: modules, their settings and code, and weights.

    more: what else is to be told apart.
    """
    modules = []
    for name, module in network.named_modules():
        settings = sorted((key, _plain(value)) for key, value in vars(module).items() if key not in _TORCHS_OWN)
        code = _qualified(type(module)), _file_digest(_home(type(module)))
        modules.append([name, *code, module.extra_repr(), settings])
    weights = [[name, str(tensor.dtype), list(tensor.shape), _bytes_digest(tensor)]
               for name, tensor in (*network.named_parameters(), *network.named_buffers())]
    return digest(json.dumps([modules, weights, more]).encode())


def _bytes_digest(tensor: Tensor) -> str:
    return digest(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _plain(value: Any) -> Any:
    """Return a setting of a module in words that are the same in every process; of what holds more, its kind."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return sorted([str(key), json.dumps(_plain(each))] for key, each in value.items())
    if isinstance(value, Tensor | np.ndarray):
        return _bytes_digest(torch.as_tensor(value))
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, torch.dtype | torch.Size):
        return str(value)
    return _qualified(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _home(kind: type[nn.Module]) -> str:
    """Return the file in which a class stands, which may be a user's own."""
    try:
        return inspect.getfile(kind)
    except (OSError, TypeError):  # made at run time
        return ""


@functools.cache
def _file_digest(path: str) -> str:
    return digest(Path(path).read_bytes()) if os.path.isfile(path) else ""


@functools.cache
def _code() -> str:
    """Return a hash of the code of this package, and versions of the others that features depend on."""
    home = Path(unlabeled.__file__).parent
    files = [path.read_bytes() for path in sorted(home.rglob("*.py"))]
    versions = [_version(name) for name in _PACKAGES]
    return digest(*files, json.dumps(versions).encode())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # an extra
        return None


def _limit() -> float:
    """Return the bytes that all files together may take. Raises UserError for what is no number."""
    text = os.environ.get(LIMIT, "")
    try:
        limit = 1e9 * float(text or _LIMIT)
    except ValueError:
        limit = -1.0
    if not limit >= 0:  # nor of what is no number
        raise UserError(f"{LIMIT}={text}: a number of GB is needed, such as {LIMIT}=20; 0 keeps none")
    return limit


def _fill(file: IO[bytes], *, rows: Rows) -> None:
    x, index = rows.x.numpy(), rows.index.numpy()
    corrupt = [[key, getattr(key, "reason", None)] for key in rows.corrupt]
    head = {"shape": x.shape, "digest": digest(x, index), "corrupt": corrupt}
    file.write(json.dumps(head).encode() + b"\n")
    file.write(np.ascontiguousarray(x).data)
    file.write(np.ascontiguousarray(index).data)


def _read(place: Path) -> Rows | None:
    """Return what a file holds; None if there is none, or it is damaged."""
    try:
        with open(place, "rb") as file:
            line = file.readline()
            head = json.loads(line)
            n, width = head["shape"]
            if place.stat().st_size != len(line) + n * (4 * width + 8):
                return None
            x, index = np.empty((n, width), np.float32), np.empty(n, np.int64)
            for part in (x, index):
                file.readinto(part.data.cast("B"))
        corrupt = [key if reason is None else CorruptKey(key, reason) for key, reason in head["corrupt"]]
        if digest(x, index) != head["digest"]:
            return None
        return Rows(torch.from_numpy(x), torch.from_numpy(index), corrupt)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _readable_again(source: Source, index: Tensor) -> bool:
    """Return whether an image that was left out can be read now: a disk or a permission was mended."""
    missing = np.setdiff1d(np.arange(len(source)), index.numpy())
    for each in missing.tolist():
        try:
            source.image(each)
        except CorruptSample:
            continue
        return True
    return False

