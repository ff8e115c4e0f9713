"""The engine: many answers side by side, each a function of (seed, question, sample) alone.

Prompts are prefilled once, in batches of similar length; all answers to a prompt share its keys and values. A row
leaves when its answer is done and the next pending answer takes its place. When an answer closes a calculator call,
the result is computed and forced into the stream.

Answers do not depend on how many are decoded together. Each draws its uniform numbers from its own counter-based
stream; and in fp32, where the batch size moves logits in their last bits, a token that hangs on those bits is decided
by one uncached forward of that answer alone. On CUDA that is true of fp32 as `set_up_process` sets it, not of TF32, which
moves logits a hundred times further. In bf16 rounding is too coarse for that: two nearly equal tokens may
come out differently at another batch size.

Shapes: R rows, P prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from paribus.data.tokenizer import Tokenizer
from paribus.errors import UserError
from paribus.generate.decoder import Completion, Decoder, Drawing, Sizes
from paribus.generate.sampling import stream_seed
from paribus.model.gpt import GPT, load_checkpoint

__all__ = ["Completion", "Engine", "Sizes", "open_checkpoint", "stream_seed"]


class Engine:
    """Generates with a model and its tokenizer."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, sizes: Sizes = "exact") -> None:
        """sizes: of a step of decoding: exact, rounded up to a few, or those as CUDA graphs (`train.decode_graphs`).

        Raises UserError for graphs of a model that is on no card.
        """
        if sizes == "graphs" and model.device.type != "cuda":
            raise UserError(
                f"train.decode_graphs: true is for CUDA cards, and the model is on {model.device.type}"
            )
        self.model, self.sizes = model, sizes
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        rows: int = 128,
        stop: set[int] | None = None,
        tools: bool = True,
        until: Sequence[str] = (),
        ids: Sequence[int] | None = None,
        on_done: Callable[[int, list[Completion]], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Answers to each of several prompts, decoded side by side.

        prompts: token ids. samples: answers to each. rows: answers decoded at once.
        max_new_tokens: of an answer; forced tokens count. temperature: 0 is greedy. top_k: candidates; 0: all.
        seed, ids: an answer's random stream is (seed, ids[prompt], sample); `ids` defaults to the prompts' indices.
        stop: tokens that end an answer, by default <|end|>; <|bos|> and a full context always do. A prompt that fills the
        context by itself gets an empty answer. tools: whether calculator calls are answered. until: an answer also ends,
        finished, with the token that completes one of these texts, which stays in it.
        on_done(prompt index, answers): called as soon as all answers to a prompt are there. on_progress(prompts done,
        prompts): called after it. on_step(answers done): called before every token of the active rows; may raise to stop.
        Returns the answers by prompt and sample.
        """
        drawing = self._drawing(max_new_tokens, temperature, top_k, stop, tools, until)
        answers: list[dict[int, Completion]] = [{} for _ in prompts]
        done = 0
        streams = list(range(len(prompts))) if ids is None else list(ids)
        rows = min(rows, max(samples * len(prompts), 1))
        decoder = Decoder(
            self.model, self.tokenizer, prompts, streams, samples, drawing, seed, rows, self.sizes
        )
        for prompt, sample, completion in decoder.run(on_step):
            answers[prompt][sample] = completion
            if len(answers[prompt]) < samples:
                continue
            done += 1
            if on_done is not None:
                on_done(prompt, _in_order(answers[prompt]))
            if on_progress is not None:
                on_progress(done, len(prompts))
        return [_in_order(group) for group in answers]

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        stop: set[int] | None = None,
        tools: bool = True,
    ) -> Iterator[int]:
        """The tokens of one answer as they come, forced ones included: the same as `generate` gives with `rows=1`.

        Args:
            prompt: token ids; the others as in `generate`.
            max_new_tokens: of the answer.
            temperature: 0 is greedy.
            top_k: 0 is all.
            seed: of the samples.
            stop: token ids that end it.
            tools: let the calculator answer.
        """
        drawing = self._drawing(max_new_tokens, temperature, top_k, stop, tools)
        with torch.inference_mode():
            decoder = Decoder(
                self.model, self.tokenizer, [prompt], [0], 1, drawing, seed, 1, self.sizes
            )
        while decoder.busy():
            # entered again for each step: a generator must not hold it while suspended
            with torch.inference_mode():
                finished = decoder.step()
            yield finished[0][2].tokens[-1] if finished else int(decoder.rows.token[0])

    def _drawing(
        self,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        stop: set[int] | None,
        tools: bool,
        until: Sequence[str] = (),
    ) -> Drawing:
        chosen = frozenset(stop if stop is not None else {self.tokenizer.special["<|end|>"]})
        return Drawing(max_new_tokens, temperature, top_k, chosen, tools, tuple(until))


def open_checkpoint(
    folder: Path, device: str, dtype: str, *, graphs: bool = False, recorded: bool = True
) -> Engine:
    """The engine of a checkpoint's folder: its model, ready to generate, and its tokenizer.

    dtype: of products, by its name in torch. graphs: `train.decode_graphs`. recorded: as in `load_checkpoint`. Raises
    UserError where the checkpoint is absent or damaged. device: by its name in torch.
    """
    model = load_checkpoint(folder, device, getattr(torch, dtype), recorded=recorded)
    sizes: Sizes = "graphs" if graphs else "exact"
    return Engine(model.eval(), Tokenizer.load(folder / "tokenizer.json"), sizes)


def _in_order(answers: dict[int, Completion]) -> list[Completion]:
    """Answers by the number of their sample."""
    return [answers[sample] for sample in sorted(answers)]
