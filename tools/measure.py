"""How dense the code of a folder is, in figures: `python tools/measure.py src/paribus`.

    python tools/measure.py FOLDER [FOLDER ...] [--without NAME ...]

prints one table with a column for each folder. `--without world` leaves out folders of that name. The figures show a
direction, and the measure is a reader: a line that is merely split gets no better.

- *Code lines* hold at least one token of code. Comments, docstrings and blank lines are none.
- *Tokens* are Python's own, less comments, docstrings, line ends and indentation.
- A comprehension is *nested* if it holds another one, or has more than one `for`.
- *Branches* are `if`, `elif`, `case`, conditional expressions, loops, handlers, `assert`, each `and` and `or`, and each
  `for` and `if` of a comprehension. *Decision points* are these, and each comprehension, lambda and `with`.
- A *dense function* has more than one branch in two code lines.
- *Parameters named* are those of public functions with two or more of them whose docstring has their name.
- Names that begin with an underscore, and what is inside a function, are not public.

The greatest cyclomatic complexity is radon's, and is left out where radon is not installed.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)
OTHER_DECISIONS = (*COMPREHENSIONS, ast.Lambda, ast.With, ast.AsyncWith)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass
class Counts:
    """What was counted in a folder, added up over its files."""

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    tokens: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    conditional_expressions: int = 0
    decision_points: int = 0
    functions: int = 0
    dense_functions: int = 0
    uses_of_any: int = 0
    inner_imports: int = 0
    public_names: int = 0
    public_names_with_docstring: int = 0
    parameters: int = 0
    parameters_named: int = 0
    complexities: list[tuple[int, str]] = field(default_factory=list)


# ---------------------------------------------------------------- counting


def measure(folder: Path, without: Sequence[str] = ()) -> Counts:
    """Counts of every Python file below a folder.

    Args:
        folder: where to look.
        without: names of folders that are left out.
    """
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        if not set(without) & set(path.relative_to(folder).parts):
            add_file(counts, path.read_text(encoding="utf-8"), path.name)
    return counts


def add_file(counts: Counts, text: str, name: str) -> None:
    """Add what a file holds.

    Args:
        counts: what it is added to.
        text: of the file.
        name: of the file, for the list of complexities.

    Raises:
        SyntaxError: where the text is not Python.
    """
    tree = ast.parse(text)
    code_lines = _add_tokens(counts, text, tree)
    counts.files += 1
    counts.lines += len(text.splitlines())
    counts.code_lines += len(code_lines)
    _add_expressions(counts, tree)
    _add_functions(counts, tree, code_lines)
    _add_docstrings(counts, tree)
    counts.complexities += _complexities(text, name)


def _add_tokens(counts: Counts, text: str, tree: ast.Module) -> set[int]:
    """Count tokens of code; returns the lines that hold one."""
    docstrings = _docstring_starts(tree)
    code_lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in NO_CODE or token.start in docstrings:
            continue
        counts.tokens += 1
        code_lines.update(range(token.start[0], token.end[0] + 1))
        if token.type == tokenize.NAME and token.string == "Any":
            counts.uses_of_any += 1
    return code_lines


def _docstring_starts(tree: ast.Module) -> set[tuple[int, int]]:
    """(line, column) at which each docstring begins."""
    starts = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            first = node.body[0] if node.body else None
            if first is not None and ast.get_docstring(node, clean=False) is not None:
                starts.add((first.lineno, first.col_offset))
    return starts


def _add_expressions(counts: Counts, tree: ast.Module) -> None:
    """Count comprehensions, conditional expressions and decision points."""
    for node in ast.walk(tree):
        counts.decision_points += _branches_at(node) + isinstance(node, OTHER_DECISIONS)
        counts.conditional_expressions += isinstance(node, ast.IfExp)
        if isinstance(node, COMPREHENSIONS):
            counts.comprehensions += 1
            counts.nested_comprehensions += _is_nested(node)


def _is_nested(comprehension: Comprehension) -> bool:
    held = [part for part in ast.walk(comprehension) if isinstance(part, COMPREHENSIONS)]
    return len(held) > 1 or len(comprehension.generators) > 1


def _branches_at(node: ast.AST) -> int:
    """Branches of a node itself, those of its parts aside."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    if isinstance(node, ast.Match):
        return len(node.cases)
    return int(isinstance(node, BRANCHES))


def _add_functions(counts: Counts, tree: ast.Module, code_lines: set[int]) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        counts.functions += 1
        own_lines = code_lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        branches = sum(_branches_at(part) for part in ast.walk(node))
        counts.dense_functions += 2 * branches > len(own_lines)
        counts.inner_imports += sum(_is_import(part) for part in _own_parts(node))


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _own_parts(function: Function) -> Iterator[ast.AST]:
    """Every node in a function, less those in the functions that it defines."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, FUNCTIONS):
            waiting.extend(ast.iter_child_nodes(node))


def _add_docstrings(counts: Counts, tree: ast.Module) -> None:
    for node in _public(tree.body):
        counts.public_names += 1
        docstring = ast.get_docstring(node) or ""
        counts.public_names_with_docstring += bool(docstring)
        if not isinstance(node, FUNCTIONS):
            continue
        parameters = _parameters(node)
        if len(parameters) >= 2:
            words = re.findall(r"\w+", docstring)
            counts.parameters += len(parameters)
            counts.parameters_named += len(set(parameters) & set(words))


def _public(body: Sequence[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes of a module, and the methods of its public classes."""
    for node in body:
        if not isinstance(node, (ast.ClassDef, *FUNCTIONS)) or node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body)


def _parameters(function: Function) -> list[str]:
    """Names of a function's parameters, `self` and `cls` aside."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in named]
    for rest in (arguments.vararg, arguments.kwarg):
        if rest is not None:
            names.append(rest.arg)
    return [name for name in names if name not in ("self", "cls")]


def _complexities(text: str, name: str) -> list[tuple[int, str]]:
    """(radon's cyclomatic complexity, file:function) of each function; none where radon is not installed."""
    try:
        from radon.complexity import cc_visit
    except ImportError:
        return []
    blocks = cc_visit(text)
    return [(block.complexity, f"{name}:{block.name}") for block in blocks if block.letter != "C"]


# ---------------------------------------------------------------- the table


def rows(counts: Counts) -> dict[str, str]:
    """Name of each measure -> its figure in print."""
    worst = max(counts.complexities, default=None)
    above_10 = sum(complexity > 10 for complexity, _ in counts.complexities)
    return {
        "files": f"{counts.files:,}",
        "lines": f"{counts.lines:,}",
        "code lines": f"{counts.code_lines:,}",
        "tokens of code": f"{counts.tokens:,}",
        "tokens a code line": _ratio(counts.tokens, counts.code_lines),
        "comprehensions per 1,000 code lines": _per_1000(counts, counts.comprehensions),
        "nested ones per 1,000 code lines": _per_1000(counts, counts.nested_comprehensions),
        "conditional expressions per 1,000 code lines": _per_1000(
            counts, counts.conditional_expressions
        ),
        "decision points per 1,000 code lines": _per_1000(counts, counts.decision_points),
        "dense functions": _share(counts.dense_functions, counts.functions),
        "functions of a complexity over 10": f"{above_10:,}" if worst else "no radon",
        "greatest complexity": f"{worst[0]} {worst[1]}" if worst else "no radon",
        "uses of Any": f"{counts.uses_of_any:,}",
        "imports in functions per 1,000 code lines": _per_1000(counts, counts.inner_imports),
        "public names with a docstring": _share(
            counts.public_names_with_docstring, counts.public_names
        ),
        "parameters named in the docstring": _share(counts.parameters_named, counts.parameters),
    }


def _ratio(count: int, whole: int) -> str:
    return f"{count / whole:.1f}" if whole else "none"


def _per_1000(counts: Counts, count: int) -> str:
    return _ratio(1000 * count, counts.code_lines)


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.1%} of {whole:,}" if whole else "none"


def table(folders: Sequence[str], measured: Sequence[Counts]) -> str:
    """The figures of several folders as Markdown.

    Args:
        folders: heads of the columns.
        measured: the counts of each.
    """
    lines = [["", *folders], ["---"] + ["---:"] * len(folders)]
    columns = [rows(counts) for counts in measured]
    for name in rows(Counts()):
        lines.append([name, *(column[name] for column in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the table of the folders that the command line names."""
    parser = argparse.ArgumentParser(description="How dense the code of a folder is.")
    parser.add_argument("folders", nargs="+", help="folders to measure")
    parser.add_argument("--without", nargs="*", default=[], help="names of folders to leave out")
    asked = parser.parse_args()
    for folder in asked.folders:
        if not Path(folder).is_dir():
            parser.error(f"{folder}: there is no such folder")
    measured = [measure(Path(folder), asked.without) for folder in asked.folders]
    print(table(asked.folders, measured))


if __name__ == "__main__":
    main()
