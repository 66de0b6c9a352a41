"""Average precision and AUC equal scikit-learn's; held-out choice finds planted classes and nothing in noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gensim.test.utils import datapath
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

from shared.config import UserError
from word_factors.classes import (
    IndexedClasses,
    average_precision,
    class_lexicon,
    class_table,
    heldout_ap,
    index_classes,
    precision_of_columns,
    roc_auc,
)
from word_factors.embedding import Embedding


def embedding(words: list[str], counts: list[float] | None = None) -> Embedding:
    frequency = np.array(counts or range(len(words), 0, -1), float)
    return Embedding(tuple(words), np.ones((len(words), 2), np.float32), frequency, "corpus", "small")


def words(*numbers: int) -> list[str]:
    return [f"word{number}" for number in numbers]


# -- precision ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.sampled_from([0, 1, 6]), st.integers(1, 20))
def test_precision_and_auc_equal_scikit_learn_with_and_without_ties(seed: int, digits: int, positives: int) -> None:
    stream = np.random.default_rng(seed)
    scores = np.round(stream.normal(size=(60, 4)), digits)
    positive = np.zeros(60, bool)
    positive[stream.choice(60, positives, replace=False)] = True
    for j in range(4):
        expected = average_precision_score(positive, scores[:, j])
        assert average_precision(scores, positive)[j] == pytest.approx(expected, abs=1e-12)
        assert roc_auc(scores, positive)[j] == pytest.approx(roc_auc_score(positive, scores[:, j]), abs=1e-12)


def test_sparse_scores_are_measured_as_their_dense_form() -> None:
    stream = np.random.default_rng(0)
    scores = (stream.exponential(size=(80, 9)) * (stream.random((80, 9)) < 0.1)).astype(np.float32)
    positive = stream.random(80) < 0.2
    for measure in (average_precision, roc_auc):
        np.testing.assert_array_equal(measure(sparse.csr_array(scores), positive), measure(scores, positive))


def test_precision_has_its_limits_at_a_perfect_order_and_at_all_ties() -> None:
    positive = np.array([True] * 5 + [False] * 15)
    scores = np.stack([positive * 1.0, np.zeros(20)], axis=1)
    np.testing.assert_allclose(average_precision(scores, positive), [1, 5 / 20])
    np.testing.assert_allclose(roc_auc(scores, positive), [1, 0.5])


# -- the lexicon -------------------------------------------------------------------------------------------------------


def test_the_google_questions_give_both_sides_of_fourteen_sections() -> None:
    lexicon = class_lexicon(Path(datapath("questions-words.txt")))
    assert len(lexicon) == 28
    assert len(lexicon["capital-common-countries, left"]) == 23
    assert "Athens" in lexicon["capital-common-countries, left"]
    assert "Greece" in lexicon["capital-common-countries, right"]
    assert {"best", "worst"} <= set(lexicon["gram4-superlative, right"])


def test_bats_relations_give_all_answers_and_lists_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "bats" / "3").mkdir(parents=True)
    (tmp_path / "bats" / "3" / "E05 [animal - young].txt").write_text("cow\tcalf/young\ndog\tpuppy\ncat\tkitten\n")
    (tmp_path / "own.yaml").write_text("colours: [red, green, red]\nnumbers: one two three\n")
    lexicon = class_lexicon(bats=tmp_path / "bats", lists=tmp_path / "own.yaml")
    assert lexicon == {
        "E05 [animal - young], left": ("cow", "dog", "cat"),
        "E05 [animal - young], right": ("calf", "young", "puppy", "kitten"),
        "colours": ("red", "green"),
        "numbers": ("one", "two", "three"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- red", "a mapping"),
        ("answers: [yes, no]", "class answers.*(?s:.*)in quotes"),
        ("empty: []", "class empty"),
        ("open: [a", "YAML"),
        ("gram: 3", "class gram"),
    ],
)
def test_malformed_lists_are_refused_with_the_class_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        class_lexicon(lists=path)


def test_no_source_a_missing_file_and_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an analogy file, a BATS folder"):
        class_lexicon()
    with pytest.raises(UserError, match="can be read"):
        class_lexicon(lists=tmp_path / "none.yaml")
    (tmp_path / "q.txt").write_text(": a\nx y z w\n")
    (tmp_path / "own.yaml").write_text("'a, left': [x]\n")
    with pytest.raises(UserError, match="'a, left'; valid: each name once"):
        class_lexicon(tmp_path / "q.txt", lists=tmp_path / "own.yaml")


def test_classes_are_looked_up_whatever_their_case_and_small_ones_are_listed() -> None:
    vocabulary = embedding(["red", "Red", "green", "BLUE", "dog", "cat"], [1, 5, 4, 3, 2, 1])
    found = index_classes({"colours": ["RED", "green", "blue", "mauve"], "pets": ["dog"]}, vocabulary, least=2)
    assert found.names == ("colours",)
    np.testing.assert_array_equal(found.rows[0], [1, 2, 3])  # Red is more frequent than red
    np.testing.assert_array_equal(found.candidates, [1, 2, 3, 4, 5])
    assert found.skipped == (("pets", 1),)


# -- held-out choice ---------------------------------------------------------------------------------------------------


def planted_classes(seed: int = 0, V: int = 400, F: int = 30) -> tuple[np.ndarray, IndexedClasses]:
    """Three classes; column 5 holds class `all`, columns 7 and 8 half of `split` each, nothing holds `noise`."""
    stream = np.random.default_rng(seed)
    scores = stream.exponential(size=(V, F)) * (stream.random((V, F)) < 0.05)
    lexicon = {"all": words(*range(20)), "split": words(*range(20, 40)), "noise": words(*range(40, 60))}
    scores[:20, 5] = stream.uniform(6, 9, 20)
    scores[20:30, 7] = scores[30:40, 8] = stream.uniform(6, 9, 10)
    return scores, index_classes(lexicon, embedding(words(*range(V))))


def test_the_held_out_choice_finds_a_planted_class_and_nothing_in_noise() -> None:
    scores, classes = planted_classes()
    everything, split, noise = heldout_ap(scores, classes)
    assert (everything.name, everything.n, everything.column, everything.agreement) == ("all", 20, 5, 1)
    assert everything.ap > 0.95
    assert split.column in (7, 8)
    assert 0.3 < split.ap < 0.8  # one column holds half of the words
    assert noise.ap < 0.15


def test_the_words_chosen_on_do_not_count_when_the_other_half_is_scored() -> None:
    # By hand: the split as the seed makes it, the best column by scikit-learn, and the score without the first half.
    scores, classes = planted_classes(3)
    found = heldout_ap(scores, classes, seed=9, splits=2)
    everything = np.arange(400)
    for number, rows in enumerate(classes.rows):
        stream = np.random.default_rng((9, number))
        aps, aucs = [], []
        for _ in range(2):
            shuffled = stream.permutation(rows)
            one, other = shuffled[:10], shuffled[10:]
            for train, test in ((one, other), (other, one)):
                fitting, judging = np.setdiff1d(everything, test), np.setdiff1d(everything, train)
                best = np.argmax(
                    [average_precision_score(np.isin(fitting, train), scores[fitting, j]) for j in range(30)]
                )
                right = np.isin(judging, test)
                aps.append(average_precision_score(right, scores[judging, best]))
                aucs.append(roc_auc_score(right, scores[judging, best]))
        assert found[number].ap == pytest.approx(np.mean(aps))
        assert found[number].auc == pytest.approx(np.mean(aucs))


def test_precision_of_columns_is_over_candidates_alone() -> None:
    vocabulary = embedding(["one", "One", "two", "three", "four"], [9, 1, 3, 2, 1])
    classes = index_classes({"low": ["one", "two"]}, vocabulary, least=2)
    scores = np.array([[3.0], [9.0], [1.0], [2.0], [0.0]])  # One would come first, were it a word of its own
    np.testing.assert_allclose(precision_of_columns(scores, classes), [[(1 + 2 / 3) / 2]])


def test_the_order_of_columns_and_the_scale_of_scores_do_not_matter() -> None:
    _, classes = planted_classes()
    scores = np.random.default_rng(1).normal(size=(400, 30))  # no ties, between words or columns
    order = np.random.default_rng(0).permutation(30)
    one, other = heldout_ap(scores, classes), heldout_ap(8 * scores[:, order], classes)
    assert [score.ap for score in one] == [score.ap for score in other]
    assert [score.auc for score in one] == [score.auc for score in other]


def test_the_table_compares_methods_on_the_same_halves() -> None:
    scores, classes = planted_classes()
    noise = np.random.default_rng(5).normal(size=(400, 30))
    table = class_table({"factors": scores, "sparse": sparse.csr_array(scores), "noise": noise}, classes)
    assert table.methods["factors"] == table.methods["sparse"]
    assert table.mean_ap("factors") > 3 * table.mean_ap("noise")
    assert table.mean_ap("factors") == pytest.approx(np.mean([score.ap for score in heldout_ap(scores, classes)]))
    first = table.rows()[0]
    assert (first[0], first[1], first[3]) == ("all", 20, 5)
    assert first[2][0] == first[2][1] > first[2][2]
    kept = table.to_json()
    assert kept["means"]["noise"] == {"ap": table.mean_ap("noise"), "auc": table.mean_auc("noise")}
    assert set(kept["classes"]["noise"]) == {"all", "split", "noise"}


def test_a_vocabulary_without_any_class_and_scores_of_another_one_are_refused() -> None:
    scores, classes = planted_classes()
    few = index_classes({"pets": ["dog", "cat"]}, embedding(["dog", "cat", "cow"]))
    with pytest.raises(UserError, match=r"pets \(2\).*8 words"):
        class_table({"factors": scores}, few)
    with pytest.raises(UserError, match="scores: got '399 words'"):
        heldout_ap(scores[:399], classes)
    with pytest.raises(UserError, match="splits"):
        heldout_ap(scores, classes, splits=0)
