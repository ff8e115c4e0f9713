"""A stage that is computing: its paths, its hardware, its fingerprint and state, its models.

Paths are relative to the working directory, which in a queued experiment is a clone of its own; resumable state
is kept in the main checkout, in a folder named by the stage's fingerprint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import graph, tracking
from paribus.config import (
    Architecture,
    Config,
    change_notes,
    flatten,
    load_config,
    resolve_model,
)
from paribus.config import fingerprint as name_of
from paribus.curriculum import (
    CHECKPOINTS,
    CORPUS,
    HEADLINES,
    METRICS,
    PLOTS,
    TOKENIZER,
    TRAINING_STAGES,
)
from paribus.files import remove_leftovers
from paribus.launched import launched
from paribus.machine.hardware import (
    Hardware,
    available_cores,
    detect_hardware,
)
from paribus.machine.interrupt import Interrupt
from paribus.machine.lock import StateLock
from paribus.machine.process import set_up_process
from paribus.machine.provenance import (
    code_digests,
    collect_provenance,
    dep_digests,
    fingerprint_parts,
)
from paribus.places import state_root
from paribus.recipe import Recipe
from paribus.stages import room
from paribus.stages.launch import LAUNCHER_WATCH

if TYPE_CHECKING:
    from paribus.data.tokenizer import Tokenizer
    from paribus.generate import Engine
    from paribus.model.gpt import GPT


@dataclass(frozen=True)
class Session:
    """A stage that is computing: its hardware, the place of its state, its log."""

    stage: str
    config: Config
    hardware: Hardware
    fingerprint: str
    parts: dict[str, Any]  # that the fingerprint is of
    folder: Path
    interrupt: Interrupt

    @property
    def provenance(self) -> dict[str, Any]:
        """What determines the outputs: no times and no host, so that the same run gives the same bytes."""
        definition = graph.stage_definition(self.stage)
        machine = collect_provenance(self.hardware)
        return {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "params": graph.declared_params(definition, self.config),
            "deps": dep_digests(definition),
            "code": code_digests(self.stage),
            "data": graph.data_versions(definition),
            **{
                name: machine[name]
                for name in ("git", "requirements_lock", "versions", "hardware", "paribus")
            },
        }

    def open_log(self, params: dict[str, Any], resume_step: int | None = None) -> tracking.RunLog:
        """This stage's MLflow run. params: resolved values that differ from params.yaml's."""
        data = [path for path in graph.stage_definition(self.stage).deps if not graph.is_code(path)]
        return tracking.RunLog.open(
            self.stage,
            folder=self.folder,
            config=self.config,
            params=flatten(self.config) | params,
            fingerprint=self.fingerprint,
            resume_step=resume_step,
            tags={
                "hardware": self.hardware.device_name,
                "dtype": self.hardware.dtype,
                "threads": str(self.hardware.process_threads),
                "processes": str(self.hardware.processes),
            },
            datasets={path: (path, graph.dvc_hash(path)) for path in data},
        )


def name_changes(stage: str, config: Config) -> None:
    """Report keys that were changed since the last commit and have no effect in a stage. Raises UserError.

    Args:
        stage: as dvc.yaml names it.
        config: params.yaml as it is.
    """
    sections = [*graph.stage_definition(stage).params, "train"]
    for note in change_notes(config, sections):
        print(f"paribus {stage}: {note}", file=sys.stderr)


def say_if_stale(stage: str, code: Iterable[str] | None = None) -> None:
    """A line where dvc.yaml does not name the code that a stage runs.

    code: the source files of the stage, where they are known.
    """
    if code is None:
        code = graph.remembered_code(stage, state_root())
    note = graph.stale_note(stage, graph.stage_definition(stage), code)
    if note is not None:
        print(f"paribus {stage}: {note}", file=sys.stderr)


@contextmanager
def session(stage: str) -> Iterator[Session]:
    """Check the config and the hardware, name the run, and lock its state.

    Of several processes rank 0 holds the lock and receives `paribus pause`. They join before signals are caught, so that
    one which waits for another that was refused can be ended.
    """
    from paribus.model import window_kernel
    from paribus.train import parallel

    first = launched().rank == 0
    config = load_config()
    if first:
        name_changes(stage, config)
    hardware = detect_hardware(config.train)
    if first and stage in TRAINING_STAGES and hardware.device == "cpu":
        room.check(Recipe.of(config), stage, hardware.dtype, hardware.processes)
    set_up_process(hardware, config.seed)
    if hardware.device == "cuda" and stage in TRAINING_STAGES:
        hardware = window_kernel.settled(hardware, resolve_model(config.model))
    parts = fingerprint_parts(stage, config, hardware)
    fingerprint = name_of(**parts)
    if first:
        say_if_stale(stage, parts["code"])
    root = state_root()
    folder = root / "runs" / f"{stage.replace('@', '-')}-{fingerprint}"
    lock = StateLock(folder) if first else nullcontext()
    with (
        lock,
        parallel.group(hardware.device),
        Interrupt(folder if first else None, config.train.session_minutes) as interrupt,
    ):
        LAUNCHER_WATCH.joined()
        if first:
            for place in (root, root / "executions", METRICS, HEADLINES, PLOTS):
                remove_leftovers(place)
            remove_leftovers(folder, recursive=True)
            _say_what_runs(stage, fingerprint, hardware)
            say_crowded(stage, config.train.threads)
        yield Session(stage, config, hardware, fingerprint, parts, folder, interrupt)


def _say_what_runs(stage: str, fingerprint: str, hardware: Hardware) -> None:
    processes = f"{hardware.processes} processes of " if hardware.processes > 1 else ""
    print(
        f"paribus {stage}: {fingerprint} on {hardware.device_name}, {hardware.dtype}, "
        f"{processes}{hardware.process_threads} threads",
        file=sys.stderr,
    )
    if hardware.compile and stage in TRAINING_STAGES:
        print(
            f"paribus {stage}: train.compile: the first step compiles the model, and nothing is printed "
            "for up to a minute or two",
            file=sys.stderr,
        )


def say_crowded(stage: str, threads: int | None) -> None:
    """Warn about more threads than cores: the result is that of the requested number, but takes longer.

    Args:
        stage: as dvc.yaml names it.
        threads: that params.yaml asks for; None: as many as cores.
    """
    cores = available_cores()
    if threads is not None and threads > cores:
        print(
            f"paribus {stage}: train.threads: {threads:,} on {cores} cores, which wait for each other: many times slower "
            f"than {cores} (or null)",
            file=sys.stderr,
        )


def load_trained_tokenizer() -> Tokenizer:
    """The tokenizer that the stage `tokenizer` wrote."""
    from paribus.data.tokenizer import Tokenizer

    return Tokenizer.load_trained(TOKENIZER)


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder; the checkpoint's own record vouches for it (`load_model`)."""
    from paribus.data.tokenizer import Tokenizer

    return Tokenizer.load(checkpoint / "tokenizer.json")


def core_is_synthetic() -> bool:
    """Whether the tasks in data/corpus/core are the embedded world's."""
    from paribus.data.contents import read_manifest

    return bool(read_manifest(CORPUS)["core"]["source"] == "world")


def new_model(run: Session, recipe: Recipe) -> GPT:
    """An untrained model at its first values, on the session's device.

    Args:
        run: the stage's session.
        recipe: of the model.
    """
    from paribus.train import trainer

    check_kernels(run, recipe.architecture)
    return trainer.new_model(recipe, run.hardware)


def load_model(run: Session, stage: str) -> GPT:
    """The model of a stage's checkpoint on the session's device.

    Args:
        run: the stage's session.
        stage: name of the checkpoint: base, mid, sft or rl.
    """
    import torch

    from paribus.model.gpt import load_checkpoint

    dtype = getattr(torch, run.hardware.dtype)
    model = load_checkpoint(CHECKPOINTS / stage, run.hardware.device, dtype).eval()
    set_up(run, model)
    return model


def open_engine(run: Session, stage: str) -> Engine:
    """The engine of a stage's checkpoint on the session's device.

    Args:
        run: the stage's session.
        stage: name of the checkpoint: base, mid, sft or rl.
    """
    from paribus.generate import open_checkpoint

    found = run.hardware
    folder = CHECKPOINTS / stage
    engine = open_checkpoint(folder, found.device, found.dtype, graphs=found.decode_graphs)
    set_up(run, engine.model)
    return engine


def set_up(run: Session, model: GPT) -> None:
    """Prepare a loaded model for the session. Raises UserError where this machine lacks what its kernels need.

    Args:
        run: the stage's session.
        model: as it was loaded.
    """
    check_kernels(run, model.config)
    model.activation_checkpointing = run.config.train.activation_checkpointing
    model.window_kernel = run.hardware.window_kernel
    if run.hardware.fp8:
        model.use_float8()


def check_kernels(run: Session, model: Architecture) -> None:
    """Raises UserError where this machine lacks what the stage's kernels need.

    Args:
        run: the stage's session.
        model: its architecture.
    """
    from paribus.model import kernels

    if (
        run.stage not in TRAINING_STAGES
    ):  # evaluations read with masks in memory, and compile nothing
        kernels.check_head_dim(model.head_dim, run.hardware.device)
        return
    packed = {"midtrain": run.config.midtrain, "sft": run.config.sft}.get(run.stage)
    kernels.check_device(
        model,
        run.hardware.device,
        run.hardware.dtype,
        compiled=run.hardware.compile,
        documents=packed is not None and not packed.attend_across,
    )
