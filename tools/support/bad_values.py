"""Bad values for files of settings: what people, editors and other programs write by mistake, as YAML text.

`SCALARS` are for the place of any value; `BROKEN_FILES` are whole files. `check_explained` says what is wrong with a refusal.
Tests of other files of settings (experiments, studies) may put the same values at their own keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paribus.errors import UserError

LONGEST_LINE = 900  # characters of one problem, its advice included
LONGEST_ECHO = 200  # of a value's own characters in a row


@dataclass(frozen=True)
class BadValue:
    """A value as it is written in YAML.

    never: no key of any type takes it, so that it has to be refused everywhere.
    """

    name: str
    text: str
    never: bool = False


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + closing * depth


NEVER = {
    "date": "2001-01-01",
    "date of one digit": "2001-1-1 10:00:00",
    "timestamp": "2001-12-14t21:59:43.10-05:00",
    "timestamp in UTC": "2001-12-15T02:59:43.1Z",
    "binary": "!!binary aGVsbG8=",
    "broken binary": "!!binary '*'",
    "set": "!!set {a, b}",
    "empty set": "!!set {}",
    "ordered mapping": "!!omap [a: 1]",
    "pairs": "!!pairs [a: 1]",
    "own tag": "!mine 3",
    "own tag of a mapping": "!mine {a: 1}",
    "own tag of a list": "!mine [a]",
    "python name": "!!python/name:os.system ''",
    "python object": "!!python/object/apply:os.system [true]",
    "python tuple": "!!python/tuple [1, 2]",
    "int of letters": "!!int abc",
    "float of letters": "!!float abc",
    "bool of a number": "!!bool 3",
    "null of letters in a list": "[!!null x, 1]",
    "date in a list": "[2001-01-01]",
    "date in a mapping": "{a: 2001-01-01}",
    "set in a mapping": "{a: !!set {b}}",
    "not a number": ".nan",
    "infinity": ".inf",
    "minus infinity": "-.inf",
    "overflowing float": "1e400",
    "minus overflowing float": "-1e400",
    "integer of 400 digits": "9" * 400,
    "integer of 5,000 digits": "9" * 5000,
    "integer of 5,000 hexadecimal digits": "0x" + "f" * 5000,
    "half a letter": '"\\ud800"',
    "half a letter in a text": '"a\\udfffb"',
    "escape sequence": '"\\e[31mred\\e[0m"',
    "null character": '"a\\0b"',
    "bell": '"\\a"',
    "line end in a text": '"a\\nb"',
    "next line": '"a\\Nb"',
    "list in a list": "[[1], [2]]",
    "mapping in a list": "[{a: 1}]",
    "list of numbers": "[1, 2.5]",
    "list of nulls": "[null]",
    "mapping of lists": "{a: [1]}",
    "mapping of mappings": "{a: {b: 1}}",
    "mapping with a number as key": "{1: 0.5}",
    "mapping with null as key": "{null: 0.5}",
    "mapping with a list as key": "{[a]: 0.5}",
    "mapping with a date as key": "{2001-01-01: 0.5}",
    "mapping with one key twice": "{a: 0.5, a: 0.7}",
    "30 levels": nested("[", "]", 30),
    "1,000 levels": nested("[", "]", 1000),
    "1,000 levels of mappings": nested("{a: ", "}", 1000).replace("{a: }", "{a: 1}"),
    "list that holds itself": "&loop [*loop]",
    "mapping that holds itself": "&loop {a: *loop}",
    "unknown alias": "*nowhere",
    "unclosed list": "[1, 2",
    "unclosed mapping": "{a: 1",
    "tab that indents": "\n\t- 1",
    "unclosed quote": '"abc',
    "directive": "%YAML 1.1",
    "at sign": "@here",
    "backtick": "`here`",
    "bad escape": '"\\q"',
    "bad tag": "!<",
    "sign =": "=",
    "sign <<": "<<",
    "mapping with <<": "{<<: 3}",
}
SOMETIMES = {
    "null": "null",
    "nothing": "",
    "a number after a tab": "\t1",
    "tilde": "~",
    "empty text": "''",
    "blank": "' '",
    "true": "true",
    "false": "false",
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "word": "abc",
    "number in quotes": "'3'",
    "word of other letters": "größer",
    "right to left": '"\\u202eabc"',
    "line separator": '"a\\u2028b"',
    "no-break space": '"a\\u00a0b"',
    "100,000 letters": "x" * 100_000,
    "path": "../../etc/passwd",
    "web address": "http://example.org/a.zip",
    "hub without commit": "openai/gsm8k@main:*.parquet",
    "template": "${model.depth}",
    "zero": "0",
    "minus zero": "-0.0",
    "minus one": "-1",
    "half": "0.5",
    "one": "1",
    "two and a half": "2.5",
    "seven": "7",
    "float that is whole": "8.0",
    "octal of YAML 1.1": "010",
    "octal of YAML 1.2": "0o17",
    "hexadecimal": "0x1F",
    "binary number": "0b11",
    "underscores": "1_000",
    "commas": "1,000",
    "sexagesimal": "1:30",
    "unit": "16GB",
    "percent": "50%",
    "smallest float": "5e-324",
    "small float": "1e-30",
    "exponent without a point": "1e-08",
    "thousand": "1000",
    "million": "1000000",
    "billion": "1000000000",
    "2^31": "2147483648",
    "2^63": "9223372036854775808",
    "2^64": "18446744073709551616",
    "10^30": "1e30",
    "10^30, whole": "1" + "0" * 30,
    "-2^63": "-9223372036854775808",
    "largest float": "1.7976931348623157e308",
    "list": "[a, b]",
    "empty list": "[]",
    "list of 1,000": "[" + ", ".join(["a"] * 1000) + "]",
    "mapping": "{a: 1}",
    "empty mapping": "{}",
    "mapping of a negative": "{facts: -1}",
    "mapping of texts": "{mine: 'there'}",
}
SCALARS = [
    *(BadValue(name, text, never=True) for name, text in NEVER.items()),
    *(BadValue(name, text) for name, text in SOMETIMES.items()),
]


def alias_bomb(levels: int = 12, width: int = 10) -> str:
    """A page that stands for width^levels values."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


BROKEN_FILES: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\n",
    "comment": b"# nothing\n",
    "only a document mark": b"---\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "list": b"- 1\n- 2\n",
    "word": b"hello\n",
    "number": b"3\n",
    "null": b"null\n",
    "latin-1": "größe: 1\n".encode("latin-1"),
    "UTF-16": "seed: 1\n".encode("utf-16"),
    "UTF-32": "seed: 1\n".encode("utf-32"),
    "half a character": "seed: größe\n".encode()[:-3],
    "surrogate in UTF-8": b"seed: \xed\xa0\x80\n",
    "null byte": b"seed: \x00\n",
    "escape": b"seed: \x1b[31m\n",
    "tabs": b"model:\n\tdepth: 3\n",
    "bad indent": b"model:\n   depth: 3\n  width: 4\n",
    "missing colon": b"seed 1\nmodel: 2\n",
    "merge conflict": b"<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> other\n",
    "JSON cut short": b'{"seed": 1, "model": {',
    "binary": bytes(range(256)),
    "zip": b"PK\x03\x04" + bytes(100),
    "alias bomb": alias_bomb().encode(),
    "anchor without end": b"a: &a [*a]\n",
    "deep": b"a: " + nested("[", "]", 20_000).encode() + b"\n",
    "deep by indent": "".join(" " * level + "a:\n" for level in range(1500)).encode(),
    "unknown directive": b"%FOO bar\n---\nseed: 1\n",
    "tag of all": b"!!python/object:os.system\nseed: 1\n",
    "set of all": b"!!set {seed}\n",
    "key twice": b"seed: 1\nmodel: {depth: 2}\nseed: 2\n",
    "section twice": b"model: {depth: 2}\nmodel: {depth: 3}\n",
    "key twice below": b"model:\n  depth: 2\n  depth: 3\n",
    "key as a list": b"? [a, b]\n: 1\n",
    "key of a date": b"2001-01-01: 1\n",
    "key of a number": b"1: 1\n",
    "key of true": b"true: 1\n",
    "key of a control character": b'"a\\eb": 1\n',
    "key of half a letter": b'"\\ud800": 1\n',
    "key of 100,000 letters": b"x" * 1000 + b": 1\n",
    "dotted key": b"model.depth: 3\n",
}


def check_explained(problems: list[str]) -> list[str]:
    """What is wrong with how a refusal is worded: it is empty, too long, unprintable or echoes a value whole."""
    faults: list[str] = []
    if not problems:
        faults.append("no problem is named")
    for problem in problems:
        if len(problem) > LONGEST_LINE:
            faults.append(f"{len(problem)} characters: {problem[:100]}")
        if not problem.isprintable():
            faults.append(f"unprintable: {problem!r}")
        if any(letter * LONGEST_ECHO in problem for letter in "x9f["):
            faults.append(f"a value is echoed: {problem[:100]}")
        if "Traceback" in problem or "Error(" in problem:
            faults.append(f"an error of the program: {problem[:100]}")
    return faults


def outcome(read: Any, *arguments: Any) -> tuple[Any, list[str]]:
    """(what `read` gives, []) or (None, the problems it names). Any other exception passes."""
    try:
        return read(*arguments), []
    except UserError as error:
        return None, error.problems


def at_key(dotted: str, text: str) -> str:
    """A YAML file with one value at a dotted key."""
    *parents, last = dotted.split(".")
    lines = [f"{'  ' * level}{name}:" for level, name in enumerate(parents)]
    lines.append(f"{'  ' * len(parents)}{last}: {text}")
    return "\n".join(lines) + "\n"


def cases(keys: list[str]) -> Iterator[tuple[str, BadValue]]:
    """Every key with every bad value."""
    for key in keys:
        for value in SCALARS:
            yield key, value
