"""The command line: quick help, errors for people, profiles that are valid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.checkout import ROOT, make_checkout, paribus
from support.waiting import wait_for

from paribus.cli.serve import check_port
from paribus.config import flatten, load_config, merge, parse_config, read_yaml
from paribus.errors import UserError

PROFILES = sorted((ROOT / "experiments/profiles").glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path, project_root: Path) -> Path:
    return make_checkout(tmp_path, project_root)


COMMANDS = [
    [],
    ["pretrain"],
    ["eval"],
    ["eval", "core"],
    ["eval", "lm"],
    ["report"],
    ["profile"],
    ["chat"],
    ["ui"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_help_is_quick(project_root: Path, command: list[str]) -> None:
    """Under half a second on an idle machine; the best of three, and processor time, as the tests share it."""
    import resource

    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        shown = [sys.executable, "-m", "paribus", *command, "--help"]
        subprocess.run(shown, cwd=project_root, check=True, capture_output=True)
        best = min(best, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert best < 0.5


def test_every_problem_of_params_is_told_with_exit_status_2(project: Path) -> None:
    params = merge(
        read_yaml(project / "params.yaml"), {"model.dept": 6, "rl.steps": 0, "train.device": "tpu"}
    )
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    done = paribus("pretrain", cwd=project)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines() == [
        "paribus: model.dept: unknown key; did you mean model.depth?",
        "paribus: train.device: 'tpu' is not allowed; expected one of auto, cpu, cuda, mps",
        "paribus: rl.steps: 0 is out of range; expected a whole number >= 1 and <= 10,000,000",
    ]


def test_stage_without_its_inputs_says_so(project: Path) -> None:
    done = paribus("pretrain", cwd=project)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_are_valid_and_documented(path: Path, project_root: Path) -> None:
    parse_config(merge(read_yaml(project_root / "params.yaml"), flatten(read_yaml(path))))
    assert path.read_text().startswith("# ")


def test_unknown_profile_names_those_there_are(project: Path) -> None:
    done = paribus("profile", "apply", "desktop", cwd=project)
    assert done.returncode == 2
    assert "laptop" in done.stderr


def test_applied_profile_is_in_params_with_its_comments(project: Path) -> None:
    assert paribus("profile", "apply", "laptop", cwd=project).returncode == 0
    assert load_config(project / "params.yaml").corpus.source == "local"
    assert (project / "params.yaml").read_text().startswith("# The only place that holds values.")


def test_profile_arguments_are_what_dvc_reads(project: Path) -> None:
    import shlex

    words = shlex.split(paribus("profile", "args", "laptop", cwd=project).stdout)
    assert words[::2] == ["-S"] * (len(words) // 2)
    assert "corpus.source=local" in words
    assert 'corpus.paths=["../shared/data/corpus"]' in words


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_dvc_reads_back_what_the_profile_says(path: Path, project: Path) -> None:
    import shlex

    from dvc.utils.hydra import apply_overrides

    words = shlex.split(paribus("profile", "args", path.stem, cwd=project).stdout)[1::2]
    apply_overrides(project / "params.yaml", words)
    expected = merge(
        read_yaml(PROFILES[0].parent.parent.parent / "params.yaml"), flatten(read_yaml(path))
    )
    assert flatten(read_yaml(project / "params.yaml")) == flatten(expected)


def test_keys_documents_a_key(project: Path) -> None:
    shown = paribus("keys", "model.depth", cwd=project).stdout
    assert "transformer blocks (a whole number >= 1 and <= 256)" in shown


def test_pause_without_a_running_stage_says_so(project: Path) -> None:
    assert paribus("pause", cwd=project).stdout == "no stage is running\n"


# ---------------------------------------------------------------- the MLflow page


def listening(port: int) -> set[str]:
    """Addresses at which somebody listens at a port."""
    import psutil

    connections = psutil.net_connections("tcp")
    return {
        connection.laddr.ip
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.soak
def test_the_mlflow_page_listens_here_alone_and_names_no_password_in_its_command(
    project: Path,
) -> None:
    import os

    import psutil

    port = free_port()
    environment = os.environ | {
        "MLFLOW_HOST": "0.0.0.0",
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db?password=s3cr3t",
    }
    page = subprocess.Popen(
        [sys.executable, "-m", "paribus", "ui", "--port", str(port)],
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: page.poll() is not None or listening(port))
        assert listening(port) == {"127.0.0.1"}
        process = psutil.Process(page.pid)
        commands = [one.cmdline() for one in [process, *process.children(recursive=True)]]
        assert "s3cr3t" not in str(commands)
    finally:
        for child in psutil.Process(page.pid).children(recursive=True):
            child.terminate()
        page.terminate()
        page.wait()


def test_a_port_that_is_taken_is_told_with_exit_status_2(project: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = paribus("ui", "--port", str(port), cwd=project)
    assert done.returncode == 2
    assert f"--port {port}: Address already in use" in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--port", "99999999"], "not in the range"),
        (["--port", "-1"], "not in the range"),
        (["--host", "no such host"], "--host no such host"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--prot", "5000"], "No such option"),
    ],
)
def test_bad_addresses_of_the_page_are_told(project: Path, arguments: list[str], said: str) -> None:
    done = paribus("ui", *arguments, cwd=project)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_of_no_checkout_or_of_a_server_is_told(
    tmp_path_factory: pytest.TempPathFactory, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    done = paribus("ui", cwd=empty)
    assert done.returncode == 2
    assert "no checkout of paribus" in done.stderr
    assert not list(empty.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cr3t@example.org:5000")
    done = paribus("ui", cwd=project)
    assert done.returncode == 2
    assert "http://example.org:5000" in done.stderr
    assert "s3cr3t" not in done.stderr


@pytest.mark.parametrize(
    "host, private",
    [("localhost", True), ("127.0.0.2", True), ("127.0.0.1", True), ("0.0.0.0", False)],
)
def test_an_address_of_this_machine_alone_is_known_by_any_of_its_names(
    host: str, private: bool
) -> None:
    assert check_port(host, 0).is_loopback is private


@pytest.mark.parametrize("host", ["..", "a" * 70 + ".org", "no such host", "300.1.1.1"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(UserError, match="--host"):
        check_port(host, 0)
