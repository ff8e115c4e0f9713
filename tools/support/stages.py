"""A project of one dvc.yaml, with what its stages depend on."""

from __future__ import annotations

from pathlib import Path

DVC_YAML = """
stages:
  tokens:
    cmd: paribus tokens
    params: [tokens]
    outs: [data/tokens]
  pretrain:
    cmd: paribus pretrain
    params: [seed, model, train, eval.core.batch_size]
    deps: [data/tokens, code]
    outs: [checkpoints/base]
    metrics:
      - metrics/pretrain.json: {cache: false}
  gsm8k:
    foreach: [base, mid]
    do:
      cmd: paribus eval gsm8k ${item}
      params: [{params.yaml: [eval.gsm8k]}]
      deps: ["checkpoints/${item}"]
  grid:
    matrix: {size: [s, l], arm: [{name: a}, {name: b}]}
    cmd: true
    deps: ["data/${item.size}"]
"""


def make_stages(folder: Path, project_root: Path) -> Path:
    """dvc.yaml with stages of every form, params.yaml and the files that the stages depend on."""
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text((project_root / "params.yaml").read_text())
    for place, name, text in (("data/tokens", "a.bin", "tokens"), ("code", "loop.py", "pass")):
        (folder / place).mkdir(parents=True)
        (folder / place / name).write_text(text)
    return folder
