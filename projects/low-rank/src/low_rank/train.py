"""One run from a config: the tables, the figures, its evaluation, the plain network it leaves."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from low_rank.classification import Classification, layer_weights
from low_rank.config import CollapseConfig, EvaluateConfig, RanksConfig, TrainConfig
from low_rank.models import classifier_name
from low_rank.overparam import collapse as collapse_model
from low_rank.rank import MEASURES, flattened, most
from shared.checkpoint import load_plain, save_atomically
from shared.cli import override, print_table
from shared.config import UserError
from shared.loop import Loop, cell_loop, load_checkpoint
from shared.run import RunFolder, free_path, saved_config, write_json

MEMBER = "low-rank"


def train(config: TrainConfig) -> int:
    """Train, print the tables, draw the figures. Returns the exit code."""
    from low_rank.figures import run_figures

    task = Classification(config)
    loop = Loop(task, config, MEMBER)
    assert isinstance(loop.folder, RunFolder)
    folder = loop.folder.path
    summary = loop.run()
    figures = run_figures(folder / "figures", task.history)
    if not config.quiet:
        print_table(f"{label(config)}: {summary['status']}", ("metric", "value"), list(summary["metrics"].items()))
        print_table(
            "effective rank of weights, in nats", ("layer", "shape", "at first", "now", "at most"), _ranks(task)
        )
        print(f"run folder: {folder}")
        for path in figures:
            print(f"figure: {path}")
    return 0


def label(config: TrainConfig) -> str:
    """What a run is, in a few words."""
    what = f"{config.model} on {config.data}"
    if config.expand == "none":
        return what + ", plain"
    wide = f", {config.expand_width:g} times as wide between" if config.expand_width != 1 else ""
    norm = ", normalised between" if config.factor_norm else ""
    return f"{what}, {config.expand} layers as products of {config.depth}{wide}{norm}"


def _ranks(task: Classification) -> list[tuple[object, ...]]:
    first, now = task.history.ranks[0], task.history.ranks[-1]
    with torch.no_grad():
        shapes = {name: tuple(weight.shape) for name, weight in task.weights().items()}
    return [(name, " x ".join(map(str, s)), first[name], now[name], most(s[0], s[1])) for name, s in shapes.items()]


def measure(config: TrainConfig, scratch: Path | None = None) -> dict[str, Any]:
    """Train without a folder and return what claims ask for; for the cells of `reproduce`, `kernels` and `compare`.

    Args:
        config: the run. scratch: folder in which the run is kept, and gone on with.
    """
    task = Classification(dataclasses.replace(config, quiet=True))
    summary = cell_loop(task, task.config, MEMBER, scratch).run()
    history = task.history
    last = classifier_name(task.model)
    return {
        **summary["metrics"],
        "history": history.rows,
        "ranks": history.ranks[-1],
        "ranks_at_first": history.ranks[0],
        "hidden_ranks": {name: rank for name, rank in history.ranks[-1].items() if name != last},
        "spectra": history.spectra[-1],
        "train_seconds": summary["seconds"],
    }


def open_run(
    folder: Path, which: str = "newest", device: str = "auto", data_root: Path | None = None
) -> tuple[Classification, int]:
    """A trained run's task with a checkpoint loaded: (task, step).

    Raises:
        UserError: no run there, no checkpoint, missing data.
    """
    saved = saved_config(folder, TrainConfig, MEMBER)
    config = override(saved, device=device, data_root=data_root or saved.data_root, resume=None, quiet=True, devices=1)
    task = Classification(config)
    loop = Loop(task, config, MEMBER, folder=False)
    task.start(loop)
    step = load_checkpoint(folder, task, MEMBER, "best" if which == "best" else "newest")
    task.model.eval()
    return task, step


def evaluate(config: EvaluateConfig) -> int:
    """`low-rank evaluate`."""
    if config.out is not None:
        free_path(config.out, config.force)
    task, step = open_run(config.run, config.which, config.device, config.data_root)
    metrics = {f"test {name}": value for name, value in task.measure(task.x_test, task.y_test).items()}
    metrics |= {f"train {name}": value for name, value in task.measure(task.x_train, task.y_train).items()}
    metrics["gram_rank"] = task.gram_rank()
    metrics["difference to the multiplied-out network, relative"] = task.collapsed_error()
    with torch.no_grad():
        ranks = rank_rows(task.weights())
    title = f"{label(task.config)}, after {step:,} steps"
    print_table(title, ("metric", "value"), list(metrics.items()), config.quiet)
    print_table("ranks of the weights, products multiplied out", ("layer", "shape", *MEASURES), ranks, config.quiet)
    if config.out is not None:
        columns = ["layer", "shape", *MEASURES]
        rows = [dict(zip(columns, row, strict=True)) for row in ranks]
        write_json(config.out, {"run": config.run.name, "step": step, "metrics": metrics, "ranks": rows})
    return 0


def rank_rows(weights: dict[str, Tensor]) -> list[tuple[object, ...]]:
    """A row a matrix: its name, its shape, and every measure of rank."""
    rows: list[tuple[object, ...]] = []
    for name, weight in weights.items():
        values = [float(measure(weight)) for measure in MEASURES.values()]
        shown = [int(value) if value.is_integer() and value > 1 else value for value in values]
        rows.append((name, " x ".join(map(str, weight.shape)), *shown))
    return rows


def ranks(config: RanksConfig) -> int:
    """`low-rank ranks`."""
    if config.source.is_dir():
        task, _ = open_run(config.source, config.which, "cpu", config.data_root)
        with torch.no_grad():
            weights = task.weights()
    else:
        weights = file_weights(config.source)
    print_table(str(config.source), ("layer", "shape", *MEASURES), rank_rows(weights))
    return 0


def file_weights(path: Path) -> dict[str, Tensor]:
    """The matrices and kernels of a file with a state dict, as matrices [out, in k k].

    Raises:
        UserError: not there, damaged, no state dict, or one without matrices.
    """
    found = load_plain(path, "file", "a state dict: names and tensors")
    if isinstance(found, dict) and isinstance(found.get("state"), dict):
        found = found["state"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError("file", path, "a state dict: names and tensors")
    weights = {
        name: flattened(value) for name, value in found.items() if value.dim() >= 2 and value.is_floating_point()
    }
    if not weights:
        raise UserError("file", path, "a state dict that holds matrices or kernels")
    return weights


def collapse(config: CollapseConfig) -> int:
    """`low-rank collapse`."""
    out = free_path(config.out or config.run / "plain.pt", config.force)
    if config.onnx is not None:
        free_path(config.onnx, config.force, "--onnx")
        _need_onnx()
    task, step = open_run(config.run, config.which, "cpu", config.data_root)
    plain = collapse_model(task.model).eval()
    saved = {
        "member": MEMBER,
        "form": "plain",
        "step": step,
        "config": _model_fields(task.config),
        "state": plain.state_dict(),
    }
    save_atomically(saved, out)
    if config.onnx is not None:
        write_onnx(plain, task.x_test[:1], config.onnx)
    if not config.quiet:
        before, after = (sum(p.numel() for p in model.parameters()) for model in (task.model, plain))
        rows: list[tuple[str, object]] = [
            ("parameters before", f"{before:,}"),
            ("parameters of the plain network", f"{after:,}"),
            ("largest difference of logits, relative", task.collapsed_error()),
        ]
        print_table(label(task.config), ("", "value"), rows)
        print(out)
        if config.onnx is not None:
            print(config.onnx)
    return 0


def _model_fields(config: TrainConfig) -> dict[str, Any]:
    return {
        name: getattr(config, name)
        for name in ("data", "model", "width", "hidden", "activation", "skip", "channels", "side")
    }


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401  # pyright: ignore
        import onnxscript  # noqa: F401  # pyright: ignore
    except ImportError as error:
        hint = "Install the extra: pip install 'low-rank[onnx]'."
        raise UserError("--onnx", "onnx or onnxscript not installed", "both packages", hint) from error


def write_onnx(model: nn.Module, image: Tensor, path: Path) -> None:
    """Write a plain network as ONNX, for batches of any size of normalised images like `image` [1, C, H, W]."""
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, *image.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own future
        program = torch.onnx.export(model, (example,), dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))


def hidden_layers(model: nn.Module) -> dict[str, Tensor]:
    """Weights of all layers but the classifier, as matrices."""
    last = classifier_name(model)
    return {name: weight for name, weight in layer_weights(model).items() if name != last}
