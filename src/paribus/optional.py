"""Packages that a few commands need and requirements.lock leaves out: they are asked for before anything is computed."""

from __future__ import annotations

from importlib.util import find_spec

from paribus.errors import UserError

# Package -> the command that installs it. A lock brings what the package needs too.
INSTALL = {
    "gguf": "pip install gguf==0.19.0",
    "lm_eval": "pip install --no-deps -r requirements-lm.lock",
    "ray": "pip install --no-deps -r requirements-ray.lock",
}


def require(package: str, what: str) -> None:
    """Raises UserError with the command that installs a package where it is absent.

    Args:
        package: by the name that Python imports.
        what: needs it, as a person typed it.
    """
    if find_spec(package) is None:
        raise UserError(f"{what}: needs the package {package}; {INSTALL[package]}")
