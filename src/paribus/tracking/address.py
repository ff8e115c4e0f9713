"""Addresses of MLflow stores: with their password for whoever connects, without it for everyone else.

A password is in MLFLOW_TRACKING_URI (http://user:password@host:5000) or in MLflow's own MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD. It stays in the environment: files, messages and MLflow itself get `public_uri`.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode

from paribus import runtime

_USER_INFO = re.compile(r"([A-Za-z][\w+.-]*://)[^\s/?#]*@")
_SECRET_QUERY = re.compile(r"pass|pwd|secret|token|key|credential", re.IGNORECASE)
_SECRET_IN_TEXT = re.compile(
    r"([?&][\w.-]*(?:pass|pwd|secret|token|key|credential)[\w.-]*=)[^&\s#'\"]+", re.IGNORECASE
)
HIDDEN = "***"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, password included, else `mlflow.db` in the main checkout; a relative sqlite file starts there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    file = uri.removeprefix("sqlite:///")
    return f"sqlite:///{runtime.main_checkout() / file}" if file != uri else uri


def public_uri(uri: str) -> str:
    """The address without user, password and secrets of its query: what may be shown and stored."""
    scheme, mark, rest = uri.partition("://")
    if not mark or rest.startswith("/"):  # a file: no one is named in it
        return uri
    if not _is_host(rest):  # a password with a / that was not percent-encoded
        rest = rest.rpartition("@")[2]
    host, slash, path = rest.partition("/")
    shown = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    address, question, query = shown.partition("?")
    if not question:
        return shown
    pairs = parse_qsl(query, keep_blank_values=True)
    hidden = [(key, HIDDEN if _SECRET_QUERY.search(key) else value) for key, value in pairs]
    return f"{address}?{urlencode(hidden, safe='*/:')}"


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
    """What is secret in the environment: passwords as written and as meant, the longest first."""
    found = {os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")}
    password = _user_info(uri)[1]
    found |= {password, unquote(password)}
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


def is_server(uri: str) -> bool:
    """Whether an MLflow server answers there, over HTTP."""
    return uri.partition("://")[0].casefold() in ("http", "https")
