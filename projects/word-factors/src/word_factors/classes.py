"""Factors against classes of words made by hand: does one column of scores find the other half of a class?

The best column is chosen on half of a class and scored on the other half against all words outside the class. Raw
coordinates and other decompositions (`baselines`) choose among their columns the same way. Average precision tells the
methods apart; the area under the ROC curve hardly does, because most words tie at zero in a sparse column, and is
reported to show that. Imports no torch.

Dimensions: V words, F columns of a method (factors, signed coordinates), U words in any class, P positives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from tqdm import tqdm

from shared.config import UserError, check_range
from word_factors.embedding import Embedding

LEAST = 8  # words of a class in the vocabulary, below which it is skipped
Scores = NDArray[np.floating] | sparse.csr_array


# -- classes -----------------------------------------------------------------------------------------------------------


def class_lexicon(
    questions: Path | None = None, bats: Path | None = None, lists: Path | None = None
) -> dict[str, tuple[str, ...]]:
    """Classes of words, name -> words.

    Args:
        questions: analogy file; each section gives its left words and its right words.
        bats: BATS folder; each relation gives its left words and all of its answers.
        lists: YAML file, name -> list of words (or one text of words between blanks).

    Raises:
        UserError: no source at all; a file or folder that cannot be read; two classes of one name; a list that is none.
    """
    from word_factors.questions import AnalogyTask

    tasks = [AnalogyTask.from_file(questions)] if questions is not None else []
    tasks += [AnalogyTask.from_bats(bats)] if bats is not None else []
    found: list[tuple[str, tuple[str, ...]]] = []
    for task in tasks:
        for section in task.sections:
            answers = (word for pair in section.pairs for word in pair.answers)
            found.append((f"{section.name}, left", tuple(dict.fromkeys(pair.left for pair in section.pairs))))
            found.append((f"{section.name}, right", tuple(dict.fromkeys(answers))))
    found += _read_lists(lists) if lists is not None else []
    lexicon = dict(found)
    if not found:
        raise UserError("classes", "none", "an analogy file, a BATS folder or a file of lists")
    if len(lexicon) < len(found):
        names = [name for name, _ in found]
        raise UserError("classes", next(name for name in names if names.count(name) > 1), "each name once")
    return lexicon


def _read_lists(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("file of classes", path, "a text file that can be read", str(error)) from error
    except yaml.YAMLError as error:
        raise UserError("file of classes", path, "YAML: name -> list of words", str(error)) from error
    if not isinstance(content, dict) or not content:
        raise UserError("file of classes", path, "a mapping, name -> list of words")
    found = []
    for name, words in content.items():
        listed = words.split() if isinstance(words, str) else words
        if not isinstance(listed, list) or not listed or not all(isinstance(word, str) for word in listed):
            hint = "YAML reads words such as yes, no and 1 as something else: put them in quotes."
            raise UserError(f"{path}, class {name}", words, "a list of words", hint)
        found.append((str(name), tuple(dict.fromkeys(listed))))
    return found


@dataclass(frozen=True)
class IndexedClasses:
    """Classes as rows of a vocabulary.

    Attributes:
        names: of the classes that are large enough.
        rows: for each its rows, distinct, rising.
        candidates: rows that stand for their form, rising: words that differ in case only are one word here, and its
            most frequent spelling stands for it. Precision is over these rows alone.
        skipped: (name, words in the vocabulary) of the classes that are too small.
    """

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    candidates: NDArray[np.int64]
    skipped: tuple[tuple[str, int], ...]


def index_classes(lexicon: Mapping[str, Sequence[str]], embedding: Embedding, least: int = LEAST) -> IndexedClasses:
    """The classes in an embedding's vocabulary, whatever their case; those of fewer than `least` words are skipped, and
    listed. A class of all candidates, which leaves nothing to tell it from, is skipped too."""
    check_range("least", least, 2)
    candidates = np.array(sorted(embedding.form_rows.values()), np.int64)
    names, rows, skipped = [], [], []
    for name, words in lexicon.items():
        forms = {word.lower() for word in words}
        found = sorted(embedding.form_rows[form] for form in forms if form in embedding.form_rows)
        if least <= len(found) < len(candidates):
            names.append(name)
            rows.append(np.array(found, np.int64))
        else:
            skipped.append((name, len(found)))
    return IndexedClasses(tuple(names), tuple(rows), candidates, tuple(skipped))


# -- precision ---------------------------------------------------------------------------------------------------------


def average_precision(scores: Scores, positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average precision of every column: scikit-learn's `average_precision_score`, ties included.

    Equal scores stand and fall together, so AP is the mean over the positives i of
    (positives scored >= s_i) / (all scored >= s_i).

    Args:
        scores: [V, F]. positive: [V].

    Returns: [F].
    """
    return _measures(scores, positive)[0]


def roc_auc(scores: Scores, positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area under the ROC curve of every column: the share of pairs (positive, negative) in the right order, a tie
    counting half. Arguments as `average_precision`. [F]."""
    return _measures(scores, positive)[1]


def _measures(scores: Scores, positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not 0 < positive.sum() < len(positive):
        raise ValueError(f"positives and negatives, not {int(positive.sum())} of {len(positive)}")
    everything = np.arange(len(positive))
    standing = _standing(scores, everything, np.flatnonzero(positive))
    return _score(standing, np.arange(int(positive.sum())), np.empty(0, np.int64))


@dataclass(frozen=True)
class _Standing:
    """Where the words of the classes stand among all candidates, by column.

    Attributes: own [U, F] their scores; at_least, above [U, F] candidates scored >= and > each; candidates: how many.
    """

    own: NDArray[np.floating]
    at_least: NDArray[np.int32]
    above: NDArray[np.int32]
    candidates: int


def _standing(scores: Scores, candidates: NDArray[np.int64], rows: NDArray[np.int64]) -> _Standing:
    """Rank `rows` (some of the candidates) among the candidates in every column. A sparse column is sorted dense, one
    at a time: memory holds U x F and no V x F."""
    columns: Any = sparse.csc_array(scores) if sparse.issparse(scores) else np.asarray(scores)
    words, width = cast(tuple[int, int], columns.shape)
    own = np.empty((len(rows), width), columns.dtype)
    at_least, above = np.empty((len(rows), width), np.int32), np.empty((len(rows), width), np.int32)
    for j in range(width):
        if sparse.issparse(scores):
            part = slice(columns.indptr[j], columns.indptr[j + 1])
            column = np.zeros(words, columns.dtype)
            column[columns.indices[part]] = columns.data[part]
        else:
            column = columns[:, j]
        ordered = np.sort(column[candidates])
        own[:, j] = column[rows]
        at_least[:, j] = len(ordered) - np.searchsorted(ordered, own[:, j], side="left")
        above[:, j] = len(ordered) - np.searchsorted(ordered, own[:, j], side="right")
    return _Standing(own, at_least, above, len(candidates))


def _score(
    standing: _Standing,
    positive: NDArray[np.int64],
    left_out: NDArray[np.int64],
    columns: slice | list[int] = slice(None),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision and AUC of `positive` against all candidates but `left_out` (both as places in `standing`).

    Returns: [F], [F] of the chosen columns.
    """
    s = standing.own[positive][:, columns]  # [P, F]
    others = standing.own[left_out][:, columns]
    at_least, above = standing.at_least[positive][:, columns], standing.above[positive][:, columns]
    precision, beaten = np.zeros(s.shape[1]), np.zeros(s.shape[1])
    for i in range(len(positive)):
        as_good = (s >= s[i]).sum(axis=0)
        better = (s > s[i]).sum(axis=0)
        listed = at_least[i] - (others >= s[i]).sum(axis=0)
        listed_better = above[i] - (others > s[i]).sum(axis=0)
        precision += as_good / listed
        # Negatives before it, and half of those beside it.
        beaten += ((listed - as_good) + (listed_better - better)) / 2
    negatives = standing.candidates - len(positive) - len(left_out)
    return precision / len(positive), 1 - beaten / len(positive) / negatives


def precision_of_columns(scores: Scores, classes: IndexedClasses) -> NDArray[np.float64]:
    """[classes, F] average precision of every column for every whole class: nothing held out."""
    union, places = _union(classes)
    standing = _standing(scores, classes.candidates, union)
    return np.array([_score(standing, place, np.empty(0, np.int64))[0] for place in places])


def _union(classes: IndexedClasses) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Rows of any class, and the places of each class among them."""
    union = np.unique(np.concatenate(classes.rows))
    return union, [np.searchsorted(union, rows) for rows in classes.rows]


# -- held-out comparison -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScore:
    """One class under one method.

    Attributes:
        name: of the class. n: its words in the vocabulary.
        ap, auc: means over splits and directions, held out.
        column: the column chosen most often (ties: the lowest).
        agreement: share of the choices that fell on it.
    """

    name: str
    n: int
    ap: float
    auc: float
    column: int
    agreement: float


@dataclass(frozen=True)
class ClassTable:
    """All classes under all methods.

    Attributes: methods: method -> a score a class, in one order; skipped: (class, words in the vocabulary).
    """

    methods: dict[str, tuple[ClassScore, ...]]
    skipped: tuple[tuple[str, int], ...]

    def mean_ap(self, method: str) -> float:
        """Mean over the classes."""
        return float(np.mean([score.ap for score in self.methods[method]]))

    def mean_auc(self, method: str) -> float:
        """Mean over the classes."""
        return float(np.mean([score.auc for score in self.methods[method]]))

    def rows(self) -> list[tuple[str, int, tuple[float, ...], int]]:
        """(class, words, AP of each method, best column of the first method), by falling AP of the first."""
        first, *_ = self.methods.values()
        order = sorted(range(len(first)), key=lambda place: (-first[place].ap, first[place].name))
        return [
            (first[at].name, first[at].n, tuple(scores[at].ap for scores in self.methods.values()), first[at].column)
            for at in order
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        classes = {
            method: {score.name: {k: v for k, v in vars(score).items() if k != "name"} for score in scores}
            for method, scores in self.methods.items()
        }
        means = {method: {"ap": self.mean_ap(method), "auc": self.mean_auc(method)} for method in self.methods}
        return {"means": means, "classes": classes, "skipped": [list(item) for item in self.skipped]}


def heldout_ap(scores: Scores, classes: IndexedClasses, seed: int = 0, splits: int = 4) -> tuple[ClassScore, ...]:
    """Choose a column on one half of each class, score it on the other.

    Both ways of each split count. In either the words of the other half are left out: they are neither right nor wrong
    while the column is chosen, and known when it is scored. The halves depend on the seed and the class's place alone,
    so that all methods face the same ones.

    Args:
        scores: [V, F]; the more a word has of a column, the higher. Signed columns stand in it twice, see
            `baselines.both_signs`.
        splits: times that each class is halved.
    """
    check_range("splits", splits, 1)
    words, _ = cast(tuple[int, int], scores.shape)
    if words <= int(classes.candidates.max()):
        raise UserError("scores", f"{words} words", "the vocabulary that the classes were looked up in")
    if not classes.names:
        return ()
    union, places = _union(classes)
    standing = _standing(scores, classes.candidates, union)
    found = []
    for number, (name, place) in enumerate(zip(classes.names, places, strict=True)):
        stream = np.random.default_rng((seed, number))
        aps, aucs, chosen = [], [], []
        for _ in range(splits):
            shuffled = stream.permutation(place)
            halves = shuffled[: len(place) // 2], shuffled[len(place) // 2 :]
            for train, test in (halves, halves[::-1]):
                best = int(_score(standing, train, test)[0].argmax())
                ap, auc = _score(standing, test, train, [best])
                aps.append(float(ap[0]))
                aucs.append(float(auc[0]))
                chosen.append(best)
        columns, times = np.unique(chosen, return_counts=True)
        most = int(times.argmax())
        found.append(
            ClassScore(
                name, len(place), float(np.mean(aps)), float(np.mean(aucs)), int(columns[most]),
                float(times[most] / len(chosen)),
            )
        )  # fmt: skip
    return tuple(found)


def class_table(
    methods: Mapping[str, Scores], classes: IndexedClasses, seed: int = 0, splits: int = 4, quiet: bool = True
) -> ClassTable:
    """`heldout_ap` of several methods on the same halves.

    Raises:
        UserError: no class has enough words in the vocabulary.
    """
    if not classes.names:
        listed = ", ".join(f"{name} ({words})" for name, words in classes.skipped[:5])
        raise UserError("classes", f"{len(classes.skipped)} too small: {listed}", f"{LEAST} words in the vocabulary")
    found = {}
    for method, scores in tqdm(methods.items(), desc="classes", unit="method", disable=True if quiet else None):
        found[method] = heldout_ap(scores, classes, seed, splits)
    return ClassTable(found, classes.skipped)
