"""Addresses of MLflow stores: with their password for connections, without it for display.

A password is in MLFLOW_TRACKING_URI (http://user:password@host:5000) or in MLflow's own MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD. It stays in the environment: files, messages and MLflow itself get `public_uri`.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from paribus.places import main_checkout

_USER_INFO = re.compile(r"([A-Za-z][\w+.-]*://)[^\s/?#]*@")
# Keys of a query that say where a store is or how to reach it; the value of any other may be a secret.
_HARMLESS_KEYS = frozenset(
    (
        "host",
        "port",
        "dbname",
        "service",
        "driver",
        "charset",
        "mode",
        "cache",
        "timeout",
        "sslmode",
    )
)
_PAIR = re.compile(r"([^&;=]+)=([^&;]*)")  # of a query: key, value
_SECRET_IN_TEXT = re.compile(
    r"([?&][\w.-]*(?:pass|pwd|secret|token|key|credential)[\w.-]*=)[^&\s#'\"]+", re.IGNORECASE
)
HIDDEN = "***"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, password included, else `mlflow.db` in the main checkout; a relative sqlite file starts there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return f"sqlite:///{main_checkout() / file}" if file != uri else uri


def public_uri(uri: str) -> str:
    """The address without user, password and secrets of its query: what may be shown and stored."""
    scheme, mark, rest = uri.partition("://")
    if not mark:  # a path, or an address whose scheme was forgotten
        named = re.match(r"[^/.@\s][^/@\s]*:[^@\s]*@", uri)
        return uri[named.end() :] if named else uri
    address, question, query = _without_user(rest).partition("?")
    return f"{scheme}://{address}{question}{_PAIR.sub(_shown_pair, query)}"


def _without_user(rest: str) -> str:
    """What follows scheme:// without user, password and the fragment that no server sees."""
    if rest.startswith("/"):  # a file, whose name may have # in it, or a database of this machine
        return rest
    if not _is_host(rest):  # a password with a / that was not percent-encoded
        rest = rest.rpartition("@")[2]
    host, slash, path = rest.partition("/")
    return f"{host.rpartition('@')[2]}{slash}{path}".partition("#")[0]


def _shown_pair(pair: re.Match[str]) -> str:
    """key=value of a query, the value hidden unless its key is known to name no secret."""
    key, value = pair.groups()
    return f"{key}={value if key.casefold() in _HARMLESS_KEYS else HIDDEN}"


def _is_host(rest: str) -> bool:
    """Whether user, password and host all stand before the first /, as they do when they are percent-encoded."""
    return "@" not in rest or "@" in rest.partition("/")[0]


def with_secrets(uri: str) -> str:
    """The address to connect to for one that was stored: the environment's own, where they are of one store."""
    own = tracking_uri()
    return own if public_uri(own) == uri else uri


def has_secrets(uri: str) -> bool:
    """Whether connecting takes what only the environment has."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    return public_uri(uri) != uri or any(os.environ.get(name) for name in names)


def redacted(text: str) -> str:
    """A message without the passwords of addresses in it, and without the environment's own wherever they stand."""
    text = _SECRET_IN_TEXT.sub(rf"\g<1>{HIDDEN}", text)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri and public_uri(uri) != uri:
        text = text.replace(uri, public_uri(uri))
    text = _USER_INFO.sub(r"\1", text)
    for secret in _secrets(uri):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(uri: str) -> list[str]:
    """Secrets in the environment: as written and as decoded, the longest first."""
    found = {os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")}
    user, password = _user_info(uri)
    written = [password or user]  # a token may stand in place of the user
    for key, value in _PAIR.findall(uri.partition("?")[2]):
        if key.casefold() not in _HARMLESS_KEYS:
            written.append(value)
    found |= {*written, *map(unquote, written)}
    return sorted((each for each in found if len(each) >= 4), key=len, reverse=True)


def _user_info(uri: str) -> tuple[str, str]:
    """(user, password) as the address has them, percent-encoded."""
    rest = uri.partition("://")[2]
    if not rest or rest.startswith("/"):
        return "", ""
    if _is_host(rest):
        rest = rest.partition("/")[0]
    before = rest.rpartition("@")[0]
    user, _, password = before.partition(":")
    return user, password


def basic_authorization(uri: str) -> dict[str, str]:
    """The header that names user and password to a server, by the address or by MLflow's variables; {} without any."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user, password = map(unquote, _user_info(uri))
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user or password:
        packed = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {packed}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for a store of another kind."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def local_path(uri: str) -> Path | None:
    """The folder on this machine that an address names, as file:///a/b or /a/b; None for an address of another kind."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else uri)


def is_server(uri: str) -> bool:
    """Whether an MLflow server answers there, over HTTP."""
    return uri.partition("://")[0].casefold() in ("http", "https")
