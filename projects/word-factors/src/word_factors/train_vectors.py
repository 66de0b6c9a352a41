"""Word vectors trained on a corpus: CBOW, skip-gram and fastText by gensim, GloVe by `glove`.

Imports neither torch nor gensim until asked to train. The vocabulary is chosen here, once
and the same for every method: by falling frequency, ties by first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shared.config import check_choice, check_range
from word_factors.corpus import Corpus, count_words, require_gensim, vocabulary_of
from word_factors.embedding import Embedding

Method = Literal["cbow", "sg", "fasttext", "glove"]
METHODS: tuple[Method, ...] = get_args(Method)

WINDOW: Mapping[str, int] = {"cbow": 8, "sg": 8, "fasttext": 8, "glove": 10}
NEGATIVE: Mapping[str, int] = {"cbow": 10, "sg": 5, "fasttext": 5}
BUCKETS = 200_000  # of fastText's subwords: gensim's two million would take 800 MB at d = 100
_JOB = 10_000  # words gensim hands a worker at a time


def train_vectors(
    corpus: Corpus,
    method: Method = "cbow",
    *,
    dim: int = 100,
    window: int | None = None,
    epochs: int = 20,
    min_count: int = 5,
    max_words: int | None = None,
    negative: int | None = None,
    workers: int = 1,
    seed: int = 0,
    quiet: bool = False,
) -> Embedding:
    """Train word vectors.

    With one worker a run is reproducible bit for bit, whatever PYTHONHASHSEED is. With more it is not: gensim's
    threads write to the same tables without locks (its issues 546 and 641).

    Args:
        corpus: read once to count and once an epoch (GloVe: once to count pairs).
        method: cbow, sg (skip-gram), fasttext (skip-gram with subwords of 3 to 6 letters; the vectors are those of full
            words) or glove.
        dim: d.
        window: words on either side. Default: 8; glove 10.
        epochs: passes over the corpus; glove: over its non-zero counts.
        min_count: leave out words used less often.
        max_words: keep the most frequent only.
        negative: negative samples a word. Default: 10 for cbow, 5 for sg and fasttext; glove has none.
        workers: gensim's threads.
        seed: of first values, order and samples.
        quiet: no progress bar.

    Returns:
        The embedding, words by falling frequency, counts from the corpus.

    Raises:
        UserError: a setting out of range, a corpus without words of `min_count` uses, gensim missing.
    """
    check_choice("--embedder", method, METHODS)
    for field, value in (("--dim", dim), ("--window", window), ("--vector-epochs", epochs), ("--min-count", min_count)):
        check_range(field, value, 1)
    check_range("--max-words", max_words, 2)
    check_range("negative", negative, 1)
    check_range("--vector-workers", workers, 1)
    used = count_words(corpus)
    words = vocabulary_of(used, min_count, max_words)
    counts = {word: used[word] for word in words}
    window = window or WINDOW[method]
    if method == "glove":
        from word_factors.glove import cooccurrences, train_glove

        index = {word: row for row, word in enumerate(words)}
        vectors = train_glove(cooccurrences(corpus, index, window), dim, epochs=epochs, seed=seed, quiet=quiet).vectors
    else:
        vectors = _gensim_vectors(
            corpus, method, counts, dim=dim, window=window, epochs=epochs, negative=negative or NEGATIVE[method],
            workers=workers, seed=seed, quiet=quiet,
        )  # fmt: skip
    return Embedding(
        tuple(words), vectors, np.array([*counts.values()], np.float64), "corpus", f"{method} on {corpus.name}"
    )


def _gensim_vectors(
    corpus: Corpus, method: Method, counts: Mapping[str, int], *, dim: int, window: int, epochs: int, negative: int,
    workers: int, seed: int, quiet: bool,
) -> NDArray[np.float32]:  # fmt: skip
    """[V, d] vectors in the order of `counts`."""
    require_gensim(f"the method {method}")
    from gensim.models import FastText, Word2Vec
    from gensim.models.callbacks import CallbackAny2Vec
    from tqdm import tqdm

    class Epochs(CallbackAny2Vec):
        def on_epoch_end(self, model: Any) -> None:
            bar.update()

    sentences = sum(1 for _ in corpus)
    settings: dict[str, Any] = {
        "vector_size": dim, "window": window, "negative": negative, "min_count": 1, "workers": workers, "seed": seed,
        "epochs": epochs,
        # A small corpus would be a single job, and the step size falls once a job only.
        "batch_words": min(_JOB, max(1, sum(counts.values()) // (20 * workers))),
    }  # fmt: skip
    if method == "fasttext":
        model: Any = FastText(sg=1, bucket=BUCKETS, **settings)
    else:
        model = Word2Vec(sg=int(method == "sg"), **settings)
    # Not gensim's own count: it would order ties by chance and choose another vocabulary at max_words.
    model.build_vocab_from_freq(dict(counts), corpus_count=sentences)
    with tqdm(total=epochs, unit="epoch", desc=method, disable=True if quiet else None) as bar:
        model.train(corpus, total_examples=sentences, epochs=epochs, callbacks=[Epochs()])
    return np.stack([model.wv[word] for word in counts]).astype(np.float32)
