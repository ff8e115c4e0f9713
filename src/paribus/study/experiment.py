"""An ablation's file, `experiments/NAME.yaml`: the question, what is changed, what is held equal; strict, as params.yaml is.

    question: Does Muon beat AdamW at the default size?
    hypothesis: Muon is better by more than 0.01 bits per byte.
    baseline: {profile: default, set: {pretrain.steps: 60}}
    arms:
      adamw: {optimizer.kind: adamw}
      slower: {set: {optimizer.matrix_lr: 0.01, optimizer.head_lr: 0.003}, as_one: half of both rates}
      normuon: {code: ideas/normuon}                # a branch, tag, commit or patch file; with set, if it needs one
    seeds: open                 # the default: looks after 3, 5, 8, 12, 18, … seeds, without a last one; or 5, for one look;
                                # or {from: 3, to: 12}
    borrow: true                # whether arms lend each other their variance; the default of open studies
    fresh_seeds: false          # true: seeds of the study's own, which no other study has
    metric: val_bpb             # core, gsm8k.STAGE, or any key of a metrics file, as pretrain:train_loss
    direction: lower            # needed for keys of files only
    smallest_effect: 0.01
    equal: tokens               # or flops, seconds, {tokens: 200000}, or none
    alpha: 0.05
    stages: [pretrain]          # of dvc.yaml; what they depend on runs too
    workers: 1

An arm changes one thing. More is warned about, unless `as_one` says what one thing the changes are.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paribus.config import (
    Config,
    fingerprint,
    flatten,
    merge,
    parse_config,
    profile_overrides,
    read_yaml,
)
from paribus.curriculum import CHECKPOINT_NAMES
from paribus.errors import UserError
from paribus.execute.run import RunId
from paribus.graph import (
    StageDefinition,
    chain,
    declared_params,
    stage_definitions,
)
from paribus.study import fields
from paribus.study.arm_code import ArmCode, settled_code
from paribus.study.arms import Arm, read_arms
from paribus.study.fields import hint, shown
from paribus.study.looks import Schedule

FOLDER = Path("experiments")
RESERVED = ("try",)  # names of files in it that are no ablation's
REQUIRED = (
    "question",
    "hypothesis",
    "baseline",
    "arms",
    "metric",
    "smallest_effect",
    "equal",
    "stages",
)
KEYS = (*REQUIRED, "seeds", "fresh_seeds", "borrow", "direction", "alpha", "workers")
BASELINE = "baseline"
MEASURES = {  # metric -> (file, key, the better direction, unit)
    "val_bpb": ("metrics/pretrain.json", "val_bpb", "lower", "bits per byte"),
    "core": ("metrics/core.json", "core", "higher", "CORE"),
    **{
        f"gsm8k.{stage}": (f"evals/gsm8k/{stage}/summary.json", "accuracy", "higher", "accuracy")
        for stage in CHECKPOINT_NAMES
    },
}


@dataclass(frozen=True)
class Metric:
    """Where a metric is read: a key of a JSON file that a stage writes."""

    name: str
    path: str
    key: str
    unit: str


@dataclass(frozen=True)
class Run:
    """One arm at one seed; `overrides`, dotted, are complete: profile, baseline, arm, seed and what follows from them."""

    id: RunId
    overrides: dict[str, Any]
    key: str  # of what it computes: parameters of every stage of its chain

    @property
    def name(self) -> str:
        """Of its DVC experiment."""
        return self.id.experiment_name()

    @property
    def arm(self) -> str:
        """The arm's name."""
        return self.id.arm

    @property
    def seed(self) -> int:
        """The seed of the run's random streams."""
        return self.id.seed


@dataclass(frozen=True)
class Experiment:
    """An ablation, read from its file and checked. Without arms it is a noise floor."""

    name: str
    question: str
    hypothesis: str
    profile: str | None
    base: dict[str, Any]  # the baseline's overrides, profile included
    arms: dict[str, Arm]
    seeds: Schedule  # when it looks at its verdicts
    metric: Metric
    direction: str
    smallest_effect: float
    equal: str
    amount: float | None  # of what is held equal; None: what the baseline has
    alpha: float
    stages: list[str]  # the whole chain, in order
    targets: list[str]
    workers: int
    warnings: list[str] = field(default_factory=list)
    fresh_seeds: bool = False
    borrow: bool = False

    @property
    def file(self) -> Path:
        """The ablation's file."""
        return FOLDER / f"{self.name}.yaml"

    @property
    def names(self) -> list[str]:
        """The baseline, then the arms."""
        return [BASELINE, *self.arms]

    @property
    def first_seed(self) -> int:
        """The seed of the first run of every arm; those of the others follow it."""
        return self.config().seed + (own_seeds(self.name) if self.fresh_seeds else 0)

    def code(self, arm: str) -> ArmCode | None:
        """The code of an arm; None where it is the baseline's."""
        return self.arms[arm].code if arm in self.arms else None

    def config(self, arm: str = BASELINE, extra: Mapping[str, Any] | None = None) -> Config:
        """params.yaml with the baseline's and an arm's overrides, of the keys that the baseline's code has.

        Args:
            arm: its name; the baseline by default.
            extra: overrides that follow, dotted key -> value.
        """
        return settings(self._known(arm, self.overrides(arm) | dict(extra or {})))

    def _known(self, arm: str, overrides: dict[str, Any]) -> dict[str, Any]:
        code = self.code(arm)
        return overrides if code is None else code.known(overrides)

    def values(self, arm: str = BASELINE) -> dict[str, Any]:
        """Dotted key -> value of an arm, also of the keys that only its code has."""
        code = self.code(arm)
        added = {} if code is None else code.added(self.overrides(arm))
        return flatten(self.config(arm)) | added

    def overrides(self, arm: str = BASELINE) -> dict[str, Any]:
        """Dotted key -> value, of the baseline and then of an arm."""
        return self.base | (self.arms[arm].overrides if arm != BASELINE else {})

    def run(self, arm: str, number: int, extra: Mapping[str, Any]) -> Run:
        """The run of an arm at a seed.

        Args:
            arm: its name.
            number: of the seed, from 0.
            extra: overrides that follow (steps of an equal budget, threads).
        """
        seed = self.first_seed + number
        overrides = self.overrides(arm) | dict(extra) | {"seed": seed}
        code = self.code(arm)
        key = chain_key(self.stages, settings(self._known(arm, overrides)))
        if code is not None:
            key = key_with_code(key, code.added(overrides))
        return Run(RunId(self.name, arm, seed), overrides, key)

    def config_of(self, run: Run) -> Config:
        """The parameters of a run, of the keys that the baseline's code has."""
        return settings(self._known(run.arm, run.overrides))


def own_seeds(name: str) -> int:
    """How many seeds a study skips to have its own, from its name: of a million pairs of studies about one shares some."""
    return fields.MOST_SEEDS * (1 + zlib.crc32(name.encode()) % 1_000_000)


def settings(overrides: Mapping[str, Any] | None = None) -> Config:
    """params.yaml with overrides. The file is read again only when it changed, as a study calls this hundreds of times."""
    return parse_config(params_with(overrides or {}))


def params_with(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values of params.yaml as they were written, with overrides."""
    return merge(_read(*_stamp("params.yaml")), dict(overrides))


def definitions() -> dict[str, StageDefinition]:
    """The stages of dvc.yaml, read again when it changed."""
    return _define(*_stamp("dvc.yaml"))


Stamp = tuple[str, int, int]  # path, time of change, size

_HELD: dict[str, Stamp] | None = None  # while a study runs: the files as they were when it began


@contextlib.contextmanager
def unchanged_sources() -> Iterator[None]:
    """Within it `settings` and `definitions` use the files as they are now, whatever the user edits meanwhile."""
    global _HELD
    _HELD = {name: _stamp_now(name) for name in ("params.yaml", "dvc.yaml")}
    settings(), definitions()
    try:
        yield
    finally:
        _HELD = None


def _stamp(name: str) -> Stamp:
    return _HELD[name] if _HELD is not None else _stamp_now(name)


def _stamp_now(name: str) -> Stamp:
    path = Path(name).resolve()
    about = path.stat() if path.is_file() else None
    return str(path), about.st_mtime_ns if about else 0, about.st_size if about else 0


@functools.lru_cache(maxsize=4)
def _read(path: str, *_: int) -> dict[str, Any]:
    return read_yaml(path)


@functools.lru_cache(maxsize=4)
def _define(path: str, *_: int) -> dict[str, StageDefinition]:
    return stage_definitions(path)


def chain_key(stages: Sequence[str], config: Config) -> str:
    """A key for what a chain of stages computes, as far as params.yaml decides it.

    Args:
        stages: of the chain.
        config: their parameters.
    """
    return fingerprint(**{name: all_params(definitions()[name], config) for name in stages})


def key_with_code(key: str, added: Mapping[str, Any]) -> str:
    """A key for what a chain computes with an arm's code.

    Args:
        key: of the parameters that the baseline's code has too.
        added: values of the keys that only the arm's code has.
    """
    return fingerprint(chain=key, added=dict(added))


def split_params(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values of keys that params.yaml has, values of keys that it lacks).

    Args:
        flat: dotted key -> value, of the params.yaml of another commit.
    """
    base = flatten(_read(*_stamp("params.yaml")))
    known = {key: value for key, value in flat.items() if key in base}
    added = {key: value for key, value in flat.items() if key not in base}
    return known, added


def all_params(definition: StageDefinition, config: Config) -> dict[str, Any]:
    """What a stage declares, `train.*` too: a number of threads changes results.

    Args:
        definition: of the stage in dvc.yaml.
        config: where the values are.
    """
    values = flatten(config)
    declared = {key: values[key] for key in values if is_declared(key, definition.params)}
    return declared | declared_params(definition, config)


def is_declared(key: str, names: Sequence[str]) -> bool:
    """Whether a key, or a section that it is in, is among those that a stage declares.

    Args:
        key: dotted.
        names: of the keys and sections.
    """
    return any(key == name or key.startswith(f"{name}.") for name in names)


# ---------------------------------------------------------------- reading


def read_experiment(name: str, to_run: bool = False) -> Experiment:
    """The ablation NAME.

    Args:
        name: of its file.
        to_run: whether its arms that are code have to be fit to run; a report of finished runs asks less.

    Raises:
        UserError: with every problem at once.
    """
    there = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem not in RESERVED)
    if name not in there:
        near = difflib.get_close_matches(name[:100], there, n=1)
        raise UserError(
            f"no ablation {shown(name)} in {FOLDER}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"there are: {', '.join(there) or 'none'}"
        )
    return parse_experiment(name, read_yaml(FOLDER / f"{name}.yaml"), to_run)


def parse_experiment(name: str, raw: Mapping[str, Any], to_run: bool = False) -> Experiment:
    """An ablation's file as an Experiment.

    Args:
        name: of the ablation.
        raw: the values in its file.
        to_run: whether its arms that are code have to be fit to run.

    Raises:
        UserError: with every problem at once, each with the file's name.
    """
    experiment, problems = _parse(name, raw)
    from paribus.study.arm_checks import arm_warnings

    if to_run and not problems:
        from paribus.study.code_checks import code_problems

        problems = code_problems(experiment)
    if problems:
        raise UserError(f"{FOLDER / name}.yaml: {problem}" for problem in problems)
    experiment.warnings.extend(arm_warnings(experiment))
    return experiment


# Replaces a key that is missing or wrong, while the others are read.
_PLACEHOLDERS: dict[str, Any] = {
    "question": "?",
    "hypothesis": "?",
    "baseline": {},
    "seeds": "open",
    "smallest_effect": 0.01,
    "equal": "none",
    "alpha": 0.05,
    "workers": 1,
    "fresh_seeds": False,
}


def _parse(name: str, raw: Mapping[str, Any]) -> tuple[Experiment, list[str]]:
    """The experiment and its problems; the experiment is usable only without problems."""
    problems = [f"{shown(key)}: unknown key; {hint(key, KEYS)}" for key in raw if key not in KEYS]
    problems += [f"{key}: missing" for key in REQUIRED if key not in raw]
    wrong_name = fields.name_problem(name)
    if wrong_name:
        problems.append(wrong_name)
    # A study that was registered with looks of its own keeps the verdicts that it was registered with.
    values = {"borrow": raw.get("seeds", "open") == "open"} | _PLACEHOLDERS | dict(raw)
    of_baseline: list[str] = []
    of_stages: list[str] = []
    profile, base = read_baseline(values["baseline"], of_baseline)
    arms = read_arms(raw["arms"], BASELINE, problems) if "arms" in raw else {}
    targets, stages = read_stages(raw["stages"], of_stages) if "stages" in raw else ([], [])
    metric, direction = Metric("", "", "", ""), "lower"
    if "metric" in raw:
        metric, direction = read_metric(raw["metric"], raw.get("direction"), stages, problems)
    held, amount = fields.equal(values["equal"], problems)
    experiment = Experiment(
        name,
        fields.text(values, "question", problems),
        fields.text(values, "hypothesis", problems),
        profile,
        base,
        arms,
        fields.seeds(values["seeds"], problems),
        metric,
        direction,
        fields.number(values, "smallest_effect", 0, None, problems),
        held,
        amount,
        fields.number(values, "alpha", 0, 0.5, problems),
        stages,
        targets,
        fields.whole(values, "workers", 1, fields.MOST_WORKERS, problems),
        fresh_seeds=fields.switch(values, "fresh_seeds", problems),
        borrow=fields.switch(values, "borrow", problems),
    )
    if stages and not of_baseline:
        experiment = _with_code(experiment, problems)
        from paribus.study.arm_checks import arm_problems

        problems += arm_problems(experiment)
    return experiment, [*problems, *of_baseline, *of_stages]


def noise_experiment(
    profile: str, seeds: int, metrics: Sequence[str]
) -> tuple[Experiment, list[Metric]]:
    """A noise floor: one profile at several seeds, no arms.

    Args:
        profile: its name.
        seeds: how many.
        metrics: names of what is measured.

    Returns:
        The experiment, and the metrics.

    Raises:
        UserError: with every problem at once.
    """
    problems: list[str] = []
    _, base = read_baseline({"profile": profile}, problems)
    measured = [read_metric(name, None, [], problems, default="lower") for name in metrics]
    fields.whole({"--seeds": seeds}, "--seeds", 3, fields.MOST_SEEDS, problems)
    if problems:
        raise UserError(problems)
    writers = [writer_of(metric.path) or "" for metric, _ in measured]
    targets, stages = read_stages(list(dict.fromkeys(writers)), problems)
    experiment = Experiment(
        f"noise-{profile}",
        f"How much does {profile} vary from seed to seed?",
        "",
        profile,
        base,
        {},
        Schedule(max(seeds, 2), max(seeds, 2)),
        measured[0][0],
        measured[0][1],
        1.0,
        "none",
        None,
        0.05,
        stages,
        targets,
        1,
    )
    return experiment, [metric for metric, _ in measured]


def writer_of(path: str) -> str | None:
    """The stage that writes a file."""
    for name, definition in definitions().items():
        for out in definition.outs:
            if path == out or path.startswith(f"{out}/"):
                return name
    return None


def read_baseline(value: Any, problems: list[str]) -> tuple[str | None, dict[str, Any]]:
    """(profile, all overrides of the baseline)."""
    if not isinstance(value, dict) or set(value) - {"profile", "set"}:
        problems.append(
            f"baseline: {shown(value)}; expected {{profile: NAME, set: {{dotted.key: value}}}}, either or both"
        )
        return None, {}
    profile, changes = value.get("profile"), value.get("set")
    before = len(problems)
    overrides = {} if profile is None else _profile(profile, problems)
    if changes is not None:
        overrides |= fields.overrides(changes, "baseline.set", problems)
    if len(problems) == before:
        try:
            settings(overrides)
        except UserError as error:
            problems += [f"baseline: {problem}" for problem in error.problems]
    return profile, overrides


def _profile(name: Any, problems: list[str]) -> dict[str, Any]:
    """The overrides of a profile."""
    wrong_name = fields.name_problem(name)
    there = sorted(path.stem for path in (FOLDER / "profiles").glob("*.yaml"))
    if wrong_name or name not in there:
        near = hint(name, there) if there else "there are none"
        problems.append(f"baseline: no profile {shown(name)}; {near}")
        return {}
    try:
        return profile_overrides(name)
    except UserError as error:
        problems += [f"baseline: {problem}" for problem in error.problems]
        return {}


def _with_code(experiment: Experiment, problems: list[str]) -> Experiment:
    """The experiment with the code of its arms settled; an arm whose code cannot be is left out, and named."""
    if all(arm.asked is None for arm in experiment.arms.values()):
        return experiment
    from paribus.study.results import code_of_chain

    code_of_baseline = code_of_chain(experiment.stages)
    arms = {}
    for name, arm in experiment.arms.items():
        if arm.asked is None:
            arms[name] = arm
            continue
        try:
            code = settled_code(experiment.name, name, arm.asked, code_of_baseline)
        except UserError as error:
            problems += [f"arms.{name}.code: {problem}" for problem in error.problems]
        else:
            arms[name] = replace(arm, code=code)
    return replace(experiment, arms=arms)


def read_stages(value: Any, problems: list[str]) -> tuple[list[str], list[str]]:
    """(targets, the chain of stages that they need)."""
    known = definitions()
    groups = {name.partition("@")[0] for name in known}
    if not isinstance(value, list) or not value:
        allowed = ", ".join(sorted(groups))
        problems.append(f"stages: {shown(value)}; expected a list of stages: {allowed}")
        return [], []
    names = [*known, *sorted(groups - set(known))]
    wanted = []
    for name in value:
        if isinstance(name, str) and name in names:
            wanted.append(name)
        else:
            problems.append(f"stages: {shown(name)}: no such stage; {hint(name, names)}")
    targets = [name for name in known if name in wanted or name.partition("@")[0] in wanted]
    return targets, chain(targets, known)


def read_metric(
    name: Any, direction: Any, stages: list[str], problems: list[str], default: str | None = None
) -> tuple[Metric, str]:
    """The metric and its better direction. It has to come from a stage that runs.

    default: of the better direction, where the metric is not among MEASURES and `direction` is absent.
    """
    file, _, key = str(name).partition(":")
    path, unit, better = f"metrics/{file}.json", key, default
    if str(name) in MEASURES:
        path, key, better, unit = MEASURES[str(name)]
    problems += _metric_problems(name, path, key, stages)
    problem = _direction_problem(name, direction, better, is_default=default is not None)
    if problem:
        problems.append(problem)
    allowed = direction if direction in ("lower", "higher") else None
    return Metric(str(name), path, key, unit), allowed or better or "lower"


def _metric_problems(name: Any, path: str, key: str, stages: list[str]) -> list[str]:
    """Why a metric cannot be measured. path, key: where it is; stages: that run."""
    writer = writer_of(path)
    if not key or writer is None:
        return [
            f"metric: {shown(name)} is not known; {hint(name, list(MEASURES))}, or FILE:KEY with FILE one of "
            f"{', '.join(_metrics_files())}"
        ]
    if stages and writer not in stages:
        return [
            f"metric: {shown(name)} is written by stage {writer}, and the stages chosen are {', '.join(stages)}; "
            f"add {writer} to stages"
        ]
    known = _keys_of(Path(path))
    if known and key not in known:
        return [f"metric: {path} has no key {shown(key)}; {hint(key, known)}"]
    return []


def _metrics_files() -> list[str]:
    """Names of the files that stages write into metrics/."""
    names = []
    for definition in definitions().values():
        names += [Path(out).stem for out in definition.outs if out.startswith("metrics/")]
    return names


def _direction_problem(
    name: Any, direction: Any, better: str | None, is_default: bool
) -> str | None:
    """The problem of a direction that a file gives; None stands for its absence.

    better: the metric's own, where one is known; is_default: it is only the default.
    """
    if direction is None:
        if better is not None:
            return None
        return f"direction: missing, and needed for {shown(name)}; expected lower or higher"
    if direction not in ("lower", "higher"):
        return f"direction: {shown(direction)} is not allowed; expected lower or higher"
    if better and direction != better and not is_default:
        return f"direction: {direction} is wrong for {shown(name)}: {better} is better"
    return None


def _keys_of(path: Path) -> list[str]:
    """The keys of a metrics file as it is in the workspace; none where it is not there, or damaged."""
    try:
        return list(flatten(dict(json.loads(path.read_text(encoding="utf-8")))))
    except (OSError, ValueError, TypeError):
        return []


# ---------------------------------------------------------------- checks across fields


def changed_keys(experiment: Experiment, arm: str) -> list[str]:
    """The keys whose value an arm changes.

    Args:
        experiment: that it is an arm of.
        arm: its name.
    """
    base, own = experiment.values(), experiment.values(arm)
    return [key for key in base.keys() | own.keys() if base.get(key) != own.get(key)]
