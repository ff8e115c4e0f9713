"""What one module holds: its statements by the names they define, what each uses and imports, and a digest of its code.

What is hashed is the parsed code: comments, docstrings, quotes and line breaks change nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from paribus.errors import UserError
from paribus.graph.sources import ALL_SOURCES, Sources

# Functions that run code which no import names.
UNTRACEABLE = ("__import__", "exec", "eval")
UNTRACEABLE_OF_LIBRARIES = (
    "import_module",
    "run_module",
    "run_path",
    "spec_from_file_location",
    "SourceFileLoader",
)


class Outline:
    """The top-level statements of a module, by the names they define."""

    def __init__(self, tree: ast.Module, package: str) -> None:
        self.package = package
        self.statements: list[ast.stmt] = []  # imports split by name; without what does not run
        self.definitions: dict[str, list[ast.stmt]] = {}
        # What defines nothing runs on import: it belongs to every definition.
        self.always: list[ast.stmt] = []
        for statement in _running(tree.body):
            for part in _split_imports(statement):
                self.statements.append(part)
                names = _defined_names(part)
                for name in names:
                    self.definitions.setdefault(name, []).append(part)
                if not names:
                    self.always.append(part)
        self._used: dict[str, set[str]] = {}
        self._imports: dict[str, list[tuple[str, str]]] = {}
        self._untraceable: dict[str, bool] = {}

    def statements_of(self, definition: str) -> list[ast.stmt]:
        """The statements that define a name, and those that run in any case; all of them for an empty name."""
        if not definition:
            return self.statements
        return [*self.definitions.get(definition, []), *self.always]

    def names_used(self, definition: str) -> set[str]:
        """Names that a definition refers to; none for the whole module, which holds them."""
        self._look(definition)
        return self._used[definition] if definition else set()

    def imports(self, definition: str) -> list[tuple[str, str]]:
        """(module, name) of the imports in a definition, or "" for the whole module."""
        self._look(definition)
        return self._imports[definition]

    def untraceable(self, definition: str) -> bool:
        """Whether a definition, or "" for the whole module, calls what runs code that no import names."""
        self._look(definition)
        return self._untraceable[definition]

    def _look(self, definition: str) -> None:
        if definition in self._used:
            return
        used = set()
        read = set()
        attributes = set()
        imports = []
        for statement in self.statements_of(definition):
            for node in _walk_running(statement):
                if isinstance(node, ast.Name):
                    used.add(node.id)
                    if isinstance(node.ctx, ast.Load):
                        read.add(node.id)
                elif isinstance(node, ast.Attribute):
                    attributes.add(node.attr)
                else:
                    imports += _imports(node, self.package)
        self._used[definition] = used
        self._imports[definition] = imports
        names = read & {*UNTRACEABLE, *UNTRACEABLE_OF_LIBRARIES}
        of_libraries = attributes & {*UNTRACEABLE_OF_LIBRARIES}
        self._untraceable[definition] = bool(names or of_libraries)


def _imports(node: ast.AST, package: str) -> list[tuple[str, str]]:
    """(module, name) of everything that a statement of a module in `package` imports."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            parts = package.split(".")
            base = parts[: len(parts) + 1 - node.level]
            module = ".".join([*base, module]).rstrip(".")
        return [(module, alias.name) for alias in node.names]
    return []


def _split_imports(statement: ast.stmt) -> list[ast.stmt]:
    """`from a import b, c` as two statements, so that a definition reaches only what it uses."""
    if isinstance(statement, ast.ImportFrom):
        module, level = statement.module, statement.level
        return [ast.ImportFrom(module, [alias], level) for alias in statement.names]
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    return [statement]


def _defined_names(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement binds."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    names = []
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                names.append(node.id)
    return names


@functools.lru_cache(maxsize=1024)
def outline_of(source: bytes, path: str) -> Outline:
    """What a module holds. source: of the file at `path`, from the project's root. Raises UserError if it is not Python."""
    folder = path.removeprefix(f"{ALL_SOURCES}/").rpartition("/")[0]
    return Outline(_parsed(source, path), folder.replace("/", "."))


def _parsed(source: bytes, path: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not Python: {error}") from None


@functools.lru_cache(maxsize=4096)
def code_digest(source: bytes, path: str, definitions: frozenset[str] | None) -> str:
    """sha256 of a module's parsed code, or of some of its definitions in the order of the file."""
    outline = outline_of(source, path)
    wanted = outline.statements
    if definitions is not None:
        chosen = {id(part) for name in definitions for part in outline.statements_of(name)}
        wanted = [part for part in outline.statements if id(part) in chosen]
    return _digest(wanted)


def _digest(code: object) -> str:
    """sha256 of a syntax tree, or of several in order."""
    text = json.dumps(_canonical(code), separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(node: object) -> object:
    """A syntax tree as JSON without places, contexts and docstrings; the same under every version of Python.

    Empty fields are left out, as a newer Python may add some.
    """
    if isinstance(node, list):
        return [_canonical(item) for item in _running(node)]
    if not isinstance(node, ast.AST):
        return [type(node).__name__, repr(node)]
    fields = {}
    for name, value in ast.iter_fields(node):
        if name not in ("ctx", "kind", "type_comment") and value not in (None, []):
            fields[name] = _canonical(value)
    return [type(node).__name__, fields]


def _is_docstring(statement: object) -> bool:
    """Whether a statement is a string without a use: a docstring, or a string used as a comment."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


def definitions_that_import(package: str, path: str, sources: Sources) -> list[str]:
    """The top-level definitions of a module that import from a package, sorted.

    path: of the module. sources: of the checkout or of a commit.
    """
    outline = outline_of(sources.files[path], path)
    found = []
    for name in outline.definitions:
        for module, _ in outline.imports(name):
            if module == package or module.startswith(f"{package}."):
                found.append(name)
                break
    return sorted(found)


def definition_digest(path: str, name: str, sources: Sources) -> str | None:
    """A digest of a definition of a module, `function` or `Class.method`; None where it is absent.

    Args:
        path: of the module.
        name: of the definition.
        sources: of the checkout or of a commit.
    """
    nodes: list[ast.stmt] = _parsed(sources.files[path], path).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in nodes if getattr(node, "name", None) == part), None)
        nodes = getattr(found, "body", [])
    if found is None:
        return None
    return _digest(found)


# ---------------------------------------------------------------- what runs


def _walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """A node and everything below it that runs, in no particular order."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        for _, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                waiting.append(value)
            elif isinstance(value, list):
                waiting += [child for child in _running(value) if isinstance(child, ast.AST)]


def _running(statements: list[Any]) -> list[Any]:
    """The statements that run: no docstrings, and of `if TYPE_CHECKING:` only its `else`."""
    found = []
    for statement in statements:
        if isinstance(statement, ast.If) and _names_type_checking(statement.test):
            found += statement.orelse
        elif not _is_docstring(statement):
            found.append(statement)
    return found


def _names_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
