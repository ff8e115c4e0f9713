"""Talking to a checkpoint: the history, its cut to the context, and the answer in pieces as it comes.

The terminal (terminal.py) and the page (web.py) show the same thing; messages are those of data/chat.py.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from paribus import config
from paribus.errors import UserError
from paribus.files import read_json
from paribus.machine.hardware import detect_hardware
from paribus.machine.process import set_up_process
from paribus.places import find_checkpoint

if TYPE_CHECKING:
    from paribus.data.chat import Messages
    from paribus.data.tokenizer import Tokenizer
    from paribus.generate import Engine

Kind = Literal["text", "tool_call", "tool_result"]
OPENING: dict[str, Kind] = {"<|tool|>": "tool_call", "<|result|>": "tool_result"}
CLOSING = ("<|tool_end|>", "<|result_end|>")
ENDING = ("<|end|>", "<|bos|>")
LONGEST_CHARACTER = (
    8  # tokens that a character of several bytes may be spread over, with room to spare
)


@dataclass(frozen=True)
class Options:
    """How answers are drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Piece:
    """The next piece of an answer. A tool's call and result each open with an empty piece."""

    kind: Kind
    text: str


class Answer:
    """An answer in progress: iterate once for its pieces; the attributes are complete afterwards."""

    def __init__(
        self, tokens: Iterator[int], tokenizer: Tokenizer, dropped: int, room: int | None = None
    ) -> None:
        """room: tokens that the context holds after the prompt; None: enough."""
        self.dropped = (
            dropped  # messages at the beginning of the history that did not fit the context
        )
        self.n_tokens = 0  # forced ones included
        self.finished = False  # ended by itself, not by a limit
        self.parts: list[dict[str, str]] = []
        self._tokens, self._tokenizer, self._room = tokens, tokenizer, room

    @property
    def full(self) -> bool:
        """Whether it ended where the context did, and not by itself or at the longest answer asked for."""
        return self._room is not None and not self.finished and self.n_tokens >= self._room

    @property
    def message(self) -> dict[str, Any]:
        """The message, in the form that the next turn's history takes."""
        return {
            "role": "assistant",
            "content": [part for part in self.parts if part["text"] or part["type"] != "text"],
        }

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces():
            if not self.parts or self.parts[-1]["type"] != piece.kind:
                self.parts.append({"type": piece.kind, "text": ""})
            self.parts[-1]["text"] += piece.text
            yield piece

    def _pieces(self) -> Iterator[Piece]:
        names = {token: name for name, token in self._tokenizer.special.items()}
        kind: Kind = "text"
        pending: list[int] = []  # tokens whose last character may lack bytes yet
        for token in self._tokens:
            self.n_tokens += 1
            name = names.get(token)
            pending += [token] if name is None else []
            text = self._tokenizer.decode(pending)
            if pending and (
                name is not None or len(pending) == LONGEST_CHARACTER or not text.endswith("\ufffd")
            ):
                yield Piece(kind, text)
                pending = []
            if name in OPENING:
                kind = OPENING[name]
                yield Piece(kind, "")
            elif name in CLOSING:
                kind = "text"
            self.finished = name in ENDING
        if pending:
            yield Piece(kind, self._tokenizer.decode(pending))


class Speaker:
    """A checkpoint to talk to. One that was only pretrained knows no turns: it continues the text so far."""

    def __init__(self, name: str, engine: Engine, stage: str | None = None) -> None:
        self.name, self.engine, self.stage = name, engine, stage
        self.continues = stage == "pretrain"

    @classmethod
    def open(cls, name: str, settings: config.Config) -> Speaker:
        """The checkpoint of that name or folder, on the hardware of `train.*`. Raises UserError."""
        from paribus.generate import open_checkpoint
        from paribus.model import saved

        folder = find_checkpoint(name)
        hardware = detect_hardware(settings.train)
        set_up_process(hardware, settings.seed)
        if not saved.has_record(folder):
            print(
                f"paribus chat: {folder} has no provenance.json: how it was made is unknown",
                file=sys.stderr,
            )
        engine = open_checkpoint(
            folder,
            hardware.device,
            hardware.dtype,
            graphs=hardware.decode_graphs,
            recorded=False,
        )
        provenance = read_json(folder / "provenance.json", move=False) or {}  # DVC owns the folder
        stage = provenance.get("stage")
        return cls(folder.name, engine, stage)

    @property
    def about(self) -> str:
        """A short description of the checkpoint."""
        model = self.engine.model
        size = sum(parameter.numel() for parameter in model.parameters())
        manner = ", continues your text" if self.continues else ""
        return f"{size / 1e6:.3g} M parameters, context {model.config.seq_len}{manner}"

    def answer(self, messages: Messages, options: Options) -> Answer:
        """The next turn, for messages that end with the user's. Raises UserError where the last one alone is too long."""
        from paribus.generate import stream_seed

        prompt, dropped = self.fit(messages, options.max_new_tokens)
        drawing = dataclasses.asdict(options) | {"seed": stream_seed(options.seed, len(messages))}
        tokens = self.engine.stream(
            prompt, stop=set() if self.continues else None, tools=not self.continues, **drawing
        )
        room = self.engine.model.config.seq_len - len(prompt)
        full = room if room < options.max_new_tokens else None
        return Answer(tokens, self.engine.tokenizer, dropped, full)

    def fit(self, messages: Messages, new_tokens: int) -> tuple[list[int], int]:
        """(prompt, messages left out at the beginning): at most half of the context is kept free for the answer."""
        from paribus.data.chat import render_prompt

        tokenizer = self.engine.tokenizer
        limit = self.engine.model.config.seq_len
        room = limit - min(new_tokens, limit // 2)
        if self.continues:
            text = "\n".join(plain(message["content"]) for message in messages)
            return [tokenizer.bos, *tokenizer.encode(text)[1 - room :]], 0
        for dropped in range(0, len(messages), 2):
            prompt = render_prompt(messages[dropped:], tokenizer)
            if len(prompt) <= room:
                return prompt, dropped
        raise UserError(
            f"the message takes {len(prompt)} tokens; {self.name} has a context of {limit}, "
            f"of which {room} are for the question: shorten it"
        )


def plain(content: str | Sequence[dict[str, str]]) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
