"""Several machines on one: each a set of Linux namespaces with its own address, name, processes, /tmp/ray, home and files.

They share the installed software and the clock, and nothing else: what one writes, another sees over the network alone.
Killing a machine's first process makes the kernel kill all of its processes at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

SHARED_MEMORY = "400m"  # of a machine, for Ray's object store
OBJECT_STORE = 100_000_000  # bytes; runs exchange messages only
START_TRIES = (
    4  # of `ray start`: on a busy machine Ray's own agents take longer to start than it waits
)
GATEWAY = "10.77.{net}.1"


def impossible() -> str | None:
    """Why no machines can be made here; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for command in ("ip", "unshare", "nsenter", "mount"):
        if shutil.which(command) is None:
            return f"there is no command {command}"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True
    )
    return None if tried.returncode == 0 else "this container may not make namespaces"


class Machine:
    """A machine of a network; `folder` is its disk, which no other machine sees."""

    def __init__(self, name: str, address: str, folder: Path, bridge: str) -> None:
        self.name, self.address, self.folder, self._bridge = name, address, folder, bridge
        self._holder: subprocess.Popen[bytes] | None = None
        self._first = 0

    def start(self) -> None:
        for name in ("home", "ray", "empty"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        # The disks of all machines are in one folder: over it lies a file system that has this machine's disk alone.
        disks, own = self.folder.parent, self.folder
        script = (
            f"hostname {self.name} && mount -t tmpfs -o size={SHARED_MEMORY} tmpfs /dev/shm"
            f" && mkdir -p /run/paribus-own && mount -t tmpfs tmpfs /run/paribus-own && mkdir /run/paribus-own/disk"
            f" && mount --bind {own} /run/paribus-own/disk && mount -t tmpfs tmpfs {disks} && mkdir {own}"
            f" && mount --bind /run/paribus-own/disk {own} && mount --bind {own}/ray /tmp/ray"
            " && exec sleep infinity"
        )
        options = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(["unshare", *options, "bash", "-c", script])
        self._first = self._wait_for_first()
        link = f"{self._bridge}-{self.name}"[:15]
        peer = ["type", "veth", "peer", "name", "eth0", "netns", str(self._first)]
        _run("ip", "link", "add", link, *peer)
        _run("ip", "link", "set", link, "master", self._bridge, "up")
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{self.address}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
        ):
            _run(*self._within(), *command)

    def _wait_for_first(self) -> int:
        """The machine's first process, once it has made its file systems."""
        assert self._holder
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for child in psutil.Process(self._holder.pid).children():
                with contextlib.suppress(psutil.Error):
                    if child.name() == "sleep":
                        return int(child.pid)
            assert self._holder.poll() is None, f"{self.name} did not start"
            time.sleep(0.05)
        raise AssertionError(f"{self.name} did not start")

    def _within(self) -> list[str]:
        return ["nsenter", "--target", str(self._first), "--all"]

    def environment(self, **more: str) -> dict[str, str]:
        clean = {}
        for key, value in os.environ.items():
            if not key.startswith(("DVC_", "MLFLOW_", "PARIBUS_", "AWS_", "RAY_")):
                clean[key] = value
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {
            "PATH": path,
            "HOME": str(self.folder / "home"),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # of 15 by default: on a busy machine its tasks would wait for everything else
        }
        return clean | own | more

    def command(self, arguments: tuple[str, ...], cwd: Path | None) -> list[str]:
        return [*self._within(), "env", "-C", str(cwd or self.folder), *arguments]

    def run(
        self, *arguments: str, cwd: Path | None = None, check: bool = True, **environment: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(arguments, cwd),
            env=self.environment(**environment),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 or not check, (
            f"{self.name}: {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    def begin(
        self, *arguments: str, log: Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a command in the background; what it says goes to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(arguments, cwd),
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def start_ray(self, head: str | None = None, cpus: int = 1, **environment: Any) -> str:
        """Begin a Ray cluster, or join that of `head`; its address."""
        address = head or f"{self.address}:6379"
        role = (
            ["--address", head] if head else ["--head", "--port=6379", "--include-dashboard=false"]
        )
        options = [
            f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={OBJECT_STORE}",
            "--include-log-monitor=false",
        ]
        for attempt in range(START_TRIES):
            last = attempt == START_TRIES - 1
            began = self.run("ray", "start", *role, *options, check=last, **environment)
            if began.returncode == 0:
                return address
            self.run("ray", "stop", "--force", check=False)
        raise AssertionError

    def processes(self) -> int:
        """How many it runs, the first left out."""
        listed = self.run("ps", "-e", "-o", "pid=", check=False)
        return max(len(listed.stdout.split()) - 2, 0)

    def kill(self) -> None:
        """All processes at once, and its network: what others see of it is silence."""
        if self._holder is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self._holder.wait()
        self._holder = None


class Network:
    """`with Network(folder, 3) as network:` a network of machines, and this one as its gateway, where servers may listen."""

    def __init__(self, folder: Path, number: int) -> None:
        """number: 1 to 254, of the network; networks of one number cannot be there at once."""
        self.folder, self._number = folder, number
        self.bridge = f"pb{number}"
        self.gateway = GATEWAY.format(net=number)
        self.machines: list[Machine] = []

    def __enter__(self) -> Network:
        # A killed test leaves its network, and nobody in it.
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self.gateway}/24", "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_: Any) -> None:
        for machine in self.machines:
            machine.kill()
        _run("ip", "link", "delete", self.bridge)

    def machine(self, name: str) -> Machine:
        """A new machine, started."""
        address = f"10.77.{self._number}.{len(self.machines) + 11}"
        made = Machine(name, address, self.folder / "disks" / name, self.bridge)
        made.folder.mkdir(parents=True)
        self.machines.append(made)
        made.start()
        return made


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


# ---------------------------------------------------------------- servers


@contextlib.contextmanager
def serving(
    command: list[str], answers: Callable[[], bool], log: Path, **environment: str
) -> Iterator[None]:
    """A server of this machine, from when it answers to the end of the block."""
    with log.open("ab") as output:
        server = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while not answers():
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{command} does not answer"
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
