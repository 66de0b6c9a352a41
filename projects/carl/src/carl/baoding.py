# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module, which has no stubs)
"""Baoding: a hand of 24 joints moves two free balls round an ellipse on its palm. The balls' radius is the domain.

The hand is the Adroit hand whose files ship with gymnasium-robotics (extra `hand`); only these are used, none of that
package's code. Turned palm up on a mount, with the forearm shortened, it is held by position servos.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carl.domains import DomainDistribution
from carl.simulation import MujocoSafetyEnv
from shared.config import UserError

JOINTS = 24
KEY = np.array([
    0.0126, -0.398, 0.379, 0.0564, 1.167, 0.0407, 0.265, -0.136, 1.144, 0.045, 0.074, 0.139, 1.112, 0.234, -0.022,
    -0.368, 0.0, 1.25, 0.152, -0.021, 0.374, 0.0939, -0.126, -0.536,
])  # fmt: skip
"""The pose that actions are about: fingers half closed round the balls (rad)."""
BALLS = np.array([[-0.029, -0.001, 0.19], [0.03, 0.01, 0.19]])  # m, where they start
MASS = 0.01  # kg of a ball
STEP, SKIP = 0.0025, 40  # seconds of a substep; substeps of a step
REACH, FASTEST = 0.9, 3.0  # share of the way to a joint's limits; rad/s of a joint's target
WRIST_GAIN, FINGER_GAIN = 5.0, 1.0
CENTRE, RADII, ABOVE = np.array([0.005, 0.055]), np.array([0.02, 0.036]), -0.07  # m in the palm's frame: (x, z), y
TURN, PHASES = 60, np.array([0.75 * np.pi, -0.25 * np.pi])  # steps of a revolution; where the two targets start
DROPPED, WRIST = 0.06, 0.15  # m, a ball below is lost; rad, a wrist beyond is bent
DISTANCE_COST, DROP_COST, WRIST_COST = 5.0, 500.0, 10.0
WRIST_Z = 0.256  # m from the forearm's base


def assets() -> Path:
    """The folder of the Adroit hand's files.

    Raises:
        UserError: gymnasium-robotics is not installed.
    """
    found = importlib.util.find_spec("gymnasium_robotics")  # looked for, never imported: its code wants older versions
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "--env", "baoding", "the extra `hand` installed", "uv sync --extra hand, or pip install carl[hand]"
        )
    return Path(next(iter(found.submodule_search_locations))) / "envs" / "assets" / "adroit_hand"


def _inside(text: str) -> str:
    """What stands within <mujocoinclude>."""
    begin, end = text.index("<mujocoinclude>") + len("<mujocoinclude>"), text.rindex("</mujocoinclude>")
    return text[begin:end]


@functools.lru_cache(maxsize=64)
def hand_model(radius: float) -> mujoco.MjModel:
    """The compiled hand with two balls of a radius (m)."""
    folder = assets()
    common = _inside((folder / "adroit_assets.xml").read_text(encoding="utf-8"))
    common = common.replace("resources/meshes/", f"{folder}/resources/meshes/")
    common = common.replace("resources/textures/", f"{folder}/resources/textures/")
    balls = "".join(
        f'<body name="ball{i}" pos="{x} {y} {z}"><freejoint name="ball{i}"/>'
        f'<geom name="ball{i}" type="sphere" size="{radius:.17g}" mass="{MASS}" condim="4"/></body>'
        for i, (x, y, z) in enumerate(BALLS)
    )
    text = f"""
<mujoco model="baoding">
  {common}
  <worldbody>
    <light pos="0 -1 2" dir="0 0.4 -1"/>
    <camera name="side" pos="0 -0.8 0.7" xyaxes="1 0 0 0 0.6 0.8"/>
    <geom name="floor" type="plane" size="1 1 0.1" material="MatGnd"/>
    <body name="mount" pos="0 -0.4 0.2" euler="-1.57 0 0">
      <inertial pos="0 0 0" mass="0.1" diaginertia="0.001 0.001 0.001"/>
      <body name="forearm" pos="0 0.01 0">
        <inertial pos="0 0 0.09" mass="4" diaginertia="0.01 0.01 0.0075"/>
        {_inside((folder / "adroit_model.xml").read_text(encoding="utf-8"))}
      </body>
    </body>
    {balls}
  </worldbody>
</mujoco>"""
    spec = mujoco.MjSpec.from_string(text)
    spec.option.timestep = STEP
    wrist, palm = spec.body("wrist"), spec.body("palm")
    wrist.pos = [0.0, 0.0, WRIST_Z]
    for i in range(2):
        palm.add_site(name=f"target{i}", pos=[CENTRE[0], ABOVE, CENTRE[1]], size=[0.008, 0, 0], group=2)
    for place, actuator in enumerate(spec.actuators):
        gain = WRIST_GAIN if place < 2 else FINGER_GAIN
        actuator.gainprm[0], actuator.biasprm[1] = gain, -gain
    return spec.compile()


def targets_at(step: int) -> NDArray[np.float64]:
    """(2, 2): where the balls should be after some steps, (x, z) in the palm's frame."""
    angle = 2 * np.pi * step / TURN + PHASES
    return CENTRE + RADII * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


class Baoding(MujocoSafetyEnv):
    """Observation (40): joints (24, rad); position and velocity of ball 1 and of ball 2 (3 each, m and m/s); where the
    two targets are in the world's x and y (4). Action: 24 joint targets about the key pose, in [-1, 1] of 0.9 of the
    way to their limits, followed at 3 rad/s at most. A dropped ball is the catastrophe, and ends an episode in both
    phases.
    """

    source: ClassVar = DomainDistribution("ball radius (m)", 0.026, 0.027, lowest=0.0, highest=0.05, listed=(0.0265,))
    disturbance_dim: ClassVar[int] = 6
    frame_skip: ClassVar[int] = SKIP
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (40,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (JOINTS,), np.float64)
        self.count = 0
        super().__init__(render_mode)

    @classmethod
    def model_of(cls, domain: float) -> mujoco.MjModel:
        return hand_model(domain)

    def _use(self, model: mujoco.MjModel) -> None:
        super()._use(model)
        self._targets = [model.site(f"target{i}").id for i in range(2)]
        self._balls = [model.body(f"ball{i}").id for i in range(2)]
        self._limits = model.jnt_range[:JOINTS].copy()

    def _begin(self) -> NDArray[np.float64]:
        self._use(self.model_of(self.domain).__copy__())  # the sites move: a model of this environment's own
        self.data.qpos[:JOINTS] = KEY
        for i in range(2):
            at = JOINTS + 7 * i
            self.data.qpos[at : at + 7] = [*BALLS[i], 1.0, 0.0, 0.0, 0.0]
        self.count, self.goal = 0, KEY.copy()
        self._place_targets()
        mujoco.mj_forward(self.model, self.data)
        return self.state()

    def _place_targets(self) -> None:
        for i, (x, z) in enumerate(targets_at(self.count)):
            self.model.site_pos[self._targets[i]] = [x, ABOVE, z]

    def state(self) -> NDArray[np.float64]:
        balls = [
            part
            for i in range(2)
            for part in (
                self.data.qpos[JOINTS + 7 * i : JOINTS + 7 * i + 3],
                self.data.qvel[JOINTS + 6 * i : JOINTS + 6 * i + 3],
            )
        ]
        return np.concatenate([self.data.qpos[:JOINTS], *balls, *(self.data.site_xpos[t, :2] for t in self._targets)])

    def joint_targets(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """(24,) angles that an action asks for, before the limit on their speed."""
        low, high = self._limits.T
        room = np.where(action >= 0, high - KEY, KEY - low)
        return KEY + REACH * action * room

    def _advance(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool]:
        furthest = FASTEST * self.dt
        self.goal = self.goal + np.clip(self.joint_targets(action) - self.goal, -furthest, furthest)
        self.data.xfrc_applied[:] = 0
        if self.push is not None:  # forces on the balls, up to their weight
            for i, ball in enumerate(self._balls):
                self.data.xfrc_applied[ball, :3] = MASS * 9.81 * self.push[3 * i : 3 * i + 3]
        self.count += 1
        self._place_targets()
        self.simulate(self.goal)
        mujoco.mj_forward(self.model, self.data)
        state = self.state()
        reward, dropped = reward_of(state)
        return state, float(reward), bool(dropped), bool(dropped)

    def physics(self) -> NDArray[np.float64]:
        return np.concatenate([super().physics(), self.goal, [self.count]])

    def set_physics(self, state: NDArray[np.float64]) -> None:
        self.goal, self.count = np.array(state[-JOINTS - 1 : -1]), int(state[-1])
        self._place_targets()
        super().set_physics(state[: -JOINTS - 1])


def reward_of(state: Any, norm: Any = None, where: Any = np.where) -> tuple[Any, Any]:
    """-5 (d1 + d2) - 500 [a ball is lost] - 10 [the wrist is bent], and whether a ball is lost.

    Args:
        state: (..., 40), NumPy or torch. norm, where: of the library; default NumPy's.
    """
    norm = norm or (lambda x: np.linalg.norm(x, axis=-1))
    one, other = state[..., 24:27], state[..., 30:33]
    distance = norm(one[..., :2] - state[..., 36:38]) + norm(other[..., :2] - state[..., 38:40])
    lost = (one[..., 2] < DROPPED) | (other[..., 2] < DROPPED)
    bent = state[..., 0] > WRIST
    zero = distance * 0
    return -DISTANCE_COST * distance - where(lost, zero + DROP_COST, zero) - where(bent, zero + WRIST_COST, zero), lost
