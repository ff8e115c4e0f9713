"""The hub: enough and no more, whatever the network does; whole or not there; what it holds as documents and conversations."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.hub_server import REVISION, Hub, serve
from support.waiting import wait_for

from paribus import config
from paribus.data import download, hub, load_jsonl
from paribus.data.corpus import build_corpus
from paribus.data.download import Remote, fetch_all
from paribus.data.shards import documents
from paribus.errors import UserError

NAME = "org/web"
NOISE = random.Random(5).randbytes(600_000)


def parquet(rows: dict[str, list[Any]]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(rows), out)
    return out.getvalue()


def text(number: int) -> str:
    return " ".join(
        random.Random(number).choices(
            ["tree", "house", "river", "stone", "cloud", "light", "sand"], k=400
        )
    )


SHARDS = {
    f"data/train-{n:02d}.parquet": parquet({"text": [text(10 * n + k) for k in range(10)]})
    for n in range(6)
}
GSM = [
    {
        "question": f"Ann has {n} pears and gets {n} more. How many?",
        "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}",
    }
    for n in range(30)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi?"},
                {"role": "assistant", "content": "Hello."},
            ]
        },
        {"messages": [{"role": "assistant", "content": "out of turn"}]},
    ],
    "mmlu": [{"question": "2+2?", "subject": "math", "choices": ["3", "4", "5", "6"], "answer": 1}],
    "arc": [
        {
            "question": "Which is wet?",
            "choices": {"text": ["sand", "sea"], "label": ["1", "2"]},
            "answerKey": "2",
        }
    ],
}
REPOSITORIES = {
    NAME: SHARDS | {"README.md": b"about", "data/test-00.parquet": parquet({"text": ["a test"]})},
    "org/noise": {"a.bin": NOISE, "b.bin": NOISE[::-1], "note.jsonl": b'{"text": "x"}\n'},
    "org/gsm": {
        f"main/{split}-0.parquet": parquet(
            {key: [row[key] for row in rows] for key in ("question", "answer")}
        )
        for split, rows in (("train", GSM[:25]), ("test", GSM[25:]))
    },
    "org/talk": {
        f"{name}.parquet": parquet({key: [row.get(key) for row in rows] for key in rows[0]})
        for name, rows in ROWS.items()
    },
}


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constant is read when huggingface_hub is imported, which another test of this process may have done offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(REPOSITORIES) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(download, "PAUSE", 0.01)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


def remote(server: Hub, folder: Path, name: str = "a.bin") -> Remote:
    data = REPOSITORIES["org/noise"][name]
    return Remote(
        f"{server.url}/datasets/org/noise/resolve/{REVISION}/{name}",
        folder / name,
        name,
        len(data),
        hashlib.sha256(data).hexdigest(),
    )


def from_hub(tiny: config.Config, **more: Any) -> config.Corpus:
    return dataclasses.replace(
        tiny.corpus, source="hub", paths=[f"{NAME}@{REVISION}:data/train-*.parquet"], **more
    )


# ---------------------------------------------------------------- one file, whatever happens


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["reset"],
        ["short"],
        ["reset", "500", "short", "429", "reset"],
        ["redirect"],
        ["redirect", "reset", "503"],
        ["wrong bytes"],
        ["reset", "no ranges"],
        ["wrong bytes", "reset", "wrong bytes"],
    ],
    ids=" ".join,
)
def test_a_file_arrives_whole(server: Hub, tmp_path: Path, faults: list[str]) -> None:
    server.faults["a.bin"] = list(faults)
    fetch_all([remote(server, tmp_path)], {})
    assert (tmp_path / "a.bin").read_bytes() == NOISE
    assert not server.faults["a.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_reset_costs_only_what_was_not_yet_there(server: Hub, tmp_path: Path) -> None:
    server.faults["a.bin"] = ["reset", "reset"]
    server.pace = 0.0005  # the kernel drops at a reset what the reader has not taken yet
    fetch_all([remote(server, tmp_path)], {})
    assert len(server.ranges["a.bin"]) == 3
    assert server.ranges["a.bin"][0] == ""
    assert server.sent["a.bin"] < 1.3 * len(NOISE)


def test_wrong_bytes_again_and_again_are_named_and_never_used(server: Hub, tmp_path: Path) -> None:
    server.faults["a.bin"] = ["wrong bytes"] * 9
    with pytest.raises(UserError, match="a.bin: its sha256 is .*, not .*; fetched 3 times"):
        fetch_all([remote(server, tmp_path), remote(server, tmp_path, "b.bin")], {})
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "b.bin").exists()


def test_refusals_are_told_all_at_once_with_what_to_do(server: Hub, tmp_path: Path) -> None:
    server.faults["a.bin"] = ["403"]
    absent = dataclasses.replace(
        remote(server, tmp_path), url=f"{server.url}/nowhere", path=tmp_path / "c", name="c"
    )
    with pytest.raises(UserError) as error:
        fetch_all([remote(server, tmp_path), absent], {})
    assert "a.bin: the server answered 403 Forbidden; accept its terms" in error.value.problems[0]
    assert "c: the server answered 404" in error.value.problems[1]


def test_a_server_that_stays_away_ends_in_a_message_and_keeps_the_part(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    server.faults["a.bin"] = ["short", *["500"] * 9]
    with pytest.raises(
        UserError, match="a.bin: the server answered 500 .* bytes are kept: start again"
    ):
        fetch_all([remote(server, tmp_path)], {})
    assert NOISE.startswith((tmp_path / "a.bin.part").read_bytes())
    assert (tmp_path / "a.bin.part").stat().st_size == 300_000


def test_a_slow_server_is_waited_for_and_a_silent_one_is_left(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    server.pace = 0.1  # 0.7 s in all, never 0.3 s without a byte
    fetch_all([remote(server, tmp_path)], {})
    assert len(server.ranges["a.bin"]) == 1
    server.faults["b.bin"] = ["silent"]
    fetch_all([remote(server, tmp_path, "b.bin")], {})
    assert server.ranges["b.bin"] == ["", f"bytes={len(NOISE) // 2}-"]
    assert (tmp_path / "b.bin").read_bytes() == NOISE[::-1]


def test_the_token_stays_with_the_hub(server: Hub, tmp_path: Path) -> None:
    server.faults["a.bin"] = ["redirect"]
    fetch_all([remote(server, tmp_path)], {"Authorization": "Bearer secret"})
    hosts = {host.partition(":")[0]: tokens for host, tokens in server.tokens.items()}
    assert hosts == {"127.0.0.1": ["Bearer secret"], "localhost": [None]}


def test_kill_9_loses_nothing_that_arrived(server: Hub, tmp_path: Path) -> None:
    server.pace = 0.02
    script = (
        "import sys; from pathlib import Path; from paribus.data.download import *;"
        f"fetch_all([Remote('{remote(server, tmp_path).url}', Path(sys.argv[1]), 'a', {len(NOISE)},"
        f"'{hashlib.sha256(NOISE).hexdigest()}')], {{}})"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.bin")]
    part = tmp_path / "a.bin.part"
    child = subprocess.Popen(command)
    wait_for(lambda: part.exists() and part.stat().st_size > 100_000)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    had = part.stat().st_size
    assert 100_000 < had < len(NOISE)
    assert not (tmp_path / "a.bin").exists()
    server.pace = 0.0
    fetch_all([remote(server, tmp_path)], {})
    assert (tmp_path / "a.bin").read_bytes() == NOISE
    assert server.ranges["a.bin"] == ["", f"bytes={had}-"]


def test_two_processes_after_one_file_fetch_it_once(server: Hub, tmp_path: Path) -> None:
    server.pace = 0.005
    fetch_all([remote(server, tmp_path), remote(server, tmp_path)], {}, connections=2)
    assert server.sent["a.bin"] == len(NOISE)
    assert (tmp_path / "a.bin").read_bytes() == NOISE


# ---------------------------------------------------------------- a corpus


def test_enough_files_for_the_text_and_no_more(
    server: Hub, tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [text(n) for n in range(60)]
    need = sum(map(len, first[:15]))
    manifest = build_corpus(
        from_hub(tiny_config, megabytes=need / 1e6), tmp_path / "corpus", tmp_path
    )
    assert list(documents(tmp_path / "corpus/documents")) == first[:15]
    files = manifest["documents"]["files"]
    name, data = list(SHARDS.items())[1]
    assert len(files) == 2
    assert files[1] == {
        "path": f"{NAME}@{REVISION}:{name}",
        "bytes": len(data),
        "documents": 5,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert {name for name, spans in server.ranges.items() if "" in spans} == set(
        list(SHARDS)[:2]
    )  # of others only the end
    assert "2 of 6 files" in capsys.readouterr().err


def test_all_files_of_the_pattern_without_a_limit(
    server: Hub, tiny_config: config.Config, tmp_path: Path
) -> None:
    server.faults["tree"] = ["429"]
    server.faults["data/train-03.parquet"] = ["500", "reset"]
    build_corpus(from_hub(tiny_config), tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == [text(n) for n in range(60)]


def test_what_was_fetched_serves_again_and_what_was_damaged_is_named_and_fetched_anew(
    server: Hub, tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_corpus(from_hub(tiny_config), tmp_path / "corpus", tmp_path)
    server.ranges.clear()
    kept = sorted((tmp_path / ".paribus/downloads").rglob("*.parquet"))
    short = kept[1].read_bytes()[:-5]
    kept[1].write_bytes(short)
    whole = kept[3].read_bytes()
    kept[3].write_bytes(whole[:50] + b"x" + whole[51:])
    kept[4].unlink()
    build_corpus(from_hub(tiny_config), tmp_path / "again", tmp_path)
    again = {name for name, spans in server.ranges.items() if "" in spans}
    assert again == {f"data/{kept[n].name}" for n in (1, 3, 4)}
    shown = capsys.readouterr().err
    assert f"{kept[1]}: {kept[1].stat().st_size - 5:,} bytes, not" in shown
    assert f"{kept[3]}: its sha256 is" in shown
    assert (tmp_path / "again/manifest.json").read_bytes() == (
        tmp_path / "corpus/manifest.json"
    ).read_bytes()


def test_offline_uses_what_is_there_and_names_what_is_not(
    server: Hub, tiny_config: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_corpus(from_hub(tiny_config), tmp_path / "corpus", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    build_corpus(from_hub(tiny_config), tmp_path / "again", tmp_path)
    kept = sorted((tmp_path / ".paribus/downloads").rglob("*.parquet"))
    kept[2].unlink()
    kept[5].unlink()
    with pytest.raises(UserError) as error:
        build_corpus(from_hub(tiny_config), tmp_path / "again", tmp_path)
    named = [problem.split(": ")[0] for problem in error.value.problems]
    assert named == [f"{NAME}@{REVISION}:data/{kept[n].name}" for n in (2, 5)]
    with pytest.raises(UserError, match="the list of its files is not cached"):
        build_corpus(from_hub(tiny_config), tmp_path / "again", tmp_path / "elsewhere")


def test_the_hubs_own_cache_is_used_once_verified(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = config.HubFiles(NAME, REVISION, "data/train-0[01].parquet")
    files = hub.list_files(source, tmp_path / "store")
    cache = tmp_path / "cache"
    snapshot = cache / f"datasets--{NAME.replace('/', '--')}/snapshots/{REVISION}/data"
    snapshot.mkdir(parents=True)
    (snapshot / "train-00.parquet").write_bytes(SHARDS["data/train-00.parquet"])
    (snapshot / "train-01.parquet").write_bytes(b"not it")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    hub.fetch(files)
    assert [file.path.read_bytes() for file in files] == [
        SHARDS[f"data/train-0{n}.parquet"] for n in (0, 1)
    ]
    assert server.sent["data/train-00.parquet"] == 0 < server.sent["data/train-01.parquet"]


def test_too_little_disk_is_said_before_anything_is_fetched(
    server: Hub, tiny_config: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="kB are needed .* 1.00 kB are free; make room"):
        build_corpus(from_hub(tiny_config), tmp_path / "corpus", tmp_path)
    assert not list(tmp_path.rglob("*.parquet*"))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["org/absent@" + REVISION + ":*.parquet"], "answered 404: there is no such dataset"),
        ([f"{NAME}@{'f' * 40}:*.parquet"], "answered 404"),
        ([f"{NAME}@{REVISION}:other/*.parquet"], "no file matches"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    server: Hub, tiny_config: config.Config, tmp_path: Path, paths: list[str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        build_corpus(
            dataclasses.replace(tiny_config.corpus, source="hub", paths=paths),
            tmp_path / "corpus",
            tmp_path,
        )


def test_problems_and_conversations_come_from_the_hub_too(
    server: Hub, tiny_config: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolTalk, MMLU, ARC and GSM8K as they are laid out on the hub, through every fault; then again without a network."""
    server.faults = {
        "tree": ["500"],
        "chat.parquet": ["reset", "429"],
        "mmlu.parquet": ["wrong bytes"],
        "arc.parquet": ["redirect"],
        "main/train-0.parquet": ["short", "503"],
        "main/test-0.parquet": ["reset", "no ranges"],
    }
    talk = {name: f"org/talk@{REVISION}:{name}.parquet" for name in ROWS} | {
        "gsm": f"org/gsm@{REVISION}:main/train*.parquet"
    }
    cfg = dataclasses.replace(
        tiny_config.corpus, problems=f"org/gsm@{REVISION}:main/*.parquet", conversations=talk
    )
    manifest = build_corpus(cfg, tmp_path / "corpus", tmp_path)
    held_out = cfg.validation_problems
    assert manifest["problems"]["counts"] == {
        "test": 5,
        "train": 25 - held_out,
        "validation": held_out,
    }
    read = {
        name: [
            row["messages"] for row in load_jsonl(tmp_path / f"corpus/conversations/{name}.jsonl")
        ]
        for name in talk
    }
    assert read["chat"] == [
        [
            {"role": "user", "content": "Be brief.\n\nHi?"},
            {"role": "assistant", "content": "Hello."},
        ]
    ]
    assert read["mmlu"][0] == [
        {
            "role": "user",
            "content": "2+2?\n\nA. 3\nB. 4\nC. 5\nD. 6\n\nAnswer with the letter alone.",
        },
        {"role": "assistant", "content": "B"},
    ]
    assert read["arc"][0][1] == {"role": "assistant", "content": "B"}
    assert len(read["gsm"]) == 25
    assert read["gsm"][3][1]["content"][1] == {
        "type": "tool_call",
        "text": "3+3",
    }
    assert {entry["source"]: entry["skipped"] for entry in manifest["conversations"]["files"]} == {
        "chat": 1,
        "mmlu": 0,
        "arc": 0,
        "gsm": 0,
    }
    assert not any(server.faults.values())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert build_corpus(cfg, tmp_path / "again", tmp_path) == manifest


def kept_archive(store: Path, packed: bytes) -> config.Archive:
    """An archive that was fetched before."""
    digest = hashlib.sha256(packed).hexdigest()
    (store / "archives").mkdir(parents=True, exist_ok=True)
    (store / "archives" / f"{digest}.zip").write_bytes(packed)
    return config.Archive("https://example.org/x.zip", digest)


def zipped(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return packed.getvalue()


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "a/")])
def test_members_that_clash_are_named(names: tuple[str, str], tmp_path: Path) -> None:
    source = kept_archive(tmp_path, zipped("core.yaml", *names))
    with pytest.raises(UserError, match="'a' is both a file and a folder in it"):
        hub.archive(source, tmp_path)
    assert not (tmp_path / "archives" / source.sha256).exists()


def test_a_member_with_an_endless_name_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = kept_archive(tmp_path, zipped("core.yaml", "a/" * 3000 + "b"))
    folder = hub.archive(source, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["core.yaml"]
    assert "is longer than 800 bytes; it is left out" in capsys.readouterr().err


def test_an_archive_with_a_flip_is_read_or_refused(tmp_path: Path) -> None:
    good = zipped("core.yaml")
    for place in range(len(good)):
        source = kept_archive(tmp_path, good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
        with contextlib.suppress(UserError):
            hub.archive(source, tmp_path)


def test_a_core_bundle_comes_by_url_with_its_checksum(
    server: Hub, tiny_config: config.Config, tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(
            "bundle/core.yaml",
            "icl_tasks:\n- {label: a, dataset_uri: a.jsonl, num_fewshot: [0], icl_task_type: language_modeling}\n",
        )
        archive.writestr("bundle/eval_meta_data.csv", "Eval Task,Random baseline\na,0\n")
        archive.writestr(
            "bundle/eval_data/a.jsonl", json.dumps({"context": "a", "continuation": "b"})
        )
        archive.writestr("__MACOSX/core.yaml", "litter")
        archive.writestr("../../outside", "x")
    server.plain["core.zip"] = packed.getvalue()
    server.faults["core.zip"] = ["reset", "500"]
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    cfg = dataclasses.replace(tiny_config.corpus, core=f"{server.url}/core.zip#sha256={digest}")
    manifest = build_corpus(cfg, tmp_path / "a" / "corpus", tmp_path / "a")
    assert manifest["core"]["missing"] == []
    assert (tmp_path / "a/corpus/core/eval_data/a.jsonl").is_file()
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "a/outside").exists()
    wrong = dataclasses.replace(cfg, core=f"{server.url}/core.zip#sha256={'0' * 64}")
    with pytest.raises(UserError, match="its sha256 is"):
        build_corpus(wrong, tmp_path / "b", tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"corpus.source": "hub"}, "corpus.paths: empty, but corpus.source is hub"),
        (
            {"corpus.source": "hub", "corpus.paths": ["org/x@main:*.parquet"]},
            "is not pinned: 'main'",
        ),
        (
            {"corpus.source": "hub", "corpus.paths": ["some/folder"]},
            "is not allowed; expected OWNER/NAME@COMMIT:PATTERN",
        ),
        ({"corpus.core": "https://example.org/x.zip"}, "lacks its checksum"),
        ({"corpus.megabytes": 5.0}, "corpus.megabytes: 5 is for corpus.source text, local or hub"),
        (
            {"corpus.drop_contaminated": True},
            "corpus.drop_contaminated: is for corpus.source text, local or hub",
        ),
        (
            {"corpus.drop_near_duplicates": True},
            "corpus.drop_near_duplicates: is for corpus.source text, local or hub",
        ),
        ({"corpus.conversations.facts": "x.jsonl"}, "this name is taken"),
    ],
)
def test_sources_that_cannot_be_meant_are_refused(
    project_root: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        config.load_config(project_root / "params.yaml", changes)


@pytest.mark.parametrize(
    ("listed", "pattern"),
    [
        ("../../../../evil.jsonl", "*/*/*/*/*.jsonl"),
        ("../../evil.jsonl", "*/*/*.jsonl"),
        ("..", ".."),
        ("a/../../../evil.jsonl", "a/*/*/*/*.jsonl"),
    ],
)
def test_a_listing_decides_no_path_outside(
    listed: str, pattern: str, server: Hub, tmp_path: Path
) -> None:
    server.repositories["org/evil"] = {listed: b'{"text": "x"}\n', "ok.jsonl": b"{}"}
    store = tmp_path / "a/b/c/downloads"
    with pytest.raises(UserError, match="leads out of its folder"):
        hub.list_files(config.HubFiles("org/evil", REVISION, pattern), store)
    outside = [path for path in tmp_path.rglob("evil*") if not path.is_relative_to(store)]
    assert not outside


def test_a_damaged_list_of_files_is_asked_for_again(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = config.HubFiles("org/list", REVISION, "*.jsonl")
    server.repositories["org/list"] = {"x.jsonl": b'{"text": "x"}\n'}
    before = hub.list_files(source, tmp_path)
    [kept] = tmp_path.rglob("listing-*.json")
    for damage in ("", "[{", "[5]", '[{"path": "x.jsonl"}]', "{}5", "[" * 9999):
        kept.write_text(damage)
        assert hub.list_files(source, tmp_path) == before
        assert f"{kept}: damaged" in capsys.readouterr().err


def test_files_of_a_pattern_that_are_no_data_are_said_and_left(
    server: Hub, tiny_config: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    server.repositories["org/mixed"] = {
        "x.json.gz": gzip.compress(rows),
        "README.txt": b"about",
        ".gitattributes": b"x",
        "LICENSE": b"x",
    }
    cfg = dataclasses.replace(tiny_config.corpus, source="hub", paths=[f"org/mixed@{REVISION}:*"])
    build_corpus(cfg, tmp_path / "corpus", tmp_path)
    assert list(documents(tmp_path / "corpus/documents")) == ["one", "two"]
    assert "3 files are not read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b?c=d#e.jsonl", "%2e%2e%2fx.jsonl", "日本+(1)&;.jsonl"])
def test_any_name_that_the_hub_lists_is_fetched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({"x/y": {name: b'{"text": "a"}\n'}}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        files = hub.list_files(config.HubFiles("x/y", REVISION, "*.jsonl"), tmp_path)
        hub.fetch(files)
    assert files[0].path.name == name
    assert files[0].path.read_bytes() == b'{"text": "a"}\n'


def test_a_kept_listing_with_a_flip_is_asked_for_again(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = config.HubFiles("org/noise", REVISION, "*.bin")
    listed = [file.remote for file in hub.list_files(source, tmp_path)]
    [kept] = tmp_path.rglob("listing-*.json")
    good = kept.read_bytes()
    for place in range(0, len(good), 29):
        kept.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert [file.remote for file in hub.list_files(source, tmp_path)] == listed
    assert "damaged; asking for the list of files again" in capsys.readouterr().err
