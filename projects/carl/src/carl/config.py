"""What can be set: one frozen dataclass a verb, and the presets. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from carl.settings import POLICY_SETTINGS, SETTINGS, PolicySetting, Setting
from shared.config import RunConfig, UserError, check_choice, check_range

EnvName = Literal["cartpole", "duckietown", "half-cheetah", "baoding"]
ENVS: tuple[EnvName, ...] = get_args(EnvName)
RiskFlag = Literal["none", "reward", "state", "reward+state"]
RISK_FLAGS: tuple[RiskFlag, ...] = get_args(RiskFlag)
Method = Literal["carl", "mb-finetune", "mb-frozen", "pets-scratch", "ppo-dr", "rarl", "rarl-finetune", "ppo-maml"]
METHODS: tuple[Method, ...] = get_args(Method)
MODEL_FREE: tuple[Method, ...] = ("ppo-dr", "rarl", "rarl-finetune", "ppo-maml")
HeadLoss = Literal["scaled", "pos_weight", "plain"]
AdaptHead = Literal["joint", "frozen"]

METHOD_DESCRIPTIONS: dict[Method, str] = {
    "carl": "the paper's: source phase, then cautious planning in the target (--risk)",
    "mb-finetune": "the same source phase and fits, without caution",
    "mb-frozen": "the same source phase, no caution and no fits in the target",
    "pets-scratch": "no source phase: learns in the target alone",
    "ppo-dr": "PPO over the source domains, PPO in the target",
    "rarl": "PPO against a learning adversary over the source domains, as it is in the target",
    "rarl-finetune": "the same, and PPO in the target",
    "ppo-maml": "meta-learned over the source domains, one policy-gradient step a target episode",
}
ENV_DESCRIPTIONS: dict[EnvName, str] = {
    "cartpole": "a pole of unknown length on a cart (MuJoCo)",
    "duckietown": "a car of unknown width turns a corner (planar kinematics)",
    "half-cheetah": "gymnasium's half-cheetah with one unknown motor disabled (MuJoCo)",
    "baoding": "a hand turns two balls of unknown radius on its palm (MuJoCo; extra `hand`)",
}


@dataclass(frozen=True, kw_only=True)
class CautionFlags:
    """What the planner is cautious of in the target. Shared by `train`, `adapt` and `evaluate`."""

    risk: RiskFlag = "state"
    """none; reward: the worst particles count; state: predicted catastrophes cost; reward+state: both, an
    extension."""
    gamma: float = 50.0
    """reward: percent of the particles, the best ones, that are left out."""
    beta: float = 0.5
    """state: a net votes for a catastrophe above this probability."""
    penalty: float | None = None
    """state: lambda, cost of a predicted catastrophic step. Default: the published one, 10000, for baoding 500."""

    def penalty_of(self, usual: float) -> float:
        """lambda, where `usual` is the environment's."""
        return usual if self.penalty is None else self.penalty

    def check_caution(self) -> None:
        """Raise `UserError` for values out of range."""
        check_choice("--risk", self.risk, RISK_FLAGS)
        if not 0 <= self.gamma < 100:
            raise UserError("--gamma", self.gamma, "0 <= gamma < 100, percent of particles left out")
        check_range("--beta", self.beta, 0, 1)
        check_range("--penalty", self.penalty, 0, float("inf"), open_high=True)


RENAMED = {"steps": "episode_steps", "epochs": "fit_epochs", "batch": "fit_batch"}
"""Fields of `Setting` whose flags are called otherwise: `--steps` and `--epochs` are the loop's."""


@dataclass(frozen=True)
class SizeFlags:
    """Sizes in place of the preset's; see `carl.settings`. Shared by `train`, `adapt` and `sweep`."""

    hidden: tuple[int, ...] | None = None
    """Widths of the nets' hidden layers."""
    nets: int | None = None
    """E, nets of the ensemble."""
    particles: int | None = None
    """P, a multiple of --nets."""
    candidates: int | None = None
    """N, plans tried an iteration of the cross-entropy method."""
    elites: int | None = None
    """K, plans kept of them."""
    cem_iterations: int | None = None
    """Iterations of the cross-entropy method."""
    horizon: int | None = None
    """H, steps of a plan."""
    episode_steps: int | None = None
    """T, steps of an episode at most."""
    fit_epochs: int | None = None
    """Passes of a fit over everything that was met."""
    fit_batch: int | None = None
    """Rows a step and net."""
    fit_steps: int | None = None
    """Steps of a fit, in place of --fit-epochs; 0 to go by epochs."""
    source_iterations: int | None = None
    """Iterations of the source phase: an episode (for baoding several) and a fit."""
    adapt_iterations: int | None = None
    """Iterations in the target, likewise."""
    episodes: int | None = None
    """Episodes of an iteration."""
    initial: int | None = None
    """Source iterations with random actions."""
    after_catastrophe: int | None = None
    """A source episode ends so many steps after its first catastrophe. Default: as the preset, which is never but for
    cartpole on a CPU; -1: never."""

    def sized(self, env: str, preset: str) -> Setting:
        """The preset's setting of an environment, with what the flags say."""
        setting = SETTINGS[preset][env]
        changes = {}
        for each in dataclasses.fields(Setting):
            value = getattr(self, RENAMED.get(each.name, each.name), None)
            if value is not None:
                changes[each.name] = value
        if changes.get("fit_steps") == 0 or ("fit_steps" not in changes and "epochs" in changes):
            changes["fit_steps"] = None
        if changes.get("after_catastrophe") == -1:
            changes["after_catastrophe"] = None
        if "hidden" in changes:
            decays = setting.decays
            middle = [decays[1]] * max(len(changes["hidden"]) - 1, 0)
            changes["decays"] = (decays[0], *middle, decays[-1])[-(len(changes["hidden"]) + 1) :]
        return replace(setting, **changes)


@dataclass(frozen=True)
class TrainConfig(SizeFlags, CautionFlags, RunConfig):
    """One run: the source phase, then adaptation of one variant to one target."""

    steps: int | None = field(default=None, init=False)
    """Worked out: a step is an episode, of --source-iterations and then of --adapt-iterations."""
    epochs: float | None = field(default=None, init=False)
    """A step is an episode: --source-iterations, --adapt-iterations."""
    accumulate: int = field(default=1, init=False)
    """Nothing to split: see --fit-batch."""
    compile: bool = False
    """Plan by a simulation that torch.compile has compiled: a minute's work at first, then less a plan; on a GPU the
    steps are replayed as CUDA graphs. The numbers differ by rounding."""
    devices: int = field(default=1, init=False)
    """Seeds and variants are planned in one batch on one device: --seeds."""
    env: EnvName = "cartpole"
    """Environment."""
    method: Method = "carl"
    """CARL, or a baseline."""
    target: float | None = None
    """The target's dynamics parameter. Default: the environment's first (see `envs`)."""
    in_distribution: bool = False
    """Allow a target inside the source range."""
    catastrophe_loss: HeadLoss = "scaled"
    """Loss of the catastrophe head: the authors' code's, with weighted positives, or plain cross-entropy."""
    adapt_head: AdaptHead = "joint"
    """joint: the head keeps learning in the target; frozen: the source-trained network votes to the end."""
    against: tuple[Literal["mb-finetune", "mb-frozen", "pets-scratch"], ...] = ("mb-finetune", "pets-scratch")
    """carl: baselines that go through the target beside it, planned in the same batch, for the table and the figure;
    nothing for none."""
    separate_sources: bool = False
    """Train methods that look for no catastrophes without the catastrophe head, as the authors do, those of --against
    in a source phase of their own, which is kept in checkpoints alone; else all have it, and one source phase."""
    hit_wall_observation: Literal["attempted", "reverted"] | None = None
    """duckietown: what is seen of the step that hits a wall. Default: attempted, the authors' code's quirk."""
    source_range: tuple[float, float] | None = None
    """Ends of the source range, in place of the environment's."""
    source_domains: int | None = None
    """So many source domains, drawn once, in place of a new one for every episode."""
    tests: int = 1
    """Test episodes before adaptation iterations 0, 2, 4, 6, 8 and after the last; 0 for none."""
    seeds: int = 1
    """Seeds that are learned side by side, from --seed on; metrics are their means."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--env", self.env, ENVS)
        check_choice("--method", self.method, METHODS)
        check_choice("--catastrophe-loss", self.catastrophe_loss, get_args(HeadLoss))
        check_choice("--adapt-head", self.adapt_head, get_args(AdaptHead))
        check_range("--tests", self.tests, 0)
        check_range("--seeds", self.seeds, 1)
        check_range("--source-domains", self.source_domains, 1)
        for name in self.against:
            check_choice("--against", name, ("mb-finetune", "mb-frozen", "pets-scratch"))
        self.check_caution()
        if self.hit_wall_observation is not None:
            check_choice("--hit-wall-observation", self.hit_wall_observation, ("attempted", "reverted"))
            if self.env != "duckietown" or self.method in MODEL_FREE:
                valid = "with --env duckietown and a method that plans"
                raise UserError("--hit-wall-observation", self.hit_wall_observation, valid)
        if self.compile and self.method in MODEL_FREE:
            raise UserError("--compile", self.compile, "a method that plans: this one has no simulation to compile")
        if self.precision in ("bf16", "fp16"):
            raise UserError("--precision", self.precision, ["auto", "fp32"], "Plans are compared in 32 and 64 bits.")
        setting = self.setting()
        object.__setattr__(self, "steps", self.source_steps() + setting.adapt_iterations)

    def setting(self) -> Setting:
        """Sizes of the run."""
        return self.sized(self.env, self.preset)

    def with_head(self) -> bool:
        """Whether the catastrophe head is trained."""
        return not self.separate_sources or (self.method == "carl" and "state" in self.risk)

    def source_steps(self) -> int:
        """Iterations of the source phase: episodes, or parts of a policy's budget."""
        if self.method == "pets-scratch":
            return 0
        setting = self.setting()
        if self.method in MODEL_FREE and self.source_iterations is None:
            return self.policy_setting().shares(self.method, setting.steps)
        return setting.source_iterations

    def policy_setting(self) -> PolicySetting:
        """Sizes of the baselines that learn no model."""
        return POLICY_SETTINGS[self.preset]

    def target_domain(self) -> float:
        """The target, checked against the sources by whoever has the environment."""
        return self.target if self.target is not None else self.setting().targets[0]


TRAIN_PRESETS: dict[str, TrainConfig] = {name: TrainConfig(preset=name) for name in ("cpu", "smoke", "gpu", "paper")}  # pyright: ignore


@dataclass(frozen=True)
class AdaptConfig(CautionFlags):
    """Flags of `adapt`."""

    run: Path
    """Run folder of a source phase, written by `train`."""
    method: Literal["carl", "mb-finetune", "mb-frozen", "pets-scratch"] = "carl"
    """Which variant branches off."""
    target: float | None = None
    """The target's dynamics parameter. Default: the environment's first."""
    in_distribution: bool = False
    """Allow a target inside the source range."""
    adapt_head: AdaptHead = "joint"
    """frozen: the source-trained network votes to the end."""
    iterations: int | None = None
    """Target episodes. Default: the run's."""
    tests: int = 1
    """Test episodes a test point."""
    seed: int | None = None
    """Of first states and random numbers in the target. Default: the run's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    out: Path | None = None
    """Folder of the results. Default: <run>/adapt-<variant>-<target>."""
    quiet: bool = False
    """No progress bar, no table."""
    force: bool = False
    """Replace earlier results there."""

    def __post_init__(self) -> None:
        self.check_caution()
        check_choice("--method", self.method, ("carl", "mb-finetune", "mb-frozen", "pets-scratch"))
        check_choice("--adapt-head", self.adapt_head, get_args(AdaptHead))
        check_range("--iterations", self.iterations, 0)
        check_range("--tests", self.tests, 0)
        check_range("--seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class EvaluateConfig(CautionFlags):
    """Flags of `evaluate`."""

    run: Path
    """Run folder, written by `train`."""
    targets: tuple[float, ...] = ()
    """Targets to test on. Default: all that the environment lists."""
    in_distribution: bool = False
    """Allow targets inside the source range."""
    risk: RiskFlag = field(default="state", init=False)
    """Several are compared: --risks."""
    phase: Literal["source", "adapted"] = "source"
    """source: what the source phase left; adapted: what the run's target episodes have made of it."""
    after: int = 0
    """Few-shot: in every target each caution first learns from so many episodes (--phase source), with the run's
    --adapt-head. 0: zero-shot."""
    risks: tuple[RiskFlag, ...] = ("none", "reward", "state")
    """Cautions that meet the same first states and random numbers; a baseline without a model has none."""
    episodes: int = 5
    """Test episodes a target and caution."""
    seed: int = 1000
    """Of first states and random numbers."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    out: Path | None = None
    """Write the metrics to this JSON file."""
    force: bool = False
    """Replace an existing file."""
    quiet: bool = False
    """No table."""

    def __post_init__(self) -> None:
        self.check_caution()
        check_range("--episodes", self.episodes, 1)
        check_range("--after", self.after, 0)
        if self.after and self.phase == "adapted":
            raise UserError("--after", self.after, "with --phase source: a run's target episodes are those it was told")
        if not self.risks:
            raise UserError("--risks", "none", RISK_FLAGS)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        for risk in self.risks:
            check_choice("--risks", risk, RISK_FLAGS)


@dataclass(frozen=True)
class SweepConfig:
    """Flags of `sweep`."""

    run: Path
    """Run folder of a source phase, written by `train`."""
    risks: tuple[RiskFlag, ...] = ("none", "reward", "state")
    """Cautions."""
    gammas: tuple[float, ...] = (50.0,)
    """reward: percent of particles left out."""
    betas: tuple[float, ...] = (0.5,)
    """state: a net votes above this probability."""
    penalties: tuple[float, ...] = ()
    """state: lambda. Default: the published one."""
    targets: tuple[float, ...] = ()
    """Targets. Default: all that the environment lists."""
    in_distribution: bool = False
    """Allow targets inside the source range."""
    iterations: int | None = None
    """Target episodes of each. Default: the run's."""
    seeds: int = 1
    """Seeds of first states and random numbers; they go round the seeds of the run's source phase."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    out: Path | None = None
    """Folder of sweep.json and figures. Default: <run>/sweep."""
    quiet: bool = False
    """No progress bar, no table."""
    force: bool = False
    """Run finished points again."""

    def __post_init__(self) -> None:
        for risk in self.risks:
            check_choice("--risks", risk, RISK_FLAGS)
        for gamma in self.gammas:
            if not 0 <= gamma < 100:
                raise UserError("--gammas", gamma, "0 <= gamma < 100, percent of particles left out")
        for beta in self.betas:
            check_range("--betas", beta, 0, 1)
        for penalty in self.penalties:
            check_range("--penalties", penalty, 0, float("inf"), open_high=True)
        for flag, values in (("--risks", self.risks), ("--gammas", self.gammas), ("--betas", self.betas)):
            if not values:
                raise UserError(flag, "none", "at least one value")
        check_range("--seeds", self.seeds, 1)
        check_range("--iterations", self.iterations, 1)


@dataclass(frozen=True)
class EnvsConfig:
    """Flags of `envs`."""

    quiet: bool = False
    """No table."""


@dataclass(frozen=True)
class RecordConfig(CautionFlags):
    """Flags of `record`."""

    run: Path
    """Run folder, written by `train`."""
    target: float | None = None
    """Domain of the episode. Default: the run's target."""
    in_distribution: bool = False
    """Allow a target inside the source range."""
    phase: Literal["source", "adapted"] = "adapted"
    """Which of the run's two models plans; of several seeds the first."""
    seed: int = 1000
    """Of first state and random numbers."""
    video: bool = False
    """Also an animated GIF; MuJoCo needs OpenGL for it (MUJOCO_GL)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    out: Path | None = None
    """Where the trajectory goes (.npz). Default: <run>/episode.npz."""
    force: bool = False
    """Replace an existing file."""
    quiet: bool = False
    """No table."""

    def __post_init__(self) -> None:
        self.check_caution()
        check_range("--seed", self.seed, 0, 2**63 - 1)
        if self.out is not None and self.out.suffix != ".npz":
            raise UserError("--out", self.out, "a file that ends in .npz")
