"""Random numbers of several problems that are planned at once.

A problem's numbers come from its stream alone, so that they do not depend on which other problems are in the batch; and
variants that share a stream meet the same numbers and differ by their caution alone.

Dimensions: G problems, S streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STRIDE = 0x9E3779B97F4A7C15  # odd and without pattern: steps of one stream are far from those of another


def mixed(seed: int, *parts: int | str) -> int:
    """A seed for one purpose: (run's seed, what for, which iteration, ...), in [0, 2**63)."""
    numbers = [int.from_bytes(part.encode()[:8], "little") if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)[0] >> 1)


class Streams:
    """Generators, and whose they are.

    Args:
        seeds: of every problem; problems with equal seeds share a stream.
        device: where numbers are drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        known = {seed: place for place, seed in enumerate(dict.fromkeys(seeds))}
        self.seeds = list(known)
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in known]
        self.of = [known[seed] for seed in seeds]

    def at(self, step: int) -> Streams:
        """The streams as they are at the beginning of a step, whatever was drawn before it. Returns itself."""
        for seed, generator in zip(self.seeds, self.generators, strict=True):
            generator.manual_seed((seed + step * STRIDE) % 2**63)
        return self

    def keep(self, problems: Sequence[int]) -> None:
        """Go on with these problems, in this order; the others draw no more."""
        left = [self.of[problem] for problem in problems]
        kept = {old: new for new, old in enumerate(dict.fromkeys(left))}
        self.generators, self.of = [self.generators[old] for old in kept], [kept[old] for old in left]
        self.seeds = [self.seeds[old] for old in kept]

    def gather(self, drawn: list[Tensor]) -> Tensor:
        """(G, ...) from one tensor a stream; (1, ...) where all share one."""
        stacked = torch.stack(drawn)
        return stacked if len(drawn) == 1 else stacked[self.of]


Source = torch.Generator | Streams | None
"""Where random numbers come from: streams, or one generator for all problems."""


def normals(problems: int, shape: tuple[int, ...], source: Source, device: torch.device | str) -> Tensor:
    """Standard normal variates (G, *shape), or (1, *shape) where all problems share them."""
    if isinstance(source, Streams):
        return source.gather([torch.randn(shape, generator=each, device=device) for each in source.generators])
    return torch.randn((problems, *shape), generator=source, device=device)


def uniforms(problems: int, shape: tuple[int, ...], source: Source, device: torch.device | str) -> Tensor:
    """Uniform variates in [0, 1), likewise."""
    if isinstance(source, Streams):
        return source.gather([torch.rand(shape, generator=each, device=device) for each in source.generators])
    return torch.rand((problems, *shape), generator=source, device=device)
