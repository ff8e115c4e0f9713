"""Any task of lm-evaluation-harness on a paribus checkpoint. The only import of lm_eval.

Three kinds of request, as the harness defines them: the log-likelihood of a continuation, of a whole text (rolling),
and a greedy or sampled generation up to a stop text. They are answered in batches by the code that scores CORE and by
the engine, so that the figures are the native ones. Every text is read behind <|bos|>, as in training.

Log-likelihoods are sums in nats.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.evaluate.core_scores import (
    CPU_TOKENS,
    Scores,
    Unit,
    batches,
    score_units,
    units_of,
)
from paribus.evaluate.kept import Kept, never, stop_if
from paribus.generate import Completion, Engine, Sizes, open_checkpoint
from paribus.model.gpt import GPT

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

MODEL = "paribus"  # its name among lm_eval's models
# draws behind a standard error that has no formula; lm_eval's 100,000 take minutes
BOOTSTRAP = 1000
MAX_NEW_TOKENS = 256  # of a generation whose task sets none: lm_eval's own default
# names of it, the first counts
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN = {*LENGTHS, "until", "do_sample", "temperature", "top_k"}  # of a task's generation_kwargs

Score = tuple[float, bool]  # log-likelihood, every token the likeliest
OnProgress = Callable[[str, int, int], None]  # kind of request, done, of how many


# ---------------------------------------------------------------- answering requests


@dataclass(frozen=True)
class Responder:
    """Answers requests with a model.

    batch_size: rows of one forward pass; it changes nothing but rounding. kept: takes answers as they come, and has
    those of an earlier start. stop(): asked between forward passes; where it says yes Stopped is raised. sizes: of a step of
    decoding, as in `Engine`.
    """

    model: GPT
    tokenizer: Tokenizer
    batch_size: int
    seed: int = 0
    on_progress: OnProgress | None = None
    kept: Kept = field(default_factory=lambda: Kept(None, ""))
    stop: Callable[[], bool] = never
    sizes: Sizes = "exact"

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Of each (context, continuation); white space that ends the context counts to the continuation."""
        encode = self.tokenizer.encode_batch
        wholes = encode([context + continuation for context, continuation in pairs])
        contexts = encode([context.rstrip() for context, _ in pairs])
        starts = []
        for context, whole in zip(contexts, wholes, strict=True):
            # Where the tokenizer merges across the seam, the token that it merged is the continuation's.
            start = min(len(context), len(whole) - 1)
            starts.append(max(start, 0) + 1)  # behind <|bos|>
        sequences = [[self.tokenizer.bos, *whole] for whole in wholes]
        return self._score(sequences, starts, "loglikelihood")

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each whole text.

        A text longer than the context is cut into windows. Each token is predicted once, those of the last window with as much
        before them as fits.
        """
        tokens = [[self.tokenizer.bos, *ids] for ids in self.tokenizer.encode_batch(list(texts))]
        return [total for total, _ in self._score(tokens, [1] * len(tokens), "rolling")]

    @torch.inference_mode()
    def _score(self, sequences: list[list[int]], starts: list[int], kind: str) -> list[Score]:
        """Of the tokens of each sequence from its start on. kind: of request, for `on_progress`."""
        limit = self.model.config.seq_len
        parts = []
        for tokens, start in zip(sequences, starts, strict=True):
            parts.append(list(windows(tokens, start, limit)))
        # Windows that share what comes before (a question's options) share one cached copy of it.
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for owner, windows_of in enumerate(parts):
            for place, (tokens, first) in enumerate(windows_of):
                groups.setdefault(tuple(tokens[:first]), []).append((owner, place))
        members_of = list(groups.values())
        options = [[parts[owner][place] for owner, place in members] for members in members_of]
        units: list[Unit] = []
        for number, group in enumerate(options):
            units += units_of(number, group, limit + 1)
        room = CPU_TOKENS if self.model.device.type == "cpu" else self.batch_size * limit
        totals = [0.0] * len(sequences)
        greedy = [True] * len(sequences)
        done, total = 0, sum(map(len, parts))
        known = self._known("scores")
        for batch in batches(units, self.batch_size, room, limit):
            for (number, option), (mean, hit) in self._scores_of(batch, options, known).items():
                owner, place = members_of[number][option]
                tokens, first = parts[owner][place]
                totals[owner] -= mean * (len(tokens) - first)
                greedy[owner] &= hit
                done += 1
            self._progress(kind, done, total)
        return list(zip(totals, greedy, strict=True))

    def _scores_of(
        self,
        batch: list[Unit],
        options: list[list[tuple[list[int], int]]],
        known: dict[str, Any],
    ) -> Scores:
        """Scores of the units of a forward pass, which is left out where an earlier start kept them."""
        names = {}
        for unit in batch:
            for option, _ in unit.tails:
                names[(unit.item, option)] = _name(options[unit.item][option])
        if all(name in known for name in names.values()):
            return {owner: (known[name][0], known[name][1]) for owner, name in names.items()}
        stop_if(self.stop)
        scores = score_units(self.model, batch)
        self.kept.add({"scores": {names[owner]: score for owner, score in scores.items()}})
        return scores

    def _known(self, kind: str) -> dict[str, Any]:
        """What an earlier start kept of a kind, by the name of what was asked."""
        known: dict[str, object] = {}
        for row in self.kept.rows:
            known |= row.get(kind, {})
        return known

    def generate(self, requests: Sequence[tuple[str, Mapping[str, object]]]) -> list[str]:
        """The text after each (context, generation_kwargs), up to a stop text.

        A context that is too long loses its beginning. Requests with the same settings run side by side.
        """
        groups: dict[_Generation, list[int]] = {}
        for index, (_, kwargs) in enumerate(requests):
            groups.setdefault(_generation(kwargs), []).append(index)
        answers: dict[int, str] = {}
        for settings, members in groups.items():
            length = settings.max_new_tokens
            prompts = [self._prompt(requests[index][0], length) for index in members]
            texts = self._complete(prompts, members, settings, len(answers), len(requests))
            answers |= zip(members, texts, strict=True)
        return [answers[index] for index in range(len(requests))]

    def _complete(
        self, prompts: list[list[int]], ids: list[int], settings: _Generation, done: int, total: int
    ) -> list[str]:
        """The texts after prompts with the same settings.

        ids: their numbers among all `total` requests, of which `done` are answered.
        """
        numbered = zip(prompts, ids, strict=True)
        names = [_name((prompt, index, settings)) for prompt, index in numbered]
        tokens: dict[str, list[int]] = self._known("tokens")
        todo = [place for place, name in enumerate(names) if name not in tokens]
        before = done + len(prompts) - len(todo)

        def keep(place: int, answers: list[Completion]) -> None:
            name = names[todo[place]]
            tokens[name] = answers[0].tokens
            self.kept.add({"tokens": {name: answers[0].tokens}})

        Engine(self.model, self.tokenizer, self.sizes).generate(
            [prompts[place] for place in todo],
            ids=[ids[place] for place in todo],
            rows=self.batch_size,
            tools=False,
            seed=self.seed,
            **dataclasses.asdict(settings),
            on_done=keep,
            on_progress=lambda some, _: self._progress("generation", before + some, total),
            on_step=lambda _: stop_if(self.stop),
        )
        return [self._text(tokens[name], settings.until) for name in names]

    def _text(self, tokens: list[int], until: tuple[str, ...]) -> str:
        """The text of tokens, special ones left out, up to the first of the texts `until`."""
        special = set(self.tokenizer.special.values())
        text = self.tokenizer.decode(token for token in tokens if token not in special)
        ends = [text.find(stop) for stop in until if stop in text]
        return text[: min(ends, default=len(text))]

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        """At least half of the model's context is the prompt's."""
        limit = self.model.config.seq_len
        room = limit - min(new_tokens, limit // 2) - 1
        return [self.tokenizer.bos, *self.tokenizer.encode(context)[-room:]]

    def _progress(self, kind: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(kind, done, total)


def _name(asked: object) -> str:
    """Names what was asked, by its content."""
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:24]


def windows(tokens: list[int], start: int, limit: int) -> Iterator[tuple[list[int], int]]:
    """(tokens, first to score) for inputs of at most `limit` tokens that together score tokens[start:], each once."""
    for first in range(start, len(tokens), limit):
        end = min(first + limit, len(tokens))
        begin = max(end - limit - 1, 0)
        yield tokens[begin:end], first - begin


@dataclass(frozen=True)
class _Generation:
    """A task's generation_kwargs, named as `Engine.generate` does."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_k: int


def _generation(kwargs: Mapping[str, Any]) -> _Generation:
    """A task's generation_kwargs in the engine's terms. Raises UserError for what the engine cannot do."""
    _refuse_unknown(kwargs)
    lengths = [int(kwargs[name]) for name in LENGTHS if kwargs.get(name) is not None]
    until = kwargs.get("until") or []
    texts = [until] if isinstance(until, str) else until
    greedy = kwargs.get("do_sample") is False
    temperature = 0.0 if greedy else float(kwargs.get("temperature") or 0.0)
    return _Generation(
        until=tuple(text for text in texts if text),
        max_new_tokens=lengths[0] if lengths else MAX_NEW_TOKENS,
        temperature=temperature,
        top_k=int(kwargs.get("top_k") or 0),
    )


def _refuse_unknown(kwargs: Mapping[str, object]) -> None:
    """Raises UserError for every one of a task's generation_kwargs that the engine does not have."""
    known = set(KNOWN)
    if kwargs.get("top_p") in (None, 1, 1.0):
        known.add("top_p")  # all of the distribution
    unknown = [key for key in kwargs if key not in known]
    if unknown:
        there_are = ", ".join(sorted(KNOWN))
        raise UserError(
            f"generation_kwargs: {key}: {kwargs[key]!r} is not supported; there are: {there_are}"
            for key in unknown
        )


# ---------------------------------------------------------------- the harness


@functools.cache
def register() -> type:
    """Make paribus a model of lm_eval, by the name of MODEL; returns the class."""
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model

    @register_model(MODEL)
    class Paribus(LM):  # type: ignore[misc]
        """model_args: checkpoint (a folder), device, dtype, graphs, seed, on_progress, kept, stop."""

        tokenizer_name = MODEL

        def __init__(
            self,
            checkpoint: str,
            batch_size: int = 16,
            device: str = "cpu",
            dtype: str = "float32",
            graphs: bool = False,
            seed: int = 0,
            on_progress: OnProgress | None = None,
            kept: Kept | None = None,
            stop: Callable[[], bool] = never,
            max_batch_size: int | None = None,
        ) -> None:
            super().__init__()
            engine = open_checkpoint(Path(checkpoint), device, dtype, graphs=graphs)
            self.responder = Responder(
                engine.model,
                engine.tokenizer,
                int(batch_size),
                seed,
                on_progress,
                kept or Kept(None, ""),
                stop,
                engine.sizes,
            )

        def loglikelihood(self, requests: list[Any]) -> list[Score]:
            return self.responder.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return self.responder.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return self.responder.generate([request.args for request in requests])

    return Paribus


def evaluate_tasks(
    checkpoint: Path,
    tasks: Sequence[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    graphs: bool = False,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    kept: Kept | None = None,
    stop: Callable[[], bool] = never,
) -> dict[str, object]:
    """Run tasks, groups or tags through lm_eval's `simple_evaluate`: its results, plain JSON values, without samples.

    include_path: a folder of task files (YAML), whose names go before lm_eval's own. limit: items of each task.
    num_fewshot: for tasks that do not fix theirs to 0. kept: answers of an earlier start, and where these go.
    stop(): asked between forward passes; where it says yes Stopped is raised. Raises UserError for tasks that do
    not exist, or whose data are missing. checkpoint: its folder. device, dtype: of forward passes. graphs:
    `train.decode_graphs`. batch_size: most rows of one. seed: of lm_eval. on_progress: called after every forward pass.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # its bars, read on import: there is one of ours
    from lm_eval import simple_evaluate

    register()
    manager = task_manager(tasks, include_path)
    arguments = {
        "checkpoint": str(checkpoint),
        "device": device,
        "dtype": dtype,
        "graphs": graphs,
        "seed": seed,
        "on_progress": on_progress,
        "kept": kept,
        "stop": stop,
    }
    try:
        found = simple_evaluate(
            model=MODEL,
            model_args=arguments,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            batch_size=batch_size,
            log_samples=False,
            bootstrap_iters=BOOTSTRAP,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except OSError as error:  # datasets' own errors for what is not there or out of reach
        cause = " ".join(str(error).split())[:300]
        raise UserError(
            f"lm_eval: the data of {', '.join(tasks)} are unavailable: {cause}"
        ) from None
    except UserError:
        raise
    except Exception as error:
        if _is_our_own(error):
            raise
        cause = " ".join(str(error).split())[:300]
        raise UserError(
            f"lm_eval: {', '.join(tasks)}: the task cannot be asked as its file says: "
            f"{type(error).__name__}: {cause}"
        ) from None
    wanted = ("results", "groups", "n-samples", "n-shot", "versions", "higher_is_better")
    figures: dict[str, object] = json.loads(
        json.dumps({name: found[name] for name in wanted if name in found}, default=str)
    )
    return figures


def _is_our_own(error: Exception) -> bool:
    """Whether an error that went through lm_eval comes from paribus: what a task's file is wrong in does not."""
    own = str(Path(__file__).parent.parent)
    below = error.__traceback__.tb_next if error.__traceback__ else None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(below)]
    return any(file.startswith(own) for file in files)


def task_manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """An index in which every task is; lm_eval's own tasks, whose index takes seconds, only where they are needed.

    include_path: a folder of task files; None: there is none.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path}: no such folder")
    own = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if own is not None and all(name in own.all_tasks for name in tasks):
        return own
    manager = TaskManager(include_path=include_path)
    if problems := unknown_tasks(tasks, manager.all_tasks):
        raise UserError([*problems, *_broken_files(include_path)])
    return manager


def _broken_files(folder: Path | None) -> list[str]:
    """A line on each task file that is no YAML: lm_eval passes over it."""
    import yaml

    problems = []
    for path in sorted(folder.rglob("*.yaml")) if folder else ():
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            problems.append(f"{path}: not YAML: {reason:.200}")
    return problems


def unknown_tasks(tasks: Sequence[str], known: Sequence[str]) -> list[str]:
    """A line for people on each task that is not known, with the nearest names.

    tasks: names that were asked for.
    """
    problems = []
    for name in tasks:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            advice = (
                f"did you mean {', '.join(near)}?"
                if near
                else f"there are {len(known):,}; --include-path adds your own"
            )
            problems.append(f"--tasks: no task {name!r}; {advice}")
    return problems


def rows_of(found: dict[str, Any]) -> list[dict[str, object]]:
    """Results of `evaluate_tasks` as rows {task, filter, metric, value, stderr (None: unknown), n, shots}, groups last."""
    rows = []
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "task": task,
                    "filter": kind,
                    "metric": metric,
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "n": found["n-samples"].get(task, {}).get("effective"),
                    "shots": found["n-shot"].get(task),
                }
            )
    return rows
