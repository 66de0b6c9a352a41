"""What is measured on one trained dictionary for the claims: sparsity, reading of words, classes, analogies."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from shared.config import UserError
from shared.data import data_root
from shared.loop import Loop, cell_loop
from word_factors.analogy import Space, answer, three_cos_add
from word_factors.analysis import google_questions
from word_factors.baselines import BASELINES, Baseline, baseline_scores
from word_factors.classes import class_lexicon, class_table, index_classes
from word_factors.coherence import coherence, intrusion
from word_factors.commands import fair_rows, sparsity_points
from word_factors.config import TrainConfig
from word_factors.corpus import open_corpus
from word_factors.embedding import Embedding
from word_factors.experiments import ANALOGY, BATS
from word_factors.groups import coactivation, factor_groups
from word_factors.inference import energy, fista, solve
from word_factors.learning import WordFactors
from word_factors.manipulation import Factors, differences
from word_factors.model import FactorModel
from word_factors.naming import all_top_words
from word_factors.packing import pack, pack_codes
from word_factors.protocols import evaluate
from word_factors.questions import AnalogyTask
from word_factors.runs import MEMBER
from word_factors.sources import VECTORS_FILE, Source, open_source
from word_factors.vectors import open_embedding, write_vectors
from word_factors.weighting import root_frequency

READ: dict[str, frozenset[str]] = {
    "queen": frozenset({"she", "her", "herself", "hers", "woman", "actress", "lady", "miss", "queen"}),
    "she": frozenset({"she", "her", "herself", "hers", "woman", "girl", "mother", "wife", "daughter"}),
    "best": frozenset({"best", "worst", "greatest", "finest", "strongest", "biggest", "largest", "highest", "most"}),
    "January": frozenset(
        {
            "january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
            "november", "december",
        }
    ),
    "Spain": frozenset({"spain", "france", "italy", "germany", "portugal", "england", "brazil", "argentina", "greece"}),
}  # fmt: skip
"""Words of which one of a word's two strongest factors should have three in its top ten. Used to judge, never to
learn or choose."""
RULES = ("3CosMul", "PairDirection", "only-b", "only-c", "code", "boost", "boost-sources", "group-boost", "mask", "set")
POLYSEMOUS = ("queen", "Apple", "best", "bank", "May", "right")
FEW = ("family", "gram5-present-participle", "gram8-plural")  # sections asked where minutes are not to be spent
SHARED_WORDS = 8000  # the most frequent ones, on which embeddings are compared


JUDGE = "glove-twitter"  # the other embedding, which looks for intruders
HEARD = 1_000_000  # tokens of the other corpus: coherence looks at every window of ten


@dataclass(frozen=True)
class Learned:
    """A trained dictionary. Attributes: codes: of the vocabulary. seconds: of training. history: what was measured on
    the fixed sample, a row a time."""

    model: FactorModel
    codes: sparse.csr_array
    seconds: float
    history: list[dict[str, float]]


def learned(config: TrainConfig, source: Source | None = None, scratch: Path | None = None) -> Learned:
    """Train a dictionary.

    Args:
        source: its vectors, where they are at hand already.
        scratch: folder in which the run is kept, and gone on with; None for no folder.
    """
    task = WordFactors(config, source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*says nothing about frequencies.*")
        summary = cell_loop(task, config, MEMBER, scratch).run()
    model = task.model()
    return Learned(model, model.encode(device=task.device), summary["seconds"], task.history.rows)


def sparsity(model: FactorModel, codes: sparse.csr_array) -> dict[str, float]:
    """Active factors, energy left over, signal to noise, unused factors: over the vocabulary, every word alike."""
    left = float(model.residual_share(codes).mean())
    use = np.bincount(codes.indices, minlength=model.K) / len(model.vectors())
    return {
        "active": codes.nnz / len(model.vectors()),
        "left_over": left,
        "snr": float(-10 * np.log10(left)),
        "unused": float((use == 0).sum()),
        "median_use": float(np.median(use)),
        "lam": model.lam,
    }


def measure_factors(
    config: TrainConfig, source: Source | None = None, thorough: bool = True, scratch: Path | None = None
) -> dict[str, Any]:
    """Everything that the claims on one embedding need, as JSON values.

    Args:
        config: the run.
        source: its vectors, where they are at hand already.
        thorough: also classes against all baselines, classes of BATS, the judges of top words, and all classes and
            sections of analogies over several halvings (minutes).
        scratch: folder in which training is kept, and gone on with.
    """
    trained = learned(config, source, scratch)
    model, codes = trained.model, trained.codes
    embedding = model.embedding
    assert embedding is not None
    p = root_frequency(embedding.counts)
    groups = factor_groups(codes, p, seed=config.seed)
    listed = all_top_words(codes, embedding, 10)
    tops = [[word for word, _ in top] for top in listed]
    values: dict[str, Any] = {
        **sparsity(model, codes),
        "data": embedding.name,
        "words": len(embedding),
        "counts_from": embedding.counts_from,
        "train_seconds": trained.seconds,
        "energy_kept": energy_kept(model, config, source),
        "fista_150": fista_error(model),
        "fista_150_restarted": fista_error(model, restart=True),
        "groups": len(groups),
        "group_median": float(np.median(groups.sizes)),
        **reading(codes, embedding, tops),
        **(
            analogies(model, codes, groups.labels, config.seed)
            if thorough
            else analogies(model, codes, groups.labels, config.seed, splits=1, sections=FEW)
        ),
        "dictionary": pack(model.phi.numpy().astype(np.float16)),
        "codes": pack_codes(codes),
        "top_words": tops,
        "top_activations": listed,
        "labels": groups.labels.tolist(),
        "use": (np.bincount(codes.indices, minlength=model.K) / len(embedding)).tolist(),
    }
    if not thorough:
        values |= class_precision(model, codes, config, ("raw", "pca", "rotation"), splits=1)
    else:
        values |= class_precision(model, codes, config, BASELINES)
        values |= judged_elsewhere(tops, codes, embedding, config)
    if config.seed == 0:
        sample = torch.from_numpy(model.vectors()[fair_rows(len(embedding), 1000)]).T
        values["history"] = trained.history
        values["similarity"] = pack(coactivation(codes, p).astype(np.float16))
        values["curve"] = sparsity_points(sample, model.phi, model.lam)
        values["looked_at"] = looked_at(model, codes)
    return values


def energy_kept(model: FactorModel, config: TrainConfig, source: Source | None) -> float:
    """Mean energy E of the vocabulary under the dictionary, over that under the one that the run began from: 1 where
    nothing was learned."""
    task = WordFactors(config, source)
    loop = Loop(task, config, MEMBER, folder=False)
    task.start(loop)
    X = torch.from_numpy(np.ascontiguousarray(model.vectors().T))
    found = [solve(X, phi.cpu(), model.lam) for phi in (model.phi, task.dictionary.phi)]
    after, before = (float(energy(codes.residual, codes.alpha, model.lam).mean()) for codes in found)
    return after / before


def fista_error(model: FactorModel, words: int = 200, steps: int = 150, restart: bool = False) -> float:
    """Largest difference between an activation after `steps` of FISTA and the exact one."""
    X = torch.from_numpy(model.vectors()[fair_rows(len(model.vectors()), words)]).T
    exact = solve(X, model.phi, model.lam, tol=1e-5).alpha
    return float((fista(X, model.phi, model.lam, steps, restart=restart).alpha - exact).abs().max())


def reading(codes: sparse.csr_array, embedding: Embedding, tops: list[list[str]]) -> dict[str, float]:
    """word-<w>: 1 if one of the two strongest factors of w has three of its `READ` words in its top ten, else 0."""
    found = {}
    for word, expected in READ.items():
        if word not in embedding.index:
            continue
        row = codes[[embedding.index[word]]].toarray()[0]
        strongest = [int(j) for j in np.argsort(-row, kind="stable")[:2] if row[j] > 0]
        hits = [len({w.lower() for w in tops[j]} & expected) for j in strongest]
        found[f"word-{word}"] = float(max(hits, default=0) >= 3)
    return found


def analogies(
    model: FactorModel,
    codes: sparse.csr_array,
    labels: NDArray[np.int64],
    seed: int,
    splits: int = 4,
    sections: tuple[str, ...] = (),
) -> dict[str, Any]:
    """3CosAdd on all questions of the vocabulary, and the held-out table by section and rule; of some sections only,
    where they are named."""
    embedding = model.embedding
    assert embedding is not None
    asked = AnalogyTask.from_file(google_questions())
    task = (asked.choose(sections) if sections else asked).in_vocabulary(embedding)
    plain = Space(embedding.vectors, task.forms)
    right = sum(int(s.right(answer(plain, three_cos_add, s.abc()), task.forms).sum()) for s in task.sections)
    space = Space(model.vectors(), task.forms)
    factors = Factors(model.phi.numpy(), codes, labels, space.norms)
    table = evaluate(task, space, factors, RULES, "heldout", splits=splits, seed=seed)
    optimistic = evaluate(task, space, factors, ("boost", "group-boost"), "insample", seed=seed)
    return {
        "questions": len(task),
        "questions_dropped": sum(report.dropped for report in task.coverage),
        "coverage": [
            {
                "section": c.section,
                "questions": c.questions,
                "kept": c.kept,
                "missing": [list(m) for m in c.missing[:3]],
            }
            for c in task.coverage
        ],
        "three_cos_add": right / len(task),
        **{f"macro {rule}": table.macro(rule) for rule in table.rules},
        **{f"micro {rule}": table.micro(rule) for rule in table.rules},
        **{f"insample macro {rule}": optimistic.macro(rule) for rule in ("3CosAdd", "boost", "group-boost")},
        "heldout": table.to_json(),
    }


def class_precision(
    model: FactorModel,
    codes: sparse.csr_array,
    config: TrainConfig,
    baselines: tuple[Baseline, ...],
    splits: int = 4,
) -> dict[str, Any]:
    """Held-out average precision of factors and baselines on the classes of the Google sections, and where all
    baselines are asked for and BATS is at hand on those of its relations, under names that begin with `bats`."""
    embedding = model.embedding
    assert embedding is not None
    x = model.vectors()
    methods: dict[str, Any] = {"factors": codes}
    for name in baselines:
        methods[name] = baseline_scores(name, x, model.K, model.lam, seed=config.seed)
    found: dict[str, Any] = {}
    lexica = {"": class_lexicon(google_questions())}
    folder = next((path for name in BATS if (path := data_root(config.data_root) / name).is_dir()), None)
    if folder is not None and len(baselines) == len(BASELINES):
        lexica["bats "] = class_lexicon(bats=folder)
    for prefix, lexicon in lexica.items():
        classes = index_classes(lexicon, embedding)
        if not classes.names:
            continue
        table = class_table(methods, classes, config.seed, splits)
        found |= {f"{prefix}ap {name}": table.mean_ap(name) for name in methods}
        found |= {f"{prefix}auc {name}": table.mean_auc(name) for name in methods}
        found[f"{prefix}class_rows"] = [[name, words, list(ap), best] for name, words, ap, best in table.rows()]
        found[f"{prefix}classes"] = len(classes.names)
    return found


def judged_elsewhere(
    tops: list[list[str]], codes: sparse.csr_array, embedding: Embedding, config: TrainConfig
) -> dict[str, float]:
    """What another corpus and another embedding say of the factors' top words; those that are not at hand say nothing.

    coherence, coherence_shuffled: mean c_npmi on the start of wiki44, and of the same words dealt out at random.
    intruders, intruders_chance: share of intruders that the other embedding picks, and what guessing gives.
    """
    found: dict[str, float] = {}
    root = data_root(config.data_root)
    try:
        corpus = open_corpus("wiki44", root)
    except UserError:
        pass
    else:
        heard = coherence(tops, beginning(corpus, HEARD), seed=config.seed)
        found |= {"coherence": heard.mean, "coherence_shuffled": heard.control_mean}
    try:
        judge = open_embedding(JUDGE, root, quiet=True)
    except UserError:
        pass
    else:
        picked = intrusion(codes, embedding, judge, seed=config.seed)
        found |= {"intruders": picked.accuracy, "intruders_chance": picked.chance}
    return found


def beginning(corpus: Iterable[list[str]], tokens: int) -> Iterator[list[str]]:
    """The texts of a corpus until they have that many tokens."""
    heard = 0
    for text in corpus:
        if heard >= tokens:
            return
        heard += len(text)
        yield text


def looked_at(model: FactorModel, codes: sparse.csr_array) -> dict[str, Any]:
    """Codes of a few words, what they leave over, and the change of the code within an analogy: for figures."""
    embedding = model.embedding
    assert embedding is not None
    words = [word for word in POLYSEMOUS if word in embedding.index]
    rows = [embedding.index[word] for word in words]
    found: dict[str, Any] = {
        "words": words,
        "codes": pack(codes[rows].toarray().astype(np.float32)),
        "left_over": model.residual_share(codes[rows], words).tolist(),
    }
    if all(word in embedding.index for word in ANALOGY):
        a, b, c, d = (embedding.index[word] for word in ANALOGY)
        found["analogy"] = pack(differences(codes, np.array([[a, b], [c, d]])).astype(np.float32))
    return found


def measure_embedding(config: TrainConfig, dictionaries: int, scratch: Path | None = None) -> dict[str, Any]:
    """Vectors trained once on a corpus, how good they are (word similarity, 3CosAdd), and dictionaries of them.

    Args:
        config: the run; its seed is the vectors'.
        dictionaries: how many are learned, under seeds 0, 1, ...
        scratch: folder in which vectors and dictionaries are kept, and gone on with.

    Returns: JSON values; `dictionaries` is a list of one mapping a dictionary.
    """
    from gensim.models import KeyedVectors
    from gensim.test.utils import datapath

    kept = scratch is not None and (scratch / VECTORS_FILE).exists()
    source = open_source(config, scratch if kept else None)
    if source.trained and scratch is not None:
        write_vectors(source.embedding, scratch / VECTORS_FILE)
    embedding = source.embedding
    keyed = KeyedVectors(embedding.dim)
    keyed.add_vectors(list(embedding.words), embedding.vectors)
    similarity = {}
    for name, file in (("ws353", "wordsim353.tsv"), ("simlex", "simlex999.txt")):
        _, spearman, missing = keyed.evaluate_word_pairs(datapath(file), restrict_vocab=len(embedding))
        similarity |= {name: float(spearman[0]), f"{name}_missing": float(missing)}  # pyright: ignore
    task = AnalogyTask.from_file(google_questions()).in_vocabulary(embedding)
    space = Space(embedding.vectors, task.forms)
    right = sum(int(s.right(answer(space, three_cos_add, s.abc()), task.forms).sum()) for s in task.sections)
    found = []
    for seed in range(dictionaries):
        trained = learned(replace(config, seed=seed), source, scratch and scratch / str(seed))
        model, codes = trained.model, trained.codes
        first = codes[: min(SHARED_WORDS, len(embedding))]
        found.append({
            **sparsity(model, codes),
            "train_seconds": trained.seconds,
            "codes": pack_codes(first),
            "top_words": [[word for word, _ in top] for top in all_top_words(codes, embedding, 8)],
        })  # fmt: skip
    return {
        **similarity,
        "data": embedding.name,
        "words": len(embedding),
        "questions": len(task),
        "three_cos_add": right / len(task),
        "vocabulary": list(embedding.words[: min(SHARED_WORDS, len(embedding))]),
        "dictionaries": found,
    }
