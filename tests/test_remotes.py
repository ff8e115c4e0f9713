"""DVC remotes: a second clone pulls and runs nothing; what is absent or damaged is said. A folder, and S3 on loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_pipeline import Project

FIRST = ("corpus", "tokenizer", "tokens")  # data enough for what a remote has to do
PATHS = ("data/corpus", "data/tokenizer", "data/tokens")


class Clone(Project):
    """Another checkout of a project."""

    def __init__(self, root: Path, origin: Project) -> None:
        self.root = root
        subprocess.run(["git", "clone", "-q", str(origin.root), str(root)], check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Project:
    """A project whose data stages have run and are committed."""
    project = Project(tmp_path_factory.mktemp("origin"), project_root).start()
    project.run("dvc", "repro", *FIRST)
    commit(project, "data")
    return project


@pytest.fixture
def origin(made: Project, tmp_path: Path) -> Project:
    shutil.copytree(made.root, tmp_path / "origin")
    copy = Project.__new__(Project)
    copy.root = tmp_path / "origin"
    return copy


def commit(project: Project, message: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", message)


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "files/md5").rglob("*") if path.is_file())


def pull_and_run_nothing(origin: Project, clone: Clone, **environment: str) -> None:
    clone.run("dvc", "pull", "--run-cache", *PATHS, **environment)
    for path in PATHS:
        there = {file.relative_to(origin.root): file.read_bytes() for file in (origin.root / path).rglob("*") if file.is_file()}
        assert there == {file: (clone.root / file).read_bytes() for file in there} and there
    assert "Running stage" not in clone.run("dvc", "repro", *FIRST).stdout


def test_a_second_clone_pulls_from_a_folder_and_runs_nothing(origin: Project, tmp_path: Path) -> None:
    origin.run("dvc", "remote", "add", "-d", "nas", str(tmp_path / "nas"))
    commit(origin, "remote")
    origin.run("dvc", "push", "--run-cache")
    pull_and_run_nothing(origin, Clone(tmp_path / "clone", origin))


def test_the_run_cache_gives_back_a_configuration_that_ran_elsewhere(origin: Project, tmp_path: Path) -> None:
    """Another value and back: the second clone has neither run it, and runs neither."""
    origin.run("dvc", "remote", "add", "-d", "nas", str(tmp_path / "nas"))
    commit(origin, "remote")
    params = origin.root / "params.yaml"
    before = params.read_text()
    changed = yaml.safe_load(before)
    changed["tokens"]["val_fraction"] = 0.2
    params.write_text(yaml.safe_dump(changed, sort_keys=False))
    origin.run("dvc", "repro", *FIRST)
    origin.run("dvc", "push", "--run-cache")
    origin.run("git", "checkout", "-q", "params.yaml", "dvc.lock")
    clone = Clone(tmp_path / "clone", origin)
    clone.run("dvc", "pull", "--run-cache", *PATHS, check=False)
    (clone.root / "params.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    assert "Running stage" not in clone.run("dvc", "repro", "--pull", *FIRST).stdout


def test_an_absent_object_is_named(origin: Project, tmp_path: Path) -> None:
    origin.run("dvc", "remote", "add", "-d", "nas", str(tmp_path / "nas"))
    commit(origin, "remote")
    origin.run("dvc", "push")
    lock = yaml.safe_load((origin.root / "dvc.lock").read_text())["stages"]["tokens"]["outs"][0]["md5"]
    (tmp_path / "nas/files/md5" / lock[:2] / lock[2:]).unlink()
    done = Clone(tmp_path / "clone", origin).run("dvc", "pull", *PATHS, check=False)
    assert done.returncode != 0 and lock in done.stdout + done.stderr


def test_a_damaged_object_is_not_taken_where_the_remote_is_verified(origin: Project, tmp_path: Path) -> None:
    origin.run("dvc", "remote", "add", "-d", "nas", str(tmp_path / "nas"))
    origin.run("dvc", "remote", "modify", "nas", "verify", "true")
    commit(origin, "remote")
    origin.run("dvc", "push")
    largest = max(objects(tmp_path / "nas"), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[100] ^= 1
    largest.write_bytes(data)
    done = Clone(tmp_path / "clone", origin).run("dvc", "pull", *PATHS, check=False)
    assert done.returncode != 0 and "ERROR" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    """An S3 server on loopback with a bucket; its address."""
    for module in ("dvc_s3", "moto"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (requirements-s3.lock)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, env=os.environ | {"MOTO_ALLOW_NONEXISTENT_REGION": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, "the S3 server did not start"
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.mark.timeout(300)
def test_a_second_clone_pulls_from_s3_and_runs_nothing(origin: Project, s3: str, tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    origin.run("dvc", "remote", "add", "-d", "lab", "s3://bucket/paribus")
    origin.run("dvc", "remote", "modify", "lab", "endpointurl", s3)
    commit(origin, "remote")
    origin.run("dvc", "push", "--run-cache", **keys)
    pull_and_run_nothing(origin, Clone(tmp_path / "clone", origin), **keys)
    done = Clone(tmp_path / "keyless", origin).run("dvc", "pull", *PATHS, check=False, AWS_CONFIG_FILE="/dev/null",
                                                   AWS_EC2_METADATA_DISABLED="true", HOME=str(tmp_path))
    assert done.returncode != 0 and "credentials" in (done.stdout + done.stderr).lower()
