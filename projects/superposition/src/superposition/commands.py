"""What the verbs other than `train` and `reproduce` do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from tqdm import tqdm

from shared.checkpoint import save_atomically
from shared.claims import Cell, Outcomes, ReproduceConfig, Study, run_cells, write_sweep
from shared.cli import override, print_table
from shared.config import UserError, from_json, to_json
from shared.data import data_root
from shared.device import choose_device
from shared.image_names import fingerprint
from shared.metrics import read_metrics
from shared.run import free_path, saved_config, write_json
from superposition.build import make_network, make_stream, plain_network
from superposition.config import (
    EvaluateConfig,
    InspectConfig,
    NoiseConfig,
    PlotConfig,
    RetrieveConfig,
    SuperposeConfig,
    SweepConfig,
    TrainConfig,
)
from superposition.figures import curves, noise_scaling
from superposition.kinds import KINDS
from superposition.metrics import accuracy
from superposition.nets import MultiHead, count_parameters
from superposition.offline import noise_by_layer, superpose
from superposition.theory import NOISY, capacity, mix_correlations, monte_carlo, relative_noise
from superposition.train import (
    MEMBER,
    config_of,
    label,
    load_superposed,
    measure,
    open_run,
    read_model,
    save_plain,
    task_of,
)


def evaluate(config: EvaluateConfig) -> int:
    """`superposition evaluate`."""
    if config.out is not None:
        free_path(config.out, config.force)
    if config.run.is_file():
        return _evaluate_file(config)
    task, step = open_run(config.run, config.device, config.data_root)
    own = task.final()
    matrix, keys, shown = task.key_matrix(), task.keys(), task.shown()
    metrics: dict[str, Any] = {"step": step, "task1": task.first(), **own}
    wrong = task.wrong_context(matrix)
    if wrong is not None:
        metrics["wrong_context"] = wrong
    if config.select:
        if len(set(keys)) < 2:
            raise UserError("--select", config.run, "a run of several contexts")
        metrics["context_found"] = task.selection(config.select_batch)
    print_table(f"{label(task.config)}, step {step}", ("metric", "value"), list(metrics.items()), config.quiet)
    cells = [
        (f"key {_short(k)}", *("untrained" if v is None else f"{v:.3f}" for v in row))
        for k, row in zip(keys[:12], matrix, strict=False)
    ]
    cells = [row[:13] for row in cells]
    print_table("accuracy by key and task", ("", *(f"task {j}" for j in shown[:12])), cells, config.quiet)
    if config.out is not None:
        write_json(config.out, {"metrics": metrics, "tasks": shown, "keys": keys, "accuracy": matrix})
    return 0


def _evaluate_file(config: EvaluateConfig) -> int:
    """Every model of a file that `superpose` wrote, on the task it was trained for."""
    net, configs, tasks = load_superposed(config.run)
    device = choose_device(config.device)
    net.to(device).eval()
    found = []
    for s, (own, j) in enumerate(zip(configs, tasks, strict=True)):
        x, y = make_stream(override(own, data_root=config.data_root), device).test(j)
        found.append((s, j, accuracy(net, x, y, s)))
    print_table(f"{config.run.name}", ("context", "task", "accuracy"), found, config.quiet)
    if config.out is not None:
        write_json(config.out, {"accuracy": [value for _, _, value in found], "tasks": tasks})
    return 0


def _short(k: float) -> str:
    return f"{k:g}"


def retrieve(config: RetrieveConfig) -> int:
    """`superposition retrieve`."""
    task, _ = open_run(config.run, config.device, config.data_root)
    out = config.out or config.run / f"plain-{config.context:g}.pt"
    save_plain(out, task, config.context, config.force)
    if not config.quiet:
        print(out)
    return 0


def superpose_files(config: SuperposeConfig) -> int:
    """`superposition superpose`."""
    free_path(config.out, config.force)
    if len(config.models) < 2:
        raise UserError("models", len(config.models), "two or more")
    files = [read_model(path, "plain") for path in config.models]
    configs = [config_of(file["spec"], path) for path, file in zip(config.models, files, strict=True)]
    tasks = [task_of(file["spec"], path) for path, file in zip(config.models, files, strict=True)]
    for path, own in zip(config.models, configs, strict=True):
        if own.is_complex:
            raise UserError(f"{path}: numbers", "complex", "real: complex networks are not summed here")
        if own.bn == "per-task":
            raise UserError(f"{path}: bn", own.bn, "static")
    device = choose_device(config.device)
    models = []
    for path, file, own in zip(config.models, files, configs, strict=True):
        model = plain_network(own)
        try:
            model.load_state_dict(file["state"])
        except RuntimeError as error:
            raise UserError("model file", path, "the tensors that its specification says", str(error)[:300]) from None
        models.append(model.to(device).eval())
    net = superpose(models, config.kind, config.seed).eval()
    tests = [
        make_stream(override(own, data_root=config.data_root), device).test(j)
        for own, j in zip(configs, tasks, strict=True)
    ]
    rows = [
        (path.name, j, accuracy_plain(model, *test), accuracy(net, *test, s))
        for s, (path, j, model, test) in enumerate(zip(config.models, tasks, models, tests, strict=True))
    ]
    spec = {"kind": config.kind, "context_seed": config.seed, "parts": [file["spec"] for file in files]}
    save_atomically({"member": MEMBER, "form": "superposed", "spec": spec, "state": net.state_dict()}, config.out)
    print_table(
        f"{len(models)} models in one of {count_parameters(net):,} numbers, contexts of kind {config.kind}",
        ("model", "task", "alone", "in superposition"), rows, config.quiet,
    )  # fmt: skip
    if not config.quiet:
        print(config.out)
    return 0


@torch.no_grad()
def accuracy_plain(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy of a network without contexts."""
    return float((model(x).argmax(1) == y).float().mean())


def noise_rows(config: NoiseConfig) -> list[dict[str, Any]]:
    """Theory beside Monte Carlo for every kind, number of models and dimension."""
    rows = []
    grid = [(kind, K, d) for kind in NOISY for d in config.dims for K in config.models]
    for kind, K, d in tqdm(grid, disable=True if config.quiet else None, unit="setting"):
        generator = torch.Generator().manual_seed(config.seed)
        weights = [torch.randn(8, d, generator=generator, dtype=torch.float64) for _ in range(K)]
        x = torch.randn(d, generator=generator, dtype=torch.float64)
        # Matrices are d^2 numbers each and every output gains from one draw: fewer draws tell as much.
        draws = max(2, config.draws // 10) if kind == "rotation" else config.draws
        real, imaginary = monte_carlo(kind, weights, x, 0, draws, config.seed)
        power = (real.square() + imaginary.square()).mean(0)  # [m]
        scale = torch.stack([w.square().sum(1) for w in weights[1:]]).mean(0) * x.square().sum()  # |w|^2 |x|^2, [m]
        rows.append({
            "kind": kind, "models": K, "inputs": d, "draws": draws,
            "measured": float((power / scale).mean().sqrt()), "predicted": relative_noise(K, d),
        })  # fmt: skip
    return rows


def offline_cell(
    count: int, width: int, steps: int, draws: int, seed: int, device: str, data: str = "mnist5k"
) -> dict[str, Any]:
    """Train networks alone, one a permutation of the pixels, superpose them, and compare the noise with theory."""
    from shared.loop import Loop
    from superposition.task import StreamTask

    models, tests = [], []
    for j in range(count):
        config = TrainConfig(
            data=data, method="standard", tasks=1, period=steps, steps=steps, width=width, first=j, device=device,  # pyright: ignore
            seed=seed, quiet=True, eval_every=steps,
        )  # fmt: skip
        task = StreamTask(config)
        Loop(task, config, MEMBER, folder=False).run()
        models.append(task.network.retrieve(0).eval())
        tests.append(task.test(0))
    found: dict[str, Any] = {"alone": [accuracy_plain(m, *t) for m, t in zip(models, tests, strict=True)]}
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, *tests[0][0].shape[1:], generator=generator).to(tests[0][0])
    found["layers"] = noise_by_layer(models, "binary", 0, x, draws, seed)
    found["kept"] = {}
    for kind in ("binary", "rotation"):
        for K in range(2, count + 1):
            net = superpose(models[:K], kind, seed).eval()
            kept = [accuracy(net, *tests[s], s) for s in range(K)]
            found["kept"][f"{kind} {K}"] = sum(kept) / K
    return found


def noise(config: NoiseConfig) -> int:
    """`superposition noise`."""
    out = config.out or Path("runs") / MEMBER / "noise"
    free_path(out / "noise.json", config.force or config.out is None)
    rows = noise_rows(config)
    body = [(r["kind"], r["models"], r["inputs"], r["measured"], r["predicted"]) for r in rows]
    columns = ("kind", "models K", "inputs d", "measured noise", "sqrt((K - 1) / d)")
    print_table("retrieval noise relative to |w| |x|", columns, body, config.quiet)
    held = [(d, *(capacity(d, share) for share in (0.1, 0.2, 0.5))) for d in config.dims]
    columns = ("inputs d", "noise 0.1", "noise 0.2", "noise 0.5")
    print_table("models that can be stored before the relative noise exceeds", columns, held, config.quiet)
    mixed = list(enumerate(mix_correlations(5)))
    print_table(
        "cosine of locally mixed contexts: never 0, which caps what they hold", ("lag", "cosine"), mixed, config.quiet
    )
    found: dict[str, Any] = {"rows": rows}
    if config.offline is not None:
        found["offline"] = offline = offline_cell(
            config.offline, config.offline_width, config.offline_steps, config.draws, config.seed, config.device
        )
        layers = [
            (name, v["inputs"], v["effective"], v["measured"], v["exact"], v["isotropic"], v["ratio"])
            for name, v in offline["layers"].items()
        ]
        columns = ("layer", "inputs", "effective", "measured variance", "exact", "isotropic", "measured / exact")
        print_table("trained networks, binary contexts", columns, layers, config.quiet)
        kept = [("alone", sum(offline["alone"]) / len(offline["alone"])), *offline["kept"].items()]
        print_table("accuracy after superposition", ("contexts, models", "mean accuracy"), kept, config.quiet)
    write_json(out / "noise.json", found)
    drawn = noise_scaling(out / "noise", rows)
    if not config.quiet:
        print(out / "noise.json")
        print(drawn)
    return 0


def inspect(config: InspectConfig) -> int:
    """`superposition inspect`."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    network = make_network(TrainConfig(**fields))
    count = config.context_count
    learned = sum(p.numel() for f in network.families() for p in f.parameters())
    heads = count_parameters(network.heads) if isinstance(network, MultiHead) else 0
    shared = count_parameters(network) - learned - heads
    plain = count_parameters(plain_network(dataclasses.replace(TrainConfig(**fields), bn="static")))
    stored = sum(f.numbers(count) for f in network.families())
    rows: list[tuple[str, object]] = [
        ("method", config.method + (f", kind {config.kind}" if config.method == "psp" else "")),
        (
            "parameters that all tasks share" if config.method != "separate" else "parameters of all networks",
            f"{shared:,}",
        ),
        *((("parameters of the heads", f"{heads:,}"),) if heads else ()),
        ("contexts", count),
        ("numbers of all contexts, were they stored", f"{stored:,}"),
        ("bytes of them", f"{sum(f.nbytes(count) for f in network.families()):,}"),
        ("learned numbers of contexts", f"{learned:,}"),
        ("in all, contexts drawn from the seed", f"{shared + learned + heads:,}"),
        (f"{count} separate networks", f"{count * plain:,}"),
    ]
    print_table(f"{config.net} on {config.stream} ({config.data})", ("", "value"), rows, config.quiet)
    if config.table:
        print_table("numbers for every further model", ("kind", "one context", "of a plain network"),
                    storage_rows(config, plain), config.quiet)  # fmt: skip
    return 0


def storage_rows(config: TrainConfig, plain: int) -> list[tuple[str, str, str]]:
    """Numbers of one more context of every kind that fits this network."""
    rows = []
    for kind in KINDS:
        fields = {"kind": kind, "method": "psp", "numbers": "auto", "part": "full", "learn_context": False}
        fields |= {name: TrainConfig.__dataclass_fields__[name].default for name in OF_BASELINES}
        try:
            other = from_json(TrainConfig, {**_shared(config), **fields})
            families = make_network(other).families()
        except UserError:
            continue  # a Hadamard matrix of 784 inputs, phasors in a residual network
        more = sum(f.numbers(2) - f.numbers(1) for f in families)
        bits = families[0].bits()
        share = more * bits / 32 / plain
        rows.append((kind, f"{more:,}" + (f" of {bits} bit" if bits < 32 else ""), f"{100 * share:.3g} %"))
    return rows


OF_BASELINES = ("strength", "fisher", "fisher_samples", "consolidation", "gamma", "xi", "memory")
CIRCUMSTANCES = {"seed", "out", "resume", "device", "data_root", "quiet", "force", "devices", "max_minutes"}


def _shared(config: TrainConfig) -> dict[str, Any]:
    values = to_json(config)
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in CIRCUMSTANCES]
    return {name: values[name] for name in names if values[name] is not None}


# -- sweep ------------------------------------------------------------------------------------------------------------


class SweepStudy(Study):
    """A grid of runs as cells: parallel, resumable, by the machinery of `reproduce`."""

    member: ClassVar[str] = MEMBER
    package: ClassVar[str] = "superposition"

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        flags = {"seed": cell.seed, "device": config.device, "quiet": True, "data_root": config.data_root}
        return measure(from_json(TrainConfig, {**cell.settings, **flags}), scratch=self.scratch)

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        return {}


def sweep_cells(config: SweepConfig) -> list[Cell]:
    """The runs of a sweep; impossible ones are refused before any begins.

    Raises:
        UserError: an unknown experiment, a combination that cannot be.
    """
    from superposition.experiments import data_of, experiment_cells

    if config.experiment is not None:
        planned = experiment_cells(config.experiment, config.lite)
    else:
        base = _shared(config)
        planned = {}
        for width in config.hidden_widths or (config.width,):
            for tasks in config.task_counts or (config.tasks,):
                stem = f"H={width} K={tasks}"
                sized = {**base, "width": width, "tasks": tasks}
                for kind in config.kinds or ((config.kind,) if not config.methods else ()):
                    planned[f"{kind} {stem}"] = {**sized, "method": "psp", "kind": kind}
                for method in config.methods:
                    own = {**sized, "method": method}
                    for name in ("kind", "learn_context", "context_seed"):
                        own.pop(name, None)
                    strengths = config.strengths if method in ("ewc", "si") else ()
                    for strength in strengths or (None,):
                        name = f"{method} {stem}" + ("" if strength is None else f" strength={strength:g}")
                        planned[name] = own if strength is None else {**own, "strength": strength}
    for name, fields in planned.items():
        try:
            from_json(TrainConfig, fields)
        except UserError as error:
            raise UserError(f"sweep, {name}: {error.field}", error.value, error.valid) from error
    root = data_root(config.data_root)
    seeds = range(config.seed, config.seed + config.seeds)
    return [
        Cell(name, fields, seed, " ".join(filter(None, (fingerprint(each, root) for each in data_of(fields)))))
        for name, fields in planned.items()
        for seed in seeds
    ]


def sweep(config: SweepConfig) -> int:
    """`superposition sweep`."""
    out = config.out or Path("runs") / MEMBER / "sweep"
    settings = ReproduceConfig(
        preset=config.preset, out=out, data_root=config.data_root, device=config.device, jobs=config.jobs,
        quiet=config.quiet, force=config.force, max_minutes=config.max_minutes,
    )  # fmt: skip
    finished, failed = run_cells(SweepStudy(), sweep_cells(config), settings, out)
    outcomes = Outcomes(finished)
    rows = []
    for name in outcomes.names():
        runs = outcomes.raw(name)
        means = [sum(run.get(metric, math.nan) for run in runs) / len(runs) for metric in ("average", "task1", "worst")]
        rows.append((name, len(runs), *means))
    print_table("sweep", ("run", "seeds", "average", "first task", "worst task"), rows, config.quiet)
    write_sweep(out / "sweep.json", MEMBER, finished, failed)
    lines: dict[str, list[Any]] = {
        name: [[(s, a) for s, a, _ in run["history"]] for run in outcomes.raw(name)] for name in outcomes.names()
    }
    drawn = curves(out / "figures" / "task1", lines, "accuracy on the first task") if lines else None
    if not config.quiet:
        print(out / "sweep.json")
        if drawn is not None:
            print(drawn)
    for cell, error in failed:
        print(f"failed: {cell.name}, seed {cell.seed}: {error}")
    return 1 if failed else 0


def plot(config: PlotConfig) -> int:
    """`superposition plot`."""
    if not config.runs:
        raise UserError("runs", "none", "run folders written by `train`")
    out = config.out or Path("runs") / MEMBER / "plot"
    free_path(out.with_suffix(".png"), config.force or config.out is None)
    lines: dict[str, list[Any]] = {}
    labels = [label(saved_config(run, TrainConfig, MEMBER)) for run in config.runs]
    for run, name in zip(config.runs, labels, strict=True):
        if not (run / "metrics.jsonl").exists():
            raise UserError("run folder", run, "one that holds metrics.jsonl, written by `train`")
        rows = [(row["step"], row["task1"]) for row in read_metrics(run, "eval") if "task1" in row]
        if not rows:
            raise UserError("run folder", run, "a run that was evaluated at least once")
        lines[name if labels.count(name) == 1 else f"{name}, {run}"] = [rows]
    print(curves(out, lines, "accuracy on the first task"))
    return 0
