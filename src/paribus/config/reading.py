"""The one reader of YAML: a file's values, exactly as DVC reads them, or every problem with its line and key.

DVC reads `params.yaml` with ruamel.yaml (YAML 1.2), and so does this module: with another reader `010`, `1:30` or `yes`
would be one value to DVC, which decides what runs again, and another to the stage. ruamel parses the text and decides
what each scalar is; the walk over its nodes adds what people need: plain values only, no key twice, names for problems.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from paribus.errors import UserError, escaped, shown

MAX_BYTES = 16 * 2**20  # of a file; the largest here, dvc.lock, has 24 KB
MAX_DEPTH = 32  # sections within sections; params.yaml has 4
MAX_REPEATS = 10_000  # values that aliases may repeat: a page of them can stand for 10^9 values

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    f"{_TAG}null": "construct_yaml_null",
    f"{_TAG}bool": "construct_yaml_bool",
    f"{_TAG}int": "construct_yaml_int",
    f"{_TAG}float": "construct_yaml_float",
    f"{_TAG}str": "construct_scalar",
}
_FOREIGN = {
    f"{_TAG}timestamp": "a date, which no key takes; quote it if it is text",
    f"{_TAG}binary": "binary data, which no key takes",
    f"{_TAG}set": "a set, which no key takes; write a list",
    f"{_TAG}omap": "an ordered mapping, which no key takes; write a mapping",
    f"{_TAG}value": "the sign =, which YAML keeps for itself; quote it if it is text",
    f"{_TAG}merge": "the sign <<, which YAML keeps for itself; quote it if it is text",
}


class Misread:
    """Stands for a value that YAML has and no key takes (a date, a set, a tag of its own); printed, it says so."""

    def __init__(self, text: str, why: str, line: int) -> None:
        self.text, self.why, self.line = text, why, line

    def __repr__(self) -> str:
        return f"{self.text} (line {self.line}: {self.why})"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, read as DVC reads it. Raises UserError with every problem, line and key."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a text of YAML, which is called `where` in errors. Raises UserError."""
    values, problems = parse_leniently(text, where)
    problems += _misread(values, where, ())
    if problems:
        raise UserError(problems)
    return values


def parse_leniently(text: str, where: str) -> tuple[dict[str, object], list[str]]:
    """(values, problems): a value that no key takes becomes a `Misread`, for a caller who knows what the key takes.

    Raises UserError where the text is not YAML or no mapping.
    """
    document = _Document(text, where)
    values = document.value
    if not isinstance(values, dict):
        raise UserError([*document.problems, f"{where}: expected a mapping of keys to values"])
    return values, document.problems


def parse_value(text: str, where: str) -> object:
    """One value, as in `-S KEY=VALUE`, read as a value in params.yaml is. Raises UserError.

    Args:
        text: as it was typed.
        where: it was typed, for messages.
    """
    document = _Document(text, where)
    problems = document.problems + _misread(document.value, where, ())
    if problems:
        raise UserError(problems)
    return document.value


def dump_yaml(values: object) -> str:
    """Plain values as YAML that `parse_yaml` and DVC read back as they are: a text such as 08 or 1e3 stays text."""
    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    writer.width = 2**20
    stream = io.StringIO()
    writer.dump(values, stream)
    return stream.getvalue()


def read_text(path: str | Path) -> str:
    """The text of a file of settings. Raises UserError where it is absent, too large or not UTF-8."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(
            f"{path}: {len(data):,} bytes; a file of settings has at most {MAX_BYTES:,}"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None


class _Document:
    """The value of a text, and the problems met."""

    def __init__(self, text: str, where: str) -> None:
        from ruamel.yaml import YAML

        self.where = where
        self.problems: list[str] = []
        self._yaml = YAML(
            typ="safe"
        )  # as DVC makes its own: with the parser in C, where it is installed
        self._seen: set[int] = set()
        self._repeats = 0
        node = self._compose(text)
        self.value = None if node is None else self._plain(node, (), [])

    def _compose(self, text: str) -> object:
        """The root of ruamel's nodes."""
        from ruamel.yaml.error import YAMLError

        try:
            self._check_depth(text)
            return self._yaml.compose(text)
        except YAMLError as error:
            raise UserError(f"{self.where}: {_syntax(error, text)}") from None
        except ValueError as error:
            raise UserError(f"{self.where}: not YAML: {error}") from None

    def _check_depth(self, text: str) -> None:
        """Raises UserError for sections nested so deep that a parser which calls itself for each may run out of stack."""
        from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

        depth = 0
        for event in self._yaml.parse(text):
            if isinstance(event, CollectionStartEvent):
                depth += 1
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                line = _line(event)
                raise UserError(
                    f"{self.where}: line {line}: nested deeper than {MAX_DEPTH} levels{_excerpt(text, line)}"
                )

    def _plain(self, node: Any, path: tuple[str, ...], parents: list[int]) -> Any:
        """The value of a node."""
        if id(node) in parents:
            return self._problem(node, path, "refers to itself")
        if id(node) in self._seen:
            self._repeats += 1
        self._seen.add(id(node))
        if self._repeats > MAX_REPEATS:
            place = f"{_dotted(path)}: " if path else ""
            raise UserError(
                f"{self.where}: line {_line(node)}: {place}aliases stand for more than {MAX_REPEATS:,} values; "
                "write the values out"
            )
        below = [*parents, id(node)]
        if node.tag == f"{_TAG}map" and hasattr(node, "value") and _is_pairs(node):
            return self._mapping(node, path, below)
        if node.tag == f"{_TAG}seq" and isinstance(node.value, list):
            return [
                self._plain(item, (*path, f"[{number}]"), below)
                for number, item in enumerate(node.value)
            ]
        return self._scalar(node)

    def _mapping(self, node: Any, path: tuple[str, ...], parents: list[int]) -> dict[str, object]:
        """The values of a mapping; `<<` takes in those of others, which its own keys override."""
        own: dict[str, object] = {}
        taken: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                taken = self._merged(value_node, path, parents) | taken
                continue
            name = self._key(key_node, path)
            if name is None:
                continue
            line = _line(key_node)
            if name in lines:
                dotted = _dotted((*path, escaped(name)))
                self.problems.append(
                    f"{self.where}: line {line}: {dotted} is there already, on line {lines[name]}; "
                    "a key may stand once"
                )
                continue
            lines[name] = line
            own[name] = self._plain(value_node, (*path, escaped(name)), parents)
        return taken | own

    def _merged(self, node: object, path: tuple[str, ...], parents: list[int]) -> dict[str, object]:
        """The values that `<<` takes in: a mapping's, or those of a list of mappings, the first of which wins."""
        value = self._plain(node, (*path, "<<"), parents)
        parts = value if isinstance(value, list) else [value]
        taken: dict[str, object] = {}
        for part in reversed(parts):
            if not isinstance(part, dict):
                self._problem(node, (*path, "<<"), "takes a mapping, or a list of mappings")
                return {}
            taken |= part
        return taken

    def _key(self, node: Any, path: tuple[str, ...]) -> str | None:
        """The name that a key's node holds; None, and a problem, where it is not text."""
        value = self._scalar(node) if isinstance(node.value, str) else None
        if isinstance(value, str):
            return value
        what = (
            shown_text(node.value) if isinstance(node.value, str) else "that is a list or mapping"
        )
        self._problem(
            node, path, f"the key {what} is no text; expected a name, in quotes if need be"
        )
        return None

    def _scalar(self, node: Any) -> object:
        """A number, a truth value, a text or null, as ruamel makes it; else a Misread."""
        tag, line = str(node.tag), _line(node)
        text = shown_text(node.value) if isinstance(node.value, str) else "[…]"
        if tag in _FOREIGN:
            return Misread(text, _FOREIGN[tag], line)
        if tag not in _SCALARS or not isinstance(node.value, str):
            name = tag.replace(_TAG, "!!")
            return Misread(text, f"the tag {escaped(name)}, which is not known here", line)
        try:
            value = getattr(self._yaml.constructor, _SCALARS[tag])(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            if len(node.value) > 1000:
                return Misread(text, f"a number of {len(node.value):,} digits", line)
            return Misread(text, f"not what its tag {tag.replace(_TAG, '!!')} says", line)
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            return Misread(text, "half a letter (a lone surrogate), which is no text", line)
        return value

    def _problem(self, node: object, path: tuple[str, ...], what: str) -> None:
        place = f"{_dotted(path)}: " if path else ""
        self.problems.append(f"{self.where}: line {_line(node)}: {place}{what}")


def _is_pairs(node: Any) -> bool:
    """Whether a node holds pairs of nodes, and not a text or a list with a mapping's tag."""
    return isinstance(node.value, list) and all(isinstance(one, tuple) for one in node.value)


def _dotted(path: tuple[str, ...]) -> str:
    """`a.b[2].c` of its parts."""
    return "".join(part if part.startswith("[") else f".{part}" for part in path).lstrip(".")


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def shown_text(text: str) -> str:
    """A scalar as it is written, cut short and without control characters."""
    return shown(text)[1:-1] if text else "an empty value"


def _misread(value: object, where: str, path: tuple[str, ...]) -> list[str]:
    """A problem for every Misread below a value."""
    if isinstance(value, Misread):
        place = f"{_dotted(path)}: " if path else ""
        return [f"{where}: line {value.line}: {place}{value.text} is {value.why}"]
    items: list[tuple[str, object]] = []
    if isinstance(value, dict):
        items = [(escaped(name), item) for name, item in value.items()]
    if isinstance(value, list):
        items = [(f"[{number}]", item) for number, item in enumerate(value)]
    problems: list[str] = []
    for name, item in items:
        problems += _misread(item, where, (*path, name))
    return problems


def _syntax(error: object, text: str) -> str:
    """The message of ruamel on a text that is not YAML, with the line, so that the key can be seen."""
    position = getattr(error, "position", None)
    if isinstance(position, int):
        number = text.count("\n", 0, position) + 1
        problem = f"the character {text[position : position + 1]!r} is not allowed"
        return f"line {number}: not YAML: {problem}{_excerpt(text, number)}"
    context, problem = getattr(error, "context", None) or "", getattr(error, "problem", None) or ""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"not YAML: {escaped(' '.join(str(error).split()))}"
    began = getattr(error, "context_mark", None)
    if began is not None and ("flow" in context or "quoted" in context):
        mark = began  # what was not closed is where it was opened
    words = escaped(" ".join(f"{context} {problem}".split()), limit=None)
    return f"line {mark.line + 1}: not YAML: {words}{_excerpt(text, mark.line + 1)}"


def _excerpt(text: str, number: int) -> str:
    """A line of the text, cut short, and the key that it belongs to, as far as indentation tells."""
    lines = text.split("\n")
    line = lines[number - 1].strip() if number <= len(lines) else ""
    if not line:
        return ""
    key = _key_at(lines, number)
    return f" (the line is: {escaped(line)}{', at ' + key if key else ''})"


def _key_at(lines: list[str], number: int) -> str:
    """The dotted key on a line of a file that may be no YAML: the keys above it that are indented less."""
    names: list[str] = []
    indent = 10**6
    for line in reversed(lines[max(number - 1_000, 0) : number]):
        match = re.match(r"( *)([A-Za-z_][\w.-]{0,79}):", line)
        if match and len(match[1]) < indent:
            indent = len(match[1])
            names.insert(0, match[2])
        if indent == 0:
            break
    return ".".join(names[-MAX_DEPTH:])
