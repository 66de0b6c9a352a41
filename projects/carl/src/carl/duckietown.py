"""Driving: a car of unknown width turns a corner of a small town of tiles. The width is the domain.

Only the planar kinematics of gym-duckietown matter here, as the paper's code changed them; nothing is drawn but for a
picture from above. Heading th has forward vector (cos th, -sin th) and right vector (sin th, cos th).

Dimensions: leading dimensions of poses are any number of cars.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from carl.domains import DomainDistribution
from carl.simulation import SafetyEnv
from shared.config import UserError, check_choice

TILE = 0.585  # m
DRIVABLE = frozenset({(2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (0, 2), (1, 2)})  # (column, row): a T
COLUMNS, ROWS = 3, 5
GOAL = (2, 4)
START = (0.2925, 1.4625)  # m, heading 0
DT, SKIP = 1 / 30, 2  # seconds of a substep; substeps of a step
REACH = 0.0318 * 27  # wheel radius times motor constant: commands beyond saturate
TOP = 1.2  # m/s of a saturated wheel
PUSH = 0.15  # m/s: an adversary's largest disturbance of a wheel's speed
MARGIN = 0.03  # m: the wheels stand that much closer together than the car is wide
REAR, NOSE = 0.066 - 0.09, 0.09  # m: where the footprint's middle and front lie
ARRIVED = 100.0  # reward on the goal tile
Observed = Literal["attempted", "reverted"]


def goal_distance(x: Any, z: Any, largest: Any = np.maximum) -> Any:
    """Manhattan distance (m) to the goal tile's rectangle; NumPy or torch (`largest` of the library)."""
    column, row = GOAL
    left, right, near, far = column * TILE, (column + 1) * TILE, row * TILE, (row + 1) * TILE
    zero = x * 0
    across = largest(largest(left - x, x - right), zero)
    along = largest(largest(near - z, z - far), zero)
    return across + along


def drive(
    pose: NDArray[np.float64], action: NDArray[np.float64], width: float, push: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """One substep of the kinematics.

    Args:
        pose: (..., 4) x, z, speed, heading. action: (..., 2) forward and turning command in [-1, 1].
        width: of the car, m. push: (2,) in [-1, 1], an adversary's on the speeds of the left and right wheel.

    Returns: (..., 4); speed is that of the straight line between the poses.
    """
    x, z, _, heading = np.moveaxis(pose, -1, 0)
    forward, turn = np.moveaxis(action, -1, 0)
    base = width - MARGIN
    left, right = (TOP * np.clip((forward + side * 0.5 * turn * base) / REACH, -1, 1) for side in (-1, 1))
    if push is not None:
        left, right = left + PUSH * push[0], right + PUSH * push[1]
    straight = left == right
    omega = np.where(straight, 0.0, (right - left) / base)
    radius = np.where(straight, 0.0, base * (left + right) / 2 / np.where(straight, 1.0, left - right))
    angle = omega * DT
    # About the centre of the turn, on the right of the car.
    cx, cz = x + radius * np.sin(heading), z + radius * np.cos(heading)
    dx, dz = x - cx, z - cz
    turned_x = cx + dx * np.cos(angle) + dz * np.sin(angle)
    turned_z = cz + dz * np.cos(angle) - dx * np.sin(angle)
    new_x = np.where(straight, x + left * DT * np.cos(heading), turned_x)
    new_z = np.where(straight, z - left * DT * np.sin(heading), turned_z)
    speed = np.hypot(new_x - x, new_z - z) / DT
    return np.stack([new_x, new_z, speed, heading + angle], axis=-1)


def on_road(x: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points lie on drivable tiles."""
    grid = np.zeros((COLUMNS + 1, ROWS + 1), bool)  # the last of each stands for outside
    for column, row in DRIVABLE:
        grid[column, row] = True
    column, row = np.floor(x / TILE), np.floor(z / TILE)
    column = np.where((column < 0) | (column >= COLUMNS), COLUMNS, column).astype(int)
    row = np.where((row < 0) | (row >= ROWS), ROWS, row).astype(int)
    return grid[column, row]


def footprint_on_road(pose: NDArray[np.float64], width: float) -> NDArray[np.bool_]:
    """Whether the middle of the car, both of its sides and its nose are on drivable tiles. pose: (..., 4)."""
    x, z, _, heading = np.moveaxis(pose, -1, 0)
    ahead, right = (np.cos(heading), -np.sin(heading)), (np.sin(heading), np.cos(heading))
    cx, cz = x + REAR * ahead[0], z + REAR * ahead[1]
    half = width / 2
    valid = on_road(cx, cz)
    for dx, dz in (
        (-half * right[0], -half * right[1]),
        (half * right[0], half * right[1]),
        (NOSE * ahead[0], NOSE * ahead[1]),
    ):
        valid = valid & on_road(cx + dx, cz + dz)
    return valid


class Duckietown(SafetyEnv):
    """State (x m, z m, speed m/s, heading rad). Action (forward, turn) in [-1, 1]. Hitting a wall is the catastrophe.

    Args:
        hit_wall_observation: what is seen of the step that hits: the pose that was `attempted`, as in the authors'
            code, or the one it was `reverted` to.
        render_mode: None or `rgb_array`.
    """

    disturbance_dim: ClassVar[int] = 2
    source: ClassVar = DomainDistribution("car width (m)", 0.05, 0.10, lowest=MARGIN, highest=0.5)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, hit_wall_observation: Observed = "attempted", render_mode: str | None = None) -> None:
        super().__init__()
        check_choice("hit_wall_observation", hit_wall_observation, ("attempted", "reverted"))
        if render_mode not in (None, "rgb_array"):
            raise UserError("render_mode", render_mode, ["rgb_array"])
        self.hit_wall_observation, self.render_mode = hit_wall_observation, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.pose = np.array([*START, 0.0, 0.0])

    def _begin(self) -> NDArray[np.float64]:
        self.pose = np.array([*START, 0.0, 0.0])
        return self.pose.copy()

    def physics(self) -> NDArray[np.float64]:
        """Everything that the next step depends on."""
        return self.pose.copy()

    def set_physics(self, state: NDArray[np.float64]) -> None:
        """Go on from a state of `physics`."""
        self.pose = np.array(state, np.float64)

    def _advance(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool]:
        attempted = self.pose
        for _ in range(SKIP):
            attempted = drive(attempted, action, self.domain, self.push)
        hit = not bool(footprint_on_road(attempted, self.domain))
        if not hit:
            self.pose = attempted
        distance = float(goal_distance(self.pose[0], self.pose[1]))
        there = distance == 0.0
        seen = attempted if hit and self.hit_wall_observation == "attempted" else self.pose
        return seen.copy(), ARRIVED if there else -distance, hit, there

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(250, 150, 3): the town from above, road grey, goal green, the car red."""
        if self.render_mode is None:
            return None
        scale = 50 / TILE
        image = np.full((50 * ROWS, 50 * COLUMNS, 3), 30, np.uint8)
        for column, row in DRIVABLE:
            colour = (60, 160, 60) if (column, row) == GOAL else (150, 150, 150)
            image[50 * row : 50 * row + 50, 50 * column : 50 * column + 50] = colour
        rows, columns = np.mgrid[0 : 50 * ROWS, 0 : 50 * COLUMNS]
        x, z, _, heading = self.pose
        dx, dz = (columns + 0.5) / scale - x, (rows + 0.5) / scale - z
        along, aside = dx * np.cos(heading) - dz * np.sin(heading), dx * np.sin(heading) + dz * np.cos(heading)
        image[(np.abs(along - REAR) <= NOSE) & (np.abs(aside) <= self.domain / 2)] = (200, 40, 40)
        return image
