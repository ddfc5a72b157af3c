"""CUDA graphs: the kernels of a function are recorded once and then launched together.

A step of a small model consists of hundreds to thousands of short kernels. Python launches them one
by one more slowly than a GPU runs them; a recorded step needs one launch (docs/results.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from synaptune.training.job import Job, LanguageJob

WARM_UP = 2  # calls before the recording, in which libraries load kernels and allocate workspaces

_log = logging.getLogger(__name__)


def can_record(job: Job, device: torch.device) -> bool:
    """Return whether the steps of a job are recorded: with `training.graphs`, on a GPU.

    Another job or optimizer than a language model with AdamW may read the device in a step.
    """
    return (
        device.type == "cuda"
        and job.training.graphs
        and type(job) is LanguageJob
        and job.training.optimizer == "adamw"
    )


class GraphedFunction:
    """A function on a GPU whose calls are replayed as a CUDA graph after the first ones.

    The first `WARM_UP` calls run the function as it is, so each call has its effects once. A
    function that cannot be recorded runs as it is for ever, after a warning.

    Args:
        function: takes trees of tensors whose shapes stay the same. All else that it reads and
            writes are tensors that stay in their places, and it does not wait for the device.
        generators: generators from which it draws; the caller seeds them before a call.
    """

    def __init__(
        self, function: Callable[..., Any], generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._function, self._generators = function, generators
        self._calls_left = WARM_UP
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()
        self._inputs: list[Tensor] = []
        self._outputs: Any = None

    def __call__(self, *inputs: Any) -> Any:
        """Return the result of the function; the next call may overwrite its tensors."""
        if self._graph is None:
            if self._calls_left == 0:
                self._graph = self._record(inputs)
            if self._graph is None:
                self._calls_left -= 1
                return self._run(inputs)
        for place, value in zip(self._inputs, tree_flatten(inputs)[0], strict=True):
            if place is not value:
                place.copy_(value)
        self._graph.replay()
        return self._outputs

    def _run(self, inputs: tuple[Any, ...]) -> Any:
        """Call the function on the stream of the recording, which its gradients then know."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs

    def _record(self, inputs: tuple[Any, ...]) -> torch.cuda.CUDAGraph | None:
        """Return the graph of the function, which runs nothing yet; None if it has none."""
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        leaves, tree = tree_flatten(inputs)
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._function(*tree_unflatten(leaves, tree))
        except RuntimeError as error:
            _log.warning("steps run without a CUDA graph: %s", str(error).splitlines()[0])
            return None
        self._inputs, self._outputs = leaves, outputs  # the graph reads the tensors of this call
        return graph


def copy_tensors(tree: Any) -> Any:
    """Return a tree with copies of its tensors, which a later replay does not overwrite."""
    return tree_map_only(Tensor, Tensor.clone, tree)
