# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module, which has no stubs)
"""Half-cheetah with a disabled joint: run forward while one unknown motor does nothing. Which one is the domain.

The model is gymnasium's own, stepped without frame skip. The joint keeps its spring; its motor's action is zeroed.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carl.domains import DomainDistribution
from carl.simulation import MujocoSafetyEnv, compiled

TOTAL_MASS = 14.0  # kg
CONTROL_COST = 0.05
PUSH = 25.0  # N and N m: an adversary's largest wrench on the torso
JOINTS = 6  # motors: back thigh, shin, foot, front thigh, shin, foot


@functools.cache
def model_text() -> str:
    """gymnasium's half-cheetah without `settotalmass`, which MuJoCo 4 warns of (into a file in the current folder); the
    bodies' densities are scaled to the same total instead."""
    import gymnasium.envs.mujoco as packaged

    text = (Path(packaged.__file__).parent / "assets" / "half_cheetah.xml").read_text(encoding="utf-8")
    text = re.sub(r'\s*settotalmass="[^"]*"', "", text)
    mass = float(mujoco.MjModel.from_xml_string(text).body_mass.sum())
    density = 1000.0 * TOTAL_MASS / mass  # MuJoCo's default density is 1000
    return text.replace("<geom ", f'<geom density="{density:.17g}" ', 1)


class HalfCheetahDisabled(MujocoSafetyEnv):
    """Observation (20): positions but x (8), velocities (9), the torso subtree's centre y and z, and its forward
    velocity over the last step. Actions: 6 motors in [-1, 1]. A touch of head and floor is the catastrophe."""

    source: ClassVar = DomainDistribution(
        "disabled joint", choices=(1.0, 2.0, 3.0, 4.0), lowest=-0.5, highest=JOINTS - 1, whole=True
    )
    disturbance_dim: ClassVar[int] = 3
    frame_skip: ClassVar[int] = 1
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (20,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (JOINTS,), np.float64)
        self.velocity = 0.0
        super().__init__(render_mode)
        self._torso = int(mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, "torso"))
        self._head, self._floor = (
            int(mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_GEOM, name)) for name in ("head", "floor")
        )

    @classmethod
    def model_of(cls, domain: float) -> mujoco.MjModel:
        return compiled(model_text())

    def _begin(self) -> NDArray[np.float64]:
        mujoco.mj_resetData(self.model, self.data)  # its counts of warnings too
        self.data.qpos[:] += 0.01 * self.np_random.standard_normal(self.model.nq)
        self.data.qvel[:] = 0.1 * self.np_random.standard_normal(self.model.nv)
        mujoco.mj_forward(self.model, self.data)
        self.velocity = 0.0
        return self.state()

    def state(self) -> NDArray[np.float64]:
        com = self.data.subtree_com[self._torso]
        return np.concatenate([self.data.qpos[1:], self.data.qvel, com[1:3], [self.velocity]])

    def _advance(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool]:
        masked = action.copy()
        masked[int(self.domain)] = 0.0
        self.data.xfrc_applied[:] = 0
        if self.push is not None:  # force along x and z and torque about y, together of norm one at most
            fx, fz, torque = PUSH * self.push / max(1.0, float(np.linalg.norm(self.push)))
            self.data.xfrc_applied[self._torso] = [fx, 0.0, fz, 0.0, torque, 0.0]
        before = float(self.data.subtree_com[self._torso, 0])
        self.simulate(masked)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_subtreeVel(self.model, self.data)
        self.velocity = (float(self.data.subtree_com[self._torso, 0]) - before) / self.dt
        speed = float(self.data.subtree_linvel[self._torso, 0])
        reward = speed - CONTROL_COST * float(masked @ masked)
        pairs = self.data.contact.geom[: self.data.ncon]
        touching = bool((np.sort(pairs, axis=1) == sorted((self._head, self._floor))).all(axis=1).any())
        return self.state(), reward, touching, False

    def physics(self) -> NDArray[np.float64]:
        return np.append(super().physics(), self.velocity)

    def set_physics(self, state: NDArray[np.float64]) -> None:
        super().set_physics(state[:-1])
        self.velocity = float(state[-1])
