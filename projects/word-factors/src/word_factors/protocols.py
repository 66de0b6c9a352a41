"""How rules are compared: what is fitted to which pairs, and what is asked.

Key factors, mean offsets and the strength γ see training pairs only, and a test question is made of test pairs only.
The split is by pair: a question shares its pairs with dozens of others, so that a split by question would fit the key
factors to the very pairs they are tested on. Two pairs may still share a word (a colour of many things): then the
supervised rules have seen some answers, LRCos above all.

    heldout         halves of a section's pairs, several seeded splits; the headline
    leave-one-out   a question's own two pairs are left out, all others train
    insample        all pairs train and are tested: what a table of hand-picked factors does; optimistic
    named           the user names factors and γ; nothing is fitted

The controls are always in the table: factors drawn at random, and the plain supervised rules that see the same pairs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence

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
from word_factors.analogy_table import (
    CONTROLS,
    GAMMAS,
    LEAST_PAIRS,
    NEEDS_FACTORS,
    PROTOCOLS,
    RULES,
    SUPERVISED,
    AnalogyTable,
    Fold,
    Named,
    Protocol,
    SectionResult,
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
    that need pairs are not; beside `boost` also `random-far`, the same random factors at the strength that `boost`
    chose, while `random` chooses one of its own, mostly none). The same arguments give the same table.

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
        if rule == "random-far" and "boost" not in rules:
            raise UserError("rule", rule, "together with boost, whose strength it takes")
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
    if "boost" in rules and protocol != "named":  # there `random` has the strength that the user names
        controls.append("random-far")
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
        if "random-far" in self.rules and "random" in directions:
            directions["random-far"], gamma["random-far"] = directions["random"], gamma["boost"]
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
