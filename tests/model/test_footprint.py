"""Bytes by layer: what the planner counts of each layer is what torch keeps of it for the backward pass."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.config import Architecture, Config, resolve_model
from paribus.graph import ENTRY_POINTS, stage_files, working_sources
from paribus.model import backward_footprint, banded, footprint, optimizer_footprint
from paribus.model.attention import Context, backend
from paribus.model.footprint import Batch
from paribus.model.gpt import GPT
from paribus.model.layers import Block, Norm
from paribus.train import muon

ROWS, LENGTH, VOCAB = 4, 48, 97
SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "gelu": {"mlp": "gelu"},
    "swiglu": {"mlp": "swiglu"},
    "layer norm": {"norm": "layer"},
    "grouped heads": {"n_kv_heads": 1},
    "plain queries": {"qk_norm": False},
    "no value embeddings": {"value_embeddings": "none"},
    "value embeddings in all": {"value_embeddings": "all"},
    "no positions": {"position": "none"},
    "no scalars": {"residual_scalars": False, "x0_scalars": False},
    "windows": {"window_pattern": "S"},
    "relu": {"mlp": "relu"},
    "leaky relu squared": {"mlp": "leaky_relu2"},
    "geglu": {"mlp": "geglu"},
    "biases": {"mlp": "relu2", "mlp_bias": True, "qkv_bias": True, "out_bias": True},
    "parallel": {"parallel_blocks": True},
    "post": {"norm_position": "post"},
    "sandwich": {"norm_position": "sandwich"},
    "sandwich with gains": {"norm_position": "sandwich", "norm_gain": True},
    "gains": {"norm_gain": True, "qk_gain": True},
    "norms' biases": {"norm_bias": True},
    "layer norm with gains and biases": {"norm": "layer", "norm_gain": True, "norm_bias": True},
    "layer norm with gains": {"norm": "layer", "norm_gain": True, "qk_gain": True},
    "norm before rotation": {"qk_norm_position": "before_rotary"},
    "capped attention": {"attention_softcap": 20.0},
    "capped grouped attention": {"attention_softcap": 20.0, "n_kv_heads": 1},
    "gated heads": {"attention_gate": "head", "head_gain": True},
    "half rotated": {"rotary_fraction": 0.5},
    "dropout": {"mlp_dropout": 0.1, "residual_dropout": 0.1, "attention_dropout": 0.1},
}
DTYPES = {"float32": 4, "bfloat16": 2}


def architecture(config: Config, changes: dict[str, Any]) -> Architecture:
    shape = {"depth": 2, "width": 128, "head_dim": 32, "seq_len": LENGTH, "window": 8}
    return resolve_model(dataclasses.replace(config.model, **(shape | changes)))


def kept(run: Callable[[], Tensor], without: list[Tensor]) -> int:
    """Bytes that torch keeps for the backward pass of `run`, each storage once, but for those of `without`."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    sizes = {}
    for tensor in saved:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
    assert result.requires_grad
    return sum(sizes.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """A block on its own, and the inputs of its forward pass."""

    config: Architecture
    batch: Batch
    block: Block
    x: Tensor
    tokens: Tensor
    context: Context

    @property
    def booleans(self) -> int:
        """Bytes of the mask that the block was given, where it has one of its own kind."""
        mask = self.context.masks[self.block.attention.window]
        return mask.nbytes if isinstance(mask, Tensor) else 0

    @property
    def shared(self) -> list[Tensor]:
        """What a layer is given and does not add: parameters, tokens, positions."""
        rotary = list(self.context.rotary or ())
        return [*self.block.parameters(), self.tokens, *rotary]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=SWITCHES)
def case(request: pytest.FixtureRequest, dtype: str, tiny_config: Config) -> Case:
    config = architecture(tiny_config, SWITCHES[request.param])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, LENGTH, config.width, generator=generator).to(getattr(torch, dtype))
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
    rotary = None
    if config.position == "rope":
        angle = torch.zeros(1, LENGTH, 1, config.head_dim // 2, dtype=x.dtype)
        rotary = (angle.cos(), angle.sin())
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    batch = Batch(ROWS, LENGTH, DTYPES[dtype])
    masks: dict[str, Any] = {"L": None, "S": mask}
    if footprint.attends_by_bands(config, batch):
        masks = dict.fromkeys("LS", banded.band(mask, None, x.dtype, keeps=True))
    context = Context(rotary, masks, None)
    return Case(config, batch, Block(config, VOCAB, 0), x.requires_grad_(), tokens, context)


def test_attention(case: Case) -> None:
    found = kept(lambda: case.block.attention(case.x, case.tokens, case.context), case.shared)
    expected = footprint.attention(case.config, 0, case.batch)
    assert expected == pytest.approx(found - case.booleans, rel=0.05)


def test_mlp(case: Case) -> None:
    found = kept(lambda: case.block.mlp(case.x), case.shared)
    assert footprint.mlp(case.config, case.batch) == pytest.approx(found, rel=0.05)


def test_norm(case: Case) -> None:
    norm = Norm(case.config)
    result: list[Tensor] = []

    def run() -> Tensor:
        result.append(norm(case.x))
        return result[0]

    found = kept(run, list(norm.parameters()))
    returned_is_kept = footprint.norm_keeps_output(case.config, case.batch)
    if returned_is_kept and not footprint.norm_keeps_values(case.config, case.batch):
        found -= case.x.nbytes  # the result, counted by the layer that takes it
    statistics = 4 * case.batch.tokens  # in fp32; bf16 scales are half of that, layer norm has two
    assert footprint.norm(case.config, case.batch) == pytest.approx(found, abs=statistics)


def test_block(case: Case) -> None:
    x0 = case.x.detach().clone()
    found = kept(lambda: case.block(case.x, x0, case.tokens, case.context), [*case.shared, x0])
    expected = footprint.block(case.config, 0, case.batch)
    assert expected == pytest.approx(found - case.booleans, rel=0.05)


def test_the_whole_forward_pass_is_the_sum_of_its_layers(dtype: str, tiny_config: Config) -> None:
    config = architecture(tiny_config, {"depth": 3})
    model = GPT(config, VOCAB, getattr(torch, dtype))
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    found = kept(lambda: model.hidden(tokens), list(model.parameters()))
    batch = Batch(ROWS, LENGTH, DTYPES[dtype])
    expected = footprint.outside_blocks(config, batch)
    expected += sum(footprint.block(config, layer, batch) for layer in range(config.depth))
    # the final norm's output, and cosines and sines of every position
    expected += footprint.stream(config, batch)
    assert expected == pytest.approx(found, rel=0.05)


def test_bands_are_counted_where_the_model_attends_by_them(tiny_config: Config) -> None:
    for changes in SWITCHES.values():
        config = architecture(tiny_config, changes)
        for name, item in DTYPES.items():
            chosen = backend(
                "cpu",
                LENGTH,
                None,
                documents=False,
                read=False,
                softcap=config.attention_softcap > 0,
                dropout=config.attention_dropout > 0,
                dtype=getattr(torch, name),
            )
            counted = footprint.attends_by_bands(config, Batch(ROWS, LENGTH, item))
            assert counted == (chosen == "banded")
    assert footprint.KEPT_LENGTH == banded.KEPT_LENGTH


@pytest.mark.parametrize("length, window", [(48, 8), (300, 40), (300, 100), (512, 512)])
def test_bands_have_the_blocks_that_are_counted(
    length: int, window: int, tiny_config: Config
) -> None:
    changes = {"seq_len": length, "window": window, "window_pattern": "SL", "depth": 2}
    config = architecture(tiny_config, changes)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    for layer in range(config.depth):
        sees = window if window < length and layer == 0 else None
        real = []
        for queries, keys in banded.band(mask, sees, torch.bfloat16).blocks():
            real.append((queries.stop - queries.start, keys.stop - keys.start))
        assert backward_footprint.bands(config, layer, Batch(ROWS, length, 2)) == real


def test_muons_pairs_are_counted_where_it_makes_them() -> None:
    assert optimizer_footprint.PAIRED_FROM == muon.WIDE


def test_every_layer_names_its_footprint(project_root: Path) -> None:
    """A class that names its footprint leads whoever changes what it keeps to where that is counted."""
    for file in ("layers.py", "kernels.py", "banded.py", "cross_entropy.py", "cache.py"):
        tree = ast.parse((project_root / "src/paribus/model" / file).read_text())
        module_says = ast.get_docstring(tree) or ""
        for node in tree.body:
            if not isinstance(node, ast.ClassDef) or not is_layer(node):
                continue
            says = f"{module_says} {ast.get_docstring(node)}"
            named = set(re.findall(r"`footprint\.(\w+)`", says)) - {"py"}
            assert named, f"{file}: {node.name} does not say where its bytes are counted"
            assert all(hasattr(footprint, name) for name in named), f"{file}: {named}"


def is_layer(node: ast.ClassDef) -> bool:
    """Whether a class of model/ keeps tensors: a module with parts, an autograd function, a cache."""
    bases = [ast.unparse(base) for base in node.bases]
    return "nn.Module" in bases or "torch.autograd.Function" in bases or node.name.endswith("Cache")


def test_a_better_estimate_retrains_nothing() -> None:
    sources = working_sources()
    for stage in ENTRY_POINTS:
        footprints = {file for file in stage_files(stage, sources) if "footprint" in file}
        assert not footprints


def test_parameters_of_a_module_are_those_that_are_counted(tiny_config: Config) -> None:
    from paribus.model.shapes import block_shapes

    for changes in SWITCHES.values():
        config = architecture(tiny_config, changes)
        for layer in range(config.depth):
            block: nn.Module = Block(config, VOCAB, layer)
            real = {name: tuple(tensor.shape) for name, tensor in block.named_parameters()}
            assert block_shapes(config, layer, VOCAB) == real
