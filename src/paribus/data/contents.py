"""The files of a corpus against the checksums in its manifest: what rotted on a disk is named before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from paribus.data import load_jsonl, sha256_file
from paribus.data.sealed import read_sealed
from paribus.errors import UserError

CONTENTS = "contents"  # of the manifest: path below the corpus -> sha256
REMAKE = "remove it and run `dvc checkout data/corpus`, or make the corpus again (paribus corpus, or dvc repro --force corpus)"


def digests_of(folder: Path) -> dict[str, str]:
    """Path below `folder` -> sha256, of every file in it, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(sha256_file, paths))
    return {
        path.relative_to(folder).as_posix(): digest
        for path, digest in zip(paths, digests, strict=True)
    }


def read_manifest(corpus: Path) -> dict[str, Any]:
    """The manifest of a corpus. Raises UserError if it is absent or damaged."""
    manifest = read_sealed(corpus / "manifest.json", REMAKE)
    sections = [manifest.get(name) for name in ("documents", "problems", "core")]
    if not all(isinstance(section, dict) and "source" in section for section in sections):
        raise UserError(f"{corpus / 'manifest.json'}: damaged: it lacks a part; {REMAKE}")
    return manifest


def check_files(corpus: Path, paths: Iterable[Path]) -> None:
    """Raises UserError that names every one of the files whose content is not what the corpus was built with.

    A corpus without a manifest, or an older one without checksums, is not checked.
    """
    if not (corpus / "manifest.json").is_file():
        return
    digests = read_sealed(corpus / "manifest.json", REMAKE).get(CONTENTS, {})
    problems = []
    for path in paths:
        expected = digests.get(path.relative_to(corpus).as_posix())
        if expected and path.is_file() and sha256_file(path) != expected:
            problems.append(
                f"{path}: its sha256 is not the manifest's: the file is damaged; {REMAKE}"
            )
    if problems:
        raise UserError(problems)


def rows(corpus: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl file of a corpus, checked. Raises UserError if it is damaged, or not there."""
    check_files(corpus, [corpus / name])
    yield from load_jsonl(corpus / name)
