"""The sources in `corpus.*`: the embedded world, a path, files of a Hugging Face dataset, or an archive by URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[^@:/]+):(?P<pattern>[^/\s].*)")
_ARCHIVE = re.compile(r"(?P<url>https?://[^#\s]+)#sha256=(?P<sha256>[0-9a-f]{64})")
HUB_FORM = "OWNER/NAME@COMMIT:PATTERN, such as openai/gsm8k@740312add88f781978c0658806c59bc2815b9866:main/*.parquet"


@dataclass(frozen=True)
class HubFiles:
    """Files of a dataset repository at one commit: those whose path matches `pattern` (* does not cross a /)."""

    name: str
    revision: str
    pattern: str


@dataclass(frozen=True)
class Archive:
    """A .zip at a URL, which has to have this sha256."""

    url: str
    sha256: str


Source = HubFiles | Archive | str  # str: `world` or a path


def parse_source(text: str) -> Source:
    """What `text` names. A string that is neither of the forms is a path."""
    if match := _HUB.fullmatch(text):
        return HubFiles(**match.groupdict())
    if match := _ARCHIVE.fullmatch(text):
        return Archive(**match.groupdict())
    return text


def source_problem(key: str, text: str, allowed: tuple[type, ...]) -> str | None:
    """The problem of the source that a key names, or None.

    Args:
        key: for the message.
        text: of the source, as params.yaml has it.
        allowed: kinds of sources that the key takes.
    """
    source = parse_source(text)
    if isinstance(source, HubFiles) and not re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return (
            f"{key}: {text!r} is not pinned: {source.revision!r} can come to mean something else; write the 40 hexadecimal "
            f"digits of the commit (https://huggingface.co/datasets/{source.name}/commits/{source.revision})"
        )
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return f"{key}: {text!r} lacks its checksum; write it as URL#sha256=HEX, so that it cannot change unnoticed"
    if not isinstance(source, allowed):
        forms = {str: "a path", HubFiles: HUB_FORM, Archive: "URL#sha256=HEX"}
        return f"{key}: {text!r} is not allowed; expected {' or '.join(forms[kind] for kind in allowed)}"
    return None
