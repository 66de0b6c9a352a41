"""The sizes of an experiment: networks, planner, episodes. Published ones of every environment, and smaller ones for
two cores. Imports no torch.

Published: from the authors' code (Section 5 of the paper and its repository). `cpu`: the smallest that still shows the
claims. `smoke`: does it run at all?
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from shared.config import UserError, check_range

TESTS = (0, 2, 4, 6, 8)  # adaptation iterations before which a policy is tested; once more after the last


@dataclass(frozen=True)
class Setting:
    """Sizes of one environment's experiment.

    Attributes:
        hidden: widths of the nets. decays: weight decay of every layer, one more.
        nets: E. particles: P, a multiple of E.
        candidates: N. elites: K. cem_iterations, alpha: of the cross-entropy method. horizon: H, steps of a plan.
        steps: T, of an episode.
        epochs: passes of a fit over everything met. batch: rows a step and net. fit_steps: in place of epochs.
        source_iterations, adapt_iterations: episodes, each followed by a fit. initial: of the source episodes, those
            with random actions.
        episodes: of an iteration. initial_episodes, initial_steps: of a random one, where they differ.
        walk: random actions are a slow walk instead of independent draws.
        adapt_steps: T of a target episode, where it differs.
        optimiser: of plans. source_candidates, source_horizon: N and H of the source phase, where they differ.
        activation: of the nets. probabilistic: they predict a variance too; else a mean alone, by squared error on
            normalised targets.
        fresh: every fit starts from new weights. noise: deviation of what is added to inputs and targets in a fit, in
            units of their spread.
        penalty: lambda, cost of a predicted catastrophic step.
        compile: plan by a compiled simulation.
        untrained_head: let a head vote that never met a catastrophe, with a warning: for runs too short to meet one.
        hit_wall_observation: duckietown: what is seen of the step that hits a wall, the pose that was `attempted` or
            the one `reverted` to.
        after_catastrophe: a source episode ends so many steps after its first catastrophe; None: it goes on.
        targets: domains to adapt to, the usual one first.

    Raises:
        UserError: a size that cannot be.
    """

    hidden: tuple[int, ...]
    decays: tuple[float, ...]
    horizon: int
    steps: int
    targets: tuple[float, ...]
    nets: int = 5
    particles: int = 20
    candidates: int = 400
    elites: int = 40
    cem_iterations: int = 5
    alpha: float = 0.1
    epochs: int = 5
    batch: int = 256
    fit_steps: int | None = None
    source_iterations: int = 50
    adapt_iterations: int = 10
    initial: int = 1
    after_catastrophe: int | None = None
    episodes: int = 1
    initial_episodes: int | None = None
    initial_steps: int | None = None
    walk: bool = False
    adapt_steps: int | None = None
    optimiser: Literal["cem", "mppi"] = "cem"
    source_candidates: int | None = None
    source_horizon: int | None = None
    activation: Literal["swish", "relu"] = "swish"
    probabilistic: bool = True
    fresh: bool = False
    noise: float = 0.0
    penalty: float = 1e4
    compile: bool = False
    untrained_head: bool = False
    hit_wall_observation: Literal["attempted", "reverted"] = "attempted"

    def __post_init__(self) -> None:
        for flag, value in (
            ("--nets", self.nets), ("--candidates", self.candidates), ("--cem-iterations", self.cem_iterations),
            ("--horizon", self.horizon), ("--episode-steps", self.steps), ("--fit-epochs", self.epochs),
            ("--fit-batch", self.batch), ("--fit-steps", self.fit_steps), ("--initial", self.initial),
            ("--source-iterations", self.source_iterations), ("--adapt-iterations", self.adapt_iterations),
            ("--episodes", self.episodes),
        ):  # fmt: skip
            check_range(flag, value, 0 if flag in ("--adapt-iterations", "--initial") else 1)
        check_range("--after-catastrophe", self.after_catastrophe, 0)
        if self.particles < 1 or self.particles % self.nets:
            raise UserError("--particles", self.particles, f"a positive multiple of the {self.nets} nets")
        if not 1 <= self.elites <= self.candidates:
            raise UserError("--elites", self.elites, f"1 to the {self.candidates} candidates")
        for width in self.hidden:
            check_range("--hidden", width, 1)
        if len(self.decays) != len(self.hidden) + 1:
            raise UserError("decays", list(self.decays), f"one for each of {len(self.hidden) + 1} layers")

    def in_source(self) -> Setting:
        """The setting of the source phase's planning."""
        return replace(
            self, candidates=self.source_candidates or self.candidates, horizon=self.source_horizon or self.horizon
        )

    def in_target(self) -> Setting:
        """The setting of the target's episodes."""
        return replace(self, steps=self.adapt_steps or self.steps)

    def at_random(self) -> Setting:
        """The setting of random episodes."""
        return replace(self, steps=self.initial_steps or self.steps)


USUAL_DECAYS = (1e-4, 2.5e-4, 2.5e-4, 5e-4)
PUBLISHED: dict[str, Setting] = {
    "cartpole": Setting((500, 500, 500), USUAL_DECAYS, 25, 200, (1.0, 1.25, 1.5, 2.0)),
    "duckietown": Setting((200, 200, 200), USUAL_DECAYS, 25, 125, (0.15,), source_iterations=100),
    "half-cheetah": Setting(
        (200,) * 4, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), 10, 1000, (5.0,),
        candidates=500, elites=50, epochs=10, source_iterations=100,
    ),
    "baoding": Setting(
        (300, 300), (0.0, 0.0, 0.0), 4, 100, (0.0255, 0.0265, 0.0275, 0.028, 0.0285, 0.029), particles=5,
        candidates=700, epochs=40, batch=512, source_iterations=102, adapt_iterations=15, episodes=30,
        initial_episodes=100, initial_steps=30, walk=True, adapt_steps=70, optimiser="mppi", source_candidates=1500,
        source_horizon=8, activation="relu", probabilistic=False, fresh=True, noise=0.01, penalty=500.0,
    ),
}  # fmt: skip
SMALL = {"candidates": 60, "elites": 6, "cem_iterations": 3, "particles": 5, "fit_steps": 200, "batch": 64}
CPU: dict[str, Setting] = {
    "cartpole": replace(
        PUBLISHED["cartpole"], hidden=(64, 64, 64), horizon=15, source_iterations=12, adapt_iterations=6,
        after_catastrophe=15, **SMALL,
    ),
    "duckietown": replace(
        PUBLISHED["duckietown"], hidden=(64, 64, 64), horizon=20, source_iterations=13, adapt_iterations=6, **SMALL
    ),
    "half-cheetah": replace(
        PUBLISHED["half-cheetah"], hidden=(64,) * 4, steps=200, source_iterations=10, adapt_iterations=4, **SMALL
    ),
    "baoding": replace(
        PUBLISHED["baoding"], hidden=(64, 64), steps=30, adapt_steps=30, source_iterations=6, adapt_iterations=3,
        episodes=6, initial_episodes=10, candidates=100, source_candidates=100, source_horizon=4, epochs=10,
    ),
}  # fmt: skip
GPU = {**PUBLISHED, "cartpole": replace(PUBLISHED["cartpole"], source_iterations=30)}


def _smoke(setting: Setting) -> Setting:
    return replace(
        setting, hidden=(16,), decays=(1e-4, 5e-4), nets=2, particles=4, candidates=20, elites=4, cem_iterations=2,
        horizon=5, steps=30, fit_steps=10, batch=32, source_iterations=2, adapt_iterations=1,
        episodes=min(setting.episodes, 2), initial_episodes=setting.initial_episodes and 2, adapt_steps=None,
        source_candidates=None, source_horizon=None, untrained_head=True,
    )  # fmt: skip


@dataclass(frozen=True)
class PolicySetting:
    """Sizes of the baselines that learn no model.

    Attributes:
        budget: environment steps of the source phase.
        episodes: source episodes of an update. maml_domains, maml_episodes: domains of a meta-iteration, and episodes
            of each before adapting, and again after.
    """

    budget: float = 2e6
    episodes: int = 16
    maml_domains: int = 20
    maml_episodes: int = 10

    def shares(self, method: str, steps: int) -> int:
        """Parts into which the budget is divided, one a step of the loop: updates that it pays for where all episodes
        have `steps` steps. Episodes that end before pay for several updates a part."""
        an_update = self.episodes * steps
        if method == "ppo-maml":
            an_update = 2 * self.maml_domains * self.maml_episodes * steps
        return max(1, round(self.budget / an_update))


POLICY_SETTINGS: dict[str, PolicySetting] = {
    "smoke": PolicySetting(480, 4, 2, 2),
    "cpu": PolicySetting(1.5e5, 16, 5, 4),
    "gpu": PolicySetting(),
    "paper": PolicySetting(),
}
SETTINGS: dict[str, dict[str, Setting]] = {
    "smoke": {name: _smoke(setting) for name, setting in PUBLISHED.items()},
    "cpu": CPU,
    "gpu": GPU,
    "paper": PUBLISHED,
}
