"""The code of a stage: what changes its fingerprint, and what must not."""

from __future__ import annotations

import ast
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from paribus import graph
from paribus.config import Config
from paribus.errors import UserError
from paribus.graph import closure
from paribus.machine.provenance import stage_fingerprint

SITES = 150  # mutated, at least one in each module of a closure
PACKAGE = "src/paribus"
OPPOSITES: dict[type[ast.operator], tuple[bytes, bytes]] = {
    ast.Add: (b"+", b"-"),
    ast.Sub: (b"-", b"+"),
    ast.Mult: (b"*", b"/"),
    ast.FloorDiv: (b"//", b"%"),
}


@pytest.fixture(scope="module")
def sources(project_root: Path) -> graph.Sources:
    return graph.working_sources(project_root)


@pytest.fixture(scope="module")
def code(sources: graph.Sources) -> dict[str, dict[str, str]]:
    """Stage -> source file -> digest."""
    return {stage: graph.stage_code(stage, sources) for stage in graph.ENTRY_POINTS}


# ---------------------------------------------------------------- dvc.yaml


def test_dvc_yaml_names_the_code_of_every_stage(project_root: Path, sources: graph.Sources) -> None:
    text = (project_root / "dvc.yaml").read_text(encoding="utf-8")
    current = graph.with_generated_deps(text, graph.generated_deps(sources))
    assert current == text, "dvc.yaml is stale; run `paribus deps` and commit it"


def test_every_stage_of_dvc_yaml_has_an_entry_point(project_root: Path) -> None:
    stages = graph.stage_definitions(project_root / "dvc.yaml")
    assert {name.partition("@")[0] for name in stages} == set(graph.ENTRY_POINTS)


def test_entry_points_are_what_the_commands_run() -> None:
    from importlib import import_module

    for entry in graph.ENTRY_POINTS.values():
        module, _, function = entry.partition(":")
        assert callable(getattr(import_module(module), function))


# ---------------------------------------------------------------- what a change does


@dataclass(frozen=True)
class Site:
    """A place where a file can be made another program: bytes start to end become `text`."""

    path: str
    start: int
    end: int
    text: bytes

    def mutant(self, sources: graph.Sources) -> graph.Sources:
        contents = sources.files[self.path]
        changed = contents[: self.start] + self.text + contents[self.end :]
        return graph.Sources({**sources.files, self.path: changed})


def sites(path: str, source: bytes) -> list[Site]:
    """Every number that can be another one, and every operator that can be its opposite."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    left_out = docstrings(tree) | annotations_of_type_checkers(tree)
    found = []
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            if isinstance(node.value, bool):
                continue
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            found.append(Site(path, start, end, repr(2 * node.value + 1).encode()))
        if isinstance(node, ast.BinOp) and type(node.op) in OPPOSITES:
            start = starts[(node.left.end_lineno or 0) - 1] + (node.left.end_col_offset or 0)
            end = starts[node.right.lineno - 1] + node.right.col_offset
            old, new = OPPOSITES[type(node.op)]
            between = source[start:end]
            if between.count(old) == 1 and b"#" not in between:
                found.append(Site(path, start, end, between.replace(old, new)))
    return found


def docstrings(tree: ast.AST) -> set[int]:
    """Every node that is part of a string statement."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
    return found


def annotations_of_type_checkers(tree: ast.AST) -> set[int]:
    """Every node below an `if TYPE_CHECKING:`, which does not run."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                found |= {id(inner) for inner in ast.walk(statement)}
    return found


def sampled_sites(sources: graph.Sources, code: dict[str, dict[str, str]]) -> list[Site]:
    """One site of each module that any stage reaches, then more by lot."""
    chance = random.Random(7)
    reached = sorted({path for files in code.values() for path in files if path.endswith(".py")})
    first: list[Site] = []
    rest: list[Site] = []
    for path in reached:
        found = sites(path, sources.files[path])
        if found:
            first.append(found.pop(chance.randrange(len(found))))
            rest += found
    return first + chance.sample(rest, SITES - len(first))


def test_a_changed_operator_or_constant_changes_exactly_the_stages_that_reach_it(
    sources: graph.Sources, code: dict[str, dict[str, str]]
) -> None:
    tried = 0
    for site in sampled_sites(sources, code):
        path, mutant = site.path, site.mutant(sources)
        changed = {
            stage for stage in graph.ENTRY_POINTS if graph.stage_code(stage, mutant) != code[stage]
        }
        reaching = {stage for stage, files in code.items() if path in files}
        if path.startswith(f"{PACKAGE}/stages/"):  # shared: each stage reaches some definitions
            assert changed <= reaching, site
        else:
            assert changed == reaching, site
        tried += 1
    assert tried >= 100


def test_a_changed_word_of_a_template_changes_the_corpus_alone(
    sources: graph.Sources, code: dict[str, dict[str, str]]
) -> None:
    templates = [path for path in sources.files if path.startswith(f"{PACKAGE}/world/")]
    templates = [path for path in templates if path.endswith(".yaml")]
    assert len(templates) >= 7
    for path in templates:
        contents = sources.files[path].replace(b"one", b"two").replace(b"the", b"a")
        assert contents != sources.files[path]
        mutant = graph.Sources({**sources.files, path: contents})
        changed = [
            stage for stage in graph.ENTRY_POINTS if graph.stage_code(stage, mutant) != code[stage]
        ]
        assert changed == ["corpus"], path


def test_a_change_in_a_stage_function_changes_that_stage_alone(sources: graph.Sources) -> None:
    path = f"{PACKAGE}/stages/training.py"
    text = sources.files[path].decode()
    changed = text.replace('"midtrain", "base", "mid"', '"midtrain", "base", "base"')
    assert changed != text
    mutant = graph.Sources({**sources.files, path: changed.encode()})
    different = [
        stage
        for stage in graph.ENTRY_POINTS
        if graph.stage_code(stage, mutant) != graph.stage_code(stage, sources)
    ]
    assert different == ["midtrain"]


def test_comments_docstrings_and_layout_change_no_stage(
    sources: graph.Sources, code: dict[str, dict[str, str]]
) -> None:
    reworded: dict[str, bytes] = {}
    for path, contents in sources.files.items():
        if path.endswith(".py"):
            tree = ast.parse(contents)
            prose = docstrings(tree)
            for node in ast.walk(tree):
                if id(node) in prose and isinstance(node, ast.Constant):
                    node.value = "Other words."
            contents = b"# a comment\n" + ast.unparse(tree).encode() + b"\n# another one\n"
        reworded[path] = contents
    for stage in graph.ENTRY_POINTS:
        assert graph.stage_code(stage, graph.Sources(reworded)) == code[stage]


# Edits that once changed weights or halved a metric under the same fingerprint: (file, text, its replacement).
SILENT_EDITS = {
    "the learning rate tripled": (
        "train/trainer.py",
        "return common_factor(self.recipe.schedule(self.stage), place, steps)",
        "return 3 * common_factor(self.recipe.schedule(self.stage), place, steps)",
    ),
    "the horizon doubled": (
        "config/derived.py",
        "horizon = pretrain.tokens_per_parameter * parameters",
        "horizon = 2 * pretrain.tokens_per_parameter * parameters",
    ),
    "another dtype": (
        "machine/hardware.py",
        'isa in ("amx_bf16", "avx512_bf16")',
        'isa in ("amx_bf16", "avx512")',
    ),
    "fewer key-value heads": (
        "config/derived.py",
        "model.n_kv_heads or n_heads",
        "model.n_kv_heads or 1",
    ),
}


@pytest.mark.parametrize("edit", SILENT_EDITS)
def test_code_outside_the_model_is_part_of_the_fingerprint(
    edit: str, sources: graph.Sources, code: dict[str, dict[str, str]]
) -> None:
    file, old, new = SILENT_EDITS[edit]
    path = f"{PACKAGE}/{file}"
    text = sources.files[path].decode()
    assert old in text, "the code has moved on: choose another edit of this kind"
    mutant = graph.Sources({**sources.files, path: text.replace(old, new).encode()})
    assert graph.stage_code("pretrain", mutant) != code["pretrain"]


def test_the_fingerprint_of_a_stage_holds_its_code(
    project_root: Path, tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(project_root / "src", tmp_path / "src", ignore=ignore)
    shutil.copy(project_root / "dvc.yaml", tmp_path)
    (tmp_path / "requirements.lock").write_text("")
    monkeypatch.chdir(tmp_path)
    first = stage_fingerprint("corpus", tiny_config)
    with (tmp_path / PACKAGE / "data/corpus/__init__.py").open("a") as file:
        file.write("# a comment\n")
    assert stage_fingerprint("corpus", tiny_config) == first
    with (tmp_path / PACKAGE / "data/corpus/__init__.py").open("a") as file:
        file.write("SHARD_BYTES = 1\n")
    assert stage_fingerprint("corpus", tiny_config) != first


# ---------------------------------------------------------------- the rule for what is left out


def test_no_code_is_reached_through_a_back_door(sources: graph.Sources) -> None:
    """A module that is named in a string would run without being in any closure."""
    for path, contents in sources.files.items():
        if not path.endswith(".py") or path == f"{PACKAGE}/cli/root.py":
            continue
        for node in ast.walk(ast.parse(contents)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("__import__", "exec", "eval", "globals"), path
            if isinstance(node, ast.Attribute):
                assert node.attr != "import_module", path


LAYERS = f"{PACKAGE}/model/layers.py"


@pytest.mark.parametrize(
    "line, file",
    [
        ("from . import mine", "src/paribus/model/mine.py"),
        ("from .mine import WIDTH", "src/paribus/model/mine.py"),
        ("from ..mine import WIDTH", "src/paribus/mine.py"),
        ("from .below.mine import WIDTH", "src/paribus/model/below/mine.py"),
        ("import own.layers", "src/own/layers.py"),
        ("from own import layers as mine", "src/own/layers.py"),
        ("import layers_of_mine", "src/layers_of_mine.py"),
        ("import importlib\nimportlib.import_module(NAME)", "src/paribus/mine.py"),
        ("load = __import__", "src/own/layers.py"),
        ("exec(open('mine.py').read())", "src/paribus/model/mine.py"),
    ],
)
def test_code_is_followed_however_it_is_imported(
    line: str, file: str, sources: graph.Sources
) -> None:
    importing = sources.files[LAYERS] + f"\n{line}\n".encode()
    codes = []
    for width in (b"WIDTH = 1\n", b"WIDTH = 2\n"):
        mutant = graph.Sources({**sources.files, LAYERS: importing, file: width})
        codes.append(graph.stage_code("pretrain", mutant))
    assert codes[0] != codes[1]
    assert file in codes[0]


def test_methods_called_like_untraceable_functions_are_followed_as_ever(
    sources: graph.Sources, code: dict[str, dict[str, str]]
) -> None:
    contents = sources.files[LAYERS] + b"\n\ndef quiet(model):\n    eval = model.eval()\n"
    mutant = graph.Sources({**sources.files, LAYERS: contents})
    assert graph.stage_code("pretrain", mutant).keys() == code["pretrain"].keys()


def test_new_code_that_dvc_yaml_does_not_name_is_refused_for_a_study(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from paribus.study.registration import undeclared_code

    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(project_root / "src", tmp_path / "src", ignore=ignore)
    shutil.copy(project_root / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    stages = ["corpus", "tokens", "pretrain"]
    assert undeclared_code(stages) == []
    (tmp_path / f"{PACKAGE}/model/mine.py").write_text("WIDTH = 1\n")
    with (tmp_path / LAYERS).open("a") as file:
        file.write("\nfrom paribus.model.mine import WIDTH\n")
    [problem] = undeclared_code(stages)
    assert "pretrain does not name src/paribus/model/mine.py" in problem
    assert "`paribus deps`" in problem


def test_callbacks_and_observers_exist(sources: graph.Sources) -> None:
    for name in closure.OBSERVERS:
        assert sources.path_of(name), name
    for importer, imported in closure.CALLBACKS:
        assert sources.path_of(importer)
        assert sources.path_of(imported)


def test_every_file_that_is_not_python_has_an_owner(
    sources: graph.Sources, code: dict[str, dict[str, str]]
) -> None:
    """Templates and tables belong to a stage, to an observer, or to a page, a new file or an export that no stage makes."""
    reached = {path for files in code.values() for path in files}
    for path in sources.files:
        if path.endswith((".py", "py.typed")):
            continue
        module = path.removeprefix("src/").rpartition("/")[0].replace("/", ".")
        observed = any(
            module == name or module.startswith(f"{name}.") for name in closure.OBSERVERS
        )
        folders = ("pages/templates", "cli/templates", "export")
        of_no_stage = path.startswith(tuple(f"{PACKAGE}/{folder}/" for folder in folders))
        if not observed and not of_no_stage:
            assert path in reached, path


# ---------------------------------------------------------------- sources


def test_a_commit_has_the_code_of_its_own_tree(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    module = tmp_path / PACKAGE / "stages/data.py"
    module.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("")
    module.write_text("LINES = 1\n\n\ndef corpus():\n    return LINES\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    committed = graph.stage_code("corpus", graph.committed_sources(commit, tmp_path))
    assert committed == graph.stage_code("corpus", graph.working_sources(tmp_path))
    module.write_text("LINES = 2\n\n\ndef corpus():\n    return LINES\n")
    assert committed != graph.stage_code("corpus", graph.working_sources(tmp_path))
    assert committed == graph.stage_code("corpus", graph.committed_sources(commit, tmp_path))


def test_attributes_and_links_hide_no_code_of_a_commit(tmp_path: Path) -> None:
    """git archive leaves out what is marked `export-ignore`; a link is the code that it leads to."""
    module = tmp_path / PACKAGE / "stages/data.py"
    module.parent.mkdir(parents=True)
    (tmp_path / "shared.py").write_text("LINES = 1\n")
    (tmp_path / PACKAGE / "__init__.py").write_text("")
    (tmp_path / PACKAGE / "lines.py").symlink_to("../../shared.py")
    (tmp_path / PACKAGE / "hidden.py").write_text("LINES = 1\n")
    (tmp_path / ".gitattributes").write_text("hidden.py export-ignore\n")
    module.write_text(
        "from paribus import hidden, lines\n\n\ndef corpus():\n    return hidden, lines\n"
    )
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "one")):
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)
    shown = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    committed = graph.committed_sources(shown.stdout.strip(), tmp_path)
    code = graph.stage_code("corpus", committed)
    assert {f"{PACKAGE}/hidden.py", f"{PACKAGE}/lines.py"} <= code.keys()
    assert code == graph.stage_code("corpus", graph.working_sources(tmp_path))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = graph.Sources({f"{PACKAGE}/stages/data.py": b"def corpus(:\n"})
    with pytest.raises(UserError, match=r"stages/data\.py: not Python"):
        graph.stage_code("corpus", broken)
    with pytest.raises(UserError, match="corpse: no entry point"):
        graph.stage_code("corpse", broken)
    with pytest.raises(UserError, match="cannot be read"):
        graph.committed_sources("0" * 40, tmp_path)
