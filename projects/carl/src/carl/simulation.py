# pyright: reportAttributeAccessIssue=false
# (MuJoCo's names come from a compiled module, which has no stubs)
"""What the environments over MuJoCo have in common: a model built in memory for every domain, phases, exact states.

An episode begins with `reset(options={"domain": value, "phase": "source" | "target"})`; without a domain one is drawn
from the source distribution. In the source phase an episode goes on after a catastrophe, in the target phase it ends.
`info` says whether the state is a catastrophe; the observation never holds the domain.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carl.domains import PHASES, DomainDistribution, Phase
from shared.config import UserError, check_choice

STATE = mujoco.mjtState.mjSTATE_INTEGRATION
BROKEN = (
    int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQVEL), int(mujoco.mjtWarning.mjWARN_BADQACC),
)  # fmt: skip
mujoco.set_mju_user_warning(lambda message: None)  # else MuJoCo writes MUJOCO_LOG.TXT into the current folder


class SafetyEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Phases and domains, whatever simulates. Subclasses set `source`, spaces, and give `_begin` and `_advance`."""

    source: ClassVar[DomainDistribution]
    disturbance_dim: ClassVar[int]
    """Numbers that an adversary chooses a step."""

    def __init__(self) -> None:
        self.push: NDArray[np.float64] | None = None
        self.domain = float("nan")
        self.broken = False  # the simulation of this episode broke down
        self.phase: Phase = "target"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begin an episode.

        Args:
            options: `domain`, the dynamics parameter (default: drawn from the sources); `phase` (default: target).

        Raises:
            UserError: another option, a domain that cannot be simulated, no such phase.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        domain, phase = options.pop("domain", None), options.pop("phase", "target")
        if options:
            raise UserError("reset option", next(iter(options)), ["domain", "phase"])
        check_choice("phase", phase, PHASES)
        self.phase, self.push, self.broken = phase, None, False
        self.domain = self.source.sample(self.np_random) if domain is None else self.source.check(float(domain))
        return self._begin(), {"catastrophe": False}

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        assert isinstance(self.action_space, spaces.Box)
        action = np.clip(np.asarray(action, np.float64), self.action_space.low, self.action_space.high)
        observation, reward, catastrophe, done = self._advance(action)
        unstable = self.broken or not bool(np.isfinite(observation).all())
        terminated = done or unstable or (catastrophe and self.phase == "target")
        info = {"catastrophe": catastrophe, "unstable": unstable}
        self.push = None
        return observation, reward, terminated, False, info

    def disturb(self, push: NDArray[np.floating]) -> None:
        """Disturb the next step: each number in [-1, 1], of the largest disturbance of the environment; clipped."""
        self.push = np.clip(np.asarray(push, np.float64), -1, 1)

    def _begin(self) -> NDArray[np.float64]:
        """Reset to a first state of `self.domain`; returns the observation."""
        raise NotImplementedError

    def _advance(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool]:
        """One step: observation, reward, catastrophe, goal reached."""
        raise NotImplementedError


class MujocoSafetyEnv(SafetyEnv):
    """A `SafetyEnv` whose domain is a MuJoCo model. Subclasses give `model_of`, and both steps on `self.data`.

    Args:
        render_mode: None or `rgb_array`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    frame_skip: ClassVar[int]

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._renderer: Any = None
        self._use(self.model_of(self.source.sample(np.random.default_rng(0))))

    @classmethod
    def model_of(cls, domain: float) -> mujoco.MjModel:
        """The compiled model of a domain."""
        raise NotImplementedError

    def _use(self, model: mujoco.MjModel) -> None:
        """Simulate this model from now on."""
        self.close()
        self.model, self.data = model, mujoco.MjData(model)

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        return float(self.model.opt.timestep) * self.frame_skip

    def simulate(self, control: NDArray[np.float64]) -> None:
        """`frame_skip` steps of the physics under a control."""
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
        # MuJoCo begins anew by itself when a state is no number or too large, and only counts that.
        self.broken |= any(int(self.data.warning[kind].number) for kind in BROKEN)

    def physics(self) -> NDArray[np.float64]:
        """Everything that the next step of the simulation depends on."""
        state = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, state, STATE)
        return state

    def set_physics(self, state: NDArray[np.float64]) -> None:
        """Go on from a state of `physics`, of the same domain."""
        mujoco.mj_setState(self.model, self.data, state, STATE)
        mujoco.mj_forward(self.model, self.data)

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(height, width, 3) of the camera `side`, or None without a render mode.

        Raises:
            UserError: no OpenGL to draw with.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            try:
                self._renderer = mujoco.Renderer(self.model, 240, 320)
            except Exception as error:  # each of MuJoCo's backends fails in its own way
                hint = f"{error}. Set MUJOCO_GL to egl (a GPU) or osmesa (software), with its library installed."
                raise UserError("rendering", "no OpenGL context", "a machine that can draw off screen", hint) from error
        self._renderer.update_scene(self.data)
        return self._renderer.render()

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


@functools.lru_cache(maxsize=64)
def compiled(xml: str) -> mujoco.MjModel:
    """A model by its text. Models are read only here, and a batch of environments asks for the same ones often."""
    return mujoco.MjModel.from_xml_string(xml)
