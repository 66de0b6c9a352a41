"""The command line: `superposition train`, ... Imports no torch; `superposition.train` and `.commands` do the work."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

from shared.claims import ReproduceConfig
from shared.cli import App, BenchConfig
from shared.image_names import DESCRIPTIONS as DATA_DESCRIPTIONS
from superposition.config import (
    METHOD_DESCRIPTIONS,
    STREAM_DESCRIPTIONS,
    TRAIN_PRESETS,
    EvaluateConfig,
    InspectConfig,
    NoiseConfig,
    PlotConfig,
    RetrieveConfig,
    SuperposeConfig,
    SweepConfig,
    TrainConfig,
)
from superposition.kinds import DESCRIPTIONS as KIND_DESCRIPTIONS

app = App("superposition", "Superposition of many models into one: one set of weights, a context a task (1902.05522).")


@app.verb(TrainConfig, TRAIN_PRESETS)
def train(config: TrainConfig) -> int:
    """Learn a stream of tasks in one network.

    Without flags: ten permutations of the pixels of 4,000 embedded digits, one after another, with binary contexts;
    under a minute on two cores. Ends with the accuracy on every task under its own key and under those of others.

    superposition train --kind rotation
    superposition train --method standard
    superposition train --stream rotating --period 500 --tasks 2
    """
    from superposition.train import train as run

    return run(config)


@app.verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> int:
    """Measure a trained run: every task under every key, and whether the right key can be guessed."""
    from superposition import commands

    return commands.evaluate(config)


@app.verb(SweepConfig)
def sweep(config: SweepConfig) -> int:
    """Run a grid of kinds, methods, widths, task counts and seeds; finished runs are not run again.

    superposition sweep --kinds binary rotation --methods standard --hidden-widths 64 256
    superposition sweep --experiment perm-units --lite
    """
    from superposition import commands

    return commands.sweep(config)


@app.verb(ReproduceConfig)
def reproduce(config: ReproduceConfig) -> int:
    """Run the experiments behind the paper's claims, judge them, write results/<preset>.json and the figures.

    Presets: smoke, cpu, cpu-long, gpu, paper. Exits with 1 if a gated claim fails. Finished runs are kept and not run
    again.
    """
    from shared.claims import reproduce as run
    from superposition.experiments import SuperpositionStudy

    return run(SuperpositionStudy(), config)


@app.verb(NoiseConfig)
def noise(config: NoiseConfig) -> int:
    """Retrieval noise: closed form beside Monte Carlo, and of networks that are superposed after training.

    superposition noise --models 2 8 32 --dims 64 1024
    superposition noise --offline 5
    """
    from superposition import commands

    return commands.noise(config)


@app.verb(RetrieveConfig)
def retrieve(config: RetrieveConfig) -> int:
    """Write the plain model that a context selects: a state dict that needs no contexts."""
    from superposition import commands

    return commands.retrieve(config)


@app.verb(SuperposeConfig)
def superpose(config: SuperposeConfig) -> int:
    """Merge plain models into one, and measure each alone and in superposition."""
    from superposition import commands

    return commands.superpose_files(config)


@app.verb(InspectConfig, TRAIN_PRESETS)
def inspect(config: InspectConfig) -> int:
    """Count numbers without training: shared, for each task, and of as many separate networks."""
    from superposition import commands

    return commands.inspect(config)


@app.verb(PlotConfig)
def plot(config: PlotConfig) -> int:
    """Draw the accuracy on the first task of several runs together."""
    from superposition import commands

    return commands.plot(config)


@app.verb(BenchConfig)
def bench(config: BenchConfig) -> int:
    """Race a training step against the authors' way of feeding data and against Avalanche; prints ratios."""
    from shared.cli import bench as run

    return run("superposition", config)


def _listed(title: str, lines: Mapping[Any, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(["", "", f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in lines.items())])


train.__doc__ = (
    cleandoc(train.__doc__ or "")
    + _listed("Contexts (--kind)", KIND_DESCRIPTIONS)
    + _listed("Methods (--method)", METHOD_DESCRIPTIONS)
    + _listed("Streams (--stream)", STREAM_DESCRIPTIONS)
    + _listed("Data (--data)", DATA_DESCRIPTIONS)
)

main = app.main
