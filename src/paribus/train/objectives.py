"""What one optimiser step learns from: the only difference between pretraining, midtraining, SFT and RL.

Every objective reduces to the same thing, a weighted cross-entropy: weight 1 on next tokens (pretraining), 1 on
what the assistant says (conversations), and the advantage on sampled tokens (policy gradient).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from paribus.config import Batches, flatten
from paribus.data.loader import Batch
from paribus.train.within import Abandoned

if TYPE_CHECKING:
    from paribus.train.rollout import Rollout


CHUNK_ROWS = 4_096  # read at once: a step with more reports its progress


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, all (B, T); targets of -1 are not learned."""

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None = None
    weights: Tensor | None = None
    terms: Mapping[str, float] = field(
        default_factory=dict
    )  # of the loss, besides the plain cross-entropy

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the order of the model's forward pass."""
        return self.tokens, self.targets, self.documents, self.weights


@dataclass(frozen=True)
class Work:
    """This rank's share of one optimiser step."""

    micro_batches: list[MicroBatch]
    normaliser: float  # what the summed loss is divided by; ranks add theirs up
    tokens: int  # tokens that went through the model; ranks add theirs up
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Making:
    """How far the rows of the step that is being prepared are; the loop may call it off."""

    done: int = 0
    total: int = 0
    called_off: threading.Event = field(default_factory=threading.Event)


class Objective(Protocol):
    """`work(step)` must depend on (seed, step) and, if not `pure`, on the weights; never on ranks or restarts."""

    pure: bool  # may be prepared ahead of time, in another thread
    ragged: bool  # micro-batches differ in size
    dropout: bool  # whether it learns with the model's dropout
    making: Making

    def work(self, step: int) -> Work:
        """This rank's share of a step, from 0."""


class Loader(Protocol):
    """Rows of text by step."""

    def batch(self, step: int, rows: range, batch_rows: int) -> Batch:
        """The rows `rows` of the `batch_rows` of a step."""


@dataclass(frozen=True)
class ShortRows:
    """The first `steps` steps of a run, whose rows are cut into rows of `length` tokens."""

    steps: int
    length: int

    def cut(self, rows: Tensor) -> Tensor:
        """(B, T) -> (B x T / length, length): the same tokens in the same order, each row without a past."""
        return rows.reshape(-1, self.length)


class NextToken:
    """Cross-entropy on what a loader marks as learned: pretraining, midtraining and SFT."""

    pure = True
    dropout = True

    def __init__(
        self,
        loader: Loader,
        batch_rows: int,
        device_batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        terms: Mapping[str, float] | None = None,
        short: ShortRows | None = None,
        batches: Batches | None = None,
    ) -> None:
        """batch_rows: of a step, all ranks together. device_batch_size: most rows of a forward pass.

        terms: of the loss, besides the plain cross-entropy: arguments of `GPT.forward`. short: steps with shorter rows.
        batches: the rows of every step, where they differ, in place of batch_rows.
        """
        self.loader, self.batch_rows, self.device_batch_size = loader, batch_rows, device_batch_size
        self.terms, self.short, self.batches = terms or {}, short, batches
        self.ragged = short is not None or batches is not None
        self.rank, self.ranks = rank, ranks
        self.making = Making()

    def work(self, step: int) -> Work:
        """This rank's rows of the batch of `step`, cut into micro-batches.

        The normaliser is the number of learned tokens. A rank without rows (more ranks than rows) has nothing to do.
        """
        batch = self._batch(step)
        if batch is None:  # more ranks than rows
            return Work([], 0.0, 0)
        micro_batches = []
        for part in _parts(len(batch.inputs), self.device_batch_size):
            documents = None if batch.documents is None else batch.documents[part]
            inputs, targets = batch.inputs[part], batch.targets[part]
            if self.short is not None and step < self.short.steps:
                inputs, targets = self.short.cut(inputs), self.short.cut(targets)
            micro_batches.append(MicroBatch(inputs, targets, documents, terms=self.terms))
        learned = float((batch.targets >= 0).sum())
        return Work(micro_batches, learned, batch.inputs.numel())

    def _batch(self, step: int) -> Batch | None:
        """This rank's rows of the step, if it has any. Raises Abandoned where it was called off."""
        rows = range(self.rank, self.batch_rows, self.ranks)
        if (
            self.batches is not None
        ):  # all steps are one batch, so that rows count on from step to step
            first, stop = self.batches.before(step), self.batches.before(step + 1)
            step, rows = 0, range(first + self.rank, stop, self.ranks)
        if not rows:
            return None
        self.making.done, self.making.total = 0, len(rows)
        chunks: list[Batch] = []
        for part in _parts(len(rows), CHUNK_ROWS):
            if self.making.called_off.is_set():
                raise Abandoned
            chunks.append(self.loader.batch(step, rows[part], self.batch_rows))
            self.making.done += len(chunks[-1].inputs)
        if len(chunks) == 1:
            return chunks[0]
        documents = [chunk.documents for chunk in chunks if chunk.documents is not None]
        return Batch(
            torch.cat([chunk.inputs for chunk in chunks]),
            torch.cat([chunk.targets for chunk in chunks]),
            torch.cat(documents) if documents else None,
        )


class PolicyGradient:
    """-sum(advantage x log p) / sampled tokens, on answers drawn from the current weights (on-policy, one update).

    p is the distribution that was sampled from: at its temperature, and among its top_k.
    """

    pure = False
    ragged = True
    dropout = False  # the loss is that of the distribution which answers were drawn from

    def __init__(
        self,
        sample: Callable[[int], Rollout],
        device_batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        length_step: int = 1,
    ) -> None:
        """sample: the whole step's rollout, on every rank. device_batch_size: most rows of a forward pass.

        temperature, top_k: what it samples with. length_step: rows are cut to a multiple of so many tokens.
        """
        self.sample, self.device_batch_size = sample, device_batch_size
        as_it_is = temperature == 1 and not top_k
        self.terms = {} if as_it_is else {"temperature": temperature, "top_k": top_k}
        self.length_step = length_step
        self.rank, self.ranks = rank, ranks
        self.making = Making()  # nothing is prepared: answers follow from the weights of the step

    def work(self, step: int) -> Work:
        """This rank's answers of the rollout of `step`, cut into micro-batches, and the rollout's metrics.

        The normaliser is the number of sampled tokens, which rank 0 alone reports, as the ranks add theirs up. There are no
        micro-batches where no group of answers has two different rewards.
        """
        rollout = self.sample(step)
        metrics = {f"rl/{key}": float(value) for key, value in flatten(rollout.statistics).items()}
        # ranks add theirs up
        normaliser = float(rollout.n_sampled_tokens) if self.rank == 0 else 0.0
        if not len(rollout.tokens):  # no group with two different rewards: nothing to learn
            return Work([], normaliser, 0, metrics)
        learned = rollout.targets >= 0
        lengths = learned.long().cumsum(dim=1).argmax(dim=1) + 1  # (B,), to the last learned token
        # rows of like length go together and are cut to the longest, or to the next multiple of the step
        order = lengths.argsort(stable=True)[self.rank :: self.ranks]
        micro_batches = []
        for part in _parts(len(order), self.device_batch_size):
            rows = order[part]
            longest = int(lengths[rows].max())
            steps = -(-longest // self.length_step)
            length = min(steps * self.length_step, rollout.tokens.shape[1])
            micro_batches.append(
                MicroBatch(
                    rollout.tokens[rows, :length],
                    rollout.targets[rows, :length],
                    weights=rollout.weights[rows, :length],
                    terms=self.terms,
                )
            )
        tokens = sum(micro.tokens.numel() for micro in micro_batches)
        return Work(micro_batches, normaliser, tokens, metrics)


def _parts(rows: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]
