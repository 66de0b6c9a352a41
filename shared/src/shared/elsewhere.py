"""A pretended accelerator, for tests on machines without one.

    with elsewhere():
        run_something(device=ELSEWHERE)

Within, tensors of the device `ELSEWHERE` have numbers (torch's own `meta` tensors have none), which lie on the CPU, and
refuse what a GPU's would: to meet tensors of the CPU in one operation (but for numbers without dimensions and
indices), to be drawn by a generator of the CPU, to turn into numpy arrays. A mistake of placement that only a GPU would
show is shown here. Nothing is said of speed, memory, precision or of operations that a GPU does not have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from shared.capture import Reads, memory, tensors_of

ELSEWHERE = torch.device("meta")

_aten = torch.ops.aten
_BETWEEN = {_aten._to_copy.default, _aten.copy_.default}  # operations that go from one device to the other
_INDEXED = {  # a GPU takes indices from the CPU
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default,
}  # fmt: skip
_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class _Away(Tensor):
    """A tensor that says it is elsewhere. Attributes: held: its numbers, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, held: Tensor) -> _Away:
        with torch.inference_mode(False):  # in which such tensors cannot be made
            made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device=ELSEWHERE,
            )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # pyright: ignore
        return f"elsewhere: {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    """A generator of either device; its numbers are a CPU generator's."""

    away: bool

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls, device="cpu")  # pyright: ignore[reportCallIssue]
        made.away = _is_away(device)
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass


def _is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == ELSEWHERE.type


def _index(part: Any) -> Any:
    """Of an index what torch would make a tensor of, out of sight of the modes: as a tensor elsewhere."""
    if isinstance(part, (list, np.ndarray)):
        return torch.as_tensor(part).to(ELSEWHERE)
    return part


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _Away) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any], own_generator: bool = False) -> Any:
    """One operation: refuse what a GPU would, do it on the CPU, say where the result is."""
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    away, wanted = any(isinstance(value, _Away) for value in given), kwargs.get("device")
    if any(value.device == ELSEWHERE and not isinstance(value, _Away) for value in given):
        raise RuntimeError(f"{func}: a tensor of torch's own {ELSEWHERE.type} device, which has no numbers")
    if not away and not _is_away(wanted):
        return func(*args, **kwargs)
    here = [tuple(value.shape) for value in given if not isinstance(value, _Away) and value.dim()]
    if away and here and func not in _BETWEEN and func not in _INDEXED:
        raise RuntimeError(f"{func}: tensors of two devices; on the CPU: {here}")
    if kwargs.get("generator") is not None and not own_generator:
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor elsewhere")
    inner: Any = tree_map(_held, kwargs)
    if wanted is not None:
        inner["device"] = torch.device("cpu")
    found: Any = func(*tree_map(_held, args), **inner)
    name = func.__name__.split(".")[0]
    if func is _aten._local_scalar_dense.default:
        return found
    if wanted is not None and not _is_away(wanted):
        return found.clone() if any(found is _held(value) for value in given) else found
    if name.startswith("_fused"):  # optimisers: in place
        return None
    if name.endswith("_") and not name.startswith("_foreach"):  # in place: the tensor that was given
        return args[0]
    return kwargs.get("out", tree_map(lambda value: _Away(value) if isinstance(value, Tensor) else value, found))


class _Dispatch(TorchDispatchMode):
    """Sees operations, those that make tensors of nothing among them."""

    own_generator = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.own_generator)


class _Function(TorchFunctionMode):
    """Sees what a dispatch mode does not: tensors made of Python numbers, lists of tensors, whose a generator is."""

    def __init__(self, dispatch: _Dispatch) -> None:
        super().__init__()
        self.dispatch = dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MAKERS and _is_away(kwargs.get("device")):
            data = args[0] if args else kwargs["data"]
            if isinstance(data, Tensor):
                return data.to(ELSEWHERE, kwargs.get("dtype") or data.dtype)
            return func(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        if func is Tensor.new_tensor and isinstance(args[0], _Away) and kwargs.get("device") is None:
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(ELSEWHERE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], _Away):
            index = tuple(map(_index, args[1])) if isinstance(args[1], tuple) else _index(args[1])
            return func(args[0], index, *args[2:])
        if func is Tensor.tolist and isinstance(args[0], _Away):
            return args[0].held.detach().tolist()
        if getattr(kwargs.get("generator"), "away", False):
            self.dispatch.own_generator = True
            try:
                return func(*args, **kwargs)
            finally:
                self.dispatch.own_generator = False
        return func(*args, **kwargs)


@contextlib.contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within it `ELSEWHERE` can be used as a device, by `--device meta` too."""
    import torch.optim.optimizer as optimizer

    from shared import device as devices

    fused: Callable[[], list[str]] = optimizer._get_fused_kernels_supported_devices  # pyright: ignore
    available = devices.available_devices
    dispatch = _Dispatch()
    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in (
            (torch, "Generator", _Generator),
            (optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), ELSEWHERE.type]),
            (devices, "available_devices", lambda: [*available(), ELSEWHERE.type]),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(_Function(dispatch))
        stack.enter_context(dispatch)
        yield ELSEWHERE


class PretendedGraphs:
    """CUDA graphs without CUDA, for `shared.capture.Captured`: records the operations of a function and replays them on
    the very tensors that they were recorded with.

    As with a real graph, Python runs once: what it computed then stays as it was, and recording changes nothing. What a
    real graph refuses is refused: asking for a number, and, within `elsewhere`, tensors that come from the CPU.
    """

    def aside(self, function: Callable[[], Any]) -> Any:
        """Call the function."""
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """(what it returns, what carries it out)."""
        tape = _Tape()
        try:
            with tape:
                found = function()
        finally:
            tape.undo()
        return found, tape.replay


class _Tape(Reads):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self.before: dict[int, Tensor] = {}  # older tensors as they were

    def meets(self, tensor: Tensor) -> None:
        # All of them: not every operation says what it changes (batch normalisation).
        self.before[id(tensor)] = tensor.detach().clone()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (_aten._local_scalar_dense.default, _aten.is_nonzero.default):
            raise RuntimeError(f"{func}: a number is asked for while a graph is recorded")
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if func in _BETWEEN and len({value.device for value in tensors_of(args, kwargs, found)}) > 1:
            raise RuntimeError(f"{func}: from one device to the other while a graph is recorded")
        if not func.is_view:
            self.operations.append((func, args, kwargs or {}, found))
        return found

    def undo(self) -> None:
        """Put back what the recorded operations have changed."""
        for key, before in self.before.items():
            self.older[key].detach().copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        """The operations again."""
        for func, args, kwargs, found in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_of(found), tensors_of(again), strict=True):
                if memory(old) != memory(new):
                    old.copy_(new)
