"""The command line: `rpg train`, `rpg reproduce`, ... Imports no torch; `rpg.train` and `rpg.commands` do the work."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

from rpg.baseline_names import BASELINES
from rpg.config import (
    INSPECT_PRESETS,
    SWEEP_PRESETS,
    TRAIN_PRESETS,
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
from rpg.data.names import DESCRIPTIONS as DATA_DESCRIPTIONS
from rpg.hosts.names import HOST_DESCRIPTIONS
from shared.claims import ReproduceConfig
from shared.cli import App, BenchConfig
from shared.config import UserError

app = App("rpg", "Recurrent Parameter Generators: networks whose weights come from a ring (arXiv 2107.07110).")


@app.verb(TrainConfig, TRAIN_PRESETS)
def train(config: TrainConfig) -> int:
    """Train one network from a ring, or a baseline of as many parameters.

    Without flags: an eighth-size ring behind a residual network on 4,000 embedded digits, about a minute on two cores.
    Ends with the accounts of parameters and multiply-adds, the test metrics, and figures in the run folder.

    rpg train --data cifar10 --compression 8
    rpg train --host mlp --recipe adam --ring-init unit --ring-size 3000
    rpg train --method narrow --compression 8
    """
    from rpg.train import train as run

    return run(config)


@app.verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> int:
    """Measure a trained run on its test and training sets, and on corrupted images."""
    from rpg import commands

    return commands.evaluate(config)


@app.verb(SweepConfig, SWEEP_PRESETS)
def sweep(config: SweepConfig) -> int:
    """Run a grid of ring sizes, plans, hosts, methods and seeds; finished runs are not run again.

    Writes <out>/sweep.json, which `fit` and `plot` read. Default for --out: runs/rpg/sweep.
    """
    from rpg import commands

    return commands.sweep(config)


@app.verb(ReproduceConfig)
def reproduce(config: ReproduceConfig) -> int:
    """Run the experiments behind the paper's claims, judge them, write results/<preset>.json and the figures.

    Presets: smoke, cpu, cpu-long, gpu, paper. Exits with 1 if a gated claim fails. Finished runs are kept and not run
    again.
    """
    from rpg.experiments import RpgStudy
    from shared.claims import reproduce as run

    return run(RpgStudy(), config)


@app.verb(InspectConfig, INSPECT_PRESETS)
def inspect(config: InspectConfig) -> int:
    """Show the accounts of a model without training it: N, M, parameters, uses of the ring, multiply-adds, bytes."""
    from rpg import commands

    return commands.inspect(config)


@app.verb(PruneConfig)
def prune(config: PruneConfig) -> int:
    """Prune a trained ring (fewer free parameters) or its generated weights (fewer multiply-adds)."""
    from rpg import commands

    return commands.prune(config)


@app.verb(QuantizeConfig)
def quantize(config: QuantizeConfig) -> int:
    """Store a trained ring in 8 bits and measure what that costs."""
    from rpg import commands

    return commands.quantize(config)


@app.verb(ExportConfig)
def export(config: ExportConfig) -> int:
    """Write a trained model as a dense state dict, or as a compact model file."""
    from rpg import commands

    return commands.export(config)


@app.verb(KeyConfig)
def key(config: KeyConfig) -> int:
    """Make a key, try keys on a trained run, or check a key against a model file.

    Without flags: prints a new random key for `train --key`. See `rpg.security` for what a key protects and what not.
    """
    if config.run is None and config.model_file is None:
        if config.key is not None:
            raise UserError("--key", config.key, "with --run or --model-file: without them a new key is made")
        from rpg.security import make_key  # needs no torch

        print(make_key())
        return 0
    from rpg import commands

    return commands.key(config)


@app.verb(FitConfig)
def fit(config: FitConfig) -> int:
    """Fit the log-linear law and the power law to the results of a sweep or a reproduction."""
    from rpg import commands

    return commands.fit(config)


@app.verb(PlotConfig)
def plot(config: PlotConfig) -> int:
    """Draw the figures of a run, a sweep or a reproduction again."""
    from rpg import commands

    return commands.plot(config)


@app.verb(BenchConfig)
def bench(config: BenchConfig) -> int:
    """Race the generator against the authors' formulation, side by side; prints ratios."""
    from shared.cli import bench as run

    return run("rpg", config)


def _listed(title: str, lines: Mapping[Any, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(["", "", f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in lines.items())])


for _verb in (train, sweep, inspect):
    _verb.__doc__ = (
        cleandoc(_verb.__doc__ or "")
        + _listed("Hosts (--host)", HOST_DESCRIPTIONS)
        + _listed("Baselines (--method, unless a plan or a host is named)", BASELINES)
        + _listed("Data (--data)", DATA_DESCRIPTIONS)
    )

main = app.main
