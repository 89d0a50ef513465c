"""The images that a run's subsets chose, kept with the run: RUN/subset-STREAM.txt, one key per line."""

from __future__ import annotations

from unlabeled.config.recipe import Recipe
from unlabeled.data.base import as_line
from unlabeled.engine.build import OpenStream
from unlabeled.engine.run_folder import RunFolder
from unlabeled.errors import UserError


def keep_chosen(folder: RunFolder, recipe: Recipe, opened: dict[str, OpenStream]) -> None:
    """Write what every subset chose, or, where the run goes on, check that it is the same; call it on rank 0.

    A complement is not written: it is what the rule leaves. Raises UserError if the data has changed since.
    """
    for name, stream in recipe.data.streams().items():
        if stream.subset is None or stream.subset.complement:
            continue
        source = opened[name].source
        keys = [as_line(source.key(i)) for i in range(len(source))]
        file = folder.path / f"subset-{name}.txt"
        if file.exists() and any(folder.checkpoints.glob("update-*.json")):
            before = file.read_text("utf-8", "surrogateescape").split("\n")[:-1]
            if before != keys:
                other = len(set(before) ^ set(keys))
                raise UserError(
                    f"data.{name}.subset chooses other images than when the run began ({other} keys differ from "
                    f"{file}): the data has changed. Bring back the data, or start anew with fresh=true"
                )
        else:
            folder.write(file.name, "".join(f"{key}\n" for key in keys))
