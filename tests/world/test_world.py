"""The embedded world: same bytes everywhere, right arithmetic, disjoint splits, variety, true CORE items."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.checkout import ROOT

from paribus.config import limits
from paribus.errors import UserError
from paribus.world import generate, prose
from paribus.world.core import TASKS, task_rows
from paribus.world.documents import MIXTURE, document
from paribus.world.facts import build_world
from paribus.world.problems import SPLITS, any_problem, canonical, problems, split_of
from paribus.world.rng import stream
from paribus.world.vocabulary import DOMAINS, GOODS, PEOPLE, TOWNS, plural

SMALL: dict[str, Any] = {
    "megabytes": 0.3,
    "problems": 400,
    "validation_problems": 60,
    "test_problems": 60,
    "conversations": 50,
    "core_items": 20,
}
GOLDEN = "71e9accbe0123e3f0be0eaa0db041305815302542c71d0ffa68501ad287cf7e9"
ANNOTATION = re.compile(r"<<([^=>]+)=([0-9]+)>>")
SPELLED = r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
LINE = re.compile(r"[^<>]*[0-9]=<<[0-9]+([-+*/][0-9]+)+=[0-9]+>>[0-9]+[^<>]*")


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    generate(out, seed=1, **SMALL)
    return out


@pytest.fixture(scope="module")
def many() -> list[Any]:
    return [any_problem(stream(5, "many", i)) for i in range(6000)]


def evaluate(expression: str) -> int:
    """Left to right; the expressions have one kind of operation."""
    numbers = [int(n) for n in re.findall(r"[0-9]+", expression)]
    result = numbers[0]
    for op, n in zip(re.findall(r"[-+*/]", expression), numbers[1:], strict=True):
        if op == "/":
            assert result % n == 0, expression
        result = {"+": result + n, "-": result - n, "*": result * n, "/": result // n}[op]
    return result


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_golden_bytes(world_dir: Path) -> None:
    """Checkpoints and published figures name this world by its seed: its bytes must not change unnoticed."""
    assert tree_hash(world_dir) == GOLDEN


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_bytes_do_not_depend_on_the_hash_seed(
    world_dir: Path, tmp_path: Path, hash_seed: str
) -> None:
    code = f"import pathlib; from paribus.world import generate; generate(pathlib.Path('out'), seed=1, **{SMALL})"
    source = str(ROOT / "src")
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=tmp_path)
    assert tree_hash(tmp_path / "out") == tree_hash(world_dir)


def test_a_larger_world_continues_a_smaller_one(world_dir: Path, tmp_path: Path) -> None:
    larger: dict[str, Any] = {
        "megabytes": 0.5,
        "problems": 450,
        "validation_problems": 61,
        "test_problems": 70,
        "conversations": 55,
        "core_items": 25,
    }
    generate(tmp_path, seed=1, **larger)
    for path in sorted(world_dir.rglob("*.jsonl")):
        assert (
            (tmp_path / path.relative_to(world_dir)).read_bytes().startswith(path.read_bytes())
        ), path


def test_seeds_give_different_worlds() -> None:
    assert build_world(1).facts != build_world(2).facts
    assert document(build_world(1), 1, 0) != document(build_world(2), 2, 0)


def test_size_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paribus.world.SHARD_BYTES", 100_000)
    counts = generate(tmp_path, seed=1, **SMALL)
    shards = sorted((tmp_path / "documents").iterdir())
    texts = [row["text"] for shard in shards for row in rows(shard)]
    assert [shard.name for shard in shards] == ["0000.jsonl", "0001.jsonl", "0002.jsonl"]
    assert counts["documents"] == len(texts)
    assert counts["document_bytes"] == sum(len(text) for text in texts)
    assert 300_000 <= counts["document_bytes"] < 302_000


# --- problems ---------------------------------------------------------------------------------------------------------


def test_every_annotation_is_right_and_the_last_is_the_answer(many: list[Any]) -> None:
    for problem in many:
        found = ANNOTATION.findall(problem.answer)
        assert all(evaluate(expression) == int(result) for expression, result in found), problem
        assert problem.answer.endswith(f"\n#### {found[-1][1]}"), problem


def test_answers_have_the_format_of_gsm8k(many: list[Any]) -> None:
    """One step a line with the expression before its annotation and the result after it."""
    for problem in many:
        *lines, last = problem.answer.split("\n")
        assert re.fullmatch(r"#### [0-9]+", last)
        assert all(LINE.fullmatch(line) and line.count("<<") == 1 for line in lines), problem
        found = re.findall(r"(\S+)=<<(.+?)=([0-9]+)>>([0-9]+)", problem.answer)
        for before, expression, result, after in found:
            assert before == expression
            assert result == after


def test_numbers_of_the_first_step_come_from_the_question(many: list[Any]) -> None:
    """What an answer calculates with is stated in the question (digits, words, half, twice) or calculated before."""
    for problem in many:
        known = set(re.findall(r"[0-9]+", problem.question))
        if re.search(r"half|twice|doubles?\b|doubled", problem.question):
            known.add("2")
        spelled = re.search(SPELLED, problem.question, re.I)
        for expression, result in ANNOTATION.findall(problem.answer):
            unknown = set(re.findall(r"[0-9]+", expression)) - known
            if unknown:
                assert spelled, problem
                assert max(int(number) for number in unknown) <= 12, problem
            known.add(result)


def test_numbers_stay_small(many: list[Any]) -> None:
    results = [int(result) for problem in many for _, result in ANNOTATION.findall(problem.answer)]
    assert min(results) >= 1
    assert max(results) <= 300
    assert sum(result < 200 for result in results) > 0.97 * len(results)


def test_questions_are_short_and_filled_in(many: list[Any]) -> None:
    for problem in many:
        assert not re.search(r"[{}]|  ", problem.question + problem.answer), problem
        assert re.fullmatch(r"[A-Z0-9][^\n]*\?", problem.question), problem
        assert not re.search(r"[.?] [a-z]", problem.question), problem
    assert 12 <= sum(len(problem.question.split()) for problem in many) / len(many) <= 35
    assert max(len(problem.question.split()) for problem in many) <= 70


def test_step_shares(many: list[Any]) -> None:
    steps = Counter(problem.answer.count("<<") for problem in many)
    for count, share in {1: 0.45, 2: 0.35, 3: 0.15, 4: 0.05}.items():
        assert abs(steps[count] / len(many) - share) < 0.03


def skeleton(question: str) -> str:
    """The question without its names, numbers and things."""
    nouns = [noun for d in DOMAINS for noun in d.things + d.containers + d.kinds] + list(GOODS)
    masks = [name for name, _ in PEOPLE] + list(TOWNS) + nouns + [plural(noun) for noun in nouns]
    return re.sub(
        r"\b(" + "|".join(sorted(masks, key=lambda w: (-len(w), w))) + r")\b|[0-9]+", "_", question
    )


def test_variety(many: list[Any]) -> None:
    questions = [problem.question for problem in many]
    assert len(set(questions)) > 0.98 * len(questions)
    assert len({skeleton(question) for question in questions[:2000]}) > 700


def test_prose_states_the_result_without_annotations(many: list[Any]) -> None:
    for problem in many[:200]:
        text = prose(*problem)
        assert text.startswith(problem.question)
        assert "<" not in text
        assert "####" not in text
        assert text.endswith(f" {problem.answer.rsplit(' ', 1)[1]}.")


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_share_no_question_with_each_other_or_any_other_text(world_dir: Path) -> None:
    sets = {
        s: [canonical(row["question"]) for row in rows(world_dir / "problems" / f"{s}.jsonl")]
        for s in SPLITS
    }
    assert [len(sets[s]) for s in SPLITS] == [400, 60, 60]
    assert all(len(set(found)) == len(found) for found in sets.values())
    elsewhere = " ".join(
        canonical(path.read_text(encoding="utf-8"))
        for path in sorted(world_dir.rglob("*.jsonl"))
        if path.name not in ("validation.jsonl", "test.jsonl")
    )
    for question in sets["validation"] + sets["test"]:
        assert question not in elsewhere
    assert sets["train"][0] in elsewhere  # the search finds what is there


def test_problems_in_documents_are_training_problems() -> None:
    """Also those that a larger validation or test split would have."""
    world = build_world(1)
    found = 0
    for index in range(300):
        for paragraph in document(world, 1, index).split("\n\n"):
            if "? " in paragraph and "Question:" not in paragraph:
                assert split_of(paragraph[: paragraph.rindex("?") + 1]) == "train"
                found += 1
    assert found > 300


def test_the_hash_gives_a_tenth_each_to_validation_and_test(many: list[Any]) -> None:
    shares = Counter(split_of(problem.question) for problem in many)
    assert abs(shares["validation"] / len(many) - 0.1) < 0.02
    assert abs(shares["test"] / len(many) - 0.1) < 0.02


def test_no_question_comes_twice_in_a_split() -> None:
    """Among 6000 draws some questions do come twice: they are left out."""
    found = [canonical(problem.question) for problem in problems(1, "train", 6000)]
    assert len(set(found)) == len(found) == 6000


def test_problems_of_a_split_do_not_depend_on_the_count() -> None:
    assert list(problems(1, "test", 20))[:10] == list(problems(1, "test", 10))


# --- documents and conversations --------------------------------------------------------------------------------------


def kind_of(text: str) -> str:
    """What sort of document a text is, from its looks."""
    paragraph = text.split("\n\n")[0]
    if re.search(r"\? .*[0-9]", paragraph) and "Question:" not in paragraph:
        return "problems"
    if "Question:" in paragraph or (
        len(paragraph) < 400 and not re.search("[0-9]", paragraph) and text.count("\n\n")
    ):
        return "facts"
    return "other"


def test_shares_of_the_mixture() -> None:
    """40 % of the text are word problems."""
    world = build_world(1)
    size: Counter[str] = Counter()
    for index in range(1500):
        text = document(world, 1, index)
        size[kind_of(text)] += len(text)
    assert abs(size["problems"] / sum(size.values()) - dict(MIXTURE)["problems"]) < 0.04


def test_text_is_varied(world_dir: Path) -> None:
    """Not one template again and again: gzip does not find more than a factor of five."""
    texts = "\n".join(
        row["text"] for path in (world_dir / "documents").iterdir() for row in rows(path)
    ).encode()
    assert 2 < len(texts) / len(gzip.compress(texts, 6)) < 5


def test_articles_and_fields(world_dir: Path) -> None:
    """No "a apple", no "an house", no unfilled field."""
    for path in sorted(world_dir.rglob("*.jsonl")):
        text = " ".join(str(value) for row in rows(path) for value in row.values())
        wrong = re.search(r"\b[Aa] [aeiou]\w*|\b[Aa]n (?!hour)[^aeiou ]\w*", text)
        assert not wrong, (path, wrong)
        assert not re.search(r"\{[a-zA-Z0-9]+\}", text), path


def test_conversations_alternate(world_dir: Path) -> None:
    names = {path.stem for path in (world_dir / "conversations").iterdir()}
    assert names == {"facts", "smalltalk", "instructions"}
    for path in (world_dir / "conversations").iterdir():
        for row in rows(path):
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert 2 <= len(roles) <= 6
            assert all(
                message["content"] and "{" not in message["content"] for message in row["messages"]
            )


# --- facts and CORE ---------------------------------------------------------------------------------------------------


def test_friends_are_mutual_and_everybody_owns_a_thing() -> None:
    world = build_world(3)
    for person in world.people:
        assert world.by_name[person.facts["friend"]].facts["friend"] == person.name
        assert world.thing_of[person.name].facts["owner"] == person.name


def test_documents_state_every_fact_repeatedly() -> None:
    """In 3 MB of documents, as pretraining reads at least: nearly every fact at least five times, word for word."""
    world = build_world(1)
    text = "\n".join(document(world, 1, index) for index in range(2600))
    sentences = Counter(re.split(r"(?<=[.?]) |\n", text))
    stated = [
        sum(
            sentences[s.format_map(fact.entity.fields(fact.value))]
            for s in fact.relation.statements
        )
        for fact in world.facts
    ]
    assert sum(count >= 5 for count in stated) > 0.9 * len(stated), sorted(stated)[:60]


def test_core_files_have_the_layout_of_the_bundle(world_dir: Path) -> None:
    config = yaml.safe_load((world_dir / "core" / "core.yaml").read_text())["icl_tasks"]
    meta = {
        row["Eval Task"]: row
        for row in csv.DictReader((world_dir / "core" / "eval_meta_data.csv").open())
    }
    kinds = Counter(task["icl_task_type"] for task in config)
    assert min(kinds[kind] for kind in ("multiple_choice", "schema", "language_modeling")) >= 2
    for task in config:
        found = rows(world_dir / "core" / "eval_data" / task["dataset_uri"])
        row = meta[task["label"]]
        assert len(found) == 20 == int(row["#datapoints"])
        assert int(row["#shots"]) == task["num_fewshot"][0] <= 5
        options = {"multiple_choice": "choices", "schema": "context_options"}.get(
            task["icl_task_type"]
        )
        if options is None:
            assert float(row["Random baseline"]) == 0
            assert all(r["context"] and r["continuation"] for r in found)
        else:
            assert all(
                len(set(r[options])) == len(r[options]) and 0 <= r["gold"] < len(r[options])
                for r in found
            )
            assert {100 / len(r[options]) for r in found} == {float(row["Random baseline"])}
        assert task.get("continuation_delimiter", " ") in (" ", "\nAnswer: ")


def test_core_gold_spreads_over_the_choices() -> None:
    world = build_world(1)
    for task in (t for t in TASKS if t.kind != "language_modeling"):
        golds = Counter(row["gold"] for row in task_rows(world, 1, task, 200))
        n = 4 if task.kind == "multiple_choice" else 2
        assert len(golds) == n
        assert max(golds.values()) < 1.5 * 200 / n


def test_core_knowledge_agrees_with_the_facts() -> None:
    """The gold answer is the value of a fact with these words, and no other choice is."""
    world = build_world(1)
    asked: dict[str, str] = {}
    true: set[str] = set()
    for fact in world.facts:
        fields = fact.entity.fields("")
        asked.update(
            (f"Question: {q.format_map(fields)}", fact.value) for q in fact.relation.questions
        )
        asked.update((prefix.format_map(fields), fact.value) for prefix in fact.relation.prefixes)
        true.update(
            f"{prefix.format_map(fields)} {fact.value}." for prefix in fact.relation.prefixes
        )
    tasks = {task.label: task_rows(world, 1, task, 150) for task in TASKS}
    for row in tasks["world_people"] + tasks["world_towns"] + tasks["world_things"]:
        assert row["choices"][row["gold"]] == asked[row["query"]]
        assert row["choices"].count(asked[row["query"]]) == 1
    assert all(row["continuation"] == asked[row["context"]] for row in tasks["world_facts"])
    for row in tasks["world_who"]:
        assert [f"{o} {row['continuation']}" in true for o in row["context_options"]].index(
            True
        ) == row["gold"]
        assert sum(f"{o} {row['continuation']}" in true for o in row["context_options"]) == 1


def test_core_reasoning_is_right() -> None:
    world = build_world(1)
    tasks = {task.label: task_rows(world, 1, task, 150) for task in TASKS}
    for row in tasks["world_sequence"]:
        numbers = [int(n) for n in re.findall(r"[0-9]+", row["context"])]
        assert int(row["continuation"]) == numbers[-1] + numbers[0]
    for row in tasks["world_more"]:
        first, second = (int(n) for n in re.findall(r"[0-9]+", row["context_options"][0]))
        assert row["gold"] == (0 if first > second else 1)
    for row in tasks["world_loan"]:
        told = row["context_options"][0]
        lender, borrower = re.search(r"([A-Z][a-z]+) lent the \w+ to ([A-Z][a-z]+)", told).groups()  # type: ignore
        holder = lender if " back" in told else borrower
        assert row["context_options"][row["gold"]].endswith(f"Now {holder}")
    assert all(f" {row['continuation']}" in row["context"] for row in tasks["world_story"])
    word = {"plus": "+", "minus": "-", "times": "*"}
    for row in tasks["world_arithmetic"]:
        a, op, b, _ = row["query"].split()
        assert evaluate(f"{a}{word[op]}{b}") == int(row["choices"][row["gold"]])


def test_too_many_core_items_are_refused() -> None:
    task = next(task for task in TASKS if task.label == "world_sequence")
    with pytest.raises(UserError, match="core_items: 1500"):
        task_rows(build_world(1), 1, task, 1500)


def test_a_large_world_says_how_far_it_is(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    sizes = SMALL | {"problems": 2500, "conversations": 1200}
    generate(tmp_path, seed=1, progress=lambda *words: said.append(words), **sizes)
    assert ("train problems", 2000, 2500) in said
    assert ("conversations of facts", 1000, 1200) in said
    assert any(part == "documents" for part, _, _ in said)
    assert all(0 < done <= total for _, done, total in said)


def test_every_task_has_as_many_items_as_the_configuration_accepts() -> None:
    most = int(limits.WORLD_ITEMS.value)
    for seed in (0, 7):
        world = build_world(seed)
        assert all(len(task_rows(world, seed, task, most)) == most for task in TASKS)
