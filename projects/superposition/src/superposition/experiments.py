"""The experiments behind the claims: which cells a preset runs, and what is computed from them. Imports no torch.

The preset cpu is the table of the specification on MNIST-5k; cpu-long adds the baselines' grids, the residual network
on natural images, complete MNIST, and what changes when the setting does. The paper preset is the published lists.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from shared.claims import LADDER, Cell, Ladder, Missing, Outcomes, ReproduceConfig, Study
from shared.config import UserError, check_choice, from_json
from shared.image_names import PLACES, fingerprint, present
from superposition.config import TrainConfig
from superposition.kinds import CYCLIC, KINDS

SEEDS = {"smoke": 1, "cpu": 3, "cpu-long": 3, "gpu": 2, "paper": 5}
PSP = ("binary", "complex", "power", "rotation", "binary learned")  # of the first table
EWC_STRENGTHS = (0.1, 1.0, 3.0, 10.0, 100.0)
SI_STRENGTHS = (0.1, 1.0, 10.0, 30.0, 100.0, 300.0)
WIDTHS = (128, 256, 512, 1024, 2048)
EXPERIMENTS = ("perm-units", "perm-kinds", "rot-mnist", "rot-fast", "rot-fmnist", "icifar", "icifar100", "supsup")
ROBUST: dict[str, dict[str, Any]] = {
    "raw pixels": {"inputs": "raw"},
    "depth 1": {"depth": 1},
    "depth 2": {"depth": 2},
    "depth 10": {"depth": 10},
    "Adam": {"optimizer": "adam"},
    "batch 16": {"batch_size": 16},
    "no bias (authors)": {"quirks": "authors"},
    "permutations 20 to 29": {"first": 20},
    "permutations 40 to 49": {"first": 40},
    "permutations 60 to 69": {"first": 60},
}
TURNING = ("rot", "fast ")  # beginnings of the names of runs on turning images
SEARCHED = 3  # tasks that a baseline's strength is chosen on


def psp(kind: str, **fields: Any) -> dict[str, Any]:
    """Fields of a superposition."""
    return {"method": "psp", "kind": kind, **fields}


STANDARD: dict[str, Any] = {"method": "standard"}


def permuting_cells() -> dict[str, dict[str, Any]]:
    """Permuting pixels: ten tasks of 200 steps under every kind, thirty tasks by width, permuting labels."""
    ten: dict[str, Any] = {"tasks": 10, "period": 200, "eval_every": 100}
    cells = {"permute10 standard": {**ten, **STANDARD}}
    for name in PSP:
        kind, _, learned = name.partition(" ")
        cells[f"permute10 {name}"] = {**ten, **psp(kind, **({"learn_context": True} if learned else {}))}
    thirty: dict[str, Any] = {"tasks": 30, "period": 200, "eval_every": 200}
    for width in (64, 256):
        cells[f"permute30 standard H={width}"] = {**thirty, **STANDARD, "width": width}
    for width in (64, 256, 512):
        cells[f"permute30 binary H={width}"] = {**thirty, **psp("binary"), "width": width}
    labels: dict[str, Any] = {"stream": "permuting-labels", "tasks": 5, "period": 200, "eval_every": 100}
    cells["labels standard"] = {**labels, **STANDARD}
    cells["labels binary"] = {**labels, **psp("binary")}
    return cells


def rotating_cells() -> dict[str, dict[str, Any]]:
    """Two turns of 500 steps under ten contexts."""
    base: dict[str, Any] = {"stream": "rotating", "tasks": 2, "period": 500, "contexts": 10, "eval_every": 10}
    return {"rotating standard": {**base, **STANDARD}, "rotating binary": {**base, **psp("binary")}}


def fast_cells() -> dict[str, dict[str, Any]]:
    """Turning images under another context every step: independent ones, locally mixed ones, powers of one."""
    base: dict[str, Any] = {"stream": "rotating", "tasks": 4, "period": 500, "eval_every": 20}
    cells = {
        "fast standard": {**base, **STANDARD, "numbers": "complex"},
        "fast complex, ten contexts": {**base, **psp("complex"), "contexts": 10},
    }
    kinds = {"independent": "complex", "locally mixed": "local-mix", "powers": "power"}
    return cells | {f"fast {name}": {**base, **psp(kind), "contexts": 500} for name, kind in kinds.items()}


def baseline_cells() -> dict[str, dict[str, Any]]:
    """The baselines' grids on the ten permutations."""
    ten: dict[str, Any] = {"tasks": 10, "period": 200, "eval_every": 100}
    cells = {f"permute10 ewc {s:g}": {**ten, "method": "ewc", "strength": s} for s in EWC_STRENGTHS}
    cells |= {f"permute10 si {s:g}": {**ten, "method": "si", "strength": s} for s in SI_STRENGTHS}
    for method, strengths in (("ewc", EWC_STRENGTHS), ("si", SI_STRENGTHS)):
        few = {**ten, "tasks": SEARCHED, "eval_every": 200, "method": method}
        cells |= {f"search {method} {s:g}": {**few, "strength": s} for s in strengths}
    for method in ("agem", "joint", "separate", "multi-head"):
        cells[f"permute10 {method}"] = {**ten, "method": method}
    for kind in ("mask", "permutation", "householder", "ternary", "normal", "signed-permutation", "local-mix"):
        cells[f"permute10 {kind}"] = {**ten, **psp(kind)}
    return cells


def robustness_cells() -> dict[str, dict[str, Any]]:
    """The first table's standard and binary networks when the setting changes."""
    ten: dict[str, Any] = {"tasks": 10, "period": 200, "eval_every": 200}
    cells = {}
    for name, fields in ROBUST.items():
        if "quirks" not in fields:
            cells[f"robust standard, {name}"] = {**ten, **STANDARD, **fields}
        cells[f"robust binary, {name}"] = {**ten, **psp("binary"), **fields}
    return cells


def residual_cells(steps: int = 400, net: str = "small-resnet") -> dict[str, dict[str, Any]]:
    """CIFAR-10 as two tasks of five classes, relabelled."""
    base: dict[str, Any] = {
        "stream": "split", "data": "cifar10", "classes_per_task": 5, "tasks": 2, "period": steps, "net": net,
        "lr": 1e-3, "eval_every": max(1, steps // 8),
    }  # fmt: skip
    return {"icifar-lite standard": {**base, **STANDARD}, "icifar-lite binary": {**base, **psp("binary")}}


def mnist_cells() -> dict[str, dict[str, Any]]:
    """The first table's two ends on complete MNIST and Fashion-MNIST."""
    cells = {}
    for data in ("mnist", "fashion"):
        ten = {"data": data, "tasks": 10, "period": 400, "eval_every": 400}
        cells[f"{data} standard"] = {**ten, **STANDARD}
        cells[f"{data} binary"] = {**ten, **psp("binary")}
    return cells


def gpu_cells() -> dict[str, dict[str, Any]]:
    """Width against kind, fifty tasks of a thousand steps; ResNet-18 on two halves of CIFAR-10."""
    base: dict[str, Any] = {"tasks": 50, "period": 1000, "eval_every": 1000}
    cells = {}
    for width in WIDTHS:
        cells[f"units standard H={width}"] = {**base, **STANDARD, "width": width}
        for kind in ("binary", "complex", "rotation"):
            cells[f"units {kind} H={width}"] = {**base, **psp(kind), "width": width}
    return cells


def experiment_cells(name: str, lite: bool = False) -> dict[str, dict[str, Any]]:
    """An experiment of the paper by name; `lite` is its shape on MNIST-5k with fewer steps.

    Raises:
        UserError: an unknown name, or one that has no small version.
    """
    check_choice("--experiment", name, EXPERIMENTS)
    if lite and name in ("icifar100", "rot-fmnist"):
        raise UserError("--lite", name, [n for n in EXPERIMENTS if n not in ("icifar100", "rot-fmnist")])
    steps = 200 if lite else 1000
    many = 10 if lite else 50
    data = "mnist5k" if lite else "mnist"
    permuting: dict[str, Any] = {"data": data, "tasks": many, "period": steps, "eval_every": 100}
    turning = {**permuting, "stream": "rotating", "tasks": 2 if lite else 50, "contexts": 10}
    if name == "perm-units":
        widths = (64, 256) if lite else WIDTHS
        cells = {}
        for width in widths:
            cells[f"{name} standard H={width}"] = {**permuting, **STANDARD, "width": width}
            cells[f"{name} binary H={width}"] = {**permuting, **psp("binary", learn_context=True), "width": width}
        return cells
    if name == "perm-kinds":
        cells = {}
        for width, tasks in ((256, many),) if lite else ((256, many), (2000, 10)):
            base = {**permuting, "tasks": tasks, "width": width}
            cells[f"{name} standard H={width}"] = {**base, **STANDARD}
            for kind in ("binary", "complex", "power", "rotation"):
                cells[f"{name} {kind} H={width}"] = {**base, **psp(kind)}
            for method, strengths in (("ewc", EWC_STRENGTHS), ("si", SI_STRENGTHS)):
                for strength in strengths:
                    cells[f"{name} {method} {strength:g} H={width}"] = {**base, "method": method, "strength": strength}
        return cells
    if name == "rot-mnist":
        return {
            f"{name} standard": {**turning, **STANDARD},
            f"{name} standard complex": {**turning, **STANDARD, "numbers": "complex"},
            f"{name} complex, real part": {**turning, **psp("complex", part="real")},
            f"{name} rotation learned": {**turning, **psp("rotation", learn_context=True)},
            f"{name} rotation": {**turning, **psp("rotation")},
            f"{name} binary": {**turning, **psp("binary")},
            f"{name} complex": {**turning, **psp("complex")},
        }
    if name == "rot-fast":
        fast = {**turning, "contexts": steps}
        kinds = {"independent": "complex", "local-mix": "local-mix", "power": "power"}
        return {f"{name} standard": {**turning, **STANDARD, "numbers": "complex"}} | {
            f"{name} {label}": {**fast, **psp(kind)} for label, kind in kinds.items()
        }
    if name == "rot-fmnist":
        cells = {}
        for depth in (3, 10):
            for label, fields in (("standard", STANDARD), ("binary", psp("binary"))):
                cells[f"{name} {label} depth={depth}"] = {**turning, **fields, "data": "fashion", "depth": depth}
        return cells
    if name == "icifar" and lite:
        return {f"{name} {label}": fields for label, fields in residual_cells().items()}
    if name in ("icifar", "icifar100"):
        base = {"net": "resnet18", "lr": 1e-3, "tasks": 5, "period": 20_000, "eval_every": 500}
        base |= {"stream": "icifar"} if name == "icifar" else {
            "stream": "split", "data": "cifar100", "classes_per_task": 5,
        }  # fmt: skip
        cells = {
            f"{name} standard": {**base, **STANDARD},
            f"{name} binary": {**base, **psp("binary", learn_context=True)},
        }
        if name == "icifar":
            cells[f"{name} multi-head"] = {**base, "method": "multi-head"}
            cells[f"{name} binary, bn per task"] = {**base, **psp("binary", learn_context=True), "bn": "per-task"}
        return cells
    base = {**permuting, "tasks": 10 if lite else 250}
    return {
        f"{name} rotation 1024-1024": {**base, **psp("rotation"), "widths": [1024, 1024]},
        f"{name} rotation 300-100": {**base, **psp("rotation"), "widths": [300, 100]},
    }


def smoke_cells() -> dict[str, dict[str, Any]]:
    """Digits, three tasks of sixty steps, every kind and method."""
    base = {"data": "digits", "tasks": 3, "period": 60, "width": 32, "lr": 1e-3, "eval_every": 60}
    # Hadamard rows want a power of two: 64 pixels, 32 units. Neighbours want more contexts than three.
    cells = {f"smoke {kind}": {**base, **psp(kind), **({"contexts": 6} if kind in CYCLIC else {})} for kind in KINDS}
    for method in ("standard", "multi-head", "separate", "joint", "ewc", "si", "agem"):
        cells[f"smoke {method}"] = {**base, "method": method}
    return cells


class SuperpositionStudy(Study):
    """Superposition of many models into one."""

    member: ClassVar[str] = "superposition"
    package: ClassVar[str] = "superposition"
    presets: ClassVar[tuple[Ladder, ...]] = LADDER
    libraries: ClassVar[tuple[str, ...]] = ("mlxtend", "scikit-learn")

    def planned(self, config: ReproduceConfig) -> dict[str, dict[str, Any]]:
        """Runs of a preset by name, those whose data are at hand."""
        from shared.data import data_root

        root = data_root(config.data_root)
        if config.preset == "smoke":
            return smoke_cells()
        if config.preset == "cpu":
            return permuting_cells() | rotating_cells()
        if config.preset == "cpu-long":
            cells = {name: permuting_cells()[name] for name in ("permute10 standard", "permute10 binary")}
            cells |= baseline_cells() | fast_cells() | robustness_cells() | residual_cells() | mnist_cells()
        elif config.preset == "gpu":
            cells = gpu_cells() | residual_cells(5000, "resnet18")
        else:
            cells = {name: fields for each in EXPERIMENTS for name, fields in experiment_cells(each).items()}
        return {name: fields for name, fields in cells.items() if not lacking(fields, root)}

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        from shared.data import data_root

        root = data_root(config.data_root)
        planned = self.planned(config)
        for fields in planned.values():
            from_json(TrainConfig, fields)
        if not planned:
            raise UserError("--data-root", root, "a folder with MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100")
        seeds = config.seeds or SEEDS[config.preset]
        cells = [
            Cell(name, fields, seed, " ".join(filter(None, (fingerprint(d, root) for d in data_of(fields)))))
            for name, fields in planned.items()
            for seed in range(seeds)
        ]
        if config.preset == "cpu":
            offline = {"offline": 5, "width": 512, "steps": 400, "draws": 200}
            cells += [Cell("offline", offline, seed) for seed in range(seeds)]
            cells.append(Cell("noise", {"models": [2, 4, 8, 16], "dims": [64, 256], "draws": 300}, 0))
        # The longest first, so that no core waits for the last of them.
        return sorted(cells, key=lambda cell: -work(cell.settings))

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        from shared.data import data_root

        root = data_root(config.data_root)
        wanted = {
            "cpu-long": {"icifar-lite": "cifar10", "mnist ": "mnist", "fashion ": "fashion"},
            "gpu": {"icifar-lite": "cifar10"},
            "paper": {
                "icifar100": "cifar100", "icifar ": "cifar100", "perm-": "mnist", "rot-mnist": "mnist",
                "rot-fast": "mnist", "rot-fmnist": "fashion", "supsup": "mnist",
            },
        }.get(config.preset, {})  # fmt: skip
        return {
            prefix: f"{' or '.join(PLACES[data])} is not under the data root"  # pyright: ignore[reportArgumentType]
            for prefix, data in wanted.items()
            if not present(data, root)
        }

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        if cell.name == "offline":
            from superposition.commands import offline_cell

            s = cell.settings
            return offline_cell(s["offline"], s["width"], s["steps"], s["draws"], cell.seed, config.device)
        if cell.name == "noise":
            from superposition.commands import noise_rows
            from superposition.config import NoiseConfig

            fields = {**cell.settings, "seed": cell.seed, "quiet": True}
            return {"rows": noise_rows(from_json(NoiseConfig, fields))}
        from superposition.train import measure

        flags = {"seed": cell.seed, "device": config.device, "quiet": True, "preset": config.scale}
        fields = {**cell.settings, **flags, "data_root": config.data_root}
        return measure(from_json(TrainConfig, fields), cell.name == "permute10 binary", self.scratch)

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        found: dict[str, Callable[[Outcomes], Sequence[float]]] = {
            "smoke-finite": smoke_share,
            "wrong-context": lambda o: o.values("permute10 binary", "wrong_context"),
            "selection": lambda o: o.values("permute10 binary", "selection"),
            "thirty-average": lambda o: o.values("permute30 binary H=256", "average"),
            "thirty-gain": partial(gain, one="permute30 binary H=256", other="permute30 standard H=256"),
            "width-steps": width_steps,
            "width-gain": partial(gain, one="permute30 binary H=512", other="permute30 binary H=64"),
            "width-standard": partial(gain, one="permute30 standard H=256", other="permute30 standard H=64"),
            "labels-average": lambda o: o.values("labels binary", "average"),
            "labels-standard": lambda o: o.values("labels standard", "average"),
            "turning-worst": partial(worst_upright, name="rotating binary"),
            "turning-worst-standard": partial(worst_upright, name="rotating standard"),
            "turning-bins": lambda o: o.values("rotating binary", "average"),
            "si-gain": lambda o: best_gain(o, "si", SI_STRENGTHS),
            "si-monotone": partial(monotone, method="si", strengths=SI_STRENGTHS),
            "ewc-monotone": partial(monotone, method="ewc", strengths=EWC_STRENGTHS),
            "over-baselines": over_baselines,
            "si-gain-searched": partial(searched_gain, methods=("si",)),
            "over-baselines-searched": lambda o: [-v for v in searched_gain(o, ("ewc", "si"), "permute10 binary")],
            "fast-gain": partial(gain, one="fast independent", other="fast standard"),
            "fast-worse": partial(gain, one="fast complex, ten contexts", other="fast independent"),
            "fast-mixing": partial(gain, one="fast locally mixed", other="fast independent"),
            "other-permutations": other_permutations,
            "offline-ratio": offline_ratio,
            "icifar-drop": icifar_drop,
            "mnist-gain": partial(gain, one="mnist binary", other="mnist standard"),
            "fashion-gain": partial(gain, one="fashion binary", other="fashion standard"),
            "noise-ratio": noise_ratio,
            **{
                f"gpu-width-steps-{kind}": partial(width_steps, stem=f"units {kind} H=", widths=WIDTHS)
                for kind in ("binary", "complex", "rotation")
            },
            "gpu-large-standard": partial(gain, one="units binary H=256", other="units standard H=2048"),
            "paper-order-rotation": partial(gain, one="perm-kinds rotation H=256", other="perm-kinds complex H=256"),
            "paper-order-complex": partial(gain, one="perm-kinds complex H=256", other="perm-kinds binary H=256"),
            "paper-ten": lambda o: o.values("perm-kinds binary H=2000", "average"),
            "paper-icifar": partial(gain, one="icifar binary", other="icifar multi-head", metric="task1"),
        }
        for name in PSP:
            short = name.replace(" ", "-")
            cell = f"permute10 {name}"
            found[f"{short}-average"] = partial(_values, name=cell, metric="average")
            found[f"{short}-loss"] = partial(_values, name=cell, metric="task1_loss")
            found[f"{short}-gain"] = partial(gain, one=cell, other="permute10 standard")
            found[f"{short}-first"] = partial(gain, one=cell, other="permute10 standard", metric="task1")
        return found

    def tables(self, outcomes: Outcomes) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {}
        columns = (
            "run",
            "average",
            "first task (turning: lowest upright)",
            "worst task",
            "lost on the first",
            "under another's key",
        )
        rows = []
        for name in outcomes.names():
            if name in ("offline", "noise"):
                continue
            runs = outcomes.raw(name)
            # At the end of a turn images are upright again, and the standard network has just seen such.
            turning = name.startswith(TURNING)
            first = "upright_worst" if turning else "task1"
            metrics = ("average", first, "worst", "task1_loss", "wrong_context")
            if turning:
                lowest = worst_upright(outcomes, name)
                runs = [{**run, "upright_worst": low} for run, low in zip(runs, lowest, strict=True)]
            rows.append((name, *(_mean([run.get(metric) for run in runs]) for metric in metrics)))
        if rows:
            tables["Test accuracies at the end, mean of seeds"] = (columns, sorted(rows))
        if "offline" in outcomes:
            runs = outcomes.raw("offline")
            body = []
            for layer in runs[0]["layers"]:
                ratios = [run["layers"][layer]["ratio"] for run in runs]
                loose = [run["layers"][layer]["measured"] / run["layers"][layer]["isotropic"] for run in runs]
                noise = [run["layers"][layer]["measured"] / run["layers"][layer]["signal"] for run in runs]
                spread = [run["layers"][layer]["effective"] for run in runs]
                inputs = runs[0]["layers"][layer]["inputs"]
                body.append((layer, inputs, _mean(spread), _mean(ratios), _mean(loose), _mean(noise)))
            columns = (
                "layer",
                "inputs",
                "effective inputs",
                "variance / exact",
                "variance / isotropic form",
                "noise power / signal power",
            )
            tables["Five networks superposed after training: noise of pre-activations, binary contexts"] = (
                columns,
                body,
            )
            kept = [("alone", _mean([v for run in runs for v in run["alone"]]))]
            kept += [(name, _mean([run["kept"][name] for run in runs])) for name in runs[0]["kept"]]
            tables["The same: accuracy after superposition"] = (("contexts, models", "mean accuracy"), kept)
        return tables

    def figures(self, outcomes: Outcomes, folder: Path) -> list[Path]:
        from superposition.study_figures import draw

        return draw(outcomes, folder)


def work(settings: Mapping[str, Any]) -> float:
    """About how long a cell takes, for their order alone."""
    width = settings.get("width", 256)
    kind = {"rotation": 5.0, "householder": 1.5}.get(settings.get("kind", ""), 1.0)
    net = {"small-resnet": 100.0, "resnet18": 1000.0}.get(settings.get("net", "fc"), 1.0)
    size = (width * 784 + 2 * width * width) / 3e5
    return settings.get("tasks", 10) * settings.get("period", 400) * kind * net * max(size, 0.3)


def data_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Data sets of a run."""
    own = {"icifar": ("cifar10", "cifar100"), "three-sets": ("mnist5k", "fashion", "digits")}
    return own.get(fields.get("stream", ""), (fields.get("data", "mnist5k"),))


def lacking(fields: Mapping[str, Any], root: Path) -> bool:
    """Whether a run's data are not at hand."""
    return not all(present(data, root) for data in data_of(fields))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _values(outcomes: Outcomes, name: str, metric: str) -> list[float]:
    return outcomes.values(name, metric)


def gain(outcomes: Outcomes, one: str, other: str, metric: str = "average") -> list[float]:
    """A metric of one run less another's, seed by seed."""
    return [a - b for a, b in zip(outcomes.values(one, metric), outcomes.values(other, metric), strict=True)]


def smoke_share(outcomes: Outcomes) -> list[float]:
    """Share of runs that learn their last task better than chance."""
    names = [name for name in outcomes.names() if name.startswith("smoke ")]
    if not names:
        raise Missing("smoke")
    good = [value > 0.2 for name in names for value in outcomes.values(name, "current")]
    return [sum(good) / len(good)]


def width_steps(
    outcomes: Outcomes, stem: str = "permute30 binary H=", widths: Sequence[int] = (64, 256, 512)
) -> list[float]:
    """The smallest gain from one width to the next, of the means over seeds."""
    means = [statistics.fmean(outcomes.values(f"{stem}{width}", "average")) for width in widths]
    return [min(b - a for a, b in itertools.pairwise(means))]


def worst_upright(outcomes: Outcomes, name: str) -> list[float]:
    """The lowest accuracy on upright images after the first fifty steps."""
    return [min(first for step, first, _ in run["history"] if step > 50) for run in outcomes.raw(name)]


def best_gain(outcomes: Outcomes, method: str, strengths: Sequence[float]) -> list[float]:
    """The best strength's average (by the mean over seeds) less the standard network's, seed by seed."""
    best = best_strength(outcomes, method, strengths)
    return gain(outcomes, f"permute10 {method} {best:g}", "permute10 standard")


def best_strength(outcomes: Outcomes, method: str, strengths: Sequence[float]) -> float:
    """The strength of the highest mean average."""
    means = {s: statistics.fmean(outcomes.values(f"permute10 {method} {s:g}", "average")) for s in strengths}
    return max(means, key=lambda s: means[s])


def searched_gain(outcomes: Outcomes, methods: Sequence[str], over: str = "permute10 standard") -> list[float]:
    """Average of a baseline less another run's, seed by seed, at the strength that three tasks choose; of several
    baselines the one that is best on the three."""
    grids = {"ewc": EWC_STRENGTHS, "si": SI_STRENGTHS}
    means = {
        f"{method} {s:g}": statistics.fmean(outcomes.values(f"search {method} {s:g}", "average"))
        for method in methods
        for s in grids[method]
    }
    best = max(means, key=lambda name: means[name])
    return gain(outcomes, f"permute10 {best}", over)


def other_permutations(outcomes: Outcomes) -> list[float]:
    """Binary superposition over the standard network on every further set of permutations, mean of seeds each."""
    sets = [name for name in ROBUST if "first" in ROBUST[name]]
    return [statistics.fmean(gain(outcomes, f"robust binary, {s}", f"robust standard, {s}")) for s in sets]


def monotone(outcomes: Outcomes, method: str, strengths: Sequence[float]) -> list[float]:
    """The smallest gain of the first task's mean accuracy from one strength to the next."""
    means = [statistics.fmean(outcomes.values(f"permute10 {method} {s:g}", "task1")) for s in strengths]
    return [min(b - a for a, b in itertools.pairwise(means))]


def over_baselines(outcomes: Outcomes) -> list[float]:
    """Binary superposition's average less that of the better of EWC and SI, each at its best strength."""
    names = [
        f"permute10 {method} {best_strength(outcomes, method, strengths):g}"
        for method, strengths in (("ewc", EWC_STRENGTHS), ("si", SI_STRENGTHS))
    ]
    best = max(names, key=lambda name: statistics.fmean(outcomes.values(name, "average")))
    return gain(outcomes, "permute10 binary", best)


def offline_ratio(outcomes: Outcomes) -> list[float]:
    """Of each seed the layer whose measured noise is furthest from the exact sum: |ratio - 1|."""
    return [max(abs(v["ratio"] - 1) for v in run["layers"].values()) for run in outcomes.raw("offline")]


def noise_ratio(outcomes: Outcomes) -> list[float]:
    """Largest relative difference between measured relative noise and sqrt((K - 1) / d) over kinds and sizes."""
    rows = outcomes.raw("noise")[0]["rows"]
    return [max(abs(row["measured"] / row["predicted"] - 1) for row in rows)]


def icifar_drop(outcomes: Outcomes) -> list[float]:
    """How much less of the first task's accuracy superposition loses than the standard network."""
    one = outcomes.values("icifar-lite standard", "task1_loss")
    return [a - b for a, b in zip(one, outcomes.values("icifar-lite binary", "task1_loss"), strict=True)]
