"""What MLflow calls a run: by what is particular about it, so that a list of runs can be read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from paribus.config import PROFILES, Config, flatten, profile_overrides
from paribus.config.committed import committed_values
from paribus.errors import UserError
from paribus.run_id import parse_experiment_name

NAMED = 3  # changed keys in a name
LONGEST_VALUE = 24  # letters of a value in a name
GROUP = "paribus.group"  # the tag of a run that stands for many: a study or a search


@dataclass(frozen=True)
class Label:
    """The name of an execution, its tags, and the study that it is of."""

    name: str
    tags: Mapping[str, str]
    study: str | None = None


def label_of(settings: Config, experiment: str | None) -> Label:
    """Name an execution by its study's arm, or by its profile and the keys that were changed, and by its seed.

    Args:
        settings: of the execution.
        experiment: the DVC experiment that it is; None in the workspace.
    """
    seed = f"s{settings.seed}"
    values = flatten(settings)
    changed = _changed(values)
    tags = {"seed": str(settings.seed)}
    if changed:
        tags["changed"] = "; ".join(changed.values())
    run = parse_experiment_name(experiment) if experiment else None
    if run is not None:
        name = run[0]
        tags |= {"study": name.study, "arm": name.arm}
        return Label(f"{name.arm} {seed}", tags, name.study)
    profile = _profile(values)
    named = {} if profile is None else profile_overrides(profile)
    own = [key for key in changed if key not in named]
    words = [f"{key}={_brief(values[key])}" for key in own[:NAMED]]
    if len(own) > NAMED:
        words.append(f"+{len(own) - NAMED}")
    if profile is not None:
        tags["profile"] = profile
        words.insert(0, profile)
    whole = f"{' '.join(words) or 'default'} {seed}"
    return Label(f"{whole} ({experiment})" if experiment else whole, tags)


def stage_words(stage: str) -> str:
    """A stage as a name shows it: gsm8k_stage@rl is "gsm8k rl"."""
    return stage.replace("_stage@", " ").replace("@", " ")


def _changed(values: Mapping[str, object]) -> dict[str, str]:
    """Key -> "key: before → now", of all that differs from params.yaml in git's HEAD but the seed and tracking."""
    before = committed_values() or {}
    changed = {}
    for key, value in values.items():
        watched = key == "seed" or key.startswith("tracking.")
        if not watched and key in before and before[key] != value:
            changed[key] = f"{key}: {_text(before[key])} → {_text(value)}"
    return changed


def _profile(values: Mapping[str, object]) -> str | None:
    """The profile of which every key has its value here, the one of most keys; None for what every run has."""
    best, most = None, 1  # one key, as the default's, names no profile
    for path in sorted(PROFILES.glob("*.yaml")):
        with contextlib.suppress(UserError, OSError):  # a damaged profile is no matter of this run
            overrides = profile_overrides(path.stem)
            if len(overrides) > most and overrides.items() <= values.items():
                best, most = path.stem, len(overrides)
    return best


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _brief(value: object) -> str:
    text = _text(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
