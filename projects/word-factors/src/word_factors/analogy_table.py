"""What can be measured, by name, and what was: folds, sections, the table. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from word_factors.manipulation import KeyFactors

Protocol = Literal["heldout", "leave-one-out", "insample", "named"]
PROTOCOLS: tuple[Protocol, ...] = ("heldout", "leave-one-out", "insample", "named")

GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
LEAST_PAIRS: Mapping[Protocol, int] = {"heldout": 10, "leave-one-out": 4, "insample": 2, "named": 2}
"""Pairs that a section must have; sections with fewer are skipped and listed."""

FREE = ("3CosAdd", "3CosMul", "PairDirection", "only-b", "only-c")
SUPERVISED = ("3CosAvg", "LRCos", "base+offset")
BOOSTS = ("boost", "boost-sources", "group-boost", "random", "random-far")
EDITS = ("mask", "set")
RULES = (*FREE, "code", *SUPERVISED, *BOOSTS, *EDITS)
CONTROLS = ("3CosAdd", "random", "3CosAvg", "base+offset", "LRCos")
NEEDS_FACTORS = frozenset({"code", *BOOSTS, *EDITS})


@dataclass(frozen=True)
class Named:
    """What a user names for a section: factors, groups, and the strength."""

    factors: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    gamma: float = 1.0


@dataclass(frozen=True)
class Fold:
    """One fit and its test.

    Attributes:
        train, test: pairs fitted to, and pairs that the tested questions are made of.
        questions: how many were tested.
        correct: of them, by rule.
        gamma: chosen strength, for each rule that has one.
        key: key factors; None without a dictionary.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    questions: int
    correct: Mapping[str, int]
    gamma: Mapping[str, float]
    key: KeyFactors | None


@dataclass(frozen=True)
class SectionResult:
    """A section's folds. Accuracies are over all tested questions of all folds."""

    section: str
    pairs: int
    folds: tuple[Fold, ...]

    @property
    def questions(self) -> int:
        """Questions tested, over all folds: one is counted in every fold that tests it."""
        return sum(fold.questions for fold in self.folds)

    def correct(self, rule: str) -> int:
        return sum(fold.correct[rule] for fold in self.folds)

    def accuracy(self, rule: str) -> float:
        return self.correct(rule) / self.questions

    def gammas(self, rule: str) -> tuple[float, ...]:
        """The strength of each fold; empty for a rule that has none."""
        return tuple(fold.gamma[rule] for fold in self.folds if rule in fold.gamma)

    def chosen(self, kind: Literal["targets", "sources", "groups"] = "targets") -> tuple[tuple[int, int], ...]:
        """(factor or group, folds that chose it), most chosen first."""
        found = Counter(j for fold in self.folds if fold.key is not None for j in getattr(fold.key, kind))
        return tuple(sorted(found.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class AnalogyTable:
    """Accuracy by section and rule.

    Attributes:
        optimistic: the test pairs were fitted to; not to be set beside held-out figures.
        skipped: (section, pairs) of sections with too few pairs for the protocol, or not named.
    """

    protocol: Protocol
    rules: tuple[str, ...]
    sections: tuple[SectionResult, ...]
    skipped: tuple[tuple[str, int], ...] = field(default=())

    @property
    def optimistic(self) -> bool:
        return self.protocol == "insample"

    def micro(self, rule: str) -> float:
        """Accuracy over all tested questions."""
        return sum(part.correct(rule) for part in self.sections) / sum(part.questions for part in self.sections)

    def macro(self, rule: str) -> float:
        """Mean of the sections' accuracies."""
        return float(np.mean([part.accuracy(rule) for part in self.sections]))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a results file."""
        rows = []
        for part in self.sections:
            rows.append(
                {
                    "section": part.section,
                    "pairs": part.pairs,
                    "questions": part.questions,
                    "accuracy": {rule: part.accuracy(rule) for rule in self.rules},
                    "gamma": {rule: list(part.gammas(rule)) for rule in self.rules if part.gammas(rule)},
                    "targets": [list(item) for item in part.chosen("targets")],
                    "sources": [list(item) for item in part.chosen("sources")],
                    "groups": [list(item) for item in part.chosen("groups")],
                }
            )
        return {
            "protocol": self.protocol,
            "optimistic": self.optimistic,
            "sections": rows,
            "micro": {rule: self.micro(rule) for rule in self.rules},
            "macro": {rule: self.macro(rule) for rule in self.rules},
            "skipped": [list(item) for item in self.skipped],
        }

    def render(self) -> str:
        """The table as text, a row a section, then micro and macro means and what was skipped."""
        label = f"{self.protocol} (optimistic: fitted to the tested pairs)" if self.optimistic else self.protocol
        first = max(len(label), *(len(part.section) for part in self.sections))
        lines = [f"{label:<{first}} {'n':>6} " + " ".join(f"{rule:>13}" for rule in self.rules)]
        rows: list[tuple[str, str, list[float]]] = [
            (part.section, f"{part.questions:,}", [part.accuracy(rule) for rule in self.rules])
            for part in self.sections
        ]
        rows.append(("micro", "", [self.micro(rule) for rule in self.rules]))
        rows.append(("macro", "", [self.macro(rule) for rule in self.rules]))
        lines += [f"{name:<{first}} {n:>6} " + " ".join(f"{value:>13.3f}" for value in row) for name, n, row in rows]
        if self.skipped:
            names = ", ".join(f"{name} ({pairs} pairs)" for name, pairs in self.skipped)
            lines.append(f"skipped: {names}")
        return "\n".join(lines)
