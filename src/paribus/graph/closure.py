"""The code of a stage: the static import closure of its function, and a digest of each file that ignores prose.

The closure is computed from the source, never from a list kept by hand:

- it starts at the stage's function (`ENTRY_POINTS`) and follows every import it can reach, also those inside functions,
  relative ones, and those of other packages in `src/`;
- a module that runs code which cannot be followed (`importlib.import_module`, `exec`) brings every file of `src/` with it;
- of the modules in `paribus.stages` only the definitions that the function reaches count, so that stages may share a
  module; any other module counts whole, with the packages it lies in;
- `OBSERVERS` only watch (logs, progress, locks, plans) and `CALLBACKS` only measure: both are left out. Neither may
  change a byte of an output, and tests/system/test_closure.py holds the rule by which they are recognised.

Which text counts, the working folder's or a commit's, is said by `sources.Sources`; what a module holds, and the digest that
comments and docstrings leave alone, is in outline.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from paribus.errors import UserError
from paribus.graph.outline import code_digest, outline_of
from paribus.graph.sources import SOURCE_FOLDER, Sources

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
        digests[path] = code_digest(sources.files[path], path, frozenset(names) if names else None)
        for resource in _resources(module, sources):
            digests[resource] = hashlib.sha256(sources.files[resource]).hexdigest()
    if any(_runs_untraceable_code(module, names, sources) for module, names in closure.items()):
        for path, contents in sources.files.items():
            digests.setdefault(path, hashlib.sha256(contents).hexdigest())
    return digests


def entry_module(stage: str) -> str:
    """The module with the function that runs a stage of paribus's own. stage: its name, without `@item`."""
    return ENTRY_POINTS[stage].partition(":")[0]


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
    outline = outline_of(sources.files[path], path)
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
    outline = outline_of(sources.files[path], path)
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
