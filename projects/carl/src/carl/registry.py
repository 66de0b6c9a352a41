"""The environments under their gymnasium names, with the paper's horizons; importing this makes them known:
`gymnasium.make("carl.registry:carl/Cartpole-v0")`."""

from __future__ import annotations

import gymnasium

NAMES = {
    "cartpole": ("carl/Cartpole-v0", "carl.cartpole:Cartpole", 200),
    "duckietown": ("carl/Duckietown-v0", "carl.duckietown:Duckietown", 125),
    "baoding": ("carl/Baoding-v0", "carl.baoding:Baoding", 100),
    "half-cheetah": ("carl/HalfCheetahDisabled-v0", "carl.half_cheetah:HalfCheetahDisabled", 1000),
}
"""name -> (gymnasium id, entry point, steps of an episode)."""


def register() -> None:
    """Make the environments known to gymnasium; safe to call again."""
    for identifier, entry, steps in NAMES.values():
        if identifier not in gymnasium.registry:
            gymnasium.register(identifier, entry_point=entry, max_episode_steps=steps)


register()
