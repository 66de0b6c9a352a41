"""The baselines without a model: estimates in closed form, gradients against differences, learning on a bandit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carl.cartpole import Cartpole
from carl.episodes import Start, run_episodes
from carl.maml import INNER_RATE, MAML, linear_baseline, scored
from carl.policies import GaussianPolicy, Paths, advantages, called, log_density, rollout
from carl.ppo import PPO, clipped_loss
from carl.rarl import RARL, TURN
from carl.settings import SETTINGS
from carl.task import CartpoleTask, task_of

TASK = CartpoleTask()


def paths(rewards: list[list[float]], lengths: list[int], terminated: list[bool]) -> Paths:
    reward = torch.tensor(rewards)
    B, T = reward.shape
    alive = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(0)
    states, actions = torch.randn(B, T + 1, 4, generator=generator), torch.randn(B, T, 1, generator=generator)
    zero = torch.zeros(B, T)
    return Paths(
        states, actions, zero, reward, zero.bool(), alive, torch.tensor(terminated), zero[:, 0].bool(),
        (0.6,) * B, 0, "source",
    )  # fmt: skip


def test_advantages_are_the_sum_of_discounted_errors_and_stop_where_an_episode_ends() -> None:
    made = paths([[1.0, 2.0, 3.0], [1.0, 5.0, 9.0]], [3, 2], [True, False])
    values = torch.tensor([[0.5, 1.0, 1.5, 7.0], [0.2, 0.4, 0.6, 8.0]])
    gained, targets = advantages(made, values, discount=0.9, trace=0.8)
    d2 = 3.0 - 1.5  # ended by itself: the state after counts nothing
    d1, d0 = 2.0 + 0.9 * 1.5 - 1.0, 1.0 + 0.9 * 1.0 - 0.5
    expected = [d0 + 0.72 * d1 + 0.72**2 * d2, d1 + 0.72 * d2, d2]
    assert gained[0].tolist() == pytest.approx(expected)
    e1 = 5.0 + 0.9 * 0.6 - 0.4  # ended by the clock: the state after counts
    assert gained[1].tolist() == pytest.approx([1.0 + 0.9 * 0.4 - 0.2 + 0.72 * e1, e1, 0.0])
    assert targets[0].tolist() == pytest.approx([a + v for a, v in zip(expected, [0.5, 1.0, 1.5], strict=True)])


def test_with_trace_one_advantages_are_returns_less_values() -> None:
    made = paths([[1.0, 2.0, 3.0]], [3], [True])
    gained, _ = advantages(made, torch.zeros(1, 4), discount=0.5, trace=1.0)
    assert gained[0].tolist() == pytest.approx([1 + 1 + 0.75, 2 + 1.5, 3])


def test_log_density_is_the_normal_one() -> None:
    mean, std, action = torch.randn(3, 5, 2).unbind(0)
    std = std.exp()
    expected = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1).log_prob(action)
    torch.testing.assert_close(log_density(action, mean, std), expected)


def test_the_clipped_loss_has_no_gradient_beyond_the_clip() -> None:
    new = torch.tensor([0.5, -0.5, 0.0, 0.1], requires_grad=True)
    old, advantage = torch.zeros(4), torch.tensor([1.0, -1.0, 2.0, -1.0])
    loss = clipped_loss(new, old, advantage)
    ratio = torch.exp(new.detach())
    expected = -(1.2 * 1 - 0.8 * 1 + 2.0 - float(ratio[3])) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert new.grad is not None
    assert new.grad[:2].tolist() == [0, 0]
    assert new.grad[2:].abs().min() > 0


def bandit(policy: GaussianPolicy, seed: int, best: float, adversary: PPO | None = None) -> Paths:
    """One-step episodes: reward is minus the squared distance of the action from `best` (plus the adversary's)."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.zeros(256, 2, 4)
    with torch.no_grad():
        mean, std = policy(TASK.features(states[:, :1]))
        action = mean + std * torch.randn(mean.shape, generator=generator)
    extra: dict[str, Any] = {}
    where = action
    if adversary is not None:
        with torch.no_grad():
            of_mean, of_std = adversary.policy(TASK.features(states[:, :1]))
            push = of_mean + of_std * torch.randn(of_mean.shape, generator=generator)
        extra = {"push": push, "push_log_prob": log_density(push, of_mean, of_std)}
        where = action + push
    return Paths(
        states, action, log_density(action, mean, std), -(where.squeeze(-1) - best).square(),
        torch.zeros(256, 1, dtype=torch.bool), torch.ones(256, 1, dtype=torch.bool), torch.ones(256, dtype=torch.bool),
        torch.zeros(256, dtype=torch.bool), (0.6,) * 256, seed, "source", **extra,
    )  # fmt: skip


def test_ppo_finds_the_best_action_of_a_bandit() -> None:
    agent = PPO(TASK, 0)
    first = float(agent.policy.log_std.detach().exp())
    for turn in range(60):
        losses = agent.update(bandit(agent.policy, turn, 0.4), turn)
    with torch.no_grad():
        mean, std = agent.policy(TASK.features(torch.zeros(1, 4)))
    assert float(mean) == pytest.approx(0.4, abs=0.05)
    assert float(std) < 0.9 * first  # the surer, the less it strays
    assert math.isfinite(losses["value_loss"])


def test_an_adversary_learns_what_hurts() -> None:
    agent, adversary = PPO(TASK, 0), PPO(TASK, 1, actions=1, scale=1.0)
    first = bandit(agent.policy, 0, 0.5, adversary).rewards.mean()
    before = [p.clone() for p in agent.policy.parameters()]
    for turn in range(40):
        adversary.update(bandit(agent.policy, turn, 0.5, adversary), turn, adversary=True)
    assert bandit(agent.policy, 99, 0.5, adversary).rewards.mean() < first - 0.3
    assert all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))


def test_agent_and_adversary_learn_in_turns() -> None:
    both = RARL("cartpole", TASK, 0)
    assert both.adversary.policy.log_std.shape == (1,)

    def weights(agent: PPO) -> list[Tensor]:
        return [p.detach().clone() for p in agent.policy.parameters()]

    for number, mover, other in ((0, both.agent, both.adversary), (TURN, both.adversary, both.agent)):
        moving, still = weights(mover), weights(other)
        losses, played = both.iteration([0.5, 0.6], 3, 15, number)
        assert played.push is not None
        assert any(not torch.equal(a, b) for a, b in zip(moving, weights(mover), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(still, weights(other), strict=True))
        assert all(name.startswith("adversary") == (number == TURN) for name in losses)


def test_rollouts_are_whole_seeded_episodes() -> None:
    agent = PPO(TASK, 0)
    one, again = (rollout(agent.policy, "cartpole", TASK, [0.4, 2.0], "target", 7, 40) for _ in range(2))
    assert torch.equal(one.states, again.states)
    other = rollout(agent.policy, "cartpole", TASK, [0.4, 2.0], "target", 8, 40)
    assert not torch.equal(one.states[:, 0], other.states[:, 0])
    lengths = one.alive.sum(dim=1)
    for b, episode in enumerate(one.episodes(3.0)):
        assert episode.length == lengths[b]
        assert episode.catastrophe == bool(one.terminated[b])
        assert np.abs(episode.actions).max() <= 3
    greedy = [rollout(agent.policy, "cartpole", TASK, [0.4], "target", 7, 10, greedy=True) for _ in range(2)]
    mean, _ = agent.policy(TASK.features(greedy[0].states[:, :-1]))
    torch.testing.assert_close(greedy[0].actions, mean.detach())


# -- MAML ----------------------------------------------------------------------------------------------------------


def test_the_inner_step_is_one_policy_gradient_step() -> None:
    meta = MAML(TASK, 0)
    played = rollout(meta.policy, "cartpole", TASK, [0.5] * 4, "source", 1, 20)
    moved = meta.adapted(meta.parameters(), played)
    x, actions, _, gained = scored(played, TASK)
    mean, std = meta.policy(x)
    loss = -(log_density(actions, mean, std) * gained).mean()
    gradients = torch.autograd.grad(loss, list(meta.parameters().values()))
    for (name, value), gradient in zip(meta.parameters().items(), gradients, strict=True):
        torch.testing.assert_close(moved[name], value - INNER_RATE * gradient)
    assert any(not torch.equal(moved[name], value) for name, value in meta.parameters().items())


def test_the_outer_gradient_goes_through_the_inner_step() -> None:
    """Against central differences in float64: a first-order shortcut would fail."""
    meta = MAML(TASK, 0)
    meta.policy.double()
    before = [double(rollout(MAML(TASK, 0).policy, "cartpole", TASK, [0.5] * 3, "source", s, 12)) for s in (1, 2)]
    moved = [meta.adapted(meta.parameters(), each) for each in before]
    after = []
    for seed, parameters in enumerate(moved):
        single = {name: value.detach().float() for name, value in parameters.items()}
        played = rollout(called(MAML(TASK, 0).policy, single), "cartpole", TASK, [0.5] * 3, "source", 5 + seed, 12)
        after.append(double(played))
    loss = meta.outer_loss(meta.parameters(), before, after)
    names = list(meta.parameters())
    gradients = dict(zip(names, torch.autograd.grad(loss, list(meta.parameters().values())), strict=True))
    start = {name: value.detach().clone() for name, value in meta.parameters().items()}
    generator = torch.Generator().manual_seed(0)
    direction = {name: torch.randn(v.shape, generator=generator, dtype=torch.float64) for name, v in start.items()}
    step = 1e-5

    def along(amount: float) -> float:
        given = {name: value + amount * direction[name] for name, value in start.items()}
        return float(meta.outer_loss(given, before, after).detach())

    slope = (along(step) - along(-step)) / (2 * step)
    expected = sum(float((gradients[name] * direction[name]).sum()) for name in names)
    assert slope == pytest.approx(expected, rel=1e-4)
    # First order only: the inner step's own derivative left out.
    fixed = [{name: value.detach().requires_grad_() for name, value in each.items()} for each in moved]
    shortcut = torch.stack([_surrogate(meta, each, second) for each, second in zip(fixed, after, strict=True)]).mean()
    lazy = [torch.autograd.grad(shortcut, list(each.values()), retain_graph=True) for each in fixed]
    first_order = sum(
        float((gradient * direction[name]).sum()) for each in lazy for name, gradient in zip(names, each, strict=True)
    )
    assert abs(first_order - slope) > 1e-3 * abs(slope)


def _surrogate(meta: MAML, parameters: dict[str, Tensor], played: Paths) -> Tensor:
    x, actions, old, gained = scored(played, TASK)
    mean, std = called(meta.policy, parameters)(x)
    return clipped_loss(log_density(actions, mean, std), old, gained)


def double(played: Paths) -> Paths:
    return Paths(**{
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in vars(played).items()
    })  # fmt: skip


def test_the_linear_baseline_explains_returns_that_depend_on_time_alone() -> None:
    made = paths([[1.0] * 20] * 8, [20] * 8, [True] * 8)
    values = linear_baseline(made, TASK)
    returns = [sum(0.99**k for k in range(20 - t)) for t in range(20)]
    assert (values[:, :-1] - torch.tensor(returns)).abs().max() < 0.5


def test_a_meta_iteration_moves_the_weights_and_says_what_adapting_gained() -> None:
    meta = MAML(TASK, 0)
    start = {name: value.detach().clone() for name, value in meta.parameters().items()}
    numbers, played, again = meta.iteration("cartpole", [0.5, 0.7], 2, 0, 15)
    assert set(numbers) == {"outer_loss", "gain_of_adapting"}
    assert len(played) == len(again) == 2
    assert any(not torch.equal(start[name], value) for name, value in meta.parameters().items())


def test_every_task_has_a_policy_that_fits() -> None:
    for name, domain in (("duckietown", 0.07), ("half-cheetah", 2.0)):
        task = task_of(name)
        agent = PPO(task, 0)
        played = rollout(agent.policy, name, task, [domain], "source", 0, 5)
        assert played.states.shape == (1, 6, task.state_dim)
        assert math.isfinite(agent.update(played, 0)["surrogate"])


def test_source_episodes_of_policies_stop_where_those_of_planners_do() -> None:
    policy = GaussianPolicy(TASK.feature_dim, TASK.action_dim, TASK.high)
    whole, short = (
        rollout(policy, "cartpole", TASK, [0.4, 0.6], "source", 1, 80, after=after).episodes(TASK.high)
        for after in (None, 15)
    )
    for long, cut in zip(whole, short, strict=True):
        assert long.length == 80
        assert cut.length == long.first_catastrophe + 15 < 80
        assert np.array_equal(cut.states, long.states[: cut.length + 1])


def test_target_episodes_of_policies_begin_where_those_of_planners_do() -> None:
    policy = GaussianPolicy(TASK.feature_dim, TASK.action_dim, TASK.high)
    played = rollout(policy, "cartpole", TASK, [1.0, 1.0], "target", 0, 5, starts=[3, 4]).episodes(TASK.high)
    starts = [Start(1.0, "target", seed) for seed in (3, 4)]
    planned = run_episodes(starts, "cartpole", TASK, SETTINGS["smoke"]["cartpole"])
    for one, other in zip(played, planned, strict=True):
        assert np.array_equal(one.states[0], other.states[0])


def test_a_broken_simulation_is_flagged_and_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = GaussianPolicy(TASK.feature_dim, TASK.action_dim, TASK.high)
    step, calls = Cartpole.step, itertools.count()

    def broken(self: Cartpole, action: Any) -> Any:
        seen, reward, done, cut, info = step(self, action)
        return seen, reward, done, cut, {**info, "unstable": next(calls) == 4}  # the third step of the first

    monkeypatch.setattr(Cartpole, "step", broken)
    played = rollout(policy, "cartpole", TASK, [0.5, 0.6], "source", 0, 10)
    first, second = played.episodes(TASK.high)
    assert first.unstable
    assert first.length == 2
    assert not second.unstable
    assert played.steps == second.length == 10
