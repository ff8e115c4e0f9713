"""`paribus judge`: a verdict on anybody's table of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from paribus.cli.arguments import Finite, Number

# As `Options` has them; naming them here keeps --help quick.
CORRECTIONS = ("holm", "hierarchical", "none")
MISSING = ("refuse", "absent", "diverged")

DECORATORS = [
    click.argument("table"),
    click.option("--arm", multiple=True, help="Column of the arm; several are joined."),
    click.option("--metric", default="", help="Column of the result, or steps_to:3.28 (see --curve)."),
    click.option("--baseline", help="The arm that the others are compared with."),
    click.option("--chain", is_flag=True, help="Compare each arm with the one before it."),
    click.option("--order-by", help="Column that orders the arms.  [default: as they appear]"),
    click.option("--descending", is_flag=True, help="Order from the largest value down."),
    click.option("--pair-by", multiple=True, help="Column that matches runs of two arms, as seed."),
    click.option("--block", help="Column of blocks, as machine, taken out of the comparison."),
    click.option("--run", help="Column of the run, where rows are points of its curve."),
    click.option("--step", help="Column of the position on the curve; the last row counts."),
    click.option("--rows-are-runs", is_flag=True, help="Rows with a step are no points of curves."),
    click.option("--curve", help="Column of the curve, for a metric such as steps_to:3.28."),
    click.option("--arms-in", multiple=True, help="Wide table: columns that are arms, as 'base,muon*'."),
    click.option("--runs-in", multiple=True, help="Wide table: columns that are runs, as 'seed*'."),
    click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Rows that count; also !=."),
    click.option("--lower-is-better/--higher-is-better", "lower", default=True, help="[default: lower]"),
    click.option("--smallest-effect", type=Finite(), help="Below it a difference does not matter."),
    click.option("--margin", type=Finite(), help="Test also for better by at least this much."),
    click.option("--alpha", type=Number(0, 0.5), default=0.05, show_default=True, help="Level."),
    click.option("--correction", type=click.Choice(CORRECTIONS), default="holm", show_default=True,
                 help="Over the comparisons."),
    click.option("--pooled", is_flag=True, help="One spread for all arms."),
    click.option("--noise", type=Finite(), help="Standard deviation over seeds, for planning."),
    click.option("--fixed-sigma", type=Finite(), help="A published rule's spread, shown beside."),
    click.option("--fixed-bound", type=Finite(), help="What the rule asks of difference x √runs."),
    click.option("--target", type=Finite(), help="A value of the metric to reach."),
    click.option("--horizon", help="Column of a run's compute: steps, tokens, FLOPs or seconds."),
    click.option("--slope", type=Finite(), help="Gain of the metric by one more unit of it."),
    click.option("--slope-error", type=Finite(), help="Standard error of --slope."),
    click.option("--missing", type=click.Choice(MISSING), default="refuse", show_default=True,
                 help="What a row without a finite result is."),
    click.option("--duplicates", type=click.Choice(["refuse", "mean"]), default="refuse",
                 show_default=True, help="Runs of one arm with the same pair."),
    click.option("--json", "as_json", is_flag=True, help="Print everything as JSON."),
    click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page."),
]  # fmt: skip


@click.command("judge")
def judge_command(
    table: str, lower: bool, as_json: bool, html: Path | None, **options: Any
) -> None:
    """A verdict on every arm of TABLE: a CSV, TSV, JSON lines or parquet file, or mlflow:EXPERIMENT."""
    from paribus.judge import judge
    from paribus.judge.terminal import page
    from paribus.judge.words import as_json as to_json

    judgement = judge(table, higher_is_better=not lower, **options)
    if html is not None:
        from paribus.pages.judgement import write_page

        write_page(judgement, html)
    if as_json:
        click.echo(json.dumps(to_json(judgement), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        click.echo(page(judgement))


for (
    _decorate
) in DECORATORS:  # of a command that exists, so that the first one comes first in --help
    judge_command = _decorate(judge_command)
