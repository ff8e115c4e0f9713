"""Rows of answers in progress: prefilled prompts go in, tokens are added side by side, finished answers come out.

Shapes: R rows, P prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from paribus.calculator import calculate
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.generate.graphs import Graphs
from paribus.generate.sampling import choose, rounds_finely, signed, stream_seed
from paribus.generate.step import FREE, Rows, Step, eventful_tokens
from paribus.model.cache import KVCache, PrefixCache
from paribus.model.gpt import GPT
from paribus.model.inference import for_inference

PREFILL_TOKENS = 4096  # of one prefill batch, padding included
# Prompts for so many answers are prefilled at once, where rows are free or soon will be.
PREFILL_ANSWERS = 16
# Idle rows are dropped once so few are busy: a step of fixed sizes is captured anew for every number of rows.
BUSY, BUSY_OF_FIXED = 0.75, 0.5

# Sizes of a step: as long as its answers; rounded up to a few; and those replayed as CUDA graphs.
Sizes = Literal["exact", "rounded", "graphs"]


@dataclass(frozen=True)
class Completion:
    """One answer: all that follows the prompt."""

    tokens: list[int]  # forced ones and the stop token included
    sampled: list[bool]  # False where the token was forced (a tool's result)
    finished: bool  # ended by a stop token, not by a limit
    tool_calls: int  # calls opened
    well_formed_tool_calls: int  # of those, closed with an expression that has a value


@dataclass(frozen=True)
class Drawing:
    """How tokens are chosen and when an answer ends."""

    max_new_tokens: int
    temperature: float
    top_k: int
    stop: frozenset[int]
    tools: bool
    until: tuple[str, ...] = ()


class Decoder:
    """Rows of answers in progress, and the queue of those to come."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        streams: Sequence[int],
        samples: int,
        drawing: Drawing,
        seed: int,
        rows: int,
        sizes: Sizes,
    ) -> None:
        self.model, self.tokenizer, self.drawing = model, tokenizer, drawing
        self.prompts, self.streams, self.samples, self.seed = prompts, streams, samples, seed
        self.exact = rounds_finely(self.model.compute_dtype, self.model.device.type)
        device, context = self.model.device, self.model.config.seq_len
        self.room = [
            max(min(drawing.max_new_tokens, context - len(prompt)), 0) for prompt in prompts
        ]
        # likely the longest answers first
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        self.pending = deque(index for index in order if self.room[index])
        self.without_room = [index for index in order if not self.room[index]]
        # prompt, sample, slot of the prompt: prefilled
        self.staged: deque[tuple[int, int, int]] = deque()
        slots = min(2 * -(-rows // samples) + PREFILL_ANSWERS, len(prompts))
        self.free_slots = list(range(slots))
        self.slot_answers: dict[int, int] = {}  # slot in use -> answers still to be finished
        width = max(self.room, default=0) or 1
        self.cache = PrefixCache(
            self.model.config,
            rows,
            slots,
            samples,
            prompt_capacity=max(map(len, prompts), default=1),
            own_capacity=width,
            device=device,
            dtype=self.model.compute_dtype,
            rounded=sizes != "exact",
        )
        self.jobs: list[tuple[int, int] | None] = [None] * rows
        self.forced: dict[int, deque[int]] = {}  # row -> tokens that must come next
        self.told = [FREE] * rows  # of each row, what the device knows of it
        self.calls: dict[int, _Calls] = {}
        self.rows = Rows(rows, width, device)
        self.least_busy = BUSY if sizes == "exact" else BUSY_OF_FIXED
        special = self.tokenizer.special
        self.tool, self.tool_end = special["<|tool|>"], special["<|tool_end|>"]
        self.ends = drawing.stop | {self.tokenizer.bos}
        tools = (self.tool, self.tool_end) if drawing.tools else ()
        completing = _completing(self.tokenizer, self.model.vocab_size, drawing.until)
        self.add_token = Step(
            for_inference(model),
            self.cache,
            self.rows,
            eventful_tokens(self.model.vocab_size, [*self.ends, *tools, *completing], device),
            drawing.temperature,
            drawing.top_k,
        )
        self.graphs = Graphs(self.add_token) if sizes == "graphs" else None

    def run(
        self, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, int, Completion]]:
        """(prompt, sample, answer) of each answer when it is done. on_step: as in `Engine.generate`."""
        for prompt in self.without_room:
            for sample in range(self.samples):
                yield prompt, sample, Completion([], [], False, 0, 0)
        done = len(self.without_room) * self.samples
        while self.busy():
            if on_step is not None:
                on_step(done)
            finished = self.step()
            done += len(finished)
            yield from finished

    def busy(self) -> bool:
        """Whether any answer is unfinished."""
        return bool(self.pending or self.staged or any(job is not None for job in self.jobs))

    def step(self) -> list[tuple[int, int, Completion]]:
        """Add one token to every active row; returns the answers that it finished."""
        self._refill()
        self._compact()
        self._tell_forced()
        if self.graphs is None:
            self.add_token()
        else:
            self.graphs.take((len(self.jobs), self.cache.reach()))
        self.cache.extend()
        finished = []
        for row in self._rows_with_news():
            answer = self._event(row)
            if answer is not None:
                finished.append(answer)
        return finished

    # ------------------------------------------------------------ rows come and go

    def _refill(self) -> None:
        """Give idle rows the next answers, prefilling their prompts where none are staged."""
        if not self.pending and not self.staged:
            return
        idle = [row for row, job in enumerate(self.jobs) if job is None]
        while idle:
            if not self.staged and self.pending and self.free_slots:
                self._prefill(len(idle))
            if not self.staged:
                return
            rows, idle = idle[: len(self.staged)], idle[len(self.staged) :]
            self._admit(rows, [self.staged.popleft() for _ in rows])

    def _prefill(self, wanted: int) -> None:
        """Stage the next prompts, for about `wanted` answers. Their last tokens are the rows' first inputs."""
        longest = len(self.prompts[self.pending[0]])
        for_wanted = -(-max(wanted, PREFILL_ANSWERS) // self.samples)
        count = min(
            for_wanted,
            max(PREFILL_TOKENS // longest, 1),
            len(self.free_slots),
            len(self.pending),
        )
        batch = [self.pending.popleft() for _ in range(count)]
        slots = self.free_slots[:count]
        self.free_slots = self.free_slots[count:]
        device, config = self.model.device, self.model.config
        staging = KVCache(config, count, max(longest - 1, 1), device, self.model.compute_dtype)
        if longest > 1:
            tokens = torch.tensor([_pad(self.prompts[index][:-1], longest - 1) for index in batch])
            lengths = [len(self.prompts[index]) - 1 for index in batch]
            anywhere = torch.zeros(count, 1, dtype=torch.int64, device=device)
            # only keys and values are wanted
            self.add_token.model.hidden(tokens.to(device), cache=staging, read=anywhere)
            staging.advance(torch.tensor(lengths, device=device))
        self.cache.store(torch.tensor(slots, device=device), staging)
        self.slot_answers |= dict.fromkeys(slots, self.samples)
        for index, slot in zip(batch, slots, strict=True):
            self.staged.extend((index, sample, slot) for sample in range(self.samples))

    def _admit(self, rows: list[int], staged: list[tuple[int, int, int]]) -> None:
        """Start staged answers in rows. staged: (prompt, sample, slot of the prompt) of each."""
        prompts, samples, slots = zip(*staged, strict=True)
        device = self.model.device
        index = torch.tensor(rows, device=device)
        self.cache.assign(
            index, torch.tensor(slots, device=device), torch.tensor(samples, device=device)
        )
        self.cache.slots_used = 1 + max(self.slot_answers)
        seeds = []
        for prompt, sample in zip(prompts, samples, strict=True):
            seeds.append(signed(stream_seed(self.seed, self.streams[prompt], sample)))
        first_inputs = [self.prompts[prompt][-1] for prompt in prompts]
        limits = [self.room[prompt] for prompt in prompts]
        self.rows.stream[index] = torch.tensor(seeds, device=device)
        self.rows.token[index] = torch.tensor(first_inputs, device=device)
        self.rows.limit[index] = torch.tensor(limits, device=device)
        self.rows.count[index], self.rows.active[index], self.rows.free[index] = 0, 1, True
        for row, prompt, sample in zip(rows, prompts, samples, strict=True):
            self.jobs[row] = (prompt, sample)
            self.calls[row] = _Calls()

    def _compact(self) -> None:
        """Near the end, when nothing is left to refill with, drop the idle rows once they are many."""
        rows = [row for row, job in enumerate(self.jobs) if job is not None]
        if self.pending or self.staged or len(rows) > self.least_busy * len(self.jobs):
            return
        index = torch.tensor(rows, device=self.model.device)
        self.cache.keep(index)
        self.rows.keep(index)
        if self.graphs is not None:
            self.graphs.forget()
        place = {row: new for new, row in enumerate(rows)}
        self.jobs = [self.jobs[row] for row in rows]
        self.forced = {place[row]: tokens for row, tokens in self.forced.items()}
        self.calls = {place[row]: calls for row, calls in self.calls.items()}

    # ------------------------------------------------------------ one token

    def _tell_forced(self) -> None:
        """Let the device know which tokens must come next."""
        wanted = [FREE] * len(self.jobs)
        for row, tokens in list(self.forced.items()):
            wanted[row] = tokens.popleft()
            if not tokens:
                del self.forced[row]
        if wanted != self.told:
            self.rows.forced.copy_(torch.tensor(wanted))
            self.told = wanted

    def _rows_with_news(self) -> list[int]:
        """Rows to look at after a step: here the host waits for it. Raises UserError if the model is broken."""
        rows = []
        for row, (eventful, close, broken) in enumerate(self.rows.news.tolist()):
            if broken:
                raise UserError(
                    "generation: the model's logits are not finite; its training diverged: "
                    "use an earlier checkpoint, or lower the learning rate and train again"
                )
            if close and self.exact:
                self._decide_alone(row)
            if eventful or (close and self.exact):
                rows.append(row)
        return rows

    def _decide_alone(self, row: int) -> None:
        """Choose the last token of one row again, from a forward pass of that row alone."""
        prompt, _ = self._job(row)
        before = self.rows.count[row : row + 1] - 1
        answer = self.rows.out[row, : int(before)].tolist()
        sequence = torch.tensor([[*self.prompts[prompt], *answer]], device=self.model.device)
        logits = self.model.logits(self.model.hidden(sequence)[:, -1])
        uniforms = self.rows.uniforms(slice(row, row + 1), before)
        token, _ = choose(logits, uniforms, self.drawing.temperature, self.drawing.top_k)
        self.rows.token[row] = token[0]
        self.rows.out[row, before] = token

    def _event(self, row: int) -> tuple[int, int, Completion] | None:
        """React to a special token or the limit; the answer, if the row's is done."""
        token, count = int(self.rows.token[row]), int(self.rows.count[row])
        complete = bool(self.drawing.until) and self._until(row)
        if complete or token in self.ends or count >= int(self.rows.limit[row]):
            return self._finish(row, complete or token in self.drawing.stop)
        if self.drawing.tools:
            self._follow_call(row, token, count)
        return None

    def _follow_call(self, row: int, token: int, count: int) -> None:
        """Note the start of a tool call; at its end compute the result and force it into the stream."""
        calls = self.calls[row]
        if token == self.tool:
            calls.opened += 1
            calls.start = count
        elif token == self.tool_end and calls.start is not None:
            expression = self.tokenizer.decode(self.rows.out[row, calls.start : count - 1].tolist())
            result = calculate(expression)
            calls.start = None
            calls.well_formed += result is not None
            special = self.tokenizer.special
            opening, closing = special["<|result|>"], special["<|result_end|>"]
            self.forced[row] = deque([opening, *self.tokenizer.encode(result or ""), closing])

    def _until(self, row: int) -> bool:
        """Whether this answer contains a text that ends answers."""
        text = self.tokenizer.decode(self.rows.out[row, : self.rows.count[row]].tolist())
        return any(ending in text for ending in self.drawing.until)

    def _finish(self, row: int, finished: bool) -> tuple[int, int, Completion]:
        prompt, sample = self._job(row)
        count, calls = int(self.rows.count[row]), self.calls.pop(row)
        completion = Completion(
            self.rows.out[row, :count].tolist(),
            self.rows.free[row, :count].tolist(),
            finished,
            calls.opened,
            calls.well_formed,
        )
        self.jobs[row] = None
        self.forced.pop(row, None)
        self.rows.active[row] = 0
        self._leave(row)
        return prompt, sample, completion

    def _leave(self, row: int) -> None:
        """Free the row, and its prompt's slot with the last answer to it."""
        slot = int(self.cache.slot[row])
        self.cache.release(row)
        self.slot_answers[slot] -= 1
        if not self.slot_answers[slot]:
            del self.slot_answers[slot]
            self.cache.free_slot(slot)
            self.free_slots = sorted([*self.free_slots, slot])
            self.cache.slots_used = 1 + max(self.slot_answers, default=0)

    def _job(self, row: int) -> tuple[int, int]:
        job = self.jobs[row]
        assert job is not None, f"row {row} is idle"
        return job


@dataclass
class _Calls:
    """Tool calls of one answer."""

    opened: int = 0
    well_formed: int = 0
    start: int | None = None  # where the open call's expression begins


def _completing(tokenizer: Tokenizer, vocab_size: int, until: Sequence[str]) -> list[int]:
    """Tokens that may complete one of the texts: they hold the last character of it, or a part of some character."""
    if not until:
        return []
    last = {text[-1] for text in until} | {"\ufffd"}
    return [token for token in range(vocab_size) if last & set(tokenizer.decode([token]))]


def _pad(tokens: Sequence[int], length: int) -> list[int]:
    return [*tokens, *[0] * (length - len(tokens))]
