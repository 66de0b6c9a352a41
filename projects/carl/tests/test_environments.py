"""The environments against the numbers of the specification, gymnasium's checker, and their own states."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from carl.cartpole import Cartpole, closeness
from carl.config import TrainConfig
from carl.domains import DomainDistribution
from carl.duckietown import Duckietown, drive, footprint_on_road, goal_distance
from carl.episodes import Start, run_episodes
from carl.half_cheetah import HalfCheetahDisabled
from carl.registry import NAMES, register
from carl.settings import SETTINGS
from carl.task import task_of
from shared.config import UserError

ALL = (Cartpole, Duckietown, HalfCheetahDisabled)
OUTSIDE = {Cartpole: 1.0, Duckietown: 0.15, HalfCheetahDisabled: 5.0}


@pytest.mark.parametrize("kind", ALL)
def test_gymnasium_accepts_it(kind: type[Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(seed|deterministic|reset|step|space).*")
        warnings.filterwarnings("ignore", message=".*(infinity|symmetric and normalized).*")
        check_env(kind(), skip_render_check=True)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_is_registered_ends_on_time_and_can_be_vectorised(name: str) -> None:
    register()
    register()
    identifier, _, steps = NAMES[name]
    env = gymnasium.make(identifier)
    assert env.spec is not None
    assert env.spec.max_episode_steps == steps
    several = gymnasium.make_vec(identifier, num_envs=3, vectorization_mode="sync")
    first, _ = several.reset(seed=0)
    assert first.shape[0] == 3
    again, _ = several.reset(seed=0)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("kind", ALL)
def test_an_episode_goes_on_exactly_from_a_kept_state(kind: type[Any]) -> None:
    env, other, rng = kind(), kind(), np.random.default_rng(0)
    env.reset(seed=3, options={"domain": OUTSIDE[kind], "phase": "source"})
    other.reset(seed=9, options={"domain": OUTSIDE[kind], "phase": "source"})
    for _ in range(5):
        env.step(rng.uniform(-1, 1, env.action_space.shape))
    other.set_physics(env.physics())
    for _ in range(5):
        action = rng.uniform(-1, 1, env.action_space.shape)
        one, reward, *_ = env.step(action)
        two, same, *_ = other.step(action)
        np.testing.assert_array_equal(one, two)
        assert reward == same


@pytest.mark.parametrize("kind", ALL)
def test_the_domain_is_drawn_from_the_sources_and_stays_hidden(kind: type[Any]) -> None:
    env = kind()
    drawn = set()
    for seed in range(20):
        first, info = env.reset(seed=seed)
        drawn.add(env.domain)
        assert set(info) == {"catastrophe"}
        assert not np.isin(env.domain, first[np.abs(first) > 1e-9])
    assert all(kind.source.contains(value) for value in drawn)
    assert len(drawn) > 3


def test_bad_resets_are_refused() -> None:
    env = Cartpole()
    for options in ({"domain": 0.1}, {"domain": float("nan")}, {"phase": "sauce"}, {"length": 1.0}):
        with pytest.raises(UserError):
            env.reset(options=options)
    for domain in (-1, 6, 2.5):
        with pytest.raises(UserError, match="disabled joint"):
            HalfCheetahDisabled().reset(options={"domain": domain})
    for domain in (0.03, 0.6):
        with pytest.raises(UserError, match="width"):
            Duckietown().reset(options={"domain": domain})


def test_targets_must_lie_outside_unless_meant() -> None:
    source = Cartpole.source
    assert source.check_target(1.0) == 1.0
    with pytest.raises(UserError, match="in-distribution"):
        source.check_target(0.6)
    assert source.check_target(0.6, in_distribution=True) == 0.6
    listed = DomainDistribution("radius", 0.026, 0.027, lowest=0, listed=(0.0265,))
    assert listed.check_target(0.0265) == 0.0265
    for low, high in ((0.5, 0.5), (0.6, 0.5)):
        with pytest.raises(UserError, match="low < high"):
            DomainDistribution("x", low, high)
    with pytest.raises(UserError, match="choices"):
        DomainDistribution("x")


# -- cartpole ----------------------------------------------------------------------------------------------------------


def test_cartpole_reward_is_the_closeness_of_the_tip() -> None:
    for x, theta, length, value in (
        (0.3, 0.2, 0.6, 0.613524), (0.3, 0.2, 1.0, 0.779527), (1.0, 0.0, 0.6, 0.062177), (1.0, 0.0, 1.0, 0.367879),
    ):  # fmt: skip
        assert closeness(x, math.sin(theta), math.cos(theta), length) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("length", [0.4, 0.6, 1.0])
def test_cartpole_masses_follow_from_the_geometry(length: float) -> None:
    model = Cartpole.model_of(length)
    along = math.hypot(0.001, length)
    expected = 1000 * math.pi * 0.049**2 * (along + 4 * 0.049 / 3)
    assert model.body("pole").mass[0] == pytest.approx(expected, abs=1e-4)
    assert model.body("cart").mass[0] == pytest.approx(10.472, abs=1e-3)


def test_cartpole_moves_as_the_reference() -> None:
    env = Cartpole()
    env.reset(seed=0, options={"domain": 0.6})
    env.data.qpos[:], env.data.qvel[:] = (0.0, 0.05), 0.0
    mujoco.mj_forward(env.model, env.data)
    for _ in range(3):
        env.step(np.array([0.5]))
    np.testing.assert_allclose(env.data.qpos, (0.0286856, -0.0068160), atol=1e-5)
    np.testing.assert_allclose(env.data.qvel, (0.477007, -0.941710), atol=1e-5)


def test_a_fallen_pole_ends_the_target_and_not_the_source() -> None:
    for phase in ("source", "target"):
        env = Cartpole()
        env.reset(seed=0, options={"domain": 1.0, "phase": phase})
        env.data.qpos[1] = 2.0
        _, _, terminated, truncated, info = env.step(np.zeros(1))
        assert info["catastrophe"]
        assert terminated == (phase == "target")
        assert not truncated


# -- duckietown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.05, 0.1, 0.15])
def test_full_speed_ahead_hits_the_wall_at_step_18(width: float) -> None:
    env = Duckietown()
    env.reset(options={"domain": width})
    for step in range(1, 19):
        seen, _, terminated, _, info = env.step(np.array([1.0, 0.0]))
        assert info["catastrophe"] == terminated == (step == 18)
    assert seen[0] == pytest.approx(1.7325, abs=1e-9)
    assert env.pose[0] == pytest.approx(1.6525, abs=1e-9)


def test_a_turn_ends_where_the_reference_does() -> None:
    env = Duckietown()
    env.reset(options={"domain": 0.1})
    for _ in range(3):
        seen, *_ = env.step(np.array([0.5, -0.5]))
    np.testing.assert_allclose(seen, (0.431808, 1.472251, 0.698796, -0.139762), atol=1e-6)


def test_after_a_hit_the_car_stands_where_it_was() -> None:
    for observed in ("attempted", "reverted"):
        env = Duckietown(hit_wall_observation=observed)
        env.reset(options={"domain": 0.1, "phase": "source"})
        for _ in range(18):
            seen, _, terminated, _, _ = env.step(np.array([1.0, 0.0]))
        assert not terminated
        assert (seen[0] > 1.7) == (observed == "attempted")
    with pytest.raises(UserError, match="hit_wall"):
        Duckietown(hit_wall_observation="both")  # pyright: ignore[reportArgumentType]
    flags = {"preset": "smoke", "device": "cpu", "quiet": True}
    setting = TrainConfig(**flags, env="duckietown", hit_wall_observation="reverted").setting()
    assert setting.hit_wall_observation == "reverted"
    for wrong in ({"env": "cartpole"}, {"env": "duckietown", "method": "ppo-dr"}):
        with pytest.raises(UserError, match="--hit-wall-observation"):
            TrainConfig(**flags, **wrong, hit_wall_observation="reverted")


def test_what_is_seen_of_a_hit_reaches_the_episodes() -> None:
    """Under random actions that end at a wall: the last state is the pose attempted, or the one before it again."""

    last = []
    for seen in ("attempted", "reverted"):
        setting = replace(SETTINGS["smoke"]["duckietown"], hit_wall_observation=seen, steps=2000)
        start = Start(0.15, "target", 3)
        last.append(run_episodes([start], "duckietown", task_of("duckietown"), setting)[0])
    assert last[0].catastrophe
    assert last[1].catastrophe
    assert np.array_equal(last[0].states[:-1], last[1].states[:-1])
    assert np.array_equal(last[1].states[-1], last[1].states[-2])
    assert not np.array_equal(last[0].states[-1], last[0].states[-2])


def test_standing_still_costs_the_distance_and_the_goal_pays() -> None:
    env = Duckietown()
    env.reset(options={"domain": 0.1})
    assert sum(env.step(np.zeros(2))[1] for _ in range(125)) == pytest.approx(-219.375)
    env.pose = np.array([1.4625, 2.33, 0.0, -math.pi / 2])  # heading +z, just short of the goal
    _, reward, terminated, _, info = env.step(np.array([1.0, 0.0]))
    assert (reward, terminated, info["catastrophe"]) == (100, True, False)
    assert float(goal_distance(np.array(1.2), np.array(2.5))) == 0


def test_a_wider_car_needs_more_road() -> None:
    pose = np.array([0.3, 1.17 + 0.06, 0.0, 0.0])
    assert footprint_on_road(pose, 0.10)
    assert not footprint_on_road(pose, 0.15)


def test_cars_drive_side_by_side_as_alone() -> None:
    rng = np.random.default_rng(0)
    poses, actions = rng.uniform(0.2, 1.5, (6, 4)), rng.uniform(-1, 1, (6, 2))
    actions[0, 1] = 0  # straight ahead
    together = drive(poses, actions, 0.1)
    for pose, action, one in zip(poses, actions, together, strict=True):
        np.testing.assert_allclose(drive(pose, action, 0.1), one, rtol=0, atol=1e-12)


# -- half-cheetah ------------------------------------------------------------------------------------------------------


def test_cheetah_moves_as_the_reference_and_its_two_velocities_differ() -> None:
    env = HalfCheetahDisabled()
    env.reset(seed=0, options={"domain": 5})
    mujoco.mj_resetData(env.model, env.data)
    mujoco.mj_forward(env.model, env.data)
    for t in range(20):
        action = np.sin(0.3 * t + np.arange(6))
        seen, reward, *_ = env.step(action)
    np.testing.assert_allclose(env.data.qpos[:3], (-0.008455, -0.1209317, 0.1058445), atol=1e-5)
    assert seen[19] == pytest.approx(-0.090347, abs=1e-5)
    action[5] = 0
    assert reward + 0.05 * float(action @ action) == pytest.approx(-0.082614, abs=1e-5)


def test_the_disabled_motor_does_nothing_at_all() -> None:
    ends = []
    for last in (-1.0, 1.0):
        env = HalfCheetahDisabled()
        env.reset(seed=4, options={"domain": 5})
        for _ in range(5):
            seen, *_ = env.step(np.array([0.5, -0.5, 0.5, -0.5, 0.5, last]))
        ends.append(seen)
    np.testing.assert_array_equal(*ends)


def test_cheetah_weighs_fourteen_kilograms_without_a_warning_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert float(HalfCheetahDisabled().model.body_mass.sum()) == pytest.approx(14.0, abs=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_a_head_on_the_floor_is_the_catastrophe() -> None:
    env = HalfCheetahDisabled()
    env.reset(seed=0, options={"domain": 5, "phase": "source"})
    env.data.qpos[2] = math.pi  # on its back
    seen = [env.step(np.zeros(6))[4]["catastrophe"] for _ in range(100)]
    assert any(seen)
    assert not seen[0]
