"""One training run from a config: loop, model file, codes, table, figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from shared.cli import print_table
from shared.loop import Loop
from shared.metrics import read_metrics
from shared.run import RunFolder
from word_factors import figures
from word_factors.config import TrainConfig
from word_factors.learning import WordFactors
from word_factors.model import FactorModel, save_codes
from word_factors.naming import all_top_words
from word_factors.runs import CODES_FILE, MEMBER, MODEL_FILE, Run

SHOWN = 8  # factors of the closing table and figure
SAMPLE_SEED = 0  # of the factors shown: a fair sample, the same for every run of as many factors


def train(config: TrainConfig) -> int:
    """Train, then encode the vocabulary, print the tables, draw the figures. Returns the exit code."""
    task = WordFactors(config)
    loop = Loop(task, config, MEMBER)
    assert isinstance(loop.folder, RunFolder)
    folder = loop.folder.path
    summary = loop.run()
    if not loop.primary:
        return 0
    model = task.model()
    model.save(folder / MODEL_FILE)
    codes = model.encode(device=loop.device, quiet=config.quiet)
    save_codes(codes, model.digest, folder / CODES_FILE)
    if config.quiet:
        draw(Run(folder, config, model), codes)
        return 0
    embedding = task.embedding
    rows: list[tuple[str, object]] = [
        ("embedding", f"{embedding.name}: {len(embedding):,} words, {embedding.dim} dimensions"),
        ("word counts from", embedding.counts_from),
        ("factors", f"{model.K:,}"),
        ("weight of the activations", model.lam),
        *vocabulary_measures(model, codes).items(),
        ("steps", summary["steps"]),
        ("seconds", summary["seconds"]),
    ]
    print_table(f"word factors: {summary['status']}", ("", "value"), rows)
    chosen = fair_sample(model.K, SHOWN)
    tops = all_top_words(codes, embedding, 8)
    print_table(
        "a random sample of factors", ("factor", "top words"), [(j, ", ".join(w for w, _ in tops[j])) for j in chosen]
    )
    print(f"run folder: {folder}")
    for path in draw(Run(folder, config, model), codes):
        print(f"figure: {path}")
    print(f"next: {MEMBER} factors {folder}; {MEMBER} word {folder} {embedding.words[len(embedding) // 50]}")
    return 0


def fair_sample(K: int, count: int) -> list[int]:
    """Factor numbers drawn with a fixed seed: what is shown without having been looked at."""
    return sorted(np.random.default_rng(SAMPLE_SEED).choice(K, min(count, K), replace=False).tolist())


def vocabulary_measures(model: FactorModel, codes: sparse.csr_array) -> dict[str, float]:
    """Measures over the whole vocabulary, every word alike.

    Returns: `active factors a word`, `energy left over` (mean share), `signal to noise (dB)`, `factors in no word`, and
    `use of a factor, median` (share of words).
    """
    left = model.residual_share(codes)
    use = np.bincount(codes.indices, minlength=model.K) / max(1, len(left))
    return {
        "active factors a word": codes.nnz / max(1, len(left)),
        "energy left over": float(left.mean()),
        "signal to noise (dB)": float(-10 * np.log10(max(float(left.mean()), 1e-12))),
        "factors in no word": float((use == 0).sum()),
        "use of a factor, median": float(np.median(use)),
    }


def draw(run: Run, codes: sparse.csr_array) -> list[Path]:
    """The figures of a run: its curves, and a fair sample of its factors."""
    folder = run.folder / "figures"
    tops = all_top_words(codes, run.embedding, 10)
    chosen = [(f"factor {j}", tops[j]) for j in fair_sample(run.model.K, SHOWN) if tops[j]]
    made = [figures.training_curves(folder / "curves", list(read_metrics(run.folder, "train")))]
    if chosen:
        made.append(figures.top_words_of_factors(folder / "factors", chosen))
    return made
