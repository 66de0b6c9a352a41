"""What the verbs other than `train` and `reproduce` do."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rpg import compress, security
from rpg.config import (
    UNSIZED,
    EvaluateConfig,
    ExportConfig,
    FitConfig,
    InspectConfig,
    KeyConfig,
    PlotConfig,
    PruneConfig,
    QuantizeConfig,
    SweepConfig,
    TrainConfig,
)
from rpg.data.names import fingerprint
from rpg.flops import macs
from rpg.networks import Shape, build_network
from rpg.plan import PERMUTED
from rpg.tasks import Folders, Images, NetworkTask
from rpg.train import account, corrupted, finetune, label, measure, model_key, need_ring, open_run
from rpg.wrap import RPGModel
from shared.checkpoint import save_atomically
from shared.claims import Cell, Outcomes, ReproduceConfig, Study, run_cells, write_sweep
from shared.cli import print_table
from shared.config import UserError, check_choice, from_json, to_json
from shared.data import data_root
from shared.figures import free_figure
from shared.run import free_path, write_json


def need_images(task: NetworkTask) -> Images:
    """The task, if it classifies images in memory.

    Raises:
        UserError: another kind of task.
    """
    if not isinstance(task, Images) or isinstance(task, Folders):
        raise UserError("run folder", task.config.data, "a run that classifies images")
    return task


# -- evaluate -----------------------------------------------------------------------------------------------------


def evaluate(config: EvaluateConfig) -> int:
    """`rpg evaluate`."""
    if config.out is not None:
        free_path(config.out, config.force)
    task, _, step = open_run(config.run, config.which, config.device, config.data_root)
    metrics: dict[str, float] = {**task.measure()}
    on_train = task.measure(train=True)
    metrics |= {f"train_{name}": value for name, value in on_train.items()}
    if "accuracy" in metrics:
        metrics["train_test_gap"] = metrics["train_accuracy"] - metrics["accuracy"]
    if config.corruptions:
        found = corrupted(need_images(task), config.quiet)
        metrics |= {f"accuracy, {kind} {severity}": value for (kind, severity), value in found.items()}
    rows: list[tuple[str, object]] = [("data", label(task)), ("checkpoint of step", step), *account(task)]
    print_table("run", ("", "value"), rows, config.quiet)
    print_table("measured", ("metric", "value"), list(metrics.items()), config.quiet)
    if config.out is not None:
        write_json(config.out, {"run": config.run.name, "step": step, "metrics": metrics})
    return 0


# -- inspect ------------------------------------------------------------------------------------------------------


def inspect(config: InspectConfig) -> int:
    """`rpg inspect`."""
    if config.image is not None:
        shape = Shape(*config.image)
        if min(config.image) < 1:
            raise UserError("--image", config.image, "three positive numbers: channels, side, classes")
    else:
        from rpg.data.names import image_shape

        shape = Shape(*image_shape(config.data))
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    plain = TrainConfig(**{name: value for name, value in vars(config).items() if name in fields})
    network = build_network(plain, shape)
    module = network.module
    cost = macs(module, (shape.channels, shape.size, shape.size))
    rows: list[tuple[str, object]] = [
        ("host", f"{config.host} for {shape.channels} x {shape.size} x {shape.size}, {shape.outputs} outputs"),
        ("method", config.method + (f" ({network.note})" if network.note else "")),
        ("parameters in all", f"{network.parameters:,}"),
        ("multiply-adds an image", f"{cost:,} (a ring saves none)"),
    ]
    if isinstance(module, RPGModel):
        rows += _ring_rows(module)
    print_table("accounts", ("", "value"), rows, config.quiet)
    if isinstance(module, RPGModel):
        report = module.report()
        histograms = [
            (ring["ring"], ring["kind"], f"{ring['ring_size']:,}", _histogram(ring["uses"])) for ring in report["rings"]
        ]
        print_table("rings", ("ring", "plan", "M", "uses of an entry: entries"), histograms, config.quiet)
        if config.layers:
            body = [(e["name"], "x".join(map(str, e["shape"])), e["ring"], e["scale"]) for e in report["layers"]]
            print_table("generated layers", ("parameter", "shape", "ring", "constant a"), body, config.quiet)
    return 0


def _ring_rows(model: RPGModel) -> list[tuple[str, object]]:
    report = model.report()
    itemsize = model.ring_parameters()[0].element_size()
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.host.buffers())
    bound = itemsize * report["total"] + buffers + 64 * 1024
    return [
        ("generated weights N", f"{report['generated']:,} in {len(report['layers'])} layers"),
        ("ring M", f"{report['ring']:,} in {len(report['rings'])} ring(s)"),
        ("own parameters", f"{report['own']:,}"),
        ("M / N", report["ring_over_generated"]),
        ("all parameters / the plain network's", report["total_over_vanilla"]),
        ("model file, at most", f"{bound:,} bytes (plain network: {itemsize * report['vanilla'] + buffers:,})"),
    ]


def _histogram(uses: Mapping[int, int]) -> str:
    items = sorted(uses.items())
    shown = [f"{count}: {entries:,}" for count, entries in items[:8]]
    return ", ".join(shown) + (f", ... up to {items[-1][0]}" if len(items) > 8 else "")


# -- sweep --------------------------------------------------------------------------------------------------------


RING_ONLY = ("plan", "offset", "chunk", "scope", "rings", "lr_scale", "key")


class SweepStudy(Study):
    """A grid of runs as cells: parallel, resumable, by the machinery of `reproduce`."""

    member: ClassVar[str] = "rpg"
    package: ClassVar[str] = "rpg"

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        flags = {"seed": cell.seed, "device": config.device, "quiet": True, "data_root": config.data_root}
        return measure(from_json(TrainConfig, {**cell.settings, **flags}))

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        return {}


def sweep_cells(config: SweepConfig) -> list[Cell]:
    """The grid of a sweep. Impossible combinations are refused before anything runs."""
    circumstances = {"seed", "out", "resume", "device", "data_root", "quiet", "force", "devices", "max_minutes"}
    base = {
        field.name: value
        for field in dataclasses.fields(TrainConfig)
        if field.name not in circumstances and (value := to_json(config)[field.name]) is not None
    }
    cells: dict[str, dict[str, Any]] = {}
    for host, variant in itertools.product(config.hosts or (config.host,), config.host_variants or ("",)):
        stem = f"{host} {variant}".strip()
        shared = {**base, "host": host, "host_options": list(config.variant_options(variant))}
        plain = {name: value for name, value in shared.items() if name not in RING_ONLY}
        for method in config.methods:
            if method in UNSIZED:
                cells[f"{stem} {method}"] = {**plain, "method": method}
            elif method != "rpg":
                for share, size in config.sizes():
                    cells[f"{stem} {method} {share}"] = {**plain, **size, "method": method}
            else:
                cells |= _ring_cells(config, stem, {**shared, "method": method})
    for name, fields in cells.items():
        try:
            from_json(TrainConfig, fields)
        except UserError as error:
            raise UserError(f"sweep, {name}", error.value, error.valid) from error
    seeds = range(config.seed, config.seed + config.seeds)
    data = fingerprint(config.data, data_root(config.data_root))
    return [Cell(name, fields, seed, data) for name, fields in cells.items() for seed in seeds]


def _ring_cells(config: SweepConfig, stem: str, shared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The part of a grid that varies the ring; what does not vary is not in the names."""
    chunks, scales = config.chunks or (config.chunk,), config.lr_scales or (config.lr_scale,)
    cells: dict[str, dict[str, Any]] = {}
    for (share, size), plan, scope, chunk, scale in itertools.product(
        config.sizes(), config.plans, config.scopes, chunks, scales
    ):
        if chunk > 1 and plan not in PERMUTED:
            raise UserError("--chunks", chunk, f"1 with plan {plan}, which permutes nothing")
        name = f"{stem} {plan} {scope} {share}"
        name += f" chunk={chunk}" if len(chunks) > 1 else ""
        name += f" lr-scale={scale}" if len(scales) > 1 else ""
        cells[name] = {**shared, **size, "plan": plan, "scope": scope, "chunk": chunk, "lr_scale": scale}
    return cells


def sweep(config: SweepConfig) -> int:
    """`rpg sweep`."""
    out = config.out or Path("runs/rpg/sweep")
    cells = sweep_cells(config)
    settings = ReproduceConfig(
        preset=config.preset, out=out, data_root=config.data_root, device=config.device, jobs=config.jobs,
        quiet=config.quiet, force=config.force, max_minutes=config.max_minutes,
    )  # fmt: skip
    finished, failed = run_cells(SweepStudy(), cells, settings, out)
    outcomes = Outcomes(finished)
    rows = []
    for name in outcomes.names():
        first, values = outcomes.raw(name)[0], outcomes.values(name, _metric(outcomes.raw(name)[0]))
        mean = sum(values) / len(values)
        sizes = f"{first['ring']:,}", f"{first['parameters']:,}", f"{first['mflops']:.3g}"
        rows.append((name, *sizes, mean, " ".join(f"{v:.4f}" for v in values)))
    columns = ("run", "ring M", "parameters", "MFLOPs", "mean", "per seed")
    print_table(f"sweep on {config.data}", columns, rows, config.quiet)
    write_sweep(out / "sweep.json", "rpg", finished, failed)
    if not config.quiet:
        print(out / "sweep.json")
    for cell, error in failed:
        print(f"failed: {cell.name}, seed {cell.seed}: {error}")
    return 1 if failed else 0


def _metric(values: Mapping[str, Any]) -> str:
    return next(name for name in ("accuracy", "pckh", "depth_error") if name in values)


# -- compression --------------------------------------------------------------------------------------------------


def prune(config: PruneConfig) -> int:
    """`rpg prune`."""
    out = free_path(config.out or config.run / "pruned.pt", config.force)
    task, _, _ = open_run(config.run, config.which, config.device, config.data_root)
    model, images = need_ring(task), need_images(task)
    before = images.measure()["accuracy"]
    rows: list[tuple[str, object]] = [("accuracy before", before), ("free parameters before", f"{model.dof():,}")]
    if config.target == "host":
        pruned = compress.prune_host(model, config.fraction)
        rows += [
            ("accuracy after", images.score_images(images.data.x_test, images.data.y_test, pruned)["accuracy"]),
            ("weights kept", f"{pruned.nonzeros():,} of {model.generated:,}"),
            ("free parameters after", f"{model.dof():,} (the ring is as it was; multiply-adds fall)"),
        ]
        pruned.save(out)
    else:
        masks = compress.prune_ring(model, config.fraction)
        rows.append(("accuracy after, at once", images.measure()["accuracy"]))
        epochs = 1.0 if config.finetune_epochs is None else config.finetune_epochs
        if epochs:
            rows.append((f"after {epochs:g} epochs", finetune(images, model, masks, epochs, config.quiet)))
        rows.append(("free parameters after", f"{compress.remaining_dof(model):,}"))
        compress.save_pruned(model, out)
    rows.append(("file", f"{out}, {out.stat().st_size:,} bytes"))
    print_table(f"pruned {100 * config.fraction:g} % of the {config.target}", ("", "value"), rows, config.quiet)
    return 0


def quantize(config: QuantizeConfig) -> int:
    """`rpg quantize`."""
    out = free_path(config.out or config.run / "int8.pt", config.force)
    task, _, _ = open_run(config.run, config.which, config.device, config.data_root)
    model, images = need_ring(task), need_images(task)
    before = images.measure()["accuracy"]
    reduced = compress.quantized(model, config.group)
    after = images.score_images(images.data.x_test, images.data.y_test, reduced)["accuracy"]
    size = compress.save_quantized(model, out, config.group)
    rows: list[tuple[str, object]] = [
        ("accuracy in 32 bits", before),
        ("accuracy in 8 bits", after),
        ("scales", "one a ring" if config.group is None else f"one for {config.group} numbers"),
        ("file", f"{out}, {size:,} bytes"),
    ]
    print_table("8-bit ring", ("", "value"), rows, config.quiet)
    return 0


def export(config: ExportConfig) -> int:
    """`rpg export`."""
    default = config.run / ("dense.pt" if config.form == "dense" else "compact.pt")
    out = free_path(config.out or default, config.force)
    if config.hide_key and config.form == "dense":
        raise UserError("--hide-key", True, "--form compact: a dense file holds no key")
    task, _, _ = open_run(config.run, config.which, "cpu", config.data_root)
    model = need_ring(task)
    if config.form == "dense":
        save_atomically(model.export_dense(), out)
        size = out.stat().st_size
    else:
        size = security.save(model, out, hide_key=config.hide_key)
    if not config.quiet:
        print(f"{out}: {size:,} bytes")
    return 0


def key(config: KeyConfig) -> int:
    """`rpg key`."""
    if config.model_file is not None:
        if config.key is None:
            raise UserError("--key", None, "the key to check against the model file")
        right = security.verify(config.model_file, config.key)
        print("the key is right" if right else "the key is wrong")
        return 0 if right else 1
    assert config.run is not None  # without both the command line makes a key by itself
    task, _, _ = open_run(config.run, device=config.device, data_root=config.data_root)
    model, images = need_ring(task), need_images(task)
    keys = [config.key] if config.key is not None else [security.make_key() for _ in range(config.tries)]
    rows = [("the run's own", images.measure()["accuracy"])]
    for other in keys:
        found = security.with_key(model, other)
        rows.append((str(other), images.score_images(images.data.x_test, images.data.y_test, found)["accuracy"]))
    if model_key(model) in keys:
        rows = rows[1:]
    print_table("accuracy under keys", ("key", "accuracy"), rows)
    return 0


# -- results ------------------------------------------------------------------------------------------------------


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Cells of a sweep's or a reproduction's JSON file.

    Raises:
        UserError: no such file, or another kind of file.
    """
    if path.is_dir():
        found = [path / name for name in ("sweep.json", "cpu.json", "gpu.json", "smoke.json") if (path / name).exists()]
        path = found[0] if found else path / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = list(content["cells"])
        for cell in cells:
            _ = cell["name"], cell["values"].get("ring")
        return cells
    except OSError:
        raise UserError("results", path, "a file that exists: sweep.json or results/<preset>.json") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError("results", path, "a file written by `sweep` or `reproduce`", str(error)) from None


def fit(config: FitConfig) -> int:
    """`rpg fit`."""
    from rpg.analysis import fit_loglinear, fit_loglog

    if config.out is not None:
        free_figure(config.out, config.force)
    points: list[tuple[float, float]] = []
    for cell in read_cells(config.results):
        values = cell["values"]
        if config.contains not in cell["name"] or not values.get("ring"):
            continue
        if values["ring"] > config.below * values["generated"]:
            continue
        numeric = [name for name, value in values.items() if isinstance(value, (int, float))]
        check_choice("--metric", config.metric, numeric)
        points.append((values["ring"], values[config.metric]))
    if len(points) < 3:
        hint = "Loosen --contains or --below."
        raise UserError("results", f"{len(points)} runs from a ring match", "three and more", hint)
    sizes, measured = zip(*sorted(points), strict=True)
    linear = fit_loglinear(sizes, measured)
    rows = [
        (f"{config.metric} = {linear.slope:.4f} log10 M {linear.intercept:+.4f}", linear.r2, linear.ci[0], linear.ci[1])
    ]
    if max(measured) < 1:
        power = fit_loglog(sizes, [1 - value for value in measured])
        law = f"1 - {config.metric} = {10**power.intercept:.4g} M^{power.slope:.4f}"
        rows.append((law, power.r2, power.ci[0], power.ci[1]))
    print_table(f"{len(points)} runs", ("law", "r2", "slope from", "to (95 %)"), rows)
    if config.out is not None:
        from rpg.plots import scaling

        print(scaling(sizes, measured, config.out, config.contains))
    return 0


def plot(config: PlotConfig) -> int:
    """`rpg plot`."""
    from rpg import plots

    source, out = config.source, config.out or config.source / "figures"
    if config.out is not None and not config.force and any(out.glob("*.png")):
        raise UserError("--out", out, "a folder without figures", "Replace them by --force.")
    if (source / "metrics.jsonl").exists():
        made = [plots.curves(source, out / "curves")]
    elif (source / "cells").is_dir():
        cells = []
        for path in sorted((source / "cells").glob("*.json")):
            try:
                record = json.loads(path.read_text("utf-8"))
                cells.append((Cell(record["name"], record["settings"], record["seed"]), record))
            except (OSError, ValueError, KeyError, TypeError) as error:
                hint = f"{error}. Delete it: the same command makes it again."
                raise UserError("cell", path, "a file written by `sweep` or `reproduce`", hint) from None
        made = plots.draw_study(Outcomes(cells), out)
        if not made:
            made = plots.sweep_figures(Outcomes(cells), out)
    else:
        raise UserError(
            "source", source, "a run folder (metrics.jsonl), or a folder of `reproduce` or `sweep` (cells/)"
        )
    for path in made:
        print(path)
    return 0
