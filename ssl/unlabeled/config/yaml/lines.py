"""YAML without its traps, and with the line of every key.

PyYAML follows YAML 1.1, in which `1e-6` is text, `no` is false and a repeated key silently wins. Here the core schema
of YAML 1.2 holds (section 10.3.2), a repeated key is an error, and an error is one line: where and what.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unlabeled.errors import UserError

Key = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


@dataclass
class Document:
    """Plain values of a file, and for every key path the line (from 1) on which it stands."""

    value: Any
    lines: dict[Key, int] = field(default_factory=dict)


class Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars are resolved by YAML 1.2, and which knows no aliases."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's name; filled below

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Refuse aliases: a file says what it says in its own place."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported; write the value out",
                                       problem_mark=mark)
        return super().compose_node(parent, index)


for _name, (_pattern, _first) in _SCALARS.items():
    Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), [*_first, ""] if _name == "null"
                                  else list(_first))


def parse(text: str, where: str, numbered: bool = True) -> Document:
    """Parse YAML text; messages begin with `where`, and its line if numbered.

    Raises UserError: the first error of syntax, or all repeated keys and unknown tags at once.
    """

    def place(line: int) -> str:
        return f"{where}:{line}" if numbered else where

    if found := Loader.NON_PRINTABLE.search(text):
        raise UserError(f"{place(text.count(chr(10), 0, found.start()) + 1)}: "
                        f"character {found.group()!r} is not allowed in YAML")
    loader = Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line, problem = _syntax_problem(error)
        raise UserError(f"{place(line)}: {problem}") from None
    except RecursionError:
        raise UserError(f"{place(1)}: brackets are nested too deeply") from None
    finally:
        loader.dispose()
    document = Document(None)
    problems: list[tuple[int, str]] = []
    if node is not None:
        document.value = _build(node, (), document, problems)
    if problems:
        raise UserError("\n".join(f"{place(line)}: {problem}" for line, problem in problems))
    return document


def parse_file(path: Path, where: str | None = None) -> Document:
    """Parse a UTF-8 YAML file. Raises UserError where it cannot be read or is no YAML."""
    where = where or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 text (byte {error.start})") from None
    return parse(text, where)


def _build(node: yaml.Node, key: Key, document: Document, problems: list[tuple[int, str]]) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(key, line)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, key, document, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*key, i), document, problems) for i, child in enumerate(node.value)]
    try:
        return _scalar(node)
    except ValueError as error:
        problems.append((line, str(error)))
        return None


def _build_mapping(node: yaml.MappingNode, key: Key, document: Document, problems: list[tuple[int, str]]) -> dict:
    result: dict[str, Any] = {}
    for name_node, child in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            problems.append((line, "a key must be a name, not a list or a block"))
            continue
        name = name_node.value  # as written: a key is a name, also where its text looks like a number
        path = (*key, name)
        if path in document.lines:
            first = document.lines[path]
            problems.append((line, f"key '{dotted(path)}' is repeated; it stands on line {first} already"))
            continue
        document.lines[path] = line
        result[name] = _build(child, path, document, problems)
    return result


def _scalar(node: yaml.Node) -> Any:
    text, kind = str(node.value), node.tag.removeprefix(_TAG)
    if kind == "str":
        return text
    if kind not in _SCALARS or not re.fullmatch(_SCALARS[kind][0], text):
        raise ValueError(f"tag '{node.tag.replace(_TAG, '!!')}' is not supported here; write plain values")
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        case _:
            return float(re.sub(r"\.(?=[inIN])", "", text))


def _syntax_problem(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    problem, mark = error.problem or "syntax error", error.problem_mark
    if "'\\t'" in problem:
        problem = "a tab where YAML wants spaces"
    elif "could not find expected ':'" in problem:  # reported where the scanner gave up; the cause is where it began
        problem, mark = "not 'key: value' (is the space after the colon missing?)", error.context_mark
    elif "mapping values are not allowed" in problem:
        problem = ("a colon too many: wrong indentation, text with ': ' that needs quotes, "
                   "or no space after the colon of the line before")
    elif "unexpected end of stream" in problem or "'<stream end>'" in problem:
        problem, mark = "a quote or bracket that is never closed", error.context_mark or mark
    elif "expected <block end>" in problem or "expected '<document start>'" in problem:
        problem = "wrong indentation, or a bracket or quote too many"
    elif "but found another document" in problem:
        problem = "a second document ('---') in one file"
    return (mark.line + 1 if mark is not None else 1), problem


def dotted(key: Key) -> str:
    """Write a key path as users do: optim.lr.base, eval.at_end[0]."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
