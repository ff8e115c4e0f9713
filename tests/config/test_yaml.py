"""One reader of YAML, and it reads what DVC reads: params.yaml means one thing to both."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import ParseError, loads_yaml
from dvc.utils.serialize import parse_yaml as parse_as_dvc
from support.checkout import ROOT

from paribus.config import dump_yaml, parse_yaml, read_yaml
from paribus.errors import UserError

LINES = [
    "010 0o17 0x1F 0b11 -010 0777 08 09 00 -0 +0 +5 -5 1_000 1__0 1_ _1 0_1 0x1_F +0o17 -0x1F 0o8 0xG 0b2",
    "1:30 1:30:00.5 190:20:30 190:20:30.15 yes no on off Yes No YES y n True true TRUE False ~ null Null NULL",
    ".inf -.inf .INF +.inf .nan .NaN inf nan Infinity 1e3 1E3 1e-08 1.0e-8 1.e3 .5 +.5 5. +1e3 1e_3 12e03 0.1_0 1_0.5",
    "685_230.15 1,000 1.5.2 e3 .e3 . 4e90b 123e45 1e-400 0.0 -0.0 ! 'yes' \"010\" 2e 2e+ 1e+3 1.0 1. 0.5.",
    "12345678901234567890 1e22 --- a#b a:b 'a: b' 0o 0x 0b 0. 1:2:3 1:99 01:30 9:59 1_0:30",
]
SCALARS = [scalar for line in LINES for scalar in line.split()]
DOCUMENTS = {
    "flow": "{a: 1, 'b':2, \"c\":3, d: [4, {e: 5}]}",
    "flow, a colon in a plain text": "{a:1, b: 2}",
    "comments": "a: 1 # one\n# two\nb: a#b\n",
    "folded": "a: >\n  one\n  two\nb: |\n  one\n  two\n",
    "plain lines": "a: one\n  two\n\n  three\n",
    "escapes": 'a: "\\x41\\/\\u00e9\\t"\n',
    "merge": "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: {<<: [*a, {z: 3}], x: 4}\n",
    "anchors twice": "a: &x 1\nb: *x\nc: &x 2\nd: *x\n",
    "byte order mark": "\ufeffa: 1\n",
    "Windows line ends": "a: 1\r\nb: [2,\r\n 3]\r\n",
    "YAML 1.1 by directive": "%YAML 1.1\n---\na: 010\nb: yes\nc: 1:30\n",
    "tags": "a: !!str 010\nb: !!int '7'\nc: !!float 3\nd: !!bool 'true'\ne: !!null ''\nf: !!seq [1]\n",
    "document end": "a: 1\n...\n",
    "lists": "a:\n- 1\n- - 2\n  - 3\nb:\n  - c: 1\n    d: 2\n",
}
REFUSED = ["flow, a colon in a plain text", "anchors twice"]


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type; a nan is a nan."""
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and (a == b or str(a) == str(b))


def as_dvc(text: str) -> Any:
    """What DVC reads in a text; None where it refuses it."""
    try:
        return parse_as_dvc(text, "params.yaml")
    except ParseError:
        return None


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_scalar_is_what_it_is_to_dvc(scalar: str) -> None:
    text = f"a: {scalar}\n"
    if (expected := as_dvc(text)) is None:
        with pytest.raises(UserError):
            parse_yaml(text, "params.yaml")
    else:
        assert same(parse_yaml(text, "params.yaml")["a"], expected["a"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_what_it_is_to_dvc(name: str) -> None:
    text = DOCUMENTS[name]
    if (expected := as_dvc(text)) is None:
        with pytest.raises(UserError):
            parse_yaml(text, "params.yaml")
    else:
        assert parse_yaml(text, "params.yaml") == expected


def test_dvc_refuses_few_of_these() -> None:
    assert [name for name, text in DOCUMENTS.items() if as_dvc(text) is None] == REFUSED


@pytest.mark.parametrize(
    "path",
    ["params.yaml", "dvc.yaml", "dvc.lock", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("experiments/**/*.yaml"))],
)  # fmt: skip
def test_a_file_of_the_project_is_what_it_is_to_dvc(path: str) -> None:
    assert read_yaml(ROOT / path) == parse_as_dvc((ROOT / path).read_text(), path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: a is there already, on line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4: a.b is there already, on line 2"),
        ("a: {b: 1, b: 2}\n", "line 1: a.b is there already, on line 1"),
        ("a:\n- b: 1\n  b: 2\n", "line 3: a[0].b is there already, on line 2"),
        ("arms:\n  adamw: {x: 1}\n  adamw: {y: 2}\n", "line 3: arms.adamw is there already, on line 2"),
        ('a: 1\n"a": 2\n', "line 2: a is there already, on line 1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_may_stand_once(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f.yaml")
    assert caught.value.problems == [f"f.yaml: {said}; a key may stand once"]


def test_every_key_that_stands_twice_is_named() -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\nd: 2001-01-01\n", "f.yaml")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  b: 2001-01-01\n", "line 2: a.b: 2001-01-01 is a date"),
        ("a:\n- !!set {x}\n", "line 2: a[0]: […] is a set"),
        ("a: !mine 3\n", "line 1: a: 3 is the tag !mine, which is not known here"),
        ("a: !!binary aGk=\n", "line 1: a: aGk= is binary data"),
        ("a: [1, 2\n", "line 1: not YAML"),
        ("a:\n  b: [1, 2\nc: 3\n", "(the line is: b: [1, 2, at a.b)"),
        ("a: &x [*x]\n", "line 1: a[0]: refers to itself"),
        ("1: 2\n", "line 1: the key 1 is no text"),
    ],
    ids=str,
)
def test_what_no_key_takes_is_named_with_its_line_and_key(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "f.yaml")
    assert said in caught.value.problems[0]


def test_what_is_written_is_read_back_as_it_was() -> None:
    texts = [
        "08",
        "010",
        "0o17",
        "+.5",
        "1e3",
        "1:30",
        "yes",
        "null",
        "~",
        "2001-01-01",
        "",
        " a",
        "a: b",
        "#",
        "é",
        "<<",
        "=",
    ]
    numbers = [1e-8, 1e22, 5e-324, 0.1, -0.0, 3, 10**20, True, None]
    values = {"texts": texts, "numbers": numbers, "nested": {"a": {"b": []}, "c": {}}}
    assert parse_yaml(dump_yaml(values), "f.yaml") == values
    assert loads_yaml(dump_yaml(values)) == values


def test_nothing_else_reads_yaml() -> None:
    """Another loader would read 1e-08, 010 or yes in another way. Writing is no reading."""
    allowed = {
        ROOT / "src/paribus/config/reading.py",  # the reader
        ROOT
        / "src/paribus/cli/profiles.py",  # keeps the comments of params.yaml when it changes values
        ROOT / "src/paribus/cli/studies.py",  # keeps those of a study's file that is copied
        ROOT
        / "src/paribus/study/committed.py",  # dvc.lock, which is long, by the types of YAML 1.2
        ROOT / "src/paribus/graph/digests.py",  # takes texts alone from dvc.lock, which is long
        ROOT / "src/paribus/graph/dvcfile.py",  # keeps those of dvc.yaml when it writes closures
        ROOT
        / "src/paribus/evaluate/harness.py",  # names a task file of lm-eval's that its own reader would not take
    }
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    helpers = [*ROOT.glob("tools/**/*.py"), ROOT / "tests/conftest.py"]
    found: list[str] = []
    for path in [*files, *helpers]:
        if path not in allowed:
            found += loaders(path)
    assert not found


def loaders(path: Path) -> list[str]:
    """Where a file loads YAML by itself."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "yaml",
            "ruamel",
        ):
            found.append(f"{path.name}:{node.lineno}")
        if isinstance(node, ast.Import) and any(
            one.name.startswith("ruamel") for one in node.names
        ):
            found.append(f"{path.name}:{node.lineno}")
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id == "yaml" and re.search("load|parse|compose|scan", node.attr):
            found.append(f"{path.name}:{node.lineno}: yaml.{node.attr}")
    return found
