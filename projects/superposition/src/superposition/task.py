"""What a step is: a batch of the stream, the context of the day, one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.capture import Captured, CudaGraphs, Graphs
from shared.config import RunFailed, UserError
from shared.loop import Loop, Task
from superposition.baselines.agem import AGEM
from superposition.baselines.ewc import EWC
from superposition.baselines.regulariser import Regulariser
from superposition.baselines.si import SI
from superposition.build import make_network, make_stream, model_spec, schedule_of
from superposition.complex import Complex
from superposition.config import TrainConfig
from superposition.contexts import Index, derived_seed
from superposition.metrics import accuracy, backward_transfer, forgetting, off_diagonal, select_context, spread
from superposition.nets import Superposed
from superposition.streams import Rotating

SHOWN_TASKS = 50  # at the end so many are measured, spread evenly where there are more
COMPARED = 16  # contexts whose cosines are looked at
PROBES = 200  # test images that the noise of a layer is measured on


class Spec:
    """The part of a checkpoint that says which contexts its weights are bound to."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.spec)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, mine in self.spec.items():
            if state.get(name) != mine:
                raise UserError(f"checkpoint: {name}", state.get(name), f"{mine}, as this run's config says")


class Record:
    """What a run has measured so far.

    Attributes:
        history: [step, accuracy on the first task, on the current one]. ends: accuracy on task j right after it.
        after: rows of accuracies on all tasks so far, after each (`--matrix`). used, seen: contexts (real
            numbers of `--schedule continuous` too) and tasks that were trained.
        anchor: weights of the contextual layers after the first task.
    """

    def __init__(self) -> None:
        self.history: list[list[float]] = []
        self.ends: list[float] = []
        self.after: list[list[float]] = []
        self.used: set[float] = set()
        self.seen: set[int] = set()
        self.anchor: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "used": sorted(self.used), "seen": sorted(self.seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in vars(self):
            setattr(self, name, state[name])
        self.used, self.seen = set(self.used), set(self.seen)


class StreamTask(Task):
    """Learns a stream."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def start(self, loop: Loop) -> None:
        config = self.config
        self.loop, self.device = loop, loop.device
        self.stream = make_stream(config, loop.device)
        self.schedule = schedule_of(config, self.stream)
        self.network = make_network(config).to(loop.device)
        self.optimizer = self._make_optimizer()
        self.trained, self.prepared = loop.prepare(self.network, self.optimizer)
        self.regulariser = self._make_regulariser()
        self.record = Record()
        self._tests: dict[int, tuple[Tensor, Tensor]] = {}
        self._captured = self._make_captured()
        self._settled = False

    def _make_captured(self) -> Captured | None:
        """What replays steps; None where each is carried out. Baselines keep numbers in places that change."""
        loop, config = self.loop, self.config
        whole = type(self.regulariser) is Regulariser and not config.compile
        if not (config.capture and whole and loop.world == 1 and loop.accelerator.scaler is None):
            return None
        graphs = self.graphs()
        return None if graphs is None else Captured(self._update, graphs, abandoned=self.optimizer.zero_grad)

    def graphs(self) -> Graphs | None:
        """How steps are recorded on the run's device; None where they cannot be."""
        return CudaGraphs(self.device) if self.device.type == "cuda" else None

    def _update(self, x: Tensor, y: Tensor) -> dict[str, Tensor | float]:
        return self.loop.update((x, y), self._loss, self.prepared, observe=self.regulariser.gradient)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        # foreach: the same numbers, without a round of Python for each weight; by default it is for GPUs alone.
        c, parameters = self.config, self.network.parameters()
        if c.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=c.lr, weight_decay=c.weight_decay, foreach=True)
        if c.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, foreach=True)
        return torch.optim.RMSprop(
            parameters, lr=c.lr, alpha=0.99, eps=1e-8, momentum=c.momentum, weight_decay=c.weight_decay, foreach=True
        )

    def _make_regulariser(self) -> Regulariser:
        c = self.config
        if c.method == "ewc":
            return EWC(self.network, c.strength, c.fisher, c.consolidation, c.gamma, c.seed)
        if c.method == "si":
            return SI(self.network, c.strength, c.xi)
        if c.method == "agem":
            return AGEM(self.network, 256, c.seed)
        return Regulariser(self.network)

    def state(self) -> Mapping[str, Any]:
        return {
            "spec": Spec(model_spec(self.config)), "network": self.network, "optimizer": self.optimizer,
            "baseline": self.regulariser, "record": self.record,
        }  # fmt: skip

    # a step ----------------------------------------------------------------------------------------------------------

    def context(self, t: int) -> Index:
        """Context of step t."""
        return self.schedule(t)

    def step(self, batch: Any) -> dict[str, Any]:
        t = self.loop.step
        x, y = self._batch(t)
        k = self.context(t)
        self.network.set_context(k)
        if not self.network.training:
            self.network.train()
        j = self.task_of(t)
        self.record.seen.add(j)
        assert not isinstance(k, Tensor)
        self.record.used.add(k)
        watched = (t + 1) % self.config.log_every == 0
        before = [p.detach().clone() for p in self.network.parameters()] if watched else []
        self._settle()
        if self._captured is None:
            metrics = self._update(x, y)
        else:
            metrics = self._captured(k, x, y)
        self.regulariser.after_step()
        if watched:
            moved = [(p.detach() - b).square().sum() for p, b in zip(self.network.parameters(), before, strict=True)]
            metrics["step_norm"] = torch.stack(moved).sum().sqrt()
        metrics["task"] = float(j)
        if (t + 1) % self.stream.period == 0 and self.config.method != "joint":
            self._end_task(j)
        return metrics

    def _settle(self) -> None:
        """Before the first step, when a checkpoint has been read: the optimiser counts its steps on the device, as a
        graph must, whatever device the run was begun on."""
        if self._settled:
            return
        self._settled = True
        cuda = self.device.type == "cuda"
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = cuda
        for state in self.optimizer.state.values():
            if "step" in state and isinstance(state["step"], Tensor):
                state["step"] = state["step"].to(self.device if cuda else "cpu")

    def task_of(self, t: int) -> int:
        """The task of step t: the stream's, or with `joint` a random one."""
        if self.config.method == "joint":
            return derived_seed(self.config.seed, "joint", t) % self.stream.tasks
        return self.stream.task(t)

    def _batch(self, t: int) -> tuple[Tensor, Tensor]:
        if self.config.method != "joint":
            return self.stream.batch(t)
        j = self.task_of(t)
        return self.stream.once(j, self.stream.chosen(t, self.stream.size(j), j))

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.trained(x), y)

    def _end_task(self, j: int) -> None:
        """A task is over: baselines take stock, its accuracy is kept."""
        count = {"ewc": self.config.fisher_samples, "agem": self.config.memory}.get(self.config.method, 1)
        again = self.config.method == "agem" and self.loop.step >= self.stream.tasks * self.stream.period
        if self.config.method in ("ewc", "si", "agem") and not again:  # samples are stored once
            self.regulariser.end_task(*self.stream.sample(j, count, 0))
        if j == 0 and not self.record.anchor and isinstance(self.network, Superposed):
            self.record.anchor = [layer.weight.detach().clone() for _, layer in self.network.layers()]  # pyright: ignore
        if isinstance(self.stream, Rotating):  # tasks come again, and there may be a thousand
            return
        if self.config.matrix:
            self.record.after.append([self.on_task(i) for i in range(j + 1)])
        if len(self.record.ends) == j:
            self.record.ends.append(self.record.after[-1][j] if self.config.matrix else self.on_task(j))

    # measuring -------------------------------------------------------------------------------------------------------

    def test(self, j: int) -> tuple[Tensor, Tensor]:
        """Test set of task j; the first one's is kept."""
        if j not in self._tests:
            found = self.stream.test(j)
            if j:
                return found
            self._tests[j] = found
        return self._tests[j]

    def key(self, j: int) -> float:
        """Context under which task j is measured: the one it was learned in, or in the middle of it the first time."""
        if self.config.method == "joint" or self.config.schedule == "constant":
            return 0
        if self.config.schedule == "task":
            return j
        return self.context(j * self.stream.period + self.stream.period // 2)  # pyright: ignore[reportReturnType]

    def was_trained(self, j: int) -> bool:
        """Whether task j was seen, and its key used: a task may have been begun and its key not yet reached."""
        return j in self.record.seen and self.key(j) in self.record.used

    def on_task(self, j: int, k: Index | None = None) -> float:
        """Accuracy on task j, under its own context unless another is given."""
        return accuracy(self.network, *self.test(j), self.key(j) if k is None else k)

    def first(self) -> float:
        """The paper's ordinate: accuracy on the first task, or on upright images where they turn."""
        if isinstance(self.stream, Rotating):
            return accuracy(self.network, *self.stream.upright(), 0)
        return self.on_task(0)

    def evaluate(self) -> dict[str, float]:
        t = max(0, self.loop.step - 1)
        j = self.stream.task(t)
        metrics = {"task1": self.first(), "current": self.on_task(j)}
        self.record.history.append([float(self.loop.step), metrics["task1"], metrics["current"]])
        metrics |= self.noise()
        if (total := self.loop.total) and self.loop.step >= total:
            metrics |= self.final()
            if self._captured is not None:
                self._captured.forget()  # a process goes on to other cells; task and loop know each other
        return metrics

    @torch.no_grad()
    def noise(self) -> dict[str, float]:
        """Of every contextual layer, what later tasks have added to the first task's pre-activations, relative to what
        these were: |(W - W_1) C_0 x| / |W_1 C_0 x|, W_1 the weights right after it, x its test images."""
        if not self.record.anchor or not isinstance(self.network, Superposed):
            return {}
        layers = list(self.network.layers())
        seen: dict[str, Tensor | Complex] = {}

        def note(name: str) -> Any:
            return lambda layer, arguments: seen.__setitem__(name, arguments[0])

        handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
        was, before = self.network.training, self.network.k
        self.network.eval()
        self.network.set_context(0)
        x = self.stream.upright()[0] if isinstance(self.stream, Rotating) else self.test(0)[0]
        self.network(x[:PROBES])
        for handle in handles:
            handle.remove()
        found: dict[str, float] = {}
        for (name, layer), anchor in zip(layers, self.record.anchor, strict=True):
            then = {"weight": anchor.to(layer.weight), "bias": None}  # pyright: ignore
            now = {"weight": layer.weight, "bias": None}
            fed = seen[name]  # of lower precision where the network ran so
            fed = Complex(fed.parts.to(anchor)) if isinstance(fed, Complex) else fed.to(anchor)
            outs = [torch.func.functional_call(layer, w, (fed,)) for w in (then, now)]  # pyright: ignore
            old, new = (out.parts if isinstance(out, Complex) else out for out in outs)
            found[f"noise/{name}"] = float((new - old).norm() / old.norm().clamp(min=1e-12))
        self.network.set_context(before)
        self.network.train(was)
        return found

    def shown(self) -> list[int]:
        """Tasks that are measured at the end."""
        return [int(j) for j in spread(range(self.stream.tasks), SHOWN_TASKS)]

    def keys(self) -> list[float]:
        """Keys of the measured tasks."""
        return [self.key(j) for j in self.shown()]

    def key_matrix(self) -> list[list[float | None]]:
        """Accuracy under key i on task j; None in the rows of keys that were never trained."""
        rows: list[list[float | None]] = []
        tests = [self.test(j) for j in self.shown()]
        for j, k in zip(self.shown(), self.keys(), strict=True):
            if not self.was_trained(j):
                rows.append([None] * len(tests))
            else:
                rows.append([accuracy(self.network, x, y, k) for x, y in tests])
        return rows

    def final(self) -> dict[str, float]:
        """All tasks at the end, each under its own key; tasks whose key was never trained are left out."""
        shown = self.shown()
        own = {j: self.on_task(j) for j in shown if self.was_trained(j)}
        metrics: dict[str, float] = {}
        if own:
            metrics |= {"average": sum(own.values()) / len(own), "worst": min(own.values())}
        metrics["untrained"] = float(len(shown) - len(own))
        ends = self.record.ends
        if len(ends) == self.stream.tasks > 1 and 0 in own:
            metrics["task1_loss"] = ends[0] - own[0]
            if self.record.after:
                metrics["forgetting"] = forgetting(self.record.after)
                metrics["backward_transfer"] = backward_transfer(self.record.after)
        if isinstance(self.network, Superposed) and self.config.active_kind != "none" and self.config.limit != 1:
            ks = spread(sorted(self.record.used), COMPARED)
            cosines = [family.collisions(ks) for family in self.network.families()]
            metrics["context_cosine"] = sum(cosines) / len(cosines)
        return metrics

    def wrong_context(self, matrix: Sequence[Sequence[float | None]]) -> float | None:
        """Mean accuracy on tasks under the keys of others; None where there are no keys, or one for several tasks.

        Args:
            matrix: that of `key_matrix`.
        """
        if self.config.active_kind == "none":
            return None
        keys = self.keys()
        return off_diagonal(matrix) if len(set(keys)) == len(keys) > 1 else None

    def selection(self, batch: int = 128) -> float:
        """Share of test batches whose task is found as the context of least entropy."""
        right, count = 0, 0
        trained = [j for j in self.shown() if self.was_trained(j)]
        ks = [self.key(j) for j in trained]
        for j in trained:
            for x in self.test(j)[0].split(batch):
                if len(x) == batch:
                    right += select_context(self.network, x, ks) == self.key(j)
                    count += 1
        if not count:
            raise UserError("--select-batch", batch, "at most the size of the test set")
        return right / count

    def trained_key(self, k: float) -> int | None:
        """The task that was learned under context k; None where there is none."""
        return next((j for j in self.shown() if self.was_trained(j) and self.key(j) == k), None)

    def named_failure(self, failed: RunFailed) -> RunFailed:
        """The same failure with the task named."""
        return RunFailed(f"{failed} It was in task {self.task_of(self.loop.step - 1)} of the stream.")
