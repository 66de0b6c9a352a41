"""CUDA graphs: a step that is recorded once and replayed, so that small kernels do not wait for Python.

    step = Captured(update, CudaGraphs(device))
    metrics = step(key, x, y)          # update(x, y) -> {name: tensor or float}

A graph repeats the same kernels on the same memory. So of the function must hold: it reads its arguments, tensors that
stay where they are and are changed in place (weights, an optimiser's moments) or that are the same as long as `key` is,
as its Python values must be; it asks the device for no number (`.item()`, `if tensor:`) and the CPU for no tensor. What
was read is kept from being freed.

`shared.elsewhere.PretendedGraphs` holds a function to that on machines without a GPU.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Found = TypeVar("Found")
Values = dict[str, "Tensor | float"]

WARM = 2  # calls in a row with one key before the one that is recorded: cuBLAS's workspaces, an optimiser's state
FAILURES = 2  # recordings that may fail before no more are tried


class Graphs(Protocol):
    """How a function is recorded."""

    def aside(self, function: Callable[[], Found]) -> Found:
        """Call the function as it will be recorded, without recording it."""
        ...

    def record(self, function: Callable[[], Found]) -> tuple[Found, Callable[[], None]]:
        """Record the function without carrying it out: (what it returns, what carries it out and refills that)."""
        ...


class CudaGraphs:
    """Records on a CUDA device, on a stream of its own. Recordings share their memory: they are replayed one after the
    other, and what they return is copied before the next."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._last: torch.cuda.CUDAGraph | None = None  # held, for a pool without graphs is gone

    def aside(self, function: Callable[[], Found]) -> Found:
        """The function on the stream, after all that was asked of the device and before all that will be."""
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream):
                return function()
        finally:
            here.wait_stream(self.stream)

    def record(self, function: Callable[[], Found]) -> tuple[Found, Callable[[], None]]:
        """The function as a graph."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self._last is None else self._last.pool()
        # The outer context puts the stream back where a recording fails: the graph's own does not come to it.
        # Other threads, such as those that fetch batches, may go on asking for memory meanwhile.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            found = function()
        self._last = graph
        return found, graph.replay


class Reads(TorchDispatchMode):
    """Within it, the tensors that operations are given and that are older than it are collected in `older`."""

    def __init__(self) -> None:
        super().__init__()
        self.older: dict[int, Tensor] = {}  # by identity; held, so that no other tensor gets it
        self._own: set[int] = set()  # memory made within

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation within would import torch's compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tensors_of(args, kwargs)
        for value in given:
            if id(value) not in self.older and memory(value) not in self._own:
                self.meets(value)
                self.older[id(value)] = value
        found = func(*args, **(kwargs or {}))
        self._own |= {memory(value) for value in tensors_of(found)} - {memory(value) for value in given}
        return found

    def meets(self, tensor: Tensor) -> None:
        """An older tensor is about to be given to an operation for the first time."""


def tensors_of(*values: Any) -> list[Tensor]:
    """All tensors in nested values."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def memory(tensor: Tensor) -> int:
    """Which memory a tensor and its views lie in."""
    return getattr(tensor, "held", tensor).untyped_storage().data_ptr()  # `held`: of `shared.elsewhere`


class Captured:
    """A function that is replayed as soon as it has been called more than `WARM` times in a row with one key.

    Args:
        function: of tensors; returns a dictionary.
        graphs: what records it.
        keep: recordings kept, the last used; each has memory of its own for all that the function computes.
        abandoned: called when recording has failed half-way, to drop what the function left (gradients).
    """

    def __init__(
        self,
        function: Callable[..., Values],
        graphs: Graphs,
        keep: int = 16,
        abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        self.function, self.graphs, self.keep, self.abandoned = function, graphs, keep, abandoned
        self.recorded = 0
        """Recordings made so far."""
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._last: Hashable = None
        self._calls = 0
        self._failures = 0

    def __call__(self, key: Hashable, *tensors: Tensor) -> Values:
        """What the function returns for `tensors`, as tensors of the caller's own."""
        full = (key, tuple((t.shape, t.dtype) for t in tensors))
        self._calls = self._calls + 1 if full == self._last else 1
        self._last = full
        if full in self._recordings:
            self._recordings.move_to_end(full)
            return self._recordings[full](tensors)
        found = self.graphs.aside(lambda: self.function(*tensors))
        if self._calls > WARM and self._failures < FAILURES:
            # At once after a call, for what is made when it is first needed is there now, whatever came between calls.
            self._record(full, tensors)
        return found

    def _record(self, full: Hashable, tensors: tuple[Tensor, ...]) -> None:
        while len(self._recordings) >= self.keep:
            self._recordings.popitem(last=False)
        reason = None
        try:
            self._recordings[full] = _Recording(self.function, self.graphs, tensors)
            self.recorded += 1
        except RuntimeError as error:
            reason = _root(error)
        if reason is not None:  # out of the handler, whose traceback holds all that the function had computed
            self._failures += 1
            self.abandoned()
            warnings.warn(f"steps are not recorded as CUDA graphs, and so slower: {reason}", stacklevel=3)

    def forget(self) -> None:
        """Drop all recordings: what the function reads has moved."""
        self._recordings.clear()
        self._last, self._calls = None, 0


def _root(error: BaseException) -> str:
    """What went wrong first: the end of a recording says only that something did."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Recording:
    def __init__(self, function: Callable[..., Values], graphs: Graphs, tensors: tuple[Tensor, ...]) -> None:
        self.inputs = tuple(t.clone() for t in tensors)
        with Reads() as reads:
            self.found, self.replay = graphs.record(lambda: function(*self.inputs))
        self.reads = list(reads.older.values())

    def __call__(self, tensors: tuple[Tensor, ...]) -> Values:
        for mine, given in zip(self.inputs, tensors, strict=True):
            mine.copy_(given)
        self.replay()
        return {name: v.clone() if isinstance(v, Tensor) else v for name, v in self.found.items()}
