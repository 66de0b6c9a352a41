"""Question files, and what a vocabulary can be asked of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gensim.test.utils import datapath
from hypothesis import given
from hypothesis import strategies as st

from shared.config import UserError
from word_factors.embedding import Embedding
from word_factors.questions import AnalogyTask, Pair, Section

TWO = """: capital
Athens Greece Paris France
Paris France Athens Greece

: family
boy girl king queen
king queen boy girl
"""


def embedding(words: str) -> Embedding:
    listed = tuple(words.split())
    return Embedding(listed, np.eye(len(listed), 4, dtype=np.float32), np.ones(len(listed)), "rank", "test")


def task(tmp_path: Path, text: str = TWO) -> AnalogyTask:
    path = tmp_path / "questions.txt"
    path.write_text(text)
    return AnalogyTask.from_file(path)


def test_questions_words_has_14_sections_of_19544_questions_made_of_all_combinations_of_few_pairs() -> None:
    read = AnalogyTask.from_file(datapath("questions-words.txt"))
    assert (len(read.sections), len(read)) == (14, 19_544)
    pairs = {section.name: len(section.pairs) for section in read.sections}
    assert pairs["capital-common-countries"] == pairs["family"] == 23
    family = next(section for section in read.sections if section.name == "family")
    assert set(family.questions) == {(i, j) for i in range(23) for j in range(23) if i != j}


def test_the_lines_of_a_file_come_back_in_order() -> None:
    lines = Path(datapath("questions-words.txt")).read_text(encoding="utf-8").splitlines()
    read = AnalogyTask.from_file(datapath("questions-words.txt"))
    written = [tuple(line.split()) for line in lines if not line.startswith(":")]
    assert [words for section in read.sections for words in section.words()] == written


WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)


@given(st.lists(st.tuples(WORD, WORD), min_size=2, max_size=6, unique=True))
def test_a_task_written_and_read_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, str]]
) -> None:
    section = Section.of_pairs("a section", [Pair(left, (right,)) for left, right in words])
    path = tmp_path_factory.mktemp("task") / "new" / "questions.txt"
    AnalogyTask((section,)).to_file(path)
    assert AnalogyTask.from_file(path).sections == (section,)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a b c d\n", "line 1"),
        (": one\na b c d\n\na b c\n", "line 4"),
        (": one\na b c d e\n", "line 2"),
        (": one\na b c d\n:\na b c d\n", "line 3"),
        (": one\na b c d\n: one\na b c d\n", "line 3"),
        (": one\na b c d\n: two\n: three\na b c d\n", "line 3"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(UserError, match=rf"questions\.txt, {line}:"):
        task(tmp_path, text)


@pytest.mark.parametrize("text", ["", "\n\n", ": one\n"])
def test_a_file_without_questions_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="at least one question"):
        task(tmp_path, text)


def test_a_file_that_is_absent_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can be read"):
        AnalogyTask.from_file(tmp_path / "absent.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        AnalogyTask.from_file(tmp_path / "binary")


def test_bats_has_several_answers_a_pair_and_all_combinations(tmp_path: Path) -> None:
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "L01 [sound].txt").write_bytes(b"cat\tmeow/purr\r\ndog\tbark\r\ncow\tmoo/low\r\n")
    read = AnalogyTask.from_bats(tmp_path)
    assert read.sections[0].name == "L01 [sound]"
    assert read.sections[0].pairs[0] == Pair("cat", ("meow", "purr"))
    assert len(read) == 6
    # The first answer in the vocabulary stands for b; every answer in it is right.
    indexed = read.in_vocabulary(embedding("cat purr dog bark cow moo low"))
    section = indexed.sections[0]
    assert section.pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    to_cow = np.flatnonzero(section.questions[:, 1] == 2)
    for found, right in ((5, True), (6, True), (3, False)):
        assert section.right(np.full(len(to_cow), found), indexed.forms, to_cow).tolist() == [right] * len(to_cow)


def test_a_bats_line_without_tab_or_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.txt file"):
        AnalogyTask.from_bats(tmp_path)
    (tmp_path / "E.txt").write_text("cat\tmeow\ndog bark\n")
    with pytest.raises(UserError, match=r"E\.txt, line 2"):
        AnalogyTask.from_bats(tmp_path)


@pytest.mark.parametrize("pair", [Pair("New York", ("USA",)), Pair("cat", ("meow", "purr")), Pair("", ("x",))])
def test_what_the_format_cannot_hold_is_not_written(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(UserError, match="section s"):
        AnalogyTask((Section.of_pairs("s", [Pair("a", ("b",)), pair]),)).to_file(tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def test_questions_out_of_vocabulary_are_dropped_and_reported_by_section_and_word(tmp_path: Path) -> None:
    indexed = task(tmp_path).in_vocabulary(embedding("boy girl king queen athens greece"))
    assert [section.name for section in indexed.sections] == ["family"]
    assert len(indexed) == 2
    capital, family = indexed.coverage
    assert (capital.questions, capital.kept, capital.dropped) == (2, 0, 2)
    assert capital.missing == (("France", 2), ("Paris", 2))
    assert capital.folded == (("Athens", "athens"), ("Greece", "greece"))
    assert (family.kept, family.missing) == (2, ())
    assert "0 of 2 questions, 2 dropped; not in the vocabulary: France (2), Paris (2)" in str(capital)


def test_a_vocabulary_without_any_question_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 4 questions"):
        task(tmp_path).in_vocabulary(embedding("one two three"))


def test_the_earliest_row_stands_for_all_spellings(tmp_path: Path) -> None:
    words = embedding("King king QUEEN boy queen girl")
    indexed = task(tmp_path).in_vocabulary(words)
    assert indexed.forms.tolist() == [0, 0, 2, 3, 2, 5]
    assert indexed.sections[0].pairs.tolist() == [[3, 5], [0, 2]]
    # Any spelling of the answer is right.
    assert indexed.sections[0].right(np.array([4, 5]), indexed.forms).tolist() == [True, True]
    exact = task(tmp_path).in_vocabulary(words, case_insensitive=False)
    assert exact.forms.tolist() == list(range(6))
    assert exact.sections[0].pairs.tolist() == [[3, 5], [1, 4]]


def test_folding_a_vocabulary_first_leaves_one_spelling_of_each(tmp_path: Path) -> None:
    indexed = task(tmp_path).in_vocabulary(embedding("King king QUEEN boy queen girl").fold_case())
    assert indexed.forms.tolist() == list(range(4))


def test_pairs_that_differ_in_case_only_become_one_pair(tmp_path: Path) -> None:
    text = ": s\nboy girl king queen\nBoy Girl King Queen\nking queen boy girl\n"
    section = task(tmp_path, text).in_vocabulary(embedding("boy girl king queen")).sections[0]
    assert len(section.pairs) == 2  # four in the file: a split must not part boy:girl from Boy:Girl
    assert section.questions.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert section.source.tolist() == [0, 1, 2]


def test_sections_are_chosen_by_name(tmp_path: Path) -> None:
    assert [section.name for section in task(tmp_path).choose(["family"]).sections] == ["family"]
    with pytest.raises(UserError, match="did you mean 'family'"):
        task(tmp_path).choose(["famly"])
