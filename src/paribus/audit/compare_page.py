"""The page of `paribus compare`: tables of what differs, the metrics, and a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from paribus.audit.measured import Measured

if TYPE_CHECKING:
    from rich.console import RenderableType

    from paribus.audit.compare import Comparison, Pair

HASH = re.compile(r"[0-9a-f]{32,}(\.dir)?")


def page(found: Comparison) -> list[RenderableType]:
    """Tables of what differs, the metrics, and in a sentence what else differs."""
    sections = {
        "params": found.params,
        "code that decides results": found.code,
        "commits": found.trees,
        "data": found.data,
        "environment": found.environment,
    }
    parts: list[RenderableType] = [f"A: {', '.join(found.a)}", f"B: {', '.join(found.b)}"]
    parts += [_table(title, values) for title, values in sections.items() if values]
    if found.outputs:
        parts.append(
            f"{len(found.outputs)} outputs differ as what they are made from does: {_few(found.outputs)}\n"
        )
    if found.other_code:
        parts.append(
            f"{len(found.other_code)} source files differ between the commits, and not in what decided the results: "
            f"{_few(found.other_code)}\n"
        )
    for name, paths in found.edited.items():
        parts.append(
            f"Changed after the run ended: {', '.join(paths)} of {name}, by what dvc.lock or DVC's run-cache noted then; "
            "its figures are not the run's\n"
        )
    different = {name: metric for name, metric in found.metrics.items() if not metric.equal}
    equal = found.metrics.keys() - different.keys()
    if different:
        tested = sum(metric.p is not None for metric in found.metrics.values())
        parts += _metrics_tables(different, tested)
    if equal:
        parts.append(f"{len(equal)} metrics are equal to the last digit: {_few(equal)}\n")
    return [*parts, summary(found)]


def summary(found: Comparison) -> str:
    """What differs, in one sentence."""
    parts = [f"{len(found.params)} params ({_few(found.params)})"] if found.params else []
    for kind, differences in (
        ("code", found.code),
        ("data", found.data),
        ("environment", found.environment),
    ):
        if differences:
            parts.append(f"{kind} ({_few(differences)})")
    changes = found.trees.get("uncommitted changes", (None, None))
    sides = [side for side, value in zip("AB", changes, strict=True) if value]
    if sides:
        parts.append(f"uncommitted changes in {' and '.join(sides)}")
    if not parts:
        return "Nothing differs that decides a result."
    one_cause = len(parts) + len(found.params) <= 2
    warning = "A difference of metrics cannot be put down to one of these alone."
    return f"Differs: {'; '.join(parts)}." + ("" if one_cause else f" {warning}")


def _few(names: Collection[str]) -> str:
    shown = sorted(names)[:4]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _table(title: str, values: Mapping[str, Pair]) -> RenderableType:
    from rich import box
    from rich.table import Column, Table

    table = Table(Column(no_wrap=True), "A", "B", title=title, title_justify="left", box=box.SIMPLE)
    for key, (a, b) in values.items():
        table.add_row(key, _text(a), _text(b))
    return table


def _text(value: object) -> str:
    """Shortened hashes; several become their number."""
    if value is None:
        return "–"
    if isinstance(value, list) and all(_is_hash(part) for part in value):
        return f"{len(value)} different"
    if _is_hash(value):
        return str(value)[:10]
    return value if isinstance(value, str) else json.dumps(value)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and HASH.fullmatch(value) is not None


def _metrics_tables(metrics: Mapping[str, Measured], tested: int) -> list[RenderableType]:
    """A table of the metrics of each way to compare. tested: metrics of the comparison that have a p."""
    by_way: dict[str, dict[str, Measured]] = {}
    for name, metric in metrics.items():
        by_way.setdefault(metric.how, {})[name] = metric
    holm = f"p is after Holm over {tested} metrics" if tested > 1 else ""
    return [_metrics_table(way, alike, holm) for way, alike in by_way.items()]


def _metrics_table(way: str, metrics: Mapping[str, Measured], holm: str) -> RenderableType:
    """The table of metrics that were compared in one way. Names fold in a narrow terminal; numbers stay whole."""
    from rich import box
    from rich.table import Column, Table

    names = ["A", "B", "B - A"]
    has_intervals = any(metric.low is not None for metric in metrics.values())
    caption = way
    if has_intervals:
        names += ["95 % interval", "p"]
        words = [f"by {way}", holm, "each interval is of its metric alone"]
        caption = "; ".join(filter(None, words))
    table = Table(
        Column("", overflow="fold"),
        *(Column(name, no_wrap=True) for name in names),
        title="metrics",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE,
    )
    for name, metric in metrics.items():
        cells = [f"{metric.a:.6g}", f"{metric.b:.6g}", f"{metric.difference:+.4g}"]
        if has_intervals:
            known = metric.low is not None and metric.high is not None
            cells.append(f"{metric.low:+.4g} to {metric.high:+.4g}" if known else "")
            cells.append("" if metric.p_adjusted is None else f"{metric.p_adjusted:.3g}")
        table.add_row(name, *cells)
    return table
