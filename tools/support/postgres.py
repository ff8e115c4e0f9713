"""A PostgreSQL of a test's or benchmark's own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path


class Server:
    """A PostgreSQL in a folder of its own, run by an account that it accepts: it refuses root.

    It lets everybody in who reaches `address`.
    """

    def __init__(self, programs: Path, account: str | None, address: str = "127.0.0.1") -> None:
        self.programs, self.account, self.address = programs, account, address
        self.folder = Path(tempfile.mkdtemp(prefix="paribus-postgres-"))
        if account:
            shutil.chown(self.folder, account)
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://paribus@{address}:{self.port}/postgres"
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", "paribus", "-A", "trust", "--no-sync"
        )
        with (self.folder / "data/pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet trust\n")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, *arguments],
            user=self.account,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self.address} -c fsync=off"
        self._run(
            "pg_ctl",
            "-D",
            str(self.folder / "data"),
            "-w",
            "-l",
            str(self.folder / "log"),
            "-o",
            options,
            "start",
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")


def found() -> tuple[Path, str | None] | str:
    """(folder of its programs, the account that may run it; None: this one), or why there is none."""
    initdb = shutil.which("initdb") or next(
        iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
    )
    if initdb is None:
        return "no PostgreSQL here: apt-get install postgresql"
    if os.geteuid() != 0:
        return Path(initdb).parent, None
    known = {user.pw_name for user in pwd.getpwall()}
    account = next((name for name in ("postgres", "nobody") if name in known), None)
    if account is None:
        return "PostgreSQL refuses root, and there is no account postgres or nobody"
    return Path(initdb).parent, account
