"""The prompts of CORE's items: few-shot examples and the item, once per option, and the tokens to score of each."""

from __future__ import annotations

import random
from array import array

from paribus.data.core_bundle import Row, Task
from paribus.data.tokenizer import Tokenizer

FEW_SHOT_SEED = 1234
PROBES = 4  # items of a task on which tokenising in parts is compared with tokenising whole


def few_shot_indices(task: Task, index: int) -> list[int]:
    """The rows shown before item `index`: drawn from all the others by a generator of its own.

    task: whose rows and number of examples are meant.
    """
    drawn = random.Random(FEW_SHOT_SEED + index).sample(range(len(task.rows) - 1), task.shots)
    return [other + (other >= index) for other in drawn]


def candidates(kind: str, row: Row) -> list[tuple[str, str]]:
    """(what comes before the delimiter, what comes after) for every option; language modelling has one.

    Args:
        kind: of the task.
        row: of its data.
    """
    if kind == "multiple_choice":
        return [(row["query"], choice) for choice in row["choices"]]
    if kind == "schema":
        return [(context, row["continuation"]) for context in row["context_options"]]
    return [(row["context"].strip(), row["continuation"])]


def example(task: Task, index: int) -> str:
    """A row as a few-shot example: with its right answer, and the blank line after it.

    Args:
        task: which words it puts around them.
        index: of the row.
    """
    before, after = candidates(task.kind, task.rows[index])[task.rows[index].get("gold", 0)]
    return before + task.delimiter + after + "\n\n"


def question(task: Task, index: int) -> list[str]:
    """The item itself, once per option; in language modelling without its continuation, then with it.

    Args:
        task: which words it puts around it.
        index: of the row.
    """
    texts = [
        before + task.delimiter + after for before, after in candidates(task.kind, task.rows[index])
    ]
    if task.kind == "language_modeling":
        texts.insert(0, texts[0].removesuffix(task.rows[index]["continuation"]))
    return texts


class Prompts:
    """Token ids of the prompts of a task's items, each the ids of the whole text behind <|bos|>.

    A few-shot example serves many items, so each is tokenised once and the ids are joined. That gives the ids of
    the whole text as long as the tokenizer cuts after a blank line; this is tried on the first items of the task,
    and text with white space where the parts meet is always tokenised whole.
    """

    def __init__(self, tokenizer: Tokenizer, task: Task) -> None:
        self.tokenizer, self.task = tokenizer, task
        self._examples: dict[int, array[int]] = {}
        probes = range(min(PROBES, task.n))
        self.joins = task.shots > 0 and all(
            not joined or joined == whole
            for joined, whole in zip(self._joined(probes), self._whole(probes), strict=True)
        )

    def encode(self, indices: range) -> list[list[list[int]]]:
        """Token ids of every prompt of the items `indices`.

        result[i][p] is prompt p (one for each option) of item i, opened by <|bos|>.
        """
        if not self.joins:
            return self._whole(indices)
        joined = zip(indices, self._joined(indices), strict=True)
        return [prompts or self._whole(range(index, index + 1))[0] for index, prompts in joined]

    def _whole(self, indices: range) -> list[list[list[int]]]:
        texts = []
        for index in indices:
            shown = "".join(
                example(self.task, other) for other in few_shot_indices(self.task, index)
            )
            texts.append([shown + text for text in question(self.task, index)])
            if self.task.kind == "language_modeling":
                texts[-1][0] = texts[-1][0].strip()
        return self._encode(texts)

    def _joined(self, indices: range) -> list[list[list[int]]]:
        """The same from parts; no prompts for an item whose parts do not start with a visible character."""
        shown = [few_shot_indices(self.task, index) for index in indices]
        self._encode_examples({other for others in shown for other in others})
        questions = [question(self.task, index) for index in indices]
        if self.task.kind == "language_modeling":
            for texts in questions:
                texts[0] = texts[0].rstrip()
        encoded = self._encode(questions)
        prompts = []
        for others, texts, tails in zip(shown, questions, encoded, strict=True):
            prompts.append(self._join(others, texts, tails))
        return prompts

    def _encode_examples(self, wanted: set[int]) -> None:
        """Keep the ids of few-shot examples, none for one that does not start with a visible character."""
        new = sorted(wanted - self._examples.keys())
        texts = [example(self.task, other) for other in new]
        for other, text, ids in zip(new, texts, self.tokenizer.encode_batch(texts), strict=True):
            self._examples[other] = array("i", [] if text[0].isspace() else ids)

    def _join(self, others: list[int], texts: list[str], tails: list[list[int]]) -> list[list[int]]:
        if not all(self._examples[other] for other in others):
            return []
        if any(not text or text[0].isspace() for text in texts):
            return []
        head = [self.tokenizer.bos]
        for other in others:
            head.extend(self._examples[other])
        return [head + tail[1:] for tail in tails]

    def _encode(self, texts: list[list[str]]) -> list[list[list[int]]]:
        """The ids of nested texts, each behind <|bos|>."""
        ids = iter(self.tokenizer.encode_batch([text for group in texts for text in group]))
        return [[[self.tokenizer.bos, *next(ids)] for _ in group] for group in texts]


def common_prefix(sequences: list[list[int]]) -> int:
    """Tokens that all sequences start with, by bisection (comparing slices is quick)."""
    low, high = 0, min(map(len, sequences))
    while low < high:
        middle = (low + high + 1) // 2
        if all(sequence[:middle] == sequences[0][:middle] for sequence in sequences):
            low = middle
        else:
            high = middle - 1
    return low


def spans(kind: str, prompts: list[list[int]]) -> list[tuple[list[int], int]]:
    """(tokens, first token to score) of every option; the last to score is the last.

    Args:
        kind: of the task.
        prompts: token ids, once per option.
    """
    if kind == "schema":
        suffix = common_prefix([prompt[::-1] for prompt in prompts])
        return [(prompt, len(prompt) - suffix) for prompt in prompts]
    start = common_prefix(prompts)
    return [(prompt, start) for prompt in (prompts[1:] if kind == "language_modeling" else prompts)]
