"""Chat in the terminal, or in a pipe: each input line is a message, and the output is the answer."""

from __future__ import annotations

import contextlib
import difflib
import sys
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from paribus import config
from paribus.chat import Answer, Kind, Options, Speaker
from paribus.data.chat import Messages
from paribus.errors import UserError

STYLES: dict[Kind, str] = {"text": "", "tool_call": "cyan", "tool_result": "bold cyan"}
NO_RESULT = "no result"


@contextlib.contextmanager
def unechoed(lines: TextIO) -> Iterator[None]:
    """Within, what is typed ahead stays out of the answer on the screen; the next prompt reads it.

    lines: the terminal's input; another file is left as it is.
    """
    if not lines.isatty():
        yield
        return
    before = termios.tcgetattr(lines)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(lines, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(lines, termios.TCSADRAIN, before)


class Terminal:
    """A conversation with one checkpoint at a time."""

    def __init__(
        self,
        speaker: Speaker,
        options: Options,
        open_speaker: Callable[[str], Speaker],
        console: Console,
        lines: TextIO,
    ) -> None:
        self.speaker, self.options, self.open_speaker = speaker, options, open_speaker
        self.console, self.lines, self.interactive = console, lines, lines.isatty()
        self.messages: Messages = []
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/reset": (self.reset, "forget the conversation"),
            "/checkpoint": (self.choose, "NAME: talk to another checkpoint, from the start"),
            "/help": (self.help, "this list"),
            "/quit": (self.quit, "end (so does Ctrl-D)"),
        }

    def run(self) -> None:
        """Converse until the input ends, or /quit."""
        if self.interactive:
            self.greet()
        for line in self.read():
            try:
                with unechoed(self.lines):
                    self.turn(line)
            except UserError as error:
                for problem in error.problems:
                    self.note(problem)
            except KeyboardInterrupt:  # stops the answer, not the conversation
                self.note("\nstopped")

    def turn(self, line: str) -> None:
        """Carry out a line: a command after a slash, else a message."""
        if line.startswith("/"):
            self.command(line)
        else:
            self.say(line)

    def read(self) -> Iterator[str]:
        """Input lines that are not blank."""
        self.reading = True
        while self.reading:
            line = self._ask() if self.interactive else self.lines.readline()
            if not line:
                return
            if line.strip():
                yield line.strip()

    def _ask(self) -> str:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits lines and knows the last ones

        try:
            return input("\n> ") + "\n"
        except (EOFError, KeyboardInterrupt):
            self.console.print()
            return ""

    # ------------------------------------------------------------ turns

    def say(self, line: str) -> None:
        """Send a message and print the answer as it comes. An answer that was stopped is not part of the history."""
        asked: Messages = [*self.messages, {"role": "user", "content": line}]
        answer = self.speaker.answer(asked, self.options)
        self.show(answer)
        self.messages = [*asked[answer.dropped :], answer.message]

    def show(self, answer: Answer) -> None:
        """Stream it; calls and results of the calculator stand as [3*4 → 12]."""
        before: Kind = "text"
        empty = False
        for piece in answer:
            if piece.kind != before:
                self.write(_seam(before, piece.kind, empty), "dim")
                before, empty = piece.kind, True
            self.write(piece.text, STYLES[piece.kind])
            empty = empty and not piece.text
        self.write(_seam(before, "text", empty), "dim")
        self.console.print()
        if answer.dropped:
            self.note(
                f"(the first {answer.dropped} messages no longer fit the context and were left out)"
            )
        if not answer.finished:
            self.note("(the context is full)" if answer.full else "(cut off at the limit)")

    def write(self, text: str, style: str = "") -> None:
        """Print `text` as it is, without a line break, so that an answer can grow; `style` is one of rich's."""
        self.console.print(Text(text, style), end="", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a remark about the conversation."""
        self.console.print(Text(text, "yellow"), soft_wrap=True)

    # ------------------------------------------------------------ commands

    def command(self, line: str) -> None:
        """Carry out a line that begins with a slash.

        Raises UserError for a name that is no command; it names the nearest one.
        """
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            near = difflib.get_close_matches(name, self.commands, n=1)
            raise UserError(
                f"no command {name}; "
                + (f"did you mean {near[0]}?" if near else "/help lists them")
            )
        self.commands[name][0](rest.strip())

    def reset(self, _: str = "") -> None:
        """Start the conversation over with the same checkpoint."""
        self.messages = []
        self.note("forgotten")

    def choose(self, name: str) -> None:
        """Open another checkpoint and start a new conversation with it.

        name: a folder, or a name below `checkpoints/`. Raises UserError where it is empty or holds no checkpoint.
        """
        if not name:
            raise UserError("/checkpoint NAME: a name below checkpoints/, or a folder")
        self.speaker = self.open_speaker(name)
        self.messages = []
        self.greet()

    def help(self, _: str = "") -> None:
        """Print each command and its meaning."""
        for name, (_run, meaning) in self.commands.items():
            self.note(f"{name:12} {meaning}")

    def quit(self, _: str = "") -> None:
        """End the conversation: the loop reads no further line."""
        self.reading = False

    def greet(self) -> None:
        """Print which checkpoint answers and how to list the commands."""
        self.note(f"{self.speaker.name}: {self.speaker.about}. /help lists the commands.")


def _seam(before: Kind, after: Kind, empty: bool) -> str:
    """The text where one kind of piece ends and another begins; `empty`: nothing came in between."""
    if (before, after) == ("tool_call", "tool_result"):
        return " → "
    closing = (
        "" if before == "text" else f"{NO_RESULT if before == 'tool_result' and empty else ''}]"
    )
    opening = {"text": "", "tool_call": "[", "tool_result": "[ → "}[after]
    return closing + (" " if closing and opening else "") + opening


def chat(checkpoint: str, options: Options, settings: config.Config) -> None:
    """Talk to a checkpoint on this process's terminal or pipe."""
    console = Console(highlight=False, markup=False, emoji=False)
    if sys.stdin.isatty():
        console.print(f"loading {checkpoint} …", style="dim")
    Terminal(
        Speaker.open(checkpoint, settings),
        options,
        lambda name: Speaker.open(name, settings),
        console,
        sys.stdin,
    ).run()
