"""The corpus folder: documents, problems, conversations and CORE tasks from wherever the configuration says.

Layout, whatever the source: documents/*.jsonl {"text"} and documents/<name>/*.jsonl of `corpus.texts`,
problems/{train,validation,test}.jsonl {"question", "answer"}, conversations/<source>.jsonl {"messages"}, core/ as in the
public DCLM bundle, and manifest.json: what it was made from, with size and sha256 of every file. The conversations of the
embedded world are always there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from paribus import config, world
from paribus.data import Progress, load_jsonl
from paribus.data.contents import CONTENTS, digests_of
from paribus.data.corpus.conversations import build_conversations
from paribus.data.corpus.core import build_core
from paribus.data.corpus.described import Entry
from paribus.data.corpus.documents import build_documents, build_texts
from paribus.data.corpus.problems import build_problems
from paribus.data.disk import check_room
from paribus.data.sealed import seal
from paribus.errors import UserError
from paribus.files import whole_folder


def build_corpus(
    cfg: config.Corpus, out: Path, root: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the corpus folder `out` and return its manifest. Relative paths of `cfg` start at `root`.

    Raises UserError that lists everything wrong with every source (missing, corrupt, broken lines with file and
    line, no text column, nothing in it); `out` is then left as it was.
    """
    # Documents last: they are checked against the test items. Problems are reported in the order of the configuration.
    builders = {
        "problems": (cfg.problems, build_problems),
        "core": (cfg.core, build_core),
        "documents": (cfg.source, build_documents),
    }
    manifest: dict[str, Any] = {"world": dataclasses.asdict(cfg.world)}
    wrong: dict[str, list[str]] = {}
    with whole_folder(out) as partial:
        for name, (source, build) in builders.items():
            try:
                if source != "world":
                    manifest[name] = {"source": source} | build(cfg, partial / name, root, progress)
            except UserError as error:
                wrong[name] = error.problems
        own, wrong["conversations"] = build_conversations(cfg, partial / "own", root, progress)
        texts, wrong["texts"] = build_texts(cfg, partial / "texts", root, progress)
        problems = [
            problem
            for name in ("documents", "texts", "conversations", "problems", "core")
            for problem in wrong.get(name, [])
        ]
        if problems:
            raise UserError(problems)
        manifest |= _add_world(
            cfg, partial, {"conversations", *builders} - manifest.keys(), progress
        )
        for path in sorted((partial / "own").glob("*")):
            path.rename(partial / "conversations" / path.name)
        (partial / "own").rmdir()
        for name in texts:
            (partial / "texts" / name).rename(partial / "documents" / name)
        if texts:
            (partial / "texts").rmdir()
            manifest["documents"]["texts"] = texts
        manifest["conversations"]["files"] = own
        for name in ("problems", "conversations"):
            manifest[name]["counts"] = _count_rows(partial / name)
        manifest[CONTENTS] = digests_of(partial)
        manifest = seal(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (partial / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return manifest


def _add_world(
    cfg: config.Corpus, out: Path, parts: set[str], progress: Progress | None
) -> dict[str, Entry]:
    """Generate the named parts of the world (one that is not wanted at size 0) into `out`; their manifest."""
    problems = "problems" in parts
    if "documents" in parts:
        size = cfg.world.megabytes * 1e6
        check_room(out, size, f"corpus.world.megabytes: {cfg.world.megabytes:,g}")
    temporary = out / "world"
    counts = world.generate(
        temporary,
        seed=cfg.world.seed,
        megabytes=cfg.world.megabytes if "documents" in parts else 0,
        problems=cfg.world.problems if problems else 0,
        validation_problems=cfg.validation_problems if problems else 0,
        test_problems=cfg.world.test_problems if problems else 0,
        conversations=cfg.world.conversations,
        core_items=cfg.world.core_items,
        progress=progress or (lambda *_: None),
    )
    for name in parts:
        (temporary / name).rename(out / name)
    shutil.rmtree(temporary)
    more: dict[str, Entry] = {
        "documents": {
            "documents": counts["documents"],
            "bytes": counts["document_bytes"],
            "empty": 0,
        },
        "core": {"bundle": "synthetic", "missing": []},
    }
    return {name: {"source": "world", "files": []} | more.get(name, {}) for name in sorted(parts)}


def _count_rows(folder: Path) -> dict[str, int]:
    return {path.stem: sum(1 for _ in load_jsonl(path)) for path in sorted(folder.glob("*.jsonl"))}
