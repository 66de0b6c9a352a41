"""One training run from a config: the table, the figures, the model file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.checkpoint import load_plain, save_atomically
from shared.cli import override, print_table
from shared.config import RunFailed, UserError, from_json, to_json
from shared.image_names import fingerprint
from shared.loop import Loop, cell_loop, load_checkpoint
from shared.run import RunFolder, free_path, saved_config, write_json
from superposition.build import root_of
from superposition.config import TrainConfig
from superposition.experiments import data_of
from superposition.nets import MultiHead, Superposed, count_parameters
from superposition.task import StreamTask

MEMBER = "superposition"
MATRIX_FILE = "matrix.json"
MATRIX_TASKS = 20  # in `reproduce` and `sweep`: of more tasks all keys on all tasks would cost as much as the training
PLACES = {
    "out",
    "resume",
    "data_root",
    "device",
    "capture",
    "quiet",
    "force",
}  # of one machine, and not part of a model


def resolved(config: TrainConfig) -> TrainConfig:
    """The config with its number of steps."""
    return dataclasses.replace(config, steps=config.planned_steps)


class RunTask(StreamTask):
    """The task of `train`, which also keeps what its data were."""

    def state(self) -> dict[str, Any]:
        return {**super().state(), "data": _Data(self)}


class _Data:
    """Refuses to go on with a run on other data than it was begun with."""

    def __init__(self, task: StreamTask) -> None:
        self.task = task

    def state_dict(self) -> dict[str, str]:
        config = self.task.config
        sets = data_of({"stream": config.stream, "data": config.data})
        return {"print": " ".join(fingerprint(name, root_of(config)) for name in sets)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        if state != self.state_dict():
            raise UserError("--data-root", root_of(self.task.config), "the data that the run was begun with")


def train(config: TrainConfig) -> int:
    """Train, print the table, draw the figures. Returns the exit code."""
    from superposition.figures import run_figures

    task = RunTask(resolved(config))
    loop = Loop(task, task.config, MEMBER)
    assert isinstance(loop.folder, RunFolder)
    folder = loop.folder.path
    try:
        summary = loop.run()
    except RunFailed as failed:
        raise task.named_failure(failed) from None
    matrix = task.key_matrix()
    wrong = task.wrong_context(matrix)
    write_json(folder / MATRIX_FILE, {"tasks": task.shown(), "keys": task.keys(), "accuracy": matrix})
    figures = run_figures(folder, task, matrix)
    rows = account(task)
    print_table(f"{label(task.config)}: {summary['status']}", ("", "value"), rows, config.quiet)
    shown = {name: value for name, value in summary["metrics"].items() if not name.startswith("noise/")}
    if wrong is not None:
        shown["under another's key"] = wrong
    print_table("measured on the test sets", ("metric", "value"), list(shown.items()), config.quiet)
    if not config.quiet:
        print(f"run folder: {folder}")
        for path in figures:
            print(f"figure: {path}")
    return 0


def label(config: TrainConfig) -> str:
    """What a run is, in a few words."""
    method = f"{config.kind} superposition" if config.method == "psp" else config.method
    return f"{method} on {config.stream} ({config.data}), {config.tasks} x {config.period} steps"


def account(task: StreamTask) -> list[tuple[str, object]]:
    """Where the numbers are."""
    network, count = task.network, task.config.context_count
    learned = sum(p.numel() for f in network.families() for p in f.parameters())
    shared = count_parameters(network) - learned
    per_task = sum(f.numbers(count) for f in network.families())
    rows: list[tuple[str, object]] = [
        ("method", label(task.config)),
        ("parameters of the network", f"{shared:,}"),
        ("contexts", f"{count} of kind {task.config.active_kind}"),
    ]
    if isinstance(network, MultiHead):
        rows.append(("of them in heads", f"{count_parameters(network.heads):,}"))
    if learned:
        rows.append(("learned numbers of contexts", f"{learned:,}"))
    elif per_task:
        rows.append(("numbers of all contexts, were they stored", f"{per_task:,} (drawn from the seed: 0)"))
    return rows


def open_run(folder: Path, device: str = "auto", root: Path | None = None) -> tuple[StreamTask, int]:
    """A trained run's task with its newest checkpoint loaded: (task, step).

    Raises:
        UserError: no run there, no checkpoint, missing data.
    """
    saved = saved_config(folder, TrainConfig, MEMBER)
    config = override(saved, device=device, data_root=root or saved.data_root, resume=None, quiet=True)
    task = RunTask(config)
    loop = Loop(task, config, MEMBER, folder=False)
    task.start(loop)
    step = load_checkpoint(folder, task, MEMBER, "newest")
    task.network.eval()
    return task, step


def measure(config: TrainConfig, select: bool = False, scratch: Path | None = None) -> dict[str, Any]:
    """Train without a folder and return what claims ask for; for the cells of `reproduce` and `sweep`.

    Args:
        config: the run. select: also guess keys. scratch: folder in which the run is kept, and gone on with.
    """
    task = StreamTask(dataclasses.replace(resolved(config), quiet=True))
    summary = cell_loop(task, task.config, MEMBER, scratch).run()
    values: dict[str, Any] = {**summary["metrics"], "history": task.record.history, "ends": task.record.ends}
    values |= {"parameters": count_parameters(task.network), "train_seconds": summary["seconds"]}
    values["tasks"] = [task.on_task(j) for j in task.shown()]
    if config.method == "psp" and task.stream.tasks <= MATRIX_TASKS:
        matrix = task.key_matrix()
        values["matrix"] = matrix
        wrong = task.wrong_context(matrix)
        if wrong is not None:
            values["wrong_context"] = wrong
        if select:
            values["selection"] = task.selection()
    return values


def save_plain(path: Path, task: StreamTask, k: float, force: bool) -> None:
    """Write the plain model that context k retrieves.

    Raises:
        UserError: a file is there already; no such context.
    """
    free_path(path, force)
    keys = sorted({task.key(j) for j in task.shown() if task.trained_key(task.key(j)) is not None})
    found = task.trained_key(k)
    if found is None:
        raise UserError("--context", f"{k:g}", f"a context that was trained: {', '.join(f'{each:g}' for each in keys)}")
    plain = task.network.retrieve(int(k) if float(k).is_integer() else k)
    config = {name: value for name, value in to_json(task.config).items() if name not in PLACES}
    spec = {"config": config, "task": found, "context": k}
    save_atomically({"member": MEMBER, "form": "plain", "spec": spec, "state": plain.state_dict()}, path)


def config_of(spec: Mapping[str, Any], path: Path) -> TrainConfig:
    """The config of the run that a model file came from.

    Raises:
        UserError: a specification without one.
    """
    try:
        return from_json(TrainConfig, spec["config"], where=str(path))
    except (KeyError, TypeError):
        raise UserError("model file", path, "a specification written by `retrieve`") from None


def task_of(spec: Mapping[str, Any], path: Path) -> int:
    """The task that a model was trained for.

    Raises:
        UserError: a specification that names none.
    """
    task = spec.get("task")
    if not isinstance(task, int) or isinstance(task, bool) or task < 0:
        raise UserError(f"{path}: task", task, "an integer >= 0, as written by `retrieve`")
    return task


def load_superposed(path: Path) -> tuple[Superposed, list[TrainConfig], list[int]]:
    """Models that `superpose` has summed: (network, and of each model the config of its run and its task).

    Raises:
        UserError: not there, damaged, or another file.
    """
    from superposition.build import plain_network
    from superposition.nets import contextualize

    file = read_model(path, "superposed")
    try:
        kind, seed, parts = (file["spec"][name] for name in ("kind", "context_seed", "parts"))
        configs, tasks = [config_of(part, path) for part in parts], [task_of(part, path) for part in parts]
        net = contextualize(plain_network(configs[0]), kind, len(configs), seed=seed)
    except (KeyError, TypeError, IndexError):
        raise UserError("model file", path, "a specification written by `superpose`") from None
    try:
        net.load_state_dict(file["state"])
    except RuntimeError as error:
        raise UserError("model file", path, "the tensors that its specification says", str(error)[:300]) from None
    return net, configs, tasks


def read_model(path: Path, form: str) -> dict[str, Any]:
    """A model file.

    Raises:
        UserError: not there, damaged, or of another form.
    """
    found = load_plain(path, "model file", f"a model of {MEMBER}, written by `retrieve` or `superpose`")
    if not isinstance(found, dict) or found.get("member") != MEMBER or found.get("form") != form:
        raise UserError("model file", path, f"a {form} model of {MEMBER}")
    return found
