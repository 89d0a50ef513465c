"""The YAML reader: values as people mean them, lines, and one clear line for every error."""

import math

import pytest

from unlabeled.config.yaml.lines import dotted, parse, parse_file
from unlabeled.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("1.e-6", 1e-6), ("-1E3", -1000.0), (".5", 0.5), ("1.0", 1.0), ("+3", 3), ("010", 10),
        ("0x10", 16), ("0o17", 15), ("1_000", "1_000"), ("1:30", "1:30"), ("no", "no"), ("yes", "yes"), ("On", "On"),
        ("off", "off"), ("y", "y"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("'1e-6'", "1e-6"),
        ('"true"', "true"), ("2024-01-01", "2024-01-01"), (".inf", math.inf), ("-.inf", -math.inf), ("=", "="),
        ("[1, no, 2e1]", [1, "no", 20.0]), ("{a: {b: ~}}", {"a": {"b": None}}), ("0.3 # peak", 0.3), ("a#b", "a#b"),
        ("1e", "1e"), ("e5", "e5"), (".", "."), ("-", [None]), ("1.2.3", "1.2.3"), ("<<", "<<"), ("!!float 3", 3.0),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text, value):
    found = parse(text, "f.yaml").value
    assert found == value
    assert type(found) is type(value)


def test_nan():
    assert math.isnan(parse(".nan", "f.yaml").value)


def test_every_key_and_item_has_its_line():
    lines = parse("# header\na: 1\nb:\n  c: [1, 2]\n  d:\n  - x\n  - y: 2\n    z: 3\n", "f.yaml").lines
    assert lines["a",] == 2
    assert lines["b",] == 3
    assert lines["b", "c"] == lines["b", "c", 1] == 4
    assert [lines["b", "d", 0], lines["b", "d", 1], lines["b", "d", 1, "y"], lines["b", "d", 1, "z"]] == [6, 7, 7, 8]


def test_keys_are_names_as_written():
    assert parse("1: a\nno: b\n1e3: c\n", "f.yaml").value == {"1": "a", "no": "b", "1e3": "c"}


def test_all_repeated_keys_are_named_with_both_lines():
    with pytest.raises(UserError) as caught:
        parse("a: 1\nb:\n  c: 2\n  c: 3\na: 4\n", "f.yaml")
    assert str(caught.value).splitlines() == [
        "f.yaml:4: key 'b.c' is repeated; it stands on line 3 already",
        "f.yaml:5: key 'a' is repeated; it stands on line 1 already",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "f.yaml:2: a tab where YAML wants spaces"),
        ("a: 1\n b: 2\n", "f.yaml:2: a colon too many: wrong indentation"),
        ("a:1\nb: 2\n", "no space after the colon of the line before"),
        ("a: b: c\n", "f.yaml:1: a colon too many"),
        ("a: 1\nb\nc: 2\n", "f.yaml:2: not 'key: value'"),
        ("  a: 1\n b: 2\n", "f.yaml:2: wrong indentation"),
        ("a: 1\nb: [1, 2\n", "f.yaml:2: a quote or bracket that is never closed"),
        ("a: 1\nb: 'x\n", "f.yaml:2: a quote or bracket that is never closed"),
        ("a: &x 1\nb: *x\n", "f.yaml:2: aliases (*name) are not supported"),
        ("a: 1\nb: !!python/name:os.system x\n", "f.yaml:2: tag '!!python/name:os.system' is not supported"),
        ("a: !!int x\n", "f.yaml:1: tag '!!int' is not supported"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: a second document"),
        ("a: 1\nb: \x00\n", "f.yaml:2: character '\\x00' is not allowed"),
        ("? [a]\n: 1\n", "f.yaml:1: a key must be a name"),
    ],
)
def test_errors_are_one_line_with_the_place(text, message):
    with pytest.raises(UserError) as caught:
        parse(text, "f.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        parse_file(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(UserError, match=r"latin.yaml: is not UTF-8 text \(byte 3\)"):
        parse_file(tmp_path / "latin.yaml")


def test_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert parse_file(tmp_path / "bom.yaml").value == {"a": 1, "b": 2}


def test_dotted():
    assert dotted(("eval", "at_end", 0)) == "eval.at_end[0]"
    assert dotted(()) == ""


def test_endless_brackets_are_one_line():
    with pytest.raises(UserError, match=r"^f.yaml:1: brackets are nested too deeply$"):
        parse("[" * 5000, "f.yaml")
