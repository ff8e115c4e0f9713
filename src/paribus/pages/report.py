"""The report: what the curriculum did, as one HTML file that opens offline, and the same figures as PNG.

It reads only what the other stages wrote (metrics, curves, evaluations, provenance) and computes no result of its
own beyond sums and means. No script, no link: figures are SVG in the page, in the reader's light or dark colours.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import config
from paribus.errors import UserError
from paribus.files import parse, write_atomic
from paribus.pages.report_inputs import INPUTS, columns_of, shape_of

if TYPE_CHECKING:
    import jinja2
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGES = {
    "base": "base",
    "mid": "mid",
    "sft": "SFT",
    "rl": "RL",
}  # checkpoints and their names in print
TRAINED_BY = {"base": "pretrain", "mid": "midtrain", "sft": "sft", "rl": "rl"}
INK, FAINT = "#22303c", "#8a97a3"  # INK becomes the page's text colour in SVG
BLUE, RED, GOLD, GREEN = "#3a80ba", "#c95d4b", "#d9a441", "#4f9d69"
MOST_POINTS = 400  # of a curve in the page: a longer one is drawn by the means of so many bins

Row = dict[str, float]

# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Results:
    """Everything the report is made from."""

    settings: config.Config
    files: dict[str, Any]  # by the names of INPUTS: JSON values, or the rows of a curve

    def metrics(self, stage: str) -> dict[str, Any]:
        """metrics/<stage>.json."""
        return self.files[f"metrics/{stage}.json"]

    def curve(self, stage: str) -> list[Any]:
        """The rows of plots/<stage>.csv; a number that was not measured is nan."""
        return self.files[f"plots/{stage}.csv"]

    def answers(self, stage: str) -> dict[str, Any]:
        """evals/gsm8k/<stage>/summary.json."""
        return self.files[f"evals/gsm8k/{stage}/summary.json"]


def read_results(root: Path) -> Results:
    """Read every input below a project folder. Raises UserError naming each missing or damaged one and its stage."""
    files: dict[str, Any] = {}
    problems = []
    for name, stage in INPUTS.items():
        try:
            files[name] = _read(root / name, name)
        except FileNotFoundError:
            problems.append(f"{name}: missing; run `dvc repro {stage}`")
        except ValueError as error:
            problems.append(f"{name}: damaged ({error}); run `dvc repro --force {stage}`")
    if not problems:
        problems = _unequal_prompts(files)
    if problems:
        raise UserError(problems)
    return Results(config.load_config(root / "params.yaml"), files)


def _unequal_prompts(files: dict[str, Any]) -> list[str]:
    """Every stage answers the same prompts: a file of another length was written from others."""
    counts = {stage: len(files[f"evals/gsm8k/{stage}/prompts.json"]) for stage in STAGES}
    return [
        f"evals/gsm8k/{stage}/prompts.json: {count} prompts, where rl's has {counts['rl']}; run "
        f"`dvc repro --force gsm8k_stage@{stage}`"
        for stage, count in counts.items()
        if count != counts["rl"]
    ]


def _read(path: Path, name: str) -> Any:
    """The value of a JSON file, or the rows of a curve. Raises ValueError where it is not as its stage writes it."""
    content = path.read_bytes()
    if path.suffix == ".csv":
        return _rows(content.decode("utf-8"), columns_of(name))
    value, problem = parse(content, shape_of(name))
    if problem is not None:
        raise ValueError(problem)
    return value


def _rows(text: str, columns: set[str]) -> list[Any]:
    """The rows of a curve; an empty cell is nan, the column `stage` is text."""
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        missing = columns - set(reader.fieldnames or [])
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        rows = [_cells(row) for row in reader]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if not rows:
        raise ValueError("no rows")
    return rows


def _cells(row: dict[str | Any, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError("a row of more or fewer cells than there are columns")
    return {key: value if key == "stage" else float(value or "nan") for key, value in row.items()}


# ---------------------------------------------------------------- the page


def build_report(root: Path, out: Path) -> Path:
    """Write the report of the project folder `root` to `out`, one self-contained HTML file; returns `out`.

    The same inputs give the same bytes. Raises UserError where an input is missing or damaged.
    """
    results = read_results(root)
    page = render(
        results, {name: svg(draw(results), name, ALT[name]) for name, draw in FIGURES.items()}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page)
    return out


def render(results: Results, drawn: Mapping[str, str]) -> str:
    """The page as HTML with its figures, SVG by the names of FIGURES."""
    from markupsafe import Markup

    figures = {name: Markup(text) for name, text in drawn.items()}
    return (
        templates().get_template("report.html.j2").render(figures=figures, **page_values(results))
    )


def templates(escape: bool = True) -> jinja2.Environment:
    """The templates of pages, with FILTERS; without `escape` for Markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def page_values(results: Results) -> dict[str, Any]:
    """What the template shows, by name."""
    provenance = results.files["checkpoints/rl/provenance.json"]
    return {
        "stages": STAGES,
        "settings": results.settings,
        "tokenizer": results.metrics("tokenizer"),
        "pretrain": results.metrics("pretrain"),
        "timeline": timeline(results),
        "core": core_table(results),
        "gsm8k": gsm8k_table(results),
        "rl": results.metrics("rl"),
        "sparsity": sparsity(results),
        "prompts": prompts(results),
        "samples": [_sample(sample) for sample in results.files["evals/gsm8k/rl/samples.json"]],
        "provenance": provenance,
        "versions": _flat({name: value for name, value in provenance.items() if name != "params"}),
        "params": [(key, value, meta["doc"]) for key, value, meta in _params(results.settings)],
    }


def timeline(results: Results) -> dict[str, Any]:
    """Time, steps and tokens (RL: sampled answers) of each training stage."""
    rows = []
    for stage in TRAINED_BY.values():
        metrics = results.metrics(stage)
        work = (
            (metrics["samples"], "answers")
            if stage == "rl"
            else (metrics["train_tokens"], "tokens")
        )
        rows.append(
            {
                "stage": stage,
                "steps": metrics["steps"],
                "seconds": metrics["seconds"],
                "amount": work[0],
                "unit": work[1],
                "rate": work[0] / max(metrics["seconds"], 1e-9),
            }
        )
    total = sum(row["seconds"] for row in rows)
    return {
        "rows": rows,
        "seconds": total,
        "shares": [row["seconds"] / max(total, 1e-9) for row in rows],
    }


def core_table(results: Results) -> dict[str, Any]:
    """metrics/core.json with its kind (`synthetic`, `partial` or `full`), its mean and the tasks that had no data."""
    metrics = results.metrics("core")
    partial = metrics["core"] is None
    kind = "synthetic" if metrics["bundle"] == "synthetic" else "partial" if partial else "full"
    return metrics | {
        "kind": kind,
        "mean": metrics["core_partial"] if partial else metrics["core"],
        "missing": results.files["evals/core/summary.json"]["missing"],
    }


def gsm8k_table(results: Results) -> dict[str, Any]:
    """The stages' summaries in order, and each one's paired comparison with the stage before."""
    metrics = results.metrics("gsm8k")
    names = list(STAGES)
    pairs = [
        {"before": a, "after": b, **metrics["paired"][f"{a}_{b}"]}
        for a, b in zip(names, names[1:], strict=False)
    ]
    stages = {name: results.answers(name) for name in names}
    difficulties = sorted(
        {steps for summary in stages.values() for steps in summary["by_steps"]}, key=int
    )
    return {
        "stages": stages,
        "pairs": pairs,
        "dataset": metrics["dataset"],
        "k": pass_at(results),
        "difficulties": difficulties,
    }


def pass_at(results: Results) -> int | None:
    """The largest k of the pass@k that every stage was measured at; None where no answers were sampled."""
    measured = [
        set(re.findall(r"\bpass_at_(\d+)\b", " ".join(results.answers(stage)))) for stage in STAGES
    ]
    return max(map(int, set.intersection(*measured)), default=None)


def sparsity(results: Results) -> dict[str, Any]:
    """How the shares of groups moved: means over the first and the last quarter of the steps."""
    rows = results.curve("rl")
    quarter = max(len(rows) // 4, 1)
    ends = {"first": rows[:quarter], "last": rows[-quarter:]}
    keys = ("zero_reward_groups", "all_reward_groups", "reward")
    means = {
        end: {key: _mean([row[key] for row in part]) for key in keys} for end, part in ends.items()
    }
    return means | {
        "silent_steps": sum(row["zero_gradient_groups"] >= 1 for row in rows),
        "steps": len(rows),
    }


def prompts(results: Results) -> list[dict[str, Any]]:
    """Each fixed prompt with every stage's answer, as `_sample` has it."""
    answers = {stage: results.files[f"evals/gsm8k/{stage}/prompts.json"] for stage in STAGES}
    return [
        {
            "prompt": row["prompt"],
            "answers": {stage: _sample(rows[place]) for stage, rows in answers.items()},
        }
        for place, row in enumerate(answers["rl"])
    ]


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with its answer in parts: text, tool_call, tool_result."""
    parts = re.split(
        r"<\|tool\|>(.*?)<\|tool_end\|>|<\|result\|>(.*?)<\|result_end\|>",
        sample["answer"],
        flags=re.S,
    )
    kinds = ("text", "tool_call", "tool_result")
    found = [{"type": kinds[place % 3], "text": text} for place, text in enumerate(parts) if text]
    return sample | {
        "parts": [
            part | {"text": re.sub(r"<\|(end|bos)\|>\s*$", "", part["text"])} for part in found
        ]
    }


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted keys, in order, without params, which have a table of their own."""
    if not isinstance(value, dict):
        return [(prefix.rstrip("."), value)]
    return [
        pair
        for key, item in value.items()
        if prefix + key != "params"
        for pair in _flat(item, f"{prefix}{key}.")
    ]


def _params(settings: config.Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, value, metadata) of every key that holds a value."""
    documented = {key: meta for key, _, meta in config.describe()}
    flat = config.flatten(settings)
    return [
        (key, value, documented.get(key) or documented[key.rpartition(".")[0]])
        for key, value in flat.items()
    ]


# ---------------------------------------------------------------- words for numbers


def percent(value: float | None, digits: int = 1) -> str:
    """0.1234 -> 12.3 %."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals, with a real minus sign."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def quantity(value: float) -> str:
    """1234567 -> 1.23 M; three digits, below 10,000 every whole one."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 9_999.5):
            return f"{value / size:.3g}\u202f{unit}"
    return f"{value:,.0f}" if abs(value) >= 999.5 or value == int(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f}\u202fs"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{seconds / 60:.1f}\u202fmin"
    return f"{minutes // 60}\u202fh {minutes % 60:02}\u202fmin"


def p_value(value: float) -> str:
    """A p-value, the tiny ones as a bound."""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "number": number,
    "quantity": quantity,
    "duration": duration,
    "p_value": p_value,
}


# ---------------------------------------------------------------- figures


def figures(root: Path) -> dict[str, Figure]:
    """Every figure of the report by name: pretrain, core, gsm8k, sparsity."""
    results = read_results(root)
    return {name: draw(results) for name, draw in FIGURES.items()}


def save_figures(root: Path, folder: Path) -> list[Path]:
    """Write every figure as <folder>/<name>.png, on white; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(root).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150, facecolor="white", metadata={"Software": None})
    return paths


def canvas(
    rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width that belongs to no window, with quiet axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(FAINT)
        each.tick_params(colors=INK, color=FAINT, labelsize=9)
        each.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.7)
        each.set_axisbelow(True)
    return figure, axes


def title(axes: Axes, text: str, x: str = "", y: str = "") -> None:
    axes.set_title(text, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=10)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)


def legend_above(axes: Axes) -> None:
    """The legend in a row between title and axes."""
    axes.set_title(
        axes.get_title(loc="left"), loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=27
    )
    axes.legend(
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        ncols=3,
        borderaxespad=0,
        handlelength=1.4,
    )


def svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as SVG for a page: text stays text, ids are its own, INK is the page's text colour; alt: what it shows."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"paribus {name}", "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text).replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg class="figure" role="img" aria-label="{alt}" ', 1)


def _mean(values: Sequence[float]) -> float:
    """The mean of what was measured; nan if nothing was."""
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else math.nan


def _binned(rows: list[Row], *keys: str) -> list[list[float]]:
    """The columns, by the means of at most MOST_POINTS bins of rows."""
    size = math.ceil(len(rows) / MOST_POINTS)
    bins = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [[_mean([row[key] for row in part]) for part in bins] for key in keys]


def _smooth(values: Sequence[float], reach: int) -> list[float]:
    """Centred moving mean over `2 reach + 1` values, fewer at the ends."""
    return [
        _mean(values[max(place - reach, 0) : place + reach + 1]) for place in range(len(values))
    ]


def _draw_pretrain(results: Results) -> Figure:
    """Training loss and validation bits per byte over tokens."""
    figure, (loss_axes, bpb_axes) = canvas(columns=2)
    rows = results.curve("pretrain")
    tokens, losses = _binned(rows, "tokens", "train_loss")
    loss_axes.plot(tokens, losses, color=BLUE, alpha=0.3, linewidth=1)
    loss_axes.plot(tokens, _smooth(losses, max(len(losses) // 40, 1)), color=BLUE, linewidth=1.8)
    title(loss_axes, "Training loss", "tokens", "nats per token")
    measured = [(row["tokens"], row["val_bpb"]) for row in rows if not math.isnan(row["val_bpb"])]
    final = (rows[-1]["tokens"], results.metrics("pretrain")["val_bpb"])
    x, y = zip(*measured, final, strict=True)
    bpb_axes.plot(x, y, color=GREEN, marker="o", markersize=4.5, linewidth=1.8)
    label: dict[str, Any] = {
        "textcoords": "offset points",
        "ha": "center",
        "color": INK,
        "fontsize": 9,
    }
    bpb_axes.annotate(f"{final[1]:.3f}", final, (0, -15), **label)
    bpb_axes.margins(y=0.15)
    title(bpb_axes, "Validation", "tokens", "bits per byte")
    for axes in (loss_axes, bpb_axes):
        axes.xaxis.set_major_formatter(lambda value, _: quantity(value))
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=5)
    return figure


def _draw_core(results: Results) -> Figure:
    """Centred accuracy of every task, best at the top, with standard errors."""
    tasks = sorted(results.metrics("core")["tasks"].items(), key=lambda item: item[1]["centered"])
    figure, (axes,) = canvas(height=1.0 + 0.27 * len(tasks))
    values = [task["centered"] for _, task in tasks]
    scale = [
        (task["accuracy"] - 1) / (task["centered"] - 1) if task["centered"] != 1 else 1.0
        for _, task in tasks
    ]
    errors = [task["stderr"] / factor for (_, task), factor in zip(tasks, scale, strict=True)]
    axes.barh(
        [name for name, _ in tasks],
        values,
        height=0.62,
        color=[BLUE if value >= 0 else RED for value in values],
        xerr=errors,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2.5},
    )
    axes.axvline(0, color=INK, linewidth=1)
    axes.grid(axis="x", color=FAINT, alpha=0.25, linewidth=0.7)
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.02)
    title(
        axes,
        "Centred accuracy of the base model",
        "0: guessing, 1: all right; whiskers: one standard error",
    )
    return figure


def _draw_gsm8k(results: Results) -> Figure:
    """Greedy accuracy of every stage with its 95 % interval, and pass@k beside it."""
    figure, (axes,) = canvas(height=3.3)
    rows = results.curve("gsm8k")
    for place, row in enumerate(rows):
        accuracy = row["accuracy"]
        reach = [[accuracy - row["ci_low"]], [row["ci_high"] - accuracy]]
        axes.bar(
            place,
            accuracy,
            width=0.5,
            color=BLUE,
            alpha=0.85,
            label=None if place else "greedy, 95 % interval",
        )
        axes.errorbar(place, accuracy, yerr=reach, color=INK, capsize=6, elinewidth=1.4)
        axes.annotate(
            percent(accuracy),
            (place, row["ci_high"]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9.5,
        )
    if k := pass_at(results):
        sampled = [results.answers(row["stage"])[f"pass_at_{k}"] for row in rows]
        axes.plot(
            [place + 0.34 for place in range(len(rows))],
            sampled,
            linestyle="none",
            marker="D",
            markersize=6.5,
            color=GOLD,
            label=f"pass@{k}, sampled",
        )
    axes.set_xticks(range(len(rows)), [STAGES[row["stage"]] for row in rows])
    axes.set_ylim(0, 1.09)
    axes.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    title(axes, "Word problems solved after each stage")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    return figure


def _draw_sparsity(results: Results) -> Figure:
    """Above, what became of each step's groups; below, the reward."""
    figure, (groups, reward) = canvas(rows=2, height=5.4, sharex=True, height_ratios=[1.5, 1])
    names = ("step", "zero_reward_groups", "all_reward_groups", "reward", "watch_accuracy")
    steps, wrong, right, rewards, watched = _binned(results.curve("rl"), *names)
    reach = len(steps) // 30
    wrong, right = _smooth(wrong, reach), _smooth(right, reach)
    mixed = [1 - a - b for a, b in zip(wrong, right, strict=True)]
    bands = {
        "all wrong: nothing learned": (wrong, RED),
        "mixed: the groups that teach": (mixed, BLUE),
        "all right: nothing learned": (right, GOLD),
    }
    groups.stackplot(
        steps,
        *(shares for shares, _ in bands.values()),
        colors=[color for _, color in bands.values()],
        alpha=0.85,
        linewidth=0,
        labels=list(bands),
    )
    groups.set_ylim(0, 1)
    groups.margins(x=0)
    groups.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    title(
        groups,
        f"Groups of answers (moving mean of {2 * reach + 1} steps)"
        if reach
        else "Groups of answers",
    )
    legend_above(groups)
    groups.tick_params(labelbottom=True)
    reward.plot(steps, rewards, color=GREEN, alpha=0.3, linewidth=1)
    trend = _smooth(rewards, max(len(steps) // 20, 1))
    reward.plot(steps, trend, color=GREEN, linewidth=1.8, label="mean reward, training")
    looks = [
        (step, value) for step, value in zip(steps, watched, strict=True) if not math.isnan(value)
    ]
    if looks:
        reward.plot(
            *zip(*looks, strict=True),
            color=INK,
            marker="o",
            markersize=5,
            linestyle="none",
            clip_on=False,
            zorder=3,
            label="greedy accuracy, held out",
        )
    reward.yaxis.set_major_formatter(lambda value, _: percent(value, 0))
    title(reward, "Reward", "RL step")
    legend_above(reward)
    return figure


ALT = {  # for who cannot see them; the numbers are in the tables
    "pretrain": "training loss and validation bits per byte over tokens",
    "core": "centred accuracy of each task with standard errors",
    "gsm8k": "accuracy after each stage with 95 % intervals",
    "sparsity": "shares of all-wrong, mixed and all-right groups over the RL steps, and the reward",
}
FIGURES: dict[str, Callable[[Results], Figure]] = {
    "pretrain": _draw_pretrain,
    "core": _draw_core,
    "gsm8k": _draw_gsm8k,
    "sparsity": _draw_sparsity,
}
