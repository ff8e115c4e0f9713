"""Pages served here: the chat and MLflow."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from typing import IO

import click

from paribus.config import (
    load_config,
)
from paribus.errors import MachineError, UserError
from paribus.places import main_checkout, state_root
from paribus.tracking import views
from paribus.tracking.address import is_server, public_uri, redacted, tracking_uri
from paribus.tracking.store import opened

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


START_SECONDS = 120.0  # MLflow's server begins in 5 s; on a busy machine in ten times that
LOOK_SECONDS = 0.2
LAST_LINES = 12  # of what it printed, where it failed


def mlflow_ui(port: int, host: str | None = None, browse: bool = False) -> None:
    """Serve MLflow's page on this project's store until it is ended, and say where its runs are.

    Arguments:
        port: of the page.
        host: address to listen at; by default this machine alone, whatever MLFLOW_HOST says.
        browse: whether to open the page in a browser.

    Raises:
        UserError: the port is taken, the address is not this machine's, this is no checkout of paribus, or the store
            does not answer.
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
    found = check_port(address, port)
    if not found.is_loopback:
        click.echo(
            f"paribus ui: {address}:{port} can be reached from other machines, and asks nobody who they are",
            err=True,
        )
    store = opened(uri, load_config().tracking.experiment, state_root())
    where = views.link(
        f"http://{UI_HOST if found.is_unspecified else address}:{port}", store.experiment
    )
    with tempfile.TemporaryFile() as words:
        server = _start_server(uri, address, port, words)
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            if _is_up(server, where):
                click.echo(f"paribus: MLflow at {where}\nCtrl-C ends it")
                if browse:
                    click.launch(where)
            status = server.wait()
        except KeyboardInterrupt:
            return
        finally:
            server.terminate()
            server.wait()
        words.seek(0)
        last = redacted(words.read().decode(errors="replace")).splitlines()[-LAST_LINES:]
        raise MachineError([f"MLflow's server ended with status {status}", *last])


def _start_server(uri: str, address: str, port: int, words: IO[bytes]) -> subprocess.Popen[bytes]:
    """MLflow's server. words: takes what it and its libraries print, which is of interest only if it fails."""
    # The store's address may hold a password: other users see a command, and not its environment.
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for name in ("MLFLOW_HOST", "MLFLOW_PORT"):
        environment.pop(name, None)
    quiet = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    command = ["mlflow", "ui", "--host", address, "--port", str(port), *quiet]
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=words, stderr=words
    )


def _is_up(server: subprocess.Popen[bytes], where: str) -> bool:
    """Wait until a server answers; False where it ends before."""
    page = where.partition("/#")[0]
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{page}/health", timeout=5):
            return True
        time.sleep(LOOK_SECONDS)
    return False


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
