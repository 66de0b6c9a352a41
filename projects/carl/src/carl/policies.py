"""Policies without a model, and the episodes that they are learned from: what PPO, RARL and MAML share.

Rollouts are whole episodes of several environments side by side, seeded by the iteration: nothing of them outlives an
update, and a run can be resumed between any two.

Dimensions: B episodes side by side, T steps, f features, a action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from carl.domains import Phase
from carl.episodes import Episode, make_env
from carl.noise import mixed
from carl.task import PlanningTask

HIDDEN = 64


class GaussianPolicy(nn.Module):
    """A perceptron of 2 x 64 tanh units gives the mean, in units of half the action box; one log-deviation for each
    action, whatever the state.

    Args:
        features: f. actions: a. scale: half the width of the action box.
    """

    mean_in: Tensor
    std_in: Tensor

    def __init__(self, features: int, actions: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.net = perceptron(features, actions)
        self.log_std = nn.Parameter(torch.full((actions,), -0.5))
        self.register_buffer("mean_in", torch.zeros(features))
        self.register_buffer("std_in", torch.ones(features))

    @torch.no_grad()
    def normalise(self, features: Tensor) -> None:
        """Take mean and spread of inputs (n, f) from source episodes."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        self.mean_in.copy_(mean)
        self.std_in.copy_(std.clamp(min=1e-3))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the action, in units of `scale`."""
        return self.net((features - self.mean_in) / self.std_in), self.log_std.exp().expand(*features.shape[:-1], -1)


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """2 x 64 tanh units; the last layer starts near zero."""
    last = nn.Linear(HIDDEN, outputs)
    with torch.no_grad():
        last.weight.mul_(0.01)
        last.bias.zero_()
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), last)


def log_density(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of actions (..., a) under independent normals: (...)."""
    z = (action - mean) / std
    return (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


Act = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (B, f) to mean and deviation."""


@dataclass
class Paths:
    """Episodes side by side, padded to the longest.

    Attributes:
        states: (B, T + 1, s). actions: (B, T, a) in units of half the box, before clipping. log_prob: (B, T).
        rewards, catastrophes: (B, T). alive: (B, T), which steps were taken. terminated: (B,) ended by themselves
            rather than by the clock. unstable: (B,) whose simulation broke down: it ends before, and is not learned
            from. push: (B, T, p) of the adversary and push_log_prob (B, T), where there is one.
        domains, seed, phase: of the start.
    """

    states: Tensor
    actions: Tensor
    log_prob: Tensor
    rewards: Tensor
    catastrophes: Tensor
    alive: Tensor
    terminated: Tensor
    unstable: Tensor
    domains: tuple[float, ...]
    seed: int
    phase: Phase
    push: Tensor | None = None
    push_log_prob: Tensor | None = None

    @property
    def learned(self) -> Tensor:
        """(B, T): the steps to learn from."""
        return self.alive & ~self.unstable[:, None]

    @property
    def steps(self) -> int:
        """Steps to learn from, in all."""
        return int(self.learned.sum())

    def returns(self) -> list[float]:
        """Undiscounted return of every episode."""
        return (self.rewards * self.alive).sum(dim=1).tolist()

    def episodes(self, scale: float) -> list[Episode]:
        """The same as episodes, for accounts and figures."""
        found = []
        for b, domain in enumerate(self.domains):
            n = int(self.alive[b].sum())
            found.append(
                Episode(
                    domain, self.phase, self.seed, self.states[b, : n + 1].float().numpy(),
                    (self.actions[b, :n].clamp(-1, 1) * scale).float().numpy(), self.rewards[b, :n].double().numpy(),
                    self.catastrophes[b, :n].bool().numpy(), bool(self.unstable[b]),
                )
            )  # fmt: skip
        return found


@torch.no_grad()
def rollout(
    act: Act,
    env: str,
    task: PlanningTask,
    domains: Sequence[float],
    phase: Phase,
    seed: int,
    steps: int,
    push: Act | None = None,
    greedy: bool = False,
    after: int | None = None,
    starts: Sequence[int] | None = None,
) -> Paths:
    """Whole episodes, one a domain.

    Args:
        act: the policy. env, task: where it acts. domains: one a episode. phase: see `Episode`.
        seed: of first states and actions. steps: T at most.
        push: the adversary's policy. greedy: take the mean.
        after: a source episode ends so many steps after its first catastrophe; None: it goes on.
        starts: seeds of the episodes, whose first states are then those of `run_episodes` under them.
    """
    envs = [make_env(env) for _ in domains]
    generator = torch.Generator().manual_seed(mixed(seed, "act"))
    resets = [mixed(s, "reset") for s in starts] if starts else [mixed(seed, "reset", b) for b in range(len(envs))]
    first = [
        each.reset(seed=reset % 2**31, options={"domain": domain, "phase": phase})[0]
        for each, domain, reset in zip(envs, domains, resets, strict=True)
    ]
    B, scale = len(envs), task.high
    state = torch.from_numpy(np.asarray(first, np.float32))
    alive = torch.ones(B, dtype=torch.bool)
    terminated, unstable = torch.zeros(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)
    since = torch.full((B,), -1)  # steps since the first catastrophe
    rows: list[tuple[Tensor, ...]] = []
    pushes: list[tuple[Tensor, Tensor]] = []
    states = [state]
    for _ in range(steps):
        features = task.features(state)
        mean, std = act(features)
        action = mean if greedy else mean + std * torch.randn(mean.shape, generator=generator)
        taken = action.clamp(-1, 1) * scale
        pushed = None
        if push is not None:
            of_mean, of_std = push(features)
            pushed = of_mean + of_std * torch.randn(of_mean.shape, generator=generator)
            pushes.append((pushed, log_density(pushed, of_mean, of_std)))
        following, reward = state.clone(), torch.zeros(B)
        catastrophe, was = torch.zeros(B, dtype=torch.bool), alive.clone()
        for b in torch.nonzero(alive).flatten().tolist():
            if pushed is not None:
                envs[b].disturb(pushed[b].numpy())
            seen, gained, done, _, info = envs[b].step(taken[b].numpy())
            if info["unstable"]:
                was[b] = alive[b] = False  # the broken step did not happen
                unstable[b] = True
                continue
            following[b], reward[b] = torch.from_numpy(seen.astype(np.float32)), gained
            catastrophe[b], terminated[b] = bool(info["catastrophe"]), done
            since[b] += int(since[b] >= 0 or bool(catastrophe[b]))
            over = phase == "source" and after is not None and int(since[b]) >= after
            alive[b] = not done and not over
        rows.append((action, log_density(action, mean, std), reward, catastrophe, was))
        state = following
        states.append(state)
        if not bool(alive.any()):
            break
    for each in envs:
        each.close()
    actions, log_prob, rewards, catastrophes, taken_steps = (torch.stack(c, dim=1) for c in zip(*rows, strict=True))
    of_push, of_density = (torch.stack(c, dim=1) for c in zip(*pushes, strict=True)) if pushes else (None, None)
    return Paths(
        torch.stack(states, dim=1), actions, log_prob, rewards, catastrophes, taken_steps, terminated, unstable,
        tuple(domains), seed, phase, of_push, of_density,
    )  # fmt: skip


def advantages(paths: Paths, values: Tensor, discount: float = 0.99, trace: float = 0.97) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016) and the returns they imply, (B, T) each.

    Args:
        paths: episodes. values: (B, T + 1) of the states; that of an episode's last state counts where the clock ended
            the episode, and not where it ended by itself.
        discount, trace: gamma and lambda.
    """
    B, T = paths.rewards.shape
    found = torch.zeros(B, T)
    running = torch.zeros(B)
    length = paths.alive.sum(dim=1)
    for t in range(T - 1, -1, -1):
        final = (t == length - 1) & paths.terminated
        ahead = values[:, t + 1] * (~final)
        delta = paths.rewards[:, t] + discount * ahead - values[:, t]
        keep = (t < length - 1).float()  # beyond the last step nothing flows back
        running = torch.where(paths.alive[:, t], delta + discount * trace * keep * running, torch.zeros(()))
        found[:, t] = running
    return found, found + values[:, :T]


def flat(paths: Paths, *columns: Tensor) -> list[Tensor]:
    """Columns (B, T, ...) as rows of the steps to learn from, (n, ...)."""
    return [column[paths.learned] for column in columns]


def called(module: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> Act:
    """A policy as a function, with other parameters in place of its own."""
    if parameters is None:
        return module
    return lambda features: torch.func.functional_call(module, dict(parameters), (features,))
