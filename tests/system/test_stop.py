"""An evaluation stops when asked to, keeps what it has, and ends in the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.core_bundle import tiny_model
from support.project import Project
from support.talker import PROBLEMS, codec, talker
from support.waiting import PATIENCE, wait_for

from paribus.config import Config
from paribus.data.tokenizer import Tokenizer
from paribus.evaluate import core, core_scores
from paribus.evaluate.core import evaluate_core
from paribus.evaluate.gsm8k import evaluate_gsm8k
from paribus.evaluate.harness import Responder
from paribus.evaluate.kept import Kept, Stopped
from paribus.machine.interrupt import EXIT_PAUSED
from paribus.model.gpt import save_checkpoint


def after(calls: int) -> Callable[[], bool]:
    """Says yes from that call on."""
    count = 0

    def requested() -> bool:
        nonlocal count
        count += 1
        return count > calls

    return requested


def test_core_goes_on_with_the_next_forward_pass(
    word_tokenizer: Tokenizer,
    bundle: Path,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(tiny_config, word_tokenizer.vocab_size, 512)
    passes = 0
    score_units = core_scores.score_units

    def counted(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return score_units(*arguments)

    monkeypatch.setattr(core, "score_units", counted)

    def run(**more: Any) -> Any:
        return evaluate_core(model, word_tokenizer, bundle, max_per_task=None, batch_size=2, **more)

    whole = run()
    needed, passes = passes, 0
    stops = 0
    while True:
        try:
            again = run(cache=tmp_path, stop=after(needed // 4))
            break
        except Stopped:
            stops += 1
    assert again == whole
    assert stops >= 2
    assert passes == needed, "no forward pass is done twice"


def test_a_flipped_outcome_of_core_is_computed_again(
    word_tokenizer: Tokenizer, bundle: Path, tiny_config: Config, tmp_path: Path
) -> None:
    model = tiny_model(tiny_config, word_tokenizer.vocab_size, 512)

    def run() -> Any:
        return evaluate_core(
            model, word_tokenizer, bundle, max_per_task=None, batch_size=8, cache=tmp_path
        )

    whole = run()
    kept = sorted(tmp_path.glob("*.jsonl"))
    assert kept
    for path in kept:
        text = path.read_text()
        path.write_text(
            text.replace("true", "fals1").replace("false", "true").replace("fals1", "false")
        )
    assert run() == whole
    for path in kept:
        path.write_bytes(b"\0garbage")
    assert run() == whole


def test_word_problems_go_on_with_the_answers_that_were_under_way(
    tiny_config: Config, tmp_path: Path
) -> None:
    cfg = tiny_config.eval.gsm8k
    whole = evaluate_gsm8k(talker(), PROBLEMS, cfg, stage="sft", seed=1)
    stops = 0
    while True:
        try:
            again = evaluate_gsm8k(
                talker(), PROBLEMS, cfg, stage="sft", seed=1, cache=tmp_path, stop=after(20)
            )
            break
        except Stopped:
            stops += 1
            assert stops < 20
    assert again == whole
    assert stops >= 1


def test_the_harness_answers_nothing_twice(tmp_path: Path) -> None:
    pairs = [("Mia has 3", f" shells {n}") for n in range(12)]
    asked = [(f"Mia has {n}", {"until": ["."], "max_gen_toks": 8}) for n in range(6)]
    model, words = talker().model, codec()
    plain = Responder(model, words, 2)
    whole = plain.loglikelihood(pairs), plain.generate(asked), plain.rolling(["Mia has 3 shells."])

    def run(stop: Callable[[], bool]) -> Any:
        with Kept(tmp_path / "kept.jsonl", "x") as kept:
            one = Responder(model, words, 2, kept=kept, stop=stop)
            return one.loglikelihood(pairs), one.generate(asked), one.rolling(["Mia has 3 shells."])

    stops = 0
    while True:
        try:
            again = run(after(12))
            break
        except Stopped:
            stops += 1
            assert stops < 20
    assert again == whole
    assert stops >= 1
    assert run(after(0)) == whole, "all of it was kept"


# ---------------------------------------------------------------- the real commands


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Project:
    """A corpus, and checkpoints of a model that has not learned anything."""
    changes = {
        "corpus.world.core_items": 60,
        "eval.core.max_per_task": None,
        "eval.core.batch_size": 1,
        "eval.gsm8k.questions": 16,
        "rl.max_new_tokens": 40,
    }
    project = Project(tmp_path_factory.mktemp("stop"), project_root, **changes)
    project.run("paribus", "corpus")
    codec().save(project.root / "tokenizer.json")
    for stage in ("base", "sft"):
        save_checkpoint(
            project.root / "checkpoints" / stage,
            talker().model,
            project.root / "tokenizer.json",
            {"stage": stage},
        )
    return project


def interrupted(
    project: Project, command: list[str], stop: Callable[[Any], None]
) -> tuple[int, str]:
    """Run a command, stop it once something is kept; its exit status and what it said."""
    before = set(kept_files(project.root))
    project.feed_mlflow()
    process = subprocess.Popen(
        ["paribus", *command],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: process.poll() is not None or set(kept_files(project.root)) - before)
    stop(process)
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def kept_files(root: Path) -> list[Path]:
    paths = (root / ".paribus/runs").rglob("*.jsonl")
    return [
        path
        for path in paths
        if path.name != "metrics.jsonl" and path.read_bytes().count(b"\n") > 1
    ]


COMMANDS = {
    "gsm8k": (["eval", "gsm8k", "sft"], signal.SIGINT),
    "sparsity": (
        ["eval", "sparsity", "--json", "--questions", "8", "--samples", "4"],
        signal.SIGTERM,
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_stops_it_with_75_and_it_goes_on(name: str, made: Project) -> None:
    command, number = COMMANDS[name]
    status, said = interrupted(made, command, lambda process: process.send_signal(number))
    assert status == EXIT_PAUSED, said
    assert "Traceback" not in said, said
    assert f"stopped ({number.name}); what is done is kept" in said
    made.run("paribus", *command)


def test_pause_stops_an_evaluation_and_the_result_is_the_undisturbed_one(made: Project) -> None:
    def pause(_: Any) -> None:
        made.run("paribus", "pause")

    status, said = interrupted(made, ["eval", "core"], pause)
    assert status == EXIT_PAUSED, said
    assert "stopped (paribus pause)" in said, said
    assert not (made.root / "metrics/core.json").exists()
    made.run("paribus", "eval", "core")
    items, metrics = (made.root / "evals/core/items.parquet").read_bytes(), made.metrics("core")
    for path in kept_files(made.root):
        path.unlink()
    made.run("paribus", "eval", "core")
    assert (made.root / "evals/core/items.parquet").read_bytes() == items
    assert made.metrics("core") == metrics


def test_answers_without_the_summary_that_vouches_for_them_are_refused_in_words(
    made: Project,
) -> None:
    (made.root / "evals/gsm8k/base").mkdir(parents=True, exist_ok=True)
    (made.root / "evals/gsm8k/base/items.parquet").write_bytes(b"PAR1 garbage PAR1")
    done = made.run("paribus", "eval", "compare-stages", check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "evals/gsm8k/base/summary.json: No such file" in done.stderr
    assert "dvc repro --force gsm8k_stage@base" in done.stderr


def test_a_full_disk_ends_the_corpus_in_words(made: Project, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from paribus.cli.commands import commands\n"
        "sys.argv = ['paribus', 'corpus']\n"
        "commands()"
    )
    before = (made.root / "data/corpus/manifest.json").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=made.root,
        env=os.environ | {"PYTHONPATH": str(made.root / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert "make room" in done.stderr
    assert (made.root / "data/corpus/manifest.json").read_bytes() == before


EARLY = """
import sys
from paribus import graph
from paribus.cli import commands as cli
graph.ENTRY_POINTS[sys.argv[1]] = "signalled:stage"
cli.run_stage(*sys.argv[1:])
"""
SIGNALLED = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize("stage", [["core"], ["gsm8k_stage", "sft"], ["report"], ["tokens"]])
def test_a_signal_while_a_stage_loads_its_libraries_ends_it_with_75(
    stage: list[str], tmp_path: Path
) -> None:
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", EARLY, *stage],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    name = " ".join(stage)
    assert done.stderr == f"paribus {name}: SIGTERM: stopped; nothing was under way\n"
    assert done.returncode == EXIT_PAUSED
