"""pydantic's errors in plain words: which key, what was given, what is allowed, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from unlabeled.config.yaml.lines import Key, dotted
from unlabeled.errors import did_you_mean, nearest

Problem = tuple[Key, str]
Roots = Mapping[Key, Any]  # where a model (or another annotation) stands in the file: {(): Recipe, ("method",): Config}

_NEEDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def explain(error: ValidationError, value: Any, prefix: Key, roots: Roots) -> list[Problem]:
    """Turn a validation error of `value`, which stands at `prefix`, into key paths and messages."""
    problems: list[Problem] = []
    needs: dict[Key, list[str]] = {}  # a plain union fails once per member: one message for all
    inputs: dict[Key, Any] = {}
    suggested: set[Key] = set()
    missing: list[tuple[Key, str]] = []
    for item in error.errors(include_url=False):
        kind, location = item["type"], item["loc"]
        path = prefix + _path(location, value, kind)
        if kind == "extra_forbidden":
            message, key = _unknown(path, _fields(roots[prefix], location[:-1]), roots)
            suggested.add(key)
            problems.append((path, message))
        elif kind == "missing":
            missing.append((path, _missing(path, _fields(roots[prefix], location[:-1]).get(str(location[-1])))))
        elif kind in _NEEDS:
            fields = list(_fields(roots[prefix], location)) if kind == "model_type" else []
            keys = ", ".join(fields[:4] + ["..."] * (len(fields) > 4))
            needs.setdefault(path, []).append(_NEEDS[kind] + (f" ({keys})" if keys else ""))
            inputs[path] = item["input"]
        else:
            problems.append((path, _other(path, kind, item)))
    problems += [(path, message) for path, message in missing if path not in suggested]
    for path, words in needs.items():
        what = " or ".join(dict.fromkeys(words))
        problems.append((path, f"{_quoted(path)} needs {what}, given {show(inputs[path])}{_cure(what, inputs[path])}"))
    return problems


def show(value: Any) -> str:
    """Write a value as it would stand in YAML, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a block of keys" if value else "an empty block"
    text = f"[{', '.join(show(part) for part in value)}]" if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:56] + " ..."


def _path(location: tuple[int | str, ...], value: Any, kind: str) -> Key:
    """Keep of pydantic's location what stands in the file; it also names the members of unions."""
    path: list[int | str] = []
    for place, part in enumerate(location):
        found = isinstance(value, dict) and part in value
        if found or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path.append(part)
            value = value[part]
        elif kind == "missing" and place == len(location) - 1:
            path.append(part)
    return tuple(path)


def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the classes of the blocks that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from blocks(part)


def _fields(annotation: Any, location: tuple[int | str, ...]) -> dict[str, Any]:
    """Return the fields of the block at a location of pydantic's, following union members by their tag."""
    models = list(blocks(annotation))
    for part in location:
        annotations = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        tagged = [model for model in models if any(part in get_args(f.annotation) for f in model.model_fields.values())]
        if annotations:
            models = [model for annotation in annotations for model in blocks(annotation)]
        elif tagged:
            models = tagged
    return {name: field for model in models for name, field in model.model_fields.items()}


def _keys(annotation: Any, prefix: Key) -> Iterator[Key]:
    for model in blocks(annotation):
        for name, field in model.model_fields.items():
            yield (*prefix, name)
            yield from _keys(field.annotation, (*prefix, name))


def _unknown(path: Key, siblings: Mapping[str, Any], roots: Roots) -> tuple[str, Key]:
    """Say what was probably meant; also return it as a path. A key in the wrong block is found by its name."""
    name, message = str(path[-1]), f"unknown key '{dotted(path)}'."
    known = {key for prefix, root in roots.items() for key in _keys(root, prefix)}
    elsewhere = sorted(key for key in known if key[:-1] != path[:-1])
    exact = [dotted(key) for key in elsewhere if key[-1] == name]
    for likeness in (0.75, 0.5):
        near = nearest(name, siblings, likeness=likeness)
        if near:
            return message + did_you_mean(near), (*path[:-1], *near)
        if exact and likeness == 0.75:
            return message + did_you_mean(exact[:3]), path
    far = nearest(name, [str(key[-1]) for key in elsewhere], likeness=0.8)
    places = [dotted(key) for key in elsewhere if key[-1] in far]
    return message + did_you_mean(places[:1], f"Known here: {', '.join(siblings)}"), path


def _missing(path: Key, field: Any) -> str:
    if isinstance(path[-1], int):
        return f"'{dotted(path[:-1])}' has too few values: number {path[-1] + 1} is missing"
    block = field is not None and any(True for _ in blocks(field.annotation))
    description = f" ({field.description})" if field is not None and field.description else ""
    allowed = [str(choice) for choice in get_args(field.annotation)] if field is not None and not block else []
    choices = f"; allowed: {', '.join(allowed)}" if _is_literal(field) else ""
    return f"missing {'block' if block else 'key'} '{dotted(path)}'{description}{choices}"


def _is_literal(field: Any) -> bool:
    return field is not None and all(isinstance(choice, str) for choice in get_args(field.annotation) or (0,))


def _other(path: Key, kind: str, item: Any) -> str:
    context, value = item.get("ctx", {}), show(item["input"])
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"]]
        return _choice(path, value, item["input"], allowed)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = context["discriminator"].strip("'()")  # 'kind' for a field, kind() for a function
        if kind == "union_tag_not_found":
            if not isinstance(item["input"], dict):
                return f"{_quoted(path)} needs a block of keys, given {value}"
            return f"missing key '{dotted((*path, key))}'"
        allowed = re.findall(r"'([^']*)'", context["expected_tags"])
        return _choice((*path, key), f"'{context['tag']}'", context["tag"], allowed)
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{_quoted(path)} must be {words} {context[name]:g}, given {value}"
    if kind in ("too_long", "too_short"):
        most = kind == "too_long"
        bound = f"at most {context['max_length']}" if most else f"at least {context['min_length']}"
        return f"{_quoted(path)} needs {bound} values, given {context['actual_length']}"
    if kind in ("value_error", "assertion_error"):
        return f"{dotted(path)}: {context['error']}" if path else str(context["error"])
    return f"{_quoted(path)}: {item['msg'][0].lower()}{item['msg'][1:]}, given {value}"


def _choice(path: Key, given: str, value: Any, allowed: list[str]) -> str:
    question = did_you_mean(nearest(str(value), allowed, likeness=0.5))
    return f"'{dotted(path)}' is {given}; allowed: {', '.join(allowed)}{question and '.' + question}"


def _cure(what: str, value: Any) -> str:
    """Show how the value is written where it was nearly right."""
    if "number" in what and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        return f"; write {number:g}" if what != "a whole number" or number.is_integer() else ""
    if what == "a whole number" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if what == "true or false" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        return f"; write {str(value.lower() in ('yes', 'on')).lower()}"
    if what == "text" and isinstance(value, bool | int | float):
        return f"; write '{show(value)}' with quotes"
    return ""


def _quoted(path: Key) -> str:
    return f"'{dotted(path)}'" if path else "the file"
