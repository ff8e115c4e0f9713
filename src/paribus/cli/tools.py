"""What the small commands do: keys, profiles, pause, the MLflow page."""

from __future__ import annotations

import io
import ipaddress
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import paribus
from paribus import graph, tracking
from paribus.config import (
    PROFILES,
    allowed,
    describe,
    fingerprint,
    flatten,
    inert,
    load_config,
    parse_config,
    parse_value,
    parse_yaml,
    profile_overrides,
    read_text,
)
from paribus.errors import UserError, did_you_mean, escaped, shown
from paribus.files import write_atomic
from paribus.graph import assignments, tree_digest
from paribus.machine.hardware import detect_hardware
from paribus.machine.interrupt import Interrupt
from paribus.machine.lock import StateLock, lock_holder
from paribus.machine.process import set_up_process
from paribus.places import find_checkpoint, main_checkout, state_root
from paribus.progress import Progress
from paribus.summary import write_json
from paribus.tracking.address import is_server, public_uri


def print_keys(pattern: str) -> None:
    """Print every key whose dotted name contains `pattern`. Raises UserError where none does."""
    config = load_config()
    values = flatten(config)
    without = inert(config)
    found = [row for row in describe() if row[0] in values and pattern in row[0]]
    if not found:
        names = [path for path, *_ in describe()]
        hint = did_you_mean(pattern, names)
        raise UserError(f"no key contains {shown(pattern)}{'; ' + hint if hint else ''}")
    for path, hint, meta in found:
        click.echo(_key_page(path, hint, meta, values[path], path in without))


def _key_page(path: str, hint: Any, meta: Any, value: Any, is_inert: bool) -> str:
    """A key's value, documentation, what it takes, and when it acts."""
    options = getattr(hint, "__args__", ())
    nullable = type(None) in options
    kinds = [option for option in options if option is not type(None)]
    kind = kinds[0] if nullable else hint
    lines = [f"{path}: {json.dumps(value)}", f"    {meta['doc']} ({allowed(kind, meta, nullable)})"]
    if meta["why"]:
        lines.append(f"    upper bound: {meta['why']}")
    if meta["acts_when"]:
        words = meta["acts_when"].words.replace("{here}", path.rpartition(".")[0])
        lines.append(f"    read only with {words}{'; not now' if is_inert else ''}")
    return "\n".join(lines)


def write_deps(check: bool) -> None:
    """Bring the deps on code in dvc.yaml up to date, or with `check` exit with status 1 where they are not."""
    path = Path("dvc.yaml")
    text = path.read_text(encoding="utf-8")
    current = graph.with_generated_deps(text, graph.generated_deps(graph.working_sources()))
    if current == text:
        click.echo("dvc.yaml names the code of every stage")
        return
    if check:
        click.echo("dvc.yaml is stale; bring it up to date: paribus deps", err=True)
        sys.exit(1)
    write_atomic(path, current)
    click.echo("dvc.yaml: the deps on code are up to date now; commit it")


def read_profile(name: str) -> dict[str, Any]:
    """The dotted overrides of a profile, checked against params.yaml. Raises UserError."""
    overrides = profile_overrides(name)
    load_config(overrides=overrides)
    return overrides


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments -> dotted overrides; a value is read as one in params.yaml is, and a mapping is merged, as
    `dvc exp run -S` does. Raises UserError with every problem."""
    overrides: dict[str, Any] = {}
    problems: list[str] = []
    for one in assignments:
        key, sign, text = one.partition("=")
        if not sign or not key:
            problems.append(f"-S {shown(one)}: expected KEY=VALUE")
            continue
        try:
            value = parse_value(text, f"-S {escaped(key)}")
        except UserError as error:
            problems += error.problems
            continue
        if isinstance(value, dict):
            overrides |= flatten(value, f"{key}.")
        else:
            overrides[key] = value
    if problems:
        raise UserError(problems)
    return overrides


def list_profiles() -> None:
    """Name and first comment line of every profile."""
    for path in sorted(PROFILES.glob("*.yaml")):
        first = read_text(path).partition("\n")[0]
        click.echo(f"{path.stem:16} {escaped(first.lstrip('# '), limit=None)}")


def print_profile_args(name: str) -> None:
    """The profile as arguments of `dvc exp run`, quoted for a shell."""
    click.echo(" ".join(f"-S {shlex.quote(word)}" for word in assignments(read_profile(name))))


def apply_profile(name: str) -> None:
    """Write the profile's values into params.yaml, comments and order kept; as it was where anything goes wrong."""
    path = Path("params.yaml")
    text, changes = _with_values(read_text(path), read_profile(name))
    parse_config(parse_yaml(text, f"{path} with {name}"))
    write_atomic(path, text)
    for change in changes:
        click.echo(change)


def _with_values(text: str, overrides: dict[str, Any]) -> tuple[str, list[str]]:
    """(text of params.yaml with dotted `overrides` in it, a line for each value that changed)."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**20  # long values stay on their line
    document = yaml.load(text)
    changes: list[str] = []
    for key, value in overrides.items():
        node = document
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        before = node.get(last)
        node[last] = value
        if before != value:
            changes.append(f"{key}: {shown(before)} -> {shown(value)}")
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue(), changes


def sparsity(checkpoint: str, questions: int, samples: int, as_json: bool) -> None:
    """Print what RL with the settings of params.yaml would find: pass@k, groups without gradient, a recommendation."""
    import torch

    from paribus.data import contents
    from paribus.data.tokenizer import Tokenizer
    from paribus.evaluate.gsm8k import chat_prompt, is_cut_off, score, solution_steps
    from paribus.evaluate.kept import Kept, signals_stop, stop_if
    from paribus.evaluate.sparsity import sparsity_report
    from paribus.generate import Completion, Engine
    from paribus.model.gpt import load_checkpoint
    from paribus.stages.evaluation import stoppable

    if questions < 1 or samples < 2:
        raise UserError(
            f"--questions {questions} --samples {samples}: at least 1 question and 2 samples are needed"
        )
    config = load_config()
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    folder = find_checkpoint(checkpoint)
    words = Tokenizer.load(folder / "tokenizer.json")
    problems = list(contents.rows(Path("data/corpus"), "problems/validation.jsonl"))[:questions]
    name = fingerprint(
        stage="sparsity",
        weights=tree_digest([folder]),
        code=_code_digest(),
        problems=problems,
        samples=samples,
        rl=flatten(config.rl),
        seed=config.seed,
        hardware=hardware.hardware_class(),
    )
    state = state_root() / "runs" / f"sparsity-{name}"
    with (
        StateLock(state),
        Interrupt(state, config.train.session_minutes) as interrupt,
        stoppable("eval sparsity", interrupt),
        Progress("sparsity", len(problems), "questions") as bar,
        Kept(state / "answers.jsonl", name) as kept,
        signals_stop(interrupt),
    ):
        engine = Engine(
            load_checkpoint(folder, hardware.device, getattr(torch, hardware.dtype)).eval(), words
        )
        answered = {row["question"]: row for row in kept.rows}
        todo = [number for number in range(len(problems)) if number not in answered]
        before = len(problems) - len(todo)
        began = time.perf_counter()

        def keep(place: int, group: list[Completion]) -> None:
            nonlocal began
            number, now = todo[place], time.perf_counter()
            reference = problems[number]["answer"]
            row = {
                "question": number,
                "correct": sum(score(words.decode(one.tokens), reference).correct for one in group),
                "cut_off": sum(is_cut_off(one, words.bos) for one in group),
                "seconds": now - began,
            }
            began = now
            kept.add(row)
            answered[number] = row

        def on_step(done: int) -> None:
            stop_if(interrupt.requested)
            bar.within("answers", done, len(todo) * samples)

        engine.generate(
            [chat_prompt(words, problems[number]["question"]) for number in todo],
            samples=samples,
            max_new_tokens=config.rl.max_new_tokens,
            temperature=config.rl.temperature,
            top_k=config.rl.top_k,
            seed=config.seed,
            rows=config.rl.rollout_rows,
            ids=todo,
            on_done=keep,
            on_progress=lambda done, _: bar.count(before + done, len(problems)),
            on_step=on_step,
        )
    rows = [answered[number] for number in range(len(problems))]
    answers = len(problems) * samples
    found = sparsity_report(
        [row["correct"] for row in rows],
        [solution_steps(problem) for problem in problems],
        samples,
        samples_per_second=answers / sum(row["seconds"] for row in rows),
        group_size=config.rl.samples_per_question,
        cut_off=sum(row["cut_off"] for row in rows) / answers,
        max_new_tokens=config.rl.max_new_tokens,
    )
    _drop(state / "answers.jsonl")
    click.echo(json.dumps(found, indent=1) if as_json else _sparsity_page(found))


def _code_digest() -> str:
    """Names the code of this package."""
    package = Path(paribus.__file__).parent
    return tree_digest(sorted(package.rglob("*.py")))


def _drop(kept: Path) -> None:
    """A finished evaluation is not taken up again: asked for once more, it is computed once more."""
    kept.unlink(missing_ok=True)


def _sparsity_page(found: dict[str, Any]) -> str:
    lines = [
        f"{found['questions']} questions, {found['samples']} answers each, {found['samples_per_second']:.1f} answers/s"
    ]
    lines += [
        f"pass@{key.removeprefix('pass_at_'):<3} {value:.3f}"
        for key, value in found.items()
        if key.startswith("pass_at_")
    ]
    lines += ["group size   no gradient   all wrong   all right   useful groups/hour"]
    lines += [
        f"{size:>10}   {row['zero_gradient_groups']:>11.1%}   {row['zero_reward_groups']:>9.1%}   "
        f"{row['all_reward_groups']:>9.1%}   {row['gradient_groups_per_hour']:>18,.0f}"
        for size, row in found["by_group_size"].items()
    ]
    return "\n".join([*lines, found["recommendation"]])


def lm(
    checkpoint: str,
    tasks: list[str],
    *,
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
) -> None:
    """Run tasks of lm-evaluation-harness: a table to read, JSON under evals/lm, a run in MLflow."""
    from paribus.data.disk import writing
    from paribus.data.paths import inside
    from paribus.evaluate.harness import evaluate_tasks, rows_of
    from paribus.evaluate.kept import Kept, signals_stop
    from paribus.stages.evaluation import stoppable

    if not tasks:
        raise UserError("--tasks: names none; give at least one, with commas between")
    config, folder = load_config(), find_checkpoint(checkpoint)
    hardware = detect_hardware(config.train)
    set_up_process(hardware, config.seed)
    settings = {
        "checkpoint": str(folder),
        "tasks": tasks,
        "include_path": str(include_path or ""),
        "limit": limit,
        "num_fewshot": num_fewshot,
    }
    digest = tree_digest([folder])
    name = fingerprint(
        stage="lm", weights=digest, seed=config.seed, hardware=hardware.hardware_class(), **settings
    )
    state = state_root() / "runs" / f"lm-{name}"
    with (
        StateLock(state),
        Interrupt(state, config.train.session_minutes) as interrupt,
        stoppable("eval lm", interrupt),
        Progress("lm") as bar,
        Kept(state / "answers.jsonl", f"{name} {_code_digest()}") as kept,
        writing(Path("evals/lm")),
    ):
        with signals_stop(interrupt):
            found = evaluate_tasks(
                folder,
                tasks,
                device=hardware.device,
                dtype=hardware.dtype,
                include_path=include_path,
                limit=limit,
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                seed=config.seed,
                on_progress=bar.count,
                kept=kept,
                stop=interrupt.requested,
            )
        rows = rows_of(found)
        more = f"-and-{len(tasks) - 1}-more" if tasks[1:] else ""
        first = tasks[0].replace("/", "-")
        path = inside(Path("evals/lm"), f"{folder.name}/{first}{more}-{name[:8]}.json", "--tasks")
        write_json(path, settings | {"weights": digest, "rows": rows} | found)
        with tracking.RunLog.open(
            "lm",
            folder=state,
            config=config,
            fingerprint=name,
            params=flatten(config) | {f"lm.{key}": value for key, value in settings.items()},
            tags={
                "checkpoint": folder.name,
                "hardware": hardware.device_name,
                "dtype": hardware.dtype,
            },
            datasets={str(folder): (str(folder), digest)},
        ) as log:
            log.table("lm", rows)
            log.artifact(path)
            log.summary(_lm_metrics(rows))
    _drop(state / "answers.jsonl")
    click.echo(_lm_page(rows))
    click.echo(f"kept in {path}")


def _lm_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """`<task>.<metric>` and its `_stderr`; the filter's name with it where there is one."""
    metrics: dict[str, float] = {}
    for row in rows:
        key = f"{row['task']}.{row['metric']}" + (
            "" if row["filter"] == "none" else f".{row['filter']}"
        )
        metrics[key] = row["value"]
        if row["stderr"] is not None:
            metrics[f"{key}_stderr"] = row["stderr"]
    return metrics


def _lm_page(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["task"]) for row in rows)
    lines = [f"{'task':{width}}  {'metric':24}  {'value':>9}    {'stderr':>7}  {'n':>7}  shots"]
    for row in rows:
        metric = row["metric"] + ("" if row["filter"] == "none" else f" ({row['filter']})")
        stderr = f"± {row['stderr']:>7.4f}" if row["stderr"] is not None else f"  {'-':>7}"
        count, shots = ("-" if row[key] is None else row[key] for key in ("n", "shots"))
        lines.append(
            f"{row['task']:{width}}  {metric:24}  {row['value']:>9.4f}  {stderr}  {count:>7}  {shots:>5}"
        )
    return "\n".join(lines)


def chat(checkpoint: str, *, temperature: float, top_k: int, seed: int, max_tokens: int) -> None:
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
    web.serve(names, port, Options(max_tokens, temperature, top_k, seed), PROMPTS, load_config())


def pause() -> None:
    """Leave a request in the state folder of every running stage."""
    running = [
        folder for folder in sorted((state_root() / "runs").glob("*")) if lock_holder(folder)
    ]
    for folder in running:
        (folder / "pause").touch()
        click.echo(f"asked {folder.name} to save and stop")
    if not running:
        click.echo("no stage is running")


def clean(dry_run: bool, as_json: bool) -> None:
    """Remove the training states that finished runs no longer need, and say what that gave back."""
    from paribus.cli.cleaning import finished_runs, remove_states

    runs = finished_runs()
    for run in runs:
        if not dry_run:
            remove_states(run)
        if not as_json:
            click.echo(f"{run.folder.name}: {run.bytes / 1e6:,.1f} MB")
    total = sum(run.bytes for run in runs)
    if as_json:
        listed = [{"run": run.folder.name, "bytes": run.bytes} for run in runs]
        click.echo(json.dumps({"runs": listed, "bytes": total, "removed": not dry_run}))
        return
    click.echo(f"{total / 1e6:,.1f} MB of {len(runs)} runs {'to remove' if dry_run else 'removed'}")


UI_HOST = "127.0.0.1"


def mlflow_ui(port: int, host: str | None = None) -> None:
    """Become `mlflow ui` on this project's store.

    Arguments:
        port: of the page.
        host: address to listen at; by default this machine alone, whatever MLFLOW_HOST says.

    Raises:
        UserError: the port is taken, the address is not this machine's, or the store is a server with a page of its own.
    """
    uri = tracking.tracking_uri()
    checkout = main_checkout()
    if not any((checkout / name).exists() for name in ("dvc.yaml", ".paribus", "mlflow.db")):
        raise UserError(
            f"{checkout} is no checkout of paribus: run this in one, where its runs are"
        )
    if is_server(uri):
        raise UserError(f"the store is a server, and has its page at {public_uri(uri)}")
    address = host or UI_HOST
    if not check_port(address, port).is_loopback:
        click.echo(
            f"paribus ui: {address}:{port} can be reached from other machines, and asks nobody who they are",
            err=True,
        )
    # The store's address may hold a password: other users see a command, and not its environment.
    os.environ |= {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    os.environ.pop("MLFLOW_HOST", None)
    os.environ.pop("MLFLOW_PORT", None)
    command = ["mlflow", "ui", "--host", address, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


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
