"""Generated analogies: each condition by brute force, planted pairs found, and the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from shared.config import UserError
from word_factors.analogy import Space
from word_factors.embedding import Embedding
from word_factors.generate import Generated, generate, generated_task, score
from word_factors.manipulation import Factors
from word_factors.questions import AnalogyTask

D, K, STEMS = 40, 50, 25


def world(seed: int = 0) -> tuple[Embedding, Space, Factors, set[tuple[int, int]]]:
    """Stems with and without factor 0, among words that have or lack it but have no partner."""
    stream = np.random.default_rng(seed)
    phi = stream.normal(size=(D, K))
    phi /= np.linalg.norm(phi, axis=0)

    def stems(size: int) -> np.ndarray:
        codes = np.zeros((size, K))
        for row in codes:
            row[stream.choice(np.arange(5, K), 3, replace=False)] = stream.uniform(0.4, 0.8, 3)
        return codes

    without = stems(STEMS)
    having = without.copy()
    having[:, 0] = 0.5
    single = stems(60)
    single[:20, 0] = stream.uniform(0.05, 0.6, 20)  # some too little to count
    codes = np.concatenate([without, having, single])
    vectors = codes @ phi.T + 0.03 * stream.normal(size=(len(codes), D))
    words = tuple(f"word{i}" for i in range(len(codes)))
    embedding = Embedding(words, vectors.astype(np.float32), np.ones(len(words)), "rank", "planted")
    space = Space(vectors)
    pairs = {(i, STEMS + i) for i in range(STEMS)}
    return embedding, space, Factors(phi, csr_array(codes), norms=space.norms), pairs


def test_planted_pairs_are_found() -> None:
    _, space, factors, planted = world()
    # Partners share all other factors; words that share two of three factors by chance stay below 0.95.
    found = generate(space, factors, [0], "factor 0", alike=0.95)
    pairs = {(int(u), int(v)) for u, v in found.pairs}
    assert pairs <= planted
    assert len(pairs) >= 0.8 * STEMS


def test_every_pair_meets_every_condition() -> None:
    _, space, factors, _ = world(1)
    low, high, alike = 0.02, 0.2, 0.5
    found = generate(space, factors, [0], "factor 0", low=low, high=high, alike=alike, most=1000)
    x, alpha = space.unit.numpy(), factors.codes.toarray()
    without, having = np.flatnonzero(alpha[:, 0] < low), np.flatnonzero(alpha[:, 0] > high)
    assert found.gamma == pytest.approx(alpha[having, 0].mean())
    expected = set()
    for u in without:
        v = having[((x[u] + found.gamma * factors.phi[:, 0]) @ x[having].T).argmax()]
        back = without[((x[v] - found.gamma * factors.phi[:, 0]) @ x[without].T).argmax()]
        one, other = alpha[u, 1:], alpha[v, 1:]
        if back == u and one @ other > alike * np.linalg.norm(one) * np.linalg.norm(other):
            expected.add((int(u), int(v)))
    assert {(int(u), int(v)) for u, v in found.pairs} == expected
    assert (np.diff(found.alike) <= 0).all()
    assert len(generate(space, factors, [0], "factor 0", low=low, high=high, alike=alike, most=3).pairs) == 3


def test_a_group_moves_along_the_sum_of_its_factors() -> None:
    _, space, factors, planted = world()
    # Split the planted factor in two halves of one group: the group finds what the factor found.
    alpha, phi = factors.codes.toarray(), factors.phi
    halves = np.concatenate([alpha[:, :1] / 2, alpha[:, :1] / 2, alpha[:, 1:]], axis=1)
    split = Factors(np.concatenate([phi[:, :1], phi], axis=1), csr_array(halves))
    one = generate(space, factors, [0], "one")
    both = generate(space, split, [0, 1], "both")
    assert (one.pairs == both.pairs).all()
    assert {(int(u), int(v)) for u, v in both.pairs} & planted


def test_three_cos_add_solves_the_section_and_not_the_shuffled_control(tmp_path: Path) -> None:
    embedding, space, factors, _ = world()
    task = generated_task([generate(space, factors, [0], "factor 0")], embedding)
    task.to_file(tmp_path / "made.txt")
    read = AnalogyTask.from_file(tmp_path / "made.txt")
    assert read == task
    result = score(read.in_vocabulary(embedding), space)[0]
    assert result.section == "factor 0"
    assert result.questions == len(task)
    assert result.accuracy > 0.8
    assert result.shuffled < 0.1


def test_spellings_of_one_word_make_no_pair() -> None:
    _, space, factors, _ = world()
    # Say that each planted partner is its stem in another case.
    forms = np.arange(len(space))
    forms[STEMS : 2 * STEMS] = np.arange(STEMS)
    found = generate(Space(space.unit.numpy(), forms), factors, [0], "factor 0")
    assert not set(found.pairs.ravel().tolist()) & set(range(STEMS, 2 * STEMS))


def test_a_factor_without_pairs_gives_none_and_no_task() -> None:
    embedding, space, factors, _ = world()
    found = generate(space, factors, [1], "unused")
    assert len(found.pairs) == 0
    with pytest.raises(UserError, match=r"(?s)two mutual pairs.*high"):
        generated_task([found], embedding)


def test_a_section_needs_two_pairs() -> None:
    embedding = world()[0]
    one = Generated("one", (0,), 1.0, np.array([[0, 1]]), np.ones(1, np.float32))
    two = Generated("two", (0,), 1.0, np.array([[0, 1], [2, 3]]), np.ones(2, np.float32))
    assert [section.name for section in generated_task([one, two], embedding).sections] == ["two"]


def test_what_is_out_of_range_is_refused() -> None:
    _, space, factors, _ = world()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"low": 0.3, "high": 0.2}, "high"),
        ({"low": 0.0}, "low"),
        ({"gamma": -1.0}, "gamma"),
        ({"alike": 2.0}, "alike"),
        ({"most": 1}, "most"),
    ]
    for options, field in wrong:
        with pytest.raises(UserError, match=field):
            generate(space, factors, [0], "factor 0", **options)
    for chosen in ([K], []):
        with pytest.raises(UserError, match="factor"):
            generate(space, factors, chosen, "none")
    with pytest.raises(UserError, match="dictionary"):
        generate(Space(space.unit.numpy()[1:]), factors, [0], "factor 0")
