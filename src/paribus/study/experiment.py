"""An ablation's file, `experiments/NAME.yaml`: the question, what is changed, what is held equal; strict, as params.yaml is.

    question: Does Muon beat AdamW at the default size?
    hypothesis: Muon is better by more than 0.01 bits per byte.
    baseline: {profile: default, set: {pretrain.steps: 60}}
    arms:
      adamw: {optimizer.kind: adamw}
      slower: {set: {optimizer.matrix_lr: 0.01, optimizer.head_lr: 0.003}, as_one: half of both rates}
    seeds: 5                    # or {from: 3, to: 12}, or auto for just that: looks after 3, 5, 8, 12 seeds
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

import difflib
import functools
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paribus.config import (
    Config,
    changes,
    fingerprint,
    flatten,
    inert_problems,
    merge,
    merge_problems,
    parse_config,
    profile_overrides,
    read_yaml,
)
from paribus.errors import UserError
from paribus.graph import StageDefinition, chain, declared_params, stage_definitions

FOLDER = Path("experiments")
REQUIRED = (
    "question",
    "hypothesis",
    "baseline",
    "arms",
    "seeds",
    "metric",
    "smallest_effect",
    "equal",
    "stages",
)
KEYS = (*REQUIRED, "direction", "alpha", "workers")
EQUAL = ("tokens", "flops", "seconds", "none")
AUTO = (3, 12)  # seeds: auto
BASELINE = "baseline"
NAME = r"[a-z0-9][a-z0-9_.-]*"
MEASURES = {  # metric -> (file, key, the better direction, unit)
    "val_bpb": ("metrics/pretrain.json", "val_bpb", "lower", "bits per byte"),
    "core": ("metrics/core.json", "core", "higher", "CORE"),
    **{
        f"gsm8k.{stage}": (f"evals/gsm8k/{stage}/summary.json", "accuracy", "higher", "accuracy")
        for stage in ("base", "mid", "sft", "rl")
    },
}


@dataclass(frozen=True)
class Arm:
    """What is changed, dotted; `as_one`: the one thing that several changes are."""

    overrides: dict[str, Any]
    as_one: str | None = None


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

    name: str
    arm: str
    seed: int
    overrides: dict[str, Any]
    key: str  # of what it computes: parameters of every stage of its chain


@dataclass(frozen=True)
class Experiment:
    """An ablation as its file says it, checked. Without arms it is a noise floor."""

    name: str
    question: str
    hypothesis: str
    profile: str | None
    base: dict[str, Any]  # the baseline's overrides, profile included
    arms: dict[str, Arm]
    seeds: tuple[int, int]  # the first look and the last
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

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.yaml"

    @property
    def names(self) -> list[str]:
        """The baseline, then the arms."""
        return [BASELINE, *self.arms]

    @property
    def sequential(self) -> bool:
        return self.seeds[0] < self.seeds[1]

    def config(self, arm: str = BASELINE, extra: Mapping[str, Any] | None = None) -> Config:
        """params.yaml with the baseline's and an arm's overrides."""
        return settings(self.overrides(arm) | dict(extra or {}))

    def overrides(self, arm: str = BASELINE) -> dict[str, Any]:
        return self.base | (self.arms[arm].overrides if arm != BASELINE else {})

    def run(self, arm: str, number: int, extra: Mapping[str, Any]) -> Run:
        """Arm at the seed of that number, from 0. extra: overrides that follow (steps of an equal budget, threads)."""
        seed = self.config().seed + number
        overrides = self.overrides(arm) | dict(extra) | {"seed": seed}
        return Run(
            f"{self.name}-{arm}-s{seed}",
            arm,
            seed,
            overrides,
            chain_key(self.stages, settings(overrides)),
        )


def settings(overrides: Mapping[str, Any] | None = None) -> Config:
    """params.yaml with overrides. The file is read anew when it changed: a study asks hundreds of times."""
    return parse_config(merge(_read(*_stamp("params.yaml")), dict(overrides or {})))


def definitions() -> dict[str, StageDefinition]:
    """The stages of dvc.yaml, read anew when it changed."""
    return _define(*_stamp("dvc.yaml"))


def _stamp(name: str) -> tuple[str, int, int]:
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
    """Names what a chain of stages computes, as far as params.yaml decides it."""
    return fingerprint(**{name: all_params(definitions()[name], config) for name in stages})


def all_params(definition: StageDefinition, config: Config) -> dict[str, Any]:
    """What a stage declares, `train.*` too: a number of threads changes results."""
    declared = {
        key: value
        for key, value in flatten(config).items()
        if any(key == one or key.startswith(one + ".") for one in definition.params)
    }
    return declared | declared_params(definition, config)


# ---------------------------------------------------------------- reading


def read_experiment(name: str) -> Experiment:
    """The ablation NAME. Raises UserError with every problem at once."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        there = sorted(one.stem for one in FOLDER.glob("*.yaml"))
        near = difflib.get_close_matches(name, there, n=1)
        raise UserError(
            f"no ablation {name!r} in {FOLDER}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"there are: {', '.join(there) or 'none'}"
        )
    return parse_experiment(name, read_yaml(path))


def parse_experiment(name: str, raw: Mapping[str, Any]) -> Experiment:
    """The values of a file -> Experiment. Raises UserError with every problem at once, each with the file's name."""
    problems = [f"{key}: unknown key; {_hint(key, KEYS)}" for key in raw if key not in KEYS]
    problems += [f"{key}: missing" for key in REQUIRED if key not in raw]
    if not re.fullmatch(NAME, name):
        problems.append(
            f"the name {name!r} is not allowed; expected small letters, digits, - and _"
        )
    if problems:
        raise UserError(f"{FOLDER / name}.yaml: {problem}" for problem in problems)
    profile, base = _baseline(raw["baseline"], problems)
    arms = _arms(raw["arms"], problems)
    targets, stages = _stages(raw["stages"], problems)
    metric, direction = _metric(raw["metric"], raw.get("direction"), stages, problems)
    equal, amount = _equal(raw["equal"], problems)
    experiment = Experiment(
        name,
        _text(raw, "question", problems),
        _text(raw, "hypothesis", problems),
        profile,
        base,
        arms,
        _seeds(raw["seeds"], problems),
        metric,
        direction,
        _number(raw, "smallest_effect", 0, None, problems),
        equal,
        amount,
        _number({"alpha": 0.05} | dict(raw), "alpha", 0, 0.5, problems),
        stages,
        targets,
        int(_number({"workers": 1} | dict(raw), "workers", 0, None, problems, whole=True)),
    )
    problems += (
        _arm_problems(experiment)
        if not any(one.startswith(("baseline", "stages")) for one in problems)
        else []
    )
    if problems:
        raise UserError(f"{experiment.file}: {problem}" for problem in problems)
    experiment.warnings.extend(_warnings(experiment))
    return experiment


def noise_experiment(
    profile: str, seeds: int, metrics: Sequence[str]
) -> tuple[Experiment, list[Metric]]:
    """A noise floor: one profile at several seeds, no arms; and what is measured. Raises UserError."""
    problems: list[str] = []
    _, base = _baseline({"profile": profile}, problems)
    found = [_metric(name, None, [], problems, default="lower") for name in metrics]
    if problems:
        raise UserError(problems)
    targets, stages = _stages(
        list(dict.fromkeys(writer_of(metric.path) or "" for metric, _ in found)), problems
    )
    experiment = Experiment(
        f"noise-{profile}",
        f"How much does {profile} vary from seed to seed?",
        "",
        profile,
        base,
        {},
        (seeds, seeds),
        found[0][0],
        found[0][1],
        1.0,
        "none",
        None,
        0.05,
        stages,
        targets,
        1,
    )
    return experiment, [metric for metric, _ in found]


def writer_of(path: str) -> str | None:
    """The stage that writes a file."""
    return next(
        (
            name
            for name, definition in definitions().items()
            if any(path == out or path.startswith(f"{out}/") for out in definition.outs)
        ),
        None,
    )


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"


def _text(raw: Mapping[str, Any], key: str, problems: list[str]) -> str:
    if not isinstance(raw[key], str) or not raw[key].strip():
        problems.append(f"{key}: {raw[key]!r} is not allowed; expected a sentence")
    return str(raw[key]).strip()


def _number(
    raw: Mapping[str, Any],
    key: str,
    above: float,
    below: float | None,
    problems: list[str],
    whole: bool = False,
) -> float:
    value = raw[key]
    fine = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fine or value <= above or (below is not None and value >= below):
        kind = "a whole number" if whole else "a number"
        bounds = f"above {above:g}" + (f" and below {below:g}" if below is not None else "")
        problems.append(f"{key}: {value!r} is not allowed; expected {kind} {bounds}")
        return 1.0
    return float(value)


def _baseline(value: Any, problems: list[str]) -> tuple[str | None, dict[str, Any]]:
    """(profile, all overrides of the baseline)."""
    if not isinstance(value, dict) or set(value) - {"profile", "set"}:
        problems.append(
            f"baseline: {value!r}; expected {{profile: NAME, set: {{dotted.key: value}}}}, either or both"
        )
        return None, {}
    overrides: dict[str, Any] = {}
    try:
        if value.get("profile") is not None:
            overrides |= profile_overrides(str(value["profile"]))
        overrides |= flatten(value.get("set") or {})
        settings(overrides)
    except UserError as error:
        problems += [f"baseline: {problem}" for problem in error.problems]
    return value.get("profile"), overrides


def _arms(value: Any, problems: list[str]) -> dict[str, Arm]:
    if not isinstance(value, dict) or not value:
        problems.append(f"arms: {value!r}; expected at least one, as NAME: {{dotted.key: value}}")
        return {}
    arms = {}
    for name, change in value.items():
        if not re.fullmatch(NAME, str(name)) or name == BASELINE:
            problems.append(
                f"arms.{name}: this name is not allowed; expected small letters, digits, - and _, not {BASELINE}"
            )
        elif not isinstance(change, dict) or not change:
            problems.append(
                f"arms.{name}: {change!r}; expected {{dotted.key: value}}, or {{set: {{…}}, as_one: WHAT}}"
            )
        elif "set" in change or "as_one" in change:
            if (
                set(change) != {"set", "as_one"}
                or not isinstance(change["set"], dict)
                or not isinstance(change["as_one"], str)
            ):
                problems.append(
                    f"arms.{name}: expected both set: {{dotted.key: value}} and as_one: WHAT, and nothing else"
                )
            else:
                arms[name] = Arm(flatten(change["set"]), change["as_one"])
        else:
            arms[name] = Arm(flatten(change))
    return arms


def _stages(value: Any, problems: list[str]) -> tuple[list[str], list[str]]:
    """(targets, the chain of stages that they need)."""
    known = definitions()
    groups = {name.partition("@")[0] for name in known}
    if not isinstance(value, list) or not value:
        problems.append(
            f"stages: {value!r}; expected a list of stages: {', '.join(sorted(groups))}"
        )
        return [], []
    unknown = [one for one in value if one not in known and one not in groups]
    problems += [
        f"stages: {one}: no such stage; {_hint(str(one), [*known, *groups])}" for one in unknown
    ]
    targets = [name for name in known if name in value or name.partition("@")[0] in value]
    return targets, chain(targets, known)


def _metric(
    name: Any, direction: Any, stages: list[str], problems: list[str], default: str | None = None
) -> tuple[Metric, str]:
    """The metric and its better direction. It has to come from a stage that runs."""
    file, _, key = str(name).partition(":")
    path, key, better, unit = MEASURES.get(str(name)) or (f"metrics/{file}.json", key, default, key)
    metric = Metric(str(name), path, key, unit)
    writer = writer_of(path)
    if not key or writer is None:
        files = [
            Path(out).stem
            for one in definitions().values()
            for out in one.outs
            if out.startswith("metrics/")
        ]
        problems.append(
            f"metric: {name!r} is not known; {_hint(str(name), list(MEASURES))}, or FILE:KEY with FILE one of "
            f"{', '.join(files)}"
        )
    elif stages and writer not in stages:
        problems.append(
            f"metric: {name} is written by stage {writer}, and the stages chosen are {', '.join(stages)}; "
            f"add {writer} to stages"
        )
    elif Path(path).is_file() and key not in (
        known := flatten(json.loads(Path(path).read_text(encoding="utf-8")))
    ):
        problems.append(f"metric: {path} has no key {key!r}; {_hint(key, list(known))}")
    if direction not in ("lower", "higher", None) or (direction is None and better is None):
        problems.append(f"direction: {direction!r} is not allowed; expected lower or higher")
    elif direction and better and direction != better and default is None:
        problems.append(f"direction: {direction} is wrong for {name}: {better} is better")
    return metric, direction or better or "lower"


def _equal(value: Any, problems: list[str]) -> tuple[str, float | None]:
    kind, amount = (
        next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (value, None)
    )
    number = isinstance(amount, (int, float)) and not isinstance(amount, bool) and amount > 0
    if (
        kind not in EQUAL
        or not (amount is None or number)
        or (kind == "none" and amount is not None)
    ):
        problems.append(
            f"equal: {value!r} is not allowed; expected one of {', '.join(EQUAL)}, or {{tokens: 200000}}"
        )
        return "none", None
    return kind, None if amount is None else float(amount)


def _seeds(value: Any, problems: list[str]) -> tuple[int, int]:
    if value == "auto":
        return AUTO
    value = value["auto"] if isinstance(value, dict) and set(value) == {"auto"} else value
    if isinstance(value, dict) and set(value) == {"from", "to"}:
        first, last = value["from"], value["to"]
        if (
            all(isinstance(one, int) and not isinstance(one, bool) for one in (first, last))
            and 2 <= first <= last
        ):
            return first, last
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 2:
        return value, value
    problems.append(
        f"seeds: {value!r} is not allowed; expected a whole number >= 2, auto, or {{from: 3, to: 12}}, from >= 2"
    )
    return 2, 2


# ---------------------------------------------------------------- checks across fields


def changed_keys(experiment: Experiment, arm: str) -> list[str]:
    """The keys whose value an arm changes."""
    base, own = flatten(experiment.config()), flatten(experiment.config(arm))
    return [key for key in base.keys() | own.keys() if base.get(key) != own.get(key)]


def _arm_problems(experiment: Experiment) -> list[str]:
    """Arms that params.yaml refuses, that change nothing that is run, or whose equal budget cannot be held."""
    from paribus.study.budget import budget_problems

    problems = []
    for name, arm in experiment.arms.items():
        where = f"arms.{name}"
        try:
            config = experiment.config(name)
        except UserError as error:
            problems += [f"{where}: {problem}" for problem in error.problems]
            continue
        changed = changed_keys(experiment, name)
        without = inert_problems(config, arm.overrides)
        without += merge_problems(flatten(experiment.config()), flatten(config))
        if without:
            problems += [f"{where}: {problem}" for problem in without]
        elif "seed" in arm.overrides:
            problems.append(f"{where}: seed is not for an arm: every arm runs at the same seeds")
        elif not changed:
            problems.append(f"{where}: changes nothing: every value is the baseline's")
        elif not changes(experiment.config(), config):
            problems.append(
                f"{where}: {', '.join(sorted(changed))} changes nothing: the baseline computes the same, as what is null "
                "follows from other keys and weights are shares of their sum"
            )
        elif chain_key(experiment.stages, config) == chain_key(
            experiment.stages, experiment.config()
        ):
            problems.append(
                f"{where}: {', '.join(sorted(changed))} changes nothing in the stages that run: "
                f"{', '.join(experiment.stages)}"
            )
        else:
            problems += [f"{where}: {problem}" for problem in budget_problems(experiment, name)]
    return problems


def _warnings(experiment: Experiment) -> list[str]:
    found = []
    for name, arm in experiment.arms.items():
        changed = sorted(changed_keys(experiment, name))
        if len(changed) > 1 and arm.as_one is None:
            found.append(
                f"{experiment.file}: arms.{name} changes {len(changed)} things ({', '.join(changed)}), so that its "
                "verdict is on all of them together; if they are one thing, say which: "
                "{set: {…}, as_one: WHAT}"
            )
    return found


# ---------------------------------------------------------------- pre-registration


def registered(path: Path) -> str:
    """The git blob hash of a committed file. Raises UserError where it is not committed as it is."""
    blob, now = (
        _git("rev-parse", "--quiet", "--verify", f"HEAD:./{path}"),
        _git("hash-object", str(path)),
    )
    if blob is None or blob != now:
        how = "is not committed" if blob is None else "differs from what is committed"
        raise UserError(
            f"{path}: {how}; what is asked is committed before it runs: git add {path} && git commit"
        )
    return blob


def sources(stages: Sequence[str]) -> list[str]:
    """The code and data in git that stages declare: their deps that no stage writes."""
    outs = {out for one in definitions().values() for out in one.outs}
    deps = {dep for name in stages for dep in definitions()[name].deps}
    return sorted(
        dep for dep in deps if not any(dep == out or dep.startswith(f"{out}/") for out in outs)
    )


def check_sources(stages: Sequence[str]) -> None:
    """Raises UserError where code or parameters are not committed: a result must follow from a commit."""
    changed = _git("status", "--porcelain", "--", "params.yaml", "dvc.yaml", *sources(stages)) or ""
    if lines := [line[3:] for line in changed.splitlines()]:
        raise UserError(
            f"{line}: changed and not committed; a result has to follow from a commit"
            for line in lines
        )


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
