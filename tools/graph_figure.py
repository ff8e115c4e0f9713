"""The graph of the stages in dvc.yaml, for Mermaid: what `dvc dag --md` draws, without the arrows that follow from others."""

from __future__ import annotations

from pathlib import Path

from paribus import graph

ROOT = Path(__file__).resolve().parent.parent
Edges = dict[str, set[str]]  # stage -> the stages that read what it writes


def dag() -> str:
    """A Mermaid block, a line for each chain of stages."""
    lines = ["", "", "```mermaid", "flowchart LR"]
    lines += [" --> ".join(_node(stage) for stage in chain) for chain in chains(needed(edges()))]
    return "\n".join([*lines, "```", "", ""])


def edges() -> Edges:
    """Who reads whose outputs."""
    stages = graph.stage_definitions(ROOT / "dvc.yaml")
    found: Edges = {stage: set() for stage in stages}
    for stage, definition in stages.items():
        for writer, other in stages.items():
            for dep in definition.deps:
                if any(dep == out or dep.startswith(f"{out}/") for out in other.outs):
                    found[writer].add(stage)
    return found


def needed(found: Edges) -> Edges:
    """The edges without those that a longer way stands for."""
    return {
        stage: {other for other in after if not any(other in _below(found, one) for one in after)}
        for stage, after in found.items()
    }


def _below(found: Edges, stage: str) -> set[str]:
    """Every stage that follows from one."""
    below = set(found[stage])
    for other in found[stage]:
        below |= _below(found, other)
    return below


def chains(found: Edges) -> list[list[str]]:
    """Every edge once, in chains as long as they go: first along the stages in the order of dvc.yaml."""
    left = {stage: sorted(after, key=list(found).index) for stage, after in found.items()}
    drawn = []
    for stage in found:
        while left[stage]:
            chain = [stage]
            while left[chain[-1]]:
                chain.append(left[chain[-1]].pop(0))
            drawn.append(chain)
    return drawn


def _node(stage: str) -> str:
    """A stage's node. Mermaid takes no @ in a name."""
    return f'{stage.replace("@", "_")}["{stage}"]' if "@" in stage else stage
