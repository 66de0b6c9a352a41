"""Analogy questions: files of them, and what of a file a vocabulary can be asked. Imports no torch.

A section holds pairs (Athens, Greece) and questions, each made of two of its pairs: a:b :: c:?. The pairs matter as
much as the questions, because whatever is fitted must be split by pair: a pair occurs in dozens of questions.

Dimensions: P pairs of a section, Q questions of a section, V words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError
from shared.run import write_atomically
from word_factors.embedding import Embedding


def form(word: str) -> str:
    """What stands for all spellings of a word that differ in case: upper case, as gensim's evaluation has it."""
    return word.upper()


@dataclass(frozen=True)
class Pair:
    """Two words in a relation.

    Attributes:
        left: the word asked with (a, or c).
        answers: what is right for it, best first (BATS often has several); the first takes the place of b.
    """

    left: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """The pairs of one relation and the questions made of them.

    Attributes:
        name: as in the file.
        pairs: distinct.
        questions: (i, j): pair i gives a and b, pair j gives c and what is right for d.
    """

    name: str
    pairs: tuple[Pair, ...]
    questions: tuple[tuple[int, int], ...]

    @classmethod
    def of_pairs(cls, name: str, pairs: Iterable[Pair]) -> Section:
        """All ordered combinations of two distinct pairs."""
        distinct = tuple(dict.fromkeys(pairs))
        size = len(distinct)
        return cls(name, distinct, tuple((i, j) for i in range(size) for j in range(size) if i != j))

    def words(self) -> Iterator[tuple[str, str, str, str]]:
        """The questions as (a, b, c, first answer)."""
        for i, j in self.questions:
            one, other = self.pairs[i], self.pairs[j]
            yield one.left, one.answers[0], other.left, other.answers[0]


@dataclass(frozen=True)
class AnalogyTask:
    """Sections of analogy questions, by words."""

    sections: tuple[Section, ...]

    def __len__(self) -> int:
        """Number of questions."""
        return sum(len(section.questions) for section in self.sections)

    @classmethod
    def from_file(cls, path: Path | str) -> AnalogyTask:
        """Read the format of questions-words: lines `: section`, then lines of four words, a:b :: c:d.

        Raises:
            UserError: no such file; no question in it; a line that is neither, with its number; a section without name
                or without questions, or two of one name.
        """
        path = Path(path)
        found: dict[str, list[tuple[str, str, str, str]]] = {}
        name, opened = "", 0
        for number, line in _lines(path):
            if line.startswith(":"):
                if name and not found[name]:
                    raise UserError(f"{path}, line {opened}", f": {name}", "a section with at least one question")
                name, opened = line[1:].strip(), number
                if not name or name in found:
                    raise UserError(f"{path}, line {number}", line, "`: name`, each name once")
                found[name] = []
                continue
            words = line.split()
            if not name:
                raise UserError(f"{path}, line {number}", line, "a line `: section` before the first question")
            if len(words) != 4:
                raise UserError(f"{path}, line {number}", line, "four words, or `: section`")
            found[name].append((words[0], words[1], words[2], words[3]))
        if not name or not found[name]:
            raise UserError(str(path), f"{len(found)} sections", "at least one question in every section")
        return cls(tuple(_section(name, lines) for name, lines in found.items()))

    @classmethod
    def from_bats(cls, folder: Path | str) -> AnalogyTask:
        """Read a folder of BATS: a file a relation, lines `word TAB answer/answer/...`. Questions are all ordered
        combinations of a relation's pairs.

        Raises:
            UserError: no such folder, no .txt file under it, or a malformed line, with its number.
        """
        folder = Path(folder)
        files = sorted(folder.rglob("*.txt"), key=lambda path: path.name)
        if not files:
            raise UserError("BATS folder", folder, "a folder with a .txt file for each relation")
        sections = []
        for path in files:
            pairs = []
            for number, line in _lines(path):
                left, tab, right = line.partition("\t")
                answers = tuple(answer for answer in (part.strip() for part in right.split("/")) if answer)
                if not tab or not left.strip() or not answers:
                    raise UserError(f"{path}, line {number}", line, "a word, a tab, and answers separated by /")
                pairs.append(Pair(left.strip(), answers))
            sections.append(Section.of_pairs(path.stem, pairs))
        return cls(tuple(sections))

    def to_file(self, path: Path | str) -> None:
        """Write the format of questions-words.

        Raises:
            UserError: a word with white space, or a pair with several answers: the format has no place for them.
        """
        lines = []
        for section in self.sections:
            for pair in section.pairs:
                if len(pair.answers) > 1:
                    raise UserError(f"section {section.name}", "/".join(pair.answers), "one answer for each pair")
                for word in (pair.left, *pair.answers):
                    if word.split() != [word]:
                        raise UserError(f"section {section.name}", word, "words without white space")
            lines.append(f": {section.name}")
            lines += [" ".join(question) for question in section.words()]
        path = Path(path)
        write_atomically(path, ("\n".join(lines) + "\n").encode())

    def choose(self, names: Sequence[str]) -> AnalogyTask:
        """The sections of these names.

        Raises:
            UserError: no section of that name; the nearest is suggested.
        """
        by_name = {section.name: section for section in self.sections}
        for name in names:
            if name not in by_name:
                raise UserError("section", name, list(by_name))
        return AnalogyTask(tuple(by_name[name] for name in names))

    def in_vocabulary(self, embedding: Embedding, case_insensitive: bool = True) -> IndexedTask:
        """The questions whose words the embedding has, as rows, and a report of the others.

        With `case_insensitive` the most frequent spelling of a form stands for all (ties: the earliest row, as in
        gensim's `evaluate_word_analogies`, which takes the order of the rows for that of the frequencies).

        Raises:
            UserError: no question is left.
        """
        fold = form if case_insensitive else str
        first: dict[str, int] = {}
        forms = np.empty(len(embedding), np.int64)
        for row in np.argsort(-embedding.counts, kind="stable").tolist():
            forms[row] = first.setdefault(fold(embedding.words[row]), row)
        indexed, coverage = [], []
        for section in self.sections:
            kept, report = _index(section, first, embedding, fold)
            coverage.append(report)
            if len(kept.questions):
                indexed.append(kept)
        if not indexed:
            missing = Counter(word for report in coverage for word, _ in report.missing)
            some = ", ".join(word for word, _ in missing.most_common(5))
            raise UserError(
                "analogy questions",
                f"none of {len(self):,} questions",
                f"questions in the vocabulary of {embedding.name} ({len(embedding):,} words)",
                f"Not in the vocabulary: {some}, ..." if some else "",
            )
        return IndexedTask(tuple(indexed), forms, tuple(coverage))


@dataclass(frozen=True)
class Coverage:
    """What of a section lies in a vocabulary.

    Attributes:
        section: its name.
        questions, kept: how many there are, and how many of them can be asked.
        missing: (word, questions dropped for want of it), most first; a question may lack several words.
        folded: words found in another spelling only, with that spelling.
    """

    section: str
    questions: int
    kept: int
    missing: tuple[tuple[str, int], ...]
    folded: tuple[tuple[str, str], ...]

    @property
    def dropped(self) -> int:
        return self.questions - self.kept

    def __str__(self) -> str:
        words = ", ".join(f"{word} ({count})" for word, count in self.missing[:3])
        rest = f", and {len(self.missing) - 3} more words" if len(self.missing) > 3 else ""
        why = f"; not in the vocabulary: {words}{rest}" if self.missing else ""
        return f"{self.section}: {self.kept:,} of {self.questions:,} questions, {self.dropped:,} dropped{why}"


@dataclass(frozen=True)
class IndexedSection:
    """A section by rows of an embedding.

    Attributes:
        name: as in the file.
        pairs: [P, 2] rows of the left words and of the first answers; distinct.
        answers: for each pair, the rows of all that is right.
        questions: [Q, 2] pairs of each question.
        source: [Q] which question of the file's section each was.
    """

    name: str
    pairs: NDArray[np.int64]
    answers: tuple[tuple[int, ...], ...]
    questions: NDArray[np.int64]
    source: NDArray[np.int64]

    def abc(self, chosen: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """[n, 3] rows of a, b, c of the questions `chosen` (all by default)."""
        questions = self.questions if chosen is None else self.questions[chosen]
        return np.column_stack([self.pairs[questions[:, 0]], self.pairs[questions[:, 1], 0]])

    def right(
        self, found: NDArray[np.int64], forms: NDArray[np.int64], chosen: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_]:
        """Whether the rows found answer the questions `chosen`.

        Args:
            found: [..., n] rows.
            forms: [V] the row that stands for each row's form.
        """
        questions = self.questions if chosen is None else self.questions[chosen]
        widest = max(len(rows) for rows in self.answers)
        table = np.array([rows + rows[-1:] * (widest - len(rows)) for rows in self.answers], np.int64)  # [P, widest]
        return (forms[found][..., None] == table[questions[:, 1]]).any(-1)


@dataclass(frozen=True)
class IndexedTask:
    """Sections by rows of an embedding; sections without a question left are not among them.

    Attributes:
        forms: [V] for each row, the earliest row of its form: itself unless a spelling in another case came before.
        coverage: for each section of the file, what was kept and dropped.
    """

    sections: tuple[IndexedSection, ...]
    forms: NDArray[np.int64]
    coverage: tuple[Coverage, ...]

    def __len__(self) -> int:
        """Number of questions."""
        return sum(len(section.questions) for section in self.sections)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a text file's lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError("analogy file", path, "a file that can be read", str(error)) from error
    except UnicodeDecodeError as error:
        raise UserError("analogy file", path, "text in UTF-8", str(error)) from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _section(name: str, lines: list[tuple[str, str, str, str]]) -> Section:
    """Recover the distinct pairs from questions, in order of first appearance."""
    seen: dict[tuple[str, str], int] = {}
    questions = []
    for a, b, c, d in lines:
        i = seen.setdefault((a, b), len(seen))
        questions.append((i, seen.setdefault((c, d), len(seen))))
    return Section(name, tuple(Pair(left, (right,)) for left, right in seen), tuple(questions))


def _index(
    section: Section, first: dict[str, int], embedding: Embedding, fold: Callable[[str], str]
) -> tuple[IndexedSection, Coverage]:
    """Rows of a section's pairs. Pairs that fall on the same rows become one, so that no split can part them."""
    place: dict[tuple[int, tuple[int, ...]], int] = {}
    where: list[int | None] = []  # the indexed pair of each pair of the file
    lacking: list[list[str]] = []
    folded: dict[str, str] = {}
    for pair in section.pairs:
        rows = [first[fold(answer)] for answer in pair.answers if fold(answer) in first]
        left = first.get(fold(pair.left))
        if left is None or not rows:
            lacking.append([pair.left] * (left is None) + list(pair.answers) * (not rows))
            where.append(None)
            continue
        lacking.append([])
        for word in (pair.left, *pair.answers):
            if fold(word) in first and word not in embedding.index:
                folded[word] = embedding.words[first[fold(word)]]
        where.append(place.setdefault((left, tuple(dict.fromkeys(rows))), len(place)))
    questions, source = [], []
    missing: Counter[str] = Counter()
    for number, (i, j) in enumerate(section.questions):
        one, other = where[i], where[j]
        if one is None or other is None:
            missing.update(set(lacking[i] + lacking[j]))
        else:
            questions.append((one, other))
            source.append(number)
    kept = IndexedSection(
        section.name,
        np.array([(left, rows[0]) for left, rows in place], np.int64).reshape(-1, 2),
        tuple(rows for _, rows in place),
        np.array(questions, np.int64).reshape(-1, 2),
        np.array(source, np.int64),
    )
    ordered = tuple(sorted(missing.items(), key=lambda item: (-item[1], item[0])))
    return kept, Coverage(section.name, len(section.questions), len(questions), ordered, tuple(folded.items()))
