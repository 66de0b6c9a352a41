"""Particles against a plain loop over nets, and planners against each other: what caution changes, what it must not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from carl.buffer import Buffer
from carl.ensemble import Ensemble
from carl.noise import Streams
from carl.particles import Simulator
from carl.planner import Planner
from carl.risk import Risk
from carl.task import TASKS, CartpoleTask, PlanningTask, task_of
from shared.config import UserError

SIZES = {"horizon": 4, "particles": 6, "candidates": 12, "elites": 3, "iterations": 2}


def ensemble(task: PlanningTask, seed: int = 0, nets: int = 3) -> Ensemble:
    generator = torch.Generator().manual_seed(seed)
    made = Ensemble(nets, task.input_dim, task.target_dim, (16, 16), (0.0,) * 3, generator)
    made.normalise(0.3 + 2 * torch.randn(60, task.input_dim, generator=generator))
    with torch.no_grad():
        # Votes that depend on the plan: some nets see a catastrophe where others do not.
        made.weights[-1][..., -1] *= 20
        made.biases[-1][..., -1] = torch.randn(nets, 1, generator=generator)
    return made


def planner(risks: list[Risk], task: PlanningTask | None = None, **changes: object) -> Planner:
    task = task or CartpoleTask()
    return Planner([ensemble(task) for _ in risks], task, risks, **{**SIZES, **changes})  # pyright: ignore


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_advance_inverts_targets(name: str) -> None:
    task = task_of(name)
    state, following = torch.randn(2, 50, task.state_dim, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(task.advance(state, task.targets(state, following)), following, rtol=0, atol=1e-12)
    assert task.targets(state, following).shape[-1] == task.target_dim
    assert task.features(state).shape[-1] == task.feature_dim


@pytest.mark.parametrize("name", sorted(TASKS))
def test_particles_are_what_a_loop_over_nets_and_steps_gives(name: str) -> None:
    task = task_of(name)
    G, N, H, E, R = 2, 3, 4, 3, 2
    models = [ensemble(task, seed) for seed in range(G)]
    state = torch.randn(G, task.state_dim, generator=seeded())
    actions = torch.randn(G, N, H, task.action_dim, generator=seeded(2))
    noise = torch.randn(G, H, E, N, R, task.target_dim, generator=seeded(3))
    context, beta = torch.tensor([0.7, 1.0]), torch.tensor([0.5, 0.3])
    found = Simulator(models, task, E * R).roll(state, actions, context, beta, noise=noise)
    for g in range(G):
        for n in range(N):
            for p in range(E * R):
                net, copy = p // R, p % R
                here, cost, votes = state[g], 0.0, 0
                for t in range(H):
                    x = torch.cat([task.features(here), actions[g, n, t]])
                    with torch.no_grad():
                        mean, logvar, logit = (part[net, 0] for part in models[g](x[None]))
                    here = task.advance(here, mean + torch.exp(0.5 * logvar) * noise[g, t, net, n, copy])
                    cost += float(
                        task.state_cost(here, context[g], task.features(here)) + task.action_cost(actions[g, n, t])
                    )
                    votes += int(torch.sigmoid(logit) > beta[g])
                assert float(found.cost[g, n, p]) == pytest.approx(cost, rel=1e-4, abs=1e-4)
                assert int(found.votes[g, n, p]) == votes
    assert 0 < int(found.votes.sum()) < found.votes.numel() * H


def test_caution_that_is_off_gives_the_plain_planners_action_bit_for_bit() -> None:
    state, context = torch.tensor([[0.1, 0.05, 0.0, 0.2]]), torch.tensor([0.6])
    plain, _ = planner([Risk("none")]).act(state, context, seeded())
    for risk in (Risk("reward", gamma=0), Risk("state", weight=0), Risk("state", beta=1)):
        action, _ = planner([risk]).act(state, context, seeded())
        assert torch.equal(action, plain), risk
    for risk in (Risk("reward", gamma=70), Risk("state")):  # and caution that is on does not
        action, _ = planner([risk]).act(state, context, seeded())
        assert not torch.equal(action, plain), risk


def test_a_vote_at_every_step_adds_the_same_to_all_candidates_and_changes_nothing() -> None:
    state, context = torch.tensor([[0.1, 0.05, 0.0, 0.2]]), torch.tensor([0.6])
    plain = planner([Risk("none")])
    voted = planner([Risk("state", weight=1e4)])
    for each in voted.ensembles:
        with torch.no_grad():
            each.weights[-1][..., -1] = 0
            each.biases[-1][..., -1] = 100
    voted.refresh(voted.ensembles)
    actions = torch.rand(1, 12, 4, 1, generator=seeded(5))
    costs, _ = plain.evaluate(state, actions, context, seeded())
    risen, _ = voted.evaluate(state, actions, context, seeded())
    torch.testing.assert_close(risen - costs, torch.full_like(costs, 4e4), rtol=0, atol=1e-9)
    assert torch.equal(voted.act(state, context, seeded())[0], plain.act(state, context, seeded())[0])


def test_problems_of_a_batch_are_the_problem_alone() -> None:
    risks = [Risk("none"), Risk("reward"), Risk("state"), Risk("reward+state")]
    state = torch.tensor([[0.1, 0.05, 0.0, 0.2]]).expand(4, -1)
    context = torch.full((4,), 0.6)
    together = planner(risks)
    for _ in range(2):  # the second plan starts from the shifted first
        both, _ = together.act(state, context, Streams([1] * 4))
    for g, risk in enumerate(risks):
        alone = planner([risk])
        for _ in range(2):
            action, _ = alone.act(state[:1], context[:1], Streams([1]))
        torch.testing.assert_close(action[0], both[g], rtol=0, atol=1e-5)


def test_the_domain_reaches_the_reward_and_no_network() -> None:
    seen: list[Tensor] = []

    class Watched(CartpoleTask):
        def features(self, state: Tensor) -> Tensor:
            made = super().features(state)
            seen.append(made.clone())
            return made

    for length in (0.4, 1.5):
        watched = planner([Risk("none")], Watched())
        actions = torch.rand(1, 12, 4, 1, generator=seeded(5))
        watched.evaluate(torch.tensor([[0.1, 0.05, 0.0, 0.2]]), actions, torch.tensor([length]), seeded())
    half = len(seen) // 2  # features of every step, under either domain
    assert half >= 4
    for one, other in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(one, other)


def test_the_trace_says_what_was_expected() -> None:
    made = planner([Risk("state"), Risk("none")])
    action, trace = made.act(torch.zeros(2, 4), torch.full((2,), 0.6), seeded(), traced=True)
    assert trace is not None
    assert action.shape == (2, 1)
    assert trace.votes.shape == trace.disagreement.shape == (2, 4)
    assert bool(((trace.votes >= 0) & (trace.votes <= 1)).all())
    assert bool((trace.disagreement > 0).all())
    assert bool((action.abs() <= 3).all())


def test_particles_without_a_number_rank_last_and_a_plan_of_none_is_kept() -> None:
    broken = planner([Risk("none")])
    with torch.no_grad():
        broken.ensembles[0].weights[0].fill_(float("nan"))
    broken.refresh(broken.ensembles)
    action, trace = broken.act(torch.zeros(1, 4), torch.full((1,), 0.6), seeded(), traced=True)
    assert trace is not None
    assert int(trace.failed) > 0
    assert float(action) == 0  # the middle of the box
    assert broken.blind.tolist() == [True]
    half = planner([Risk("none"), Risk("none")])
    with torch.no_grad():
        half.ensembles[1].weights[0][0] = float(
            "nan"
        )  # one net of three: its particles fail, plans are still told apart
    half.refresh(half.ensembles)
    action, _ = half.act(torch.zeros(2, 4), torch.full((2,), 0.6), seeded())
    assert half.blind.tolist() == [False, False]
    assert half.failed.tolist() == [0, SIZES["candidates"] * SIZES["iterations"] * SIZES["particles"] // 3]
    assert float(action[1]) != 0


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="--particles"):
        planner([Risk()], particles=5)
    with pytest.raises(UserError, match="--elites"):
        planner([Risk()], elites=13)
    with pytest.raises(UserError, match="--horizon"):
        planner([Risk()], horizon=0)
    with pytest.raises(UserError, match="--env"):
        task_of("cartpoles")


def test_a_buffer_keeps_every_row_and_refuses_what_is_no_number() -> None:
    buffer = Buffer(2, 1)
    states = torch.arange(8.0).reshape(4, 2)
    buffer.add(states, torch.ones(3, 1), torch.tensor([0.0, 0.0, 1.0]))
    buffer.add(states, torch.zeros(3, 1), torch.zeros(3))
    assert len(buffer) == 6
    assert torch.equal(buffer.following[:3], states[1:])
    other = Buffer(2, 1)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.actions, buffer.actions)
    with pytest.raises(ValueError, match="finite"):
        buffer.add(states / 0, torch.ones(3, 1), torch.zeros(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_compiled_simulation_on_a_gpu_is_the_cpus(name: str) -> None:
    task = task_of(name)
    state, actions = torch.randn(2, task.state_dim), torch.randn(2, 8, 4, task.action_dim)
    noise = torch.randn(2, 4, 3, 8, 2, task.target_dim)
    context, beta = torch.tensor([0.7, 1.0]), torch.tensor([0.5, 0.3])
    models = [ensemble(task, seed) for seed in range(2)]
    given = (state, actions, context, beta)
    expected = Simulator(models, task, 6).roll(*given, noise=noise)
    moved = Simulator([model.cuda() for model in models], task, 6, compile=True)
    for _ in range(3):  # the graph is recorded, then replayed
        found = moved.roll(*(part.cuda() for part in given), noise=noise.cuda())
        torch.testing.assert_close(found.cost.cpu(), expected.cost, rtol=1e-3, atol=1e-3)
        assert float((found.votes.cpu() != expected.votes).float().mean()) < 0.01
