"""Race: 3CosAdd on analogy questions, one product a batch against gensim's loop over questions.

    python projects/word-factors/benchmarks/analogy.py [--vectors PATH] [--threads 1] [--quick]

Same vectors, same file of questions, read by both in every turn, same answers (checked before the race), in this
process, in turns. Without a file of
vectors the vocabulary is that of the Google questions, with a planted offset for each section, filled up with random
words: what is timed does not depend on the values. Required: twenty times as fast.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gensim.models import KeyedVectors

from shared.races import conditions, race, ratio, record
from word_factors.analogy import Space, answer, three_cos_add
from word_factors.analysis import google_questions
from word_factors.embedding import Embedding
from word_factors.questions import AnalogyTask

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


def main() -> int:
    """Run the race and print it; 1 if the requirement is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vectors", type=Path, help="real word vectors in place of random ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one section; the ratio means little")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = AnalogyTask.from_file(google_questions())
    if options.quick:
        task = task.choose(["family"])
    embedding = embedding_of(options.vectors, task)
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
            right = [s.right(answer(space, three_cos_add, s.abc()), found.forms).sum() for s in found.sections]
            return float(sum(right)) / len(found)

        answered = ours()
        if abs(answered - theirs()) > 1e-9:
            print(f"the answers differ ({answered:.4f} and {theirs():.4f}): no race", file=sys.stderr)
            return 1
        times = race({"gensim": theirs, "ours": ours}, 1 if options.quick else options.repeats)
    faster = ratio(times, "gensim", "ours")
    met = faster >= REQUIRED
    theirs_s, ours_s = (statistics.median(times[name]) / 1000 for name in ("gensim", "ours"))
    print(
        f"{len(indexed):,} questions, {len(embedding):,} words of {embedding.dim} dimensions, accuracy {answered:.3f}"
    )
    print(conditions())
    print(
        f"gensim {theirs_s:.2f} s, ours {ours_s:.2f} s: {faster:.0f} times as fast (required {REQUIRED:g}: "
        f"{'met' if met else 'missed'})"
    )
    columns = ("contestant", "seconds", "times as fast")
    rows = [("gensim", f"{theirs_s:.2f}", ""), ("ours", f"{ours_s:.3f}", f"{faster:.0f}")]
    title = f"3CosAdd on {len(indexed):,} questions (required {REQUIRED:g}: {'met' if met else 'missed'})"
    record(options.json, title, columns, rows, "cpu")
    return int(not met and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
