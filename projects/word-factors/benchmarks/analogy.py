"""Race: 3CosAdd on analogy questions, one product a batch against gensim's loop over questions.

    python projects/word-factors/benchmarks/analogy.py [--vectors PATH] [--threads 1] [--quick]

Same vectors, same file of questions, read by both in every turn, same answers (checked before the race), in this
process, in turns. Twice: on planted vectors whose vocabulary has all words of the questions, and on real ones, where
they are at hand, which have a quarter of them: there fewer questions share a product. Required: twenty times as fast.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gensim.models import KeyedVectors

from shared.config import UserError
from shared.data import data_root
from shared.races import conditions, race, ratio, record
from word_factors.analogy import Space, answer, three_cos_add
from word_factors.analysis import google_questions
from word_factors.embedding import Embedding
from word_factors.questions import AnalogyTask
from word_factors.vectors import find_embedding

REQUIRED = 20.0


def embedding_of(path: Path | None, task: AnalogyTask) -> Embedding:
    """Word vectors of a file, or planted ones for the words of the questions, with others to make 8,000."""
    if path is not None:
        from word_factors.vectors import read_vectors

        return read_vectors(path, quiet=True).fold_case()
    words = sorted({word.lower() for section in task.sections for four in section.words() for word in four})
    words += [f"word{number}" for number in range(8000 - len(words))]
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(words), 300)).astype(np.float32)
    row = {word: number for number, word in enumerate(words)}
    for section in task.sections:
        offset = 0.7 * rng.standard_normal(300)
        for a, b, _, _ in section.words():
            vectors[row[b.lower()]] = 0.9 * vectors[row[a.lower()]] + offset
    return Embedding(tuple(words), vectors, np.ones(len(words)), "rank", "planted")


def raced(path: Path | None, task: AnalogyTask, repeats: int) -> tuple[list[str], bool]:
    """One race, printed: (row of the table, whether the requirement is met).

    Raises:
        UserError: the two do not give the same answers.
    """
    embedding = embedding_of(path, task)
    indexed = task.in_vocabulary(embedding)
    keyed = KeyedVectors(embedding.dim)
    keyed.add_vectors(list(embedding.words), embedding.vectors)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.txt"
        task.to_file(file)

        def theirs() -> float:
            return keyed.evaluate_word_analogies(str(file), restrict_vocab=len(embedding))[0]

        def ours() -> float:
            found = AnalogyTask.from_file(file).in_vocabulary(embedding)
            space = Space(embedding.vectors, found.forms)
            asked = [section.abc() for section in found.sections]
            answers = answer(space, three_cos_add, np.concatenate(asked))  # sections share words: one table of cosines
            parts = np.split(answers, np.cumsum([len(abc) for abc in asked])[:-1])
            right = [s.right(part, found.forms).sum() for s, part in zip(found.sections, parts, strict=True)]
            return float(sum(right)) / len(found)

        answered = ours()
        if abs(answered - theirs()) > 1e-9:
            raise UserError("answers", f"{answered:.4f}", f"gensim's, {theirs():.4f}")
        times = race({"gensim": theirs, "ours": ours}, repeats)
    faster = ratio(times, "gensim", "ours")
    met = faster >= REQUIRED
    verdict = "met" if met else "missed"
    theirs_s, ours_s = (statistics.median(times[name]) / 1000 for name in ("gensim", "ours"))
    what = f"{len(indexed):,} questions, {len(embedding):,} words ({'real' if path else 'planted'} vectors)"
    print(f"{what}, accuracy {answered:.3f}: gensim {theirs_s:.2f} s, ours {ours_s:.2f} s, {faster:.0f} times as fast "
          f"(required {REQUIRED:g}: {verdict})")  # fmt: skip
    return [what, f"{theirs_s:.2f} s", f"{ours_s:.3f} s", f"{faster:.0f}", f">= {REQUIRED:g}", verdict], met


def main() -> int:
    """Run the races and print them; 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vectors", type=Path, help="real word vectors; default: word2vec of Google News, if at hand")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one section of planted vectors; the ratio means little")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = AnalogyTask.from_file(google_questions())
    print(conditions())
    if options.quick:
        raced(None, task.choose(["family"]), 1)
        return 0
    paths: list[Path | None] = [None]
    if options.vectors is not None:
        paths.append(options.vectors)
    else:
        with contextlib.suppress(UserError):
            paths.append(find_embedding("googlenews", data_root(None)))
    found = [raced(path, task, options.repeats) for path in paths]
    columns = ("questions", "gensim", "ours", "times as fast", "required", "verdict")
    record(options.json, "3CosAdd, with reading the questions", columns, [row for row, _ in found], "cpu")
    return int(not all(met for _, met in found))


if __name__ == "__main__":
    sys.exit(main())
