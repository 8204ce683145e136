"""YAML without its traps: lines, duplicates, bombs, tags, encodings, texts that YAML 1.1 would turn into numbers."""

from __future__ import annotations

import time

import pytest

from specs.errors import InputError
from specs.yaml_source import MAX_BYTES, MAX_DEPTH, Mapping, Scalar, Sequence, parse_yaml, read_yaml, to_plain


def refused(source, file="spec.yaml"):
    with pytest.raises(InputError) as caught:
        parse_yaml(source, file)
    return caught.value


def test_nodes_know_their_lines():
    root = parse_yaml("a: 1\nb:\n  - x\n  - {c: 2}\n")
    assert root.key_lines == {"a": 1, "b": 2}
    items = root.entries["b"]
    assert isinstance(items, Sequence)
    assert [item.line for item in items.items] == [3, 4]
    inner = items.items[1]
    assert isinstance(inner, Mapping)
    assert inner.entries["c"] == Scalar(4, "2", plain=True)


@pytest.mark.parametrize(
    "text", ["on", "yes", "no", "1e3", "01:00", "0o17", "1_000", "2024-01-01", "0x1F", ".nan", "="]
)
def test_scalars_stay_what_was_written(text):
    value = parse_yaml(f"key: {text}").entries["key"]
    assert isinstance(value, Scalar)
    assert value.text == text


def test_plain_values_of_inline_configs():
    root = parse_yaml('{a: 1, b: 1.5e2, c: true, d: null, e: "1", f: [x, -2], g: yes, h: 007, i: 1e3}')
    assert to_plain(root) == {
        "a": 1, "b": 150.0, "c": True, "d": None, "e": "1", "f": ["x", -2], "g": "yes", "h": "007", "i": 1000.0,
    }  # fmt: skip


@pytest.mark.parametrize("text", [".nan", ".inf", "-.INF", "1e999"])
def test_plain_values_are_finite(text):
    with pytest.raises(InputError, match=r"finite|range"):
        to_plain(parse_yaml(f"a:\n  b: {text}"), "f.yaml")


@pytest.mark.parametrize(
    ("source", "says", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice (first on line 1)", 3),
        ("a: {x: 1,\n x: 2}", "'x' stands twice (first on line 1)", 2),
        ("a: !!python/object/apply:os.system [ls]", "tags are not allowed", 1),
        ("a: !!str 1", "tags are not allowed", 1),
        ("a: 1\n---\nb: 2\n", "more than one YAML document", 2),
        ("- a\n- b\n", "holds a list", 1),
        ("just words", "holds the text 'just words'", 1),
        ("? [a, b]\n: 1", "a key is not plain text", 1),
        ("b: &x {a: 1}\nc:\n  <<: *x\n", "merge keys", 3),
        ("a: &x [*x]", "refers to itself", 1),
        ("a: *nothing", "refers to nothing", 1),
        ("a: [1, 2\nb: 3", "is not YAML", 2),
        ("a: 'open", "is not YAML", 1),
        ("a:\n\t- b", "is not YAML", 2),
        ("a: b: c", "is not YAML", 1),
        (b"a: \x00", "is not YAML", None),
        (b"a: 1\nb: \xff\xfe\n", "not UTF-8 text (byte 0xff)", 2),
        ("a: 1".encode("utf-16"), "not UTF-8", 1),
    ],
)
def test_refused_with_its_line(source, says, line):
    error = refused(source)
    assert says in str(error)
    assert error.file == "spec.yaml"
    if line is not None:
        assert error.line == line


@pytest.mark.parametrize("source", ["", "   \n\n", "# only a comment\n", "---\n", "null", "~"])
def test_empty(source):
    assert "is empty" in str(refused(source))


def test_a_byte_order_mark_is_no_character():
    assert list(parse_yaml(b"\xef\xbb\xbfname: x").entries) == ["name"]


def test_alias_is_the_value_it_names():
    root = parse_yaml("a: &limits {p90: 1s}\nb: *limits\n")
    assert root.entries["a"] == root.entries["b"]


def test_bombs_are_refused_quickly():
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    deep, flat = "a: " + "[" * 400_000, "a: [" + "1," * 400_000 + "]"
    start = time.process_time()
    assert "aliases expanded" in str(refused(laughs))
    assert f"deeper than {MAX_DEPTH}" in str(refused(deep))
    assert "more than 50,000 values" in str(refused(flat))
    assert "larger than" in str(refused("a: " + "x" * MAX_BYTES))
    assert time.process_time() - start < 10.0  # seconds of CPU; expanding them would take gigabytes and minutes


def test_depth_at_the_limit_is_read():
    depth = MAX_DEPTH - 2  # the root mapping and the scalar are levels too
    assert parse_yaml("a: " + "[" * depth + "x" + "]" * depth)
    refused("a: " + "[" * (depth + 1) + "x" + "]" * (depth + 1))


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path, "bad\0name"):
        with pytest.raises(InputError, match="cannot be read") as caught:
            read_yaml(path)
        assert caught.value.file == str(path)
