"""The chat page: two or more checkpoints answer the same prompt side by side, each with its own history.

The page keeps the histories and sends them with every message, so that the server has no state but the models. It
listens on this machine only and sends no requests to others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from paribus import config
from paribus.chat import Answer, Kind, Options, Speaker, plain
from paribus.curriculum import CORPUS
from paribus.data import contents
from paribus.data.answers import final_answer
from paribus.errors import UserError
from paribus.evaluate.gsm8k import score
from paribus.files import Shape, misfit, parse

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
WHOLE = ("max_new_tokens", "top_k", "seed")
MOST_BYTES = 1_000_000  # of a request: far more than a context holds
KINDS = get_args(Kind)
REQUEST: Shape = {
    "checkpoint": str,
    "messages": list,
    "options": dict.fromkeys(BOUNDS, object),
}


def application(
    speakers: Mapping[str, Speaker],
    options: Options,
    prompts: tuple[str, ...] = (),
    problems: Mapping[str, str] | None = None,
) -> Starlette:
    """The page at /, and /answer, which streams a JSON line a piece: {"kind", "text"}, last {"kind": "end", ...}.

    Args:
        speakers: name -> checkpoint.
        options: that the page begins with.
        prompts: that it suggests.
        problems: question -> reference solution, of held-out problems: /problem gives one, and the answer to one is graded.

    /answer takes JSON from this page and from programs here. What it refuses is answered with {"problems": [...]}: a
    request of another site's page with 403, a body of another kind with 415, one that is too large with 413, any other
    with 400.

    speakers: checkpoints by name, loaded. options: with which the page begins. prompts: offered on it.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.routing import Route

    known = problems or {}
    page = render(speakers, options, prompts, bool(known))
    guards = protection(page)

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=guards)

    async def answer(request: Request) -> Response:
        try:
            check_origin(request.headers)
            body = await read_body(request.stream(), request.headers)
            speaker, messages, wanted = read_request(body, speakers)
            began = speaker.answer(messages, wanted)
        except Refused as error:
            problems = {"problems": error.problems}
            return JSONResponse(problems, status_code=error.status, headers=guards)
        except UserError as error:
            return JSONResponse({"problems": error.problems}, status_code=400, headers=guards)
        said = lines(began, known.get(plain(messages[-1]["content"])))
        return StreamingResponse(said, media_type="application/x-ndjson", headers=guards)

    async def problem(_: Request) -> Response:
        question = random.choice(list(known)) if known else ""
        return JSONResponse({"question": question}, headers=guards)

    # A name of another host that was made to point here (DNS rebinding) is refused.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    routes = [Route("/", show), Route("/problem", problem)]
    routes.append(Route("/answer", answer, methods=["POST"]))
    return Starlette(routes=routes, middleware=[hosts])


# ---------------------------------------------------------------- whose requests are served


class Refused(UserError):
    """A request that is refused before it is read."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


def protection(page: str) -> dict[str, str]:
    """Headers that restrict the page to its own script, style and server, and forbid other pages to frame it."""
    script, style = (_digest_of(page, tag) for tag in ("script", "style"))
    policy = [
        "default-src 'none'",
        f"script-src {script}",
        f"style-src {style}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _digest_of(page: str, tag: str) -> str:
    """The hash by which a policy names an element's text."""
    text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site sends through a browser, which names that page's origin. Raises Refused."""
    origin = headers.get("origin")
    own = f"http://{headers.get('host', '')}"
    if origin is not None and origin != own:
        raise Refused(403, f"a page of {origin!r} may not ask here; this one is {own}")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, f"another site's page may not ask here; this one is {own}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"content-type: {kind or 'none'}; expected application/json")


async def read_body(pieces: AsyncIterator[bytes], headers: Mapping[str, str]) -> bytes:
    """The body, of at most MOST_BYTES; no more of a larger one is kept. Raises Refused.

    pieces: of the body, as they come. headers: of the request, which name its length.
    """
    too_large = Refused(413, f"the message is larger than {MOST_BYTES:,} bytes; expected less")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise too_large
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > MOST_BYTES:
            raise too_large
    return bytes(body)


# ---------------------------------------------------------------- the page and its requests


def render(
    speakers: Mapping[str, Speaker],
    options: Options,
    prompts: tuple[str, ...],
    has_problems: bool = False,
) -> str:
    """The page as HTML.

    Args:
        speakers: checkpoints by name.
        options: with which it begins.
        prompts: offered on it.
        has_problems: whether it offers held-out problems too.
    """
    import dataclasses

    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "pages/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns = [{"name": name, "about": speaker.about} for name, speaker in speakers.items()]
    values = {
        "columns": columns,
        "options": dataclasses.asdict(options),
        "prompts": list(prompts),
        "has_problems": has_problems,
    }
    return environment.get_template("chat.html.j2").render(values=values)


def read_request(
    body: bytes, speakers: Mapping[str, Speaker]
) -> tuple[Speaker, list[dict[str, Any]], Options]:
    """(speaker, messages, options) of {"checkpoint", "messages", "options"}. Raises UserError with every problem.

    Args:
        body: JSON.
        speakers: checkpoints by name, of which it asks for one.
    """
    request, problem = parse(body, REQUEST)
    if problem is not None:
        raise UserError(f"not a request of this page: {problem}")
    name, messages, values = request["checkpoint"], request["messages"], request["options"]
    problems = [
        f"{key.replace('_', ' ')}: {values[key]!r} is out of range; expected a number from {low:g} to {high:g}"
        for key, (low, high) in BOUNDS.items()
        if not _within(values[key], low, high)
    ]
    problems += [
        f"{key.replace('_', ' ')}: {values[key]!r} is no whole number"
        for key in WHOLE
        if isinstance(values[key], float)
        and math.isfinite(values[key])
        and not values[key].is_integer()
    ]
    if name not in speakers:
        problems.append(f"no checkpoint {name!r} on this page; there are: {', '.join(speakers)}")
    problems += _message_problems(messages)
    if problems:
        raise UserError(problems)
    options = Options(
        int(values["max_new_tokens"]),
        float(values["temperature"]),
        int(values["top_k"]),
        int(values["seed"]),
    )
    return speakers[name], messages, options


def _within(value: Any, low: float, high: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and low <= value <= high


def _message_problems(messages: list[Any]) -> list[str]:
    """The problems of a history."""
    problems = []
    for place, message in enumerate(messages):
        problem = misfit(message, {"role": str, "content": (str, list)}, f"messages.{place}")
        if problem is None:
            problem = _content_problem(message["content"], f"messages.{place}.content")
        if problem is not None:
            problems.append(problem)
    if problems:
        return problems
    roles = [message["role"] for message in messages]
    turns = [("user", "assistant")[place % 2] for place in range(len(roles))]
    if roles != turns or len(roles) % 2 == 0:
        return ["messages: user and assistant have to take turns, and the last is the user's"]
    return []


def _content_problem(content: Any, name: str) -> str | None:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for place, part in enumerate(parts):
        problem = misfit(part, {"type": str, "text": str}, f"{name}.{place}")
        if problem is not None:
            return problem
        if part["type"] not in KINDS:
            return f"{name}.{place}.type: {part['type']!r}; expected one of {', '.join(KINDS)}"
        try:
            part["text"].encode()
        except UnicodeEncodeError:
            return f"{name}.{place}: half of a surrogate pair, which is no character"
    return None


def lines(answer: Answer, reference: str | None = None) -> Iterator[str]:
    """The answer as lines of JSON.

    Args:
        answer: in progress.
        reference: the reference solution of the problem that it answers, by which it is graded; None: it answers none.
    """
    began = time.perf_counter()
    try:
        for piece in answer:
            yield _line(kind=piece.kind, text=piece.text)
    except UserError as error:
        yield _line(kind="problem", text="; ".join(error.problems))
        return
    graded = {}
    if reference is not None:
        text = plain(answer.message["content"])
        graded = {"right": score(text, reference).correct, "expected": final_answer(reference)}
    yield _line(
        kind="end",
        finished=answer.finished,
        full=answer.full,
        tokens=answer.n_tokens,
        seconds=round(time.perf_counter() - began, 2),
        dropped=answer.dropped,
        message=answer.message,
        **graded,
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
    """Serve the page until Ctrl-C; with a corpus it asks held-out problems and grades their answers.

    Raises UserError for checkpoints that are not there, all at once, or a port in use.

    Args:
        checkpoints: their names or folders.
        port: of 127.0.0.1.
        options: with which the page begins.
        prompts: offered on it.
        settings: of the project, for the device.
    """
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
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    held_out = held_out_problems(settings.eval.gsm8k.split)
    graded = f"; {address}/#problem asks them a held-out problem" if held_out else ""
    print(
        f"paribus chat: {address} shows {', '.join(speakers)}{graded}; Ctrl-C ends it",
        file=sys.stderr,
        flush=True,
    )
    page = application(speakers, options, prompts, held_out)
    server = uvicorn.Server(uvicorn.Config(page, log_level="warning"))
    server.run(sockets=[listener])


def held_out_problems(split: str) -> dict[str, str]:
    """Question -> reference solution, of the problems that no training has seen; {} without a corpus.

    Args:
        split: of the problems, as `eval.gsm8k.split` names it.
    """
    name = f"problems/{split}.jsonl"
    if not (CORPUS / name).exists():
        return {}
    return {row["question"]: row["answer"] for row in contents.rows(CORPUS, name)}


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
