"""`paribus doctor` checks that everything a run needs is there: one line a check, with what is wrong and the fix."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from paribus.cli import machine_checks as machine
from paribus.cli import project_checks as project
from paribus.cli.finding import Finding as Finding
from paribus.errors import UserError

CHECKS: dict[str, Callable[[], Finding]] = {
    "versions": machine.versions,
    "gpu": machine.gpu,
    "compiler": machine.compiler,
    "disk": machine.disk,
    "clock": machine.clock,
    "neighbours": machine.neighbours,
    "path": project.checkout_path,
    "git": project.git,
    "params": project.params,
    "outputs": project.outputs,
    "store": project.store,
    "state": project.state_files,
    "leftovers": project.leftover_files,
    "dvc": project.site_cache,
    "remote": project.remote,
    "chromium": machine.chromium,
}


def examine() -> list[tuple[str, Finding]]:
    """Every check by name; a check that fails itself is broken, not fatal."""
    findings = []
    for name, check in CHECKS.items():
        try:
            findings.append((name, check()))
        except UserError as error:
            findings.append((name, Finding("broken", "; ".join(error.problems))))
        except (
            Exception
        ) as error:  # whatever a broken installation raises, the other checks still run
            findings.append(
                (name, Finding("broken", f"the check failed: {type(error).__name__}: {error}"))
            )
    return findings


def report(findings: list[tuple[str, Finding]]) -> str:
    """One line a finding."""
    return "\n".join(
        f"{finding.state:6} {name:10} {' '.join(finding.text.split())}"
        for name, finding in findings
    )


def examine_card(device: str, minutes: float, peer: str | None, as_json: bool) -> int:
    """`paribus doctor --gpu`: print the page or the record, and return the exit status: 1 where a check failed."""
    from paribus.card.examination import examine as examine_all
    from paribus.card.examination import page, write

    def say(line: str) -> None:
        print(f"paribus: {line}", file=sys.stderr, flush=True)

    record = examine_all(device, minutes, Path(peer).resolve() if peer else None, say)
    data, text = write(record)
    print(json.dumps(record, indent=1) if as_json else page(record))
    say(f"written to {text} and {data}; paste the page into an issue")
    return 0 if record["passed"] else 1
