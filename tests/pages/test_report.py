"""The report: complete, offline, honest about what is partial; opened in a real browser where there is one."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle
from support.browser import chromium, faults, new_tab

from paribus import graph
from paribus.config import load_config
from paribus.curriculum import CURVES, PRINTED
from paribus.data.prompts import PROMPTS
from paribus.data.sealed import seal
from paribus.errors import UserError
from paribus.evaluate import core, gsm8k, intervals
from paribus.machine.hardware import detect_hardware
from paribus.machine.provenance import collect_provenance
from paribus.pages.report import build_report, render
from paribus.pages.report_figures import FIGURES, MOST_POINTS, figures, save_figures
from paribus.pages.report_inputs import INPUTS, read_results
from paribus.summary import write_csv, write_json

ACCURACY = {"base": 0.004, "mid": 0.31, "sft": 0.61, "rl": 0.84}
RL_STEPS = 60


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A project folder after `dvc repro`, its files written by the stages' own writers."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("metrics", "plots", "checkpoints/rl"):
        (root / folder).mkdir(parents=True)
    shutil.copy(project_root / "params.yaml", root)
    rng = random.Random(0)
    write_training(root, rng)
    write_core(root, rng, synthetic=True)
    write_gsm8k(root, rng)
    write_rl(root, rng)
    settings = load_config(root / "params.yaml")
    write_json(
        root / "checkpoints/rl/provenance.json",
        collect_provenance(detect_hardware(settings.train))
        | {
            "stage": "rl",
            "fingerprint": "0123456789abcdef0123",
            "params": {"rl.steps": 60},
            "deps": {"checkpoints/sft": "ab" * 32},
        },
    )
    return root


def write_training(root: Path, rng: random.Random) -> None:
    write_json(root / "metrics/tokenizer.json", {"vocab_size": 1024, "bytes_per_token": 3.12})
    for stage, steps, seconds in (
        ("pretrain", 250, 205.0),
        ("midtrain", 100, 83.0),
        ("sft", 70, 57.5),
    ):
        tokens = steps * 8192
        write_json(
            root / f"metrics/{stage}.json",
            {
                "train_loss": 1.1,
                "train_tokens": tokens,
                "tokens_per_second": tokens / seconds,
                "seconds": seconds,
                "steps": steps,
                "val_bpb": 0.4321,
                "parameters": 3_670_016,
                "flops_per_token": 2.1e7,
                "peak_memory_bytes": 1.4e9,
            },
        )
    rows = [
        (
            step,
            step * 8192,
            step * 0.8,
            1.2 + 5.7 * math.exp(-step / 40) + rng.gauss(0, 0.04),
            0.43 + 1.5 * math.exp(-step / 60) if step % 50 == 0 and step < 250 else "",
        )
        for step in range(1, 251)
    ]
    write_csv(root / "plots/pretrain.csv", tuple(CURVES["pretrain"]), rows)


def write_core(root: Path, rng: random.Random, *, synthetic: bool) -> None:
    chances = {
        "world_facts": (0.71, 25),
        "world_places": (0.55, 25),
        "world_pronouns": (0.62, 50),
        "world_stories": (0.21, 0),
        "world_counting": (0.22, 25),
    }
    scores = {
        label: core.score_task([rng.random() < chance for _ in range(200)], baseline / 100, 200)
        for label, (chance, baseline) in chances.items()
    }
    result = core.CoreResult(
        scores,
        (),
        () if synthetic else ("jeopardy", "coqa"),
        not synthetic,
        "synthetic" if synthetic else "5e" * 32,
    )
    core.write_items(root / "evals/core", result)
    write_json(root / "metrics/core.json", result.summary())


def write_gsm8k(root: Path, rng: random.Random) -> None:
    questions = [rng.random() for _ in range(500)]
    items = {
        stage: [gsm8k_item(rng, index, hardness, stage) for index, hardness in enumerate(questions)]
        for stage in PRINTED
    }
    for stage, answered in items.items():
        summary = gsm8k.summarise(answered) | {"few_shot": 4 if stage == "base" else 0}
        gsm8k.write_items(root / "evals/gsm8k" / stage, gsm8k.Gsm8kResult(answered, summary))
        answers = [
            {
                "prompt": prompt,
                "answer": f"{stage} on {prompt} <|tool|>1+2<|tool_end|><|result|>3<|result_end|><|end|>",
            }
            for prompt in PROMPTS
        ]
        write_json(root / f"evals/gsm8k/{stage}/prompts.json", answers)
    metrics: dict[str, Any] = {
        stage: json.loads((root / f"evals/gsm8k/{stage}/summary.json").read_text())
        for stage in PRINTED
    }
    names = list(PRINTED)
    right = {stage: [item.correct for item in answered] for stage, answered in items.items()}
    metrics["paired"] = {
        f"{a}_{b}": intervals.compare(right[a], right[b]) for a, b in itertools.pairwise(names)
    }
    write_json(root / "metrics/gsm8k.json", metrics | {"dataset": "world"})
    columns = ("accuracy", "ci_low", "ci_high")
    write_csv(
        root / "plots/gsm8k.csv",
        ("stage", *columns),
        [(s, *(metrics[s][c] for c in columns)) for s in PRINTED],
    )


def gsm8k_item(rng: random.Random, index: int, hardness: float, stage: str) -> gsm8k.Item:
    chance = ACCURACY[stage] ** (0.5 + hardness)
    correct, drawn = rng.random() < chance, 8 if index < 100 else 0
    answer = "12" if correct else "13"
    text = (
        f"Ada has 3 boxes of 4 pears.\nThat is <|tool|>3*4<|tool_end|><|result|>{answer}<|result_end|>{answer} pears."
        f"\n#### {answer}<|end|>"
    )
    return gsm8k.Item(
        index=index,
        question="Ada has 3 boxes with 4 pears in each. <b>How many</b> pears & boxes does Ada have?",
        reference="3 boxes of 4 are <<3*4=12>>12.\n#### 12",
        steps=1 + index % 3,
        text=text,
        prediction=answer,
        correct=correct,
        formatted=stage != "base",
        finished=True,
        cut_off=False,
        tokens=30,
        tool_calls=int(stage != "base"),
        well_formed_tool_calls=int(stage != "base"),
        n_samples=drawn,
        n_correct=sum(rng.random() < chance for _ in range(drawn)),
    )


def write_rl(root: Path, rng: random.Random) -> None:
    rows = []
    for step in range(1, RL_STEPS + 1):
        done = step / RL_STEPS
        wrong = round(16 * max(0.42 - 0.36 * done + rng.gauss(0, 0.06), 0)) / 16
        right = round(16 * min(max(0.08 + 0.42 * done + rng.gauss(0, 0.06), 0), 1 - wrong)) / 16
        rows.append(
            (
                step,
                min(0.45 + 0.4 * done + rng.gauss(0, 0.05), 1),
                wrong,
                right,
                wrong + right,
                wrong + right,
                0.6 + 0.25 * done if step % 20 == 0 else "",
            )
        )
    write_csv(root / "plots/rl.csv", tuple(CURVES["rl"]), rows)
    write_json(
        root / "metrics/rl.json",
        {
            "steps": RL_STEPS,
            "mean_reward_first": 0.46,
            "mean_reward_last": 0.83,
            "groups": RL_STEPS * 16,
            "zero_reward_groups": 0.24,
            "all_reward_groups": 0.29,
            "zero_gradient_groups": 0.53,
            "steps_without_gradient": 0.0,
            "effective_samples_per_second": 31.2,
            "samples": RL_STEPS * 128,
            "redrawn_samples": 1280,
            "by_steps": {
                str(steps): {
                    "groups": 320,
                    "accuracy": 0.9 - 0.2 * steps,
                    "zero_reward_groups": 0.1 * steps,
                    "all_reward_groups": 0.5 - 0.1 * steps,
                    "zero_gradient_groups": 0.5,
                }
                for steps in (1, 2, 3)
            },
            "wasted_token_fraction": 0.51,
            "pass_at_1_before": 0.47,
            "pass_at_1_after": 0.81,
            "pass_at_8_before": 0.86,
            "pass_at_8_after": 0.91,
            "seconds": 118.0,
            "nonfinite_steps": 0,
        },
    )


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return build_report(results, results / "report/report.html").read_text(encoding="utf-8")


@pytest.fixture
def copied(results: Path, tmp_path: Path) -> Path:
    """A project folder to damage."""
    return Path(shutil.copytree(results, tmp_path / "project"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_figures(root: Path) -> str:
    """The page without its slow part."""
    return render(read_results(root), dict.fromkeys(FIGURES, ""))


# ---------------------------------------------------------------- the page


def test_nothing_is_fetched(page: str) -> None:
    assert "<script" not in page
    assert "@import" not in page
    addresses = re.findall(r'(?:src|href|action|data|srcset)\s*=\s*"([^"]*)"', page) + re.findall(
        r"url\(([^)]*)\)", page
    )
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {
        (name, "") for name in ids
    } | {("", name) for name in ids}


def test_figures_of_the_summary_are_those_of_the_metrics(page: str, results: Path) -> None:
    summary = json.loads((results / "evals/gsm8k/rl/summary.json").read_text())
    text = re.sub(
        r"\s+",
        " ",
        re.sub(r"<[^>]+>", "", page[page.index("<header>") : page.index("</header>")]).replace(
            "&nbsp;", " "
        ),
    )
    assert (
        f"{100 * summary['accuracy']:.1f} % (95 %: {100 * summary['ci_low']:.1f} % to {100 * summary['ci_high']:.1f} %)"
        in text
    )
    assert "3.67 M parameters, pretrained on 2.05 M tokens" in text
    assert "0.432 bits per byte" in text
    assert "0123456789abcdef0123" in text


def test_every_section_shows_its_inputs(page: str, results: Path) -> None:
    assert re.findall(r'<section id="(\w+)"', page) == [
        "curriculum",
        "pretraining",
        "core",
        "gsm8k",
        "sparsity",
        "prompts",
        "samples",
        "provenance",
    ]
    for label, task in json.loads((results / "metrics/core.json").read_text())["tasks"].items():
        row = page[page.index(f"<th>{label}</th>") :].split("</tr>")[0]
        assert f"{task['accuracy']:.4f}" in row
        assert f"± {task['stderr']:.4f}" in row
        assert f"<td>{task['n']}</td>" in row
    assert "24.0\u202f% were all wrong" in page
    assert "29.0\u202f% all right" in page
    assert "51.0\u202f% of the sampled tokens" in page
    assert "matrix products; auto" in page
    assert "<code>rl.samples_per_question</code>" in page


def test_tool_calls_are_shown_and_text_is_escaped(page: str) -> None:
    assert re.search(
        r'That is <code class="tool_call">3\*4</code><code class="tool_result">1[23]</code>'
        r"1[23] pears\.\n#### 1[23]</div>",
        page,
    )
    assert "&lt;b&gt;How many&lt;/b&gt; pears &amp; boxes" in page
    assert "&lt;|" not in page


def test_synthetic_tasks_are_not_called_core(page: str) -> None:
    section = page[page.index('<section id="core">') : page.index('<section id="gsm8k">')]
    assert '<span class="label">synthetic</span>' in section
    assert "<h2>CORE format" in section
    assert "<th>CORE</th>" not in section


def test_a_partial_bundle_is_labelled_and_names_what_is_missing(copied: Path) -> None:
    write_core(copied, random.Random(1), synthetic=False)
    page = without_figures(copied)
    assert "<b>not CORE</b>" in page
    assert "Without data: jeopardy, coqa" in page
    assert "<th>CORE</th>" not in page


def test_steps_that_taught_nothing_are_counted(copied: Path) -> None:
    rows = [
        (step, 0.0, 1.0, 0.0, 1.0, 1.0, "") if step <= 7 else (step, 0.4, 0.25, 0.25, 0.5, 0.5, "")
        for step in range(1, 21)
    ]
    write_csv(copied / "plots/rl.csv", tuple(CURVES["rl"]), rows)
    edit(copied / "metrics/rl.json", pass_at_8_before=None, pass_at_8_after=None)
    page = without_figures(copied)
    assert "7 of 20 steps taught nothing at all" in page
    assert "all-wrong groups went from 100\u202f% to 25\u202f%" in page  # steps 1 to 5 and 16 to 20
    assert "<tr><th>pass@8</th><td>–</td><td>–</td></tr>" in page


def test_without_sampled_answers_there_is_no_pass_at_k(copied: Path) -> None:
    for stage in PRINTED:
        path = copied / f"evals/gsm8k/{stage}/summary.json"
        summary = json.loads(path.read_text())
        kept = {key: value for key, value in summary.items() if "pass_at" not in key}
        path.write_text(json.dumps(seal(kept)))
    page = without_figures(copied)
    assert "pass@" not in page[page.index('<section id="gsm8k">') : page.index("<h3>")]


def test_every_stage_answers_every_fixed_prompt(page: str) -> None:
    section = page[page.index('<section id="prompts">') : page.index('<section id="samples">')]
    for prompt in PROMPTS:
        for stage in PRINTED:
            called = '<code class="tool_call">1+2</code><code class="tool_result">3</code>'
            assert f"{stage} on {prompt} {called}</div>" in section


def test_groups_are_told_by_difficulty_and_what_redrawing_cost(page: str) -> None:
    section = page[page.index('<section id="sparsity">') : page.index('<section id="prompts">')]
    cells = "".join(f"<td>{share}.0\u202f%</td>" for share in (50, 20, 30, 50))
    assert f"<tr><th>2</th><td>320</td>{cells}</tr>" in section
    assert "cost 1,280 of the 7,680 sampled answers" in section


def test_same_inputs_same_bytes(results: Path, page: str, tmp_path: Path) -> None:
    assert build_report(results, tmp_path / "again.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 99, b"null", b"[]", b"{}", b"3", b'"text"', b"\xff\xfe", b"a,b\n1\n", b"[[]]"],
)
def test_whatever_an_input_holds_is_told_without_a_traceback(
    copied: Path, name: str, content: bytes
) -> None:
    (copied / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_results(copied)
    if content == b"[]" and name.endswith("prompts.json"):
        assert all(" prompts, where" in problem for problem in error.value.problems)
        return
    [problem] = error.value.problems
    if content == b"[]" and name.endswith("samples.json"):
        assert f"{name}: damaged: its sha256" in problem
        return
    assert problem.startswith(f"{name}: damaged (")
    assert INPUTS[name] in problem


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("evals/gsm8k/base/summary.json", b'"few_shot": 4', b'"few_shot": 5'),
        ("evals/gsm8k/rl/samples.json", b"Ada", b"Ida"),
        ("evals/core/summary.json", b'"missing": []', b'"missing": ["copa"]'),
    ],
)
def test_a_change_that_is_like_any_other_content_is_found(
    copied: Path, name: str, before: bytes, after: bytes
) -> None:
    path = copied / name
    assert before in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(before, after))
    with pytest.raises(UserError, match=f"{name}: damaged: .*dvc repro --force"):
        read_results(copied)


def test_prompts_that_one_stage_did_not_answer_are_told(copied: Path) -> None:
    path = copied / "evals/gsm8k/mid/prompts.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    with pytest.raises(UserError, match="mid/prompts.json: .* prompts, where rl's has"):
        read_results(copied)


def test_every_missing_or_damaged_input_is_named_with_its_stage(copied: Path) -> None:
    (copied / "metrics/core.json").unlink()
    (copied / "evals/gsm8k/sft/summary.json").unlink()
    (copied / "metrics/rl.json").write_text('{"steps": ')
    (copied / "plots/pretrain.csv").write_text("step,tokens\n1,many\n")
    with pytest.raises(UserError) as error:
        build_report(copied, copied / "report.html")
    problems = sorted(error.value.problems)
    assert problems[0] == "evals/gsm8k/sft/summary.json: missing; run `dvc repro gsm8k_stage@sft`"
    assert problems[1] == "metrics/core.json: missing; run `dvc repro core`"
    assert problems[2].startswith("metrics/rl.json: damaged (")
    assert problems[2].endswith("run `dvc repro --force rl`")
    assert problems[3].startswith("plots/pretrain.csv: damaged (")
    assert len(problems) == 4
    assert not (copied / "report.html").exists()


def test_inputs_are_outputs_of_the_stages_they_name(project_root: Path) -> None:
    definitions = graph.stage_definitions(project_root / "dvc.yaml")
    for name, stage in INPUTS.items():
        assert any(name == out or name.startswith(out + "/") for out in definitions[stage].outs), (
            name
        )


# ---------------------------------------------------------------- figures


def test_every_figure_draws_every_value(results: Path) -> None:
    drawn = figures(results)
    assert list(drawn) == ["pretrain", "core", "gsm8k", "sparsity"]
    loss, bpb = drawn["pretrain"].axes
    assert len(np.asarray(loss.lines[0].get_xdata())) == 250
    assert list(np.asarray(bpb.lines[0].get_xdata())) == [
        step * 8192 for step in (50, 100, 150, 200, 250)
    ]
    assert (
        np.asarray(bpb.lines[0].get_ydata())[-1] == 0.4321
    )  # the final figure, measured on more tokens than those before
    assert len(drawn["core"].axes[0].patches) == 5
    assert [
        bar.get_height() for bar in drawn["gsm8k"].axes[0].patches if isinstance(bar, Rectangle)
    ] == [
        json.loads((results / f"evals/gsm8k/{stage}/summary.json").read_text())["accuracy"]
        for stage in PRINTED
    ]
    groups, reward = drawn["sparsity"].axes
    assert len(groups.collections) == 3
    assert len(reward.lines) == 3


def test_centred_standard_errors_are_those_of_the_evaluation(results: Path) -> None:
    tasks = json.loads((results / "metrics/core.json").read_text())["tasks"]
    bars = FIGURES["core"](read_results(results)).axes[0].containers[0]
    assert isinstance(bars, ErrorbarContainer)
    (whiskers,) = bars.lines[2]
    lengths = sorted((right[0] - left[0]) / 2 for left, right in whiskers.get_segments())
    assert lengths == pytest.approx(sorted(task["centered_stderr"] for task in tasks.values()))


def test_long_curves_are_drawn_by_means(copied: Path) -> None:
    rows = [(step, step, step, float(step % 2), "") for step in range(1, 20_001)]
    write_csv(copied / "plots/pretrain.csv", tuple(CURVES["pretrain"]), rows)
    line = FIGURES["pretrain"](read_results(copied)).axes[0].lines[0]
    assert len(np.asarray(line.get_xdata())) == MOST_POINTS
    assert set(np.asarray(line.get_ydata())) == {0.5}


def test_figures_are_saved_as_pictures_with_something_in_them(
    results: Path, tmp_path: Path
) -> None:
    from matplotlib.image import imread

    paths = save_figures(results, tmp_path / "figures")
    assert [path.name for path in paths] == [
        "pretrain.png",
        "core.png",
        "gsm8k.png",
        "sparsity.png",
    ]
    for path in paths:
        pixels = imread(path)
        assert pixels.shape[1] > 1000
        assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.01


# ---------------------------------------------------------------- a real browser


def test_opens_offline_in_a_browser(results: Path, page: str) -> None:
    from matplotlib.image import imread

    with chromium() as browser:
        tab, heard = new_tab(browser)
        tab.goto((results / "report/report.html").as_uri())
        figure_elements = tab.query_selector_all("svg.figure")
        pictures = [imread(io.BytesIO(element.screenshot())) for element in figure_elements]
        inks = []
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            inks.append(
                tab.eval_on_selector("svg.figure text", "text => getComputedStyle(text).fill")
            )
        sideways = tab.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    assert heard.complaints == []
    assert heard.failed == []
    assert [url.partition(":")[0] for url in heard.requests] == ["file"]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture.shape[0] > 200
        assert picture.shape[1] > 800
        assert (picture[..., :3].min(axis=-1) < 0.9).mean() > 0.01, "an empty plot"
    assert inks == ["rgb(34, 48, 60)", "rgb(219, 228, 236)"], (
        "the figures' text follows the reader's colours"
    )
    assert sideways <= 0


def test_the_page_is_accessible_and_nothing_is_cut(results: Path, tmp_path: Path) -> None:
    page = build_report(results, tmp_path / "report.html")
    with chromium() as browser:
        assert faults(browser, page.as_uri()) == []
