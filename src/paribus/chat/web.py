"""The chat page: two or more checkpoints answer the same prompt side by side, each with its own history.

The page keeps the histories and sends them with every message, so that the server has no state but the models. It
listens on this machine only and asks nothing of any other.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paribus import config
from paribus.chat import Answer, Options, Speaker
from paribus.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
BOUNDS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, 1_000_000),
    "temperature": (0.0, 100.0),
    "top_k": (0, 10_000_000),
    "seed": (0, 2**63 - 1),
}


def application(
    speakers: Mapping[str, Speaker], options: Options, prompts: tuple[str, ...] = ()
) -> Starlette:
    """The page at /, and /answer, which streams a JSON line a piece: {"kind", "text"}, last {"kind": "end", ...}."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.routing import Route

    page = render(speakers, options, prompts)

    async def show(_: Request) -> Response:
        return HTMLResponse(page)

    async def answer(request: Request) -> Response:
        try:
            speaker, messages, wanted = read_request(await request.body(), speakers)
            began = speaker.answer(messages, wanted)
        except UserError as error:
            return JSONResponse({"problems": error.problems}, status_code=400)
        return StreamingResponse(lines(began), media_type="application/x-ndjson")

    # A name of another host that was made to point here (DNS rebinding) is refused.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(
        routes=[Route("/", show), Route("/answer", answer, methods=["POST"])], middleware=[hosts]
    )


def render(speakers: Mapping[str, Speaker], options: Options, prompts: tuple[str, ...]) -> str:
    """The page as HTML."""
    import dataclasses

    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns = [{"name": name, "about": speaker.about} for name, speaker in speakers.items()]
    values = {"columns": columns, "options": dataclasses.asdict(options), "prompts": list(prompts)}
    return environment.get_template("chat.html.j2").render(values=values)


def read_request(
    body: bytes, speakers: Mapping[str, Speaker]
) -> tuple[Speaker, list[dict[str, Any]], Options]:
    """(speaker, messages, options) of {"checkpoint", "messages", "options"}. Raises UserError with every problem."""
    try:
        request = json.loads(body)
        name, messages, wanted = request["checkpoint"], request["messages"], request["options"]
        values = {key: wanted[key] for key in BOUNDS}
        roles = [message["role"] for message in messages]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not a request of this page: {type(error).__name__} {error}") from None
    problems = [
        f"{key.replace('_', ' ')}: {values[key]!r} is out of range; expected a number from {low:g} to {high:g}"
        for key, (low, high) in BOUNDS.items()
        if not isinstance(values[key], int | float)
        or isinstance(values[key], bool)
        or not low <= values[key] <= high
    ]
    if name not in speakers:
        problems.append(f"no checkpoint {name!r} on this page; there are: {', '.join(speakers)}")
    if (
        roles != [("user", "assistant")[place % 2] for place in range(len(roles))]
        or len(roles) % 2 == 0
    ):
        problems.append(
            "messages: user and assistant have to take turns, and the last is the user's"
        )
    if problems:
        raise UserError(problems)
    return (
        speakers[name],
        messages,
        Options(
            int(values["max_new_tokens"]),
            float(values["temperature"]),
            int(values["top_k"]),
            int(values["seed"]),
        ),
    )


def lines(answer: Answer) -> Iterator[str]:
    """The answer as lines of JSON."""
    began = time.perf_counter()
    try:
        for piece in answer:
            yield _line(kind=piece.kind, text=piece.text)
    except UserError as error:
        yield _line(kind="problem", text="; ".join(error.problems))
        return
    yield _line(
        kind="end",
        finished=answer.finished,
        tokens=answer.n_tokens,
        seconds=round(time.perf_counter() - began, 2),
        dropped=answer.dropped,
        message=answer.message,
    )


def _line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def serve(
    checkpoints: list[str],
    port: int,
    options: Options,
    prompts: tuple[str, ...],
    settings: config.Config,
) -> None:
    """Serve the page until Ctrl-C. Raises UserError for checkpoints that are not there, all at once, or a port in use."""
    import uvicorn

    speakers: dict[str, Speaker] = {}
    problems = []
    for name in checkpoints:
        try:
            speaker = Speaker.open(name, settings)
            speakers[speaker.name if speaker.name not in speakers else name] = speaker
        except UserError as error:
            problems += error.problems
    if problems or not checkpoints:
        raise UserError(
            problems or "--checkpoints: names none; give at least one, with commas between"
        )
    listener = listen(port)
    print(
        f"paribus chat: http://{HOST}:{listener.getsockname()[1]} shows {', '.join(speakers)}; Ctrl-C ends it",
        file=sys.stderr,
        flush=True,
    )
    server = uvicorn.Server(
        uvicorn.Config(application(speakers, options, prompts), log_level="warning")
    )
    server.run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """A socket of this machine's own address; port 0: any that is free."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port {port}: {error.strerror}; choose another, or 0 for any that is free"
        ) from None
    return listener
