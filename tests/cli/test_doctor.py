"""`paribus doctor`: one line a check, and a broken set-up is found, named and given its cure."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.warm import warm

from paribus.cli import doctor, machine_checks
from paribus.machine.provenance import git_state


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    root = tmp_path_factory.mktemp("template")
    for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
        shutil.copy(project_root / name, root / name)
    for command in (
        "git init -q -b main",
        "git config user.email a@example.org",
        "git config user.name A",
        f"{sys.executable} -m dvc init -q",
        "git add -A",
        "git commit -qm start",
    ):
        subprocess.run(
            command.split(), check=True, cwd=root, env=os.environ | {"DVC_NO_ANALYTICS": "1"}
        )
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed checkout with DVC, which is the working folder."""
    shutil.copytree(template, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "project"


def found(name: str) -> doctor.Finding:
    return doctor.CHECKS[name]()


def test_every_check_has_its_line_and_the_exit_status_tells(project: Path) -> None:
    (project / "mlflow.db").write_text("no database at all, and longer than a header" * 9)
    done = subprocess.run(
        [sys.executable, "-m", "paribus", "doctor"], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == list(doctor.CHECKS)
    assert done.returncode == 1
    assert any(line.startswith("broken store ") and "move it away" in line for line in lines)
    assert all(line.split()[0] in ("ok", "note", "broken") for line in lines)


def test_another_version_than_the_locks_is_named(project: Path) -> None:
    lock = (project / "requirements.lock").read_text()
    (project / "requirements.lock").write_text(
        lock.replace("click==", "click==0.") + "no-such-thing==1.0\n"
    )
    text = found("versions").text
    assert found("versions").state == "broken"
    assert "click is" in text
    assert "no-such-thing 1.0 is missing" in text


def test_a_gpu_that_is_asked_for_and_absent_is_broken(project: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("device: auto", "device: cuda"))
    assert found("gpu").state == "broken"
    assert "set it to auto" in found("gpu").text


@pytest.mark.parametrize(("device", "state"), [("auto", "broken"), ("cpu", "note")])
def test_a_driver_that_torch_cannot_use_is_told_with_its_cure(
    project: Path, monkeypatch: pytest.MonkeyPatch, device: str, state: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine_checks, "unused_driver", lambda: "535.104.05")
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("device: auto", f"device: {device}"))
    assert found("gpu").state == state
    assert "535.104.05" in found("gpu").text
    assert "driver 580 or newer" in found("gpu").text


def test_a_card_that_torch_has_no_kernels_for_is_broken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    assert found("gpu").state == "broken"
    assert "GTX 1080" in found("gpu").text


def test_a_full_disk_is_broken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    assert found("disk").state == "broken"
    assert "dvc gc" in found("disk").text


def test_a_clock_behind_the_last_commit_is_broken(project: Path) -> None:
    late = {"GIT_COMMITTER_DATE": "2099-01-01T00:00:00Z"}
    subprocess.run(
        ["git", "commit", "-q", "--allow-empty", "-m", "later"], check=True, env=os.environ | late
    )
    assert found("clock").state == "broken"


@pytest.mark.parametrize("shares", [True, False])
def test_what_computes_in_another_session_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    """shares: whether sessions have equal ones, whatever their niceness."""
    monkeypatch.setattr(machine_checks, "AUTOGROUP", tmp_path / "autogroup")
    monkeypatch.setattr(machine_checks, "BUSY", 0.001)  # where other tests run beside it
    (tmp_path / "autogroup").write_text(f"{int(shares)}\n")
    endless = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(endless, start_new_session=True) as process:
        try:
            busy = machine_checks.busy_elsewhere()
            said = found("neighbours")
        finally:
            process.kill()
    assert f"({process.pid}) computes" in " ".join(busy)
    assert said.state == "note"
    assert ("sched_autogroup_enabled=0" in said.text) == shares


def test_git_without_a_name_and_without_commits_is_broken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("git").state == "ok"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    subprocess.run(["git", "config", "--unset", "user.email"], check=True)
    assert "git config user.email" in found("git").text
    shutil.rmtree(project / ".git")
    assert "git init" in found("git").text


def test_a_wrong_key_is_told_as_everywhere(project: Path) -> None:
    (project / "params.yaml").write_text(
        (project / "params.yaml").read_text().replace("  depth:", "  dept:")
    )
    findings = dict(doctor.examine())
    assert findings["params"].state == "broken"
    assert "did you mean model.depth?" in findings["params"].text


def test_a_folder_of_outputs_that_leads_out_of_the_repository_is_found_before_a_stage_computes(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (project / "data").symlink_to(tmp_path / "disk")
    finding = found("outputs")
    assert finding.state == "broken"
    assert f"data (to {tmp_path / 'disk'})" in finding.text
    environment = os.environ | {"DVC_STAGE": "corpus", "DVC_ROOT": str(project)}
    done = warm().run(["-m", "paribus", "corpus"], project, environment)
    assert done.returncode == 2
    assert finding.text in done.stderr
    assert not list((tmp_path / "disk").iterdir())


def test_a_link_in_the_place_of_an_output_is_fine(project: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (project / "data").mkdir()
    (project / "data/corpus").symlink_to(tmp_path / "disk")
    assert found("outputs").state == "note"


def test_outputs_that_are_nowhere_are_named(project: Path) -> None:
    assert "nothing has run yet" in found("outputs").text
    (project / "dvc.lock").write_text(
        f"stages: {{corpus: {{outs: [{{path: data/corpus, md5: {'ab' * 16}.dir}}]}}}}"
    )
    assert found("outputs").state == "note"
    assert "data/corpus" in found("outputs").text
    assert "dvc pull" in found("outputs").text


@pytest.mark.parametrize(
    "end", ["    deps:\n    - ", "    cmd: x\n    deps:\n    - path: a\n      md", "    cmd: 'x"]
)
def test_a_torn_lock_file_is_broken(project: Path, end: str) -> None:
    (project / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  corpus:\n{end}")
    assert found("outputs").state == "broken"
    assert "rm dvc.lock" in found("outputs").text


def test_locks_of_dvc_that_a_kill_tore_are_broken(project: Path) -> None:
    locks = project / ".dvc/tmp/rwlock"
    locks.write_text('{"data/corpus": ')
    assert found("dvc").state == "broken"
    assert found("dvc").text.endswith("rm .dvc/tmp/rwlock")
    locks.write_text("{}")
    assert found("dvc").state != "broken"


@pytest.mark.parametrize("last", ["      md5", "    params:", "      params.yaml:"])
def test_a_lock_file_cut_short_is_broken_wherever_dvc_refuses_it(
    project: Path, project_root: Path, last: str
) -> None:
    """Cut off within an entry it is no YAML; at its params it is, and DVC's schema alone refuses it."""
    lines = (project_root / "dvc.lock").read_text().splitlines(keepends=True)
    end = len(lines) // 2
    while not lines[end].startswith(last):
        end -= 1
    (project / "dvc.lock").write_text("".join(lines[:end]) + last)
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True)
    assert status.returncode != 0, "DVC reads it"
    assert found("outputs").state == "broken"
    assert "rm dvc.lock" in found("outputs").text


@pytest.mark.parametrize("name, check", [("dvc.lock", "outputs"), ("params.yaml", "params")])
def test_conflict_marks_are_named_as_such(project: Path, name: str, check: str) -> None:
    subprocess.run(["git", "add", "-A"], check=True)
    path = project / name
    path.write_text("schema: '2.0'\nstages: {}\n" if name == "dvc.lock" else path.read_text())
    text = path.read_text()
    path.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n")
    findings = dict(doctor.examine())
    assert findings[check].state == "broken"
    assert "conflict marks" in findings[check].text
    assert "git checkout" in findings[check].text


def test_a_checkout_of_another_user_is_told_in_gits_words(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    text = found("git").text
    assert "dubious ownership" in text
    assert "safe.directory" in text
    assert "git init" not in text
    state = git_state()
    assert state["commit"] is None
    assert "dubious ownership" in state["problem"]


def test_a_shallow_clone_is_told_with_its_cure(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "second"], check=True)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", project.as_uri(), clone], check=True)
    monkeypatch.chdir(clone)
    for key, value in (("name", "A"), ("email", "a@example.org")):
        subprocess.run(["git", "config", f"user.{key}", value], check=True)
    assert found("git").state == "note"
    assert "--unshallow" in found("git").text


def test_a_path_with_letters_outside_ascii_is_told(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("path").state == "ok"
    project.rename(tmp_path / "Müller")
    monkeypatch.chdir(tmp_path / "Müller")
    assert found("path").state == "note"
    assert "dvc queue" in " ".join(found("path").text.split())


# ---------------------------------------------------------------- what accumulates


@pytest.mark.parametrize(
    "name, text",
    [
        ("runs/a/run.json", '{"id": "x"'),
        ("runs/a/run.json", "[]"),
        ("runs/a/run.json", '{"id": 3}'),
        ("runs/a/mlflow.json", ""),
        ("runs/a/metrics.jsonl", '{"step": 1, "time": 1}\nrubbish\n'),
        ("timings.json", '{"a": []}'),
        ("executions/k-1.json", "{}"),
        ("ablations/x/study.json", "{"),
        ("digests.json", "\0\0\0"),
        ("timings.json.damaged", "{"),
    ],
)
def test_damaged_files_are_listed_and_left_where_they_are(
    project: Path, name: str, text: str
) -> None:
    path = project / ".paribus" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert found("state").state == "note"
    assert name in found("state").text
    assert path.read_text() == text


def test_what_a_run_of_a_study_was_asked_is_not_damaged(project: Path) -> None:
    path = project / ".paribus/execute/first/adamw-s7/run.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"id": {"study": "first", "arm": "adamw", "seed": 7}}')
    assert found("state").state == "ok"


def test_leftovers_of_killed_writes_are_named(project: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = project / f"metrics/.pretrain.json.{ended.pid}"
    ours = project / f"metrics/.rl.json.{os.getpid()}"
    left.parent.mkdir()
    left.write_text("x" * 2000)
    ours.write_text("x")
    text = found("leftovers").text
    assert left.name in text
    assert ours.name not in text


def test_a_site_cache_that_others_may_write_to_is_told(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "repo").mkdir(parents=True)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(site))
    assert found("dvc").state == "ok"
    (site / "repo").chmod(0o777)
    assert found("dvc").state == "note"
    assert "core.site_cache_dir" in found("dvc").text


def test_a_site_cache_that_an_experiment_loses_is_told(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)  # which goes before the file
    config, site = project / ".dvc/config", project / ".dvc-site-cache"
    for folder in (site, site / "repo"):
        folder.mkdir(0o700)
    config.write_text("[core]\n    site_cache_dir = .dvc-site-cache\n")
    assert "by a relative path" in found("dvc").text
    config.write_text(f"[core]\n    site_cache_dir = {site}\n")
    assert found("dvc").state == "ok"


def test_dvc_keeps_its_pickles_in_the_clone(project_root: Path, tmp_path: Path) -> None:
    clones = [tmp_path / "one", tmp_path / "two"]
    environment = {key: value for key, value in os.environ.items() if "DVC_" not in key}
    for clone in clones:
        # The caller's mask may let everybody write everywhere.
        git_clone = ["git", "clone", "-q", "--shared", str(project_root), str(clone)]
        subprocess.run(git_clone, check=True, umask=0o022)
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "tokenizer"],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        site = clone / ".dvc-site-cache/repo"
        assert [path for path in site.iterdir() if path.is_dir()]
        assert not (clone / ".dvc-site-cache").stat().st_mode & 0o022
        assert not site.stat().st_mode & 0o022
        status = ["git", "status", "--porcelain"]
        assert subprocess.run(status, cwd=clone, capture_output=True).stdout == b""


# ---------------------------------------------------------------- the store


class Refusing(http.server.BaseHTTPRequestHandler):
    """An MLflow server behind a proxy that asks for ann and her password, and has a deleted experiment."""

    wanted = "Basic " + base64.b64encode(b"ann:s3cr3t/@ret").decode()

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.wanted:
            self.send_error(401)
            return
        self.send_response(200)
        self.end_headers()
        deleted = '{"experiment": {"lifecycle_stage": "deleted"}}'
        self.wfile.write(deleted.encode() if "get-by-name" in self.path else b"OK")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """host:port/path of a `Refusing` server."""
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{listening.server_port}/mlflow"
    listening.shutdown()
    listening.server_close()


def test_a_server_is_asked_with_the_addresss_name_and_password(
    project: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server}")
    assert "HTTP 401" in found("store").text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s3cr3t%2F%40ret@{server}/")
    text = found("store").text
    assert "was deleted there" in text
    assert server in text
    assert "s3cr3t" not in text
    assert "ann" not in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:wr0ngword@{server}")
    assert "HTTP 401" in found("store").text
    assert "wr0ngword" not in found("store").text


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:s3cr3tword@127.0.0.1:9",
        "http://ann:s3cr3tword@no-such-host.invalid:5000/a/b",
        "http://ann:s3cr3tword@127.0.0.1:99999",
        "http://ann:s3cr3tword@127.0.0.1:port",
        "http://ann:s3cr3tword@[::1",
        "http://ann:s3cr3tword@",
        "http://ann:s3cr3t/word@127.0.0.1:9",
        "postgresql://ann:s3cr3tword@db/mlflow",
        "postgresql://db/mlflow?user=ann&password=s3cr3tword",
    ],
)
def test_a_password_is_never_shown(
    project: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    text = doctor.report([("store", found("store"))])
    assert "s3cr3t" not in text
    assert "word@" not in text
    assert "the check failed" not in text


def test_a_deleted_experiment_is_told(project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.create_experiment("paribus")
    assert found("store").state == "ok"
    client.delete_experiment(experiment)
    assert found("store").state == "broken"
    assert "restore" in found("store").text


def test_a_server_that_does_not_answer_is_broken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert found("store").state == "broken"
    assert "does not answer" in found("store").text


def test_a_sound_database_is_counted(project: Path) -> None:
    assert "made by the first run" in found("store").text
    with sqlite3.connect(project / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (id)")
    assert found("store") == doctor.Finding("ok", f"{project / 'mlflow.db'}: 0 runs")


def test_a_remote_is_there_writable_and_chosen(project: Path) -> None:
    assert found("remote").state == "note"
    assert "dvc remote add" in found("remote").text
    config = project / ".dvc/config"
    config.write_text("['remote \"nas\"']\n    url = /no/such/disk/cache\n")
    assert "dvc remote default nas" in found("remote").text
    config.write_text("[core]\n    remote = nas\n" + config.read_text())
    assert found("remote").state == "broken"
    assert "mount its disk" in found("remote").text
    config.write_text(config.read_text().replace("/no/such/disk/cache", str(project / "remote")))
    assert found("remote").state == "ok"
