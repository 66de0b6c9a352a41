"""One run from a config: the tables, the figures, its evaluation, the plain network it leaves."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from low_rank.classification import Classification, layer_weights, make_model
from low_rank.config import CollapseConfig, EvaluateConfig, RanksConfig, TrainConfig
from low_rank.models import build_model, classifier_name
from low_rank.names import MODELS
from low_rank.overparam import collapse as collapse_model
from low_rank.rank import MEASURES, flattened, most
from shared.checkpoint import load_plain, save_atomically
from shared.cli import override, print_table
from shared.config import UserError
from shared.loop import Loop, cell_loop, load_checkpoint, load_task
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
    skips = f", skips around {', '.join(map(str, config.factor_skips))}" if config.factor_skips else ""
    kernels = f", kernels {' x '.join(map(str, config.kernels))}" if config.kernels else ""
    if sum(kernel > 1 for kernel in config.kernels) > 1:
        kernels += " (another capacity than the plain network's)"
    return f"{what}, {config.expand} layers as products of {config.depth}{wide}{norm}{skips}{kernels}"


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
        "hidden_ranks_at_first": {name: rank for name, rank in history.ranks[0].items() if name != last},
        "spectra": history.spectra[-1],
        "train_seconds": summary["seconds"],
    }


def open_run(
    folder: Path,
    which: str = "newest",
    device: str = "auto",
    data_root: Path | None = None,
    checkpoint: Path | None = None,
) -> tuple[Classification, int]:
    """A trained run's task with a checkpoint loaded, the newest, the best, or the one in a file: (task, step).

    Raises:
        UserError: no run there, no checkpoint, missing data.
    """
    saved = saved_config(folder, TrainConfig, MEMBER)
    config = override(saved, device=device, data_root=data_root or saved.data_root, resume=None, quiet=True, devices=1)
    task = Classification(config)
    loop = Loop(task, config, MEMBER, folder=False)
    task.start(loop)
    if checkpoint is None:
        step = load_checkpoint(folder, task, MEMBER, "best" if which == "best" else "newest")
    else:
        state = load_plain(checkpoint, "checkpoint", "one of a run")
        if not isinstance(state, dict) or not {"member", "task", "step"} <= set(state):
            raise UserError("checkpoint", checkpoint, "one that `train` has written")
        load_task(task, state, MEMBER)
        step = int(state["step"])
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
    title = f"{label(task.config)}, after {step:,} steps{chosen_by_test(config.which, task.config)}"
    first = task.history.ranks[0]
    metrics |= {f"rank of hidden weights, {when}": mean for when, mean in hidden_ranks(task).items()}
    print_table(title, ("metric", "value"), list(metrics.items()), config.quiet)
    shown = [(name, shape, first[str(name)], *values) for name, shape, *values in ranks]
    columns = ("layer", "shape", "effective rank at first", *MEASURES)
    print_table("ranks of the weights, products multiplied out", columns, shown, config.quiet)
    if config.out is not None:
        columns = ["layer", "shape", *MEASURES]
        rows = [dict(zip(columns, row, strict=True)) for row in ranks]
        write_json(config.out, {"run": config.run.name, "step": step, "metrics": metrics, "ranks": rows})
    return 0


def hidden_ranks(task: Classification) -> dict[str, float]:
    """Mean effective rank of the weights of all layers but the classifier, at first and now."""
    last, found = classifier_name(task.model), {}
    for when, ranks in (("at first", task.history.ranks[0]), ("now", task.history.ranks[-1])):
        hidden = [rank for name, rank in ranks.items() if name != last]
        found[when] = sum(hidden) / max(1, len(hidden))
    return found


def chosen_by_test(which: str, config: TrainConfig) -> str:
    """What a title must add where the best checkpoint is the one that did best on the test set."""
    if which != "best" or config.validation:
        return ""
    return " (the best on the test set, which is thereby no measure of new images)"


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
    print_table(*source_weights(config), config.quiet)
    return 0


def source_weights(config: RanksConfig) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
    """Title, columns and rows of the table of what `ranks` is pointed at.

    Raises:
        UserError: no run, checkpoint, state dict or architecture.
    """
    source, title = config.source, str(config.source)
    run = source.parent.parent if source.parent.name == "checkpoints" else source
    if source.is_dir() or (run / "config.json").is_file():
        task, step = open_run(run, config.which, "cpu", config.data_root, None if source.is_dir() else source)
        chosen = chosen_by_test(config.which, task.config) if source.is_dir() else ""
        title = f"{label(task.config)}, after {step:,} steps{chosen}"
        with torch.no_grad():
            weights = task.weights()
    elif not source.exists() and title in MODELS:
        torch.manual_seed(config.seed)
        shape = (3, 224, 1000) if title == "alexnet" else (3, 32, 10)
        weights = layer_weights(build_model(title, shape))
        title += f" as drawn, for {shape[1]} x {shape[1]} pixels"
    elif not source.exists():
        valid = f"a run folder, a file that exists, or an architecture: {', '.join(MODELS)}"
        raise UserError("source", source, valid)
    else:
        weights = file_weights(source)
    return title, ("layer", "shape", *MEASURES), rank_rows({name: weight.detach() for name, weight in weights.items()})


def file_weights(path: Path) -> dict[str, Tensor]:
    """The matrices and kernels of a file with a state dict, as matrices [out, in k k].

    Raises:
        UserError: not there, damaged, no state dict, or one without matrices.
    """
    found = load_plain(path, "file", "a state dict: names and tensors")
    if isinstance(found, dict) and "task" in found:
        hint = "A checkpoint of `train` is read where it was written, in the folder of its run."
        raise UserError("file", path, "a state dict: names and tensors", hint)
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
    differs = differences(plain, task.config)
    saved = {
        "member": MEMBER,
        "form": "plain",
        "step": step,
        "config": _model_fields(task.config),
        "kernels": list(task.config.kernels),
        "differs": differs,
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
        if differs:
            changes = [f"{name} {' x '.join(map(str, shape))}" for name, shape in differs.items()]
            print(f"not a state dict of the architecture {task.config.model} itself, which has others or none of: "
                  f"{', '.join(changes)}")  # fmt: skip
        print(out)
        if config.onnx is not None:
            print(config.onnx)
    return 0


def _model_fields(config: TrainConfig) -> dict[str, Any]:
    return {
        name: getattr(config, name)
        for name in ("data", "model", "width", "hidden", "activation", "skip", "channels", "side")
    }


def differences(plain: nn.Module, config: TrainConfig) -> dict[str, list[int]]:
    """Shapes of the tensors of a plain network that the architecture it was made from has not, or has in another shape:
    larger kernels, and biases that batch norms between factors made."""
    with torch.device("meta"):
        original = make_model(
            dataclasses.replace(config, expand="none", kernels=(), factor_norm=False, factor_skips=())
        )
    known = {name: value.shape for name, value in original.state_dict().items()}
    state = plain.state_dict().items()
    return {name: list(value.shape) for name, value in state if known.get(name) != value.shape}


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
