"""Protocols: what is fitted sees training pairs only, and planted factors help where random ones do not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from shared.config import UserError
from word_factors import protocols
from word_factors.analogy import FREE_RULES, Space, answer, three_cos_add
from word_factors.analogy_table import CONTROLS, FREE, GAMMAS, RULES, AnalogyTable, Named, Protocol
from word_factors.manipulation import Factors, boost, direction, key_factors, named_factors
from word_factors.protocols import evaluate
from word_factors.questions import IndexedSection, IndexedTask

D, K = 48, 60
WANTED = ("boost", "boost-sources", "group-boost", "mask", "set", "code", "3CosMul")


def section(name: str, first: int, pairs: int) -> IndexedSection:
    left = np.arange(first, first + pairs)
    questions = np.array([(i, j) for i in range(pairs) for j in range(pairs) if i != j])
    rows = np.column_stack([left, left + pairs])
    return IndexedSection(
        name, rows, tuple((int(right),) for right in rows[:, 1]), questions, np.arange(len(questions))
    )


def world(seed: int = 0, pairs: int = 16, few: int = 5) -> tuple[IndexedTask, Space, Factors]:
    """Two sections whose right words have more of one factor each; around every left word stand distractors that have
    another factor instead, so that a weak offset misses the right one."""
    stream = np.random.default_rng(seed)
    phi = stream.normal(size=(D, K))
    phi /= np.linalg.norm(phi, axis=0)
    rows = []
    for size, factor in ((pairs, 0), (few, 1)):
        stems = np.zeros((size, K))
        for stem in stems:
            stem[stream.choice(np.arange(10, K), 2, replace=False)] = 0.6
        right = stems.copy()
        right[:, factor] = 0.35
        rows += [stems, right]
        for _ in range(4):
            distractor = stems.copy()
            distractor[np.arange(size), stream.integers(2, 10, size)] = 0.35
            rows.append(distractor)
    # each section's left and right words must be next to one another
    codes = np.concatenate([*rows[:2], *rows[6:8], *rows[2:6], *rows[8:]])
    codes[:, 10:] += 0.25 * stream.exponential(size=(len(codes), K - 10)) * (stream.random((len(codes), K - 10)) < 0.06)
    vectors = codes @ phi.T + 0.05 * stream.normal(size=(len(codes), D))
    space = Space(vectors)
    sections = (section("large", 0, pairs), section("small", 2 * pairs, few))
    task = IndexedTask(sections, np.arange(len(codes)), ())
    labels = np.r_[np.arange(10), np.repeat(np.arange(10, 20), 5)]
    return task, space, Factors(phi, csr_array(codes), labels, space.norms)


@pytest.fixture(scope="module")
def planted() -> tuple[IndexedTask, Space, Factors]:
    return world()


@pytest.fixture(scope="module")
def heldout(planted: tuple[IndexedTask, Space, Factors]) -> AnalogyTable:
    return evaluate(*planted, WANTED, "heldout")


@pytest.mark.parametrize("seed", range(4))
def test_boost_along_the_planted_factor_helps_and_random_factors_do_not(seed: int) -> None:
    table = evaluate(*world(seed, pairs=24), ("boost", "group-boost"), "heldout")
    base = table.micro("3CosAdd")
    assert table.micro("boost") > base + 0.1
    assert table.micro("group-boost") > base + 0.1
    assert abs(table.micro("random") - base) < 0.03
    assert table.micro("random-far") < base + 0.03  # far out they do harm, and no good
    assert table.sections[0].chosen()[0] == (0, 4)  # the planted factor, in all four splits
    assert min(table.sections[0].gammas("boost")) > 0


def test_train_and_test_share_no_pair_and_questions_are_of_test_pairs(heldout: AnalogyTable) -> None:
    folds = heldout.sections[0].folds
    assert len(folds) == 4
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert sorted(fold.train + fold.test) == list(range(16))
        assert fold.questions == 8 * 7  # all ordered combinations of the eight test pairs, and no other
    assert len({fold.train for fold in folds}) == 4


def changed(factors: Factors, rows: Any) -> Factors:
    alpha = factors.codes.toarray()
    alpha[rows] = np.random.default_rng(9).permuted(alpha[rows], axis=1) * 3
    return Factors(factors.phi, csr_array(alpha), factors.labels)


def test_codes_of_test_pairs_change_nothing_that_is_fitted(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    fold = evaluate(task, space, factors, WANTED, splits=1).sections[0].folds[0]
    rows = task.sections[0].pairs
    after = (
        evaluate(task, space, changed(factors, rows[list(fold.test)].ravel()), WANTED, splits=1).sections[0].folds[0]
    )
    assert fold.key is not None
    assert after.key is not None
    assert (after.key.targets, after.key.sources, after.key.groups) == (
        fold.key.targets,
        fold.key.sources,
        fold.key.groups,
    )
    assert (after.key.mean == fold.key.mean).all()
    assert after.gamma == fold.gamma
    assert after.correct["boost"] == fold.correct["boost"]
    assert after.correct["code"] != fold.correct["code"]  # the change is seen by what reads test codes by design
    # and the codes of training pairs do matter
    other = evaluate(task, space, changed(factors, rows[list(fold.train)].ravel()), WANTED, splits=1)
    key = other.sections[0].folds[0].key
    assert key is not None
    assert not np.allclose(key.mean, fold.key.mean)


@pytest.mark.parametrize("protocol", ["heldout", "leave-one-out"])
def test_whatever_is_fitted_is_handed_training_pairs_only(
    planted: tuple[IndexedTask, Space, Factors], monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    task, space, factors = planted
    part = task.sections[0]
    handed: dict[str, list[np.ndarray]] = {}
    for name in ("three_cos_avg", "lr_cos", "mean_offset", "key_factors", "batches"):
        original = getattr(protocols, name)

        def record(*given: Any, name: str = name, original: Any = original) -> Any:
            handed.setdefault(name, []).append(given[1])  # pairs [P, 2]; of `batches`, questions [Q, 3]
            return original(*given)

        monkeypatch.setattr(protocols, name, record)
    one = replace(task, sections=(part,))
    folds = evaluate(one, space, factors, WANTED, protocol, splits=2).sections[0].folds
    assert len(handed) == 5
    for name, calls in handed.items():
        assert len(calls) == len(folds)
        for fold, given in zip(folds, calls, strict=True):
            train = part.pairs[list(fold.train)]
            if name == "batches":  # the questions that strengths are chosen on: all of two training pairs
                assert set(map(tuple, given[:, :2])) == set(map(tuple, train))
                assert set(given[:, 2]) == set(train[:, 0])
                assert len(given) == len(train) * (len(train) - 1)
            else:
                assert (given == train).all()


def test_the_same_arguments_give_the_same_table(
    planted: tuple[IndexedTask, Space, Factors], heldout: AnalogyTable
) -> None:
    assert evaluate(*planted, WANTED, "heldout").to_json() == heldout.to_json()
    assert evaluate(*planted, WANTED, "heldout", seed=1).to_json() != heldout.to_json()


def test_a_section_does_not_depend_on_those_beside_it(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    both = evaluate(task, space, factors, WANTED, "insample")
    alone = evaluate(replace(task, sections=task.sections[1:]), space, factors, WANTED, "insample")
    assert both.to_json()["sections"][1] == alone.to_json()["sections"][0]


def test_the_only_strength_zero_makes_every_boost_three_cos_add(planted: tuple[IndexedTask, Space, Factors]) -> None:
    table = evaluate(*planted, WANTED, gammas=(0.0,))
    for fold in table.sections[0].folds:
        for rule in ("boost", "boost-sources", "group-boost", "random", "base+offset"):
            assert fold.correct[rule] == fold.correct["3CosAdd"]


def test_random_factors_also_go_as_far_as_the_chosen_ones(heldout: AnalogyTable) -> None:
    folds = [fold for section in heldout.sections for fold in section.folds]
    assert all(fold.gamma["random-far"] == fold.gamma["boost"] for fold in folds)
    assert any(fold.gamma["boost"] > fold.gamma["random"] for fold in folds)
    same = [fold for fold in folds if fold.gamma["boost"] == fold.gamma["random"]]
    assert all(fold.correct["random-far"] == fold.correct["random"] for fold in same)


def test_random_factors_have_no_strength_to_take_without_boost(planted: tuple[IndexedTask, Space, Factors]) -> None:
    with pytest.raises(UserError, match="together with boost"):
        evaluate(*planted, ("random-far",), "heldout")


def test_permuting_factors_and_groups_leaves_the_table_unchanged(
    planted: tuple[IndexedTask, Space, Factors], heldout: AnalogyTable
) -> None:
    task, space, factors = planted
    assert factors.labels is not None
    order = np.random.default_rng(4).permutation(K)
    moved = Factors(factors.phi[:, order], csr_array(factors.codes.toarray()[:, order]), factors.labels[order])
    other = evaluate(task, space, moved, WANTED, "heldout")
    for one, same in zip(heldout.sections[0].folds, other.sections[0].folds, strict=True):
        assert one.correct == same.correct
        assert one.gamma == same.gamma
        assert one.key is not None
        assert same.key is not None
        assert tuple(order[list(same.key.targets)]) == one.key.targets


def test_leave_one_out_equals_refitting_by_hand(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    part = task.sections[1]
    table = evaluate(replace(task, sections=(part,)), space, factors, ("boost",), "leave-one-out")
    correct = 0
    for number, (i, j) in enumerate(part.questions.tolist()):
        train = [pair for pair in range(len(part.pairs)) if pair not in (i, j)]
        key = key_factors(factors, part.pairs[train])
        offset = direction(factors, key.targets, key.mean)
        seen = np.array([k for k, (p, q) in enumerate(part.questions.tolist()) if p in train and q in train])
        right = [
            part.right(answer(space, boost(space, offset, gamma), part.abc(seen)), task.forms, seen).sum()
            for gamma in GAMMAS
        ]
        rule = boost(space, offset, GAMMAS[int(np.argmax(right))])
        one = np.array([number])
        correct += int(part.right(answer(space, rule, part.abc(one)), task.forms, one)[0])
    assert table.sections[0].questions == len(part.questions)
    assert table.sections[0].correct("boost") == correct
    assert all(len(fold.train) == len(part.pairs) - 2 for fold in table.sections[0].folds)


def test_free_rules_are_the_same_in_and_out_of_sample(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    part = task.sections[1]
    plain = part.right(answer(space, three_cos_add, part.abc()), task.forms)
    for protocol in ("leave-one-out", "insample"):
        table = evaluate(replace(task, sections=(part,)), space, factors, protocol=protocol)
        assert table.sections[0].correct("3CosAdd") == plain.sum()


def test_insample_fits_all_pairs_and_says_that_it_is_optimistic(planted: tuple[IndexedTask, Space, Factors]) -> None:
    table = evaluate(*planted, ("boost",), "insample")
    assert table.optimistic
    assert "optimistic" in table.render()
    assert table.sections[0].folds[0].train == tuple(range(16))
    # Strength is chosen on the tested questions themselves: it cannot do worse than strength 0.
    assert all(part.accuracy("boost") >= part.accuracy("3CosAdd") for part in table.sections)


def test_named_factors_are_used_as_given_and_nothing_is_fitted(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    named = {"large": Named((0,), gamma=0.5)}
    table = evaluate(task, space, factors, ("boost",), "named", named=named)
    fold = table.sections[0].folds[0]
    assert (fold.train, fold.gamma["boost"]) == ((), 0.5)
    assert table.skipped == (("small", 5),)
    assert set(table.rules) == {"3CosAdd", "boost", "random"}
    offset = direction(factors, (0,), named_factors(factors, (0,)).mean)
    part = task.sections[0]
    right = part.right(answer(space, boost(space, offset, 0.5), part.abc()), task.forms)
    assert fold.correct["boost"] == right.sum()
    assert table.micro("boost") > table.micro("3CosAdd")


def test_sections_with_few_pairs_are_skipped_and_listed(heldout: AnalogyTable) -> None:
    assert [part.section for part in heldout.sections] == ["large"]
    assert heldout.skipped == (("small", 5),)
    assert "skipped: small (5 pairs)" in heldout.render()


def test_no_section_left_is_refused(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    with pytest.raises(UserError, match="at least 10 pairs"):
        evaluate(replace(task, sections=task.sections[1:]), space, factors)


def test_controls_are_always_in_the_table(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    assert set(evaluate(task, space, factors, ("boost",), splits=1).rules) == {"boost", "random-far", *CONTROLS}
    assert set(evaluate(task, space, splits=1).rules) == set(CONTROLS) - {"random"}


def test_micro_weighs_questions_and_macro_sections(planted: tuple[IndexedTask, Space, Factors]) -> None:
    table = evaluate(*planted, ("boost",), "insample")
    one, other = table.sections
    assert (one.questions, other.questions) == (240, 20)
    micro = (one.correct("boost") + other.correct("boost")) / 260
    assert table.micro("boost") == pytest.approx(micro)
    assert table.macro("boost") == pytest.approx((one.correct("boost") / 240 + other.correct("boost") / 20) / 2)
    stored = json.loads(json.dumps(table.to_json()))
    assert stored["micro"]["boost"] == pytest.approx(micro)
    assert f"{micro:.3f}" in table.render()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ["bost"]}, "did you mean 'boost'"),
        ({"protocol": "held-out"}, "did you mean 'heldout'"),
        ({"splits": 0}, "splits"),
        ({"gammas": ()}, "gammas"),
        ({"protocol": "named"}, "named"),
        ({"protocol": "named", "named": {"lage": Named((0,))}}, "did you mean 'large'"),
        ({"protocol": "named", "named": {"large": Named((K,))}}, "factor: got '60'"),
        ({"protocol": "named", "named": {"large": Named((0,))}, "rules": ["LRCos"]}, "fitted to nothing"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    planted: tuple[IndexedTask, Space, Factors], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(*planted, **options)


def test_rules_without_what_they_need_are_refused(planted: tuple[IndexedTask, Space, Factors]) -> None:
    task, space, factors = planted
    with pytest.raises(UserError, match="needs a dictionary"):
        evaluate(task, space, None, ("boost",))
    with pytest.raises(UserError, match="Group the factors"):
        evaluate(task, space, Factors(factors.phi, factors.codes), ("group-boost",))
    with pytest.raises(UserError, match="dictionary"):
        evaluate(task, Space(space.unit.numpy()[1:]), factors)
    with pytest.raises(UserError, match="questions"):
        evaluate(task, Space(space.unit.numpy()[1:]))


def test_names_of_rules_are_those_of_the_rules() -> None:
    assert tuple(FREE_RULES) == FREE
    assert set(CONTROLS) <= set(RULES)
    assert len(set(RULES)) == len(RULES)
