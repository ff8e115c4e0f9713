"""DVC remotes: a second clone pulls and runs nothing; what is absent or damaged is said. A folder, and S3 on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.project import Project
from support.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.long

FIRST = ("corpus", "tokenizer", "tokens")  # data enough for what a remote has to do
STAGES = (*FIRST, "pretrain")
PATHS = ("data/corpus", "data/tokenizer", "data/tokens", "checkpoints/base")


class Clone(Project):
    """Another checkout of a project, with a remote of its own."""

    def __init__(self, root: Path, origin: Project, remote: Path | None = None) -> None:
        self.root = root
        subprocess.run(["git", "clone", "-q", str(origin.root), str(root)], check=True)
        if remote is not None:
            (root / ".dvc/config.local").write_text(
                f"['remote \"nas\"']\n    url = {remote}\n    verify = true\n"
            )


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Project:
    """A project whose data stages have run with two values of one key, with a checkpoint; all is pushed to a folder."""
    project = Project(tmp_path_factory.mktemp("origin"), project_root).start()
    project.run("dvc", "remote", "add", "-d", "nas", str(project.root.with_name("nas")))
    project.feed_mlflow()
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("val_fraction: 0.05", "val_fraction: 0.2"))
    project.run("dvc", "repro", *FIRST)
    project.run("dvc", "push", "--run-cache")
    params.write_text(params.read_text().replace("val_fraction: 0.2", "val_fraction: 0.05"))
    project.run("dvc", "repro", *STAGES)
    commit(project, "data and a checkpoint")
    project.run("dvc", "push", "--run-cache")
    return project


@pytest.fixture
def nas(origin: Project, tmp_path: Path) -> Path:
    """A copy of the remote, to be damaged."""
    shutil.copytree(origin.root.with_name("nas"), tmp_path / "nas")
    return tmp_path / "nas"


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", message)


def pull_and_run_nothing(origin: Project, clone: Clone, **environment: Any) -> None:
    clone.run("dvc", "pull", "--run-cache", *PATHS, **environment)
    for path in PATHS:
        there = {
            file.relative_to(origin.root): file.read_bytes()
            for file in (origin.root / path).rglob("*")
            if file.is_file()
        }
        assert there == {file: (clone.root / file).read_bytes() for file in there}
        assert there
    assert "Running stage" not in clone.run("dvc", "repro", *STAGES).stdout


def test_a_second_clone_pulls_from_a_folder_and_runs_nothing(
    origin: Project, nas: Path, tmp_path: Path
) -> None:
    """Nor does it run what ran elsewhere with another value: the run-cache has it."""
    clone = Clone(tmp_path / "clone", origin, nas)
    pull_and_run_nothing(origin, clone)
    params = clone.root / "params.yaml"
    params.write_text(params.read_text().replace("val_fraction: 0.05", "val_fraction: 0.2"))
    assert "Running stage" not in clone.run("dvc", "repro", "--pull", *FIRST).stdout
    sizes = [(one.root / "data/tokens/val-documents.bin").stat().st_size for one in (clone, origin)]
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize("fault", ["absent", "damaged"])
def test_an_object_that_is_not_as_it_should_be_is_an_error(
    origin: Project, nas: Path, tmp_path: Path, fault: str
) -> None:
    lock = yaml.safe_load((origin.root / "dvc.lock").read_text())["stages"]["tokenizer"]["outs"]
    tokenizer = next(entry["md5"] for entry in lock if entry["path"] == "data/tokenizer")
    listing = nas / "files/md5" / tokenizer[:2] / tokenizer[2:]
    held = json.loads(listing.read_text())[0]["md5"]
    path = nas / "files/md5" / held[:2] / held[2:]
    if fault == "absent":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    done = Clone(tmp_path / "clone", origin, nas).run("dvc", "pull", "data/tokenizer", check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "ERROR: failed to" in text
    assert "Traceback" not in text
    named = {name for name in (held, "data/tokenizer") if name in text}
    assert named, "DVC names the object or the output, by how it failed"


def has_bucket(address: str) -> bool:
    """Whether a server answers there; it then makes the bucket."""
    request = urllib.request.Request(f"{address}/bucket", method="PUT")
    try:
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    """An S3 server on loopback with a bucket; its address."""
    for module in ("dvc_s3", "moto"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (requirements-s3.lock)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"MOTO_ALLOW_NONEXISTENT_REGION": "1"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: server.poll() is not None or has_bucket(address))
        assert server.poll() is None, "the S3 server did not start"
        yield address
    finally:
        server.terminate()
        server.wait()


def test_a_second_clone_pulls_from_s3_and_runs_nothing(
    origin: Project, s3: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    origin.run("dvc", "remote", "add", "lab", "s3://bucket/paribus")
    origin.run("dvc", "remote", "modify", "lab", "endpointurl", s3)
    origin.run("dvc", "remote", "default", "lab")
    commit(origin, "remote")
    origin.run("dvc", "push", "--run-cache", **keys)
    pull_and_run_nothing(origin, Clone(tmp_path / "clone", origin), **keys)
