"""One training run from a config, and what is measured on trained networks."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rpg.compress import prune_ring, quantized
from rpg.config import TrainConfig
from rpg.data.corruptions import CORRUPTIONS, corrupt
from rpg.flops import macs
from rpg.networks import Network
from rpg.security import KEYS, with_key
from rpg.tasks import Images, NetworkTask, make_task, pays
from rpg.wrap import RPGModel
from shared.checkpoint import save_atomically
from shared.cli import override, print_table
from shared.config import UserError
from shared.device import Timer
from shared.images import ImageData
from shared.loop import Loop, load_checkpoint
from shared.run import RunFolder, saved_config

MEMBER = "rpg"
MODEL_FILE = "model.pt"
WRONG_KEYS = 10  # tried on a trained network
SEVERITIES = (1, 3, 5)  # of corrupted test images
PRUNED_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the curve of accuracy against pruned ring numbers


def train(config: TrainConfig) -> int:
    """Train, then print the table, draw the figures, write the model file. Returns the exit code."""
    from rpg import plots

    task = make_task(config)
    loop = Loop(task, config, MEMBER)
    assert isinstance(loop.folder, RunFolder)
    folder = loop.folder.path
    summary = loop.run()
    if not loop.primary:
        return 0
    figures = plots.run_figures(folder, task)
    if task.model is not None:
        task.model.save(folder / MODEL_FILE)
    print_table(f"{config.host} on {label(task)}: {summary['status']}", ("", "value"), account(task), config.quiet)
    rows = [(name, value) for name, value in summary["metrics"].items()]
    rows += [("training " + name, value) for name, value in task.measure(train=True).items()]
    print_table("measured on the test set", ("metric", "value"), rows, config.quiet)
    if not config.quiet:
        print(f"run folder: {folder}")
        for path in figures:
            print(f"figure: {path}")
    return 0


def label(task: NetworkTask) -> str:
    """Name of the data set, as tables show it."""
    data = getattr(task, "data", None) or getattr(task, "folder", None)
    return str(getattr(data, "label", task.config.data))


def scope_label(config: TrainConfig) -> str:
    """The scope of the rings in words."""
    return "rings " + " ".join(config.rings) if config.rings else f"scope {config.scope}"


def account(task: NetworkTask) -> list[tuple[str, object]]:
    """Where the parameters are, and what a pass costs: both, because a ring cuts the first and not the second."""
    network, shape = task.network, task.shape()
    cost = macs(task.module, (shape.channels, shape.size, shape.size))
    rows: list[tuple[str, object]] = [("method", task.config.method + (f" ({network.note})" if network.note else ""))]
    if task.model is not None:
        report = task.model.report()
        rows += [
            ("plan", f"{task.config.plan}, {scope_label(task.config)}, chunk {task.config.chunk}"),
            ("generated weights N", f"{report['generated']:,}"),
            ("ring M", f"{report['ring']:,}"),
            ("M / N", report["ring_over_generated"]),
            ("own parameters", f"{report['own']:,}"),
            ("parameters in all", f"{report['total']:,}"),
            ("of the plain network's", f"{report['vanilla']:,} ({100 * report['total_over_vanilla']:.1f} %)"),
        ]
    else:
        rows += [("generated weights N", f"{network.generated:,}"), ("parameters in all", f"{network.parameters:,}")]
    return [*rows, ("multiply-adds an image", f"{cost:,} (a ring saves none)")]


def open_run(
    folder: Path, which: str = "newest", device: str = "auto", data_root: Path | None = None
) -> tuple[NetworkTask, Loop, int]:
    """A trained run's task with its checkpoint loaded: (task, loop, step).

    Raises:
        UserError: no run there, no checkpoint, missing data.
    """
    saved = saved_config(folder, TrainConfig, MEMBER)
    if which == "best" and saved.method == "pruned":
        hint = "The best checkpoint of a run that prunes may be from before it did."
        raise UserError("--which", which, "newest", hint)
    config = override(saved, device=device, data_root=data_root or saved.data_root, resume=None, quiet=True, devices=1)
    task = make_task(config)
    loop = Loop(task, config, MEMBER, folder=False)
    task.start(loop)
    step = load_checkpoint(folder, task, MEMBER, "newest" if which == "newest" else "best")
    task.module.eval()
    return task, loop, step


def need_ring(task: NetworkTask) -> RPGModel:
    """The task's ring model.

    Raises:
        UserError: the run trained a baseline.
    """
    if task.model is None:
        raise UserError("run folder", task.config.method, "a run of method rpg")
    return task.model


def measure(
    config: TrainConfig,
    afterwards: bool = False,
    training_set: bool = True,
    corruptions: bool = False,
    data: ImageData | None = None,
) -> dict[str, Any]:
    """Train one network without a run folder and return what the claims need, as JSON values.

    Args:
        config: the run.
        afterwards: also measure other keys, pruning with one more epoch, and an 8-bit ring.
        training_set: also measure on the training set.
        corruptions: also measure on corrupted test images.
        data: the data set, where it is loaded already.
    """
    task = make_task(config, data)
    loop = Loop(task, config, MEMBER, folder=False)
    summary = loop.run()
    network, shape = task.network, task.shape()
    on_train = task.measure(train=True) if training_set else {}
    values: dict[str, Any] = {
        **{name: value for name, value in summary["metrics"].items() if isinstance(value, float)},
        **{f"train_{name}": value for name, value in on_train.items()},
        "generated": network.generated,
        "ring": network.ring,
        "parameters": network.parameters,
        "mflops": 2 * macs(task.module, (shape.channels, shape.size, shape.size)) / 1e6,
        "lr": task.lr,
        "ring_lr": task.ring_lr,
        "data": label(task),
        "note": network.note,
        "inference_ms": inference_milliseconds(task),
        "train_seconds": summary["seconds"],
        "curve": windows(task.losses),
    }
    if task.clock.steps:
        values["step_ms"] = 1000 * task.clock.seconds / task.clock.steps
        if task.model is not None:
            values["generation_share"] = values["generation_ms"] / values["step_ms"]
    if corruptions and isinstance(task, Images):
        by_kind = corrupted(task)
        values["corrupted_accuracy"] = statistics.fmean(by_kind.values())
        for kind in CORRUPTIONS:
            values[f"{kind}_accuracy"] = statistics.fmean(v for (name, _), v in by_kind.items() if name == kind)
    if afterwards and isinstance(task, Images):
        values |= compressed_metrics(task)
    return values


def corrupted(task: Images, quiet: bool = True) -> dict[tuple[str, int], float]:
    """Accuracy on corrupted test images: (kind, severity) -> accuracy."""
    images, labels = task.data.x_test, task.data.y_test
    ways = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]
    return {
        (kind, severity): task.score_images(corrupt(images, kind, severity, seed=0), labels)["accuracy"]
        for kind, severity in tqdm(ways, desc="corruptions", disable=True if quiet else None, leave=False)
    }


@torch.no_grad()
def inference_milliseconds(task: NetworkTask, images: int = 100, repeats: int = 5) -> float:
    """Time of a forward pass of `images` images: the best of a few, after one that is not counted."""
    shape, module = task.shape(), task.module
    module.eval()
    x = torch.zeros(images, shape.channels, shape.size, shape.size, device=task.device)
    if pays(task.device, shape.size):
        x = x.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(repeats + 1):
        timer = Timer(task.device)
        with timer, task.loop.autocast():
            module(x)
        times.append(timer.milliseconds())
    return min(times[1:])


def windows(losses: list[torch.Tensor], count: int = 50) -> list[list[float]]:
    """Training loss as at most `count` means of equal stretches: [[step, loss], ...]."""
    if not losses:
        return []
    values = torch.stack(losses).double().cpu()
    ends = torch.linspace(0, len(values), min(count, len(values)) + 1).round().long().tolist()
    return [[end, float(values[begin:end].mean())] for begin, end in pairwise(ends)]


def compressed_metrics(task: Images, fraction: float = 0.3) -> dict[str, float]:
    """Accuracy under other keys, after pruning the ring (at once, and with one more epoch), and with 8-bit numbers."""
    model = need_ring(task)
    images, labels = task.data.x_test, task.data.y_test

    def accuracy(candidate: RPGModel) -> float:
        candidate.eval()
        return task.score_images(images, labels, candidate)["accuracy"]

    # A network under a wrong key tends to one class whatever it sees; the mean of several is what says "chance".
    wrong = [accuracy(with_key(model, (model_key(model) + 1_000_003 * (i + 1)) % KEYS)) for i in range(WRONG_KEYS)]
    found = {
        "first_wrong_key_accuracy": wrong[0],
        "wrong_key_accuracy": sum(wrong) / len(wrong),
        "luckiest_key_accuracy": max(wrong),
        "int8_accuracy": accuracy(quantized(model)),
        "int8_grouped_accuracy": accuracy(quantized(model, 256)),
    }
    for share in PRUNED_SHARES:
        lighter = copy.deepcopy(model)
        prune_ring(lighter, share)
        found[f"pruned_{share:g}_accuracy"] = accuracy(lighter)
    pruned = copy.deepcopy(model)
    masks = prune_ring(pruned, fraction)
    found["pruned_at_once_accuracy"] = accuracy(pruned)
    found |= {"pruned_accuracy": finetune(task, pruned, masks, epochs=1.0)}
    return found


def model_key(model: RPGModel) -> int:
    """The seed of the model's plans."""
    return int(next(iter(model.rings.values())).plan.seed)  # pyright: ignore


def finetune(
    task: Images, model: RPGModel, masks: Mapping[str, torch.Tensor], epochs: float, quiet: bool = True
) -> float:
    """Train a pruned copy on, at a hundredth of the peak rate falling to zero, with pruned entries held at zero;
    returns its test accuracy."""
    config = override(
        task.config, epochs=epochs, steps=None, recipe="adam" if task.config.recipe == "adam" else "paper",
        lr=task.lr * 0.01, ring_lr=(task.ring_lr or task.lr) * 0.01, out=None, resume=None, force=False, quiet=quiet,
    )  # fmt: skip
    again = _Continued(config, task, model, masks)
    summary = Loop(again, config, MEMBER, folder=False).run()
    return float(summary["metrics"]["accuracy"])


class _Continued(Images):
    """Goes on with a model that is there already, keeping masked ring entries at zero."""

    def __init__(self, config: TrainConfig, task: Images, model: RPGModel, masks: Mapping[str, torch.Tensor]) -> None:
        super().__init__(config, task.data)
        self.given, self.masks = model, masks

    def make_network(self) -> Network:
        model = self.given
        return Network(model, model.generated, model.ring_total, model.dof())

    def step(self, batch: Any) -> dict[str, Any]:
        metrics = super().step(batch)
        with torch.no_grad():
            for key, mask in self.masks.items():
                self.given.rings[key].weight.mul_(mask)  # pyright: ignore
        return metrics


def export(folder: Path, out: Path, device: str = "cpu", data_root: Path | None = None) -> int:
    """Write the dense state dict of a run's host: plain tensors, for use without this package. Returns its bytes."""
    task, _, _ = open_run(folder, device=device, data_root=data_root)
    dense = need_ring(task).export_dense()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_atomically({name: value.cpu() for name, value in dense.items()}, out)
    return out.stat().st_size
