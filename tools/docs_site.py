"""What mkdocs is told besides mkdocs.yml: the generated reference, and files outside docs/ that pages link to.

A page of docs/ may link to any file of the repository, as it does on a forge. The site has a copy of each such file under
`repository/`, Markdown as a page and all else as it is, so that every link leads somewhere without a network.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
COPIES = "repository"
LINK = re.compile(r"(?<=\]\()(?P<target>[^)#\s:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the copies."""
    sys.path.insert(0, str(ROOT / "tools"))
    import reference

    for uri, text in reference.pages().items():
        files.append(File.generated(config, uri, content=text))
    waiting = [
        f"docs/{file.src_uri}"
        for file in files
        if file.abs_src_path and file.is_documentation_page()
    ]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in sorted(_targets(page) - seen):
            seen.add(target)
            if target.startswith("docs/"):
                continue
            files.append(_copy(target, config))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files outside docs/ to their copies."""
    here = page.file.src_uri
    source = here.removeprefix(f"{COPIES}/") if here.startswith(f"{COPIES}/") else f"docs/{here}"

    def led(match: re.Match[str]) -> str:
        target = _resolved(source, match["target"])
        there = target.removeprefix("docs/") if target.startswith("docs/") else f"{COPIES}/{target}"
        return posixpath.relpath(there, posixpath.dirname(here) or ".")

    return LINK.sub(led, markdown)


def _listing(folder: Path) -> str:
    """A page with the names of a folder's files."""
    names = sorted(path.name for path in (ROOT / folder).iterdir())
    return "\n".join([f"# {folder}", "", *(f"- `{name}`" for name in names)]) + "\n"


def _targets(page: str) -> set[str]:
    """The files of the repository that a page links to."""
    if not (ROOT / page).exists():
        return set()
    text = (ROOT / page).read_text(encoding="utf-8")
    return {_resolved(page, match["target"]) for match in LINK.finditer(text)}


def _resolved(page: str, target: str) -> str:
    """The path of a link's target from the repository's root; of a folder, that of its README.md, or of a list made here."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return f"{path}/README.md" if (ROOT / path).is_dir() else path


def _copy(path: str, config: MkDocsConfig) -> File:
    uri = f"{COPIES}/{path}"
    if not (ROOT / path).exists():
        return File.generated(config, uri, content=_listing(Path(path).parent))
    if path.endswith(".md"):
        return File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8"))
    return File.generated(config, uri, abs_src_path=str(ROOT / path))
