"""Reading a few places of a forward pass gives the states that the whole pass has there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.core_bundle import tiny_model

from paribus.config import Config
from paribus.model.cache import KVCache


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"window_pattern": "SL", "window": 7},
        {"n_kv_heads": 1},
        {"position": "learned"},
        {"value_embeddings": "all", "depth": 1},
    ],
)
def test_places_read_alone_are_those_of_the_whole_pass(
    shape: dict[str, Any], tiny_config: Config
) -> None:
    model = tiny_model(tiny_config, 100, 64, **shape)
    tokens = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(1))
    read, rows = torch.tensor([[0, 5, 39], [7, 7, 8], [30, 20, 10]]), torch.arange(3)[:, None]
    documents = (torch.arange(40) // 13).expand(3, 40)
    with torch.no_grad():
        whole = model.hidden(tokens)
        torch.testing.assert_close(
            model.hidden(tokens, read=read), whole[rows, read], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            model.hidden(tokens, documents, read=read),
            model.hidden(tokens, documents)[rows, read],
            atol=1e-5,
            rtol=1e-5,
        )
        cache = KVCache(model.config, 3, 64)
        model.hidden(tokens[:, :25], cache=cache, read=torch.full((3, 1), 24))
        cache.advance(torch.tensor([25, 20, 22]))  # uneven: the places behind are written over
        behind = torch.stack(
            [tokens[row, length : length + 15] for row, length in enumerate((25, 20, 22))]
        )
        states = model.hidden(behind, cache=cache, read=torch.tensor([[14], [0], [3]]))
        torch.testing.assert_close(
            states[:, 0], whole[torch.arange(3), torch.tensor([39, 20, 25])], atol=1e-5, rtol=1e-5
        )
