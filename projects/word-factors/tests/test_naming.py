"""Reading factors: order of the top words, names that follow content, shares that sum to one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from shared.config import UserError
from word_factors.embedding import Embedding
from word_factors.naming import (
    NEVER,
    NamedFactor,
    all_top_words,
    automatic_names,
    match_names,
    read_names,
    senses,
    signature,
    signatures,
    top_words,
    word_report,
    write_names,
)

Planted = tuple[Embedding, np.ndarray, np.ndarray]


def embedding(words: str, counts: list[float] | None = None) -> Embedding:
    listed = tuple(words.split())
    frequency = np.array(counts or range(len(listed), 0, -1), float)
    vectors = np.random.default_rng(0).standard_normal((len(listed), 4)).astype(np.float32)
    return Embedding(listed, vectors, frequency, "corpus", "small")


def column(*alpha: float) -> sparse.csr_array:
    return sparse.csr_array(np.array(alpha, np.float32)[:, None])


# -- top words ---------------------------------------------------------------------------------------------------------


def test_top_words_fall_in_activation_and_ties_go_to_the_more_frequent() -> None:
    words = embedding("a b c d e", [1, 5, 2, 9, 3])
    assert top_words(column(0.5, 0.5, 0.9, 0.5, 0), words, 0) == [
        ("c", pytest.approx(0.9)),
        ("d", 0.5),
        ("b", 0.5),
        ("a", 0.5),
    ]


def test_spellings_that_differ_in_case_are_listed_once() -> None:
    words = embedding("Queen queen king QUEEN")
    codes = column(0.2, 0.9, 0.5, 0.7)
    assert [word for word, _ in top_words(codes, words, 0)] == ["queen", "king"]
    assert [word for word, _ in top_words(codes, words, 0, fold_case=False)] == ["queen", "QUEEN", "king", "Queen"]
    assert [word for word, _ in top_words(codes, words, 0, n=2)] == ["queen", "king"]


def test_min_rank_goes_by_frequency_and_not_by_row() -> None:
    words = embedding("a b c d", [1, 5, 2, 9])
    assert [word for word, _ in top_words(column(0.9, 0.8, 0.7, 0.6), words, 0, min_rank=2)] == ["b", "d"]


def test_weight_sqrt_orders_by_activation_times_root_frequency_and_returns_activation() -> None:
    words = embedding("a b c", [1, 100, 4])
    found = top_words(column(0.9, 0.2, 0.5), words, 0, weight="sqrt")  # 0.9, 2.0, 1.0
    assert found == [("b", pytest.approx(0.2)), ("c", 0.5), ("a", pytest.approx(0.9))]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_top_words_of_all_factors_are_a_full_sort_of_each_column(seed: int) -> None:
    stream = np.random.default_rng(seed)
    alpha = np.round(stream.exponential(size=(30, 6)) * (stream.random((30, 6)) < 0.4), 1).astype(np.float32)
    words = embedding(" ".join(f"w{i}" for i in range(30)), stream.permutation(30).astype(float).tolist())
    codes = sparse.csr_array(alpha)
    tops = all_top_words(codes, words, 7)
    for j in range(6):
        order = sorted(range(30), key=lambda row: (-alpha[row, j], -words.counts[row]))
        expected = [(words.words[row], float(alpha[row, j])) for row in order if alpha[row, j] > 0][:7]
        assert tops[j] == expected == top_words(codes, words, j, 7)


def test_stored_zeros_are_no_activations() -> None:
    codes = sparse.csr_array((np.zeros(2, np.float32), ([0, 1], [0, 0])), shape=(3, 1))
    assert codes.nnz == 2
    assert top_words(codes, embedding("a b c"), 0) == []


def test_top_words_refuse_a_missing_factor_and_codes_of_another_vocabulary() -> None:
    words = embedding("a b c")
    with pytest.raises(UserError, match=r"factor: got '1'"):
        top_words(column(1, 1, 1), words, 1)
    with pytest.raises(UserError, match=r"2 words.*the 3 of small"):
        all_top_words(column(1, 1), words)
    with pytest.raises(UserError, match="weight"):
        top_words(column(1, 1, 1), words, 0, weight="rank")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="min_rank"):
        top_words(column(1, 1, 1), words, 0, min_rank=0)


# -- names -------------------------------------------------------------------------------------------------------------


def vocabulary(size: int = 60) -> Embedding:
    return embedding(" ".join(f"word{i}" for i in range(size)))


def test_automatic_names_are_top_words_with_the_class_found_above_the_threshold() -> None:
    alpha = np.zeros((60, 3), np.float32)
    alpha[:10, 0] = np.linspace(1, 0.5, 10)  # exactly the class
    alpha[30:60, 1] = np.linspace(1, 0.1, 30)  # nothing of it
    names = automatic_names(sparse.csr_array(alpha), vocabulary(), {"tens": [f"word{i}" for i in range(10)]})
    assert names == ["word0, word1, word2 (tens)", "word30, word31, word32", NEVER]
    assert automatic_names(sparse.csr_array(alpha), vocabulary())[0] == "word0, word1, word2"
    small = {"three": ["word0", "word1", "word2"]}  # too small a class to be told from chance
    assert automatic_names(sparse.csr_array(alpha), vocabulary(), small)[0] == "word0, word1, word2"


def test_the_label_needs_an_average_precision_above_the_threshold() -> None:
    alpha = np.zeros((60, 1), np.float32)
    alpha[[0, *range(20, 40)], 0] = np.linspace(0.5, 1, 21)
    lexicon = {"tens": [f"word{i}" for i in range(10)]}
    plain = automatic_names(sparse.csr_array(alpha), vocabulary(), lexicon, least=0.3)
    assert plain == automatic_names(sparse.csr_array(alpha), vocabulary())
    assert automatic_names(sparse.csr_array(alpha), vocabulary(), lexicon, least=0.01)[0].endswith("(tens)")


def test_a_signature_follows_content_and_not_number_scale_or_order_of_near_ties() -> None:
    stream = np.random.default_rng(0)
    alpha = stream.exponential(size=(60, 5)).astype(np.float32)
    words = vocabulary()
    codes = sparse.csr_array(alpha)
    order = [3, 0, 4, 1, 2]
    moved = signatures(sparse.csr_array(3 * alpha[:, order]), words)
    assert moved == [signature(codes, words, j) for j in order]
    assert len(set(moved)) == 5
    top = np.argsort(-alpha[:, 0])[:20]
    swapped = alpha.copy()
    swapped[top[[3, 4]], 0] = swapped[top[[4, 3]], 0]
    assert signature(sparse.csr_array(swapped), words, 0) == signature(codes, words, 0)
    lost = alpha.copy()
    lost[top[3], 0] = 0
    assert signature(sparse.csr_array(lost), words, 0) != signature(codes, words, 0)


def test_never_active_factors_have_no_signature() -> None:
    codes = sparse.csr_array(np.array([[1, 0], [1, 0]], np.float32))
    assert signatures(codes, embedding("a b"))[1] is None
    with pytest.raises(UserError, match="active in some word"):
        signature(codes, embedding("a b"), 1)


def test_names_come_back_from_their_file_and_find_their_factors_in_another_order(tmp_path: Path) -> None:
    alpha = np.random.default_rng(0).exponential(size=(60, 4)).astype(np.float32)
    words, codes = vocabulary(), sparse.csr_array(alpha)
    entries = [
        NamedFactor(signature(codes, words, 2), "weiblich: ♀", ("word1", "no", "1e3")),
        NamedFactor(signature(codes, words, 0), "yes", ()),
        NamedFactor("words-000000000000", "of another dictionary"),
    ]
    path = tmp_path / "names.yaml"
    write_names(path, entries)
    assert read_names(path) == tuple(entries)
    found = match_names(read_names(path), signatures(sparse.csr_array(alpha[:, [2, 3, 0, 1]]), words))
    assert found.names == {0: "weiblich: ♀", 2: "yes"}
    assert [entry.name for entry in found.unmatched] == ["of another dictionary"]


def test_a_retrained_dictionary_inherits_no_name() -> None:
    words = vocabulary()
    one, other = (np.random.default_rng(seed).exponential(size=(60, 4)).astype(np.float32) for seed in (0, 1))
    entries = [NamedFactor(signature(sparse.csr_array(one), words, j), f"name {j}") for j in range(4)]
    with pytest.raises(UserError, match=r"4 names.*a file for this dictionary"):
        match_names(entries, signatures(sparse.csr_array(other), words))
    assert match_names([], signatures(sparse.csr_array(other), words)).names == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- signature: words-1\n  name: [a", "YAML: a list of entries"),
        ("a: b", "a list of entries"),
        ("- signature: words-1\n  name: a\n- just text", "entry 2: got 'just text'"),
        ("- signature: words-1", "entry 1, name: got 'None'"),
        ("- signature: 12\n  name: a", "entry 1, signature: got '12'"),
        ("- signature: words-1\n  name: 7", "entry 1, name: got '7'"),
        ("- signature: words-1\n  nmae: a", r"nmae.*did you mean 'name'"),
        ("- signature: words-1\n  name: a\n  words: b", "entry 1, words: got 'b'"),
        ("- {signature: words-1, name: a}\n- {signature: words-1, name: b}", "entry 2: got 'words-1'.*once"),
        ("!!python/object/apply:os.system ['true']", "YAML: a list of entries"),
    ],
)
def test_a_malformed_names_file_is_refused_with_the_entry_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_names(path)


def test_a_names_file_that_is_missing_is_refused_and_an_empty_one_has_no_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can be read"):
        read_names(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_names(tmp_path / "empty.yaml") == ()


# -- senses ------------------------------------------------------------------------------------------------------------


def test_senses_are_the_groups_with_their_share_of_the_code() -> None:
    words = embedding("apple nothing")
    codes = sparse.csr_array(np.array([[0.2, 0.3, 0.4, 0.1], [0, 0, 0, 0]], np.float32))
    labels = np.array([0, 1, 0, 2])
    found = senses(codes, words, "apple", labels)
    assert [(sense.index, round(sense.share, 6)) for sense in found] == [(0, 0.6), (1, 0.3)]
    assert [j for j, _ in found[0].factors] == [2, 0]
    assert [sense.index for sense in senses(codes, words, "apple")] == [2, 1, 0]
    assert [sense.index for sense in senses(codes, words, "apple", labels, threshold=0.1)] == [0, 1, 2]
    assert senses(codes, words, "nothing", labels) == ()


def test_a_word_report_accounts_for_the_whole_word(planted: Planted) -> None:
    words, phi, alpha = planted
    codes = sparse.csr_array(alpha)
    labels = np.arange(24) // 3
    for word in ("word0", "word7", "word399"):
        report = word_report(codes, words, word, phi, words.vectors, labels)
        row = words.row(word)
        assert sum(share for _, _, share in report.factors) == pytest.approx(1)
        assert [j for j, _, _ in report.factors] == np.argsort(-alpha[row])[:3].tolist()
        assert sum(sense.share for sense in report.senses) + report.rest == pytest.approx(1)
        x = words.vectors[row]
        residual = x - phi @ alpha[row]
        assert report.left_over == pytest.approx(float(residual @ residual / (x @ x)), rel=1e-3)
    empty = word_report(sparse.csr_array(np.zeros_like(alpha)), words, "word0", phi, words.vectors, labels)
    assert (empty.factors, empty.senses, empty.rest, empty.left_over) == ((), (), 0, pytest.approx(1))


def test_senses_refuse_unknown_words_and_labels_of_another_dictionary() -> None:
    words = embedding("apple pear")
    codes = sparse.csr_array(np.ones((2, 3), np.float32))
    with pytest.raises(UserError, match=r"(?s)word: got 'aple'.*Nearest spellings: apple"):
        senses(codes, words, "aple")
    with pytest.raises(UserError, match="each of 3 factors"):
        senses(codes, words, "apple", np.zeros(2, int))
    with pytest.raises(UserError, match="threshold"):
        senses(codes, words, "apple", threshold=1.5)
