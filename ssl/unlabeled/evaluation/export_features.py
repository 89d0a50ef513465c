"""Embeddings of a user's own folder, as files for other programs."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from unlabeled.config.card import Card
from unlabeled.config.recipe import Precision
from unlabeled.data.sources.base import with_reason
from unlabeled.data.sources.files.lists import write_lines
from unlabeled.data.sources.open import open_source
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.passes.features import extract, network_embedder
from unlabeled.engine.restore import load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.setup import own_levels, pick_device, pick_export
from unlabeled.ops.distributed import rank
from unlabeled.ops.machine.files import refuse_unwritable, write_atomically


def export_features(run: Path, folder: Path, out: Path, *, export: str | None = None, precision: Precision = "auto",
                    batch: int = 256, workers: int = 4, max_corrupt: float = 1.0) -> int:
    """Write the features of all images below `folder` and return how many there are.

    OUT.npy: float32 [n, F]; OUT.safetensors: the same as tensor `features`. Beside it OUT.txt: the images' paths below
    `folder`, one per row as `data.lists` writes them. Gray levels beyond 8 bits are read as the run's data card says.
    Unreadable images are left out and printed. Raises UserError for bad input.
    """
    if out.suffix not in (".npy", ".safetensors"):
        raise UserError(f"out={out}: the file must end in .npy or .safetensors")
    folder = folder.expanduser()
    device = pick_device()
    chosen = pick_precision(precision, device.type)
    if rank() == 0:
        refuse_unwritable(out, "name a file elsewhere with out=FILE")
    restored = load_run(Path(run), device=device)
    card = Card.model_validate({"name": folder.name or "folder", "source": {"kind": "folder"}, "root": None,
                                "levels": own_levels(restored), "splits": {"all": {"path": "."}}})
    source = open_source(card, "all", str(folder.absolute()))
    name, network = pick_export(restored.method, export)
    found = extract({"network": network_embedder(network, device, chosen)}, source, batch=batch, workers=workers,
                    device=device, max_corrupt=max_corrupt)["network"]
    if rank() != 0:
        return len(found.x)
    keys = write_lines(source.key(int(i)) for i in found.index)
    write_atomically(out.with_suffix(".txt"), lambda file: file.write(keys))
    content = _content(found.x.numpy(), out.suffix)
    write_atomically(out, lambda file: file.write(content))
    for key in found.corrupt:
        print(f"left out, cannot be read: {with_reason(key)}")
    print(f"{out}: {len(found.x)} x {found.x.shape[1]} float32 of export {name}, update {restored.update}, computed in "
          f"{chosen}; "
          f"paths in {out.with_suffix('.txt')}")
    return len(found.x)


def _content(x: np.ndarray, suffix: str) -> bytes:
    if suffix == ".safetensors":
        return save({"features": x})
    buffer = BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()
