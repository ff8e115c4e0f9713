"""What a commit's own code makes of its parameters: steps, tokens and FLOPs of pretraining. Run as a file, not imported.

    python -P facts.py < {"overrides": {…}, "measure": false}      in a clone, with the clone's src on PYTHONPATH

The change may have keys that the baseline does not know, and the other way round; so each side is asked in a process of its
own code. A side whose code cannot be imported says so here, before anything is trained. It imports paribus's public names
alone, as the code may be older than this file.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paribus.config import Config


def facts(overrides: dict[str, object], measure: bool) -> dict[str, object]:
    """The facts of the parameters in the working folder.

    Args:
        overrides: dotted key -> value.
        measure: whether to measure the seconds of a step on this machine.
    """
    from paribus.config import merge, parse_config, read_yaml
    from paribus.recipe import Recipe

    config = parse_config(merge(read_yaml("params.yaml"), overrides))
    recipe = Recipe.of(config)
    batch = recipe.batch_tokens("pretrain")
    found: dict[str, object] = {
        "seed": config.seed,
        "steps": recipe.steps("pretrain"),
        "batch_tokens": batch,
        "step_flops": recipe.step_flops(batch),
        "cores": None if config.train.threads else _cores(config),
    }
    if measure:
        from paribus.study.budget import measure_step

        found["step_seconds"] = measure_step(config)
    return found


def _cores(config: Config) -> int | None:
    """Cores for the runs on a CPU, which share them; None on a GPU."""
    from paribus.machine.hardware import available_cores, detect_hardware

    return available_cores() if detect_hardware(config.train).device == "cpu" else None


def main() -> None:
    """Answer on standard output, in its last line; problems in the parameters are answers too."""
    asked = json.load(sys.stdin)
    try:
        answer = facts(asked["overrides"], asked["measure"])
    except Exception as error:
        problems = getattr(error, "problems", None)
        if problems is None:
            raise
        answer = {"problems": list(problems)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
