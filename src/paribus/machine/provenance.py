"""What a run is a function of: its fingerprint, and the record that goes with its results."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import paribus
from paribus import config
from paribus.git import refusal, try_git
from paribus.graph import (
    DigestMemo,
    StageDefinition,
    declared_params,
    file_digest,
    is_code,
    remembered_code,
    stage_definition,
    stage_definitions,
    tree_digest,
)
from paribus.machine.hardware import Hardware
from paribus.places import dvc_experiment, main_checkout, state_root


def stage_fingerprint(name: str, settings: config.Config, hardware: Hardware | None = None) -> str:
    """Names a run of a stage: equal parts, equal outputs. Raises UserError as `fingerprint_parts` does.

    Args:
        name: of the stage in dvc.yaml, with `@item` where it has one.
        settings: params.yaml as it is.
        hardware: that it runs on; None: its outputs do not depend on any.
    """
    return config.fingerprint(**fingerprint_parts(name, settings, hardware))


def fingerprint_parts(
    name: str, settings: config.Config, hardware: Hardware | None = None
) -> dict[str, Any]:
    """Everything that a run of a stage is a function of, as JSON.

    Returns stage; params: dotted key -> value, as declared; deps: data dep -> digest of its contents; code: source
    file -> digest of what the stage reaches of it; hardware: `Hardware.hardware_class()` or None; optimizer: the version of
    the optional library that the optimiser is of, if it is of one.
    Raises UserError for a param that params.yaml does not have, or a dep that does not exist.

    Args:
        name: of the stage in dvc.yaml, with `@item` where it has one.
        settings: params.yaml as it is.
        hardware: that it runs on; None: its outputs do not depend on any.
    """
    definition = stage_definition(name)
    parts = {
        "stage": name,
        "params": declared_params(definition, settings),
        "deps": dep_digests(definition),
        "code": code_digests(name),
        "hardware": hardware.hardware_class() if hardware else None,
    }
    version = config.library_version(settings.optimizer.kind)
    if version and "optimizer" in definition.params:
        parts["optimizer"] = version
    return parts


def code_digests(stage: str) -> dict[str, str]:
    """Source file -> digest of what a stage reaches of it, in the working folder. stage: its name in dvc.yaml."""
    return remembered_code(stage, state_root())


def dep_digests(definition: StageDefinition) -> dict[str, str]:
    """Data dep -> digest of its contents; a large file that did not change is read once. Raises UserError for an absent one."""
    memo = DigestMemo(state_root() / "digests.json")
    return {path: tree_digest([path], memo) for path in definition.deps if not is_code(path)}


def collect_provenance(hardware: Hardware | None = None) -> dict[str, Any]:
    """Code, environment and machine of this process, as JSON; git's values are None outside a repository.

    `git.dirty` speaks of sources: what stages write (outs, metrics, plots, dvc.lock) always differs while they run.
    """
    lock = next(
        (
            folder / "requirements.lock"
            for folder in (Path.cwd(), main_checkout())
            if (folder / "requirements.lock").is_file()
        ),
        None,
    )
    return {
        "git": git_state(),
        "dvc_experiment": dvc_experiment(),
        "requirements_lock": file_digest(lock) if lock else None,
        "versions": _versions(),
        "hardware": dataclasses.asdict(hardware) if hardware else None,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "command": shlex.join(sys.argv),
        "paribus": paribus.__version__,
    }


def git_state() -> dict[str, Any]:
    """{commit, branch, dirty, diff: sha256 of the uncommitted changes or None} of the working folder.

    Where git refuses a repository that is there, `problem` has its reason.
    """
    if try_git("rev-parse", "--git-dir") is None:
        problem = refusal()
        nothing = {"commit": None, "branch": None, "dirty": None, "diff": None}
        return nothing | ({"problem": problem} if problem else {})
    outs = {"dvc.lock"}
    if Path("dvc.yaml").is_file():
        outs |= {out for stage in stage_definitions().values() for out in stage.outs}
    sources = ["--", ".", *(f":(exclude){out}" for out in sorted(outs))]
    status = try_git("status", "--porcelain", *sources) or ""
    changes = status + (try_git("diff", "HEAD", *sources) or "")
    return {
        "commit": try_git("rev-parse", "--verify", "--quiet", "HEAD"),
        "branch": try_git("symbolic-ref", "--quiet", "--short", "HEAD"),
        "dirty": bool(status),
        "diff": hashlib.sha256(changes.encode(errors="surrogateescape")).hexdigest()
        if status
        else None,
    }


def git_time() -> float | None:
    """When the last commit was made, seconds since 1970; None outside a repository."""
    committed = try_git("log", "-1", "--format=%ct")
    return float(committed) if committed else None


def _versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide results, without importing them."""
    from importlib import metadata

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in (
        "torch",
        "numpy",
        "tokenizers",
        "safetensors",
        "dvc",
        "mlflow",
        "optuna",
        "heavyball",
        "pytorch_optimizer",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions
