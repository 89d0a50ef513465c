"""Plain networks of all sizes out of one elastic run: files, what each costs and, if asked for, what each reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.sizes import Size
from unlabeled.config.passes.extract import ExtractSettings
from unlabeled.config.read import read_protocol, read_run_recipe
from unlabeled.engine.exports.preparation import preparing_lines
from unlabeled.engine.exports.sizes import cost, costs, nearest, on_meta, write_network
from unlabeled.engine.method import load_elastic
from unlabeled.engine.run.sources import export_about
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.ops.machine.files import read_json, refuse_unwritable
from unlabeled.report.sizes import Row, draw_sizes, has_scores, print_sizes, short, write_csv

_PROTOCOL = "knn"


def extract(run: Path, export: str | None, settings: ExtractSettings, scoring: Sequence[str] = ()) -> list[Row]:
    """Write SIZE.safetensors and .json of the sizes that are asked for, extract.csv and, if scored, extract.png.

    A table with scores is only replaced by another one with scores.

    export: the elastic one that they are taken out of; None: the first. scoring: overrides of the protocol that scores.
    Prints the table and the lines that load a file. Raises UserError for a run that has not finished or is not elastic,
    for sizes that were not trained, and for a folder that holds one of them of another network.
    """
    if settings.knn:
        read_protocol(_PROTOCOL, scoring)
    name, whole = load_elastic(run, export)
    network = whole.build()
    assert isinstance(network, ElasticNetwork)
    sizes = choose(network, settings, whole.input.size)
    out = Path(settings.out).expanduser() if settings.out else run / "extract"
    refuse_unwritable(out / "extract.csv", "name a folder elsewhere with out=FOLDER")
    own = {**export_about(run, name), "run": str(run), "export": name}
    for size in sizes:
        _refuse_another(out / f"{size}.json", own, by_run=settings.out is not None)
    blank, rows, lines, side = on_meta(network), [], [], whole.input.size
    backbone = read_run_recipe(run).backbone
    for size in sizes:
        spent, part = cost(blank, size, side), backbone.model_copy(update={"size": str(size)})
        about = {**own, "backbone": part.model_dump(), "size": str(size), "parameters": spent.params,
                 "multiply_adds": spent.flops}
        lines.append(write_network(network.part(size), part, side, about, out / f"{size}.safetensors"))
        rows.append(Row(str(size), size.width, "-".join(map(str, size.depth)), *spent))
    if settings.knn:
        rows = [_scored(row, run, name, scoring) for row in rows]
    print_sizes(rows)
    table = out / "extract.csv"
    if any(row.scores for row in rows):
        files = f"{write_csv(rows, table).name}, {draw_sizes(rows, out / 'extract.png').name}"
    elif has_scores(table):  # of hours, maybe
        files = f"{table.name} as it was, with its scores"
    else:
        files = write_csv(rows, table).name
    others = f" (lines of the others: 'load' in their JSON files, such as {sizes[-1]}.json)" if len(sizes) > 1 else ""
    print(f"{out}: {len(sizes)} network{'s' * (len(sizes) > 1)}, {files}. To load {sizes[0]}{others}:\n\n{lines[0]}\n\n"
          f"{preparing_lines(whole.input)}\n")
    return rows


def _refuse_another(file: Path, own: Mapping[str, Any], *, by_run: bool) -> None:
    """Raise UserError if a JSON file beside a network is of another export, seed, update or, if so asked, run."""
    try:
        about = read_json(file)
    except (OSError, ValueError):  # there is none, or a killed process left half of one
        return
    keys = ["method", "export", "seed", "update", *["run"] * by_run]  # a run's folder may have moved, with all in it
    if any(about.get(key) != own.get(key) for key in keys):
        raise UserError(f"{file.parent} holds {file.stem} of another network, {about.get('export')} of "
                        f"{about.get('run')} at update {about.get('update')}; name another folder with out=FOLDER")


def choose(network: ElasticNetwork, settings: ExtractSettings, side: int) -> list[Size]:
    """Return the trained sizes that are asked for, each once; costs are of images of `side` pixels.

    Says which sizes are nearest to costs. Raises UserError for a size that was not trained.
    """
    if settings.all:
        return network.grid.sizes
    if settings.width:
        depths = [tuple(map(int, depth.split("-"))) for depth in settings.depth]
        sizes = [Size(width, depth) for width in settings.width for depth in depths]
        for size in sizes:
            network.grid.refuse_untrained(size)
        return list(dict.fromkeys(sizes))
    known, chosen = costs(on_meta(network), side), []
    for value in settings.params:
        chosen.append(nearest(known, "params", value))
        print(f"params={short(value)}: {chosen[-1]} is nearest, with {short(known[chosen[-1]].params)}")
    for value in settings.flops:
        chosen.append(nearest(known, "flops", value))
        print(f"flops={short(value)}: {chosen[-1]} is nearest, with {short(known[chosen[-1]].flops)} multiply-adds")
    return list(dict.fromkeys(chosen))


def _scored(row: Row, run: Path, name: str, scoring: Sequence[str]) -> Row:
    """Return the row with the scores of its size, trained and untrained; without labels there are none."""
    report = evaluate(_PROTOCOL, run, [f"export={name}@{row.size}", *scoring])
    numbers = [] if report is None else report.numbers
    return replace(row, scores={number.name: round(number.network["value"], 4) for number in numbers}, untrained={
        number.name: round(number.random_init["value"], 4) for number in numbers if number.random_init})
