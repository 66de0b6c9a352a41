"""What an environment keeps to itself: the dynamics parameter, where it comes from in the source phase, and whether a
target lies outside of that. Imports no torch.

Safety-critical adaptation (Section 3 of the paper): many source domains in which failure is free, one target domain,
outside their distribution, in which a catastrophe counts. The parameter is never observed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared.config import UserError

Phase = Literal["source", "target"]
PHASES: tuple[Phase, ...] = ("source", "target")


@dataclass(frozen=True)
class DomainDistribution:
    """Where source domains are drawn from: an interval, or a list of choices.

    Attributes:
        name: what the parameter is called, with its unit.
        low, high: ends of the interval.
        choices: values with equal chance, in place of an interval.
        lowest, highest: limits of what can be simulated at all; `lowest` itself is excluded, `highest` is not.
        whole: only whole numbers make sense.
        listed: targets inside the source range that are meant.

    Raises:
        UserError: an empty or reversed interval, no choices, values beyond the limits.
    """

    name: str
    low: float = math.nan
    high: float = math.nan
    choices: tuple[float, ...] = ()
    lowest: float = float("-inf")
    highest: float = float("inf")
    whole: bool = False
    listed: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.choices and math.isnan(self.low) and math.isnan(self.high):
            raise UserError(f"source range of {self.name}", "nothing", "low and high, or choices")
        if not self.choices and not self.low < self.high:
            raise UserError(f"source range of {self.name}", f"{self.low} to {self.high}", "low < high")
        for value in self.choices or (self.low, self.high):
            self.check(value, f"source range of {self.name}")

    def between(self, low: float, high: float) -> DomainDistribution:
        """The same parameter, drawn from another interval.

        Raises:
            UserError: a reversed or empty one, ends that cannot be simulated, a parameter that is a list of choices.
        """
        if self.choices:
            raise UserError("--source-range", f"{low:g} to {high:g}", f"none: sources are {self.describe()}")
        return dataclasses.replace(self, low=low, high=high)

    def few(self, count: int, seed: int) -> DomainDistribution:
        """So many different domains, drawn once."""
        stream = np.random.default_rng(seed)
        if self.choices:
            if count > len(self.choices):
                raise UserError("--source-domains", count, f"at most the {len(self.choices)} there are")
            drawn = tuple(float(value) for value in stream.choice(self.choices, count, replace=False))
        else:
            drawn = tuple(self.sample(stream) for _ in range(count))
        return dataclasses.replace(self, low=math.nan, high=math.nan, choices=drawn)

    def sample(self, generator: np.random.Generator) -> float:
        """One source domain."""
        if self.choices:
            return float(self.choices[int(generator.integers(len(self.choices)))])
        return float(generator.uniform(self.low, self.high))

    def contains(self, value: float) -> bool:
        """Whether a domain is one that the source phase could draw."""
        if self.choices:
            return value in self.choices
        return self.low <= value <= self.high

    def check(self, value: float, field: str = "domain") -> float:
        """The value, if it can be simulated.

        Raises:
            UserError: beyond the limits, not finite, or not whole where it must be.
        """
        valid = f"{self.name} in ({self.lowest:g}, {self.highest:g}]"
        if not (self.lowest < value <= self.highest):  # NaN is refused here too
            raise UserError(field, value, valid)
        if self.whole and value != int(value):
            raise UserError(field, value, f"{valid}, a whole number")
        return float(value)

    def check_target(self, value: float, in_distribution: bool = False, field: str = "--target") -> float:
        """The value, if it is a target that adaptation can be judged on.

        Raises:
            UserError: beyond the limits; inside the source range, unless that is meant.
        """
        self.check(value, field)
        if self.contains(value) and value not in self.listed and not in_distribution:
            hint = "It is not out of the distribution. To measure that on purpose, say --in-distribution."
            raise UserError(field, value, f"{self.name} outside the source range, {self.describe()}", hint)
        return float(value)

    def describe(self) -> str:
        """The source range in words."""
        if self.choices:
            return "one of " + ", ".join(f"{value:g}" for value in self.choices)
        return f"{self.low:g} to {self.high:g}"
