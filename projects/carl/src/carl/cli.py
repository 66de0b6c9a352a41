"""The command line: `carl train`, `carl adapt`, ... Imports no torch; `carl.train` and `carl.commands` do the work."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

from carl.config import (
    ENV_DESCRIPTIONS,
    METHOD_DESCRIPTIONS,
    TRAIN_PRESETS,
    AdaptConfig,
    EnvsConfig,
    EvaluateConfig,
    RecordConfig,
    SweepConfig,
    TrainConfig,
)
from shared.claims import ReproduceConfig
from shared.cli import App, BenchConfig

app = App(
    "carl", "Cautious adaptation: planning that is pessimistic about what an ensemble does not know (2008.06622)."
)


@app.verb(TrainConfig, TRAIN_PRESETS)
def train(config: TrainConfig) -> int:
    """Train in the source domains, then adapt one variant to one target. A step is an episode and a fit.

    Without flags: CARL (State) on cartpole, two to three minutes on two cores. Ends with what happened in the target,
    and figures in the run folder; `adapt` and `evaluate` go on from what the source phase left.

    carl train --risk reward --gamma 70 --target 1.5
    carl train --env duckietown --method mb-finetune
    carl train --preset paper --env half-cheetah --seeds 5
    """
    from carl.train import train as run

    return run(config)


@app.verb(AdaptConfig)
def adapt(config: AdaptConfig) -> int:
    """Branch another variant off a run's source phase and take it through the target.

    carl adapt runs/carl/... --target 1.5 --risk reward --gamma 50
    carl adapt runs/carl/... --method mb-finetune
    """
    from carl import commands

    return commands.adapt(config)


@app.verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> int:
    """Test episodes of a run's model at some targets, under several cautions that meet the same random numbers; and
    how well its catastrophe head is calibrated there.

    carl evaluate runs/carl/... --targets 1.0 1.5 --risks none reward state --episodes 20
    """
    from carl import commands

    return commands.evaluate(config)


@app.verb(SweepConfig)
def sweep(config: SweepConfig) -> int:
    """Adapt from one source phase over a grid of targets, gamma, beta and lambda; finished points are kept.

    carl sweep runs/carl/... --risks state --betas 0.25 0.5 0.75
    """
    from carl import commands

    return commands.sweep(config)


@app.verb(ReproduceConfig)
def reproduce(config: ReproduceConfig) -> int:
    """Run the experiments behind the paper's claims, judge them, write results/<preset>.json and the figures.

    Presets: smoke, cpu, cpu-long (the baselines that learn no model), gpu, paper. Exits with 1 if a gated claim fails.
    Finished runs are kept and not run again.
    """
    from carl.experiments import CarlStudy
    from shared.claims import reproduce as run

    return run(CarlStudy(), config)


@app.verb(EnvsConfig)
def envs(config: EnvsConfig) -> int:
    """List the environments: hidden parameter, source range, targets, what a catastrophe is."""
    from carl import commands

    return commands.envs(config)


@app.verb(RecordConfig)
def record(config: RecordConfig) -> int:
    """Run one episode of a trained model and write its trajectory, with the votes for every step of every plan."""
    from carl import commands

    return commands.record(config)


@app.verb(BenchConfig)
def bench(config: BenchConfig) -> int:
    """Race planning against a well-kept library's and a batch of problems against one by one; prints ratios."""
    from shared.cli import bench as run

    return run("carl", config)


def _listed(title: str, lines: Mapping[Any, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(["", "", f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in lines.items())])


train.__doc__ = (
    cleandoc(train.__doc__ or "")
    + _listed("Environments (--env)", ENV_DESCRIPTIONS)
    + _listed("Methods (--method)", METHOD_DESCRIPTIONS)
)

main = app.main
