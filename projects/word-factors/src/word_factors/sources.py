"""From a config to an embedding: read a vector file, or train vectors on a corpus."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError
from shared.data import data_root
from word_factors.config import TrainConfig, VectorFlags
from word_factors.embedding import Embedding

if TYPE_CHECKING:
    from word_factors.corpus import Corpus

VECTORS_FILE = "vectors.npz"  # of a run that trained its own


@dataclass(frozen=True)
class Source:
    """Attributes: embedding; tokens: the corpus as word rows, where the weighting wants the running text; trained:
    whether the vectors were trained here, and so lie in no file yet."""

    embedding: Embedding
    tokens: NDArray[np.int32] | None = None
    trained: bool = False


def corpus_of(config: VectorFlags, root: Path | None) -> Corpus | None:
    """The corpus that a config names, if it names one; None for a file of vectors."""
    from word_factors.corpus import CORPORA, open_corpus, read_corpus

    if config.corpus is not None:
        return read_corpus(config.corpus)
    return open_corpus(config.data, data_root(root)) if config.data in CORPORA else None


def trained_vectors(config: VectorFlags, corpus: Corpus, quiet: bool) -> Embedding:
    """Vectors trained on a corpus as the flags say."""
    from word_factors.train_vectors import train_vectors

    return train_vectors(
        corpus, config.embedder, dim=config.dim, window=config.window, epochs=config.vector_epochs,
        min_count=config.min_count, max_words=config.max_words, workers=config.vector_workers,
        seed=config.vector_seed, quiet=quiet,
    )  # fmt: skip


def open_source(config: TrainConfig, run: Path | None = None) -> Source:
    """The embedding of a run.

    Args:
        config: the run's.
        run: the run's folder, if it exists; vectors that were trained for it lie there and are not trained again.

    Raises:
        UserError: data that is missing or malformed; the weighting `corpus` without a corpus.
    """
    kept = run / VECTORS_FILE if run is not None else None
    from word_factors.vectors import counts_of, is_count_list, open_embedding, read_counts, read_vectors

    has_own = kept is not None and kept.exists()
    # A run that holds its vectors needs the corpus no more, but to walk it.
    wanted = config.vectors is None and (not has_own or config.weighting == "corpus")
    corpus = corpus_of(config, config.data_root) if wanted else None
    trained = False
    if kept is not None and has_own:
        embedding = read_vectors(kept, quiet=True)
        embedding = dataclasses.replace(embedding, name=_label(config), counts_from="corpus")
    elif config.vectors is not None:
        embedding = read_vectors(config.vectors, limit=config.max_words, counts=config.counts, quiet=config.quiet)
    elif corpus is not None:
        if kept is not None:
            warnings.warn(f"{kept} is gone: training its vectors again.", stacklevel=2)
        known = None if config.counts is None else read_counts(config.counts)  # refused before minutes of training
        embedding, trained = trained_vectors(config, corpus, config.quiet), True
        embedding = dataclasses.replace(embedding, name=_label(config))
        if known is not None:
            embedding = dataclasses.replace(embedding, counts=counts_of(list(embedding.words), known))
    else:
        root = data_root(config.data_root)
        embedding = open_embedding(config.data, root, config.max_words, counts=config.counts, quiet=config.quiet)
    if config.factors > len(embedding):
        raise UserError("--factors", config.factors, f"at most the {len(embedding):,} words of {embedding.name}")
    tokens = None
    if config.weighting == "corpus":
        if corpus is None and config.counts is not None:
            from word_factors.corpus import read_corpus

            if is_count_list(config.counts):
                raise UserError(
                    "--counts", config.counts, "running text, which --weighting corpus walks", "It is a list."
                )
            corpus = read_corpus(config.counts)
        if corpus is None:
            hint = "It walks the running text: name a corpus by --data, --corpus or --counts."
            raise UserError("--weighting", "corpus", ["sqrt", "frequency", "uniform", "sqrt-uniform"], hint)
        from word_factors.corpus import token_ids

        tokens = token_ids(corpus, embedding.index)
        if not len(tokens):
            raise UserError("--weighting", "corpus", "a corpus that uses words of the embedding")
    return Source(embedding, tokens, trained)


def _label(config: VectorFlags) -> str:
    text = config.corpus.name if config.corpus is not None else config.data
    return f"{config.embedder} on {text}, {config.dim} dimensions"
