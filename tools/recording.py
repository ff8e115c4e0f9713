"""Record a command in a terminal as one animated SVG: python tools/recording.py docs/ablate-run.svg 'paribus ablate run first'

tmux is the terminal: it runs the command and is asked once a second for its screen. rich reads the colors. The recording takes
20 seconds whatever the command took: the last screen stays for seven of them, the others share the rest by the time they were
seen, and those that would stay too short to be read are left out. Lines that screens have in common are stored once. A reader who
asks for less motion sees the last screen.
"""

from __future__ import annotations

import argparse
import html
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

SECONDS = 20.0
LAST = 7.0  # seconds that the last screen stays
SHORTEST = 0.25  # seconds that a screen stays at least
CELL, LINE = 8.4, 18.0  # a character's width and height at 14 px, in px
MARGIN = 14.0


@dataclass(frozen=True)
class Screen:
    """What the terminal showed: since when, and its lines with their escape sequences."""

    seconds: float
    lines: tuple[str, ...]


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, columns: int, rows: int) -> None:
        self._columns, self._rows = columns, rows
        self._socket = f"recording-{time.time_ns()}"

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def record(self, command: str, until: str | None) -> list[Screen]:
        """Run a command; every screen that differs from the one before it.

        until: a text; the screen that has it is the last one. None: the command's end is.
        """
        typed = f"$ {command}"
        size = ("-x", str(self._columns), "-y", str(self._rows))
        run = f"sleep 2; printf '%s\\n' '{typed}'; {command}; tmux set -g @ended 1; sleep 99"
        self._tmux("new-session", "-d", *size, run)
        self._tmux("set", "-g", "status", "off")
        begun = time.monotonic()
        screens = [Screen(0.0, (typed,))]
        try:
            while True:
                ended = self._tmux("display", "-p", "#{@ended}").strip() == "1"
                lines = self._screen()
                if lines and lines != screens[-1].lines:
                    screens.append(Screen(time.monotonic() - begun, lines))
                if ended or (until and any(until in line for line in lines)):
                    return legible(screens)
                time.sleep(1)
        finally:
            self._tmux("kill-server")

    def _screen(self) -> tuple[str, ...]:
        shown = self._tmux("capture-pane", "-e", "-p").rstrip("\n").split("\n")
        while shown and not shown[-1].strip():
            shown.pop()
        return tuple(shown)


def legible(screens: list[Screen]) -> list[Screen]:
    """The screens without those that would stay too short; the last one stays."""
    shortest = SHORTEST / (SECONDS - LAST) * screens[-1].seconds
    kept = screens[:1]
    for screen in screens[1:-1]:
        if screen.seconds - kept[-1].seconds >= shortest:
            kept.append(screen)
    return [*kept, screens[-1]]


def starts(screens: list[Screen]) -> list[float]:
    """The share of the recording at which each screen appears."""
    moving = (SECONDS - LAST) / SECONDS
    whole = screens[-1].seconds or 1.0
    return [moving * screen.seconds / whole for screen in screens]


class Drawing:
    """The SVG: a film strip of screens that moves by a screen at a time."""

    def __init__(self, columns: int, rows: int) -> None:
        self._console = Console(force_terminal=True, color_system="truecolor", width=columns)
        self._width = columns * CELL
        self._height = rows * LINE
        self._known: dict[str, str] = {}

    def svg(self, screens: list[Screen], title: str) -> str:
        """The whole file."""
        strip = [self._placed(screen, place) for place, screen in enumerate(screens)]
        moves = [
            f"{100 * share:.2f}% {{ transform: translateY({-place * self._height:g}px) }}"
            for place, share in enumerate(starts(screens))
        ]
        last = (1 - len(screens)) * self._height
        width, height = self._width + 2 * MARGIN, self._height + 2 * MARGIN
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
                f"<title>{html.escape(title)}</title>",
                "<style>",
                "text { font: 14px Consolas, Menlo, 'DejaVu Sans Mono', monospace; white-space: pre; fill: #d9d9d9 }",
                f"#strip {{ transform: translateY({last:g}px); animation: film {SECONDS:g}s step-end infinite }}",
                f"@keyframes film {{ {' '.join(moves)} }}",
                "@media (prefers-reduced-motion: reduce) { #strip { animation: none } }",
                "</style>",
                f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#0c0c0c"/>',
                "<defs>",
                *(f'<g id="{name}">{line}</g>' for line, name in self._known.items()),
                "</defs>",
                f'<svg x="{MARGIN:g}" y="{MARGIN:g}" width="{self._width:g}" height="{self._height:g}">',
                f'<g id="strip">{"".join(strip)}</g>',
                "</svg>",
                "</svg>",
                "",
            ]
        )

    def _placed(self, screen: Screen, place: int) -> str:
        """A screen at its place on the strip."""
        drawn = []
        for row, line in enumerate(screen.lines):
            content = "".join(self._runs(line))
            if content:
                name = self._known.setdefault(content, f"l{len(self._known)}")
                top = place * self._height + row * LINE
                drawn.append(f'<use href="#{name}" y="{top:g}"/>')
        return "".join(drawn)

    def _runs(self, line: str) -> Iterator[str]:
        """The runs of one style in a line."""
        column = 0
        for segment in self._console.render(Text.from_ansi(line, end="")):
            text = segment.text.rstrip("\n")
            style = segment.style
            looks = []
            if style and style.color:
                color = style.color.get_truecolor(MONOKAI).hex
                looks.append(f'style="fill:{color}"')
            if style and style.bold:
                looks.append('font-weight="bold"')
            if style and style.dim:
                looks.append('opacity="0.6"')
            if text.strip():
                place = f'x="{column * CELL:g}" y="14" textLength="{len(text) * CELL:g}"'
                yield f"<text {place} {' '.join(looks)}>{html.escape(text)}</text>"
            column += len(text)


def main() -> int:
    """Record the command that the command line names."""
    parser = argparse.ArgumentParser(description="Record a command as an animated SVG.")
    parser.add_argument("out", type=Path)
    parser.add_argument("command")
    parser.add_argument("--columns", type=int, default=88)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--until", help="the screen that has this text is the last one")
    arguments = parser.parse_args()
    screens = Terminal(arguments.columns, arguments.rows).record(arguments.command, arguments.until)
    drawing = Drawing(arguments.columns, arguments.rows)
    arguments.out.write_text(drawing.svg(screens, arguments.command), encoding="utf-8")
    print(f"{arguments.out}: {len(screens)} screens, {arguments.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
