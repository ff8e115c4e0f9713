"""An ablation's file, `experiments/NAME.yaml`: the question, what is changed, what is held equal; strict, as params.yaml is.

One in a folder, `experiments/FOLDER/NAME.yaml`, is asked for as FOLDER/NAME; the study's name is FOLDER-NAME.

    question: Does Muon beat AdamW at the default size?
    hypothesis: Muon is better by more than 0.01 bits per byte.
    expects: {adamw: worse}     # the same for programs: better, worse, equivalent, not better, not worse; of a ladder's arm
                                # holds, shrinks, vanishes
    baseline: {profile: default, set: {pretrain.steps: 60}}
    arms:
      adamw: {optimizer.kind: adamw}
      slower: {set: {optimizer.matrix_lr: 0.01, optimizer.head_lr: 0.003}, as_one: half of both rates}
      normuon: {code: ideas/normuon}                # a branch, tag, commit or patch file; with set, if it needs one
                                                  # or `factors` in place of arms: factors.py
    tune: {…}                   # every arm alike, before it is judged: tuning.py
    seeds: open                 # the default: looks after 3, 5, 8, 12, 18, … seeds, without a last one; or 5, for one look;
                                # or {from: 3, to: 12}
    borrow: true                # whether arms lend each other their variance; the default of open studies
    skewed: false               # true: verdicts hold for skewed, unequal noise, for about twice the seeds
    secondary: [core]           # metrics that are tested where the first one speaks
    contrasts: [[slower, adamw]]    # arm against arm; or all
    margin: {worse_by: 0.005, cheaper: seconds}     # not worse by more than that, and cheaper
    fresh_seeds: false          # true: seeds of the study's own, which no other study has
    metric: val_bpb             # core, gsm8k.STAGE, or any key of a metrics file, as pretrain:train_loss
    direction: lower            # needed for keys of files only
    smallest_effect: 0.01
    equal: tokens               # or bytes, flops, seconds, {tokens: 200000}, or none
    alpha: 0.05
    stages: [pretrain]          # of dvc.yaml; what they depend on runs too
    workers: 1
    horizons: [0.8, 1.0, 1.25]  # or auto: lengths at which the baseline is trained too, for what an effect is worth in compute
    ladder: {model.depth: [2, 3, 4, 6], predict: 9}     # sizes at which every arm is compared; instead of horizons

An arm changes one thing. More is warned about, unless `as_one` says what one thing the changes are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from paribus.config import flatten, lay_over, profile_overrides, read_yaml
from paribus.curriculum import CHECKPOINT_NAMES
from paribus.errors import UserError, did_you_mean
from paribus.graph import chain
from paribus.study import asked, fields
from paribus.study.arm_checks import arm_problems, arm_warnings
from paribus.study.arm_code import settled_code
from paribus.study.arms import Arm, read_arms
from paribus.study.code_checks import code_problems
from paribus.study.designs import with_designs
from paribus.study.expected import read_expects
from paribus.study.experiment import BASELINE, FOLDER, Experiment, Metric, study_files
from paribus.study.factors import Factorial, factorial_problems, read_factorial
from paribus.study.fields import hint, shown
from paribus.study.identity import definitions, settings, writer_of
from paribus.study.looks import Schedule
from paribus.study.results import code_of_chain
from paribus.study.targets import AMOUNTS, NO_TARGET, is_target, read_target, target_problems
from paribus.study.tuning import read_tuning, tuning_problems

REQUIRED = (
    "question",
    "hypothesis",
    "baseline",
    "metric",
    "smallest_effect",
    "equal",
    "stages",
)
FACTORIAL = ("factors", "design", "interactions")
DESIGNS = ("tune", "horizons", "ladder")
OPTIONAL = (
    "expects",
    "arms",
    "seeds",
    "fresh_seeds",
    "borrow",
    "skewed",
    "direction",
    "alpha",
    "workers",
)
KEYS = (*REQUIRED, *OPTIONAL, *FACTORIAL, *asked.KEYS, *DESIGNS)
MEASURES = {  # metric -> (file, key, the better direction, unit)
    "val_bpb": ("metrics/pretrain.json", "val_bpb", "lower", "bits per byte"),
    "core": ("metrics/core.json", "core", "higher", "CORE"),
    **{
        f"gsm8k.{stage}": (f"evals/gsm8k/{stage}/summary.json", "accuracy", "higher", "accuracy")
        for stage in CHECKPOINT_NAMES
    },
}


def read_experiment(name: str, to_run: bool = False) -> Experiment:
    """The ablation NAME.

    Args:
        name: of its file; FOLDER/NAME for one in a folder of experiments/.
        to_run: whether its arms that are code have to be fit to run; a report of finished runs asks less.

    Raises:
        UserError: with every problem at once.
    """
    files = study_files()
    plain = name.replace("/", "-")
    if plain not in files:
        there = [str(path.relative_to(FOLDER).with_suffix("")) for path in files.values()]
        hint = did_you_mean(name, there)
        raise UserError(
            f"no ablation {shown(name)} in {FOLDER}; {hint}{' ' if hint else ''}"
            f"`paribus ablate list` names all, `paribus ablate new NAME` writes one"
        )
    return parse_experiment(plain, read_yaml(files[plain]), to_run)


def parse_experiment(name: str, raw: Mapping[str, object], to_run: bool = False) -> Experiment:
    """An ablation's file as an Experiment.

    Args:
        name: of the ablation.
        raw: the values in its file.
        to_run: whether its arms that are code have to be fit to run.

    Raises:
        UserError: with every problem at once, each with the file's name.
    """
    experiment, problems = _parse(name, raw)
    if to_run and not problems:
        problems = code_problems(experiment)
    if problems:
        raise UserError(f"{experiment.file}: {problem}" for problem in problems)
    experiment.warnings.extend(arm_warnings(experiment))
    return experiment


# Replaces a key that is missing or wrong, while the others are read.
_PLACEHOLDERS: dict[str, object] = {
    "question": "?",
    "hypothesis": "?",
    "baseline": {},
    "seeds": "open",
    "smallest_effect": 0.01,
    "equal": "none",
    "alpha": 0.05,
    "workers": 1,
    "fresh_seeds": False,
    "skewed": False,
}


def _parse(name: str, raw: Mapping[str, object]) -> tuple[Experiment, list[str]]:
    """The experiment and its problems; the experiment is usable only without problems."""
    problems = _key_problems(name, raw)
    # A study that was registered with looks of its own keeps the verdicts that it was registered with.
    open_arms = raw.get("seeds", "open") == "open" and "factors" not in raw
    values = {"borrow": open_arms} | _PLACEHOLDERS | dict(raw)
    of_baseline: list[str] = []
    of_stages: list[str] = []
    profile, base = read_baseline(values["baseline"], of_baseline)
    factorial, arms = _arms(raw, None if of_baseline else base, problems)
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
        skewed=fields.switch(values, "skewed", problems),
        besides=asked.Asked(
            secondary=read_secondary(raw, metric, stages, problems),
            contrasts=asked.read_contrasts(raw, list(arms), problems),
            margin=asked.read_margin(raw, problems),
        ),
        expects=read_expects(raw, list(factorial.factors if factorial else arms), problems),
        factorial=factorial,
        tune=read_tuning(raw["tune"], problems) if "tune" in raw else None,
    )
    if stages and not of_baseline:
        experiment = _with_what_needs_stages(experiment, raw, problems)
    return experiment, [*problems, *of_baseline, *of_stages]


def _key_problems(name: str, raw: Mapping[str, object]) -> list[str]:
    """Keys that are unknown, missing, or do not go together, and a name that no study may have."""
    problems = [f"{shown(key)}: unknown key; {hint(key, KEYS)}" for key in raw if key not in KEYS]
    problems += [f"{key}: missing" for key in REQUIRED if key not in raw]
    problems += asked.design_problems(raw)
    if "factors" not in raw:
        problems += [f"{key}: only with factors" for key in FACTORIAL if key in raw]
    designs = [key for key in DESIGNS if key in raw]
    for key in ("factors", "tune"):
        if key in raw:
            problems += [f"{other}: not with {key}" for other in designs if other != key]
    wrong_name = fields.name_problem(name)
    return [*problems, wrong_name] if wrong_name else problems


def _arms(
    raw: Mapping[str, object], base: dict[str, object] | None, problems: list[str]
) -> tuple[Factorial | None, dict[str, Arm]]:
    """The factors and arms of a file; base: overrides of the baseline, None where they are wrong."""
    if "factors" in raw:
        problems += factorial_problems(raw)
        return (None, {}) if base is None else read_factorial(raw, base, problems)
    if "arms" in raw:
        return None, read_arms(raw["arms"], BASELINE, problems)
    problems.append("arms: missing; or factors, for several changes at once")
    return None, {}


def _with_what_needs_stages(
    experiment: Experiment, raw: Mapping[str, object], problems: list[str]
) -> Experiment:
    """With the code, ladder and horizons of its arms, examined for what the stages make of them."""
    experiment = _with_code(experiment, problems)
    of_arms = [] if "ladder" in raw else arm_problems(experiment)
    if experiment.tune is not None and not of_arms:
        problems += tuning_problems(experiment)
    problems += of_arms + target_problems(experiment)
    return with_designs(experiment, raw.get("ladder"), raw.get("horizons"), problems)


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
    problems += [f"metric: {NO_TARGET}: {name}" for name in metrics if is_target(name)]
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


def read_baseline(value: object, problems: list[str]) -> tuple[str | None, dict[str, object]]:
    """(profile, all overrides of the baseline).

    Args:
        value: as the file has it.
        problems: what is wrong with it is added to these.
    """
    if not isinstance(value, dict) or set(value) - {"profile", "set"}:
        problems.append(
            f"baseline: {shown(value)}; expected {{profile: NAME, set: {{dotted.key: value}}}}, either or both"
        )
        return None, {}
    profile, changes = value.get("profile"), value.get("set")
    before = len(problems)
    overrides = {} if profile is None else _profile(profile, problems)
    if changes is not None:
        overrides = lay_over(overrides, fields.overrides(changes, "baseline.set", problems))
    if len(problems) == before:
        try:
            settings(overrides)
        except UserError as error:
            problems += [f"baseline: {problem}" for problem in error.problems]
    return profile, overrides


def _profile(name: object, problems: list[str]) -> dict[str, object]:
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


def read_stages(value: object, problems: list[str]) -> tuple[list[str], list[str]]:
    """(targets, the chain of stages that they need).

    Args:
        value: as the file has it.
        problems: what is wrong with it is added to these.
    """
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
    name: object,
    direction: object,
    stages: list[str],
    problems: list[str],
    default: str | None = None,
) -> tuple[Metric, str]:
    """The metric and its better direction. It has to come from a stage that runs.

    default: of the better direction, where the metric is not among MEASURES and `direction` is absent. name: as the
    file has it. stages: that run. problems: what is wrong is added to these.
    """
    if is_target(name):
        problem = _direction_problem(name, direction, "lower", is_default=False)
        if problem:
            problems.append(problem)
        return read_target(name, stages, problems), "lower"
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


def read_secondary(
    raw: Mapping[str, object], primary: Metric, stages: list[str], problems: list[str]
) -> tuple[tuple[Metric, str], ...]:
    """The secondary metrics with their better direction: names, or {metric: NAME, direction: lower}.

    Args:
        raw: the file.
        primary: the metric, which is no secondary one too.
        stages: that run.
        problems: what is wrong is added to these.
    """
    value = raw.get("secondary", [])
    if not isinstance(value, list):
        problems.append(f"secondary: {shown(value)}; expected a list of metrics")
        return ()
    found: dict[str, tuple[Metric, str]] = {}
    for entry in value:
        one = entry if isinstance(entry, dict) else {"metric": entry}
        if "metric" not in one or set(one) - {"metric", "direction"}:
            problems.append(
                f"secondary: {shown(entry)}; expected {{metric: NAME, direction: lower}}"
            )
            continue
        own: list[str] = []
        metric, direction = read_metric(one["metric"], one.get("direction"), stages, own)
        if metric.name == primary.name or metric.name in found:
            own.append(f"{metric.name} stands there already")
        if metric.target is not None:
            own.append(f"{NO_TARGET}, and the first of them alone: {metric.name}")
        problems += [f"secondary: {problem}" for problem in own]
        found[metric.name] = (metric, direction)
    return tuple(found.values())


def _metric_problems(name: object, path: str, key: str, stages: list[str]) -> list[str]:
    """Why a metric cannot be measured. path, key: where it is; stages: that run."""
    writer = writer_of(path)
    if not key or writer is None:
        return [
            f"metric: {shown(name)} is not known; {hint(name, [*MEASURES, *AMOUNTS])}, steps_to:3.28 and the like, "
            "or FILE:KEY with FILE one of "
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
    name: object, direction: object, better: str | None, is_default: bool
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
