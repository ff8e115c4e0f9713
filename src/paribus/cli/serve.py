"""Pages served here: the chat and MLflow."""

from __future__ import annotations

import ipaddress
import os
import sys

import click

from paribus.config import (
    load_config,
)
from paribus.errors import UserError
from paribus.places import main_checkout
from paribus.tracking.address import is_server, public_uri, tracking_uri

# Of the fixed prompts, those that the curriculum teaches; the others show what a run was not taught.
SUGGESTED = (0, 3, 5, 6, 7)


def chat_in_terminal(
    checkpoint: str, *, temperature: float, top_k: int, seed: int, max_tokens: int
) -> None:
    """Talk to a checkpoint on this terminal or pipe."""
    from paribus.chat import Options, terminal

    terminal.chat(checkpoint, Options(max_tokens, temperature, top_k, seed), load_config())


def chat_page(
    checkpoints: list[str], port: int, *, temperature: float, top_k: int, seed: int, max_tokens: int
) -> None:
    """Serve a page that puts checkpoints side by side."""
    from paribus.chat import Options, web
    from paribus.data.prompts import PROMPTS

    names = [name.strip() for name in checkpoints if name.strip()]
    suggested = tuple(PROMPTS[place] for place in SUGGESTED)
    options = Options(max_tokens, temperature, top_k, seed)
    web.serve(names, port, options, suggested, load_config())


UI_HOST = "127.0.0.1"


def mlflow_ui(port: int, host: str | None = None) -> None:
    """Become `mlflow ui` on this project's store.

    Arguments:
        port: of the page.
        host: address to listen at; by default this machine alone, whatever MLFLOW_HOST says.

    Raises:
        UserError: the port is taken, the address is not this machine's, or the store is a server with a page of its own.
    """
    uri = tracking_uri()
    checkout = main_checkout()
    if not any((checkout / name).exists() for name in ("dvc.yaml", ".paribus", "mlflow.db")):
        raise UserError(
            f"{checkout} is no checkout of paribus: run this in one, where its runs are"
        )
    if is_server(uri):
        raise UserError(f"the store is a server, and has its page at {public_uri(uri)}")
    address = host or UI_HOST
    if not check_port(address, port).is_loopback:
        click.echo(
            f"paribus ui: {address}:{port} can be reached from other machines, and asks nobody who they are",
            err=True,
        )
    # The store's address may hold a password: other users see a command, and not its environment.
    os.environ |= {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    os.environ.pop("MLFLOW_HOST", None)
    os.environ.pop("MLFLOW_PORT", None)
    command = ["mlflow", "ui", "--host", address, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def check_port(host: str, port: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that a host's name stands for.

    Raises:
        UserError: another program listens at the port, or this machine does not have the address.
    """
    import socket

    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen()
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}") from None
    except UnicodeError:  # a label of no or of too many letters
        raise UserError(f"--host {host!r} is no name of a host") from None
    except OSError as error:
        raise UserError(
            f"--port {port}: {error.strerror} at {host}; choose another with --port, or end the program that listens "
            "there"
        ) from None
    return ipaddress.ip_address(str(found[0]).partition("%")[0])
