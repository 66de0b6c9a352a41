"""The command line: `low-rank train`, ... Imports no torch; `low_rank.train` and `.commands` do the work."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

from low_rank.config import (
    COMPARE_PRESETS,
    INITIALISATIONS,
    KERNELS_PRESETS,
    OPTIMISERS,
    SKIPS,
    TRAIN_PRESETS,
    CollapseConfig,
    CompareConfig,
    EvaluateConfig,
    KernelsConfig,
    OptimizersConfig,
    RanksConfig,
    RegressConfig,
    TrainConfig,
    VolumeConfig,
)
from low_rank.names import ACTIVATIONS, MODEL_DESCRIPTIONS, REGULARISERS
from shared.claims import ReproduceConfig
from shared.cli import App, BenchConfig
from shared.image_names import DESCRIPTIONS as DATA_DESCRIPTIONS

app = App("low-rank", "The low-rank simplicity bias in deep networks: what depth does to rank (2103.10427).")


@app.verb(TrainConfig, TRAIN_PRESETS)
def train(config: TrainConfig) -> int:
    """Train a classifier whose linear layers are products of linear layers.

    Without flags: a perceptron on embedded digits, every layer a product of three; under a minute on two cores. Ends
    with accuracies, and with the effective rank of every layer's weight at first and after training.

    low-rank train --expand none
    low-rank train --data cifar10 --model cnn --depth 2 --factor-norm
    low-rank train --regulariser nuclear --strength 1e-4 --expand none
    """
    from low_rank.train import train as run

    return run(config)


@app.verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> int:
    """Measure a trained run: accuracies, ranks of all weights, and whether it equals its multiplied-out network."""
    from low_rank.train import evaluate as run

    return run(config)


@app.verb(VolumeConfig)
def volume(config: VolumeConfig) -> int:
    """Draw random networks and see how their effective rank falls with depth; beside the closed form for products.

    low-rank volume --n 64 --depths 1 2 4 8 16 32
    low-rank volume --nets features --n 128 --draws 50
    low-rank volume --nets features --activation tanh --skips block-scaled
    """
    from low_rank import commands

    return commands.volume(config)


@app.verb(RegressConfig)
def regress(config: RegressConfig) -> int:
    """Recover a low-rank map from too few samples by products of factors; the fit of least norm beside them.

    low-rank regress --rank 2 --draws 64
    low-rank regress --rank 32 --depths 2 16
    low-rank regress --n 8 --samples 5 --depths 2 300 --gain 0.5 --double
    """
    from low_rank import commands

    return commands.regress(config)


@app.verb(OptimizersConfig)
def optimizers(config: OptimizersConfig) -> int:
    """Bring the same products, or networks, to the same training error by many optimisers, and compare the ranks.

    --problem says what: products of matrices on a regression, ReLU networks on two classes of images, or both. --search
    adds networks found by drawing alone, on eight images; --cma adds evolution to the classification.

    low-rank optimizers --depths 1 8
    low-rank optimizers --problem classification --width 12 --cma 8
    low-rank optimizers --search 150
    """
    from low_rank import commands

    return commands.optimizers(config)


@app.verb(KernelsConfig, KERNELS_PRESETS)
def kernels(config: KernelsConfig) -> int:
    """Train networks of several depths and look at their kernels: rank over training, by layer, and in clustered order.

    low-rank kernels --data fashion --depths 1 2 4 8 16
    low-rank kernels --activation tanh
    low-rank kernels --skips 0 1 2
    low-rank kernels --model cnn-small --lrs 0.01 0.05 --batches 32 128 --noises 0 0.2
    """
    from low_rank import trained

    return trained.kernels(config)


@app.verb(CompareConfig, COMPARE_PRESETS)
def compare(config: CompareConfig) -> int:
    """Products of linear layers against penalties on weights, each at the setting that held-out samples choose.

    low-rank compare --seeds 5
    low-rank compare --lrs 0.02 0.05 0.1
    """
    from low_rank import trained

    return trained.compare(config)


@app.verb(CollapseConfig)
def collapse(config: CollapseConfig) -> int:
    """Multiply the factors out and write the plain network: a state dict that needs nothing of this package."""
    from low_rank.train import collapse as run

    return run(config)


@app.verb(RanksConfig)
def ranks(config: RanksConfig) -> int:
    """Every measure of rank for every weight of a run, or of a file with a state dict."""
    from low_rank.train import ranks as run

    return run(config)


@app.verb(ReproduceConfig)
def reproduce(config: ReproduceConfig) -> int:
    """Run the experiments behind the paper's claims, judge them, write results/<preset>.json and the figures.

    Presets: smoke, cpu, cpu-long, gpu, paper. Exits with 1 if a gated claim fails. Finished runs are kept and not run
    again.
    """
    from low_rank.experiments import LowRankStudy
    from shared.claims import reproduce as run

    return run(LowRankStudy(), config)


@app.verb(BenchConfig)
def bench(config: BenchConfig) -> int:
    """Race products multiplied out against products applied one by one, and the time that multiplying out takes."""
    from shared.cli import bench as run

    return run("low_rank", config)


def _listed(title: str, lines: Mapping[Any, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(["", "", f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in lines.items())])


train.__doc__ = (
    cleandoc(train.__doc__ or "")
    + _listed("Architectures (--model)", MODEL_DESCRIPTIONS)
    + f"\n\nActivations (--activation): {', '.join(ACTIVATIONS)}"
    + _listed("Penalties (--regulariser)", REGULARISERS)
    + _listed("Data (--data)", DATA_DESCRIPTIONS)
)
volume.__doc__ = (
    cleandoc(volume.__doc__ or "")
    + _listed("Weights (--init)", INITIALISATIONS)
    + f"\n\nActivations (--activation): {', '.join(ACTIVATIONS)}"
    + _listed("Skip connections (--skips)", SKIPS)
)
optimizers.__doc__ = cleandoc(optimizers.__doc__ or "") + _listed("Optimisers (--optimizers)", OPTIMISERS)

main = app.main
