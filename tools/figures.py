"""Write every marked figure in README.md and docs from the file that holds it: `make figures`.

A figure stands between two comments, which no reader sees:

    <!-- figure: study muon-vs-adamw adamw-twice difference -->+0.1621<!-- /figure -->

The words after `figure:` are one of FIGURES and its arguments. `--check` writes nothing and exits with status 1 if a text
differs from its files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import card_figures
import graph_figure
import growth_figures
import promise_figures
import public_figures

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments/results"
MARK = re.compile(r"(<!-- figure: ([^>]+?) -->)(.*?)(<!-- /figure -->)", re.DOTALL)
TRAINING = ("pretrain", "midtrain", "sft", "rl")
STAGE_NAMES = {"base": "pretrain", "mid": "midtrain", "sft": "SFT", "rl": "RL"}


def main() -> int:
    """Bring every text up to date, or with --check report those that are not."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path in texts():
        old = path.read_text(encoding="utf-8")
        new = MARK.sub(_replaced, old)
        if new != old:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: " + ("differs from its files; run `make figures`" if check else "written"))
    return 1 if check and stale else 0


def texts() -> list[Path]:
    """The Markdown that may hold figures."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), RESULTS / "README.md"]
    pages += ROOT.glob("benchmarks/*.md")
    return sorted(pages)


def _replaced(match: re.Match[str]) -> str:
    name, *arguments = match[2].split()
    if name not in FIGURES:
        raise SystemExit(f"no figure {name!r}; there are: {', '.join(FIGURES)}")
    return match[1] + FIGURES[name](*arguments) + match[4]


# ---------------------------------------------------------------- metrics of the default


def metrics(name: str) -> dict[str, Any]:
    """metrics/NAME.json."""
    return dict(json.loads((ROOT / f"metrics/{name}.json").read_text(encoding="utf-8")))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def curriculum() -> str:
    """The table of word problems solved after each stage."""
    gsm8k, rl, pretrain = metrics("gsm8k"), metrics("rl"), metrics("pretrain")
    tool = {
        stage: f"uses the calculator in {gsm8k[stage]['tool_calls']:.0%} of answers"
        for stage in gsm8k
        if stage in STAGE_NAMES
    }
    notes = {
        "base": f"{pretrain['train_tokens'] / 1e3:.0f} k tokens, {pretrain['val_bpb']:.3f} bits per byte",
        "mid": tool["mid"],
        "sft": tool["sft"],
        "rl": f"{tool['rl']}; of RL's groups {rl['zero_reward_groups']:.0%} were all wrong and "
        f"{rl['all_reward_groups']:.0%} all right: {rl['zero_gradient_groups']:.0%} taught nothing",
    }
    questions = gsm8k["base"]["n"]
    lines = [
        "",
        "",
        f"| after | word problems solved ({questions} held out, 95 % interval) | what changed |",
        "| --- | --- | --- |",
    ]
    for stage, name in STAGE_NAMES.items():
        row = gsm8k[stage]
        interval = f"{100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f}"
        lines.append(f"| {name} | {percent(row['accuracy'])} ({interval}) | {notes[stage]} |")
    return "\n".join([*lines, "", ""])


# ---------------------------------------------------------------- verdicts of the studies


@dataclass(frozen=True)
class Verdict:
    """One arm of a study, as its page says it."""

    arm: str
    seeds: int
    difference: str
    interval: str
    verdict: str
    sentence: str


def verdicts(study: str) -> dict[str, Verdict]:
    """Arm -> its verdict, from the tables of experiments/results/STUDY.md."""
    text = (RESULTS / f"{study}.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^- (.+)$", text, re.MULTILINE)
    head = re.search(r"\| (?:arm|effect) \| changed \|", text)
    table = text[head.end() :].partition("\n\n")[0] if head else ""
    found = {}
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        arm, (seeds, difference, interval, _, verdict) = cells[0], cells[-5:]
        sentence = next(
            text for text in sentences if re.match(rf"{re.escape(arm)}(:| is | changed )", text)
        )
        found[arm] = Verdict(arm, int(seeds), difference, interval, verdict, sentence)
    if not found:
        raise SystemExit(f"{study}.md: no table of effects")
    return found


def study(name: str, arm: str, what: str) -> str:
    """One word of a verdict: difference, interval, seeds, verdict, or the whole sentence as a code block or a quote."""
    found = verdicts(name)[arm]
    if what == "sentence":
        return f"\n\n    {found.sentence}\n\n"
    if what == "quote":
        return f"\n\n> {found.sentence}\n\n"
    return str(getattr(found, what))


def studies(*names: str) -> str:
    """A table of studies: what was asked, and each arm's verdict."""
    lines = [
        "",
        "",
        "| study | question | verdict of each arm against the baseline |",
        "| --- | --- | --- |",
    ]
    for name in names:
        text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
        question = text.splitlines()[0].removeprefix("# ")
        arms = over_sizes(text)
        for one in [] if arms else verdicts(name).values():
            of_two_factors = " x " in one.arm
            if of_two_factors and one.verdict not in ("better", "worse"):
                continue
            words = f"{one.arm} **{one.verdict}**"
            if one.verdict != "changed nothing":
                words += f": {one.difference} ({one.interval}; {one.seeds} seeds)"
            arms.append(words)
        lines.append(f"| [{name}]({name}.md) | {question} | {'; '.join(arms)} |")
    return "\n".join([*lines, "", ""])


def over_sizes(text: str) -> list[str]:
    """Each arm of a ladder with its verdict and its effect on every rung that was trained; [] for another design.

    Args:
        text: of the study's page.
    """
    head = re.search(r"## Over sizes\n", text)
    if head is None:
        return []
    effects: dict[str, list[str]] = {}
    for line in text[head.end() :].partition("| ---")[2].partition("\n\n")[0].splitlines()[1:]:
        arm, rung, _, _, _, seeds, difference, interval, _ = line.strip("| ").split(" | ")
        if seeds.isdigit():
            effects.setdefault(arm, []).append(f"{difference} ({interval}) at {rung}")
    found = []
    for arm, rungs in effects.items():
        sentence = re.search(rf"^- {re.escape(arm)}: (\w+): ", text, re.MULTILINE)
        if sentence is None:
            raise SystemExit(f"no verdict of {arm} over sizes")
        found.append(f"{arm} **{sentence[1]}** over sizes: {', '.join(rungs)}")
    return found


def noise(profile: str, what: str) -> str:
    """A figure of experiments/results/noise-PROFILE.md: mean, spread or seeds of val_bpb."""
    text = (RESULTS / f"noise-{profile}.md").read_text(encoding="utf-8")
    row = re.search(r"^\| val_bpb \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    if row is None:
        raise SystemExit(f"noise-{profile}.md: no row of val_bpb")
    return {"seeds": row[1], "mean": f"{float(row[2]):.4f}", "spread": f"{float(row[3]):.4f}"}[what]


def tries() -> str:
    """The table of streams of 200 tries, by the rule that keeps changes."""
    rows = json.loads((ROOT / "benchmarks/tries.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "",
        "",
        "| good changes | rule | kept | noise among the kept | good ones missed | runs |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["harmful"]:
            continue
        noise = f"{percent(row['false_keeps'])} ± {100 * 1.96 * row['false_keeps_error']:.1f}"
        lines.append(
            f"| {row['better']:.0%} | {row['rule']} | {row['kept']:.1f} | {noise} | {row['missed']:.0%} | {row['runs']:,} |"
        )
    return "\n".join(lines) + "\n\n"


def store() -> str:
    """The table of what the commands that read many runs take, by the number of runs."""
    found = json.loads((ROOT / "benchmarks/store.json").read_text(encoding="utf-8"))
    commands = {"grade": "plan --grade", "compare": "compare A B", "ledger": "ledger"}
    heading = " | ".join(f"`paribus {words}`" for words in commands.values())
    lines = ["", "", f"| runs in the store | {heading} |", "| ---: | ---: | ---: | ---: |"]
    for runs, seconds in found["processor_seconds"].items():
        cells = " | ".join(f"{seconds[name]:.1f} s" for name in commands)
        lines.append(f"| {int(runs):,} | {cells} |")
    return "\n".join(lines) + "\n\n"


def plan(study: str) -> str:
    """What a public study takes: runs, hours and money, of experiments/results/public/STUDY-plan.json."""
    path = RESULTS / f"public/{study}-plan.json"
    last = json.loads(path.read_text(encoding="utf-8"))["looks"][-1]
    return f"{last['runs']} runs, {last['hours']:.0f} hours, {last['usd']:.0f} USD"


def loop() -> str:
    """How many tries of the loop were kept, discarded and undecided."""
    totals = json.loads((RESULTS / "ledger.json").read_text(encoding="utf-8"))["totals"]
    return (
        f"{totals['tries']} tries, {totals['keep']} kept, {totals['discard']} discarded, {totals['undecided']} undecided, "
        f"{totals['runs']} runs"
    )


def _bf16(kind: str) -> list[dict[str, Any]]:
    text = (ROOT / "benchmarks/bf16.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)[kind]
    return rows


def banded_attention() -> str:
    """How much sooner attention by bands is through than torch's: the default's shapes, then the long ones."""
    taken = [row["milliseconds"] for row in _bf16("attention")]
    near, wide, long_near, long_wide = (f"{ms['torch'] / ms['band']:.1f}" for ms in taken)
    own = " and ".join(f"{ms['band']:.0f}" for ms in taken[:2])
    torchs = " and ".join(f"{ms['torch']:.0f}" for ms in taken[:2])
    return (
        f"{near} times torch's with a window of 64 and {wide} without ({own} ms against {torchs}); "
        f"at 1,024 tokens {long_near} times with a window of 256 and {long_wide} without"
    )


def muon_in_bf16() -> str:
    """How much sooner Muon's iterations in bf16 are through, and how near their steps are."""
    rows = _bf16("muon")
    gains = [row["milliseconds"]["float32"] / row["milliseconds"]["bfloat16"] for row in rows]
    cosine = min(row["cosine"] for row in rows)
    return f"{min(gains):.1f} to {max(gains):.1f} times fp32's; cosine between the steps {cosine:.4f} at least"


def planned_memory() -> str:
    """How near the plan's memory is to that of all tensors that torch makes."""
    text = (ROOT / "benchmarks/plan_memory.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return (
        f"{found['within_1_percent']} of {found['points']} within 1 %, median {100 * found['median_error']:.2g} %, "
        f"the worst {100 * found['largest_error']:.2g} %"
    )


def planned_stages() -> str:
    """How far the plan's memory of stages on a CPU is from what they took."""
    text = (ROOT / "benchmarks/plan_memory_cpu.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    errors = [100 * row["error"] for row in found["rows"]]
    middle = 100 * found["median_error"]
    low, high = (public_figures.signed(end(errors), 1) for end in (min, max))
    return f"{low} to {high} %, {middle:.1f} % in the median"


def planned_depth_16() -> str:
    """Memory of depth 16 as tracked and as planned, without and with activation checkpointing."""
    text = (ROOT / "benchmarks/plan_memory_d16.json").read_text(encoding="utf-8")
    pairs = []
    for row in json.loads(text)["rows"]:
        tracked, planned = row["tracked_bytes"] / 1e9, row["predicted_bytes"] / 1e9
        pairs.append(f"{tracked:.2f} GB tracked, {planned:.2f} planned")
    return f"{pairs[0]}; with activation checkpointing {pairs[1]}"


def overheads(*path: str) -> str:
    """A figure of benchmarks/overheads.json: seconds, milliseconds below a tenth, a share in per cent."""
    found: Any = json.loads((ROOT / "benchmarks/overheads.json").read_text(encoding="utf-8"))
    for name in path:
        found = found[name]
    if path[-1] == "share":
        return f"{100 * found:.1f} %"
    if path[-1].endswith("steps"):
        return f"{found:.2f}"
    return f"{found:.1f} s" if found >= 0.1 else f"{1000 * found:.2g} ms"


def neighbours(shares: str, waiting: str) -> str:
    """The speed of training beside one busy process at nice 19, in per cent; keys of the record."""
    text = (ROOT / "benchmarks/neighbours.json").read_text(encoding="utf-8")
    return f"{100 * json.loads(text)[shares]['sides'][waiting]['share']['1']:.0f}"


def training_minutes() -> str:
    """How long the training stages of the default took together."""
    seconds = sum(metrics(stage)["seconds"] for stage in TRAINING)
    return f"{seconds / 60:.1f}"


FIGURES: dict[str, Callable[..., str]] = {
    "loop": loop,
    "neighbours": neighbours,
    "overheads": overheads,
    "banded-attention": banded_attention,
    "muon-in-bf16": muon_in_bf16,
    "planned-depth-16": planned_depth_16,
    "planned-memory": planned_memory,
    "planned-stages": planned_stages,
    "tries": tries,
    "curriculum": curriculum,
    "training-minutes": training_minutes,
    "dag": graph_figure.dag,
    "borrowing": promise_figures.borrowing,
    "card-shares": card_figures.shares,
    "growth": growth_figures.growth,
    "claims": promise_figures.claims,
    "ladders": promise_figures.ladders,
    "factors": promise_figures.factors,
    "factor-power": promise_figures.factor_power,
    "noise": noise,
    "plan": plan,
    "promises": promise_figures.promises,
    "store": store,
    "studies": studies,
    "study": study,
    "judge": public_figures.judge,
    "judge-null": public_figures.judge_null,
}

if __name__ == "__main__":
    sys.exit(main())
