"""The experiments behind the claims: which cells a preset runs, and what is computed from them. Imports no torch.

The preset cpu is the ladder of the specification on embedded data; cpu-long adds Fashion-MNIST, CIFAR-10, kernels of
trained networks and the comparison with explicit penalties; gpu and paper are larger settings of the same.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from low_rank.chosen import chosen
from low_rank.config import OPTIMISERS, OptimizersConfig, RegressConfig, TrainConfig, VolumeConfig
from low_rank.names import REGULARISERS
from shared.claims import LADDER, Cell, Ladder, Missing, Outcomes, ReproduceConfig, Study
from shared.config import RunFailed, UserError, from_json
from shared.image_names import PLACES, fingerprint, present

DEPTHS = (1, 2, 4, 8, 16)
REGRESSED = (1, 2, 3, 4, 6, 8, 12, 16)
SEARCHED = (1, 2, 4, 8)
SEEDS = {"smoke": 1, "cpu": 5, "cpu-long": 5, "gpu": 3, "paper": 5}  # of trained networks; draws are within a cell
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
RATES = (0.01, 0.03, 0.1)  # learning rates, of which held-out images choose one for every network
TRAINED = ("kernels", "compare")
LINKED = 64  # images of the ordered Gram matrices
KINDS = {
    "volume": VolumeConfig,
    "regress": RegressConfig,
    "optimizers": OptimizersConfig,
    "classified": OptimizersConfig,
    "search": OptimizersConfig,
}

Fields = dict[str, Any]


def volume_cells(n: int, draws: int, depths: Sequence[int]) -> dict[str, Fields]:
    """Products of square Gaussian matrices, and of orthogonal ones, whose rank does not fall."""
    base: Fields = {"study": "volume", "n": n, "depths": list(depths)}
    return {
        "volume products": {**base, "draws": draws},
        "volume orthogonal products": {**base, "draws": 20, "init": "orthogonal"},
    }


def feature_cells(draws: int, data: str = "digits", width: int = 128) -> dict[str, Fields]:
    """Random networks on images: ReLU, the exceptions, residual connections."""
    base: Fields = {"study": "volume", "nets": "features", "data": data, "n": width, "depths": list(DEPTHS)}
    few = max(2, draws // 3)
    cells = {"volume relu": {**base, "draws": draws}}
    for name in ("linear", "leaky_relu", "gelu", "tanh"):
        cells[f"volume {name}"] = {**base, "draws": few, "activation": name}
    cells["volume sigmoid, centred"] = {**base, "draws": few, "activation": "sigmoid", "center": True}
    cells["volume relu, Gaussian inputs"] = {**base, "draws": few, "inputs": "gaussian"}
    cells["volume relu, batch normalised"] = {**base, "draws": few, "normalisation": "batch"}
    cells["volume relu, layer normalised"] = {**base, "draws": few, "normalisation": "layer"}
    cells["volume relu, orthogonal"] = {**base, "draws": few, "init": "orthogonal"}
    for name in ("post", "block", "block-scaled", "branch", "linear"):
        cells[f"volume skips {name}"] = {**base, "draws": draws if name == "block-scaled" else few, "skips": name}
    return cells


def regression_cells(draws: int, steps: int) -> dict[str, Fields]:
    """Rank 2 at every depth; full rank at two; rank 2 from starts of smaller size."""
    base: Fields = {"study": "regress", "draws": draws, "steps": steps}
    cells = {f"regress r=2 d={d}": {**base, "rank": 2, "depths": [d]} for d in REGRESSED}
    cells |= {f"regress r=32 d={d}": {**base, "rank": 32, "depths": [d]} for d in (2, 16)}
    for gain_of in (0.1, 0.5):
        for d in (1, 3, 8):
            cells[f"regress r=2 gain={gain_of:g} d={d}"] = {**base, "rank": 2, "depths": [d], "gain": gain_of}
    return cells


def regression_sweep(draws: int = 32, steps: int = 1500) -> dict[str, Fields]:
    """All depths for true maps of every rank, and for every number of samples."""
    base: Fields = {"study": "regress", "draws": draws, "steps": steps, "depths": list(REGRESSED)}
    cells = {f"sweep r={r} N=20": {**base, "rank": r, "samples": 20} for r in (1, 2, 4, 8, 16, 32)}
    return cells | {f"sweep r=2 N={n}": {**base, "rank": 2, "samples": n} for n in (12, 16, 24, 28)}


def optimizer_cells(draws: int, steps: int) -> dict[str, Fields]:
    """Every optimiser at the smallest and at larger depths."""
    base: Fields = {"study": "optimizers", "draws": draws, "steps": steps, "depths": [1, 2, 4, 8]}
    return {f"optimizer {name}": {**base, "optimizers": [name]} for name in OPTIMISERS}


def classification_cells(draws: int, steps: int, data: str = "mnist5k") -> dict[str, Fields]:
    """Every optimiser on ReLU networks that are to tell two classes of images apart; and CMA-ES, beside Adam, where the
    networks have few enough weights for it."""
    base: Fields = {"study": "classified", "problem": "classification", "data": data, "draws": draws, "steps": steps}
    cells = {f"classify {name}": {**base, "optimizers": [name], "depths": [1, 2, 4, 8]} for name in OPTIMISERS}
    narrow: Fields = {**base, "optimizers": ["adam"], "width": 12, "cma": draws, "depths": [1, 2, 4, 8]}
    return cells | {"classify width=12": narrow}


def search_cells(kept: int, data: str = "mnist5k") -> dict[str, Fields]:
    """Random search a depth."""
    return {f"search d={d}": {"study": "search", "data": data, "search": kept, "depths": [d]} for d in SEARCHED}


def digits_cells() -> dict[str, Fields]:
    """A perceptron on digits of 8 and of 28 pixels: plain, and every layer a product."""
    base: Fields = {"model": "mlp", "width": 256, "hidden": 2, "lr": 0.05, "clip": 1.0}
    cells = {}
    for data, epochs in (("digits", 15), ("mnist5k", 10)):
        cells[f"{data} plain"] = {**base, "data": data, "epochs": epochs, "expand": "none"}
        for depth in (2, 3) if data == "digits" else (3,):
            cells[f"{data} d={depth}"] = {**base, "data": data, "epochs": epochs, "depth": depth}
    return cells


def at_rates(cells: Mapping[str, Fields], rates: Sequence[float] = RATES) -> dict[str, Fields]:
    """Every network at every learning rate."""
    return {f"{name}, lr {rate:g}": {**fields, "lr": rate} for name, fields in cells.items() for rate in rates}


def cifar_cells(epochs: int = 15) -> dict[str, Fields]:
    """A small CNN with batch normalisation on 6,000 images of CIFAR-10, drawn at 16 pixels; 1,000 others choose the
    learning rate of each."""
    base: Fields = {
        "data": "cifar10", "model": "cnn-small", "side": 16, "max_train": 7000, "validation": 1000, "epochs": epochs,
        "augment": "flip", "weight_decay": 1e-3, "clip": None,
    }  # fmt: skip
    return at_rates(
        {
            "cifar plain": {**base, "expand": "none"},
            "cifar d=2": {**base, "expand": "all", "depth": 2},
        }
    )


def kernel_cells() -> dict[str, Fields]:
    """Trained perceptrons of every depth, looked at by their kernels."""
    base: Fields = {
        "study": "kernels", "data": "mnist5k", "model": "mlp", "width": 256, "expand": "none", "epochs": 10, "lr": 0.02,
        "warmup": 50, "clip": 1.0, "probes": 512,
    }  # fmt: skip
    cells = {f"kernels d={d}": {**base, "hidden": d} for d in DEPTHS}
    for d in (4, 16):
        cells |= {f"kernels d={d} skip={skip}": {**base, "hidden": d, "skip": skip} for skip in (1, 2)}
    for name, fields in (
        ("lr=0.005", {"lr": 0.005}), ("decay=0.001", {"weight_decay": 1e-3}), ("batch=32", {"batch_size": 32}),
        ("noise=0.2", {"label_noise": 0.2}),
    ):  # fmt: skip
        cells |= {f"kernels d={d} {name}": {**base, "hidden": d, **fields} for d in (1, 4)}
    return cells


def compare_cells() -> dict[str, Fields]:
    """Products against penalties on a few noisy digits. Five settings of every way: strengths, or learning rates where
    it has none; held-out samples choose."""
    base: Fields = {
        "study": "compare", "data": "digits", "model": "mlp", "width": 256, "hidden": 2, "epochs": 15, "lr": 0.05,
        "clip": 1.0, "validation": 300, "max_train": 600, "label_noise": 0.2, "batch_size": 64,
    }  # fmt: skip
    plain: Fields = {**base, "expand": "none"}
    rates = (0.01, 0.02, 0.05, 0.1, 0.2)
    cells = at_rates({"compare plain": plain}, rates)
    for name in REGULARISERS:
        for strength in STRENGTHS:
            cells[f"compare {name}, {strength:g}"] = {**plain, "regulariser": name, "strength": strength}
    for depth in (2, 3):
        products: Fields = {**base, "expand": "all", "depth": depth}
        cells |= at_rates({f"compare products of {depth}": products}, rates)
        for strength in STRENGTHS:
            cells[f"compare decay on products of {depth}, {strength:g}"] = {**products, "weight_decay": strength}
    return cells


_GPU: Fields = {
    "data": "cifar10", "model": "cnn", "epochs": 60, "augment": "crop-flip", "weight_decay": 5e-4, "validation": 1000,
    "warmup": 100, "clip": 5.0,
}  # fmt: skip


def gpu_cells() -> dict[str, Fields]:
    """The larger CNN on CIFAR-10, plain and over-parameterised; held-out images choose the learning rate of each, and
    the variant. Without weight decay too, which on factors is another penalty than on weights."""
    undecayed: Fields = {**_GPU, "weight_decay": 0.0}
    return at_rates(
        {
            "gpu plain": {**_GPU, "expand": "none"},
            "gpu d=2": {**_GPU, "depth": 2},
            "gpu d=4": {**_GPU, "depth": 4},
            "gpu d=2 width 4": {**_GPU, "depth": 2, "expand_width": 4.0},
            "gpu d=2 normalised": {**_GPU, "depth": 2, "factor_norm": True},
            "undecayed plain": {**undecayed, "expand": "none"},
            "undecayed d=2": {**undecayed, "depth": 2},
        }
    )


def gpu_compare_cells() -> dict[str, Fields]:
    """Products against penalties on CIFAR-10: five settings of every way, strengths, or learning rates where it has
    none; without weight decay but where that is the strength."""
    base: Fields = {**_GPU, "study": "compare", "epochs": 20, "lr": 0.03, "weight_decay": 0.0}
    plain, products = {**base, "expand": "none"}, {**base, "depth": 2}
    cells = at_rates({"compare plain": plain, "compare products of 2": products}, (0.003, 0.01, 0.03, 0.1, 0.3))
    for strength in STRENGTHS:
        for name in REGULARISERS:
            cells[f"compare {name}, {strength:g}"] = {**plain, "regulariser": name, "strength": strength}
        cells[f"compare decay on products of 2, {strength:g}"] = {**products, "weight_decay": strength}
    return cells


def paper_cells() -> dict[str, Fields]:
    """CIFAR-10 and CIFAR-100 for 200 epochs; networks of the paper's kinds."""
    cells = {}
    for data, model in itertools.product(("cifar10", "cifar100"), ("cnn", "alexnet-cifar", "resnet20")):
        base: Fields = {
            "data": data, "model": model, "epochs": 200, "augment": "crop-flip", "lr": 0.03, "weight_decay": 5e-4,
            "warmup": 500, "clip": 5.0,
        }  # fmt: skip
        cells[f"paper {data} {model} plain"] = {**base, "expand": "none"}
        for depth in (2, 4):
            cells[f"paper {data} {model} d={depth}"] = {**base, "depth": depth}
    return cells


def smoke_cells() -> dict[str, Fields]:
    """Everything, small."""
    tiny: Fields = {"data": "digits", "width": 32, "batch_size": 64, "steps": 20, "probes": 64}
    return {
        "volume products": {"study": "volume", "n": 16, "draws": 30, "depths": [1, 2, 4]},
        "volume relu": {"study": "volume", "nets": "features", "n": 32, "draws": 4, "images": 64, "depths": [1, 2]},
        "regress r=2 d=2": {
            "study": "regress", "n": 8, "samples": 5, "draws": 3, "steps": 100, "rank": 2, "depths": [2],
        },
        "optimizers": {
            "study": "optimizers", "n": 6, "samples": 4, "draws": 2, "target": 0.05,
            "steps": 200, "depths": [1, 2],
        },
        "classify": {
            "study": "classified", "problem": "classification", "data": "digits", "images": 8, "width": 8, "draws": 2,
            "loss": 0.3, "steps": 300, "depths": [1], "cma": 1,
        },
        "search d=1": {"study": "search", "data": "digits", "search": 5, "depths": [1]},
        "train kernels": {**tiny, "study": "kernels", "hidden": 1, "expand": "none"},
        "train compare": {**tiny, "study": "compare", "expand": "none", "validation": 100},
        "train plain": {**tiny, "expand": "none"},
        "train d=3": {**tiny, "depth": 3},
        "train normalised": {**tiny, "depth": 2, "factor_norm": True},
        "train skips": {**tiny, "depth": 2, "factor_skips": [2]},
        "train cnn": {**tiny, "model": "cnn-small", "depth": 2, "max_train": 300, "steps": 4},
        "train penalty": {**tiny, "expand": "none", "regulariser": "nuclear", "strength": 1e-3},
    }  # fmt: skip


class LowRankStudy(Study):
    """The low-rank simplicity bias."""

    member: ClassVar[str] = "low-rank"
    package: ClassVar[str] = "low_rank"
    presets: ClassVar[tuple[Ladder, ...]] = LADDER
    libraries: ClassVar[tuple[str, ...]] = ("scipy", "cma", "mlxtend", "scikit-learn")

    def planned(self, config: ReproduceConfig) -> dict[str, Fields]:
        """Runs of a preset by name, those whose data are at hand."""
        from shared.data import data_root

        root = data_root(config.data_root)
        if config.preset == "smoke":
            return smoke_cells()
        if config.preset == "cpu":
            return (
                volume_cells(32, 1000, DEPTHS) | feature_cells(60) | search_cells(150) | regression_cells(64, 2000)
                | optimizer_cells(8, 3000) | classification_cells(8, 3000) | digits_cells()
            )  # fmt: skip
        if config.preset == "cpu-long":
            fashion = {**feature_cells(50, "fashion", 256)["volume relu"]}
            cells = {"volume fashion": fashion} | cifar_cells() | kernel_cells() | compare_cells()
            cells |= regression_sweep()
        elif config.preset == "gpu":
            cells = volume_cells(128, 4096, (*DEPTHS, 32, 64)) | gpu_cells() | gpu_compare_cells()
        else:
            cells = paper_cells()
        return {name: fields for name, fields in cells.items() if present(fields.get("data", "digits"), root)}

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        from shared.data import data_root

        root = data_root(config.data_root)
        planned = self.planned(config)
        if not planned:
            raise UserError("--data-root", root, "a folder with CIFAR-10, CIFAR-100 or Fashion-MNIST")
        cells = []
        for name, fields in planned.items():
            check(fields)
            drawn = fields.get("study", "compare") not in TRAINED  # all draws are in one cell
            seeds = 1 if drawn else config.seeds or SEEDS[config.preset]
            print_of = fingerprint(fields.get("data", "digits"), root)
            cells += [Cell(name, fields, seed, print_of) for seed in range(seeds)]
        return sorted(cells, key=lambda cell: -work(cell.settings))  # so that no core waits for the last of them

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        from shared.data import data_root

        root = data_root(config.data_root)
        wanted = {
            "cpu-long": {"volume fashion": "fashion", "cifar ": "cifar10"},
            "gpu": {"gpu ": "cifar10", "undecayed ": "cifar10", "compare ": "cifar10"},
            "paper": {"paper cifar10 ": "cifar10", "paper cifar100 ": "cifar100"},
        }.get(config.preset, {})
        return {
            prefix: f"{' or '.join(PLACES[data])} is not under the data root"  # pyright: ignore[reportArgumentType]
            for prefix, data in wanted.items()
            if not present(data, root)  # pyright: ignore[reportArgumentType]
        }

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        fields = dict(cell.settings)
        study = fields.pop("study", None)
        flags: Fields = {"seed": cell.seed, "quiet": True}
        if study is not None and study not in TRAINED:
            from low_rank import studies

            if "data" in fields or study == "volume":
                flags["data_root"] = config.data_root
            if study in ("volume", "regress"):
                flags["device"] = config.device
            made: Any = from_json(KINDS[study], {**fields, **flags})
            if study == "search":
                return studies.search_rows(made)
            return {
                "volume": studies.volume, "regress": studies.regression, "optimizers": studies.optimisers,
                "classified": studies.classified,
            }[study](made)  # fmt: skip
        from low_rank.train import measure

        flags |= {"device": config.device, "preset": config.scale, "data_root": config.data_root}
        made = from_json(TrainConfig, {**fields, **flags})
        if study == "kernels":
            from low_rank.trained import kernel_network

            values = kernel_network(made, LINKED)
            return values if cell.seed == 0 else {**values, "gram": []}  # one is drawn
        if study == "compare":
            try:
                values = measure(made)
            except RunFailed:
                return {"diverged": 1.0}
            return {name: values[name] for name in ("accuracy", "test", "train", "hidden_ranks")}
        try:
            return measure(made, self.scratch)
        except RunFailed:
            if "validation" not in fields:
                raise
            return {"diverged": 1.0}  # a learning rate that is out of the choice

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        return {
            "smoke-share": smoke_share,
            "volume-linear-steps": partial(dominated, name="volume products"),
            "volume-limit": off_the_limit,
            "volume-relu-step": partial(least_step, name="volume relu"),
            "volume-relu-drop": partial(total_drop, name="volume relu"),
            "volume-relu-steps": partial(dominated, name="volume relu"),
            "volume-fashion-drop": partial(total_drop, name="volume fashion"),
            "volume-residual-drop": partial(total_drop, name="volume skips block-scaled"),
            "search-step": lambda o: [min(searched_steps(o))],
            "search-drop": lambda o: [sum(searched_steps(o))],
            "regress-ratio": regress_ratio,
            "regress-train": lambda o: [max(regressed(o, d)["train"] for d in REGRESSED)],
            "regress-rank-step": regress_rank_step,
            "regress-full-ratio": lambda o: [regressed(o, 16, 32)["train"] / regressed(o, 2, 32)["train"]],
            "regress-too-deep": regress_too_deep,
            "optimizers-drop": lambda o: [min(optimizer_drop(o, f"optimizer {name}") for name in OPTIMISERS)],
            "optimizers-start-drop": lambda o: [start_drop(o, "optimizer adam")],
            "classify-drop": lambda o: [min(optimizer_drop(o, f"classify {name}") for name in OPTIMISERS)],
            "classify-start-drop": lambda o: [start_drop(o, "classify adam")],
            "expanded-least-drop": lambda o: [min(drops) for drops in expanded_drops(o, "digits")],
            "expanded-mean-drop": lambda o: [statistics.fmean(drops) for drops in expanded_drops(o, "digits")],
            "expanded-mnist-least": lambda o: [min(drops) for drops in expanded_drops(o, "mnist5k")],
            "expanded-mnist-mean": lambda o: [statistics.fmean(drops) for drops in expanded_drops(o, "mnist5k")],
            "expanded-learned": partial(learned_drop, data="digits"),
            "expanded-mnist-learned": partial(learned_drop, data="mnist5k"),
            "kernels-drop": kernels_drop,
            "compare-gain": compare_gain,
            "cifar-gain": lambda o: gain(o, at_best_rate(o, "cifar d=2"), at_best_rate(o, "cifar plain"), "test"),
            "cifar-gap-gain": cifar_gap_gain,
            "gpu-gain": lambda o: gain(o, chosen_variant(o), at_best_rate(o, "gpu plain"), "test"),
            "gpu-train-gain": lambda o: gain(o, at_best_rate(o, "gpu plain"), chosen_variant(o), "train"),
        }

    def tables(self, outcomes: Outcomes) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {}
        volumes = [name for name in outcomes.names() if name.startswith("volume ")]
        if volumes:
            depths = sorted({row["depth"] for name in volumes for row in outcomes.raw(name)[0]["rows"]})
            body = []
            for name in volumes:
                means = {row["depth"]: row["mean"] for row in outcomes.raw(name)[0]["rows"]}
                body.append((name.removeprefix("volume "), *(means.get(d) for d in depths)))
            tables["Random networks: mean effective rank (nats) by layers"] = (("networks", *map(str, depths)), body)
        regressions = [name for name in outcomes.names() if name.startswith("regress ")]
        if regressions:
            body = []
            for name in sorted(regressions, key=lambda each: (each.count("="), _by_numbers(each))):
                row = outcomes.raw(name)[0]["rows"][0]
                body.append(
                    (name.removeprefix("regress "), *(row[k] for k in ("train", "test", "test_se", "rho", "fitted")))
                )
            values = outcomes.raw(regressions[0])[0]
            for name in dict.fromkeys(
                name.split()[1] for name in sorted(regressions, key=lambda each: (each.count("="), _by_numbers(each)))
            ):
                values = outcomes.raw(next(full for full in regressions if full.split()[1] == name))[0]
                shortest = values["minimum_norm"]
                body.append((f"{name} least norm", *(shortest[k] for k in ("train", "test", "test_se", "rho")), None))
                body.append((f"{name} truth", None, 0.0, None, values["true_rank"], None))
            columns = ("rank, factors", "training error", "test error", "its s.e.", "effective rank", "fitted")
            tables["Deep linear regression, mean of draws"] = (columns, body)
        for prefix, title, unit, tested in (
            ("optimizer ", "Optimisers at one training error", "factors", "test error"),
            ("classify ", "Optimisers at one loss, two classes of images", "hidden layers", "test accuracy"),
        ):
            lines = [name for name in outcomes.names() if name.startswith(prefix)]
            if lines:
                body = []
                for name in lines:
                    wide = ", width 12" if name == "classify width=12" else ""
                    for row in outcomes.raw(name)[0]["rows"]:
                        values = (row[k] for k in ("depth", "reached", "rho_start", "rho", "test", "steps"))
                        body.append((row["optimizer"] + wide, *values))
                columns = ("optimizer", unit, "reached the target", "rank at the start", "rank there", tested, "steps")
                tables[title] = (columns, sorted(body, key=lambda row: row[:2]))
        if sweeps := sorted((n for n in outcomes.names() if n.startswith("sweep ")), key=_by_numbers):
            body = []
            for name in sweeps:
                run = outcomes.raw(name)[0]
                tests = {row["depth"]: row["test"] for row in run["rows"]}
                body.append((*map(int, _by_numbers(name)), *(tests[d] for d in REGRESSED), run["minimum_norm"]["test"]))
            columns = ("rank", "samples", *map(str, REGRESSED), "least norm")
            tables["Deep linear regression: test error by factors, 32 draws"] = (columns, body)
        searched = [name for name in outcomes.names() if name.startswith("search ")]
        if searched:
            columns = ("layers", "kept", "share without an error", "rank of those", "of all", "their test accuracy")
            body = []
            for name in searched:
                row = outcomes.raw(name)[0]["rows"][0]
                body.append(tuple(row[k] for k in ("depth", "kept", "share", "rho", "rho_all", "accuracy")))
            tables["Random search: networks without a training error"] = (columns, sorted(body))
        kernels = [name for name in outcomes.names() if name.startswith("kernels ")]
        if kernels:
            columns = ("networks", "test", "training", "Gram rank at first", "after", "cophenetic correlation",
                       "cosine within classes", "between")  # fmt: skip
            body = []
            for name in sorted(kernels, key=_by_numbers):
                runs = outcomes.raw(name)
                first = statistics.fmean(run["history"][0]["gram_rank"] for run in runs)
                rest = [_mean_of(runs, k) for k in ("gram_rank", "cophenetic", "within", "between")]
                body.append(
                    (name.removeprefix("kernels "), _mean_of(runs, "accuracy"), _mean_of(runs, "train"), first, *rest)
                )
            tables["Kernels of trained perceptrons (rank on 512 test images, the rest on 64), mean of seeds"] = (
                columns,
                body,
            )
        if rows := compared(outcomes):
            columns = (
                "regularised by",
                "settings tried",
                "chosen",
                "held-out",
                "test",
                "its s.e.",
                "training",
                "rank of weights",
                "diverged",
            )
            for row in rows:
                row["setting"] = row.get("setting", "none") + (", at an end" if row.get("edges") else "")
            names = ("way", "settings", "setting", "validation", "test", "test_se", "train", "rank", "diverged")
            body = [tuple(row.get(name) for name in names) for row in rows]
            tables["Products and penalties, each at the setting that held-out samples choose"] = (
                columns,
                body,
            )
        trained = [
            name
            for name in outcomes.names()
            if not name.startswith("compare ") and all("ranks_at_first" in run for run in outcomes.raw(name))
        ]
        if trained:
            columns = ("network", "held out", "test", "training", "rank of hidden weights at first", "after training",
                       "rank of the Gram matrix")  # fmt: skip
            body = []
            for name in trained:
                runs = outcomes.raw(name)
                held = _mean_of(runs, "accuracy") if "test" in runs[0] else None
                tests = _mean_of(runs, "accuracy" if held is None else "test")
                ranks = [statistics.fmean(statistics.fmean(values) for values in hidden_ranks(runs, first))
                         for first in (True, False)]  # fmt: skip
                body.append((name, held, tests, _mean_of(runs, "train"), *ranks, _mean_of(runs, "gram_rank")))
            tables["Trained networks, mean of seeds"] = (columns, sorted(body))
        return tables

    def figures(self, outcomes: Outcomes, folder: Path) -> list[Path]:
        from low_rank.study_figures import draw

        return draw(outcomes, folder)


def check(fields: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the fields are a config."""
    study = fields.get("study")
    own = {name: value for name, value in fields.items() if name != "study"}
    from_json(KINDS.get(study, TrainConfig), own)


def work(settings: Mapping[str, Any]) -> float:
    """About how long a cell takes, for their order alone."""
    depth = max(settings.get("depths", [settings.get("depth", 1)]))
    study = settings.get("study")
    if study == "regress":
        return settings["draws"] * settings["steps"] * depth / 2e4
    if study in ("optimizers", "classified"):
        return 30.0
    if study == "search":
        return 10.0 * depth
    if study in TRAINED:
        return 10.0
    if study == "volume":
        return settings["draws"] * settings.get("n", 32) * depth / 1e4
    return 1e3 if settings.get("data") == "cifar10" else 10.0


def _by_numbers(name: str) -> tuple[float, ...]:
    return tuple(float(part.rpartition("=")[2]) for part in name.split()[1:])


def _mean_of(runs: Sequence[Mapping[str, Any]], metric: str) -> float:
    return statistics.fmean(run[metric] for run in runs)


def smoke_share(outcomes: Outcomes) -> list[float]:
    """Share of cells of the smoke preset whose numbers are finite, and whose training lowered its loss."""
    names = list(smoke_cells())
    if not all(name in outcomes for name in names):
        raise Missing("train plain")
    good = []
    for name in names:
        run = outcomes.raw(name)[0]
        if "history" in run:
            first, last = run["history"][0], run["history"][-1]
            good.append(last["train_loss"] < first["train_loss"])
            continue
        rows = run.get("rows", [run])
        numbers = [value for row in rows for value in row.values() if isinstance(value, (int, float))]
        arrived = all(row.get("rho", 0.0) is not None for row in rows)  # every optimiser has
        good.append(bool(numbers) and arrived and all(math.isfinite(value) for value in numbers))
    return [sum(good) / len(good)]


def dominated(outcomes: Outcomes, name: str) -> list[float]:
    """Share of steps from one depth to the next at which the distribution moved down, beyond its bands somewhere and
    against them nowhere."""
    steps = outcomes.raw(name)[0]["steps"]
    return [sum(step["holds"] and step["strict"] for step in steps) / len(steps)]


def off_the_limit(outcomes: Outcomes) -> list[float]:
    """Largest difference between the mean deficit of products and the Fuss-Catalan law's."""
    return [max(abs(row["deficit"] - row["limit"]) for row in outcomes.raw("volume products")[0]["rows"])]


def least_step(outcomes: Outcomes, name: str) -> list[float]:
    """The smallest fall of the mean rank from one depth to the next."""
    means = [row["mean"] for row in outcomes.raw(name)[0]["rows"]]
    return [min(a - b for a, b in itertools.pairwise(means))]


def total_drop(outcomes: Outcomes, name: str) -> list[float]:
    """The fall of the mean rank from the smallest depth to the largest."""
    return [outcomes.raw(name)[0]["total_drop"]]


def searched_steps(outcomes: Outcomes) -> list[float]:
    """Falls of the rank of accepted networks from one depth to the next.

    Raises:
        Missing: a depth at which fewer than thirty were found.
    """
    rows = [outcomes.raw(f"search d={d}")[0]["rows"][0] for d in SEARCHED]
    if any(row["hollow"] for row in rows):
        raise Missing("thirty accepted networks")
    return [a["rho"] - b["rho"] for a, b in itertools.pairwise(rows)]


def regressed(outcomes: Outcomes, depth: int, rank: int = 2) -> Mapping[str, Any]:
    """The row of a regression."""
    return outcomes.raw(f"regress r={rank} d={depth}")[0]["rows"][0]


def regress_ratio(outcomes: Outcomes) -> list[float]:
    """Test error of the best depth from 3 to 8 over that of one factor."""
    best = min(regressed(outcomes, d)["test"] for d in REGRESSED if 3 <= d <= 8)
    return [best / regressed(outcomes, 1)["test"]]


def regress_rank_step(outcomes: Outcomes) -> list[float]:
    """The smallest fall of the map's rank from one depth to the next."""
    means = [regressed(outcomes, d)["rho"] for d in REGRESSED]
    return [min(a - b for a, b in itertools.pairwise(means))]


def regress_too_deep(outcomes: Outcomes) -> list[float]:
    """Test error of sixteen factors less that of eight, problem by problem."""
    deep, less = (regressed(outcomes, d)["test_all"] for d in (16, 8))
    return [a - b for a, b in zip(deep, less, strict=True)]


def start_drop(outcomes: Outcomes, name: str) -> float:
    """What depth takes off the rank before the first step: the smallest depth less the largest."""
    rows = outcomes.raw(name)[0]["rows"]
    if any(row["rho_start"] is None for row in (rows[0], rows[-1])):
        raise Missing(name)
    return rows[0]["rho_start"] - rows[-1]["rho_start"]


def optimizer_drop(outcomes: Outcomes, name: str) -> float:
    """Rank at the smallest depth less that at the largest; -inf where half of the draws did not reach the target."""
    rows = outcomes.raw(name)[0]["rows"]
    first, last = rows[0], rows[-1]
    if any(row["reached"] < 0.5 for row in (first, last)):
        return -math.inf
    return first["rho"] - last["rho"]


def expanded_drops(outcomes: Outcomes, data: str) -> list[list[float]]:
    """Of each seed, for every hidden layer, the rank in the plain network less that in products of three."""
    pairs = zip(outcomes.raw(f"{data} plain"), outcomes.raw(f"{data} d=3"), strict=True)
    return [
        [rank - made["hidden_ranks"][name] for name, rank in plain["hidden_ranks"].items()] for plain, made in pairs
    ]


def hidden_ranks(runs: Sequence[Mapping[str, Any]], first: bool = False) -> list[list[float]]:
    """Of each run, the ranks of the weights of all layers but the last, after training or before it."""
    return [
        [run["ranks_at_first" if first else "ranks"][name] for name in run["hidden_ranks"]] for run in runs
    ]  # fmt: skip


def learned_drop(outcomes: Outcomes, data: str) -> list[float]:
    """Of each seed, how much of the mean drop of the hidden weights' rank came about in training: what it is after,
    less what it was before the first step."""
    plain, made = outcomes.raw(f"{data} plain"), outcomes.raw(f"{data} d=3")
    drops = [
        [statistics.fmean(one) - statistics.fmean(other) for one, other in zip(*sides, strict=True)]
        for sides in ((hidden_ranks(plain, f), hidden_ranks(made, f)) for f in (True, False))
    ]
    return [after - before for before, after in zip(*drops, strict=True)]


def gain(outcomes: Outcomes, one: str, other: str, metric: str) -> list[float]:
    """A metric of one network less another's, seed by seed."""
    return [a - b for a, b in zip(outcomes.values(one, metric), outcomes.values(other, metric), strict=True)]


def kernels_drop(outcomes: Outcomes) -> list[float]:
    """After training, rank of the Gram matrix with one hidden layer less that with sixteen, seed by seed."""
    one, many = (outcomes.values(f"kernels d={d}", "gram_rank") for d in (DEPTHS[0], DEPTHS[-1]))
    return [a - b for a, b in zip(one, many, strict=True)]


def compared(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Of every way of regularising, the setting (a strength, a learning rate) of the highest mean accuracy on held-out
    samples, among those under which no network diverged."""
    ways: dict[str, list[tuple[dict[str, Any], list[Mapping[str, Any]]]]] = {}
    for name in outcomes.names():
        if name.startswith("compare "):
            way, _, setting = name.removeprefix("compare ").partition(", ")
            said: dict[str, Any] = {"setting": setting}
            if setting:
                said["value"] = float(setting.removeprefix("lr "))
            ways.setdefault(way, []).append((said, list(outcomes.raw(name))))
    return [{"way": way, **chosen(settings)} for way, settings in ways.items()]


def compare_gain(outcomes: Outcomes) -> list[float]:
    """Test accuracy of products, without decay or with, less that of the best penalty, seed by seed; both chosen on
    held-out samples."""
    rows = [row for row in compared(outcomes) if "tests" in row]
    products = [row for row in rows if "products" in row["way"]]
    penalties = [row for row in rows if row["way"] in REGULARISERS]
    if not products or not penalties:
        raise Missing("compare products of 2, or a penalty")
    one, other = (max(group, key=lambda row: row["validation"]) for group in (products, penalties))
    return [a - b for a, b in zip(one["tests"], other["tests"], strict=True)]


def at_best_rate(outcomes: Outcomes, network: str) -> str:
    """A network at the learning rate that held-out images choose.

    Raises:
        Missing: none was run, or all diverged.
    """
    tried = [({"name": name}, outcomes.raw(name)) for name in outcomes.names() if name.startswith(f"{network}, lr ")]
    found = chosen(tried)
    if "name" not in found:
        raise Missing(f"{network}, lr {RATES[0]:g}")
    return found["name"]


def cifar_gap_gain(outcomes: Outcomes) -> list[float]:
    """Training less test accuracy of the plain network, less that of products of two, seed by seed."""
    one, other = (
        [run["train"] - run["test"] for run in outcomes.raw(at_best_rate(outcomes, name))]
        for name in ("cifar plain", "cifar d=2")
    )
    return [a - b for a, b in zip(one, other, strict=True)]


def chosen_variant(outcomes: Outcomes) -> str:
    """The over-parameterised network, and its learning rate, of the highest mean accuracy on held-out images."""
    tried = [({"name": name}, outcomes.raw(name)) for name in outcomes.names() if name.startswith("gpu d=")]
    found = chosen(tried)
    if "name" not in found:
        raise Missing("gpu d=2, lr 0.01")
    return found["name"]
