"""Two judges of a factor's top words that had no part in learning it: another corpus, and another embedding.

Coherence: do the words of a factor stand near each other in a corpus (c_npmi, gensim)? Intrusion: among a factor's top
words and one word from its lower half, does another embedding find the odd one? Both beside what chance gives. Imports
no torch.

Dimensions: V words, K factors, T topics (lists of top words).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from tqdm import tqdm

from shared.config import UserError, check_range
from word_factors.embedding import Embedding
from word_factors.naming import all_top_words

WINDOW = 10  # tokens that count as near each other, gensim's own for c_npmi


@dataclass(frozen=True)
class Coherence:
    """c_npmi of topics, beside the same words dealt out at random.

    Attributes:
        topics: [T] mean normalised pointwise mutual information over a topic's pairs of words, in [-1, 1]; NaN where
            fewer than two of its words are in the corpus.
        control: [T] the same after all the words were shuffled among the topics: equal frequencies, no topic.
        known: [T] words of each topic that the corpus has.
    """

    topics: NDArray[np.float64]
    control: NDArray[np.float64]
    known: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Mean over the topics that could be judged."""
        return float(np.nanmean(self.topics))

    @property
    def control_mean(self) -> float:
        """Mean of the control."""
        return float(np.nanmean(self.control))


def coherence(
    topics: Sequence[Sequence[str]],
    corpus: Iterable[Sequence[str]],
    seed: int = 0,
    top: int = 10,
    window: int = WINDOW,
    quiet: bool = True,
) -> Coherence:
    """Judge topics by a corpus, best another one than the vectors were trained on.

    Args:
        topics: T lists of words, most typical first; the first `top` of them that the corpus has are judged, whatever
            their case.
        corpus: lists of tokens, read once.
        seed: of the control.
        window: tokens within which two words count as together.

    Raises:
        UserError: no topic has two words of the corpus; gensim is missing.
    """
    from word_factors.corpus import require_gensim

    require_gensim("coherence")
    check_range("top", top, 2)
    check_range("window", window, 2)
    wanted = {word.lower() for topic in topics for word in topic}
    texts: list[list[str]] = []
    present: set[str] = set()
    for tokens in tqdm(corpus, desc="corpus", unit="text", disable=True if quiet else None):
        lowered = [token.lower() for token in tokens]
        present |= wanted.intersection(lowered)
        texts.append(lowered)
    judged = [_known(topic, present)[:top] for topic in topics]
    known = np.array([len(topic) for topic in judged], np.int64)
    if not (known >= 2).any():
        raise UserError("coherence", f"{len(topics)} topics", "topics with two words or more of the corpus")
    dealt = _dealt(judged, seed)
    values = _npmi([topic for topic in (*judged, *dealt) if len(topic) >= 2], texts, window)
    both = np.full((2, len(judged)), np.nan)
    both[:, known >= 2] = values.reshape(2, -1)
    return Coherence(both[0], both[1], known)


def _known(topic: Sequence[str], present: set[str]) -> list[str]:
    """The distinct lower-cased words of a topic that a corpus has, in order."""
    return [word for word in dict.fromkeys(word.lower() for word in topic) if word in present]


def _dealt(topics: Sequence[Sequence[str]], seed: int) -> list[list[str]]:
    """Topics of the same sizes with all words shuffled among them; no topic gets a word twice if it can be helped."""
    stream = np.random.default_rng(seed)
    words = [word for topic in topics for word in topic]
    deck = [words[at] for at in stream.permutation(len(words))]
    dealt: list[list[str]] = []
    for topic in topics:
        hand: dict[str, None] = {}
        repeated = []
        while deck and len(hand) < len(topic):
            word = deck.pop()
            if word in hand:
                repeated.append(word)
            else:
                hand[word] = None
        deck += repeated
        # At the very end only words may be left that the hand has: any others of all the topics take their place.
        spare = (word for word in words if word not in hand)
        while len(hand) < len(topic):
            hand[next(spare)] = None
        dealt.append(list(hand))
    return dealt


def _npmi(topics: list[list[str]], texts: list[list[str]], window: int) -> NDArray[np.float64]:
    """c_npmi of each topic by gensim, in this process (a pool of processes would not pay, nor be wanted in a test)."""
    from gensim.corpora import Dictionary
    from gensim.models.coherencemodel import CoherenceModel

    model = CoherenceModel(
        topics=topics, texts=texts, dictionary=Dictionary(texts), coherence="c_npmi", window_size=window,
        topn=max(len(topic) for topic in topics), processes=1,
    )  # fmt: skip
    return np.asarray(model.get_coherence_per_topic(), np.float64)


# -- word intrusion ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntrusionQuestion:
    """Attributes: factor; words: its top words; intruder; picked: the word that the judge found odd."""

    factor: int
    words: tuple[str, ...]
    intruder: str
    picked: str

    @property
    def right(self) -> bool:
        """Whether the judge picked the intruder."""
        return self.picked == self.intruder


@dataclass(frozen=True)
class Intrusion:
    """Attributes: questions, one a factor; skipped: factors without enough words that the judge knows; chance: what a
    blind guess gets right."""

    questions: tuple[IntrusionQuestion, ...]
    skipped: tuple[int, ...]
    chance: float

    @property
    def accuracy(self) -> float:
        """Share of questions in which the intruder was picked."""
        return float(np.mean([question.right for question in self.questions]))


def intrusion(
    codes: sparse.csr_array, embedding: Embedding, judge: Embedding, seed: int = 0, shown: int = 5
) -> Intrusion:
    """For each factor its `shown` top words and an intruder: a word from the lower half of the factor that is a top
    word of another one. The judge picks the word with the least mean cosine to the others.

    Args:
        codes: [V, K] of `embedding`.
        judge: vectors that the factors were not learned on; only words that it knows are asked, whatever their case.
        seed: of the intruders; each factor has its own stream, so that its question depends on no other factor.
        shown: top words a question.

    Raises:
        UserError: the judge is the embedding itself; no word in common; no factor with enough words.
    """
    from word_factors.reliability import shared_rows

    check_range("shown", shown, 2)
    if judge is embedding or (judge.digest == embedding.digest and np.array_equal(judge.vectors, embedding.vectors)):
        raise UserError("judge", judge.name, "an embedding other than the one that was taken apart")
    own, others = shared_rows(embedding, judge)
    known = embedding.take(own)
    judged = judge.unit[others]  # [n, d'], the row of known.words
    alpha = sparse.csr_array(codes[own])
    tops = [[known.index[word] for word, _ in top] for top in all_top_words(alpha, known, shown)]
    asked = [j for j, top in enumerate(tops) if len(top) == shown]
    pool = {row for j in asked for row in tops[j]}
    columns = sparse.csc_array(alpha)
    questions = []
    for j in asked:
        column = columns[:, [j]].toarray().ravel()
        # Most of a sparse column is zero, and so is its median: then the lower half is the words without the factor.
        low = column <= np.median(column)
        candidates = sorted(row for row in pool.difference(tops[j]) if low[row])  # top words of another factor
        if not candidates:
            continue
        intruder = candidates[int(np.random.default_rng((seed, j)).integers(len(candidates)))]
        rows = [*tops[j], intruder]
        cosines = judged[rows] @ judged[rows].T
        odd = rows[int((cosines.sum(axis=1) - cosines.diagonal()).argmin())]
        words = tuple(known.words[row] for row in tops[j])
        questions.append(IntrusionQuestion(j, words, known.words[intruder], known.words[odd]))
    if not questions:
        hint = f"{len(own):,} words are in both embeddings."
        raise UserError("intrusion", "no question", f"two factors with {shown} words that {judge.name} knows", hint)
    skipped = sorted(set(range(len(tops))) - {question.factor for question in questions})
    return Intrusion(tuple(questions), tuple(skipped), 1 / (shown + 1))
