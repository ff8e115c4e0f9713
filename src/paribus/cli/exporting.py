"""`paribus export`: a checkpoint for other tools."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paribus.errors import UserError
from paribus.places import find_checkpoint

EXPORTS = Path("exports")


def export_checkpoint(
    checkpoint: str, target: str, out: Path | None, force: bool, as_json: bool
) -> None:
    """Write a checkpoint as a folder for transformers or as a GGUF file.

    Args:
        checkpoint: base, mid, sft, rl or a folder.
        target: "hf" or "gguf".
        out: where; None: in EXPORTS, under the checkpoint's name.
        force: whether what is there is replaced.
        as_json: whether to print JSON.

    Raises:
        UserError: no such checkpoint, a switch that the target cannot hold, or something is at `out`.
    """
    folder = find_checkpoint(checkpoint)
    place = out or _default_place(folder, target)
    if place.exists() and not force:
        raise UserError(f"--out {place}: exists; --force replaces it")
    if place.is_dir() and not (place / "generation_config.json").is_file():
        raise UserError(f"--out {place}: a folder that is no export, and is not replaced")
    architecture = _write(folder, target, place)
    if as_json:
        written = {"path": str(place), "target": target, "architecture": architecture}
        click.echo(json.dumps(written))
        return
    click.echo(f"{place}: {folder} as {architecture}")


def _write(folder: Path, target: str, place: Path) -> str:
    """Export; returns the name of the architecture that the target knows it by."""
    from paribus.export.folder import export_folder
    from paribus.export.gguf_file import export_gguf
    from paribus.study.finished import in_checkpoint

    run = in_checkpoint(folder)
    if target == "gguf":
        return export_gguf(run, folder, place).model_type
    stock = export_folder(run, folder, place)
    return stock.architecture if stock else "ParibusForCausalLM, which is code in the folder"


def _default_place(folder: Path, target: str) -> Path:
    return EXPORTS / (f"{folder.name}.gguf" if target == "gguf" else f"{folder.name}-hf")
