"""The house: heavy libraries stay where they belong. That imports point down is import-linter's to say (pyproject.toml)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from support.checkout import ROOT

PACKAGE = ROOT / "src" / "paribus"
BARE = {
    "model",
    "data",
    "world",
    "calculator",
    "generate",
    "evaluate",
    "train",
}  # must run where only torch and its like are
BARE_LIBRARIES = {"torch", "numpy", "tokenizers", "safetensors", "paribus"}
LAZY_LIBRARIES = {
    "yaml",
    "pyarrow",
    "zstandard",
    "datasets",
    "huggingface_hub",
    "httpx2",
    "lm_eval",
}
ONLY_HOME = {
    "mlflow": ("tracking",),
    "optuna": ("tune", "study/spaces", "study/tuned"),  # `tune:` of a study too
    "lm_eval": ("evaluate/harness",),
}

MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__main__.py",) and path != PACKAGE / "__init__.py"
)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, lazy) for every import; lazy ones are inside functions or under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    eager = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in eager) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (
                [f"{node.module}.{a.name}" for a in node.names]
                if node.module == "paribus"
                else [node.module or ""]
            )
            found += [(name, id(node) not in eager) for name in names]
    return found


def test_core_needs_only_torch_and_its_like() -> None:
    bare = BARE_LIBRARIES | set(sys.stdlib_module_names)
    foreign = []
    for path in MODULES:
        if name_of(path).split("/")[0] not in BARE:
            continue
        for module, lazy in imports(path):
            allowed = bare | LAZY_LIBRARIES if lazy else bare
            if module.split(".")[0] not in allowed:
                foreign.append(f"{name_of(path)} imports {module}")
    assert not foreign


def test_each_tool_has_one_home() -> None:
    strays = []
    for path in MODULES:
        for module, _ in imports(path):
            homes = ONLY_HOME.get(module.split(".")[0], ("",))
            if not name_of(path).startswith(homes):
                strays.append(f"{name_of(path)} imports {module}; only {homes} may")
    assert not strays


def test_no_file_is_too_long() -> None:
    long = {
        name_of(path): lines for path in MODULES if (lines := path.read_text().count("\n")) > 650
    }
    assert not long
