"""Episodes side by side: what they share, what they must not, and when they end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carl.episodes import Episode, Start, make_env, planner_of, run_episodes
from carl.learner import Learner
from carl.noise import Streams, mixed, normals, uniforms
from carl.risk import Risk
from carl.settings import SETTINGS, Setting
from carl.task import task_of
from shared.config import UserError

SMALL = SETTINGS["smoke"]["cartpole"]
TASK = task_of("cartpole")


def trained(seed: int = 0, setting: Setting = SMALL, name: str = "cartpole") -> Learner:
    """A learner after one random episode and one fit."""
    learner = Learner(task_of(name), setting, seed)
    learner.remember(
        run_episodes([Start(0.6 if name == "cartpole" else 0.07, "source", seed)], name, task_of(name), setting)[0]
    )
    learner.fit(seed)
    return learner


def same(one: Episode, other: Episode) -> bool:
    return all(
        np.array_equal(getattr(one, part), getattr(other, part))
        for part in ("states", "actions", "rewards", "catastrophes")
    )


# -- random numbers ------------------------------------------------------------------------------------------------


def test_streams_are_the_same_alone_and_in_company_and_after_others_have_left() -> None:
    together, alone = Streams([5, 7, 5, 9]), Streams([7])
    drawn = normals(4, (3, 2), together.at(4), "cpu")
    assert torch.equal(drawn[0], drawn[2])  # one seed, one stream
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1:2], normals(1, (3, 2), alone.at(4), "cpu"))
    together.keep([3, 1])
    later = uniforms(2, (5,), together.at(6), "cpu")
    assert torch.equal(later[1:2], uniforms(1, (5,), alone.at(6), "cpu"))
    assert not torch.equal(later[0], later[1])


def test_what_was_drawn_before_a_step_does_not_matter_in_it() -> None:
    one, other = Streams([1]), Streams([1])
    normals(1, (1000,), one.at(0), "cpu")
    assert torch.equal(normals(1, (4,), one.at(1), "cpu"), normals(1, (4,), other.at(1), "cpu"))
    assert not torch.equal(normals(1, (4,), one.at(2), "cpu"), normals(1, (4,), other.at(1), "cpu"))


def test_seeds_for_different_purposes_differ_and_stay() -> None:
    found = {mixed(0, "plan", i) for i in range(50)} | {mixed(0, "reset", i) for i in range(50)}
    assert len(found) == 100
    assert mixed(3, "plan", 4) == mixed(3, "plan", 4)
    assert all(0 <= value < 2**63 for value in found)


# -- episodes ------------------------------------------------------------------------------------------------------


def test_an_episode_is_the_same_alone_and_beside_others_that_end_earlier() -> None:
    learner = trained()
    starts = [Start(length, "target", seed, learner, risk) for seed, (length, risk) in enumerate(
        [(0.5, Risk("none")), (2.0, Risk("reward")), (1.0, Risk("state")), (0.3, Risk("none"))]
    )]  # fmt: skip
    together = run_episodes(starts, "cartpole", TASK, SMALL)
    assert len({episode.length for episode in together}) > 1  # some leave the batch before others
    for start, episode in zip(starts, together, strict=True):
        assert same(run_episodes([start], "cartpole", TASK, SMALL)[0], episode)


def test_episodes_of_one_seed_meet_the_same_first_state_and_caution_alone_sets_them_apart() -> None:
    learner = trained()
    starts = [
        Start(1.0, "target", 3, learner),
        Start(1.0, "target", 3, learner, Risk("reward", gamma=0)),
        Start(1.0, "target", 4, learner),
    ]
    plain, twin, other = run_episodes(starts, "cartpole", TASK, SMALL)
    assert same(plain, twin)
    assert not np.array_equal(plain.states[0], other.states[0])


def test_source_episodes_go_on_after_a_catastrophe_and_target_episodes_end() -> None:
    setting = replace(SMALL, steps=60)
    source, target = run_episodes([Start(0.4, "source", 1), Start(0.4, "target", 1)], "cartpole", TASK, setting)
    assert source.length == 60
    assert target.first_catastrophe == target.length < 60
    n = target.length
    assert np.array_equal(source.states[: n + 1], target.states)  # the same episode until then
    assert source.first_catastrophe == n
    short = run_episodes([Start(0.4, "source", 1)], "cartpole", TASK, replace(setting, after_catastrophe=15))[0]
    assert short.length == n + 15
    assert np.array_equal(short.states, source.states[: n + 16])


def test_learners_that_were_never_fitted_act_at_random_within_the_box() -> None:
    random, untrained = run_episodes(
        [Start(0.6, "source", 2), Start(0.6, "source", 2, Learner(TASK, SMALL, 0))], "cartpole", TASK, SMALL
    )
    assert same(random, untrained)
    assert random.planning == 0
    assert np.abs(random.actions).max() <= 3
    assert np.abs(random.actions).max() > 2  # the whole of it


@pytest.mark.parametrize("value", [np.nan, 1e13])
def test_an_episode_whose_simulation_breaks_down_ends_before_and_is_not_learned_from(
    value: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import carl.cartpole

    simulate = carl.cartpole.Cartpole.simulate

    def breaking(self: carl.cartpole.Cartpole, control: np.ndarray) -> None:
        if self.data.time > 0.2:
            self.data.qvel[0] = value  # MuJoCo begins anew by itself, and the state looks sound
        simulate(self, control)

    monkeypatch.setattr(carl.cartpole.Cartpole, "simulate", breaking)
    monkeypatch.chdir(tmp_path)
    learner = Learner(TASK, SMALL, 0)
    with pytest.warns(UserWarning, match="broke down"):
        episode = run_episodes([Start(0.6, "source", 0)], "cartpole", TASK, SMALL)[0]
    assert episode.unstable
    assert 0 < episode.length < SMALL.steps
    assert np.isfinite(episode.states).all()
    learner.remember(episode)
    assert len(learner.buffer) == 0
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_plans_without_any_finite_cost_are_counted_and_told_of() -> None:
    learner = trained()
    with torch.no_grad():
        learner.ensemble.weights[0].fill_(float("nan"))
    with pytest.warns(UserWarning, match="no plan had a finite cost at 30 steps"):
        episode = run_episodes([Start(0.6, "source", 0, learner)], "cartpole", TASK, SMALL)[0]
    assert episode.blind == episode.length == 30
    assert episode.failed > 0
    assert not episode.actions.any()  # the middle of the box


def test_traces_say_what_was_expected_and_change_nothing() -> None:
    start = Start(1.0, "target", 3, trained(), Risk("state"))
    traced, plain = (run_episodes([start], "cartpole", TASK, SMALL, traced=t)[0] for t in (True, False))
    assert same(traced, plain)
    assert traced.votes is not None
    assert traced.votes.shape == (traced.length, SMALL.horizon)
    assert plain.votes is None


@pytest.mark.parametrize(("name", "size"), [("cartpole", 1), ("duckietown", 2), ("half-cheetah", 3)])
def test_a_disturbance_lasts_a_step_and_pushes_as_far_as_it_may(name: str, size: int) -> None:
    env, domain = make_env(name), {"cartpole": 0.6, "duckietown": 0.07, "half-cheetah": 1.0}[name]
    assert env.disturbance_dim == size
    quiet = np.zeros(env.action_space.shape or ())

    def after(*pushes: float | None) -> np.ndarray:
        state, _ = env.reset(seed=0, options={"domain": domain, "phase": "source"})
        for push in pushes:
            if push is not None:
                env.disturb(np.full(size, push))
            state = env.step(quiet)[0]
        return state

    assert not np.allclose(after(1.0), after(None))
    assert np.array_equal(after(5.0), after(1.0))  # clipped
    one, other = after(1.0, None), after(1.0, 0.0)
    np.testing.assert_allclose(one, other, atol=1e-12)  # nothing of the first push is left in the second step


def test_the_push_on_the_pole_is_thirty_newtons_at_its_tip() -> None:
    """The same generalised forces as by hand: F along the rail, F L cos(theta) about the hinge."""
    env = make_env("cartpole")
    env.reset(seed=0, options={"domain": 0.8, "phase": "source"})
    env.data.qpos[:] = [0.2, 0.3]  # pyright: ignore
    seen = {}
    simulate = type(env).simulate

    def watched(self: object, control: np.ndarray) -> None:
        seen["force"] = self.data.qfrc_applied.copy()  # pyright: ignore
        simulate(self, control)  # pyright: ignore

    type(env).simulate = watched  # pyright: ignore
    try:
        import mujoco

        mujoco.mj_forward(env.model, env.data)  # pyright: ignore
        env.disturb(np.array([0.5]))
        env.step(np.zeros(1))
    finally:
        type(env).simulate = simulate  # pyright: ignore
    np.testing.assert_allclose(seen["force"], [15.0, 15.0 * 0.8 * np.cos(0.3)], atol=1e-6)


def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="cartpole"):
        make_env("cartpol")


# -- learners ------------------------------------------------------------------------------------------------------


def test_a_fit_explains_what_was_met_and_a_copy_goes_its_own_way() -> None:
    learner = Learner(TASK, replace(SMALL, fit_steps=300), 0)
    episode = run_episodes([Start(0.6, "source", 0)], "cartpole", TASK, SMALL)[0]
    learner.remember(episode)
    before = learner.errors([episode])["mse"]
    losses = learner.fit(0)
    assert set(losses) == {"loss", "likelihood", "head"}
    assert learner.errors([episode])["mse"] < 0.3 * before
    other = learner.copy()
    weights = [weight.clone() for weight in learner.ensemble.weights]
    other.remember(run_episodes([Start(0.6, "source", 1)], "cartpole", TASK, SMALL)[0])
    other.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.ensemble.weights, strict=True))
    assert not torch.equal(other.ensemble.weights[0], weights[0])
    assert len(learner.buffer) == episode.length < len(other.buffer)


def test_a_copy_fits_as_the_original_would_have() -> None:
    learner = trained()
    other = learner.copy()
    learner.fit(5)
    other.fit(5)
    for a, b in zip(learner.ensemble.parameters(), other.ensemble.parameters(), strict=True):
        assert torch.equal(a, b)  # the optimiser's moments went with it


def test_steps_of_a_fit_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: taken.append(1))
    learner = Learner(TASK, replace(SMALL, fit_steps=17, batch=8), 0)
    learner.remember(run_episodes([Start(0.6, "source", 0)], "cartpole", TASK, SMALL)[0])
    learner.fit(0)
    assert len(taken) == 17
    by_epochs = Learner(TASK, replace(SMALL, fit_steps=None, epochs=3, batch=8), 0)
    by_epochs.buffer.load_state_dict(learner.buffer.state_dict())
    taken.clear()
    by_epochs.fit(0)
    assert len(taken) == 3 * -(-len(learner.buffer) // 8)


def test_votes_ahead_are_those_of_particles_under_the_actions_that_were_taken() -> None:
    learner = trained()
    with torch.no_grad():
        learner.ensemble.max_logvar.fill_(-30)  # hardly any noise: particles are their nets' means
        learner.ensemble.min_logvar.fill_(-40)
        learner.ensemble.biases[-1][..., -1] = torch.tensor([[0.3], [-0.3]])
    episode = run_episodes([Start(0.6, "source", 3)], "cartpole", TASK, SMALL)[0]
    votes, came = learner.votes_ahead([episode], 3, 0.5)
    assert votes.shape == came.shape == (episode.length, 3)
    assert np.isnan(came[-1]).tolist() == [False, True, True]  # beyond the end nothing is known
    assert np.isnan(came[-2]).tolist() == [False, False, True]
    for n in (0, 7):
        assert np.array_equal(came[n], episode.catastrophes[n : n + 3])
        shares = []
        for h in range(3):
            counted = 0
            for net in range(SMALL.nets):
                here = torch.from_numpy(episode.states[n])
                for k in range(h + 1):
                    x = torch.cat([TASK.features(here), torch.from_numpy(episode.actions[n + k])])
                    with torch.no_grad():
                        mean, _, logit = (part[net, 0] for part in learner.ensemble(x[None]))
                    here = TASK.advance(here, mean)
                counted += int(torch.sigmoid(logit) > 0.5)
            shares.append(counted / SMALL.nets)
        assert votes[n].tolist() == shares


def test_a_plan_that_fails_later_in_an_episode_is_forgotten_for_the_middle_of_the_box() -> None:
    learner = trained()
    planner = planner_of([Start(0.6, "target", 0, learner, Risk("state"))], TASK, SMALL)
    state, context = torch.tensor([[0.1, 0.05, 0.0, 0.2]]), torch.tensor([0.6])
    first, _ = planner.act(state, context, torch.Generator().manual_seed(0))
    assert first.abs().max() > 0
    with torch.no_grad():
        planner.simulator.layers.weights[0].fill_(float("nan"))
    action, _ = planner.act(state, context, torch.Generator().manual_seed(1))
    assert bool(planner.blind.all())
    assert not action.any()
    assert not planner.plan.any()


def test_a_plan_with_a_failed_particle_ranks_behind_any_number_of_votes() -> None:
    learner = trained()
    risk = Risk("state", beta=0.0, weight=1e6)  # every net votes at every step
    planner = planner_of([Start(0.6, "target", 0, learner, risk)], TASK, SMALL)
    actions = torch.zeros(1, 3, SMALL.horizon, 1)
    actions[0, 1, 0] = float("nan")
    costs, failed = planner.evaluate(torch.zeros(1, 4), actions, torch.tensor([0.6]), torch.Generator().manual_seed(0))
    assert int(failed) == SMALL.particles
    assert costs[0].argmax() == 1
    assert float(costs[0, 0]) > 1e6  # the votes alone cost more than a failed particle does
