"""From YAML and `key=value` overrides to typed configuration: all errors at once, each with its place.

Values go through the strict JSON mode of pydantic: a list may become a tuple, but text never becomes a number or a
truth value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from unlabeled.config.base.objects import is_dotted, load_object, settings_of
from unlabeled.config.batches import idle_blocks, small_batches
from unlabeled.config.card import Card
from unlabeled.config.consent.named import (
    adopt_card,
    adopt_file,
    refuse_backbone,
    refuse_card,
    refuse_kept,
    refuse_recipe,
)
from unlabeled.config.files import find, shown
from unlabeled.config.protocols.all import AnyProtocol
from unlabeled.config.protocols.vectors import Protocol, Trained
from unlabeled.config.recipe import Backbone, MethodConfig, Recipe
from unlabeled.config.sources import Public, copy_of, public, sized, split_source
from unlabeled.config.tables import BACKBONE_OPTIONS, BACKBONES, METHODS
from unlabeled.config.yaml import former
from unlabeled.config.yaml.explain import Problem, Roots, explain, show
from unlabeled.config.yaml.lines import Key, dotted, parse, parse_file
from unlabeled.errors import UserError, did_you_mean, nearest

T = TypeVar("T")


@dataclass
class Values:
    """Plain values of a file with overrides, and for every key path where it was said: (order, place)."""

    where: str
    value: dict[str, Any]
    places: dict[Key, tuple[int, str]]
    overrides: dict[Key, str] = field(default_factory=dict)

    def place(self, path: Key) -> tuple[int, str]:
        """Return where `path`, or the block that should hold it, stands."""
        block = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.places)
        order, text = self.places[block]
        below = [said for key, said in self.overrides.items() if len(key) > len(path) and key[: len(path)] == path]
        if block == path and below and text not in below:  # a rule of a whole block, part of which was overridden
            return order, f"{text} with {below[-1]}"
        return order, text

    def override(self, text: str, order: int) -> None:
        """Apply one `key=value`; the value is YAML. Raises UserError."""
        name, equals, written = text.partition("=")
        path: Key = tuple(name.strip().split("."))
        if not equals or not all(path):
            raise UserError(f"'{text}' is not of the form key=value, such as optim.weight_decay=1e-6")
        title = f"override '{text}'"
        value = parse(written, title, numbered=False).value
        block = self.value
        for depth, part in enumerate(path[:-1], 1):
            below = block.get(str(part))
            if below is None:
                below = block[str(part)] = {}
                self.places[path[:depth]] = (order, title)
            if not isinstance(below, dict):
                raise UserError(f"{title}: '{dotted(path[:depth])}' is {show(below)}, not a block of keys")
            block = below
        block[str(path[-1])] = value
        for old in [key for key in self.places if key[: len(path)] == path]:
            del self.places[old]
        self.places[path] = (order, title)
        self.overrides[path] = title


def read_values(path: Path, overrides: Sequence[str] = (), shorthand: str | None = None) -> Values:
    """Read a file and apply overrides; `shorthand` is a block that may be given by its name alone.

    Raises UserError if the file is no YAML, or with every override that cannot be applied.
    """
    where = shown(path)
    document = parse_file(path, where)
    if not isinstance(document.value, dict):
        found = "is empty" if document.value is None else f"needs a block of keys, given {show(document.value)}"
        raise UserError(f"{where}:1: the file {found}")
    places = {key: (line, f"{where}:{line}") for key, line in document.lines.items()}
    values = Values(where, document.value, places)
    problems = []
    for order, text in enumerate(overrides):
        _expand(values, shorthand)
        try:
            values.override(text, 1_000_000 + order)
        except UserError as error:
            problems.append(str(error))
    _expand(values, shorthand)
    if problems:
        raise UserError("\n".join(problems))
    return values


@overload
def read_file(path: Path, model: type[T], overrides: Sequence[str] = ()) -> T: ...


@overload
def read_file(path: Path, model: Any, overrides: Sequence[str] = ()) -> Any: ...


def read_file(path: Path, model: Any, overrides: Sequence[str] = ()) -> Any:
    """Read a YAML file as `model` (a pydantic model, or a union of them). Raises UserError with all errors."""
    values = read_values(path, overrides)
    result, problems = _validate(values.value, model, (), {(): model}, folder=str(path.resolve().parent))
    if result is None or problems:
        raise UserError(_report(values, problems))
    return result


def read_settings(command: str, model: type[T], settings: Sequence[str]) -> T:
    """Read the `key=value` settings of a command as `model`. Raises UserError with all errors."""
    values = Values(command, {}, {(): (0, command)})
    for order, text in enumerate(settings):
        values.override(text, order)
    adopt_file(command, values.value)
    result, problems = _validate(values.value, model, (), {(): model})
    if result is None or problems:
        raise UserError(_report(values, problems))
    return result


def read_recipe(name: str | Path, overrides: Sequence[str] = (), *, check_files: bool = False,
                run_of: Callable[[int], Path] | None = None) -> Recipe:
    """Read a recipe by name or path; `recipe.method` is an instance of the method's own class.

    check_files: also read the cards and protocols that it names (a run that was moved may be read without them).
    run_of: gives the folder of its run by the seed; copies of earlier runs there count before these.
    What it and its cards run is the user's own. Raises UserError with all errors of all blocks.
    """
    values = read_values(find("recipes", name), overrides, shorthand="method")
    adopt_file(values.where, values.value)
    train = values.value.get("train")
    seed = train.get("seed", 0) if isinstance(train, dict) else 0
    return _recipe(values, check_files, None if run_of is None else run_of(seed))


def read_run_recipe(run: Path) -> Recipe:
    """Read the recipe of a run's folder, which may be anybody's.

    Raises UserError as `read_recipe` does, and if it names code to which this user has not agreed.
    """
    values = read_values(find("recipes", run / "recipe.yaml"), shorthand="method")
    refuse_recipe(values.where, values.value)
    return _recipe(values, check_files=False)


def recipe_from(value: dict[str, Any], where: str) -> Recipe:
    """Return the recipe of plain values, which a run keeps; `where` is named in errors. Raises UserError as above."""
    refuse_kept(where, value)
    return _recipe(Values(where, json.loads(json.dumps(value)), {(): (0, where)}), check_files=False)


def _recipe(values: Values, check_files: bool, run: Path | None = None) -> Recipe:
    former.translate(values.value)
    roots: dict[Key, Any] = {(): Recipe}
    problems: list[Problem] = []
    problems += _inherit_backbone(values.value, check_files, run)
    block, config_class = values.value.get("method"), None
    if isinstance(block, dict) and "name" not in block:
        problems.append((("method",), f"missing key 'method.name'. Known: {', '.join(METHODS)}"))
    elif isinstance(block, dict):
        try:
            config_class = roots["method",] = method_config(block["name"])
        except UserError as error:
            problems.append((("method", "name"), str(error)))
    elif "method" in values.value:
        problems.append((("method",), f"'method' needs a name or a block of keys, given {show(block)}"))
    recipe, found = _validate(values.value, Recipe, (), roots)
    problems += found
    config = None
    if config_class is not None:
        config, found = _validate(block, config_class, ("method",), roots)
        problems += found
    wrong = {path[0] for path, _ in problems if path}
    if config is not None and recipe is not None:
        problems += small_batches(config, recipe.data).items()
        problems += idle_blocks(config, recipe.train).items()
    if config_class is not None and not {"method", "data", "backbone"} & wrong:
        problems += _mismatches(values.value, config_class)
    if check_files:
        problems += _unknown_objects(values.value)
    if check_files and not {"data", "eval"} & wrong:
        problems += _wrong_files(values.value)
    if problems or recipe is None:
        raise UserError(_report(values, problems))
    return recipe.model_copy(update={"method": config})


def read_card(name: str | Path, *, own: bool = False) -> Card:
    """Read a data card by name or path; own: a command names it.

    Raises UserError with all errors, and if it runs code, and no command has named it.
    """
    if own:
        adopt_card(name)
    file = find("data", name)
    refuse_card(file)
    return read_file(file, Card)


def read_protocol(name: str | Path, overrides: Sequence[str] = ()) -> Protocol:
    """Read an evaluation protocol by name or path as the class that its `protocol` key names.

    Raises UserError with all errors.
    """
    values = read_values(find("eval", name), overrides, shorthand="method")
    former.translate(values.value)
    adopt_file(values.where, values.value)
    roots: dict[Key, Any] = {(): AnyProtocol}
    problems: list[Problem] = []
    if is_dotted(values.value.get("protocol")):
        try:
            roots[()] = settings_of(values.value["protocol"], Protocol)
        except UserError as error:
            raise UserError(_report(values, [(("protocol",), str(error))])) from error
    block, config = values.value.get("method"), None
    if isinstance(block, dict) and "name" in block:
        try:
            roots["method",] = method_config(block["name"])
            config, problems = _validate(block, roots["method",], ("method",), roots)
        except UserError as error:
            problems.append((("method", "name"), str(error)))
    protocol, found = _validate(values.value, roots[()], (), roots)
    if protocol is not None:
        idle = {path: protocol.idle[str(path[0])] for path in values.overrides if str(path[0]) in protocol.idle}
        problems += [(path, f"'{path[0]}' has no effect with protocol '{protocol.protocol}': {why}")
                     for path, why in idle.items()]
        if isinstance(protocol, Trained) and config is not None and (why := protocol.misfit(config)):
            problems.append((("held_out",), why))
    if problems or found:
        raise UserError(_report(values, [*problems, *found]))
    return protocol if config is None else protocol.model_copy(update={"method": config})


def method_config(name: Any) -> type[MethodConfig]:
    """Return the configuration class of a method: a name of the table, or `module:Class` of one's own.

    Raises UserError with the nearest name.
    """
    if isinstance(name, str) and name in METHODS:
        return load_object(METHODS[name][0])
    if is_dotted(name):
        found = load_object(name)
        return getattr(found, "Config", found)
    question = did_you_mean(nearest(str(name), METHODS), f"Known: {', '.join(METHODS)}")
    raise UserError(f"no method {show(name)}.{question}")


def _expand(values: Values, shorthand: str | None) -> None:
    """Write `method: simclrv2` as `method: {name: simclrv2}`."""
    if shorthand is not None and isinstance(values.value.get(shorthand), str):
        values.value[shorthand] = {"name": values.value[shorthand]}
        values.places[shorthand, "name"] = values.places[shorthand,]


def _validate(value: Any, model: Any, prefix: Key, roots: Roots, **context: str) -> tuple[Any, list[Problem]]:
    try:
        return TypeAdapter(model).validate_json(json.dumps(value), strict=True, context=context), []
    except ValidationError as error:
        return None, explain(error, value, prefix, roots)


def _report(values: Values, problems: Sequence[Problem]) -> str:
    placed = [(*values.place(path), message) for path, message in problems]
    return "\n".join(f"{text}: {message}" for _, text, message in sorted(placed, key=lambda item: item[0]))


def _inherit_backbone(value: dict[str, Any], check: bool, run: Path | None) -> list[Problem]:
    """Fill the backbone block of a recipe that starts from an earlier run with that run's; check: also compare them.

    The earlier run may be gone, or another by now, if `run` has begun: it keeps a copy.
    """
    block = value.get("backbone")
    if not isinstance(block, dict) or not isinstance(block.get("init"), str):
        return []
    if (named := public(block["init"])) is not None:
        return _public_backbone(block, named, check, run)
    file = split_source(block["init"])[0] / "recipe.yaml"
    kept = None if run is None else copy_of(block["init"], run) / "recipe.yaml"
    if kept is not None and kept.is_file():
        file = kept
    if not file.is_file():
        missing = f"'{block['init']}' is no run: {file} is missing; give RUN or RUN:EXPORT"
        return [(("backbone", "init"), missing)] if check or "name" not in block else []
    source = parse_file(file).value
    if not isinstance(source, dict) or not isinstance(source.get("backbone"), dict):
        return [(("backbone", "init"), f"{file} is damaged: it names no backbone; bring the file of that run back")]
    theirs = {key: given for key, given in source["backbone"].items() if key != "init"}
    refuse_backbone(file, source)
    part = sized(split_source(block["init"])[1])
    if part is not None and theirs.get("name") not in BACKBONE_OPTIONS["size"] and not is_dotted(theirs.get("name")):
        return [(("backbone", "init"), f"'{block['init']}' names a size, but the backbone of that run, "
                 f"'{theirs.get('name')}', is not elastic; leave the size out")]
    if part is not None:
        theirs["size"] = part.size
    if _inflates(block.get("name"), theirs.get("name")):  # which of its weights fit is known once it is built
        theirs = {"name": block["name"], **({"width": theirs["width"]} if "width" in theirs else {})}
    elif check and _inflates(theirs.get("name"), block.get("name", theirs.get("name"))):
        return [(("backbone", "name"), f"backbone.name is {show(block['name'])}, but {block['init']} has "
                 f"{show(theirs['name'])}, a network for clips, whose kernels over time no network for images holds; "
                 "leave it out to take that run's")]
    others = [key for key in block if key not in ("init", "grad_checkpointing") and block[key] != theirs.get(key)]
    block.update({key: given for key, given in theirs.items() if key not in block})
    return [
        (("backbone", key), f"backbone.{key} is {show(block[key])}, but {block['init']} has "
         f"{show(theirs.get(key))}; leave it out to take that run's")
        for key in others if check
    ]


def _inflates(name: Any, theirs: Any) -> bool:
    """Return whether a backbone of one name is for clips and what it starts from, of another name, for images."""
    return _for_clips(name) and not _for_clips(theirs)


def _for_clips(name: Any) -> bool:
    return isinstance(name, str) and name in BACKBONES and "video" in BACKBONES[name][1]


def _public_backbone(block: dict[str, Any], named: Public, check: bool, run: Path | None) -> list[Problem]:
    """Name the backbone of a recipe that starts from public weights; check: also what else is said of it, and the file.

    Its `options` are the recipe's own. The file may be gone if `run` has begun: it keeps a copy.
    """
    problems: list[Problem] = []
    block.setdefault("name", named.backbone)
    if check and block["name"] != named.backbone and not _inflates(block["name"], named.backbone):
        problems.append((("backbone", "name"), f"backbone.name is {show(block['name'])}, but {block['init']} is "
                         f"{show(named.backbone)}; leave it out to take that"))
    for key in BACKBONE_OPTIONS:
        if check and key in block and block[key] != Backbone.model_fields[key].default:
            problems.append((("backbone", key), f"backbone.{key} is {show(block[key])}, but {block['init']} is the "
                             "published network, without it; leave it out"))
    kept = run is not None and copy_of(block["init"], run).is_dir()
    if check and named.file is not None and not kept and not named.file.is_file():
        problems.append((("backbone", "init"), f"'{block['init']}': there is no file {named.file}"))
    return problems


def _mismatches(value: dict[str, Any], config: type[MethodConfig]) -> list[Problem]:
    """Check what no block can check alone: the method against the streams and the backbone."""
    problems: list[Problem] = []
    method, backbone = value["method"]["name"], value["backbone"]["name"]
    given = [name for name, stream in value["data"].items() if isinstance(stream, dict)]
    if set(given) != set(config.streams):
        wanted, has = ", ".join(config.streams), ", ".join(given) or "none"
        problems.append((("data",), f"method '{method}' reads the streams: {wanted}; 'data' has: {has}"))
    clips = "clip" in config.model_fields  # its option, without which it reads images
    needs = config.needs | ({"video"} if clips and value["method"].get("clip") else set())
    offers = BACKBONES[backbone][1] if backbone in BACKBONES else needs  # others are checked once they are built
    own = value["backbone"]  # of a network that was cut out of a run, the options are those of that run
    if "elastic" in offers - needs and own.get("options", {}).get("drop_path_rate") and not own.get("init"):
        problems.append((("backbone", "options"), f"'backbone.options.drop_path_rate' of {backbone} has no effect with "
                         f"{method}: only poa draws which images skip a branch; leave it out"))
    for need in sorted(needs - offers):
        article = "an" if need[0] in "aeiou" else "a"
        ones = [other for other, (_, offered) in BACKBONES.items() if needs <= offered]
        others = f". {need.capitalize()} ones: {', '.join(ones[:6])}" if ones else ""
        problems.append((("backbone", "name"), f"method '{method}' needs {article} {need} backbone; '{backbone}' "
                         f"offers: {', '.join(sorted(offers)) or 'nothing more'}{others}"))
    if "video" in offers - needs and not own.get("init"):  # a trained one takes single frames, as in evaluation
        cure = ("say which clips with method.clip={frames: 16, stride: 2}, or {frames: 1} for single frames" if clips
                else "take one for images, such as resnet50, or the method cvrl")
        problems.append((("backbone", "name"), f"method '{method}' reads images, and '{backbone}' is a network for "
                         f"clips of video; {cure}"))
    return problems


def _unknown_objects(value: dict[str, Any]) -> list[Problem]:
    """Import what the recipe names as `module:object`, so that a wrong name has its place."""
    problems: list[Problem] = []
    for block in ("backbone", "optim"):
        name = value[block].get("name") if isinstance(value.get(block), dict) else None
        if is_dotted(name) and public(name) is None:
            try:
                load_object(name)
            except UserError as error:
                problems.append(((block, "name"), str(error)))
    return problems


def _wrong_files(value: dict[str, Any]) -> list[Problem]:
    """Read the cards and protocols that a recipe names, so that a wrong one is known before and not after training."""
    problems: list[Problem] = []
    cards: list[Card] = []
    for name, stream in value["data"].items():
        for key, one in _sets(("data", name), stream):
            try:
                card, split = read_card(one["card"]), one.get("split", "train")
                cards.append(card)
                if split not in card.splits:
                    problems.append(((*key, "split"), f"data card '{card.name}' has no split '{split}' "
                                     f"(it has: {', '.join(card.splits)})."
                                     f"{did_you_mean(nearest(str(split), card.splits))}"))
            except UserError as error:
                problems.append(((*key, "card"), str(error)))
    for i, protocol in enumerate((value.get("eval") or {}).get("at_end", ())):
        try:
            cfg = read_protocol(protocol)
            scored = cards if cfg.card is None else [read_card(cfg.card)]
            if cfg.needs and scored and not any(card.has(cfg.needs) for card in scored):
                problems.append((("eval", "at_end", i), f"'{protocol}' needs {cfg.needs}, which data card "
                                 f"'{scored[0].name}' has not; leave it out, or copy the protocol, with a card of its "
                                 "own"))
            if cfg.card is None and {card.source.kind for card in cards} == {"stream"}:
                problems.append((("eval", "at_end", i), f"'{protocol}' evaluates on the card of the training data, "
                                 "which is streamed; use eval.at_end=[], or a protocol with a card of its own"))
        except UserError as error:
            problems.append((("eval", "at_end", i), str(error)))
    return problems


def _sets(key: Key, stream: Any) -> list[tuple[Key, dict[str, Any]]]:
    """Return the blocks of a stream that name cards, with their keys."""
    if not isinstance(stream, dict):
        return []
    return [((*key, "mix", i), one) for i, one in enumerate(stream["mix"])] if stream.get("mix") else [(key, stream)]
