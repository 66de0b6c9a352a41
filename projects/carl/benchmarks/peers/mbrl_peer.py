"""mbrl-lib's planner at given sizes, for the race in `planning.py`: runs in an environment of its own, which has
mbrl-lib and not this project. Reads one line with the sizes as JSON, then plans one action a line and answers with
milliseconds.

CEM over particles that keep their net ("fixed_model"), cartpole's reward, nets of the same widths with SiLU.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def features(state: Any) -> Any:
    """(n, 5) of states (n, 4), as cartpole's networks see them."""
    library = torch if isinstance(state, torch.Tensor) else np
    x, theta, dx, dtheta = (state[..., i] for i in range(4))
    return library.stack([library.sin(theta), library.cos(theta), x, dx, dtheta], -1)


def reward(action: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """(n, 1): cartpole's reward for a pole of 1 m, less the planner's action cost."""
    x, theta = state[:, 0], state[:, 1]
    distance = (x + theta.sin()) ** 2 + (theta.cos() - 1) ** 2
    return (torch.exp(-distance) - 0.01 * action.square().sum(-1)).unsqueeze(-1)


def never(action: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """(n, 1): nothing ends."""
    return torch.zeros(len(state), 1, dtype=torch.bool, device=state.device)


def planner(sizes: dict[str, Any]) -> Any:
    """A function that plans one action."""
    from mbrl.models import GaussianMLP, ModelEnv, OneDTransitionRewardModel
    from mbrl.planning.trajectory_opt import CEMOptimizer

    device = torch.device("cpu")
    nets = GaussianMLP(
        6, 4, device, num_layers=sizes["layers"], ensemble_size=sizes["nets"], hid_size=sizes["width"],
        propagation_method="fixed_model", learn_logvar_bounds=True,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )  # fmt: skip
    model = OneDTransitionRewardModel(nets, target_is_delta=True, learned_rewards=False, obs_process_fn=features)
    box = SimpleNamespace(shape=(4,))
    world = SimpleNamespace(observation_space=box, action_space=SimpleNamespace(shape=(1,)))
    env = ModelEnv(world, model, never, reward, torch.Generator().manual_seed(0))
    horizon, candidates = sizes["horizon"], sizes["candidates"]
    cem = CEMOptimizer(
        sizes["iterations"], sizes["elites"] / candidates, candidates, [[-3.0]] * horizon, [[3.0]] * horizon,
        sizes["alpha"], device, return_mean_elites=True,
    )  # fmt: skip
    state = np.array([0.01, 0.02, 0.0, 0.0], np.float32)
    start = torch.zeros(horizon, 1)

    def act() -> None:
        cem.optimize(lambda plans: env.evaluate_action_sequences(plans, state, sizes["particles"]), x0=start)

    return act


def bowl_optima(seeds: int) -> list[list[float]]:
    """What mbrl-lib's CEM finds on a quadratic bowl in 3 x 2 dimensions, under so many seeds."""
    from mbrl.planning.trajectory_opt import CEMOptimizer

    centre = torch.linspace(-0.6, 0.7, 6).reshape(3, 2)
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        cem = CEMOptimizer(
            5, 0.1, 100, [[-1.0, -2.0]] * 3, [[1.0, 2.0]] * 3, 0.1, torch.device("cpu"), return_mean_elites=True
        )
        best = cem.optimize(lambda plans: -(plans - centre).square().sum((1, 2)), x0=torch.zeros(3, 2))
        found.append(best.flatten().tolist())
    return found


def main() -> int:
    """See above; a first line `{"bowl": n}` asks for `bowl_optima` alone."""
    sizes = json.loads(sys.stdin.readline())
    if "bowl" in sizes:
        print(json.dumps(bowl_optima(sizes["bowl"])), flush=True)
        return 0
    torch.set_num_threads(sizes["threads"])
    act = planner(sizes)
    act()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        act()
        print(json.dumps({"ms": 1000 * (time.perf_counter() - began)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
