"""The experiments behind the claims: which cells a preset runs, and what is computed from them. Imports no torch.

A: a perceptron on digits. B: a small residual network on natural images. C: the comparisons that do not simply hold,
from the same cells. D: keys, pruning, quantisation on B's model.
In A every method gets the best learning rate of a grid, chosen by mean test accuracy over the seeds: one rule for rings
and baselines. B and D are judged at the specified rate; what tuning changes there, and a ring for every block, is
the preset cpu-long, ungated.
Complete MNIST and Fashion-MNIST repeat A at one rate for all rings and one for all plain networks, those that won on
MNIST-5k. The GPU preset is ResNet-18 on CIFAR-10; the paper preset is ImageNet as published.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from rpg.config import TrainConfig
from rpg.data.names import PLACES, DataName
from shared.claims import LADDER, Cell, Ladder, Missing, Outcomes, ReproduceConfig, Study
from shared.config import UserError, from_json

RINGS = (100, 300, 1000, 3000, 10000)  # M of experiment A
REUSED = (300, 1000, 3000, 10000)
# Hidden width of the narrow perceptrons and the ring they stand beside: 807, 3,210, 9,706 and 29,962 parameters.
NARROW = {1: 1000, 4: 3000, 12: 10000, 36: None}
MULTITASK = ("multitask vanilla", "multitask reuse", "multitask reuse-bn", "multitask even")  # from worst to best
RING_RATES = (6e-2, 1.2e-1, 2e-1, 4e-1, 8e-1)
OWN_RATES = (1e-3, 3e-3, 1e-2)
WON = (1.2e-1,), (3e-3,)  # on MNIST-5k: best of the rings' rates at M = 3,000, best of the plain networks' throughout
CONV_RATE = 0.1  # the specified peak of the one-cycle schedule
CONV_RATES = (CONV_RATE, 0.2)  # the tuned comparison, of the preset cpu-long
CONV_METHODS = ("vanilla", "even 1/8", "even 1/32", "reuse 1/8", "hash 1/8", "narrow 11")  # of the preset cpu
PAPER_RATIOS = (1, 2, 4, 8, 16, 64, 256, 1024)
SEEDS = {"smoke": 1, "cpu": 3, "cpu-long": 3, "gpu": 2, "paper": 1}


def perceptron_cells(
    data: str,
    steps: int,
    rings: Sequence[int],
    rates: Sequence[float],
    own_rates: Sequence[float] = OWN_RATES,
    widths: Sequence[int] = tuple(NARROW),
    reused: Sequence[int] = REUSED,
) -> dict[str, dict[str, Any]]:
    """Experiment A on one data set: name -> fields of `TrainConfig`."""
    base = {"data": data, "host": "mlp", "recipe": "adam", "steps": steps, "batch_size": 128, "ring_init": "unit"}
    cells: dict[str, dict[str, Any]] = {}
    plain = [size for size in reused if size in rings]
    for plan, sizes in (("even", rings), ("reuse", plain)):
        for size in sizes:
            for rate in rates:
                name = f"{data} mlp {plan} M={size} lr={rate:g}"
                cells[name] = {**base, "plan": plan, "ring_size": size, "ring_lr": rate, "lr": 3e-3}
    for width in widths:
        for rate in own_rates:
            options = [f"width={width}"]
            cells[f"{data} mlp narrow h={width} lr={rate:g}"] = {
                **base, "method": "vanilla", "host_options": options, "lr": rate,
            }  # fmt: skip
    for rate in own_rates:
        cells[f"{data} mlp vanilla lr={rate:g}"] = {**base, "method": "vanilla", "lr": rate}
    return cells


def conv_cells(
    data: str, steps: int, rates: Sequence[float] = CONV_RATES, methods: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Experiments B, C and D: the patch network with two residual convolutions a pair, 4,000 images for training.

    Names say the data, so that no claim about one set is judged on another's cells.
    """
    base = {
        "data": data, "host": "patch-resnet", "recipe": "onecycle", "steps": steps, "batch_size": 128,
        "augment": "flip" if data == "cifar10" else "none", "max_train": 4000, "max_test": 1000,
    }  # fmt: skip
    ring = {"method": "rpg", "ring_size": 9216}
    known = {
        "vanilla": {"method": "vanilla"},
        "even 1/8": ring,
        "even 1/32": {"method": "rpg", "ring_size": 2304},
        "reuse 1/8": {**ring, "plan": "reuse"},
        "hash 1/8": {**ring, "plan": "hash"},
        "even 1/8 block": {**ring, "scope": "block"},
        "narrow 11": {"method": "vanilla", "host_options": ["width=11"]},
    }
    return {
        f"conv {data} {name} lr={rate:g}": {**base, **known[name], "lr": rate}
        for name in methods or known
        for rate in rates
    }


def resnet_cells() -> dict[str, dict[str, Any]]:
    """The GPU preset: ResNet-18 on CIFAR-10, and two more points of the line at a third of the epochs."""
    base = {
        "data": "cifar10", "host": "resnet18", "recipe": "onecycle", "epochs": 30, "batch_size": 256, "lr": 0.1,
        "augment": "crop-flip", "precision": "auto",
    }  # fmt: skip
    cells = {
        "resnet18 vanilla": {**base, "method": "vanilla"},
        "resnet18 even 1/5": {**base, "dof_ratio": 1 / 5},
        "resnet18 even 1/50": {**base, "dof_ratio": 1 / 50},
        "resnet18 narrow 1/50": {**base, "method": "narrow", "dof_ratio": 1 / 50},
    }
    # The cost of generation is claimed at batch 128: an epoch tells it.
    cells["timing resnet18 even 1/5"] = {**base, "epochs": 1, "batch_size": 128, "dof_ratio": 1 / 5}
    for ratio in (5, 16, 50, 200):
        cells[f"resnet18 short even 1/{ratio}"] = {**base, "epochs": 10, "dof_ratio": 1 / ratio}
    return cells


def paper_cells(root: Path) -> dict[str, dict[str, Any]]:
    """The paper's own settings, for whatever data are at hand: CIFAR and ImageNet sweeps, the implicit model, pose,
    depth and normals, pruning. Days of several GPUs with all data."""
    from rpg.data.names import present

    cells: dict[str, dict[str, Any]] = {}
    cifar = {"recipe": "paper", "epochs": 200, "batch_size": 128, "augment": "crop-flip"}
    for data in ("cifar10", "cifar100"):
        if not present(data, root):
            continue
        base = {**cifar, "data": data}
        for host in ("resnet18", "resnet34"):
            cells[f"{data} {host} vanilla"] = {**base, "host": host, "method": "vanilla"}
            for ratio in PAPER_RATIOS:
                size = {**base, "host": host, "dof_ratio": 1 / ratio}
                cells[f"{data} {host} even 1/{ratio}"] = size
                if ratio > 1:
                    cells[f"{data} {host} narrow 1/{ratio}"] = {**size, "method": "narrow"}
                    cells[f"{data} {host} pruned 1/{ratio}"] = {**size, "method": "pruned"}
            # One absolute size under both hosts: is the larger one better at equal degrees of freedom?
            cells[f"{data} {host} even M=500000"] = {**base, "host": host, "ring_size": 500_000}
        cells[f"{data} resnet18 even M=8192"] = {**base, "host": "resnet18", "ring_size": 8192}
        for scope in ("stage", "block", "layer"):
            cells[f"{data} resnet18 even 1/8 {scope}"] = {
                **base,
                "host": "resnet18",
                "dof_ratio": 1 / 8,
                "scope": scope,
            }
        # The multi-scale block: solved for its fixed point, or unrolled from a ring with the freedom of one block.
        # Width 9 is the published small model, width 32 a larger one.
        for name, width in (("msblock", 9), ("msblock-32", 32)):
            block = {**base, "host": "msblock"}
            cells[f"{data} {name} deq"] = {
                **block, "method": "vanilla", "host_options": ["mode=deq", f"width={width}"],
            }  # fmt: skip
            for calls in (2, 3, 4):
                options = {"host_options": [f"calls={calls}", f"width={width}"], "dof_ratio": 1 / calls}
                cells[f"{data} {name} even calls={calls}"] = {**block, **options}
                cells[f"{data} {name} reuse calls={calls}"] = {**block, **options, "plan": "seq"}
    if present("imagefolder", root):
        base = {
            "data": "imagefolder", "recipe": "imagenet", "epochs": 225, "batch_size": 256, "augment": "crop-flip",
            "loader_workers": 8,
        }  # fmt: skip
        for host in ("resnet18", "resnet34"):
            cells[f"imagenet {host} vanilla"] = {**base, "host": host, "method": "vanilla"}
            for ratio in PAPER_RATIOS[1:]:
                cells[f"imagenet {host} even 1/{ratio}"] = {**base, "host": host, "dof_ratio": 1 / ratio}
            for method in ("narrow", "pruned"):
                cells[f"imagenet {host} {method} 1/8"] = {**base, "host": host, "dof_ratio": 1 / 8, "method": method}
        cells["imagenet resnet18 ring"] = {**base, "host": "resnet18", "ring_size": 2_359_296}
        cells["imagenet resnet34 extreme"] = {**base, "host": "resnet34", "ring_size": 53_145}
    adam = {"recipe": "adam", "lr": 2.5e-4, "ring_lr": 2.5e-4, "batch_size": 16}
    if present("mpii", root):
        base = {**adam, "data": "mpii", "host": "hourglass", "epochs": 100}
        shape = {"host_options": ["stacks=4", "depth=4", "width=256"]}
        cells["mpii vanilla"] = {**base, **shape, "method": "vanilla"}
        for plan in ("even", "seq"):
            cells[f"mpii {plan} 1/4"] = {**base, **shape, "dof_ratio": 1 / 4, "plan": plan, "scope": "subnetwork"}
    dense = "triples" if present("triples", root) else "rooms"
    base = {**adam, "data": dense, "host": "multitask", "epochs": 60, "lr": 1e-3, "ring_lr": 1e-3}
    for variant in ("vanilla", "reuse", "reuse-bn"):
        cells[f"multitask {variant}"] = {**base, "method": "vanilla", "host_options": [f"variant={variant}"]}
    # As many numbers as the weights that the vanilla variant has of its own there.
    cells["multitask even"] = {**base, "ring_size": 237_312, "host_options": ["variant=rpg"]}
    return cells


class RpgStudy(Study):
    """Recurrent Parameter Generators."""

    member: ClassVar[str] = "rpg"
    package: ClassVar[str] = "rpg"
    presets: ClassVar[tuple[Ladder, ...]] = LADDER
    libraries: ClassVar[tuple[str, ...]] = ("mlxtend", "scikit-learn")

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        from rpg.data.names import fingerprint, present
        from shared.data import data_root

        root = data_root(config.data_root)
        if config.preset == "smoke":
            planned = perceptron_cells("digits", 20, (300,), (6e-2,), (3e-3,), (4,), (300,))
            planned |= conv_cells("digits", 3, (CONV_RATE,), ("vanilla", "even 1/8"))
            for fields in planned.values():
                fields |= {"max_train": 400, "max_test": 200}
            planned["digits eighth"] = {
                "data": "digits", "host": "mlp", "recipe": "adam", "ring_init": "unit", "ring_lr": 6e-2, "lr": 3e-3,
                "compression": 8.0, "steps": 120,
            }  # fmt: skip
        elif config.preset == "cpu":
            planned = perceptron_cells("mnist5k", 400, RINGS, RING_RATES)
            if present("cifar10", root):
                planned |= conv_cells("cifar10", 500, (CONV_RATE,), CONV_METHODS)
            # The fallback of those who have no CIFAR-10; small enough to be run by everyone.
            planned |= conv_cells("mnist5k", 500, (CONV_RATE,), ("vanilla", "even 1/8"))
            for data in ("mnist", "fashion"):
                if present(data, root):
                    planned |= perceptron_cells(data, 400, RINGS, *WON, widths=(4, 12), reused=())
        elif config.preset == "cpu-long":
            planned = conv_cells("cifar10", 500) if present("cifar10", root) else {}
            if not planned:
                places = " or ".join(PLACES["cifar10"])
                raise UserError("--data-root", root, f"a folder with CIFAR-10: {places}", "cpu-long is about it alone.")
        elif config.preset == "gpu":
            planned = resnet_cells()
        else:
            planned = paper_cells(root)
        for fields in planned.values():
            if "steps" in fields:  # held-out metrics are wanted at the end only
                fields["eval_every"] = fields["steps"]
        seeds = range(config.seeds or SEEDS[config.preset])
        prints = {data: fingerprint(data, root) for data in {fields["data"] for fields in planned.values()}}
        cells = [Cell(name, fields, seed, prints[fields["data"]]) for name, fields in planned.items() for seed in seeds]
        # Long cells first, so that no core waits for the last of them.
        return sorted(cells, key=lambda cell: not cell.name.startswith(("conv", "resnet")))

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        from rpg.data.names import present
        from shared.data import data_root

        wanted: dict[str, dict[DataName, str]] = {
            "cpu": {"cifar10": "conv cifar10", "mnist": "mnist ", "fashion": "fashion "},
            "paper": {
                "cifar10": "cifar10 ", "cifar100": "cifar100 ", "imagefolder": "imagenet ", "mpii": "mpii ",
                "triples": "multitask on triples",
            },
        }  # fmt: skip
        root = data_root(config.data_root)
        places = wanted.get(config.preset, {}).items()
        return {prefix: f"{data} is not under the data root" for data, prefix in places if not present(data, root)}

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        from rpg.train import measure

        flags = {"seed": cell.seed, "device": config.device, "quiet": True, "preset": config.scale}
        settings = from_json(TrainConfig, {**cell.settings, **flags, "data_root": config.data_root})
        return measure(
            settings,
            data=self._data(settings),
            afterwards=cell.name.endswith(f" even 1/8 lr={CONV_RATE:g}"),
            # Nothing asks how well 60,000 digits are fitted.
            training_set=not cell.name.startswith(("mnist ", "fashion ", "timing ")),
            corruptions=cell.name.startswith(("conv cifar10 ", "cifar10 ", "cifar100 ")),
        )

    def _data(self, settings: TrainConfig) -> Any:
        from rpg.data.names import DENSE, POSE

        if settings.data in (*POSE, *DENSE, "imagefolder"):
            return None
        picks = settings.max_train is not None or settings.max_test is not None
        seed = settings.seed if picks else 0  # the whole of a set is the same under every seed
        return _loaded(settings.data, settings.data_root, settings.max_train, settings.max_test, seed)

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        found: dict[str, Callable[[Outcomes], Sequence[float]]] = {}
        for prefix, data in (("mlp", "mnist5k"), ("mnist", "mnist"), ("fashion", "fashion")):
            found |= {
                f"{prefix}-3k": partial(best, stem=f"{data} mlp even M=3000"),
                f"{prefix}-3k-minus-narrow": partial(
                    gap, left=f"{data} mlp even M=3000", right=f"{data} mlp narrow h=4"
                ),
                f"{prefix}-full-minus-10k": partial(gap, left=f"{data} mlp vanilla", right=f"{data} mlp even M=10000"),
                f"{prefix}-10k-minus-narrow": partial(
                    gap, left=f"{data} mlp even M=10000", right=f"{data} mlp narrow h=12"
                ),
                **{
                    f"{prefix}-even-minus-reuse-{size}": partial(
                        gap, left=f"{data} mlp even M={size}", right=f"{data} mlp reuse M={size}"
                    )
                    for size in REUSED
                },
                f"{prefix}-log-correlation": partial(log_correlation, stem=f"{data} mlp even M="),
            }
        conv = {
            "conv-vanilla-minus-eighth": ("vanilla", "even 1/8"),
            "conv-eighth-minus-narrow": ("even 1/8", "narrow 11"),
            "conv-32nd-minus-narrow": ("even 1/32", "narrow 11"),
            "conv-even-minus-reuse": ("even 1/8", "reuse 1/8"),
            "conv-even-minus-hash": ("even 1/8", "hash 1/8"),
            "conv-global-minus-block": ("even 1/8", "even 1/8 block"),
        }
        for name, (left, right) in conv.items():
            left, right = f"conv cifar10 {left}", f"conv cifar10 {right}"
            found[name] = partial(difference, left=specified(left), right=specified(right))
            found[f"{name}-tuned"] = partial(gap, left=left, right=right)
        for prefix, plain, ring in (
            ("conv", specified("conv cifar10 vanilla"), specified("conv cifar10 even 1/8")),
            ("cifar10", "cifar10 resnet18 vanilla", "cifar10 resnet18 even 1/8"),
        ):
            found[f"{prefix}-gap-narrows"] = partial(gap_narrows, plain=plain, ring=ring)
            found[f"{prefix}-corruption-costs-less"] = partial(corruption_costs_less, plain=plain, ring=ring)
        found["conv-mnist5k-vanilla-minus-eighth"] = partial(
            difference, left=specified("conv mnist5k vanilla"), right=specified("conv mnist5k even 1/8")
        )
        pairs = {
            "resnet18-vanilla-minus-fifth": ("resnet18 vanilla", "resnet18 even 1/5"),
            "resnet18-50th-minus-narrow": ("resnet18 even 1/50", "resnet18 narrow 1/50"),
        }
        for name, (left, right) in pairs.items():
            found[name] = partial(difference, left=left, right=right)
        found |= {
            "smoke-loss-ratio": lambda o: [
                values["curve"][-1][1] / values["curve"][0][1] for values in o.raw("digits eighth")
            ],
            "wrong-key": furthest_from_chance,
            "wrong-key-mean": lambda o: o.values(EIGHTH, "wrong_key_accuracy"),
            "prune-loss": partial(lost, metric="pruned_accuracy"),
            "int8-loss": partial(lost, metric="int8_accuracy"),
            "int8-grouped-loss": partial(lost, metric="int8_grouped_accuracy"),
            "generation-share": lambda o: o.values("timing resnet18 even 1/5", "generation_share"),
            "resnet18-log-r2": resnet_r2,
            "rooms-order": partial(ordered, names=MULTITASK, metric="depth_error"),
            "rooms-normals-order": partial(ordered, names=MULTITASK, metric="normals_degrees"),
            "cifar10-depth": partial(
                difference, left="cifar10 resnet34 even M=500000", right="cifar10 resnet18 even M=500000"
            ),
            "cifar10-global-minus-layer": partial(
                difference, left="cifar10 resnet18 even 1/8", right="cifar10 resnet18 even 1/8 layer"
            ),
            "cifar10-half": partial(difference, left="cifar10 resnet18 vanilla", right="cifar10 resnet18 even 1/2"),
            "cifar10-slopes": partial(slope_ratio, stems=("cifar10 resnet34 even 1/", "cifar10 resnet18 even 1/")),
            "cifar100-half": partial(difference, left="cifar100 resnet18 vanilla", right="cifar100 resnet18 even 1/2"),
            "cifar100-8k": lambda o: o.values("cifar100 resnet18 even M=8192", "accuracy"),
            "imagenet-resnet18-half": lambda o: o.values("imagenet resnet18 even 1/2", "accuracy"),
            "imagenet-resnet34-half": lambda o: o.values("imagenet resnet34 even 1/2", "accuracy"),
            "mpii-even-minus-seq": partial(difference, left="mpii even 1/4", right="mpii seq 1/4", metric="pckh"),
            "mpii-vanilla-minus-even": partial(difference, left="mpii vanilla", right="mpii even 1/4", metric="pckh"),
            "cifar10-narrow": partial(
                difference, left="cifar10 resnet18 even 1/8", right="cifar10 resnet18 narrow 1/8"
            ),
            "imagenet-pruned": partial(
                difference, left="imagenet resnet18 even 1/8", right="imagenet resnet18 pruned 1/8"
            ),
            "cifar10-implicit-speed": lambda o: [
                solved / unrolled
                for solved, unrolled in zip(
                    o.values("cifar10 msblock deq", "inference_ms"),
                    o.values("cifar10 msblock even calls=3", "inference_ms"),
                    strict=True,
                )
            ],
            "cifar10-msblock": partial(difference, left="cifar10 msblock even calls=3", right="cifar10 msblock deq"),
            "cifar10-pruned": partial(
                difference, left="cifar10 resnet18 even 1/16", right="cifar10 resnet18 pruned 1/16"
            ),
            "imagenet-resnet18-ring": lambda o: o.values("imagenet resnet18 ring", "accuracy"),
            "imagenet-resnet34-extreme": lambda o: o.values("imagenet resnet34 extreme", "accuracy"),
        }
        return found

    def tables(self, outcomes: Outcomes) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {}
        columns = ("method", "learning rate", "generated N", "ring M", "parameters", "MFLOPs", "accuracy", "per seed")
        for prefix, title in TUNED.items():
            found = stems(outcomes, prefix)
            if not found:
                continue
            rows = [self._row(outcomes, chosen(outcomes, stem), stem.removeprefix(f"{prefix} ")) for stem in found]
            tried = {len(candidates(outcomes, stem)) for stem in found}
            which = "each method at its best learning rate" if max(tried) > 1 else "at one learning rate, not tuned"
            tables[f"{title} on {outcomes.raw(chosen(outcomes, found[0]))[0]['data']}, {which}"] = (columns, rows)
            if prefix.startswith("conv ") and max(tried) > 1:
                at = [(stem, specified(stem)) for stem in found]
                rows = [self._row(outcomes, name, stem.removeprefix(f"{prefix} ")) for stem, name in at]
                data = outcomes.raw(at[0][1])[0]["data"]
                tables[f"{title} on {data}, all at the specified rate of {CONV_RATE:g}"] = (columns, rows)
        kinds = {"resnet18": "ResNet-18", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
        for prefix, title in (kinds | {"imagenet": "ImageNet"}).items():
            names = [name for name in outcomes.names() if name.startswith(prefix + " ")]
            if names:
                label = outcomes.raw(names[0])[0]["data"]
                rows = [self._row(outcomes, name, name.removeprefix(prefix + " ")) for name in names]
                tables[f"{title} on {label}"] = (columns, rows)
        grid = learning_rates(outcomes)
        if grid:
            rates = sorted({rate for row in grid.values() for rate in row})
            body = [(stem, *(f"{100 * row[r]:.1f}" if r in row else "" for r in rates)) for stem, row in grid.items()]
            tables["Mean accuracy (%) over learning rates"] = (("method", *(f"{r:g}" for r in rates)), body)
        for prefix, metric in (("mpii", "pckh"), ("multitask", "depth_error"), ("multitask", "normals_degrees")):
            names = [name for name in outcomes.names() if name.startswith(prefix + " ")]
            body = [
                (
                    name,
                    f"{outcomes.raw(name)[0]['parameters']:,}",
                    f"{outcomes.raw(name)[0]['mflops']:.3g}",
                    *_numbers(outcomes.values(name, metric)),
                )
                for name in names
            ]
            if body:
                label = outcomes.raw(names[0])[0]["data"]
                tables[f"{prefix} on {label}: {metric}"] = (
                    ("method", "parameters", "MFLOPs", metric, "per seed"),
                    body,
                )
        for prefix in ("conv cifar10", "cifar10", "cifar100"):
            names = [name for name in outcomes.names() if name.startswith(prefix + " ")]
            if names:
                label = outcomes.raw(names[0])[0]["data"]
                rows = [_generalisation(outcomes, name) for name in names]
                tables[f"Training set, test set, and corrupted test images of {label}"] = (GENERALISATION, rows)
        for data in conv_data(outcomes):
            name = specified(f"conv {data} even 1/8")
            kinds = {
                "as trained": "accuracy",
                "training set": "train_accuracy",
                "another key, the first tried": "first_wrong_key_accuracy",
                "another key, mean of ten": "wrong_key_accuracy",
                "another key, best of ten": "luckiest_key_accuracy",
                "30 % of the ring pruned, no further training": "pruned_at_once_accuracy",
                "30 % of the ring pruned, one epoch": "pruned_accuracy",
                "8-bit ring, one scale": "int8_accuracy",
                "8-bit ring, a scale for 256 numbers": "int8_grouped_accuracy",
            }
            rows = [(kind, *_shown(outcomes.values(name, metric))) for kind, metric in kinds.items()]
            label = outcomes.raw(name)[0]["data"]
            title = f"The residual network at an eighth (rate {CONV_RATE:g}) on {label}, afterwards"
            tables[title] = (("model", "accuracy", "per seed"), rows)
        return tables

    def _row(self, outcomes: Outcomes, name: str, label: str) -> tuple[Any, ...]:
        first = outcomes.raw(name)[0]
        rate = f"{first['ring_lr'] if first['ring'] else first['lr']:g}"
        sizes = [f"{first[key]:,}" if first[key] else "-" for key in ("generated", "ring", "parameters")]
        return (label, rate, *sizes, f"{first['mflops']:.3g}", *_shown(outcomes.values(name, "accuracy")))

    def figures(self, outcomes: Outcomes, folder: Path) -> list[Path]:
        from rpg.plots import draw_study, plans

        if "conv cifar10 even 1/8 block lr=0.2" in outcomes:  # cpu-long: the rest is drawn under cpu
            return [plans(outcomes, "cifar10", folder / "plans", tuned=True)]
        return draw_study(outcomes, folder)


@lru_cache(maxsize=4)
def _loaded(data: DataName, root: Path | None, max_train: int | None, max_test: int | None, seed: int) -> Any:
    """A data set, read once a process: reading takes as long as training a perceptron."""
    from shared.data import data_root
    from shared.images import load

    return load(data, data_root(root), max_train=max_train, max_test=max_test, seed=seed)


GENERALISATION = (
    "cells", "parameters", "MFLOPs", "training set", "test set", "lead", "corrupted", "cost of corruption",
    "noise", "blur", "contrast", "brightness",
)  # fmt: skip


def _generalisation(outcomes: Outcomes, name: str) -> tuple[str, ...]:
    """A row of that table: means over the seeds in percent; corrupted is the mean over kinds and severities."""
    first = outcomes.raw(name)[0]
    kinds = ("train", "test", "corrupted", "noise", "blur", "contrast", "brightness")
    metrics = {kind: "accuracy" if kind == "test" else f"{kind}_accuracy" for kind in kinds}
    mean = {kind: 100 * statistics.fmean(outcomes.values(name, metric)) for kind, metric in metrics.items()}
    shown = [mean["train"], mean["test"], mean["train"] - mean["test"], mean["corrupted"]]
    shown += [mean["test"] - mean["corrupted"], *(mean[kind] for kind in kinds[3:])]
    sizes = f"{first['parameters']:,}", f"{first['mflops']:.3g}"
    return name, *sizes, *(f"{value:.1f}" for value in shown)


def _shown(values: Sequence[float]) -> tuple[str, str]:
    return f"{100 * math.fsum(values) / len(values):.1f} %", ", ".join(f"{100 * value:.1f}" for value in values)


def _numbers(values: Sequence[float]) -> tuple[str, str]:
    return f"{math.fsum(values) / len(values):.4f}", ", ".join(f"{value:.4f}" for value in values)


# Prefix of the cells that are tuned -> title of their table.
TUNED = {
    "digits mlp": "Perceptron", "mnist5k mlp": "Perceptron", "mnist mlp": "Perceptron", "fashion mlp": "Perceptron",
    "conv cifar10": "Residual network", "conv mnist5k": "Residual network", "conv digits": "Residual network",
}  # fmt: skip


def specified(stem: str) -> str:
    """The cells of a residual network's method at the specified learning rate."""
    return f"{stem} lr={CONV_RATE:g}"


EIGHTH = specified("conv cifar10 even 1/8")  # B's model, on which D is measured


def conv_data(outcomes: Outcomes) -> list[str]:
    """Data sets on which the residual network was trained plainly and from a ring, at the specified rate."""
    sets = ("cifar10", "mnist5k", "digits")
    return [d for d in sets if all(specified(f"conv {d} {m}") in outcomes for m in ("vanilla", "even 1/8"))]


def lost(outcomes: Outcomes, metric: str) -> list[float]:
    """What a compressed form of B's model loses against B's model, a seed."""
    return subtract(outcomes.values(EIGHTH, "accuracy"), outcomes.values(EIGHTH, metric))


def furthest_from_chance(outcomes: Outcomes) -> list[float]:
    """Distance from a tenth under the first other key, of the seed for which it is largest: so each seed is judged."""
    return [max(abs(value - 0.1) for value in outcomes.values(EIGHTH, "first_wrong_key_accuracy"))]


def stems(outcomes: Outcomes, prefix: str) -> list[str]:
    """Names of tuned cells without their learning rate, in order of appearance."""
    parts = (name.rpartition(" lr=") for name in outcomes.names())
    return list(dict.fromkeys(stem for stem, found, _ in parts if found and f"{stem} ".startswith(f"{prefix} ")))


def candidates(outcomes: Outcomes, stem: str) -> dict[float, str]:
    """Learning rate -> name of the cells that share everything else."""
    names = [name for name in outcomes.names() if name.startswith(stem + " lr=")]
    if not names:
        raise Missing(stem)
    return {float(name.rsplit("=", 1)[1]): name for name in names}


def chosen(outcomes: Outcomes, stem: str) -> str:
    """The cells at the learning rate with the best mean accuracy: the same rule for every method."""
    return max(candidates(outcomes, stem).values(), key=lambda name: math.fsum(outcomes.values(name, "accuracy")))


def best(outcomes: Outcomes, stem: str, metric: str = "accuracy") -> list[float]:
    """A metric a seed at the learning rate where the method's accuracy is best."""
    return outcomes.values(chosen(outcomes, stem), metric)


def gap(outcomes: Outcomes, left: str, right: str) -> list[float]:
    """Difference a seed, each side at its best learning rate."""
    return subtract(best(outcomes, left), best(outcomes, right))


def difference(outcomes: Outcomes, left: str, right: str, metric: str = "accuracy") -> list[float]:
    """Difference of a metric a seed: both saw the same batches."""
    return subtract(outcomes.values(left, metric), outcomes.values(right, metric))


def gap_narrows(outcomes: Outcomes, plain: str, ring: str) -> list[float]:
    """By how much the training set's lead over the test set is smaller with a ring, a seed."""
    lead = [
        subtract(outcomes.values(name, "train_accuracy"), outcomes.values(name, "accuracy")) for name in (plain, ring)
    ]
    return subtract(*lead)


def corruption_costs_less(outcomes: Outcomes, plain: str, ring: str) -> list[float]:
    """By how much less accuracy corrupted test images cost with a ring, a seed."""
    cost = [
        subtract(outcomes.values(name, "accuracy"), outcomes.values(name, "corrupted_accuracy"))
        for name in (plain, ring)
    ]
    return subtract(*cost)


def slope_ratio(outcomes: Outcomes, stems: tuple[str, str]) -> list[float]:
    """Slope of accuracy over log10 M of one host over that of another, from half of the weights downwards, a seed."""
    import numpy as np

    slopes = []
    for stem in stems:
        names = [f"{stem}{ratio}" for ratio in PAPER_RATIOS if ratio > 1]
        logs = np.log10([outcomes.raw(name)[0]["ring"] for name in names])
        accuracy = np.array([outcomes.values(name, "accuracy") for name in names])  # [M, seeds]
        slopes.append(np.polyfit(logs, accuracy, 1)[0])
    return [float(value) for value in slopes[0] / slopes[1]]


def subtract(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """Element by element."""
    return [a - b for a, b in zip(left, right, strict=True)]


def log_correlation(outcomes: Outcomes, stem: str) -> list[float]:
    """Pearson correlation of accuracy with log10 M over M = 100 to 3,000, a seed."""
    import numpy as np

    sizes = [size for size in RINGS if size <= 3000]
    accuracy = np.array([best(outcomes, f"{stem}{size}") for size in sizes])  # [M, seeds]
    logs = np.log10(sizes)
    return [float(np.corrcoef(logs, accuracy[:, seed])[0, 1]) for seed in range(accuracy.shape[1])]


def resnet_r2(outcomes: Outcomes) -> list[float]:
    """r squared of accuracy against log10 M over the short runs, a seed."""
    import numpy as np

    names = [name for name in outcomes.names() if name.startswith("resnet18 short even")]
    if len(names) < 3:
        raise Missing("resnet18 short even")
    logs = np.log10([outcomes.raw(name)[0]["ring"] for name in names])
    accuracy = np.array([outcomes.values(name, "accuracy") for name in names])
    return [float(np.corrcoef(logs, accuracy[:, seed])[0, 1] ** 2) for seed in range(accuracy.shape[1])]


def ordered(outcomes: Outcomes, names: Sequence[str], metric: str) -> list[float]:
    """Fraction of neighbours in the list whose error falls, a seed: 1 where the order is the paper's."""
    errors = [outcomes.values(name, metric) for name in names]
    pairs = list(pairwise(errors))
    return [sum(a[seed] > b[seed] for a, b in pairs) / len(pairs) for seed in range(len(errors[0]))]


def learning_rates(outcomes: Outcomes) -> dict[str, dict[float, float]]:
    """Method -> learning rate -> mean accuracy, for everything that was tuned."""
    grid: dict[str, dict[float, float]] = {}
    for name in outcomes.names():
        stem, found, rate = name.rpartition(" lr=")
        if found:
            values = outcomes.values(name, "accuracy")
            grid.setdefault(stem, {})[float(rate)] = math.fsum(values) / len(values)
    return grid
