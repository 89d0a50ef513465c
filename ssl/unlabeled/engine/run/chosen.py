"""The images that a run's subsets chose, kept with the run: RUN/subset-STREAM.txt, one key per line."""

from __future__ import annotations

from unlabeled.config.recipe import Recipe
from unlabeled.data.sources.files.lists import read_lines, write_lines
from unlabeled.data.streams import OpenStream
from unlabeled.engine.run.checkpoint import anew
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError


def keep_chosen(folder: RunFolder, recipe: Recipe, opened: dict[str, OpenStream]) -> None:
    """Write what every subset chose, or, where the run goes on, check that it is the same; call it on rank 0.

    A complement is not written: it is what the rule leaves. Raises UserError if the data has changed since, unless
    `train.allow_changed_data` is set.
    """
    goes_on = folder.goes_on() and not recipe.train.allow_changed_data
    for name, stream in recipe.data.streams().items():
        if stream.subset is None or stream.subset.complement:  # in a mix, the fingerprint holds the places
            continue
        source = opened[name].source
        keys = [source.key(i) for i in range(len(source))]
        file = folder.path / f"subset-{name}.txt"
        if file.exists() and goes_on:
            try:
                before = file.read_bytes()
            except OSError as error:
                raise UserError(f"{file} cannot be read: {error.strerror or error}; remove it, and it is written again "
                                "as the data is now") from error
            if before != write_lines(keys):
                other = len(set(read_lines(before)) ^ set(keys))
                raise UserError(
                    f"data.{name}.subset chooses other images than when the run began ({other} keys differ from "
                    f"{file}): the data has changed, or that file, which may then be removed. Bring back the data, "
                    f"{anew(folder.path)}, or go on with what is chosen now: train.allow_changed_data=true"
                )
        else:
            folder.write_bytes(file.name, write_lines(keys))
