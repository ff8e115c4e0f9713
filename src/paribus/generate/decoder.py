"""Rows of answers in progress: prefilled prompts go in, tokens are added side by side, finished answers come out.

Shapes: R rows, P prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paribus.calculator import calculate
from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.generate.sampling import choose, rounds_finely, signed, stream_seed, uniform
from paribus.model.cache import KVCache, PrefixCache
from paribus.model.gpt import GPT
from paribus.model.inference import for_inference

PREFILL_TOKENS = 4096  # of one prefill batch, padding included
# Prompts for so many answers are prefilled at once, where rows are free or soon will be.
PREFILL_ANSWERS = 16


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
    ) -> None:
        self.model, self.tokenizer, self.drawing = model, tokenizer, drawing
        self.prompts, self.streams, self.samples, self.seed = prompts, streams, samples, seed
        self.quick = for_inference(model)
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
        )
        self.jobs: list[tuple[int, int] | None] = [None] * rows
        self.forced: dict[int, deque[int]] = {}  # row -> tokens that must come next
        self.calls: dict[int, _Calls] = {}
        self.active = torch.zeros(rows, dtype=torch.int64, device=device)  # 1 or 0
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)  # the next input
        self.stream = torch.zeros(rows, dtype=torch.int64, device=device)
        self.count = torch.zeros(rows, dtype=torch.int64, device=device)  # tokens produced
        self.limit = torch.zeros(rows, dtype=torch.int64, device=device)
        self.out = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self.free = torch.ones(rows, width, dtype=torch.bool, device=device)  # False: forced
        special = self.tokenizer.special
        self.tool, self.tool_end = special["<|tool|>"], special["<|tool_end|>"]
        self.ends = drawing.stop | {self.tokenizer.bos}
        tools = (self.tool, self.tool_end) if drawing.tools else ()
        completing = _completing(self.tokenizer, self.model.vocab_size, drawing.until)
        # tokens after which the host has to look at the row
        self.eventful = torch.zeros(self.model.vocab_size, dtype=torch.bool, device=device)
        self.eventful[[*self.ends, *tools, *completing]] = True

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
        hidden = self.quick.hidden(self.token[:, None], cache=self.cache)[:, 0]
        logits = self.quick.logits(hidden)
        self.cache.advance(self.active)
        self._record(self._next_tokens(logits))
        events = self.active.bool() & (self.eventful[self.token] | (self.count >= self.limit))
        finished = []
        for row in events.nonzero()[:, 0].tolist():
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
            self.quick.hidden(tokens.to(device), cache=staging, read=anywhere)
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
        self.stream[index] = torch.tensor(seeds, device=device)
        self.token[index] = torch.tensor(first_inputs, device=device)
        self.limit[index] = torch.tensor(limits, device=device)
        self.count[index], self.active[index], self.free[index] = 0, 1, True
        for row, prompt, sample in zip(rows, prompts, samples, strict=True):
            self.jobs[row] = (prompt, sample)
            self.calls[row] = _Calls()

    def _compact(self) -> None:
        """Near the end, when nothing is left to refill with, drop the idle rows once they are a quarter."""
        rows = [row for row, job in enumerate(self.jobs) if job is not None]
        if self.pending or self.staged or len(rows) > 0.75 * len(self.jobs):
            return
        index = torch.tensor(rows, device=self.model.device)
        self.cache.keep(index)
        for name in ("active", "token", "stream", "count", "limit", "out", "free"):
            setattr(self, name, getattr(self, name)[index])
        place = {row: new for new, row in enumerate(rows)}
        self.jobs = [self.jobs[row] for row in rows]
        self.forced = {place[row]: tokens for row, tokens in self.forced.items()}
        self.calls = {place[row]: calls for row, calls in self.calls.items()}

    # ------------------------------------------------------------ one token

    def _next_tokens(self, logits: Tensor) -> Tensor:
        """(R, V) -> (R,): chosen, or forced. Raises UserError if the model is broken."""
        if not logits[:, 0].isfinite().all():
            raise UserError(
                "generation: the model's logits are not finite; its training diverged: "
                "use an earlier checkpoint, or lower the learning rate and train again"
            )
        first = 2 * self.count[:, None]
        counters = torch.cat([first, first + 1], dim=1)
        uniforms = uniform(self.stream[:, None], counters)
        tokens, close = choose(logits, uniforms, self.drawing.temperature, self.drawing.top_k)
        if self.exact:
            self._decide_close_calls(tokens, close, uniforms)
        for row, forced in list(self.forced.items()):
            tokens[row] = forced.popleft()
            self.free[row, self.count[row]] = False
            if not forced:
                del self.forced[row]
        return tokens

    def _decide_close_calls(self, tokens: Tensor, close: Tensor, uniforms: Tensor) -> None:
        """Choose `tokens` (R,) again where `close` (R,), unless they are forced."""
        for row in (close & self.active.bool()).nonzero()[:, 0].tolist():
            if row not in self.forced:
                tokens[row] = self._decide(row, uniforms[row])

    def _decide(self, row: int, point: Tensor) -> Tensor:
        """The next token of one row, from a forward pass of that row alone. point (2,): its uniform numbers."""
        prompt, _ = self._job(row)
        sequence = [*self.prompts[prompt], *self.out[row, : self.count[row]].tolist()]
        hidden = self.model.hidden(torch.tensor([sequence], device=self.model.device))[:, -1]
        logits = self.model.logits(hidden)
        tokens, _ = choose(logits, point[None], self.drawing.temperature, self.drawing.top_k)
        return tokens[0]

    def _record(self, tokens: Tensor) -> None:
        place = self.count.clamp(max=self.out.shape[1] - 1)[:, None]  # an idle row may be full
        self.out.scatter_(1, place, tokens[:, None])
        self.count += self.active
        self.token = tokens

    def _event(self, row: int) -> tuple[int, int, Completion] | None:
        """React to a special token or the limit; the answer, if the row's is done."""
        token, count = int(self.token[row]), int(self.count[row])
        complete = bool(self.drawing.until) and self._until(row)
        if complete or token in self.ends or count >= int(self.limit[row]):
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
            expression = self.tokenizer.decode(self.out[row, calls.start : count - 1].tolist())
            result = calculate(expression)
            calls.start = None
            calls.well_formed += result is not None
            special = self.tokenizer.special
            opening, closing = special["<|result|>"], special["<|result_end|>"]
            self.forced[row] = deque([opening, *self.tokenizer.encode(result or ""), closing])

    def _until(self, row: int) -> bool:
        """Whether this answer contains a text that ends answers."""
        text = self.tokenizer.decode(self.out[row, : self.count[row]].tolist())
        return any(ending in text for ending in self.drawing.until)

    def _finish(self, row: int, finished: bool) -> tuple[int, int, Completion]:
        prompt, sample = self._job(row)
        count, calls = int(self.count[row]), self.calls.pop(row)
        completion = Completion(
            self.out[row, :count].tolist(),
            self.free[row, :count].tolist(),
            finished,
            calls.opened,
            calls.well_formed,
        )
        self.jobs[row] = None
        self.forced.pop(row, None)
        self.active[row] = 0
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
