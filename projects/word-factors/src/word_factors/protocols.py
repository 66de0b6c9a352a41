"""How rules are compared: what is fitted to which pairs, and what is asked.

Key factors, mean offsets and the strength γ see training pairs only, and a test question is made of test pairs only.
The split is by pair: a question shares its pairs with dozens of others, so that a split by question would fit the key
factors to the very pairs they are tested on.

    heldout         halves of a section's pairs, several seeded splits; the headline
    leave-one-out   a question's own two pairs are left out, all others train
    insample        all pairs train and are tested: what a table of hand-picked factors does; optimistic
    named           the user names factors and γ; nothing is fitted

The controls are always in the table: factors drawn at random, and the plain supervised rules that see the same pairs.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from shared.config import UserError, check_choice, check_range
from word_factors.analogy import (
    FREE_RULES,
    Rule,
    Space,
    answer,
    batches,
    best,
    lr_cos,
    mean_offset,
    three_cos_add,
    three_cos_avg,
)
from word_factors.manipulation import (
    Factors,
    KeyFactors,
    boost,
    code_cosine,
    direction,
    group_direction,
    key_factors,
    mask,
    named_factors,
    random_direction,
    set_factors,
)
from word_factors.questions import IndexedSection, IndexedTask

Protocol = Literal["heldout", "leave-one-out", "insample", "named"]
PROTOCOLS: tuple[Protocol, ...] = ("heldout", "leave-one-out", "insample", "named")

GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
LEAST_PAIRS: Mapping[Protocol, int] = {"heldout": 10, "leave-one-out": 4, "insample": 2, "named": 2}
"""Pairs that a section must have; sections with fewer are skipped and listed."""

SUPERVISED = ("3CosAvg", "LRCos", "base+offset")
BOOSTS = ("boost", "boost-sources", "group-boost", "random")
EDITS = ("mask", "set")
RULES = (*FREE_RULES, "code", *SUPERVISED, *BOOSTS, *EDITS)
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


def evaluate(
    task: IndexedTask,
    space: Space,
    factors: Factors | None = None,
    rules: Sequence[str] = (),
    protocol: Protocol = "heldout",
    *,
    splits: int = 4,
    seed: int = 0,
    gammas: Sequence[float] = GAMMAS,
    named: Mapping[str, Named] | None = None,
    quiet: bool = True,
) -> AnalogyTable:
    """Ask a task's questions by several rules under one protocol.

    The controls are added to `rules` (without a dictionary, `random` is not; under `named`, which fits nothing, those
    that need pairs are not). The same arguments give the same table.

    Args:
        task: questions by rows of the space.
        space: vectors; preprocessed as those that the dictionary was learned on.
        factors: dictionary and codes, for the rules that use them.
        rules: names from `RULES`.
        splits: random halves of a section's pairs under `heldout`.
        seed: of the splits, the random factors and the words that LRCos draws.
        gammas: strengths to choose from on training questions; the first of equals wins.
        named: section -> what the user names, for `named`; sections without an entry are skipped.

    Raises:
        UserError: an unknown rule, protocol or section; a rule that needs a dictionary without one; a dictionary of
            another embedding; no section left.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    for rule in rules:
        check_choice("rule", rule, RULES)
        if rule in NEEDS_FACTORS and factors is None:
            raise UserError("rule", rule, sorted(set(RULES) - NEEDS_FACTORS), "This rule needs a dictionary.")
        if protocol == "named" and (rule in SUPERVISED or rule == "boost-sources"):
            raise UserError("rule", rule, "rules that are fitted to nothing, under the protocol `named`")
        if rule == "group-boost" and factors is not None and factors.labels is None:
            raise UserError("rule", rule, "factors in groups", "Group the factors first.")
    check_range("splits", splits, 1)
    if not gammas:
        raise UserError("gammas", list(gammas), "at least one strength")
    if protocol == "named" and (factors is None or not named):
        raise UserError("named", named, "a dictionary, and factors or groups for at least one section")
    for name in named or ():
        check_choice("named: section", name, [section.name for section in task.sections])
    if factors is not None:
        factors.check(space)
    if len(task.forms) != len(space):
        raise UserError("questions", f"indexed in {len(task.forms):,} words", f"the {len(space):,} of the vectors")
    controls = [rule for rule in CONTROLS if factors is not None or rule not in NEEDS_FACTORS]
    if protocol == "named":
        controls = [rule for rule in controls if rule not in SUPERVISED]
    wanted = tuple(rule for rule in RULES if rule in {*rules, *controls})

    results, skipped = [], []
    with tqdm(total=len(task.sections), unit="section", desc=protocol, disable=True if quiet else None) as bar:
        for section in task.sections:
            entry = (named or {}).get(section.name)
            if len(section.pairs) < LEAST_PAIRS[protocol] or (protocol == "named" and entry is None):
                skipped.append((section.name, len(section.pairs)))
            else:
                trial = _Trial(task, section, space, factors, wanted, tuple(gammas), seed, entry)
                folds = tuple(trial.fold(*parts) for parts in _folds(section, protocol, splits, seed))
                folds = tuple(fold for fold in folds if fold.questions)
                if folds:
                    results.append(SectionResult(section.name, len(section.pairs), folds))
                else:
                    skipped.append((section.name, len(section.pairs)))
            bar.update()
    if not results:
        names = ", ".join(f"{name} ({pairs} pairs)" for name, pairs in skipped)
        valid = f"a section with at least {LEAST_PAIRS[protocol]} pairs in the vocabulary"
        raise UserError("analogy sections", names, valid)
    return AnalogyTable(protocol, wanted, tuple(results), tuple(skipped))


_Parts = tuple[tuple[int, ...], tuple[int, ...], NDArray[np.int64]]  # train pairs, test pairs, questions tested


def _stream(section: IndexedSection, seed: int, *more: int) -> list[int]:
    """A seed of its own for each section, whichever sections are asked beside it."""
    return [seed, zlib.crc32(section.name.encode()), *more]


def _made_of(section: IndexedSection, pairs: Sequence[int]) -> NDArray[np.int64]:
    """The questions both of whose pairs are among `pairs`."""
    return np.flatnonzero(np.isin(section.questions, pairs).all(1))


def _folds(section: IndexedSection, protocol: Protocol, splits: int, seed: int) -> Iterator[_Parts]:
    size = len(section.pairs)
    everything = tuple(range(size))
    if protocol == "heldout":
        for split in range(splits):
            order = np.random.default_rng(_stream(section, seed, split)).permutation(size).tolist()
            train, test = tuple(sorted(order[: size // 2])), tuple(sorted(order[size // 2 :]))
            yield train, test, _made_of(section, test)
    elif protocol == "leave-one-out":
        # i:j and j:i leave out the same pairs: one fit serves both.
        together: dict[tuple[int, ...], list[int]] = {}
        for number, question in enumerate(section.questions.tolist()):
            together.setdefault(tuple(sorted(set(question))), []).append(number)
        for test, numbers in together.items():
            yield tuple(i for i in everything if i not in test), test, np.array(numbers)
    elif protocol == "insample":
        yield everything, everything, np.arange(len(section.questions))
    else:
        yield (), everything, np.arange(len(section.questions))


class _Trial:
    """One section under all rules. What is fitted to nothing is asked once and looked up by each fold."""

    def __init__(
        self,
        task: IndexedTask,
        section: IndexedSection,
        space: Space,
        factors: Factors | None,
        rules: tuple[str, ...],
        gammas: tuple[float, ...],
        seed: int,
        named: Named | None,
    ) -> None:
        self.forms, self.section, self.space, self.factors = task.forms, section, space, factors
        self.rules, self.gammas, self.seed, self.named = rules, gammas, seed, named
        free: dict[str, Rule] = {rule: FREE_RULES[rule] for rule in rules if rule in FREE_RULES}
        if "code" in rules and factors is not None:
            free["code"] = code_cosine(factors)
        everything = np.arange(len(section.questions))
        self.free = {rule: self.right(scores, everything) for rule, scores in free.items()}

    def right(self, rule: Rule, questions: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.section.right(answer(self.space, rule, self.section.abc(questions)), self.forms, questions)

    def fold(self, train: tuple[int, ...], test: tuple[int, ...], questions: NDArray[np.int64]) -> Fold:
        """Fit to the pairs `train` and to nothing else; ask the questions."""
        section, space, factors = self.section, self.space, self.factors
        pairs = section.pairs[list(train)]
        key: KeyFactors | None = None
        if factors is not None:
            if self.named is not None:
                key = named_factors(factors, self.named.factors, self.named.groups)
            else:
                key = key_factors(factors, pairs)
        correct = {rule: int(right[questions].sum()) for rule, right in self.free.items()}
        fitted: dict[str, Rule] = {}
        if "3CosAvg" in self.rules:
            fitted["3CosAvg"] = three_cos_avg(space, pairs)
        if "LRCos" in self.rules:
            fitted["LRCos"] = lr_cos(space, pairs, self.seed)
        if factors is not None and key is not None:
            if "mask" in self.rules:
                fitted["mask"] = mask(space, factors, key)
            if "set" in self.rules:
                fitted["set"] = set_factors(space, factors, key)
        directions = self.directions(pairs, train, key)
        if self.named is not None:
            gamma = dict.fromkeys(directions, self.named.gamma)
        else:
            gamma = self.choose(directions, _made_of(section, train))
        fitted |= {rule: boost(space, offset, gamma[rule]) for rule, offset in directions.items()}
        if len(questions):
            correct |= {rule: int(self.right(scores, questions).sum()) for rule, scores in fitted.items()}
        return Fold(train, test, len(questions), correct, gamma, key)

    def directions(
        self, pairs: NDArray[np.int64], train: tuple[int, ...], key: KeyFactors | None
    ) -> dict[str, NDArray[np.floating]]:
        """What each rule with a strength adds to the query, [d]."""
        found: dict[str, NDArray[np.floating]] = {}
        if "base+offset" in self.rules:
            found["base+offset"] = mean_offset(self.space, pairs)
        if self.factors is None or key is None:
            return found
        if "boost" in self.rules:
            found["boost"] = direction(self.factors, key.targets, key.mean)
        if "boost-sources" in self.rules:  # Δα of a source is negative: adding it takes the source away
            found["boost-sources"] = direction(self.factors, key.both(), key.mean)
        if "group-boost" in self.rules:
            found["group-boost"] = group_direction(self.factors, key)
        if "random" in self.rules:
            found["random"] = random_direction(self.factors, key, _stream(self.section, self.seed, *train))
        return found

    def choose(self, directions: Mapping[str, NDArray[np.floating]], questions: NDArray[np.int64]) -> dict[str, float]:
        """For each direction the strength with most training questions right; 0 where there is no question.

        The scores of 3CosAdd and of each direction are made once: γ only weighs their sum.
        """
        if not directions or not len(questions):
            return dict.fromkeys(directions, 0.0)
        space = self.space
        offsets = space.tensor(np.stack(list(directions.values())).astype(np.float32))
        along = space.cosines(offsets)  # [directions, V]
        counts = np.zeros((len(directions), len(self.gammas)), np.int64)
        for part, batch in batches(space, self.section.abc(questions)):
            base = space.exclude(three_cos_add(space, batch), batch)
            for i, line in enumerate(along):
                for k, gamma in enumerate(self.gammas):
                    found = best(base + gamma * line)
                    counts[i, k] += self.section.right(found, self.forms, questions[part]).sum()
        return {rule: self.gammas[int(counts[i].argmax())] for i, rule in enumerate(directions)}
