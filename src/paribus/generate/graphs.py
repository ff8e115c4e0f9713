"""Steps of decoding as CUDA graphs (`train.decode_graphs`): a step's launches are recorded once and queued as one.

A graph has fixed sizes and fixed addresses. The sizes are rounded up (`PrefixCache.reach`), so that a handful of graphs serve
a call; the addresses are those of `step.Rows` and of the cache, which are written in place. A graph that must not be replayed
any more, as rows have left and the tensors are new ones, is forgotten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import torch

from paribus.errors import UserError


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """The stream that captures, one a process: cuBLAS keeps memory of its own for each stream that it has served."""
    return torch.cuda.Stream()


class Graphs:
    """The captured steps of one call, by their sizes. Their memory is one pool, which goes with the last of them."""

    def __init__(self, step: Callable[[], None]) -> None:
        """step: what is captured; it must not wait for the card."""
        self._step = step
        self._side = side_stream()
        self.forget()

    def forget(self) -> None:
        """The step's tensors are other ones from now on."""
        # A size that was met once is there without a graph.
        self._captured: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def take(self, sizes: Hashable) -> None:
        """Take one step.

        The first step of its sizes is taken operation by operation, on the stream that captures: libraries choose kernels and
        take memory then, which a capture does not allow. The second one is captured.

        Args:
            sizes: of all its tensors; equal ones take the same graph. Raises UserError where the step cannot be captured.
        """
        if sizes not in self._captured:
            self._take_aside()
            self._captured[sizes] = None
            return
        graph = self._captured[sizes]
        if graph is None:
            graph = self._captured[sizes] = self._capture()
        graph.replay()

    def _take_aside(self) -> None:
        """Take one step on the stream that captures."""
        current = torch.cuda.current_stream()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            self._step()
        current.wait_stream(self._side)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record one step; nothing is computed. Raises UserError."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads, such as one that writes a state, may wait for the card meanwhile
        recording = torch.cuda.graph(
            graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
        )
        try:
            with torch.cuda.stream(self._side), recording:
                self._step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error  # which ended the capture, whose end raises again
            reason = str(cause).strip().splitlines()[0]
            raise UserError(
                "train.decode_graphs: a step of decoding cannot be captured on this card: "
                f"{reason}; set it to false"
            ) from error
        return graph
