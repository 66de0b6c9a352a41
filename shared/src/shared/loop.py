"""The training loop, common to all papers. The loop owns *when*, the task owns *what*.

The loop counts steps, feeds batches, evaluates, logs, checkpoints, resumes, and stops on signals, time limits and
numbers that are not finite. What a step does is the task's: `Task.step` may take one gradient, play two optimisers
against each other, or change its state without any gradient at all.

    class Fit(Task):
        def start(self, loop):
            self.model = nn.Linear(3, 1)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            self.trained, self.optimizer = loop.prepare(self.model, self.optimizer)
            self.loop = loop

        def batches(self):
            return Batches((x, y), batch_size=32, seed=0)

        def step(self, batch):
            x, y = batch
            return self.loop.update(batch, lambda b: (self.trained(b[0]) - b[1]).square().mean(), self.optimizer)

        def state(self):
            return {"model": self.model, "optimizer": self.optimizer}

    Loop(Fit(), RunConfig(steps=100), member="toy").run()
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from shared import device as devices
from shared.checkpoint import Checkpoints
from shared.config import RunConfig, RunFailed, Stopped, UserError, to_json
from shared.metrics import MetricsWriter
from shared.run import FolderInUse, RunFolder, commit, refuse_in_use, versions

Metrics = Mapping[str, Tensor | float]
Loss = Tensor | tuple[Tensor, Metrics]


@runtime_checkable
class Stateful(Protocol):
    """Anything a checkpoint can hold: modules, optimisers, schedulers, a task's own objects."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


CELL_CHECKPOINTS = 50  # of a cell of `reproduce`


class Task:
    """One experiment. Subclasses override what they need; only `step` is required."""

    score: ClassVar[tuple[str, Literal["max", "min"]] | None] = None
    """Evaluation metric by which the best checkpoint is chosen, and which way is better."""

    def start(self, loop: Loop) -> None:
        """Build models and optimisers on `loop.device`. Runs once, before a checkpoint is read."""

    def opened(self, folder: Path) -> None:
        """Put beside the checkpoints what a resumed run must find again and cannot cheaply make. Runs once, on the
        first process, when a new run takes its folder into use; a resumed run's `start` reads it back."""

    def batches(self) -> Iterable[Any] | None:
        """Training batches, endlessly; None for a task that needs none. `shared.data.Batches` resumes exactly."""
        return None

    def step(self, batch: Any) -> Metrics:
        """One update, whatever that is here. Returns scalars; tensors may stay on the device."""
        raise NotImplementedError

    def evaluate(self) -> Metrics:
        """Held-out metrics. Random streams are put back afterwards, so that evaluating changes nothing."""
        return {}

    def state(self) -> Mapping[str, Stateful]:
        """What must be saved for a resumed run to go on as if never stopped."""
        return {}


class Loop:
    """Runs a task.

    Args:
        task: what to train.
        config: the run's flags.
        member: the paper, part of the run folder and of checkpoints.
        folder: a run folder opened already; default: the one that the config asks for. `False` writes nothing
            (for the many small runs inside `reproduce`).

    Attributes:
        device: where batches arrive and models belong.
        accelerator: Accelerate's handle, for tasks that need more than `prepare` and `update`.
        step: steps done. total: steps to do (after `run` began).
        rank, world: this process among all.
    """

    def __init__(
        self, task: Task, config: RunConfig, member: str, folder: RunFolder | Literal[False] | None = None
    ) -> None:
        self.task, self.config, self.member = task, config, member
        self.device = devices.choose_device(config.device)
        precision = devices.choose_precision(config.precision, self.device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(self.device)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            AcceleratorState._reset_state(reset_partial_state=True)  # settings of an earlier loop in this process
        self.accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision=precision)
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.primary = self.accelerator.is_main_process
        devices.set_numerics(self.device, config.deterministic)
        if folder is None:
            folder = RunFolder(member, config, primary=self.primary)
        self.folder = folder or None
        self.step = 0
        self.total = 0
        self.seconds = 0.0
        self.latest: dict[str, float] = {}
        self.best: float | None = None
        self._pending: list[tuple[int, float, Metrics]] = []
        self._mixed = False  # whether anything was computed under `autocast`
        self._signal: int | None = None
        self._position: Any = None
        self._saved_at: int | None = None
        self._judged_at: int | None = None
        self._writer: MetricsWriter | None = None
        mode = task.score[1] if task.score else "max"
        self._checkpoints = Checkpoints(self.folder.checkpoints, config.keep, mode) if self.folder is not None else None

    # -- for tasks -----------------------------------------------------------------------------------------------

    def prepare(self, *objects: Any) -> Any:
        """Modules and optimisers as the devices and the precision want them (moved, wrapped for several devices,
        whose batch normalisations then share their statistics on CUDA)."""
        moved = [item.to(self.device) if isinstance(item, nn.Module) else item for item in objects]
        moved = [devices.synchronised(m, self.device, self.world) if isinstance(m, nn.Module) else m for m in moved]
        moved = [devices.compiled(m, self.config.compile) if isinstance(m, nn.Module) else m for m in moved]
        self._mixed = self._mixed or any(isinstance(item, nn.Module) for item in moved)  # their forward is wrapped
        return self.accelerator.prepare(*moved)

    def update(
        self,
        batch: Any,
        loss: Callable[[Any], Loss],
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        model: nn.Module | None = None,
        clip: float | None = None,
        scheduler: Any = None,
        around: contextlib.AbstractContextManager[Any] | None = None,
        observe: Callable[[], Metrics] | None = None,
    ) -> dict[str, Tensor | float]:
        """The usual step of a task with one loss: forward, backward, clip, update.

        With `--accumulate k` the batch is cut in k along its first dimension; the gradient is that of the whole
        batch, so the curve does not change, only the memory.

        Args:
            batch: tensors with the batch dimension first, nested at will.
            loss: maps a batch to its mean loss, or to (loss, metrics).
            optimizer: one or several, all stepped.
            model: the prepared module, needed for clipping and, on several devices, to hold back the gradient
                exchange until the last micro-batch.
            clip: largest gradient norm.
            scheduler: stepped after the optimiser.
            around: a context entered around all micro-batches of the step.
            observe: called between backward and update, while gradients are there; returns metrics.
        """
        optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        pieces = split_batch(batch, self.config.accumulate)
        totals: dict[str, Tensor | float] = {}
        with around if around is not None else contextlib.nullcontext():
            for number, (piece, weight) in enumerate(pieces):
                hold = model is not None and number < len(pieces) - 1
                with self.accelerator.no_sync(model) if hold else contextlib.nullcontext():
                    with self.autocast():
                        value = loss(piece)
                    value, extra = value if isinstance(value, tuple) else (value, {})
                    self.accelerator.backward(value if weight == 1.0 else value * weight)
                for name, part in {"loss": value.detach(), **extra}.items():
                    part = part.detach() if isinstance(part, Tensor) else part
                    totals[name] = part * weight + totals[name] if name in totals else part * weight
        if clip is not None:
            parameters = itertools.chain.from_iterable(g["params"] for o in optimizers for g in o.param_groups)
            totals["gradient_norm"] = self.accelerator.clip_grad_norm_(list(parameters), clip)  # pyright: ignore
        if observe is not None:
            if clip is None:  # clipping has done so; under fp16 gradients are those of the loss times a large factor
                self.accelerator.unscale_gradients(optimizers)
            totals |= observe()
        for each in optimizers:
            # Accelerate's wrapper searches the disk for an optional package at every step, ten times what the step of
            # a small model takes; without a gradient scaler there is nothing else that it would do.
            inner = each.optimizer if isinstance(each, AcceleratedOptimizer) and each.scaler is None else each
            inner.step()
            inner.zero_grad()
        if scheduler is not None:
            scheduler.step()
        return totals

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as `--precision` says."""
        self._mixed = True
        return self.accelerator.autocast()

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Train to the end and return the summary that is also written to `summary.json`.

        Raises:
            RunFailed: a metric was not finite.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written, and the message says how to resume.
        """
        try:
            try:
                batches = self._start()
            except BaseException:
                if self.folder is not None:
                    self.folder.discard()
                raise
            return self._run(batches)
        finally:
            if self._writer is not None:
                self._writer.close()
            if self.folder is not None:
                self.folder.close()

    def _start(self) -> Iterable[Any] | None:
        """Everything that can refuse the run; nothing is written before it has passed."""
        config = self.config
        devices.set_seed(config.seed)  # every rank builds the same model ...
        self.task.start(self)
        batches = self.task.batches()
        self.total = total_steps(config, batches)
        if self.rank:
            devices.set_seed(config.seed, self.rank)  # ... and draws its own noise
        if self.folder is not None:
            self.folder.begin()
            if self.primary and not self.folder.resumed:
                self.task.opened(self.folder.path)
        return batches

    def _run(self, batches: Iterable[Any] | None) -> dict[str, Any]:
        config = self.config
        restored = self._restore(batches)
        if self.folder is not None and self.primary:
            self._writer = MetricsWriter(self.folder.path, self.step if self.folder.resumed else None)
        eval_every = config.eval_every or max(1, self.total // 10)
        save_every = config.checkpoint_every or eval_every
        stream = self._stream(batches, restored)
        began, earlier = time.perf_counter(), self.seconds
        status = "finished"
        quiet = config.quiet or not self.primary
        bar = tqdm(
            total=self.total, initial=self.step, unit="step", disable=True if quiet else None, dynamic_ncols=True,
            desc=self.member, mininterval=0.5,
        )  # fmt: skip
        with self._signals(), bar:
            while self.step < self.total:
                batch, self._position = next(stream)
                metrics = self.task.step(batch)
                self.step += 1
                self.seconds = earlier + time.perf_counter() - began
                self._pending.append((self.step, self.seconds, metrics))
                last = self.step == self.total
                if last or self.step % config.log_every == 0:
                    self._flush(bar)
                bar.update()
                stop = self._asked_to_stop()
                limit = config.max_minutes is not None and self.seconds > 60 * config.max_minutes and not last
                limit = self._agree(limit) if config.max_minutes is not None else False
                if last or limit or self.step % eval_every == 0:
                    self._evaluate()
                if last or stop or limit or self.step % save_every == 0:
                    self._save()
                if stop:
                    raise self._stopped(stop)
                if limit:
                    status = f"stopped after {config.max_minutes:g} minutes"
                    break
        if not self.latest:
            self._evaluate()
        return self._summarise(status)

    def _stream(self, batches: Iterable[Any] | None, restored: bool) -> Iterator[tuple[Any, Any]]:
        if batches is None:
            yield from itertools.repeat((None, None))
        assert batches is not None
        if restored and not isinstance(batches, Stateful):
            # No position to go to: draw and drop what the run has used. Exact where the order is seeded.
            for _ in zip(range(self.step), _endless(batches), strict=False):
                pass
        yield from devices.prefetch(_Endless(batches), self.device)

    def _flush(self, bar: Any = None) -> None:
        """Bring pending metrics to the host in one transfer, check them, write them."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = _fetch(pending, self.accelerator if self.world > 1 else None)
        bad = next(((row, name) for row in rows for name, value in row.items() if _not_finite(value)), None)
        if self._writer is not None:
            self._writer.write(rows)
        if bad is not None:
            self._diverged(*bad)
        if bar is not None and not bar.disable:
            shown = {name: value for name, value in rows[-1].items() if name not in ("step", "split", "seconds")}
            bar.set_postfix({name: f"{value:.4g}" for name, value in itertools.islice(shown.items(), 4)}, refresh=False)

    def _diverged(self, row: dict[str, Any], name: str) -> None:
        where = self._checkpoints.newest() if self._checkpoints is not None else None
        good = f"last good checkpoint: {where}" if where else "no checkpoint had been written yet"
        if self._checkpoints is not None and self.primary:
            with contextlib.suppress(UserError):  # for the post-mortem; never taken for a good checkpoint
                bad = Checkpoints(self._checkpoints.folder.parent / "diverged", keep=1).save(self._state(), self.step)
                good += f"; the state after step {self.step}, for looking into: {bad}"
        raise RunFailed(f"metric {name!r} is {row[name]} at step {row['step']}; {good}.")

    def _evaluate(self) -> None:
        self._flush()
        with devices.kept_rng():
            metrics = self.task.evaluate()
        if not metrics:
            return
        row = _fetch([(self.step, self.seconds, metrics)], None)[0]
        self._judged_at = self.step
        self.latest = {name: value for name, value in row.items() if name not in ("step", "split", "seconds")}
        if self._writer is not None:
            self._writer.write([{**row, "split": "eval"}])

    def _save(self) -> None:
        if self._checkpoints is None or self._saved_at == self.step:
            return
        self._flush()  # a step that was not finite must not become a checkpoint
        self._check_weights()
        state = self._state()
        if self.primary:
            # A score belongs to the step that was evaluated; another step's weights must not be kept as the best.
            judged = self.task.score is not None and self._judged_at == self.step
            score = self.latest.get(self.task.score[0]) if judged and self.task.score else None
            self._checkpoints.save(state, self.step, score)
        self._saved_at = self.step
        self.accelerator.wait_for_everyone()

    def _check_weights(self) -> None:
        """An update can ruin weights whose loss was still a number: they must not become a checkpoint either."""
        for part, module in self.task.state().items():
            if isinstance(module, nn.Module):
                for name, weight in module.named_parameters():
                    if not bool(weight.detach().isfinite().all()):
                        self._diverged({"step": self.step, f"{part}.{name}": "not finite"}, f"{part}.{name}")

    def _state(self) -> dict[str, Any]:
        streams = [devices.rng_state()]
        if self.world > 1:
            gathered: list[Any] = [None] * self.world
            torch.distributed.all_gather_object(gathered, streams[0])
            streams = gathered
        scaler = self.accelerator.scaler
        return {
            "member": self.member,
            "config": to_json(self.config),
            "task": {name: part.state_dict() for name, part in self.task.state().items()},
            "rng": streams,
            "position": self._position,
            "seconds": self.seconds,
            "latest": self.latest,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _restore(self, batches: Iterable[Any] | None) -> bool:
        if self.folder is None or not self.folder.resumed or self._checkpoints is None:
            return False
        state = self._checkpoints.load("newest", map_location="cpu")
        if state is None:
            warnings.warn(f"{self.folder.path} holds no checkpoint yet: starting from the beginning.", stacklevel=2)
            return False
        load_task(self.task, state, self.member)
        self.step, self.seconds, self.latest = state["step"], state["seconds"], dict(state["latest"])
        self._position, self._saved_at = state["position"], state["step"]
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if isinstance(batches, Stateful) and self._position is not None:
            batches.load_state_dict(self._position)
        if self.rank < len(state["rng"]):
            devices.set_rng_state(state["rng"][self.rank])
        return True

    def _asked_to_stop(self) -> int | None:
        if self.world == 1:
            return self._signal
        if self.step % self.config.log_every and self.step != self.total:
            return None  # ranks agree only now and then: agreeing costs a message
        flag = torch.tensor(self._signal or 0, device=self.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag) or None

    def _agree(self, mine: bool) -> bool:
        """The first rank's clock decides for all."""
        if self.world == 1:
            return mine
        flag = torch.tensor(int(mine), device=self.device)
        torch.distributed.broadcast(flag, src=0)
        return bool(flag)

    def _stopped(self, number: int) -> Stopped:
        where = self.folder.path if self.folder is not None else None
        how = f"Go on with: --resume {where}" if where is not None else ""
        return Stopped(128 + number, f"Stopped by {signal.Signals(number).name} after step {self.step}. {how}".strip())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Finish the step on SIGINT or SIGTERM; a second SIGINT stops at once."""

        def note(number: int, frame: FrameType | None) -> None:
            if self._signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _summarise(self, status: str) -> dict[str, Any]:
        summary = {
            "member": self.member,
            "status": status,
            "steps": self.step,
            "metrics": self.latest,
            "seconds": round(self.seconds, 3),
            "peak_memory": {name: round(value, 1) for name, value in devices.peak_memory(self.device).items()},
            "processes": self.world,
            "precision": self.accelerator.mixed_precision if self._mixed else "no",
            "hardware": devices.describe(self.device),
            "versions": versions(),
        }
        if self.folder is not None:
            summary["commit"] = commit()
            self.folder.write_summary(summary)
        return summary


def load_task(task: Task, state: Mapping[str, Any], member: str) -> None:
    """Put a checkpoint's state into a started task.

    Raises:
        UserError: a checkpoint of another member, or one whose parts are not this task's.
    """
    if missing := {"member", "task", "step"} - set(state):
        raise UserError("checkpoint", f"no {', '.join(sorted(missing))}", "a checkpoint written by `train`")
    if state["member"] != member:
        raise UserError("checkpoint", state["member"], f"a checkpoint of {member}")
    parts = task.state()
    if set(parts) != set(state["task"]):
        raise UserError("checkpoint", ", ".join(state["task"]), f"the parts {', '.join(parts)}")
    for name, part in parts.items():
        try:
            part.load_state_dict(state["task"][name])
        except UserError:
            raise  # a part that refuses by itself says why
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"checkpoint: {name}", "its tensors", "those of this config", str(error)[:500]) from error


def cell_loop(task: Task, config: RunConfig, member: str, scratch: Path | None) -> Loop:
    """The loop of a run inside `reproduce`.

    Args:
        scratch: `Study.scratch`. None: no run folder. Else the run has one there, and a run that a killed attempt left
            there is gone on with; what cannot be gone on with is begun anew.
    """
    if scratch is None:
        return Loop(task, config, member, folder=False)
    folder = scratch / "run"
    if config.steps is not None and config.checkpoint_every is None:  # enough to lose little, and not at every look
        every = max(config.eval_every or 1, config.steps // CELL_CHECKPOINTS)
        config = dataclasses.replace(config, checkpoint_every=every)
    try:
        if Checkpoints(folder / "checkpoints").load("newest") is not None:
            return Loop(task, dataclasses.replace(config, resume=folder), member)
    except FolderInUse:
        raise
    except UserError:
        pass
    refuse_in_use(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return Loop(task, dataclasses.replace(config, out=folder), member)


def load_checkpoint(folder: Path, task: Task, member: str, which: Literal["newest", "best"] = "best") -> int:
    """Load a run's best (or newest) checkpoint into a started task; returns its step.

    Raises:
        UserError: there is none, or it is not of this member or task.
    """
    mode = task.score[1] if task.score else "max"
    state = Checkpoints(folder / "checkpoints", mode=mode).load(which)
    if state is None:
        raise UserError("run folder", folder, "one with a checkpoint", "Has the run reached its first checkpoint?")
    load_task(task, state, member)
    return int(state["step"])


def total_steps(config: RunConfig, batches: Iterable[Any] | None) -> int:
    """Steps to do, from `--steps` or from `--epochs` and the length of the data.

    Raises:
        UserError: neither is given, or epochs are asked of a task whose data has no length.
    """
    if config.steps is not None:
        return config.steps
    if config.epochs is None:
        raise UserError("--steps", None, "a number of steps, or of --epochs")
    length = getattr(batches, "__len__", None)
    if length is None:
        raise UserError("--epochs", config.epochs, "tasks with a training set; this one counts --steps")
    return max(1, math.ceil(config.epochs * length()))


def split_batch(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """Cut a nested batch along the first dimension; each piece comes with its share of the samples.

    Raises:
        UserError: fewer samples than parts.
    """
    if parts == 1:
        return [(batch, 1.0)]
    size = _batch_size(batch)
    if size is None or size < parts:
        raise UserError("--accumulate", parts, f"at most the batch size, {size}")
    edges = [size * index // parts for index in range(parts + 1)]
    return [(_slice(batch, a, b), (b - a) / size) for a, b in itertools.pairwise(edges)]


def _batch_size(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((size for value in values if (size := _batch_size(value)) is not None), None)


def _slice(batch: Any, begin: int, end: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[begin:end] if batch.dim() else batch
    if isinstance(batch, dict):
        return {key: _slice(value, begin, end) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_slice(value, begin, end) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_slice(value, begin, end) for value in batch)
    return batch


def _fetch(pending: Sequence[tuple[int, float, Metrics]], accelerator: Accelerator | None) -> list[dict[str, Any]]:
    """Rows of plain floats from metrics that may live on the device: one transfer for all of them."""
    tensors = [
        value.detach().reshape(()) for _, _, row in pending for value in row.values() if isinstance(value, Tensor)
    ]
    numbers: Iterator[float] = iter(())
    if tensors:
        exact = torch.float32 if tensors[0].device.type == "mps" else torch.float64
        stacked = torch.stack([tensor.to(tensors[0].device, exact) for tensor in tensors])
        if accelerator is not None:
            stacked = accelerator.reduce(stacked, reduction="mean")
        numbers = iter(stacked.tolist())  # pyright: ignore[reportAttributeAccessIssue]
    rows = []
    for step, seconds, row in pending:
        values = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in row.items()}
        rows.append({"step": step, "split": "train", **values, "seconds": round(seconds, 4)})
    return rows


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise UserError("training data", "no batch", "at least one")


class _Endless:
    """A data loader over and over, with the position of what it wraps, if that has one."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        if isinstance(batches, Stateful):
            self.state_dict = batches.state_dict

    def __iter__(self) -> Iterator[Any]:
        return _endless(self.batches)
