"""Files of Hugging Face dataset repositories at a commit, and archives by URL: planned, fetched, verified, kept.

They are kept in a folder that outlives the corpus built of them: `<owner>--<name>/<commit>/<path>`, with the listing
of the repository, which at a commit never changes; `archives/<sha256>`. With HF_HUB_OFFLINE=1 nothing is asked of any
server: what is there is used, also from huggingface_hub's own cache, and what is missing is named.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import translate
from functools import partial
from pathlib import Path, PurePosixPath
from re import compile as regex
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from paribus.config import Archive, HubFiles
from paribus.data import Progress
from paribus.data.download import (
    BROKEN,
    CONNECTIONS,
    Remote,
    fetch_all,
    missing_bytes,
    need_space,
    present,
    read_range,
)
from paribus.data.finding import LITTER, no_data_by_name, say_left_out
from paribus.data.paths import inside, name_problem
from paribus.data.sealed import read_sealed, seal
from paribus.errors import UserError, escaped
from paribus.files import Items, misfit, replacing, whole_folder, write_atomic
from paribus.text import file_size

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

# What a damaged .zip raises; RuntimeError: it has a password.
_NO_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    RuntimeError,
)
_NUMBER, _TEXT = (int, type(None)), (str, type(None))
# Of a kept list.
_LISTED = Items({"path": str, "size": _NUMBER, "sha256": _TEXT, "git_blob": _TEXT})
# Text of a packed file / its size, about; of parquet it is read from the file's end.
UNPACKED = {
    ".zst": 3.0,
    ".gz": 3.0,
}


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, here after it was fetched. name: OWNER/NAME@COMMIT:PATH."""

    remote: Remote

    @property
    def name(self) -> str:
        """OWNER/NAME@COMMIT:PATH."""
        return self.remote.name

    @property
    def path(self) -> Path:
        """Where the fetched file lies on this machine."""
        return self.remote.path


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network; read when asked, not when imported."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def endpoint() -> str:
    """The hub's address; HF_ENDPOINT names a mirror."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def say(line: str) -> None:
    """Print a progress message."""
    print(f"paribus corpus: {escaped(line, limit=None)}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- the files of a repository


def list_files(source: HubFiles, store: Path) -> list[HubFile]:
    """The files that a source names, by path. Raises UserError.

    Args:
        source: repository, commit and pattern.
        store: the folder of what was downloaded.
    """
    matches = regex(translate(source.pattern)).match
    depth = source.pattern.count("/")
    repository = f"{source.name}@{source.revision}"
    folder = inside(store, f"{source.name.replace('/', '--')}/{source.revision}", repository)
    files = []
    for entry in _listing(source, folder):
        listed = entry["path"]
        if matches(listed) and listed.count("/") == depth:
            path = inside(folder, listed, f"{repository}: the list of files of {endpoint()}")
            remote = Remote(
                f"{endpoint()}/datasets/{source.name}/resolve/{source.revision}/{quote(listed)}",
                path,
                f"{repository}:{listed}",
                entry["size"],
                entry["sha256"],
                entry["git_blob"],
            )
            files.append(HubFile(remote))
    if not files:
        raise UserError(f"{source.name}@{source.revision}: no file matches {source.pattern!r}")
    return sorted(files, key=lambda file: file.name)


def _listing(source: HubFiles, folder: Path) -> list[dict[str, Any]]:
    """Path, size, sha256 (None for a file that is not in LFS) and git's hash of every file near the pattern."""
    parents = PurePosixPath(source.pattern).parts[:-1]
    fixed = next(
        (i for i, part in enumerate(parents) if any(mark in part for mark in "*?[")), len(parents)
    )
    inside = "/".join(parents[:fixed])
    kept = folder / f"listing-{inside.replace('/', '--') or 'all'}.json"
    if kept.is_file() and (entries := _kept_listing(kept)) is not None:
        return entries
    if offline():
        raise UserError(
            f"{source.name}@{source.revision}: HF_HUB_OFFLINE is set and the list of its files is not cached "
            f"({kept}); fetch it once with a network"
        )
    entries = _ask_listing(source, inside)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, json.dumps(seal({"files": entries}), indent=0))
    return entries


def _kept_listing(kept: Path) -> list[dict[str, Any]] | None:
    """The entries of a kept list; None for a damaged one, which is reported and requested again."""
    try:
        entries = read_sealed(kept, "").get("files")
    except UserError:
        entries = None
    if misfit(entries, _LISTED) is None:
        return list(entries or ())
    say(f"{kept}: damaged; asking for the list of files again")
    return None


def _ask_listing(source: HubFiles, inside: str) -> list[dict[str, Any]]:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    where = f"{source.name}@{source.revision}"
    try:
        tree = HfApi(endpoint=endpoint()).list_repo_tree(
            source.name,
            inside or None,
            recursive=True,
            revision=source.revision,
            repo_type="dataset",
        )
        return [
            {
                "path": entry.path,
                "size": entry.size,
                "sha256": entry.lfs and entry.lfs.sha256,
                "git_blob": entry.blob_id,
            }
            for entry in tree
            if isinstance(entry, RepoFile)
        ]
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        hint = {
            401: "no such dataset, or it is private or gated: log in with `hf auth login`",
            403: "accept its terms on its page, then `hf auth login`",
            404: "there is no such dataset, commit or folder",
        }.get(code, "the hub may have trouble; start again later")
        raise UserError(f"{where}: {endpoint()} answered {code}: {hint}") from None
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(
            f"{where}: {endpoint()} cannot be reached ({error or type(error).__name__}); what is cached can be used "
            "with HF_HUB_OFFLINE=1"
        ) from None


# ---------------------------------------------------------------- fetching


def _headers() -> dict[str, str]:
    from huggingface_hub.utils._headers import build_hf_headers

    return dict(build_hf_headers(library_name="paribus"))


def fetch(files: list[HubFile], progress: Progress | None = None) -> None:
    """Every file here, whole and verified. Raises UserError that names what cannot be had.

    Args:
        files: to download, several side by side.
        progress: that counts bytes on the terminal; None: nobody looks.
    """
    remotes = [file.remote for file in files]
    for remote in remotes:
        _from_cache(remote)
    here = present(remotes, say)
    missing = [remote for remote in remotes if remote not in here]
    if missing and offline():
        raise UserError(
            f"{remote.name}: not cached ({remote.path}), and HF_HUB_OFFLINE is set"
            for remote in missing
        )
    if missing:
        fetch_all(missing, _headers(), progress)


def _from_cache(remote: Remote) -> None:
    """Take a file that huggingface_hub has in its own cache, by a link where the disk allows it."""
    from huggingface_hub import try_to_load_from_cache

    if remote.path.exists():
        return
    name, _, path = remote.name.partition(":")
    repository, _, revision = name.partition("@")
    found = try_to_load_from_cache(repository, path, revision=revision, repo_type="dataset")
    if not isinstance(found, str) or remote.problem(Path(found)):
        return
    remote.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(remote.path) as aside:
        shutil.copyfile(os.path.realpath(found), aside)


def documents(
    sources: list[HubFiles],
    column: str,
    megabytes: float | None,
    store: Path,
    progress: Progress | None = None,
) -> Iterator[HubFile]:
    """The files that hold the first `megabytes` of text (None: all), fetched side by side before the first is given.

    The fetch begins with a message about the files and the room they take, which is checked. If the files hold less text
    than estimated, the next ones are fetched one by one while the caller iterates. Raises UserError.

    Args:
        sources: repositories with their patterns, read in this order.
        column: that holds the text.
        megabytes: of text to take; None: all.
        store: the folder of what was downloaded.
        progress: that counts bytes on the terminal; None: nobody looks.
    """
    files = _data_files(sources, store)
    texts = _enough(files, column, megabytes)
    planned = files[: len(texts)]
    text = sum(texts) if megabytes is None else min(sum(texts), megabytes * 1e6)
    missing = missing_bytes(file.remote for file in planned)
    total = sum(file.remote.size or 0 for file in planned)
    say(
        f"{len(planned)} of {len(files)} files, {file_size(total)}, for {file_size(text)} of text (about "
        f"{text / 4.8e6:,.1f} million tokens); {file_size(missing)} to fetch"
    )
    need_space(
        store,
        int(text) + (0 if offline() else missing),
        "for the files and the text taken from them",
    )
    fetch(planned, progress)
    yield from planned
    for file in files[len(planned) :]:
        say(f"{file.name}: one file more, as those before it held less text than foretold")
        fetch([file], progress)
        yield file


def _data_files(sources: list[HubFiles], store: Path) -> list[HubFile]:
    """The files that sources name, without those that match a pattern but are not data; these are reported."""
    files: list[HubFile] = []
    left_out: dict[str, str] = {}
    for source in sources:
        explicit = not any(mark in source.pattern for mark in "*?[")
        for file in list_files(source, store):
            reason = no_data_by_name(PurePosixPath(file.name.partition(":")[2]))
            if reason and not explicit:
                left_out[file.name] = reason
            else:
                files.append(file)
    say_left_out(left_out, "corpus.paths")
    if not files:
        named = ", ".join(f"{source.name}@{source.revision}:{source.pattern}" for source in sources)
        raise UserError(f"corpus.paths: {named} names no file that can be read")
    return files


def _enough(files: list[HubFile], column: str, megabytes: float | None) -> list[float]:
    """Bytes of text, about, of each of the first files that together hold so much."""
    texts: list[float] = []
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for first in range(0, len(files), CONNECTIONS):
            if megabytes is not None and sum(texts) >= megabytes * 1e6:
                break
            texts += pool.map(
                partial(_text_bytes, column=column), files[first : first + CONNECTIONS]
            )
    if megabytes is None:
        return texts
    taken = 0.0
    for count, size in enumerate(texts, 1):
        taken += size
        if taken >= megabytes * 1e6:
            return texts[:count]
    return texts


def _text_bytes(file: HubFile, column: str) -> float:
    """Bytes of text in a file: of parquet what its last part says of the column, else from the size."""
    size = float(file.remote.size or 0)
    if file.path.suffix != ".parquet":
        return size * UNPACKED.get(file.path.suffix, 1.0)
    if offline() and not file.path.is_file():
        return size  # it is named as missing when it is needed
    import pyarrow
    import pyarrow.parquet

    source = file.path if file.path.is_file() else io.BufferedReader(_Tail(file.remote), 1 << 17)
    try:
        footer = pyarrow.parquet.read_metadata(source)
    except (pyarrow.ArrowInvalid, *BROKEN) as error:
        if file.path.is_file():
            return size  # corrupt: it is named and fetched again
        raise UserError(f"{file.name}: its parquet footer cannot be read: {error}") from None
    return float(_column_bytes(footer, column)) or size


def _column_bytes(footer: FileMetaData, name: str) -> int:
    """Bytes of a column, unpacked, over all row groups of a parquet file."""
    total = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema == name:
                total += column.total_uncompressed_size
    return total


class _Tail(io.RawIOBase):
    """Bytes of a remote file by ranges, to look at its end without fetching it."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._place, self._headers = remote, 0, _headers()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._remote.size or 0}[
            whence
        ]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        want = min(len(buffer), (self._remote.size or 0) - self._place)
        if want <= 0:
            return 0
        data = read_range(self._remote.url, self._headers, self._place, self._place + want)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


# ---------------------------------------------------------------- archives


def archive(source: Archive, store: Path, progress: Progress | None = None) -> Path:
    """The folder with core.yaml in an archive, fetched and unpacked once. Raises UserError.

    Args:
        source: address and checksum.
        store: the folder of what was downloaded.
        progress: that counts bytes on the terminal; None: nobody looks.
    """
    folder = store / "archives" / source.sha256
    if not folder.is_dir():
        packed = Remote(
            source.url,
            store / "archives" / f"{source.sha256}.zip",
            source.url,
            sha256=source.sha256,
        )
        if not present([packed], say):
            if offline():
                raise UserError(
                    f"{source.url}: not cached ({packed.path}), and HF_HUB_OFFLINE is set"
                )
            fetch_all([packed], {"User-Agent": "paribus"}, progress)
        _unpack(packed.path, folder)
    found = [
        path
        for path in folder.rglob("core.yaml")
        if no_data_by_name(path.relative_to(folder).parent) != LITTER
    ]
    if not found:
        raise UserError(f"{source.url}: no core.yaml in it")
    return min(found, key=lambda path: (len(path.parts), str(path))).parent


def _unpack(packed: Path, folder: Path) -> None:
    """Unpack all of a .zip, or nothing; members whose names lead elsewhere are left out, with a message."""
    try:
        with zipfile.ZipFile(packed) as zipped, whole_folder(folder) as partial_folder:
            need_space(
                folder.parent,
                sum(entry.file_size for entry in zipped.infolist()),
                f"to unpack {packed.name}",
            )
            for member in zipped.infolist():
                _extract(zipped, member, partial_folder)
    except _NO_ZIP as error:
        raise UserError(f"{packed}: not a .zip that can be read: {error}") from None
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        clash = Path(error.filename).name
        raise UserError(f"{packed}: {clash!r} is both a file and a folder in it") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the start of the file
            raise
        raise UserError(f"{packed}: not a .zip that can be read: it is damaged") from None


def _extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """One member as a plain file or a folder: never a link, never elsewhere."""
    name = member.filename.rstrip("/")
    if problem := name_problem(name):
        say(f"{zipped.filename}: {member.filename!r:.200} {problem}; it is left out")
        return
    path = inside(folder, name, str(zipped.filename))
    if member.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(member) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
