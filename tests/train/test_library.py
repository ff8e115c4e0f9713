"""A library's optimiser in Muon's place: checked before it runs, resumed to the bit, and open to a class of one's own."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkout import ROOT
from support.toy_loop import STEPS, make, weights

from paribus.config import Config, load_config, merge, parse_config, read_yaml
from paribus.errors import UserError
from paribus.train.library import try_out
from paribus.train.loop import Paused

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("torch.optim.SGD", {"momentum": 0.9, "nesterov": True}),
    ("torch.optim.Adafactor", {}),
    ("torch.optim.AdamW", {"betas": [0.8, 0.95]}),
    ("heavyball.SOAP", {"precondition_frequency": 1}),
    ("pytorch_optimizer.Lion", {}),
    ("pytorch_optimizer.SOAP", {}),
]


def with_kind(config: Config, kind: str, arguments: dict[str, Any], **changes: Any) -> Config:
    """A configuration with an optimiser; skips the test where its library is not installed."""
    place = kind.partition(".")[0]
    if place != "torch":
        pytest.importorskip(place, reason="requirements-optimizers.lock is not installed")
    optimizer = dataclasses.replace(
        config.optimizer, kind=kind, arguments=arguments, matrix_lr=0.003, **changes
    )
    return dataclasses.replace(config, optimizer=optimizer)


@pytest.mark.parametrize(("kind", "arguments"), KINDS, ids=str)
def test_a_paused_run_goes_on_to_the_same_bits(
    kind: str, arguments: dict[str, Any], tiny_config: Config, tmp_path: Path
) -> None:
    config = with_kind(tiny_config, kind, arguments, weight_decay=0.1, ema_decay=0.9)
    straight, _ = make(config, tmp_path / "straight")
    straight.run()
    stopped, _ = make(config, tmp_path / "stopped", stop_after=STEPS // 2)
    with pytest.raises(Paused):
        stopped.run()
    resumed, _ = make(config, tmp_path / "stopped")
    state = resumed.store.load()
    assert state is not None
    assert any(name.startswith("optimizer.library/") for name in state.tensors)
    resumed.restore(state)
    resumed.run()
    assert torch.equal(weights(straight), weights(resumed))
    assert resumed.optimizer.full_state().keys() == straight.optimizer.full_state().keys()
    for name, tensor in straight.optimizer.full_state().items():
        assert torch.equal(tensor, resumed.optimizer.full_state()[name]), name


def test_arguments_act(tiny_config: Config, tmp_path: Path) -> None:
    plain, _ = make(with_kind(tiny_config, "torch.optim.SGD", {}), tmp_path / "plain")
    moving, _ = make(with_kind(tiny_config, "torch.optim.SGD", {"momentum": 0.9}), tmp_path / "m")
    plain.run()
    moving.run()
    assert not torch.equal(weights(plain), weights(moving))


def problems_of(kind: str, arguments: dict[str, Any], **others: Any) -> str:
    """What is said of a configuration with this optimiser."""
    changed = {"optimizer.kind": kind, "optimizer.arguments": arguments} | others
    with pytest.raises(UserError) as caught:
        parse_config(merge(read_yaml(ROOT / "params.yaml"), changed))
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("mu", {}, "did you mean muon?"),
        ("numpy.array", {}, "a class of numpy is not allowed"),
        ("torch.optim.Adagrat", {}, "did you mean Adagrad?"),
        ("torch.optim.LBFGS", {}, "its closure"),
        ("torch.optim.SGD", {"momentums": 0.9}, "did you mean momentum?"),
        ("torch.optim.SGD", {"lr": 0.9}, "optimizer.matrix_lr decides this"),
        ("torch.optim.SGD", {"weight_decay": 0.9}, "optimizer.weight_decay decides this"),
        ("own.Absent", {}, "own has no optimizer Absent"),
    ],
    ids=str,
)
def test_what_no_optimizer_takes_is_refused(
    kind: str, arguments: dict[str, Any], said: str
) -> None:
    assert said in problems_of(kind, arguments)


def test_a_library_does_not_go_with_shards() -> None:
    sharded = {"train.sharding": "fsdp", "train.processes": 2}
    assert "does not go with train.sharding" in problems_of("torch.optim.SGD", {}, **sharded)


def test_a_value_that_the_optimizer_refuses_is_told() -> None:
    with pytest.raises(UserError, match="Invalid momentum value"):
        try_out("torch.optim.SGD", '{"momentum": -1.0}')


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "heavyball", None)
    assert "requirements-optimizers.lock" in problems_of("heavyball.SOAP", {})


# ---------------------------------------------------------------- one's own


FORGETFUL = """
class Forgetful(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.seen = torch.zeros(())

    def step(self):
        self.seen += 1
        for group in self.param_groups:
            group["params"][0].sub_(group["lr"] * self.seen)
"""
SCRIPT = """
import torch
from paribus.config import load_config, resolve_model
from paribus.errors import UserError
from paribus.model.gpt import GPT
from paribus.train.library import try_out
from paribus.train.optim import MuonAdamW

def trained(momentum):
    given = {"optimizer.kind": "own.Signum", "optimizer.arguments": {"momentum": momentum}, "model.depth": 1}
    config = load_config("params.yaml", given)
    model = GPT(resolve_model(config.model), 50)
    model.initialise(1)
    optimizer = MuonAdamW(model, config.optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        tokens = torch.randint(0, 50, (2, 16), generator=generator)
        model(tokens, tokens).backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

print(torch.equal(trained(0.95), trained(0.0)))
try:
    try_out("own.Forgetful", "{}")
except UserError as error:
    print(error)
"""


def test_the_ten_lines_of_the_docs_are_an_optimizer_and_one_that_forgets_is_refused(
    tmp_path: Path,
) -> None:
    text = (ROOT / "docs/optimizers.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    own = tmp_path / "src/paribus/train/own.py"
    own.write_text(own.read_text() + "\n\n" + example + FORGETFUL)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    same, refusal = done.stdout.splitlines()
    assert same == "False"
    assert "own.Forgetful cannot be resumed" in refusal


# ---------------------------------------------------------------- kills


STEPS_KILLED = 30  # of a run
KILLED = """
import json, os, signal, sys, threading
from pathlib import Path
import torch
from support.toy_loop import make, weights
from paribus.config import load_config
from paribus.train.loop import Plan

folder, kind, arguments, last = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
config = load_config(sys.argv[5], {"model.depth": 2, "model.width": 32, "model.head_dim": 16, "model.seq_len": 16,
    "model.window": 4, "rl.max_new_tokens": 8, "eval.gsm8k.max_new_tokens": 8,
    "optimizer.kind": kind, "optimizer.arguments": arguments, "optimizer.ema_decay": 0.9, "optimizer.evaluate": "ema"})
def lr_factor(step):
    if step == last:  # killed a moment later, wherever that finds it
        threading.Timer(0.001 * last, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return 1.0
plan = Plan(30, lr_factor, 1.0, 1.0, 0.0)
loop, _ = make(config, folder, plan=plan)
if state := loop.store.load():
    loop.restore(state)
loop.run()
loop.optimizer.settle()
torch.save(weights(loop), folder / "weights.pt")
"""


def run(folder: Path, kind: str, arguments: str, *, kills: Sequence[int] = ()) -> torch.Tensor:
    """The averaged weights at the end of a run that is killed around each of these steps."""
    folder.mkdir()
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"}
    for last in (*kills, STEPS_KILLED):
        command = [sys.executable, "-c", KILLED, str(folder), kind, arguments, str(last)]
        done = subprocess.run([*command, str(ROOT / "params.yaml")], env=environment)
        assert done.returncode == (-signal.SIGKILL if last < STEPS_KILLED else 0)
    found: torch.Tensor = torch.load(folder / "weights.pt", weights_only=True)
    return found


@pytest.mark.soak
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("heavyball.SOAP", '{"precondition_frequency": 2}'),
        ("pytorch_optimizer.Lion", "{}"),
        ("torch.optim.Adafactor", "{}"),
        ("muon", "{}"),
    ],
)
def test_a_killed_run_ends_in_the_same_weights(kind: str, arguments: str, tmp_path: Path) -> None:
    if kind.startswith(("heavyball", "pytorch_optimizer")):
        pytest.importorskip(kind.partition(".")[0])
    straight = run(tmp_path / "straight", kind, arguments)
    assert torch.equal(straight, run(tmp_path / "killed", kind, arguments, kills=(6, 13, 21)))


def test_a_configuration_reads_a_list_as_an_argument(tmp_path: Path) -> None:
    given = {
        "optimizer.kind": "torch.optim.AdamW",
        "optimizer.arguments": {"betas": [0.8, 0.9], "amsgrad": True},
    }
    config = load_config(ROOT / "params.yaml", given)
    assert config.optimizer.arguments == {"betas": [0.8, 0.9], "amsgrad": True}
