"""The code of a stage: the static import closure of its function, and a digest of each file that ignores prose.

The closure is computed from the source, never from a list kept by hand:

- it starts at the stage's function (`ENTRY_POINTS`) and follows every import it can reach, also those inside functions,
  relative ones, and those of other packages in `src/`;
- a module that runs code which cannot be followed (`importlib.import_module`, `exec`) brings every file of `src/` with it;
- of the modules in `paribus.stages` only the definitions that the function reaches count, so that stages may share a
  module; any other module counts whole, with the packages it lies in;
- `OBSERVERS` only watch (logs, progress, locks, plans) and `CALLBACKS` only measure: both are left out. Neither may
  change a byte of an output, and tests/system/test_closure.py holds the rule by which they are recognised.

What is hashed is the parsed code: comments, docstrings, quotes and line breaks change nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paribus.errors import UserError
from paribus.git import GitError, git, git_bytes
from paribus.graph.digests import files_below

SOURCE_FOLDER = "src/paribus"
ALL_SOURCES = "src"

# Functions that run code which no import names.
UNTRACEABLE = ("__import__", "exec", "eval")
UNTRACEABLE_OF_LIBRARIES = (
    "import_module",
    "run_module",
    "run_path",
    "spec_from_file_location",
    "SourceFileLoader",
)

# Stage of dvc.yaml, without `@item` -> the function that runs it.
ENTRY_POINTS = {
    "corpus": "paribus.stages.data:corpus",
    "tokenizer": "paribus.stages.data:tokenizer",
    "tokens": "paribus.stages.data:tokens",
    "pretrain": "paribus.stages.training:pretrain",
    "midtrain": "paribus.stages.training:midtrain",
    "sft": "paribus.stages.training:sft",
    "rl": "paribus.stages.training:rl",
    "core": "paribus.stages.evaluation:core",
    "gsm8k_stage": "paribus.stages.evaluation:gsm8k",
    "gsm8k": "paribus.stages.evaluation:compare_stages",
    "report": "paribus.pages.report_stage:report",
}

# Stages that read and write text: no other version of a library may make them read a hundred gigabytes again.
DATA_STAGES = ("corpus", "tokenizer", "tokens")

# Modules and packages that only watch a run. They may not return a value that an output depends on.
OBSERVERS = (
    "paribus.api",
    "paribus.graph",
    "paribus.machine.interrupt",
    "paribus.machine.lock",
    "paribus.plan",
    "paribus.progress",
    "paribus.stages.earlier",
    "paribus.tracking",
)

# (importer, imported): a measurement that a stage takes on the way, which decides no weight. `pretrain.core_every` logs an
# estimate of CORE; the stage `core` measures it.
CALLBACKS = {
    ("paribus.stages.callbacks", "paribus.evaluate.core"),
    ("paribus.stages.callbacks", "paribus.data.core_bundle"),
}

# Files that are not Python and still decide outputs: module -> paths below the package.
RESOURCES = {
    "paribus.pages.report": ("pages/templates/page.css.j2", "pages/templates/report.html.j2")
}

# In this package a module's definitions count one by one.
SHARED_MODULES = "paribus.stages"


@dataclass(frozen=True)
class Sources:
    """The package's source files: path from the project's root -> contents."""

    files: Mapping[str, bytes]

    def path_of(self, module: str) -> str | None:
        """The file of a module or package; None without one."""
        stem = "src/" + module.replace(".", "/")
        for path in (f"{stem}/__init__.py", f"{stem}.py"):
            if path in self.files:
                return path
        return None


def working_sources(root: Path = Path()) -> Sources:
    """The sources of the checkout at `root` as they are now, committed or not.

    A folder without a source tree of its own, as the outputs of an installed paribus may have, stands for
    the package that runs.
    """
    folder = root / SOURCE_FOLDER
    if not folder.is_dir():
        folder = Path(__file__).resolve().parents[1]
    found = {f"{SOURCE_FOLDER}/{name}": path for name, path in files_below(folder)}
    if (root / SOURCE_FOLDER).is_dir():
        others = files_below(root / ALL_SOURCES)
        found |= {f"{ALL_SOURCES}/{name}": path for name, path in others if name.endswith(".py")}
    return Sources({name: found[name].read_bytes() for name in sorted(found)})


@functools.lru_cache(maxsize=64)
def committed_sources(commit: str, root: Path = Path()) -> Sources:
    """The sources of a commit, links followed. Raises UserError where git does not have it.

    Args:
        commit: a full hash; a name that may move would be remembered at its old place.
        root: of the checkout.
    """
    try:
        return Sources(_contents(commit, _source_names(commit, root), root))
    except GitError as error:
        reason = error.problems[0]
        raise UserError(f"{commit}: its {SOURCE_FOLDER} cannot be read: {reason}") from None


def _source_names(commit: str, root: Path) -> list[str]:
    """The files of a commit that may be a stage's code, from the project's root."""
    listed = git("ls-tree", "-r", "-z", "--name-only", commit, "--", f"{ALL_SOURCES}/", at=root)
    names = []
    for name in listed.split("\0"):
        if name.startswith(f"{SOURCE_FOLDER}/") or name.endswith(".py"):
            names.append(name)
    return names


def _contents(commit: str, names: list[str], root: Path) -> dict[str, bytes]:
    """File -> what a commit holds in it, links followed; a link that leads out of the commit counts as its own text."""
    prefix = git("rev-parse", "--show-prefix", at=root)
    asked = "".join(f"{commit}:{prefix}{name}\n" for name in names)
    answer = git_bytes("cat-file", "--batch", "--follow-symlinks", at=root, text=asked)
    lines = io.BytesIO(answer)
    files = {}
    for name in names:
        words = lines.readline().split()
        if words[-1].isdigit():  # a submodule has no contents here
            files[name] = lines.read(int(words[-1]))
            lines.readline()
    return files


def stage_code(stage: str, sources: Sources) -> dict[str, str]:
    """Source file -> digest of what it contributes to a stage: all the code that can decide the stage's outputs.

    Args:
        stage: its name in dvc.yaml, with or without `@item`. Raises UserError for a stage without an entry point or a
          file that is not Python.
        sources: of the checkout or of a commit.
    """
    closure = _closure(stage, sources)
    digests = {}
    for module, names in sorted(closure.items()):
        path = sources.path_of(module)
        if path is None:  # a package without an __init__.py
            continue
        digests[path] = _code_digest(sources.files[path], path, frozenset(names) if names else None)
        for resource in _resources(module, sources):
            digests[resource] = hashlib.sha256(sources.files[resource]).hexdigest()
    if any(_runs_untraceable_code(module, names, sources) for module, names in closure.items()):
        for path, contents in sources.files.items():
            digests.setdefault(path, hashlib.sha256(contents).hexdigest())
    return digests


def entry_module(stage: str) -> str:
    """The module with the function that runs a stage of paribus's own. stage: its name, without `@item`."""
    return ENTRY_POINTS[stage].partition(":")[0]


def definitions_that_import(package: str, path: str, sources: Sources) -> list[str]:
    """The top-level definitions of a module that import from a package, sorted.

    path: of the module. sources: of the checkout or of a commit.
    """
    outline = _outline(sources.files[path], path)
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
    text = json.dumps(_canonical(found), separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stage_files(stage: str, sources: Sources) -> list[str]:
    """The source files of a stage's closure in `sources`, sorted: its `src/` deps in dvc.yaml."""
    return sorted(stage_code(stage, sources))


def generated_deps(sources: Sources) -> dict[str, list[str]]:
    """Stage -> the deps on code that dvc.yaml has to name: its source files and, where it computes, the libraries' lock."""
    deps = {}
    for stage in ENTRY_POINTS:
        lock = [] if stage in DATA_STAGES else ["requirements.lock"]
        deps[stage] = [*lock, *stage_files(stage, sources)]
    return deps


# ---------------------------------------------------------------- the closure


def _closure(stage: str, sources: Sources) -> dict[str, set[str]]:
    """Module -> the names of its definitions that the stage reaches; an empty set means the whole module."""
    name = stage.partition("@")[0]
    if name not in ENTRY_POINTS:
        raise UserError(f"{stage}: no entry point; stages are: {', '.join(ENTRY_POINTS)}")
    module, _, function = ENTRY_POINTS[name].partition(":")
    reached: dict[str, set[str]] = {}
    waiting = [(module, function)]
    while waiting:
        module, definition = waiting.pop()
        for target in _reached(module, definition, sources):
            if _is_observer(target[0]) or (module, target[0]) in CALLBACKS:
                continue
            names = reached.get(target[0])
            if names is not None and (target[1] in names or not target[1]):
                continue
            reached.setdefault(target[0], set()).update({target[1]} - {""})
            waiting.append(target)
    return reached


def _reached(module: str, definition: str, sources: Sources) -> Iterator[tuple[str, str]]:
    """(module, definition or "") of everything that a module, or one definition of a shared one, reaches directly."""
    path = sources.path_of(module)
    if path is None:
        return
    for package in _packages(module):
        yield package, ""
    outline = _outline(sources.files[path], path)
    yield module, definition
    for name in outline.names_used(definition):
        if name in outline.definitions:
            yield module, name
    for imported in outline.imports(definition):
        yield from _resolved(imported, sources)


def _runs_untraceable_code(module: str, names: set[str], sources: Sources) -> bool:
    """Whether a module, or one of its definitions that count, runs code that no import names."""
    path = sources.path_of(module)
    if path is None:
        return False
    outline = _outline(sources.files[path], path)
    return any(outline.untraceable(name) for name in names or {""})


def _packages(module: str) -> list[str]:
    """The packages that importing a module runs first."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _is_observer(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in OBSERVERS)


def _resolved(imported: tuple[str, str], sources: Sources) -> Iterator[tuple[str, str]]:
    """What `from module import name` (or `import module`, with an empty name) reaches."""
    module, name = imported
    submodule = f"{module}.{name}" if name else module
    if sources.path_of(submodule):
        yield submodule, ""
    elif name and module.startswith(f"{SHARED_MODULES}."):
        yield module, name
    elif sources.path_of(module):
        yield module, ""


def _walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """A node and everything below it that runs."""
    yield node
    for _, value in ast.iter_fields(node):
        children = _running(value) if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST):
                yield from _walk_running(child)


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


def _resources(module: str, sources: Sources) -> list[str]:
    """The files of a module that are not Python: those in RESOURCES, and those beside a package's `__init__.py`."""
    found = [f"{SOURCE_FOLDER}/{name}" for name in RESOURCES.get(module, ())]
    path = sources.path_of(module) or ""
    if path.endswith("/__init__.py"):
        folder = path.removesuffix("__init__.py")
        for name in sources.files:
            beside = name.startswith(folder) and "/" not in name.removeprefix(folder)
            if beside and not name.endswith((".py", "py.typed")):
                found.append(name)
    return found


# ---------------------------------------------------------------- one module


class _Outline:
    """The top-level statements of a module, by the names they define."""

    def __init__(self, tree: ast.Module, package: str) -> None:
        self.package = package
        self.statements: list[ast.stmt] = []  # imports split by name; without what does not run
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.always: list[
            ast.stmt
        ] = []  # defines nothing, runs on import: belongs to every definition
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
def _outline(source: bytes, path: str) -> _Outline:
    folder = path.removeprefix(f"{ALL_SOURCES}/").rpartition("/")[0]
    return _Outline(_parsed(source, path), folder.replace("/", "."))


def _parsed(source: bytes, path: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not Python: {error}") from None


@functools.lru_cache(maxsize=4096)
def _code_digest(source: bytes, path: str, definitions: frozenset[str] | None) -> str:
    """sha256 of a module's parsed code, or of some of its definitions in the order of the file."""
    outline = _outline(source, path)
    wanted = outline.statements
    if definitions is not None:
        chosen = {id(part) for name in definitions for part in outline.statements_of(name)}
        wanted = [part for part in outline.statements if id(part) in chosen]
    text = json.dumps([_canonical(part) for part in wanted], separators=(",", ":"))
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
