"""CUDA utilities: which device, which precision, seeds, timers, memory, prefetch, compilation.

Everything here works without a GPU too, where it does the honest equivalent (wall clock for event timers, resident
memory for device memory) or nothing.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from shared.config import UserError

Module = TypeVar("Module", bound=nn.Module)


def choose_device(name: str = "auto") -> torch.device:
    """The device that `--device` names: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UserError: unknown name, or a device that is not there.
    """
    available = available_devices()
    if name == "auto":
        # A process started by torchrun or `accelerate launch` owns the card of its local rank.
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            return torch.device("cuda", local % torch.cuda.device_count())
        return torch.device("mps" if "mps" in available else "cpu")
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if name not in available:
        raise UserError("--device", name, ["auto", *available], "This machine has: " + ", ".join(available))
    return torch.device(name)


def available_devices() -> list[str]:
    """Names of the devices of this machine that torch can use; `cpu` is always among them."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def choose_precision(name: str, device: torch.device) -> str:
    """Accelerate's `mixed_precision` for `--precision`: `no`, `bf16` or `fp16`.

    Raises:
        UserError: fp16 without a GPU: its gradients underflow and the CPU has no scaler for them.
    """
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision", name, ["auto", "fp32", "bf16"], "fp16 needs a GPU.")
    return {"fp32": "no"}.get(name, name)


def set_seed(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices). Ranks get streams of their own."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) if rank else seed % 2**32
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - libraries that use the global stream must be seeded too
    torch.manual_seed(mixed)


def rng_state() -> dict[str, Any]:
    """The state of every global random stream, made of tensors and plain values (safe to load)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  # pyright: ignore
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.array(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned. CUDA streams are put back where there are as many cards."""
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    torch.set_rng_state(state["torch"].cpu())
    cuda = state.get("cuda")
    if cuda is not None and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([part.cpu() for part in cuda])


@contextlib.contextmanager
def kept_rng() -> Iterator[None]:
    """Leave the global random streams as they were found: an evaluation must not change what training draws."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def set_numerics(device: torch.device, deterministic: bool = False) -> None:
    """TF32 and cuDNN autotuning for speed, or deterministic algorithms throughout. The CPU is deterministic anyway."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    if deterministic or torch.are_deterministic_algorithms_enabled():  # not for nothing: it imports torch's compiler
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if deterministic else "high")
        torch.backends.cudnn.allow_tf32 = not deterministic
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic


class Timer:
    """Milliseconds between `start` and `stop`: CUDA events on a GPU (no synchronisation until read), else wall clock.

    >>> timer = Timer(torch.device("cpu"))
    >>> with timer:
    ...     pass
    >>> timer.milliseconds() >= 0
    True
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.began: Any = None
        self.ended: Any = None

    def __enter__(self) -> Timer:
        self.began = self._mark()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended = self._mark()

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> float:
        """Elapsed time of the last `with` block; waits for the GPU."""
        if self.cuda:
            self.ended.synchronize()
            return float(self.began.elapsed_time(self.ended))
        return 1000.0 * (self.ended - self.began)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB: allocated and reserved on a GPU, resident set of the process otherwise."""
    if device.type == "cuda":
        return {
            "allocated_mib": torch.cuda.max_memory_allocated(device) / 2**20,
            "reserved_mib": torch.cuda.max_memory_reserved(device) / 2**20,
        }
    import psutil

    memory = psutil.Process().memory_info()
    return {"resident_mib": getattr(memory, "peak_wset", memory.rss) / 2**20}


def describe(device: torch.device) -> dict[str, Any]:
    """What a result was measured on, for results files: no host name, no path."""
    report: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        report |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return report


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch to `device`; asynchronous from pinned memory."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def prefetch(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Yield batches on `device`, the next one already on its way over a stream of its own.

    Yields:
        (batch on the device, position): `position` is what `batches.state_dict()` said when that batch was drawn,
        so that a checkpoint counts the batches used, not those fetched ahead; None where there is no state.
    """
    position = getattr(batches, "state_dict", lambda: None)
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device), position()
        return
    stream = torch.cuda.Stream(device)

    def arrive(fetched: tuple[Any, Any, torch.cuda.Event]) -> tuple[Any, Any]:
        moved, at, copied = fetched
        compute = torch.cuda.current_stream(device)
        compute.wait_event(copied)
        for tensor in _tensors(moved):
            tensor.record_stream(compute)  # its memory must not be reused while the compute stream reads it
        return moved, at

    ahead: tuple[Any, Any, torch.cuda.Event] | None = None
    for batch in batches:
        at = position()
        with torch.cuda.stream(stream):
            moved = to_device(_pinned(batch), device)
            copied = torch.cuda.Event()
            copied.record(stream)
        if ahead is not None:
            yield arrive(ahead)
        ahead = (moved, at, copied)
    if ahead is not None:
        yield arrive(ahead)


def _pinned(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.pin_memory() if batch.device.type == "cpu" and not batch.is_pinned() else batch
    if isinstance(batch, dict):
        return {key: _pinned(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)(_pinned(value) for value in batch)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _tensors(value)


def synchronised(module: Module, device: torch.device, world: int) -> Module:
    """`module` with batch statistics over all processes, so that N devices are one with N times the batch.

    Its batch normalisations become `nn.SyncBatchNorm` in place (parameters and buffers stay the same objects). That
    has no form for the CPU: there each process normalises by its own samples, with a warning that names a layer.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    own = [
        name
        for name, part in module.named_modules()
        if isinstance(part, kinds) and not isinstance(part, nn.SyncBatchNorm)
    ]
    if world == 1 or not own:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # pyright: ignore[reportReturnType]
    warnings.warn(
        f"{len(own)} batch normalisations ({own[0] or type(module).__name__}{', ...' if len(own) > 1 else ''}) take "
        f"their statistics in each of the {world} processes on its own: torch synchronises them on CUDA alone. The "
        f"curve is not that of one device with {world} times the batch.",
        stacklevel=2,
    )
    return module


def compiled(module: Module, enabled: bool = True, **options: Any) -> Module:
    """Compile `module` in place, so that its parameter names stay; where compilation fails torch warns and the
    module runs as it is."""
    if enabled:
        _tolerate_failures()
        module.compile(**options)
    return module


def compiled_function(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The same for a function: compiled, or itself where compilation fails."""
    _tolerate_failures()
    return torch.compile(function, **options)


def _tolerate_failures() -> None:
    import torch._dynamo as dynamo

    dynamo.config.suppress_errors = True  # pyright: ignore[reportAttributeAccessIssue]
