"""lm-evaluation-harness on a paribus checkpoint: figures are the native ones, offline, whatever the batch size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.talker import PROBLEMS, codec, random_model, talker

from paribus.cli.commands import commands
from paribus.config import merge, read_yaml
from paribus.data.core_bundle import Task
from paribus.errors import UserError
from paribus.evaluate.core import evaluate_task
from paribus.evaluate.harness import Responder, evaluate_tasks, task_manager, unknown_tasks, windows
from paribus.generate import Engine
from paribus.model.gpt import GPT, save_checkpoint

CONTEXTS = ["Mia has 3 shells", "Mia has 3 shells and ", "", "Then times 2? " * 9, "5"]
CONTINUATIONS = [" and finds 4 more.", "shells.", "7", " and finds 1 more. How many now?"]
PAIRS = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]


def slow(model: GPT, tokens: list[int], start: int) -> tuple[float, bool]:
    """The plain forward of one sequence: log-likelihood of tokens[start:], each with all that the context holds."""
    total, greedy, limit = 0.0, True, model.config.seq_len
    for place in range(start, len(tokens)):
        with torch.no_grad():
            logits = model.logits(
                model.hidden(torch.tensor([tokens[max(place - limit, 0) : place]]))
            )[0, -1]
        total += float(logits.log_softmax(dim=-1)[tokens[place]])
        greedy &= int(logits.argmax()) == tokens[place]
    return total, greedy


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_loglikelihoods_are_those_of_a_plain_forward(batch_size: int) -> None:
    model = random_model(std=0.1)
    found = Responder(model, codec(), batch_size).loglikelihood(PAIRS)
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        tokens = [codec().bos, *codec().encode(context + continuation)]
        expected = slow(model, tokens, 1 + len(codec().encode(context.rstrip())))
        assert total == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_loglikelihoods_are_those_of_core() -> None:
    """The same items through CORE's own path: mean losses of its options, summed, are the harness's."""
    rows: tuple[dict[str, Any], ...] = tuple(
        {
            "query": problem["question"],
            "choices": ["shells and 7", "finds 3", "more now"],
            "gold": 0,
        }
        for problem in PROBLEMS[:6]
    )
    assert len({codec().encode(f" {choice}")[0] for choice in rows[0]["choices"]}) == 3, (
        "CORE scores from the first difference"
    )
    task = Task("choice", "multiple_choice", 0, " ", 0.25, rows, len(rows), len(rows), "")
    items = evaluate_task(talker().model, codec(), task, 8)
    for row, item in zip(rows, items, strict=True):
        scores = Responder(talker().model, codec(), 8).loglikelihood(
            [(row["query"], f" {one}") for one in row["choices"]]
        )
        for choice, loss, (total, _) in zip(row["choices"], item.losses, scores, strict=True):
            assert loss is not None
            assert total == pytest.approx(-loss * len(codec().encode(f" {choice}")), abs=1e-4)


def test_greedy_continuations_are_seen() -> None:
    engine = talker()
    prompt = PROBLEMS[0]["question"]
    ((answer,),) = engine.generate(
        [[codec().bos, *codec().encode(prompt)]], max_new_tokens=4, tools=False
    )
    text = codec().decode(answer.tokens)
    if codec().encode(prompt + text) == codec().encode(prompt) + answer.tokens:
        assert Responder(engine.model, codec(), 4).loglikelihood([(prompt, text)])[0][1]
    assert not Responder(engine.model, codec(), 4).loglikelihood([(prompt, "9x9x")])[0][1]


def test_windows_score_every_token_once_with_all_the_context_there_is() -> None:
    for length in range(1, 40):
        for start in range(1, length + 1):
            tokens = list(range(length))
            parts = list(windows(tokens, start, 7))
            assert [token for part, first in parts for token in part[first:]] == tokens[start:]
            assert all(first >= 1 and len(part) <= 8 for part, first in parts)
            if parts:
                assert len(parts[-1][0]) == min(8, length)


def test_rolling_is_the_sum_over_windows() -> None:
    model, text = random_model(std=0.1, seq_len=32), "Mia has 3 shells and finds 4 more. " * 9
    tokens = [codec().bos, *codec().encode(text)]
    assert len(tokens) > 3 * 32
    expected = sum(slow(model, part, first)[0] for part, first in windows(tokens, 1, 32))
    for batch_size in (1, 8):
        short, total = Responder(model, codec(), batch_size).rolling(["Mia", text])
        assert total == pytest.approx(expected, abs=1e-3)
        assert short == pytest.approx(
            slow(model, [codec().bos, *codec().encode("Mia")], 1)[0], abs=1e-4
        )
    assert Responder(model, codec(), 8).rolling([""]) == [0.0]


def test_generations_end_before_a_stop_text_whatever_the_batch_size() -> None:
    requests = [
        (problem["question"], {"until": until, "max_gen_toks": 30})
        for problem in PROBLEMS[:5]
        for until in (["\n"], ["shells", "7"], "a word that never comes")
    ]
    first, second = (
        Responder(talker().model, codec(), size).generate(requests) for size in (2, 16)
    )
    assert first == second
    assert any(first)
    endless = first[2::3]
    for place, text in enumerate(first[1::3]):
        ends = [endless[place].find(stop) for stop in ("shells", "7") if stop in endless[place]]
        assert text == endless[place][: min(ends, default=len(endless[place]))]


def test_a_context_too_long_loses_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    generate = Engine.generate

    def recorded(self: Engine, prompts: list[list[int]], **options: Any) -> Any:
        asked.extend(prompts)
        return generate(self, prompts, **options)

    monkeypatch.setattr(Engine, "generate", recorded)
    responder = Responder(talker().model, codec(), 4)
    question = PROBLEMS[0]["question"]
    responder.generate([("9 9 " * 200 + question, {"max_gen_toks": 1000})])
    [prompt] = asked
    assert len(prompt) == responder.model.config.seq_len // 2
    assert codec().decode(prompt).endswith(question)


def test_settings_that_the_engine_lacks_are_named() -> None:
    with pytest.raises(UserError, match="generation_kwargs: num_beams: 4 is not supported"):
        Responder(talker().model, codec(), 4).generate([("Mia", {"num_beams": 4})])


# ---------------------------------------------------------------- through lm_eval itself


TASKS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "tiny_choice": (
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n",
        [{"question": problem["question"], "choices": ["7 shells.", "12", "9 more"], "gold": 1} for problem in PROBLEMS]),
    "tiny_prose": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}\n",
        [{"text": problem["question"] * 3} for problem in PROBLEMS[:4]]),
    "tiny_answers": (
        'output_type: generate_until\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}\n'
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n",
        [{"question": problem["question"], "answer": "7"} for problem in PROBLEMS[:3]]),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A project with a checkpoint and a folder of tasks whose data are local files."""
    root = tmp_path_factory.mktemp("lm")
    (root / "dvc.yaml").write_text((project_root / "dvc.yaml").read_text())
    quick = {
        "train.device": "cpu",
        "train.dtype": "float32",
        "train.threads": 1,
        "tracking.system_metrics": False,
    }
    (root / "params.yaml").write_text(
        json.dumps(merge(read_yaml(project_root / "params.yaml"), quick))
    )  # JSON is YAML
    (root / "tasks").mkdir()
    for name, (body, rows) in TASKS.items():
        data = root / f"tasks/{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / f"tasks/{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n{body}"
        )
    codec().save(root / "tokenizer.json")
    save_checkpoint(
        root / "checkpoints/sft", talker().model, root / "tokenizer.json", {"stage": "sft"}
    )
    return root


@pytest.fixture(scope="module")
def inside(project: Path) -> Iterator[Path]:
    """In the project's folder and offline; what the command sets in torch is put back."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(project / "hf"))
        yield project
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(scope="module")
def ran(inside: Path) -> Result:
    """The command on a task of each kind; in this process, as one of its own would import for seconds."""
    return CliRunner().invoke(
        commands,
        [
            "eval",
            "lm",
            "--tasks",
            ",".join(TASKS),
            "--checkpoint",
            "sft",
            "--include-path",
            "tasks",
            "--limit",
            "4",
            "--batch-size",
            "5",
        ],
    )


def kept(project: Path) -> dict[str, dict[str, Any]]:
    (path,) = (project / "evals/lm/sft").glob("tiny_choice-and-2-more-*.json")
    return {row["task"]: row for row in json.loads(path.read_text())["rows"]}


def test_each_kind_of_task_gives_the_native_figures(inside: Path, ran: Result) -> None:
    assert ran.exit_code == 0, ran.output
    rows, native, right = kept(inside), Responder(talker().model, codec(), 3), 0
    for row in TASKS["tiny_choice"][1][:4]:
        scores = [
            total
            for total, _ in native.loglikelihood(
                [(row["question"], f" {one}") for one in row["choices"]]
            )
        ]
        right += scores.index(max(scores)) == row["gold"]
    accuracy = rows["tiny_choice"]["value"]
    assert accuracy == right / 4
    assert rows["tiny_choice"]["n"] == 4
    assert rows["tiny_choice"]["stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 3))
    texts = [row["text"] for row in TASKS["tiny_prose"][1]]
    bits = -sum(native.rolling(texts)) / math.log(2) / sum(len(text.encode()) for text in texts)
    assert rows["tiny_prose"]["value"] == pytest.approx(bits, abs=1e-5)
    assert rows["tiny_answers"]["n"] == 3
    assert rows["tiny_answers"]["stderr"] is not None


def test_the_command_prints_a_table_and_logs_a_run(inside: Path, ran: Result) -> None:
    from mlflow import MlflowClient

    rows = kept(inside)
    for task, row in rows.items():
        (line,) = (line for line in ran.stdout.splitlines() if line.startswith(f"{task} "))
        assert f"{row['value']:.4f}" in line
        assert ("±" in line) == (row["stderr"] is not None)
    client = MlflowClient(f"sqlite:///{inside / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paribus")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'lm'")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["tiny_choice.acc"] == rows["tiny_choice"]["value"]
    assert run.data.params["lm.limit"] == "4"
    assert run.data.tags["checkpoint"] == "sft"
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "tables/lm.json", "type": "table"}
    ]


def test_unknown_tasks_are_told_with_the_nearest_names(project: Path) -> None:
    known = task_manager(list(TASKS), project / "tasks").all_tasks
    assert set(known) >= set(TASKS), (
        "lm_eval's own index, which takes seconds, is not asked where it is not needed"
    )
    first, second = unknown_tasks(["tiny_choise", "tiny_choice", "mmlu"], known)
    assert first.startswith("--tasks: no task 'tiny_choise'; did you mean tiny_choice")
    assert "'mmlu'" in second
    with pytest.raises(UserError, match="no such folder"):
        task_manager(["tiny_choice"], project / "nowhere")


def test_data_out_of_reach_is_an_error_for_people(inside: Path) -> None:
    (inside / "tasks/gone.yaml").write_text(
        "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: /nowhere/gone.jsonl}}\ntest_split: test\n"
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    )
    with pytest.raises(UserError, match="the data of gone are unavailable"):
        evaluate_tasks(inside / "checkpoints/sft", ["gone"], include_path=inside / "tasks")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"doc_to_text": "{{x"}, "TemplateSyntaxError"),
        ({"doc_to_target": "{{nope}}"}, "'nope' is undefined"),
        ({"test_split": "nosplit"}, "nosplit"),
        ({"output_type": "telepathy"}, "invalid output_type 'telepathy'"),
    ],
)
def test_a_task_file_that_is_wrong_is_an_error_for_people(
    wrong: dict[str, str], reason: str, inside: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.json").write_text('{"x": "a", "y": "b"}\n' * 4)
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.json")},
        "test_split": "train",
        "output_type": "loglikelihood",
        "doc_to_text": "{{x}}",
        "doc_to_target": "{{y}}",
    }
    (tmp_path / "own.yaml").write_text(json.dumps(task | wrong))
    with pytest.raises(UserError, match=f"own: the task cannot be asked .*{reason}"):
        evaluate_tasks(inside / "checkpoints/sft", ["own"], include_path=tmp_path)


@pytest.mark.soak  # makes lm_eval's own index, as every unknown name does
def test_a_task_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: [own")
    with pytest.raises(UserError) as caught:
        task_manager(["own_task_of_nobody"], tmp_path)
    unknown, broken = caught.value.problems
    assert "no task 'own_task_of_nobody'" in unknown
    assert "own.yaml: not YAML" in broken
