"""The in-hand task: the hand, its targets and rewards, the learner without variances, MPPI on the whole path."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carl import baoding
from carl.baoding import BALLS, CENTRE, JOINTS, KEY, RADII, Baoding, reward_of, targets_at
from carl.cli import main
from carl.ensemble import Ensemble
from carl.episodes import Start, run_episodes
from carl.learner import Learner
from carl.particles import Simulator
from carl.planner import Planner
from carl.pretraining import pretrain, source_of
from carl.risk import Risk
from carl.settings import SETTINGS
from carl.task import BaodingTask, task_of
from shared.config import UserError

TASK = BaodingTask()
there = importlib.util.find_spec("gymnasium_robotics") is not None
needs_hand = pytest.mark.skipif(not there, reason="the extra `hand` is not installed")


def cost_of(state: torch.Tensor) -> torch.Tensor:
    return TASK.state_cost(state, torch.zeros(()), TASK.features(state))


def test_targets_go_round_the_ellipse_once_in_sixty_steps_opposite_each_other() -> None:
    path = np.array([targets_at(t) for t in range(60)])  # [t, ball, (x, z)]
    np.testing.assert_allclose((((path - CENTRE) / RADII) ** 2).sum(axis=-1), 1)
    np.testing.assert_allclose(path.mean(axis=1), np.broadcast_to(CENTRE, (60, 2)))
    np.testing.assert_allclose(targets_at(60), targets_at(0))
    np.testing.assert_allclose(targets_at(0)[0], CENTRE + RADII * [-np.sqrt(0.5), np.sqrt(0.5)])


def test_rewards_are_distances_drops_and_a_bent_wrist_on_both_libraries() -> None:
    state = np.zeros((4, 40))
    state[:, 26] = state[:, 32] = 0.16
    state[:, 24:26], state[:, 36:38] = [0.03, 0.04], [0.0, 0.0]  # five centimetres off
    state[1, 32] = 0.05  # the second ball is lost
    state[2, 0] = 0.2  # the wrist is bent
    state[3, 26], state[3, 0] = 0.0, 0.16
    reward, lost = reward_of(state)
    np.testing.assert_allclose(reward, [-0.25, -500.25, -10.25, -510.25])
    assert lost.tolist() == [False, True, False, True]
    cost = cost_of(torch.from_numpy(state))
    np.testing.assert_allclose(cost, -reward)


def test_swapping_the_balls_twice_is_nothing_and_costs_the_same() -> None:
    states, following = torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(0))
    actions = torch.randn(7, 24)
    more, twice, after = TASK.augmented(states, actions, following)
    assert more.shape == (14, 40)
    assert torch.equal(more[:7], states)
    assert torch.equal(more[7:, 24:30], states[:, 30:36])
    assert torch.equal(more[7:, 36:38], states[:, 38:40])
    assert torch.equal(more[7:, list(TASK.swap)], states)
    assert torch.equal(twice[7:], actions)
    assert torch.equal(after[7:, :24], following[:, :24])
    torch.testing.assert_close(cost_of(more[7:]), cost_of(states))


def test_without_the_extra_the_refusal_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baoding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"(?s)baoding.*hand"):
        baoding.assets()


@needs_hand
def test_the_hand_is_the_specified_one_and_holds_the_balls_still() -> None:
    env = Baoding()
    assert (env.model.nq, env.model.nv, env.model.nu) == (38, 36, 24)
    assert env.dt == pytest.approx(0.1)
    gains = env.model.actuator_gainprm[:, 0]
    assert gains.tolist() == [5, 5, *[1] * 22]
    np.testing.assert_array_equal(env.model.actuator_biasprm[:, 1], -gains)
    state, _ = env.reset(seed=0, options={"domain": 0.0265, "phase": "source"})
    np.testing.assert_array_equal(state[:JOINTS], KEY)
    np.testing.assert_allclose(state[24:27], BALLS[0])
    radii = [env.model.geom(f"ball{i}").size[0] for i in range(2)]
    assert radii == [0.0265, 0.0265]
    assert float(env.model.body("ball0").mass[0]) == pytest.approx(0.01)
    for _ in range(100):
        state, _, done, _, info = env.step(np.zeros(24))
        assert not done
        assert not info["catastrophe"]
    np.testing.assert_allclose(state[[26, 32]], 0.164, atol=4e-3)


@needs_hand
def test_actions_are_shares_of_the_way_to_the_limits_and_followed_at_three_radians_a_second() -> None:
    env = Baoding()
    env.reset(seed=0, options={"domain": 0.0265})
    low, high = env.model.jnt_range[:JOINTS].T
    np.testing.assert_allclose(env.joint_targets(np.ones(24)), KEY + 0.9 * (high - KEY))
    np.testing.assert_allclose(env.joint_targets(-np.ones(24)), KEY - 0.9 * (KEY - low))
    np.testing.assert_allclose(env.joint_targets(np.zeros(24)), KEY)
    env.step(np.ones(24))
    assert np.abs(env.goal - KEY).max() == pytest.approx(0.3)


@needs_hand
def test_a_dropped_ball_ends_the_episode_in_both_phases() -> None:
    setting = replace(SETTINGS["smoke"]["baoding"], steps=100)
    for phase in ("source", "target"):
        episode = run_episodes([Start(0.0265, phase, 1)], "baoding", TASK, replace(setting, walk=False))[0]
        assert episode.catastrophe
        assert episode.first_catastrophe == episode.length < 100


@needs_hand
def test_states_are_exact() -> None:
    env, other = Baoding(), Baoding()
    env.reset(seed=0, options={"domain": 0.027})
    other.reset(seed=0, options={"domain": 0.027})
    actions = 0.1 * np.random.default_rng(0).uniform(-1, 1, (8, 24))
    for action in actions[:4]:
        env.step(action)
    other.set_physics(env.physics())
    for action in actions[4:]:
        np.testing.assert_allclose(env.step(action)[0], other.step(action)[0], atol=1e-9)


@needs_hand
def test_two_environments_have_targets_of_their_own() -> None:
    one, other = Baoding(), Baoding()
    for env in (one, other):
        env.reset(seed=0, options={"domain": 0.0265})
    before = other.state()[36:].copy()
    for _ in range(10):
        one.step(np.zeros(24))
    np.testing.assert_array_equal(other.state()[36:], before)


@needs_hand
def test_the_random_walk_is_slow_and_held() -> None:
    setting = replace(SETTINGS["smoke"]["baoding"], steps=8)
    actions = run_episodes([Start(0.0265, "source", 3)], "baoding", TASK, setting)[0].actions
    moves = np.diff(np.concatenate([np.zeros((1, 24)), actions]), axis=0)
    assert np.abs(moves).max() <= 0.15 + 1e-6
    assert np.abs(moves).min() >= 0.05 - 1e-6
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-6)
    assert not np.allclose(moves[1], moves[2])


# -- nets that predict a mean alone ----------------------------------------------------------------------------------


def plain(seed: int = 0) -> Ensemble:
    generator = torch.Generator().manual_seed(seed)
    made = Ensemble(3, TASK.input_dim, TASK.target_dim, (12, 12), (0.0,) * 3, generator, "relu", probabilistic=False)
    made.normalise(1 + 2 * torch.randn(50, TASK.input_dim, generator=generator))
    made.normalise_targets(3 + 0.5 * torch.randn(50, TASK.target_dim, generator=generator))
    return made


def test_their_loss_is_the_squared_error_of_normalised_targets_and_the_heads() -> None:
    made, x, y = plain(), torch.randn(3, 9, TASK.input_dim), torch.randn(3, 9, TASK.target_dim)
    flags = torch.zeros(3, 9)
    mean, logvar, logit = made(x)
    losses = made.losses(x, y, flags, "plain")
    normal = (y - made.mean_out) / made.std_out
    raw = (mean - made.mean_out) / made.std_out
    assert float(losses.likelihood) == pytest.approx(float((raw - normal).square().mean(dim=(1, 2)).sum()), rel=1e-5)
    assert float(losses.head) == pytest.approx(float(torch.nn.functional.softplus(logit).mean()), rel=1e-5)
    assert torch.isinf(logvar).all()


def test_their_particles_are_the_nets_means_with_the_steps_own_logit() -> None:
    made = [plain(seed) for seed in range(2)]
    state = torch.randn(2, 40)
    actions = torch.rand(2, 4, 3, 24)
    found = Simulator(made, TASK, 3).roll(state, actions, torch.zeros(2), torch.tensor([0.5, 0.4]))
    for g in range(2):
        for n in range(4):
            for net in range(3):
                here, cost, votes = state[g], 0.0, 0
                for t in range(3):
                    with torch.no_grad():
                        mean, _, logit = (part[net, 0] for part in made[g](torch.cat([here, actions[g, n, t]])[None]))
                    here = here + mean
                    cost += float(cost_of(here))
                    votes += int(torch.sigmoid(logit) > (0.5, 0.4)[g])
                assert float(found.cost[g, n, net]) == pytest.approx(cost, rel=1e-3)
                assert int(found.votes[g, n, net]) == votes


def test_plans_by_weighted_means_stay_in_the_box_and_go_on_from_the_last_action() -> None:
    planner = Planner([plain()], TASK, [Risk("state", weight=500)], horizon=3, particles=3, candidates=20, elites=2,
                      optimiser="mppi")  # fmt: skip
    first, _ = planner.act(torch.randn(1, 40), torch.zeros(1), torch.Generator().manual_seed(0))
    assert first.shape == (1, 24)
    assert float(first.abs().max()) <= 1
    assert torch.equal(planner.last, first)
    saved = planner.state_dict()
    planner.act(torch.randn(1, 40), torch.zeros(1), torch.Generator().manual_seed(1))
    planner.load_state_dict(saved)
    assert torch.equal(planner.last, first)


@needs_hand
def test_every_fit_starts_anew_and_sees_every_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(SETTINGS["smoke"]["baoding"], fit_steps=3)
    learner = Learner(TASK, setting, 0)
    learner.remember(run_episodes([Start(0.0265, "source", 0)], "baoding", TASK, replace(setting, steps=6))[0])
    before = learner.ensemble.weights[0].detach().clone()
    learner.fit(0)
    first = learner.ensemble.weights[0].detach().clone()
    assert (first - before).abs().max() < 0.01  # three steps from where it was
    learner.fit(1)
    second = learner.ensemble.weights[0].detach()
    assert (second - first).abs().max() > 0.05  # other weights altogether
    seen = []
    monkeypatch.setattr("carl.learner.minibatches", lambda rows, *rest: seen.append(rows) or [torch.zeros(2, 4).long()])
    learner.fit(2)
    assert seen == [2 * len(learner.buffer)]


@needs_hand
def test_iterations_hold_several_episodes(tmp_path: Path) -> None:
    setting = replace(SETTINGS["smoke"]["baoding"], source_iterations=2, steps=5, initial_steps=4, initial_episodes=3)
    learners, log = pretrain("baoding", setting, [0])
    assert [len(row[0].episodes) for row in log] == [3, 2]
    assert max(e.length for e in log[0][0].episodes) <= 4
    assert len({e.domain for row in log for e in row[0].episodes}) == 5
    assert learners[0].fitted


@needs_hand
def test_the_whole_path_by_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--env", "baoding", "--episode-steps", "12"]
    assert main(["train", *flags, "--risk", "reward", "--target", "0.0275", "--out", str(out)]) == 0
    assert (out / "adaptation.json").exists()
    assert source_of("baoding").check_target(0.0265) == 0.0265  # inside the sources on purpose
    with pytest.raises(UserError, match="--in-distribution"):
        source_of("baoding").check_target(0.0268)
    assert task_of("baoding").input_dim == 64
