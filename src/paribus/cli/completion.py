"""What a shell completes in place of a command's NAME, from the files of the checkout."""

from __future__ import annotations

from collections.abc import Iterable

import click

from paribus.curriculum import CHECKPOINT_NAMES


def studies(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Ablations that begin so."""
    from paribus.study.experiment import study_files

    return _beginning(study_files(), begun)


def tuning_studies(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Tuning studies that begin so."""
    from paribus.tune.space import STUDIES

    return _beginning((path.stem for path in sorted(STUDIES.glob("*.yaml"))), begun)


def profiles(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Profiles that begin so."""
    from paribus.config.profiles import PROFILES

    return _beginning((path.stem for path in sorted(PROFILES.glob("*.yaml"))), begun)


def keys(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Keys of params.yaml that begin so, and the mappings that hold them."""
    from paribus.config import describe

    return _beginning((path for path, *_ in describe()), begun)


def checkpoints(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """Checkpoints of the curriculum that begin so."""
    return _beginning(CHECKPOINT_NAMES, begun)


def _beginning(names: Iterable[str], begun: str) -> list[str]:
    return [name for name in names if name.startswith(begun)]
