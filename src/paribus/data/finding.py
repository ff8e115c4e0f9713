"""Which files a source of the corpus names: what is data, what is not, and why."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from paribus.data import UNREADABLE, open_text, parse_json, say
from paribus.data.paths import own_path
from paribus.errors import UserError, escaped

ROW_FORMATS = (".jsonl", ".json", ".parquet")
FORMATS = (".txt", *ROW_FORMATS)
PACKED = (".gz", ".zst")
OTHER = "of another format"
LITTER = "hidden or left by a system"
MOST_NAMED = 5  # files left out that a line names

# What systems, synchronisers and notebooks leave beside files; hidden names go with them.
_LITTER = re.compile(
    r"(?i)__macosx|thumbs\.db|ehthumbs\.db|desktop\.ini|\$recycle\.bin|system volume information|@eadir|#recycle"
    r"|lost\+found|__pycache__|icon\r|~\$.*|.*~|_success|_started.*|_committed.*|_temporary|_delta_log"
)
# Text about the data: these words begin the name, or a word with a joint goes before them.
_ABOUT = re.compile(
    r"(?i)([\w.]+[-_])?((un)?licen[sc]es?|copying|copyright|read[ _-]?me|notices?|authors|contributors|contributing"
    r"|change-?log|citations?|acknowledge?ments|disclaimer|requirements|robots|(data|dataset)[ _-]?card"
    r"|(check|md5|sha\d*)[ _-]?sums?|md5|sha\d+)([._-].*| ?\(\d+\).*)?"
    r"|(version|metadata|manifest|file[ _-]?list|urls?|credits|changes|faq|install|eula|terms([ _-]of[ _-](use|service))?"
    r"|attributions?|data[ _-]?statement|wget-log)\.txt(\.gz|\.zst)?"
)


@dataclass
class Found:
    """(name as written, path) of each file, once; what was passed over, and why; what is wrong."""

    files: list[tuple[str, Path]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_files(
    paths: Iterable[str],
    root: Path,
    key: str = "corpus.paths",
    columns: Collection[str] = (),
    formats: Collection[str] = FORMATS,
) -> Found:
    """The files that `paths` name: files, folders or globs, relative to `root`.

    A file that is named by itself is taken. Of a folder or glob are left out, and given with the reason: other
    formats, text about the data (such as licences), hidden files and what operating systems leave behind, and
    .json files that are not one object a line with one of `columns` (any, without columns).
    Order: as listed, and by name within a folder or glob, so that it does not depend on where `root` is.

    Args:
        paths: as params.yaml lists them.
        root: that relative ones start from.
        key: of params.yaml, for messages.
        columns: of which a row of a .json file has one.
        formats: endings of files that are taken from a folder.
    """
    found = Found()
    taken: dict[Path, str] = {}
    for spec in paths:
        try:
            base = own_path(root, spec, key)
        except UserError as error:
            found.problems += error.problems
            continue
        left_out: dict[str, str] = {}
        files: list[Path] = []
        for path in _named(base):
            if reason := _no_data(path, base, columns, formats):
                left_out[_name(path, root)] = reason
            else:
                files.append(path)
        if not files:
            found.problems.append(_nothing(key, spec, base, left_out, formats))
        for path in files:
            taken.setdefault(path.resolve(), _name(path, root))
        _say_stray_texts(files, root, key)
        found.left_out |= left_out
    found.files = [(name, path) for path, name in taken.items()]
    return found


def say_left_out(left_out: dict[str, str], what: str) -> None:
    """One line on files that were passed over; nothing without such files.

    Args:
        left_out: path -> why it was passed over.
        what: the files are for, in words.
    """
    if not left_out:
        return
    counts = Counter(left_out.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    named = ", ".join(list(left_out)[:MOST_NAMED])
    more = ", ..." if len(left_out) > MOST_NAMED else ""
    say(f"{what}: {len(left_out):,} files are not read ({reasons}): {named}{more}")


def _say_stray_texts(files: list[Path], root: Path, key: str) -> None:
    """A message on .txt files beside files of rows: a text about the data under an unknown name would be one."""
    texts = [_name(path, root) for path in files if format_of(path) == ".txt"]
    if not texts or len(texts) == len(files):
        return
    named = ", ".join(texts[:MOST_NAMED])
    more = ", ..." if len(texts) > MOST_NAMED else ""
    say(
        f"{key}: {len(texts):,} .txt beside files of rows are read, each as one document: {named}{more}"
    )


def format_of(path: PurePath) -> str:
    """The suffix that names the format, without that of the packing."""
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def no_data_by_name(path: PurePath, formats: Collection[str] = FORMATS) -> str | None:
    """Why a file of a folder or listing is not data, by its relative path; None if it may be.

    Args:
        path: relative to the folder or repository.
        formats: endings of files that are data.
    """
    if any(part.startswith(".") or _LITTER.fullmatch(part) for part in path.parts):
        return LITTER
    if format_of(path) not in formats:
        return OTHER
    if format_of(path) == ".txt" and _ABOUT.fullmatch(path.name):
        return "about the data"
    return None


def _named(base: Path) -> Iterator[Path]:
    """The files that a path or a glob may mean; links to folders too, so that they can be reported."""
    if base.is_file():
        yield base
        return
    names = base.rglob("*") if base.is_dir() else map(Path, _glob(base))
    for path in sorted(names):
        if path.is_file() or path.is_symlink():
            yield path


def _glob(base: Path) -> list[str]:
    return glob.glob(str(base), recursive=True)


def _no_data(
    path: Path, base: Path, columns: Collection[str], formats: Collection[str]
) -> str | None:
    """Why a file that `base` means is not read; None if it is."""
    if path == base:
        return None if format_of(path) in formats else OTHER
    if not path.is_file():
        return "a link to a folder or to nothing"
    if reason := no_data_by_name(path.relative_to(_fixed(base)), formats):
        return reason
    if path.suffix == ".json" and not _is_json_lines(path, columns):
        return "not one JSON object a line"
    return None


def _fixed(base: Path) -> Path:
    """The folder that a path or glob names without a wildcard: what it is called is the user's choice."""
    while any(mark in part for part in base.parts for mark in "*?[") and not base.is_dir():
        base = base.parent
    return base


def _is_json_lines(path: Path, columns: Collection[str]) -> bool:
    """Whether the first line that is not blank is an object, with one of the columns."""
    try:
        with open_text(path) as file:
            line = next((line for line in file if line.strip()), "")
        row = parse_json(line)
    except UNREADABLE:
        return False
    return isinstance(row, dict) and (not columns or any(name in row for name in columns))


def _nothing(
    key: str, spec: str, base: Path, left_out: dict[str, str], formats: Collection[str]
) -> str:
    if base.is_dir():
        what = "holds no file that can be read"
    elif base.is_file():
        what = "is not a file that can be read"
    else:
        what = "names no file that can be read"
    allowed = f"{', '.join(formats)}, alone or with {' or '.join(PACKED)}"
    passed_over = ""
    if left_out and not base.is_file():
        shown = [f"{name} is {reason}" for name, reason in list(left_out.items())[:MOST_NAMED]]
        passed_over = f"; {', '.join(shown)}"
    return f"{key}: {spec} {what} (looked at {base}; readable: {allowed}{passed_over})"


def _name(path: Path, root: Path) -> str:
    r"""A file's name in the manifest and in messages; a byte that is not UTF-8 is written like \udce9."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return escaped(name, limit=None)
