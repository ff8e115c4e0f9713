"""Chat: history and its cut to the context, pieces, the terminal and a pipe, the page in a real browser."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.browser import chromium, faults, new_tab
from support.talker import PROBLEMS, codec, talker
from support.waiting import PATIENCE

from paribus.chat import Answer, Options, Piece, Speaker, terminal, web
from paribus.config import merge, read_yaml
from paribus.data.answers import final_answer
from paribus.data.chat import Messages, render_prompt
from paribus.errors import UserError
from paribus.evaluate.gsm8k import score
from paribus.model.gpt import save_checkpoint

QUESTION = PROBLEMS[4]["question"]
SHORT = Options(max_new_tokens=40)
HELD_OUT = {QUESTION: PROBLEMS[4]["answer"]}


@pytest.fixture
def speaker() -> Speaker:
    return Speaker("sft", talker(), "sft")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def tokens(text: str) -> list[int]:
    """`!name|text|…` as tokens."""
    return [
        token
        for part in text.split("|")
        for token in (
            [codec().special[f"<|{part[1:]}|>"]] if part.startswith("!") else codec().encode(part)
        )
    ]


# ---------------------------------------------------------------- answers


def test_answers_are_the_engines_and_become_history(speaker: Speaker) -> None:
    messages: Messages = [user(QUESTION)]
    answer = speaker.answer(messages, SHORT)
    pieces = list(answer)
    ((expected,),) = talker().generate([render_prompt(messages, codec())], max_new_tokens=40)
    assert answer.finished == expected.finished
    assert answer.n_tokens == len(expected.tokens)
    calls = [part for part in answer.parts if part["type"] == "tool_call"]
    assert len(calls) == expected.tool_calls > 0
    assert "".join(piece.text for piece in pieces) == "".join(part["text"] for part in answer.parts)
    ids = render_prompt([*messages, answer.message], codec())
    body = [token for token in expected.tokens if token != codec().special["<|end|>"]]
    assert ids[:-1] == [*render_prompt(messages, codec()), *body, codec().special["<|end|>"]], (
        "history is what was said"
    )


def test_pieces_tell_calls_results_and_text_apart() -> None:
    said = "3*4=|!tool|3*4|!tool_end|!result|12|!result_end|12|!tool|1/0|!tool_end|!result|!result_end|!end"
    answer = Answer(iter(tokens(said)), codec(), 0)
    list(answer)
    assert [(part["type"], part["text"]) for part in answer.parts] == [
        ("text", "3*4="),
        ("tool_call", "3*4"),
        ("tool_result", "12"),
        ("text", "12"),
        ("tool_call", "1/0"),
        ("tool_result", ""),
    ]
    assert answer.finished
    assert answer.message["content"][-1] == {"type": "tool_result", "text": ""}


def test_characters_of_several_bytes_come_whole() -> None:
    text = "é 漢字 🦊!"
    ids = codec().encode(text)
    assert len(ids) > len(text), "this tokenizer spreads them over tokens"
    pieces = list(Answer(iter(ids), codec(), 0))
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_history_that_no_longer_fits_loses_its_oldest_turns(speaker: Speaker) -> None:
    turns: Messages = []
    for place in range(6):
        turns += [
            user(f"Mia has {place} shells. How many now?"),
            {"role": "assistant", "content": f"#### {place}"},
        ]
    prompt, dropped = speaker.fit([*turns, user(QUESTION)], 40)
    limit = talker().model.config.seq_len
    assert len(prompt) <= limit - 40
    assert dropped % 2 == 0
    assert 0 < dropped < 12
    assert prompt == render_prompt([*turns[dropped:], user(QUESTION)], codec())
    longer = render_prompt([*turns[dropped - 2 :], user(QUESTION)], codec())
    assert len(longer) > limit - 40, "no more was dropped than had to be"
    with pytest.raises(UserError, match="shorten it"):
        speaker.fit([user("many shells " * 60)], 40)


def test_a_base_model_continues_the_text() -> None:
    base = Speaker("base", talker(), "pretrain")
    answered = {"role": "assistant", "content": [{"type": "text", "text": " 7"}]}
    prompt, _ = base.fit([user("Mia has"), answered, user("more")], 40)
    assert codec().decode(prompt) == "<|bos|>Mia has\n 7\nmore"
    endless, _ = base.fit([user("shells " * 300)], 40)
    assert len(endless) == talker().model.config.seq_len - 40
    assert endless[0] == codec().bos


def test_seed_and_turn_name_the_draw(speaker: Speaker) -> None:
    def said(seed: int, messages: Messages) -> list[Piece]:
        return list(speaker.answer(messages, Options(30, 1.5, 0, seed)))

    assert said(1, [user(QUESTION)]) == said(1, [user(QUESTION)])
    assert len({str(said(seed, [user(QUESTION)])) for seed in range(4)}) > 1


# ---------------------------------------------------------------- the terminal


def session(speaker: Speaker, text: str) -> tuple[str, terminal.Terminal]:
    """What a pipe with these lines prints."""
    out = io.StringIO()
    console = Console(file=out, highlight=False, markup=False, emoji=False, width=80)

    def open_speaker(name: str) -> Speaker:
        if name != "rl":
            raise UserError(f"no checkpoint {name!r}")
        return Speaker("rl", talker(), "rl")

    held = terminal.Terminal(speaker, SHORT, open_speaker, console, io.StringIO(text))
    held.run()
    return out.getvalue(), held


def test_calls_are_shown_and_history_is_kept(speaker: Speaker) -> None:
    shown, held = session(speaker, f"{QUESTION}\n\n")
    result = next(
        part["text"] for part in held.messages[1]["content"] if part["type"] == "tool_result"
    )
    assert (
        f"[{next(p['text'] for p in held.messages[1]['content'] if p['type'] == 'tool_call')} → {result}]"
        in shown
    )
    assert [message["role"] for message in held.messages] == ["user", "assistant"]


def test_calls_without_a_value_say_so(speaker: Speaker) -> None:
    out = io.StringIO()
    held = terminal.Terminal(
        speaker, SHORT, lambda name: speaker, Console(file=out, width=80), io.StringIO("")
    )
    said = "!tool|1/0|!tool_end|!result|!result_end|!tool|2+3|!tool_end|!result|5|!result_end|!end"
    held.show(Answer(iter(tokens(said)), codec(), 0))
    assert out.getvalue() == "[1/0 → no result] [2+3 → 5]\n"


class TypedAhead(Speaker):
    """A speaker whose partner types the next line while it answers."""

    def __init__(self, keyboard: int, *lines: str) -> None:
        super().__init__("sft", talker(), "sft")
        self.keyboard, self.coming = keyboard, list(lines)

    def answer(self, messages: Messages, options: Options) -> Answer:
        os.write(self.keyboard, f"{self.coming.pop(0)}\n".encode())
        return super().answer(messages, options)


def test_what_is_typed_ahead_stays_out_of_the_answer_and_is_asked_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyboard, terminal_end = pty.openpty()
    speaker = TypedAhead(keyboard, "how many now?", "/quit")
    with os.fdopen(terminal_end, "r") as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        os.write(keyboard, f"{QUESTION}\n".encode())
        held = terminal.Terminal(
            speaker, SHORT, lambda name: speaker, Console(file=io.StringIO()), lines
        )
        os.read(keyboard, 4096)  # the echo of what was typed at the prompt
        held.run()
        os.set_blocking(keyboard, False)
        with pytest.raises(BlockingIOError):
            os.read(keyboard, 4096)
    os.close(keyboard)
    assert held.messages[-2]["content"] == "how many now?"


def test_commands(speaker: Speaker) -> None:
    said = (
        QUESTION,
        "/reset",
        "/help",
        "/rest",
        "/checkpoint",
        "/checkpoint xl",
        "/checkpoint rl",
        "/quit",
        QUESTION,
    )
    shown, held = session(speaker, "\n".join(said))
    assert held.messages == [], "nothing is read after /quit"
    assert held.speaker.name == "rl", "nothing is read after /quit"
    for expected in (
        "forgotten",
        "/checkpoint  NAME",
        "did you mean /reset?",
        "/checkpoint NAME:",
        "no checkpoint 'xl'",
        "rl: ",
    ):
        assert expected in shown


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    root = tmp_path_factory.mktemp("chat")
    quick = {"train.device": "cpu", "train.dtype": "float32", "train.threads": 1}
    (root / "params.yaml").write_text(
        json.dumps(merge(read_yaml(project_root / "params.yaml"), quick))
    )  # JSON is YAML
    (root / "dvc.yaml").write_text((project_root / "dvc.yaml").read_text())
    codec().save(root / "tokenizer.json")
    for name, stage in (("base", "pretrain"), ("sft", "sft")):
        save_checkpoint(
            root / "checkpoints" / name, talker().model, root / "tokenizer.json", {"stage": stage}
        )
    return root


def paribus(*arguments: str, cwd: Path, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paribus", *arguments],
        cwd=cwd,
        input=said,
        capture_output=True,
        text=True,
    )


def test_a_pipe_works(project: Path, speaker: Speaker) -> None:
    done = paribus(
        "chat", "--checkpoint", "sft", "--max-tokens", "40", cwd=project, said=f"{QUESTION}\n"
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == session(speaker, f"{QUESTION}\n")[0]


def test_wrong_names_and_options_are_told(project: Path) -> None:
    done = paribus("chat", "--web", "--checkpoints", "bse,sft,rl", "--port", "0", cwd=project)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "paribus: no checkpoint 'bse'; did you mean base? there are: base, sft",
        "paribus: no checkpoint 'rl'; there are: base, sft",
    ]
    done = paribus("chat", "--port", "80", "--checkpoints", "sft", cwd=project)
    assert done.returncode == 2
    assert "paribus: --port: only with --web" in done.stderr


# ---------------------------------------------------------------- the page


def test_a_request_is_checked_whole(speaker: Speaker) -> None:
    options = {"max_new_tokens": 0, "temperature": 1e9, "top_k": 0, "seed": None}
    body = json.dumps({"checkpoint": "xl", "messages": [], "options": options})
    with pytest.raises(UserError) as error:
        web.read_request(body.encode(), {"sft": speaker})
    assert len(error.value.problems) == 5
    with pytest.raises(UserError, match="not a request of this page"):
        web.read_request(b"[]", {"sft": speaker})


def test_a_port_in_use_is_told() -> None:
    with web.listen(0) as held, pytest.raises(UserError, match="--port .*: Address already in use"):
        web.listen(held.getsockname()[1])


@pytest.fixture
def address(speaker: Speaker) -> Iterator[str]:
    """The page of two checkpoints, served for as long as the test runs."""
    import uvicorn

    speakers = {"base": Speaker("base", talker(), "pretrain"), "sft": speaker}
    listener = web.listen(0)
    server = uvicorn.Server(
        uvicorn.Config(
            web.application(speakers, SHORT, (QUESTION, "<b>5</b>"), HELD_OUT), log_level="warning"
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def ask(address: str, body: bytes, **headers: str) -> tuple[int, Any, Any]:
    """(status, headers, body) of a POST to /answer."""
    import urllib.error
    import urllib.request

    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{address}/answer", body, sent, method="POST")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


JSON = "application/json"


def question(**changes: Any) -> bytes:
    options = {"max_new_tokens": 4, "temperature": 0, "top_k": 0, "seed": 0}
    request = {"checkpoint": "sft", "messages": [user(QUESTION)], "options": options}
    return json.dumps(request | changes).encode()


def test_this_page_and_programs_here_are_answered(address: str) -> None:
    for headers in ({}, {"Origin": address}, {"Origin": address, "Sec_Fetch_Site": "same-origin"}):
        assert ask(address, question(), Content_Type=JSON, **headers)[0] == 200
    assert ask(address, question(), Content_Type="application/json; charset=utf-8")[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", "http://127.0.0.1:1", "https://127.0.0.1", ""]
)
def test_another_sites_page_is_refused(address: str, origin: str) -> None:
    status, _, body = ask(address, question(), Content_Type=JSON, Origin=origin)
    assert status == 403
    assert "may not ask" in json.loads(body)["problems"][0]


def test_only_json_is_taken(address: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, _, body = ask(address, question(), Content_Type=kind)
        assert status == 415
        assert JSON in json.loads(body)["problems"][0]
    assert ask(address, question(), Content_Type=JSON, Sec_Fetch_Site="cross-site")[0] == 403


def test_a_large_body_is_refused_unread(address: str) -> None:
    import http.client

    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    connection.putrequest("POST", "/answer")
    connection.putheader("Content-Type", JSON)
    connection.putheader("Content-Length", "2000000")
    connection.endheaders()  # nothing of the body is sent, and the answer comes all the same
    response = connection.getresponse()
    assert response.status == 413
    assert "1,000,000 bytes" in json.loads(response.read())["problems"][0]
    connection.close()
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    chunks = (b" " * 100_000 for _ in range(50))
    try:
        connection.request("POST", "/answer", chunks, {"Content-Type": JSON}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):  # the server hung up meanwhile
        pass
    finally:
        connection.close()


BAD_MESSAGES: list[Any] = [
    None,
    {},
    "text",
    [],
    [None],
    ["text"],
    [{}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "user", "content": 3}],
    [{"role": "user", "content": {"text": "x"}}],
    [{"role": "user", "content": [3]}],
    [{"role": "user", "content": [{"type": "image", "text": "x"}]}],
    [{"role": "user", "content": [{"type": "text", "text": None}]}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "\ud800"}],
]
BAD_OPTIONS: list[Any] = [
    None,
    [],
    {"seed": 0},
    {"max_new_tokens": True, "temperature": 0, "top_k": 0, "seed": 0},
    {"max_new_tokens": 4, "temperature": math.nan, "top_k": 0, "seed": 0},
    {"max_new_tokens": 4, "temperature": math.inf, "top_k": 0, "seed": 0},
    {"max_new_tokens": 4, "temperature": "0", "top_k": 0, "seed": 0},
    {"max_new_tokens": 4, "temperature": 0, "top_k": 0.5, "seed": 0},
    {"max_new_tokens": 4, "temperature": 0, "top_k": [], "seed": 0},
    {"max_new_tokens": 4, "temperature": 0, "top_k": 0, "seed": 2**63},
]
BAD_BODIES = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"\xff",
    b"[" * 100_000,
    b"9" * 5000,
    question(checkpoint=["sft"]),
    question(checkpoint=None),
    question(checkpoint="xl"),
    *(question(messages=messages) for messages in BAD_MESSAGES),
    *(question(options=options) for options in BAD_OPTIONS),
]


def test_every_bad_body_is_answered_with_its_reason(address: str) -> None:
    for body in BAD_BODIES:
        status, headers, answer = ask(address, body, Content_Type=JSON)
        assert status == 400, body[:200]
        assert json.loads(answer)["problems"]
        assert headers["X-Frame-Options"] == "DENY"


def test_the_page_may_run_its_own_script_alone_and_is_framed_by_nobody(address: str) -> None:
    import base64
    import hashlib
    import urllib.request

    with urllib.request.urlopen(address) as answer:
        headers, page = answer.headers, answer.read().decode()
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Frame-Options"] == "DENY"
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert " style=" not in page
    assert " onclick=" not in page


def test_other_hosts_names_are_refused(address: str) -> None:
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "example.org"}))


def test_the_page_in_a_browser(address: str, speaker: Speaker) -> None:
    idle = "#send:not([disabled])"  # waited for as an element: the page's policy lets no test evaluate text
    with chromium() as browser:
        tab, heard = new_tab(browser)
        tab.goto(address)
        tab.fill("#message", QUESTION)
        tab.keyboard.press("Enter")
        tab.wait_for_selector(idle)
        answers = {
            name: tab.inner_text(f"[data-name={name}] .assistant") for name in ("base", "sft")
        }
        calls = tab.locator("[data-name=sft] .tool_call").all_inner_texts()
        results = tab.locator("[data-name=sft] .tool_result").all_inner_texts()
        tab.click(".prompt:nth-of-type(3)")  # after the held-out problem and the first
        tab.wait_for_selector(idle)
        turns = [tab.locator(f"[data-name={name}] .turn").count() for name in ("base", "sft")]
        asked = tab.locator("[data-name=sft] .user").all_inner_texts()
        tab.click("[data-name=sft] .reset")
        left = [tab.locator(f"[data-name={name}] .turn").count() for name in ("base", "sft")]
        tab.click("#problem")
        tab.wait_for_selector("[data-name=base] .mark")
        tab.wait_for_selector("[data-name=sft] .mark")
        tab.wait_for_selector(idle)
        graded = tab.inner_text("[data-name=sft] .note")
        tab.click("[data-name=sft] .reset")
        tab.fill("#message", "many shells " * 60)
        tab.click("#send")
        tab.wait_for_selector(idle)
        trouble = tab.inner_text("[data-name=sft] .problem")
        colours = []
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            colours.append(tab.evaluate("getComputedStyle(document.body).color"))
        sideways = tab.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    expected = speaker.answer([user(QUESTION)], SHORT)
    list(expected)
    parts = {
        kind: [part["text"] for part in expected.parts if part["type"] == kind]
        for kind in ("tool_call", "tool_result")
    }
    assert calls == parts["tool_call"]
    assert results == parts["tool_result"]
    assert calls
    text = "".join(part["text"] for part in expected.parts)
    assert answers["sft"].split() == text.split()
    assert answers["base"] != answers["sft"]
    assert turns == [4, 4]
    assert asked == [QUESTION, "<b>5</b>"]
    assert left == [4, 0]
    assert "shorten it" in trouble
    right = score(text, HELD_OUT[QUESTION]).correct
    assert graded.startswith("right" if right else "wrong")
    assert f"{final_answer(HELD_OUT[QUESTION])} expected" in graded
    # The browser itself reports the refused message; nothing else may be on the console.
    [complaint] = heard.complaints
    assert "400" in complaint
    assert {url.split("/")[2] for url in heard.requests} == {address.split("/")[2]}
    assert colours == ["rgb(34, 48, 60)", "rgb(219, 228, 236)"]
    assert sideways <= 0


def test_the_page_is_accessible_and_nothing_is_cut(address: str) -> None:
    with chromium() as browser:
        assert faults(browser, address) == []


def test_an_answer_that_fills_the_context_says_so(speaker: Speaker) -> None:
    """At the limit that was asked for it was cut; where the context ended first, that was full."""
    limit = talker().model.config.seq_len
    base = Speaker("base", talker(), "pretrain")
    for new_tokens, full in ((4, False), (limit, True)):
        answer = base.answer([user("Mia has")], Options(max_new_tokens=new_tokens))
        list(answer)
        assert answer.full == (full and not answer.finished)


def test_held_out_problems_are_those_of_the_corpus(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert web.held_out_problems("test") == {}
    (tmp_path / "data").symlink_to(tiny_data)
    found = web.held_out_problems("test")
    assert found
    assert all(final_answer(reference) for reference in found.values())
