"""Coherence equals its definition on a corpus counted by hand; intrusion is right where the answer is planted."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import sparse

from shared.config import UserError
from word_factors.coherence import coherence, intrusion
from word_factors.embedding import Embedding

TOPICS = [["cat", "Dog", "cow", "hen"], ["red", "blue", "green", "pink"], ["one", "two", "six", "ten"]]


def corpus(texts: int = 300, seed: int = 0) -> list[list[str]]:
    """Short texts, each on one topic, now and then with a word of another."""
    stream = np.random.default_rng(seed)
    lowered = [[word.lower() for word in topic] for topic in TOPICS]
    found = []
    for number in range(texts):
        text = [*stream.choice(lowered[number % 3], 3, replace=False), "the", "of"]
        if stream.random() < 0.2:
            text.append(str(stream.choice(lowered[(number + 1) % 3])))
        found.append([str(word) for word in stream.permutation(text)])
    return found


def npmi(topic: list[str], texts: list[list[str]]) -> float:
    """Mean over pairs of log(p(a, b) / p(a) p(b)) / -log p(a, b), every text one window."""
    sets = [set(text) for text in texts]

    def p(*words: str) -> float:
        return sum(all(word in text for word in words) for text in sets) / len(sets)

    values = []
    for a, b in combinations([word.lower() for word in topic], 2):
        joint = p(a, b) + 1e-12
        values.append(math.log(joint / (p(a) * p(b))) / -math.log(joint))
    return float(np.mean(values))


def test_coherence_is_the_mean_normalised_pointwise_mutual_information_of_pairs() -> None:
    texts = corpus()  # no text is longer than the window
    found = coherence(TOPICS, texts)
    np.testing.assert_allclose(found.topics, [npmi(topic, texts) for topic in TOPICS], rtol=1e-6)
    np.testing.assert_array_equal(found.known, [4, 4, 4])


def test_topics_of_the_corpus_beat_the_same_words_shuffled() -> None:
    found = coherence(TOPICS, corpus())
    assert found.mean > 0.2
    assert found.mean > found.control_mean + 0.3
    np.testing.assert_array_equal(found.control, coherence(TOPICS, corpus()).control)
    controls = {coherence(TOPICS, corpus(), seed=seed).control_mean for seed in range(4)}
    assert len(controls) > 1


def test_words_that_the_corpus_lacks_make_room_for_the_next_ones() -> None:
    texts = corpus()
    with_gaps = [["unicorn", *TOPICS[0]], ["red", "mauve", "unicorn"], TOPICS[2]]
    found = coherence(with_gaps, texts, top=4)
    assert found.topics[0] == pytest.approx(npmi(TOPICS[0], texts))
    np.testing.assert_array_equal(found.known, [4, 1, 4])
    assert np.isnan(found.topics[1])
    assert np.isfinite(found.mean)


def test_spellings_of_one_word_count_once() -> None:
    texts = corpus()
    found = coherence([["Cat", "cat", "CAT", "dog"], TOPICS[1]], texts)
    assert found.known[0] == 2
    assert found.topics[0] == pytest.approx(npmi(["cat", "dog"], texts))


def test_a_corpus_without_the_words_is_refused() -> None:
    with pytest.raises(UserError, match="two words or more of the corpus"):
        coherence(TOPICS, [["nothing", "of", "it"]])
    with pytest.raises(UserError, match="top"):
        coherence(TOPICS, corpus(), top=1)


# -- intrusion ---------------------------------------------------------------------------------------------------------

GROUPS, EACH = 8, 10


def grouped(seed: int, name: str, spread: float = 0.1, upper: bool = False) -> Embedding:
    """Words in groups around random directions; `spread` is the size of the noise beside them."""
    stream = np.random.default_rng(seed)
    centres = np.repeat(np.linalg.qr(stream.normal(size=(20, GROUPS)))[0].T, EACH, axis=0)
    words = [f"w{number}" for number in range(GROUPS * EACH)]
    vectors = (centres + spread * stream.normal(size=(GROUPS * EACH, 20))).astype(np.float32)
    named = tuple(word.upper() if upper else word for word in words)
    return Embedding(named, vectors, np.arange(len(words), 0, -1.0), "corpus", name)


def group_codes(seed: int = 0) -> sparse.csr_array:
    """A factor a group, active in its words alone."""
    alpha = np.kron(np.eye(GROUPS), np.ones((EACH, 1))) * np.random.default_rng(seed).uniform(
        0.5, 1, size=(GROUPS * EACH, GROUPS)
    )
    return sparse.csr_array(alpha.astype(np.float32))


def test_a_judge_that_has_the_groups_finds_every_intruder() -> None:
    found = intrusion(group_codes(), grouped(0, "own"), grouped(1, "judge", upper=True))
    assert found.accuracy == 1
    assert found.chance == pytest.approx(1 / 6)
    assert len(found.questions) == GROUPS
    for question in found.questions:
        assert {int(word[1:]) // EACH for word in question.words} == {question.factor}
        assert int(question.intruder[1:]) // EACH != question.factor
        assert len(question.words) == 5


def test_a_judge_that_knows_nothing_guesses() -> None:
    stream = np.random.default_rng(0)
    judge = grouped(1, "judge")
    right = []
    for seed in range(60):
        vectors = stream.normal(size=judge.vectors.shape).astype(np.float32)
        blind = Embedding(judge.words, vectors, judge.counts, "corpus", "blind")
        right.append(intrusion(group_codes(), grouped(0, "own"), blind, seed=seed).accuracy)
    assert np.mean(right) == pytest.approx(1 / 6, abs=0.06)  # 480 questions: standard error 0.017


def test_the_judge_picks_the_word_with_the_least_mean_cosine_to_the_others() -> None:
    own, judge = grouped(0, "own"), grouped(1, "judge", spread=1.0)
    for question in intrusion(group_codes(), own, judge).questions:
        words = [*question.words, question.intruder]
        unit = judge.unit[judge.rows(words)]
        means = [np.mean([unit[i] @ unit[j] for j in range(6) if j != i]) for i in range(6)]
        assert question.picked == words[int(np.argmin(means))]


def test_an_intruder_is_a_top_word_of_another_factor_from_the_lower_half_of_this_one() -> None:
    dense = np.random.default_rng(3).exponential(size=(GROUPS * EACH, GROUPS)).astype(np.float32)
    found = intrusion(sparse.csr_array(dense), grouped(0, "own"), grouped(1, "judge"))
    tops = np.argsort(-dense, axis=0)[:5]
    for question in found.questions:
        row = int(question.intruder[1:])
        assert dense[row, question.factor] <= np.median(dense[:, question.factor])
        assert any(row in tops[:, j] for j in range(GROUPS) if j != question.factor)


def test_questions_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    own, judge = grouped(0, "own"), grouped(1, "judge")
    one, same, other = (intrusion(group_codes(), own, judge, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert [q.intruder for q in one.questions] != [q.intruder for q in other.questions]


def test_factors_with_too_few_words_that_the_judge_knows_are_listed() -> None:
    judge = grouped(1, "judge")
    found = intrusion(group_codes(), grouped(0, "own"), judge.take(np.arange(4, GROUPS * EACH - 3)))
    assert found.skipped == ()
    found = intrusion(group_codes(), grouped(0, "own"), judge.take(np.arange(6, GROUPS * EACH)))
    assert found.skipped == (0,)
    assert len(found.questions) == GROUPS - 1


def test_the_embedding_itself_is_no_judge_and_one_factor_is_no_question() -> None:
    own = grouped(0, "own")
    with pytest.raises(UserError, match="other than the one that was taken apart"):
        intrusion(group_codes(), own, grouped(0, "same under another name"))
    with pytest.raises(UserError, match="two factors with 5 words"):
        intrusion(sparse.csr_array(group_codes()[:, [0]]), own, grouped(1, "judge"))
