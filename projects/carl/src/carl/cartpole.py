# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module, which has no stubs)
"""Cartpole: keep a pole of unknown length upright on a cart. The length is the domain, and the mass follows from it."""

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carl.domains import DomainDistribution
from carl.simulation import MujocoSafetyEnv, compiled

MODEL = """
<mujoco model="cartpole">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option gravity="0 0 -9.81" integrator="RK4" timestep="0.02"/>
  <default>
    <joint armature="0" damping="1"/>
    <geom contype="0" conaffinity="0" density="1000"/>
  </default>
  <worldbody>
    <light pos="0 -3 3" dir="0 1 -1"/>
    <camera name="side" pos="0 -5 0.5" xyaxes="1 0 0 0 0 1"/>
    <geom name="rail" type="capsule" fromto="-2.5 0 0 2.5 0 0" size="0.02" rgba="0.3 0.3 0.7 1" mass="0"/>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0" limited="true" range="-2.5 2.5"/>
      <geom name="cart" type="capsule" fromto="-0.1 0 0 0.1 0 0" size="0.1" rgba="0.1 0.3 0.5 1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0" limited="false"/>
        <geom name="pole" type="capsule" fromto="0 0 0 0.001 0 {length:.17g}" size="0.049" rgba="0.8 0.5 0.2 1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slider" gear="100" ctrllimited="true" ctrlrange="-3 3"/></actuator>
</mujoco>
"""
FALLEN, OFF = np.pi / 2, 2.4  # rad, m: a catastrophe is beyond
PUSH = 30.0  # N: an adversary's largest force on the tip
NOISE = 0.01  # of positions and velocities at reset


def closeness(x: Any, sine: Any, cosine: Any, length: Any, exp: Any = np.exp) -> Any:
    """exp(-(distance of the pole's tip from upright over x = 0)^2 / L^2): the reward, in (0, 1].

    Works on NumPy and torch alike (`exp` of the library).
    """
    return exp(-((x / length + sine) ** 2 + (cosine - 1) ** 2))


class Cartpole(MujocoSafetyEnv):
    """State (x m, theta rad, velocities); theta = 0 is up, where an episode starts. Action: force / 100 N, [-3, 3]."""

    source: ClassVar = DomainDistribution("pole length (m)", 0.4, 0.8, lowest=0.1, highest=10.0)
    disturbance_dim: ClassVar[int] = 1
    frame_skip: ClassVar[int] = 2
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = spaces.Box(-3.0, 3.0, (1,), np.float64)
        super().__init__(render_mode)

    @classmethod
    def model_of(cls, domain: float) -> mujoco.MjModel:
        return compiled(MODEL.format(length=domain))

    def _begin(self) -> NDArray[np.float64]:
        self._use(self.model_of(self.domain))
        self.data.qpos[:] = self.np_random.uniform(-NOISE, NOISE, 2)
        self.data.qvel[:] = self.np_random.uniform(-NOISE, NOISE, 2)
        mujoco.mj_forward(self.model, self.data)
        return self.state()

    def state(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def _advance(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool]:
        self.data.qfrc_applied[:] = 0
        if self.push is not None:  # along the rail, at the pole's tip
            body = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_BODY, "pole")
            x, theta = self.data.qpos
            tip = np.array([x + self.domain * np.sin(theta), 0.0, self.domain * np.cos(theta)])
            force = np.array([PUSH * float(self.push[0]), 0.0, 0.0])
            mujoco.mj_applyFT(self.model, self.data, force, np.zeros(3), tip, body, self.data.qfrc_applied)
        self.simulate(action)
        x, theta, *_ = state = self.state()
        reward = float(closeness(x, np.sin(theta), np.cos(theta), self.domain))
        return state, reward, bool(abs(theta) > FALLEN or abs(x) >= OFF), False
