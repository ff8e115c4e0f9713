"""Arguments of the command line: a number out of range, no number at all or a wrong name exits 2 in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.checkout import ROOT

from paribus.cli.commands import commands
from paribus.config import load_config

WRONG = [
    "plan --price nan",
    "ablate run x --engine slurm",
    "ablate run x --engine ray:desk1",
    "noise default --engine ray:",
    "tune run x --engine ray:desk1:port",
    "plan --price inf",
    "plan --price -1",
    "plan --gpus 0",
    "plan --gpus 99999",
    "plan --seeds 0",
    "plan --seeds 1e9",
    "plan -S model.depth=[1",
    "plan -S model.depth",
    "plan -S =3",
    "plan -S model.depth=2001-01-01",
    "plan -S model.depth=!!python/name:os.system",
    "plan -S model=3",
    "plan -S seed.x=3",
    "plan -S model.dept=3",
    "plan -S model.depth={a: 1",
    "plan ../../params",
    "ui --port 99999999",
    "ui --port -1",
    "ui --port 0",
    "ui --port abc",
    "ui --what 3",
    "chat --temperature nan",
    "chat --temperature 1e-40",
    "chat --temperature -1",
    "chat --temperature 1e30",
    "chat --top-k -1",
    "chat --seed -1",
    "chat --seed 18446744073709551616",
    "chat --max-tokens 0",
    "chat --max-tokens 99999999999",
    "chat --web --port 65536",
    "eval sparsity --questions 0",
    "eval sparsity --samples 1",
    "eval sparsity --samples 99999999",
    "eval lm --tasks x --limit 0",
    "eval lm --tasks x --num-fewshot -1",
    "eval lm --tasks x --batch-size 0",
    "eval lm --tasks x --include-path absent",
    "eval gsm8k nobody",
    "tune run ../params",
    "tune run tiny --trials 0",
    "tune run tiny --trials 99999999999",
    "ablate run muon-vs-adamw --workers 0",
    "ablate run muon-vs-adamw --workers 999999",
    "ablate run muon-vs-adamw --gpus a,b",
    "ablate run muon-vs-adamw --gpus 0,0",
    "ablate run muon-vs-adamw --gpus -1",
    "noise default --seeds 2",
    "noise default --seeds 999999",
    "noise default --workers 0",
    "noise default --gpus x",
    "noise ../profiles/default",
    "profile apply ../../params",
    "profile apply ../profiles/laptop",
    "profile args /etc/passwd",
    "profile apply laptop.yaml",
    "verify HEAD --steps -1",
    "keys no_such_key",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_argument_exits_2_in_words(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = line.split(" ", 3) if " -S " in line else line.split()
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert "Traceback" not in done.output
    assert done.output.strip()


def test_the_nearest_profile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(commands, ["profile", "apply", "../profiles/laptpo"])
    assert "did you mean laptop?" in done.output


def test_all_wrong_overrides_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(commands, ["plan", "-S", "x", "-S", "model.depth=[1", "-S", "a=*b"])
    assert len(done.output.strip().splitlines()) == 3


def test_an_override_reads_as_params_yaml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from paribus.cli.profiles import parse_overrides

    words = ["a.b=1e-08", "c=yes", "d=010", "e=[1, 2]", "f={x: 1}", "g=null"]
    assert parse_overrides(words) == {
        "a.b": 1e-8,
        "c": "yes",
        "d": 10,
        "e": [1, 2],
        "f.x": 1,
        "g": None,
    }


def test_a_key_says_when_it_acts_and_why_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = CliRunner().invoke(commands, ["keys", "adamw_matrix_lr"]).output
    assert "read only with optimizer.kind: adamw; not now" in shown
    assert "upper bound: a weight of size 1" in shown


# ---------------------------------------------------------------- profiles


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "experiments/profiles").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for path in (ROOT / "experiments/profiles").glob("*.yaml"):
        (tmp_path / "experiments/profiles" / path.name).write_text(path.read_text())
    return tmp_path


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True)


def test_a_profile_that_finds_no_room_leaves_the_file_as_it_was(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    done = shell(f"ulimit -f 1; {sys.executable} -m paribus profile apply laptop", project)
    assert done.returncode not in (0, 1)
    assert "Traceback" not in done.stderr
    assert (project / "params.yaml").read_bytes() == before
    assert {path.name for path in project.iterdir()} == {"params.yaml", "experiments"}


def test_a_wrong_profile_leaves_the_file_as_it_was(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "experiments/profiles/wrong.yaml").write_text(
        "# wrong\nmodel: {depth: 2, depht: 3}\n"
    )
    done = shell(f"{sys.executable} -m paribus profile apply wrong", project)
    assert done.returncode == 2
    assert "did you mean model.depth?" in done.stderr
    assert (project / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "experiments/profiles").glob("*.yaml")))  # fmt: skip
def test_an_applied_profile_is_what_it_says(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paribus.cli.profiles import apply_profile, read_profile

    monkeypatch.chdir(project)
    expected = load_config(overrides=read_profile(name))
    apply_profile(name)
    assert load_config() == expected


def test_an_empty_profile_is_listed_and_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "experiments/profiles/empty.yaml").write_text("")
    monkeypatch.chdir(project)
    assert CliRunner().invoke(commands, ["profile", "list"]).exit_code == 0
    assert CliRunner().invoke(commands, ["profile", "apply", "empty"]).exit_code == 2
