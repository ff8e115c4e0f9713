"""Word problems in GSM8K's format (arXiv:2110.14168): the one scorer, of evaluation and of reward; the evaluation.

A problem is {"question", "answer"}; the answer ends in `#### 12`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paribus.config import Gsm8k
from paribus.data import UNREADABLE, error_text
from paribus.data.answers import final_answer
from paribus.data.chat import render_prompt
from paribus.data.sealed import FILES, check_sealed_files, read_sealed, sealed_by_files
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.evaluate.intervals import mean_and_stderr, pass_at_k, wilson
from paribus.evaluate.kept import Kept, never, stop_if
from paribus.files import write_atomic

if TYPE_CHECKING:
    from paribus.generate import Completion, Engine

Problem = dict[str, Any]
SAMPLES_SHOWN = 12
# Files of an evaluation that its summary.json vouches for.
SEALED = ("items.parquet", "failures.jsonl", "samples.json", "prompts.json")

_ANNOTATION = re.compile(r"<<[^<>]*>>")


# ---------------------------------------------------------------- the scorer


class Score(NamedTuple):
    """Of one answer."""

    correct: bool
    formatted: bool  # ends in `#### number`, right or wrong


def score(text: str, reference_answer: str) -> Score:
    """Whether an answer is right: the final answer of `text` is that of the reference solution.

    Raises UserError if that has no final answer.

    Args:
        text: all that was answered.
        reference_answer: the problem's `answer`.
    """
    expected = final_answer(reference_answer)
    if expected is None:
        raise UserError(
            f"problem: the reference answer {reference_answer!r:.200} does not end in `#### number`"
        )
    given = final_answer(text)
    return Score(correct=given == expected, formatted=given is not None)


def solution_steps(problem: Problem) -> int:
    """Difficulty: calculator annotations of the reference solution, or its lines where it has none; at least 1."""
    working = problem["answer"].partition("####")[0]
    return max(len(_ANNOTATION.findall(working)) or len(working.strip().splitlines()), 1)


# ---------------------------------------------------------------- prompts


def chat_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """The question as a user's turn, the assistant's turn opened.

    tokenizer: of the checkpoint.
    """
    return render_prompt([{"role": "user", "content": question}], tokenizer)


def few_shot_prompt(
    tokenizer: Tokenizer, shots: Sequence[Problem], question: str, room: int | None = None
) -> list[int]:
    """A prompt for a base model, which knows running text only: worked problems, then the question.

    shots: the worked problems. room: tokens of the prompt; if they do not hold all shots, the first ones are left
    out. Answers are one line each and without annotations, so that a line end ends an answer. tokenizer: of the
    checkpoint.
    """
    ending = tokenizer.encode(f"Question: {question}\nAnswer:")
    parts = [tokenizer.encode(_shot(shot)) for shot in shots]
    if room is not None:
        parts = _last_that_fit(parts, room - 1 - len(ending))
    return [tokenizer.bos, *(token for part in parts for token in part), *ending]


def _last_that_fit(parts: list[list[int]], room: int) -> list[list[int]]:
    """As many of the last parts as have no more than `room` tokens together."""
    while parts and sum(map(len, parts)) > room:
        parts = parts[1:]
    return parts


def n_without_room(
    tokenizer: Tokenizer,
    shots: Sequence[Problem],
    problems: Sequence[Problem],
    room: int,
) -> int:
    """How many of the problems `few_shot_prompt` asks with fewer than all shots. room: tokens of a prompt.

    tokenizer: of the checkpoint.
    """
    longest = sum(len(tokenizer.encode(_shot(shot))) for shot in shots)
    count = 0
    for problem in problems:
        ending = tokenizer.encode(f"Question: {problem['question']}\nAnswer:")
        if shots and 1 + longest + len(ending) > room:
            count += 1
    return count


def _shot(problem: Problem) -> str:
    answer = " ".join(_ANNOTATION.sub("", problem["answer"]).split())
    return f"Question: {problem['question']}\nAnswer: {answer}\n\n"


def line_ends(tokenizer: Tokenizer) -> set[int]:
    """Tokens that hold a line end."""
    return {token for token in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([token])}


# ---------------------------------------------------------------- the evaluation


@dataclass(frozen=True)
class Item:
    """One problem, its answers and their scores."""

    index: int
    question: str
    reference: str
    steps: int  # of the reference solution
    text: str  # the greedy answer, special tokens by name
    prediction: str | None
    correct: bool
    formatted: bool
    finished: bool
    cut_off: bool  # by eval.gsm8k.max_new_tokens or the end of the context
    tokens: int
    tool_calls: int
    well_formed_tool_calls: int
    n_samples: int  # sampled answers, 0 where none were drawn
    n_correct: int  # of those


@dataclass(frozen=True)
class Gsm8kResult:
    """Item by item, so that two models can be compared in pairs; and in sum."""

    items: list[Item]
    summary: dict[str, Any]


def evaluate_gsm8k(
    engine: Engine,
    problems: Sequence[Problem],
    cfg: Gsm8k,
    *,
    stage: str,
    shots: Sequence[Problem] = (),
    seed: int,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = never,
    within: Callable[[str, int, int], None] | None = None,
) -> Gsm8kResult:
    """Greedy answers to the first `cfg.questions` problems; samples, for pass@k, of the first `cfg.sampled_questions`.

    stage "base" is asked with `shots`, as running text and without the tool; all others as a chat. The random
    streams of a problem follow from (seed, its index). `cache`: a folder named after everything the result depends
    on, the checkpoint included; answers are kept there as they come, and a second call goes on from them.
    `on_progress(questions answered, of how many)`, sampled ones counted apart. `stop()` is asked before every token;
    raises Stopped where it is true: unfinished answers are lost, finished ones are kept.
    `within(phase, answers done, of how many)` is called before every token as well, as a question may have many answers.

    engine: of the checkpoint.
    """
    greedy = list(range(len(problems)))[: cfg.questions]
    sampled = greedy[: cfg.sampled_questions]
    shots = shots[: cfg.few_shot]
    key = [list(problems), list(shots), asdict(cfg) | {"rows": 0}, stage, seed]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    total, done = len(greedy) + len(sampled), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    with Kept(cache and cache / "answers.jsonl", name) as kept:
        ask = _Asker(engine, problems, cfg, stage, shots, seed, kept, stop, within)
        ask("greedy", greedy, 1, 0.0, advance)
        ask("sampled", sampled, cfg.samples, cfg.temperature, advance)
    items = [
        _item(
            index,
            problems[index],
            ask.records[("greedy", index)],
            ask.records.get(("sampled", index)),
        )
        for index in greedy
    ]
    return Gsm8kResult(items, summarise(items) | {"few_shot": len(shots) if stage == "base" else 0})


class _Asker:
    """Puts the problems that were not answered before to the engine. records: (phase, problem) -> what is kept of it."""

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        cfg: Gsm8k,
        stage: str,
        shots: Sequence[Problem],
        seed: int,
        kept: Kept,
        stop: Callable[[], bool],
        within: Callable[[str, int, int], None] | None,
    ) -> None:
        self.within = within
        self.engine, self.problems, self.cfg, self.seed = engine, problems, cfg, seed
        self.kept, self.stop_requested = kept, stop
        self.records = {(row["phase"], row["index"]): row for row in kept.rows}
        self.base = stage == "base"
        self.shots = shots
        self.tokenizer = engine.tokenizer
        self.stop = line_ends(self.tokenizer) if self.base else None

    def __call__(
        self,
        phase: str,
        wanted: list[int],
        samples: int,
        temperature: float,
        advance: Callable[[int], None],
    ) -> None:
        todo = [index for index in wanted if (phase, index) not in self.records]
        advance(len(wanted) - len(todo))

        def on_done(place: int, completions: list[Completion]) -> None:
            index = todo[place]
            reference = self.problems[index]["answer"]
            answers = [_answer(self.tokenizer, completion, reference) for completion in completions]
            record = {"phase": phase, "index": index, "answers": answers}
            self.kept.add(record)
            self.records[(phase, index)] = record
            advance(1)

        def on_step(done: int) -> None:
            stop_if(self.stop_requested)
            if self.within is not None:
                self.within(f"{phase} answers", done, len(todo) * samples)

        self.engine.generate(
            [self._prompt(index) for index in todo],
            samples=samples,
            temperature=temperature,
            max_new_tokens=self.cfg.max_new_tokens,
            seed=self.seed,
            rows=self.cfg.rows,
            stop=self.stop,
            tools=not self.base,
            ids=todo,
            on_done=on_done,
            on_step=on_step,
        )

    def _prompt(self, index: int) -> list[int]:
        question = self.problems[index]["question"]
        if not self.base:
            return chat_prompt(self.tokenizer, question)
        room = self.engine.model.config.seq_len - self.cfg.max_new_tokens
        return few_shot_prompt(self.tokenizer, self.shots, question, room)


def is_cut_off(completion: Completion, bos: int) -> bool:
    """Whether an answer ends at a limit, `max_new_tokens` or the end of the context, and not by itself.

    A <|bos|> (`bos`) ends an answer too. Where the question fills the context, the answer has no token at all.

    completion: an answer.
    """
    if completion.finished:
        return False
    return not completion.tokens or completion.tokens[-1] != bos


def _answer(tokenizer: Tokenizer, completion: Completion, reference: str) -> dict[str, object]:
    text = tokenizer.decode(completion.tokens)
    return score(text, reference)._asdict() | {
        "text": text,
        "finished": completion.finished,
        "cut_off": is_cut_off(completion, tokenizer.bos),
        "tokens": len(completion.tokens),
        "tool_calls": completion.tool_calls,
        "well_formed_tool_calls": completion.well_formed_tool_calls,
    }


def _item(
    index: int, problem: Problem, greedy: dict[str, Any], sampled: dict[str, Any] | None
) -> Item:
    answer = greedy["answers"][0]
    samples = sampled["answers"] if sampled else []
    return Item(
        index=index,
        question=problem["question"],
        reference=problem["answer"],
        steps=solution_steps(problem),
        prediction=final_answer(answer["text"]),
        n_samples=len(samples),
        n_correct=sum(sample["correct"] for sample in samples),
        **answer,
    )


def summarise(items: Sequence[Item]) -> dict[str, object]:
    """Summarise answers: accuracy with its 95 % interval, pass@k with standard errors, and shares of their forms.

    formatted, finished, cut_off, tool_calls: shares of greedy answers (with at least one call); well_formed: share of the
    calls that had a value (None without calls); no_room: questions that fill the context by themselves.
    """
    n, correct = len(items), sum(item.correct for item in items)
    low, high = wilson(correct, n)
    calls = sum(item.tool_calls for item in items)
    well_formed_calls = sum(item.well_formed_tool_calls for item in items)
    shares = {
        "formatted": _share([item.formatted for item in items]),
        "finished": _share([item.finished for item in items]),
        "cut_off": _share([item.cut_off for item in items]),
        "tool_calls": _share([item.tool_calls > 0 for item in items]),
        "well_formed": well_formed_calls / calls if calls else None,
        "no_room": sum(item.tokens == 0 for item in items),
    }
    return {
        "accuracy": correct / max(n, 1),
        "ci_low": low,
        "ci_high": high,
        "n": n,
        **_pass_curve(items),
        **shares,
        "by_steps": _by_steps(items),
    }


def _pass_curve(items: Sequence[Item]) -> dict[str, object]:
    drawn = [item for item in items if item.n_samples]
    curve: dict[str, Any] = {"n_sampled": len(drawn), "samples": drawn[0].n_samples if drawn else 0}
    k = 1
    while k <= curve["samples"]:
        mean, stderr = mean_and_stderr(
            [pass_at_k(item.n_samples, item.n_correct, k) for item in drawn]
        )
        curve |= {f"pass_at_{k}": mean, f"pass_at_{k}_stderr": stderr}
        k *= 2
    return curve


def _by_steps(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    groups: dict[int, list[bool]] = {}
    for item in items:
        groups.setdefault(item.steps, []).append(item.correct)
    return {
        str(steps): {"accuracy": _share(group), "n": len(group)}
        for steps, group in sorted(groups.items())
    }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(len(values), 1)


# ---------------------------------------------------------------- what is kept


def _line(record: Mapping[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def write_items(folder: Path, result: Gsm8kResult) -> None:
    """items.parquet: every item; failures.jsonl: wrong ones, to read; samples.json: the first ones; summary.json.

    summary.json comes last. It vouches for itself and for all files of `folder`, prompts.json among them where it is there.

    result: with every item.
    """
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(item) for item in result.items]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows, schema=_schema(pyarrow)),
        folder / "items.parquet",
        write_page_checksum=True,
    )
    failures = [_readable(item) for item in result.items if not item.correct]
    (folder / "failures.jsonl").write_bytes(b"".join(map(_line, failures)))
    samples = [_readable(item) | {"correct": item.correct} for item in result.items[:SAMPLES_SHOWN]]
    (folder / "samples.json").write_text(json.dumps(samples, indent=1) + "\n", encoding="utf-8")
    files = [folder / name for name in SEALED if (folder / name).is_file()]
    summary = sealed_by_files(result.summary, files)
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1) + "\n")


def read_result(folder: Path, advice: str) -> Gsm8kResult:
    """What `write_items` kept. Raises UserError, with `advice`, if it is absent or damaged, or not of one evaluation.

    folder: of an evaluation.
    """
    path = folder / "summary.json"
    summary = read_sealed(path, advice, required=True)
    check_sealed_files(folder, summary, advice)
    summary.pop(FILES, None)
    items = _read_items(folder / "items.parquet", advice)
    expected = summarise(items)
    if {**summary, **expected} != summary:
        raise UserError(f"{path}: damaged: its figures do not follow from items.parquet; {advice}")
    return Gsm8kResult(items, summary)


def _read_items(path: Path, advice: str) -> list[Item]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return [Item(**row) for row in file.read().to_pylist()]
    except (pyarrow.ArrowException, *UNREADABLE, TypeError) as error:
        raise UserError(f"{path}: damaged or missing: {error_text(error)}; {advice}") from None


def _readable(item: Item) -> dict[str, object]:
    return {
        "index": item.index,
        "question": item.question,
        "reference": item.reference,
        "answer": item.text,
        "prediction": item.prediction,
        "expected": final_answer(item.reference),
    }


def _schema(pyarrow: Any) -> object:
    kinds = {
        "int": pyarrow.int64(),
        "str": pyarrow.string(),
        "str | None": pyarrow.string(),
        "bool": pyarrow.bool_(),
    }
    return pyarrow.schema([(name, kinds[str(kind)]) for name, kind in Item.__annotations__.items()])
