"""`paribus ablate list` and `new`, `paribus tune new`: the studies there are, and files to begin one with."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import click

from paribus.config import parse_yaml, read_text, read_yaml
from paribus.errors import UserError, shown
from paribus.execute.repository import all_experiments
from paribus.files import write_atomic
from paribus.run_id import parse_experiment_name
from paribus.study.experiment import FOLDER, study_files
from paribus.study.fields import name_problem
from paribus.study.published import published_verdicts
from paribus.study.reading import parse_experiment, read_experiment
from paribus.study.record import PUBLISHED
from paribus.tune.space import STUDIES, parse_study

WIDTH, INDENT = 80, "    "


@dataclass(frozen=True)
class Listed:
    """A study, as `paribus ablate list` shows it.

    Attributes:
        name, file, question: as its file has them; a file that cannot be read has no question.
        runs: finished ones here.
        report: the committed page; None: there is none.
        verdicts: arm -> verdict, of that page.
    """

    name: str
    file: str
    question: str
    runs: int
    report: str | None
    verdicts: dict[str, str]

    @property
    def standing(self) -> str:
        """How it stands, in a few words: `worse: adamw, relu2; equivalent: nox0`."""
        alike: dict[str, list[str]] = {}
        for arm, verdict in self.verdicts.items():
            alike.setdefault(verdict, []).append(arm)
        if self.report:
            parts = [f"{verdict}: {', '.join(arms)}" for verdict, arms in alike.items()]
            return "; ".join(parts) or "reported"
        return f"{self.runs} runs done" if self.runs else "not started here"


def list_studies(as_json: bool) -> None:
    """Print every ablation, its question, and how it stands.

    Args:
        as_json: for programs.
    """
    names = [parse_experiment_name(name) for name in all_experiments()]
    runs = Counter(named[0].study for named in names if named and not named[1])
    found = [_listed(name, path, runs[name]) for name, path in study_files().items()]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
        return
    for one in found:
        click.echo(one.name)
        for text in (one.question, one.standing):
            lines = textwrap.wrap(text, WIDTH - len(INDENT), break_on_hyphens=False)
            click.echo(textwrap.indent("\n".join(lines), INDENT))
    if not found:
        click.echo(f"no ablation in {FOLDER}; `paribus ablate new NAME` writes the first")


def _listed(name: str, path: Path, runs: int) -> Listed:
    try:
        question = str(read_yaml(path).get("question", ""))
    except UserError as error:
        question = error.problems[0]
    page = PUBLISHED / f"{name}.md"
    report = str(page) if page.is_file() else None
    return Listed(name, str(path), question, runs, report, published_verdicts(name))


# ---------------------------------------------------------------- new files


def new_ablation(
    name: str, like: str | None, arms: Sequence[str], seeds: int | None = None
) -> None:
    """Write experiments/NAME.yaml: a commented template, or another study asked again with fresh seeds.

    Args:
        name: of the new study.
        like: the study that it repeats; None: the template.
        arms: of that study, which the new one has; none: all.
        seeds: of the new one, which has one look; None: open looks, or of a study of factors as many as before.
    """
    problem = name_problem(name)
    if problem:
        raise UserError(problem)
    if arms and not like:
        raise UserError(f"--arm {arms[0]}: only with --like, which names the study whose arm it is")
    if seeds and not like:
        raise UserError(f"--seeds {seeds}: only with --like; the template has a key `seeds`")
    text = _asked_again(like, arms, seeds) if like else _template("ablation.yaml", name)
    parse_experiment(name, parse_yaml(text, name))
    path = FOLDER / f"{name}.yaml"
    _write_new(path, text)
    click.echo(f"{path}: edit it, commit it, then `paribus ablate run {name}`")


def new_tuning(name: str) -> None:
    """Write experiments/tune/NAME.yaml, a commented template.

    Args:
        name: of the new study.
    """
    text = _template("tuning.yaml", name)
    parse_study(name, parse_yaml(text, name))
    path = STUDIES / f"{name}.yaml"
    _write_new(path, text)
    click.echo(f"{path}: edit it, then `paribus tune run {name}`")


def _template(file: str, name: str) -> str:
    template = resources.files("paribus.cli") / "templates" / file
    return re.sub(r"\bNAME(?=[ .\"\n])", name, template.read_text(encoding="utf-8"))


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        raise UserError(f"{path} is there already; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def _asked_again(like: str, arms: Sequence[str], seeds: int | None) -> str:
    """The text of a study's file with fresh seeds, open looks or one, and only the arms named, where some are."""
    from ruamel.yaml import YAML

    experiment = read_experiment(like)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**20
    document = yaml.load(read_text(experiment.file))
    unknown = [arm for arm in arms if arm not in document.get("arms", {})]
    if unknown:
        there = ", ".join(document.get("arms", {})) or "none that stand alone"
        raise UserError(
            f"--arm {arm}: {like} has no such arm; there are: {there}" for arm in unknown
        )
    for section in ("arms", "expects"):
        for arm in [one for one in document.get(section, {}) if arms and one not in arms]:
            del document[section][arm]
    if seeds:
        document["seeds"] = seeds
    elif experiment.factorial is None:  # a study of factors has one look
        document["seeds"] = "open"
    document["fresh_seeds"] = True
    stream = io.StringIO()
    yaml.dump(document, stream)
    return f"# {shown(like)} again, at seeds that no other study has.\n{stream.getvalue()}"
