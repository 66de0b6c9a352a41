"""Learning and planning on a pretended accelerator: nothing of them is left on the CPU that a GPU would miss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from carl.adaptation import adapt, branch
from carl.learner import Learner
from carl.pretraining import make_learners, source_iteration
from carl.risk import Risk
from carl.settings import SETTINGS
from carl.task import task_of
from shared.elsewhere import elsewhere

SMALL: dict[str, Any] = {"steps": 4, "fit_steps": 3, "source_iterations": 1, "adapt_iterations": 1}


@pytest.mark.parametrize("env", ["cartpole", "duckietown", "half-cheetah"])
def test_a_variant_learns_plans_and_adapts(env: str) -> None:
    setting = replace(SETTINGS["smoke"][env], **SMALL)
    if env == "duckietown":
        setting = replace(setting, optimiser="mppi")
    target = setting.targets[0]
    with elsewhere():
        learners: list[Learner] = make_learners(env, setting, [0, 1], "meta")
        for iteration in range(2):
            source_iteration(learners, [0, 1], env, setting, iteration)
        branches = [
            branch(learners[0], Risk(name), target, 0, name, True, name == "state")
            for name in ("none", "reward", "state", "reward+state")
        ]
        logs = adapt(branches, env, task_of(env), setting, test_episodes=1)
        errors = learners[0].errors(logs[0].adaptation)
        votes = learners[0].catastrophe_probability(logs[0].adaptation)
    assert all(len(log.adaptation) == 1 and log.adaptation[0].length > 0 for log in logs)
    assert errors["mse"] >= 0
    assert votes[0].shape == (setting.nets, len(votes[1]))
