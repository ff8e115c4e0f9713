"""Dockerfile and compose.yaml, read: pinned, layered, not root, volumes for what has to stay. No engine runs here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

EXACT = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?-[\w.-]+(@sha256:[0-9a-f]{64})?")


@pytest.fixture(scope="module")
def steps(project_root: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile in order."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (project_root / "Dockerfile").read_text()).replace(
        "\\\n", " "
    )
    return [
        (name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


@pytest.fixture(scope="module")
def compose(project_root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project_root / "compose.yaml").read_text())
    return found


def test_images_are_pinned_by_exact_tags(
    steps: list[tuple[str, str]], compose: dict[str, Any]
) -> None:
    inline = re.findall(
        r"(?m)^FROM (\S+)", compose["services"]["mlflow"]["build"]["dockerfile_inline"]
    )
    images = (
        [rest for name, rest in steps if name == "FROM"]
        + inline
        + [compose["services"]["database"]["image"]]
    )
    assert len(images) == 3
    assert all(EXACT.fullmatch(image) for image in images)


def test_dependencies_are_installed_before_the_code_is_there(
    steps: list[tuple[str, str]], project_root: Path
) -> None:
    copies = [rest.split() for name, rest in steps if name == "COPY"]
    assert [copy[1:-1] for copy in copies] == [["Makefile", "requirements.lock"], ["."]]
    names = [f"{name} {rest}" for name, rest in steps]
    installed = next(i for i, step in enumerate(names) if step == "RUN make .venv/.requirements")
    assert names.index(next(s for s in names if s.endswith(" . ."))) > installed
    assert re.search(
        r"(?m)^\.venv/\.requirements: requirements\.lock$", (project_root / "Makefile").read_text()
    )


def test_it_is_not_root_that_runs(steps: list[tuple[str, str]]) -> None:
    users = [i for i, (name, _) in enumerate(steps) if name == "USER"]
    assert steps[users[-1]][1] == "1000"
    assert users[0] < next(i for i, (name, _) in enumerate(steps) if name == "COPY")
    assert all("--chown=paribus:paribus" in rest for name, rest in steps if name == "COPY")


def test_the_curriculum_is_the_default_command(steps: list[tuple[str, str]]) -> None:
    assert steps[-1] == ("CMD", '["make", "repro"]')


def test_what_has_to_stay_is_in_volumes(steps: list[tuple[str, str]]) -> None:
    volumes = json.loads(next(rest for name, rest in steps if name == "VOLUME"))
    environment = dict(
        pair.split("=", 1) for name, rest in steps if name == "ENV" for pair in rest.split()
    )
    assert set(volumes) == {"/paribus/.paribus", "/paribus/.dvc/cache", "/paribus/mlartifacts"}
    for name in ("MLFLOW_TRACKING_URI", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        assert environment[name].removeprefix("sqlite:///").startswith("/paribus/.paribus/")


def test_the_context_carries_git_and_no_outputs(project_root: Path) -> None:
    ignored = [
        line
        for line in (project_root / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert {".venv", ".paribus", ".dvc/cache", "data", "checkpoints", "mlartifacts"} <= set(ignored)
    assert ".git" not in ignored


def test_the_server_keeps_runs_in_postgres_and_files_in_a_volume(
    compose: dict[str, Any], project_root: Path
) -> None:
    services = compose["services"]
    server, database = services["mlflow"], services["database"]
    assert server["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith(
        "postgresql+psycopg2://mlflow:${POSTGRES_PASSWORD}@database:"
    )
    assert server["depends_on"]["database"]["condition"] == "service_healthy"
    assert "healthcheck" in database
    assert ":?" in database["environment"]["POSTGRES_PASSWORD"]  # no default password
    named = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert named == set(compose["volumes"])
    version = re.search(r"(?m)^mlflow==(\S+)", (project_root / "requirements.lock").read_text())
    assert version
    assert f"mlflow=={version[1]} " in server["build"]["dockerfile_inline"]


def test_hadolint_finds_nothing(project_root: Path) -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        ["hadolint", "Dockerfile"], cwd=project_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
