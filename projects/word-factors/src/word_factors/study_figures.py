"""The figures of a reproduction, from its outcomes. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared.claims import Outcomes
from word_factors import figures
from word_factors.experiments import ANALOGY, SHOWN, analogy_table, dictionaries, mean
from word_factors.packing import unpack
from word_factors.reliability import random_control, reliability

SAMPLE = 8


def draw(outcomes: Outcomes, folder: Path) -> list[Path]:
    """All figures for which there are outcomes; the PNG files."""
    if "factors" not in outcomes:
        return []
    values = outcomes.raw("factors")[0]
    names = [", ".join(top[:3]) for top in values["top_words"]]
    made: list[Path] = []
    phis = dictionaries(outcomes)
    found = [f"{value:.2f}" for value in reliability(phis)] if len(phis) > 1 else ["?"] * len(names)
    names = [f"{name} [r {value}]" for name, value in zip(names, found, strict=True)]
    drawn = np.sort(np.random.default_rng(0).choice(len(names), SAMPLE, replace=False))
    rows = [
        (f"factor {j}\nr {found[j]}", [(str(word), float(alpha)) for word, alpha in values["top_activations"][j]])
        for j in drawn
    ]
    made.append(figures.top_words_of_factors(folder / "factors", rows))
    if len(phis) > 1:
        d, K = phis[0].shape
        made.append(
            figures.reliability_histogram(
                folder / "reliability", reliability(phis), random_control(d, K, K), "mean best cosine in other runs"
            )
        )
    seen = values.get("looked_at")
    if seen and seen["words"]:
        rows_of_words = unpack(seen["codes"])
        made.append(figures.factors_of_words(folder / "words", seen["words"][:3], rows_of_words[:3], names))
        shares = []
        for word, row, left in zip(seen["words"], rows_of_words, seen["left_over"], strict=True):
            order = [int(j) for j in np.argsort(-row, kind="stable")[:5] if row[j] > 0]
            shares.append((word, [(names[j], float(row[j] / row.sum())) for j in order], min(1.0, float(left))))
        made.append(figures.shares_of_words(folder / "senses", shares))
        if "analogy" in seen:
            deltas = list(unpack(seen["analogy"]))
            made.append(figures.analogy_difference(folder / "analogy", ANALOGY, deltas, names))
    if "similarity" in values:
        similarity = unpack(values["similarity"]).astype(np.float32)
        made.append(figures.ordered_coactivation(folder / "coactivation", similarity, np.array(values["labels"])))
    if "history" in values:
        made.append(figures.training_curves(folder / "training", values["history"]))
    if "curve" in values:
        points = [(float(lam), float(active), float(left)) for lam, active, left in values["curve"]]
        made.append(figures.sparsity_curve(folder / "sparsity", points, mean(outcomes.values("factors", "lam"))))
    _, body = analogy_table(outcomes)
    sections = [row for row in body if isinstance(row[1], int)]
    bars = {rule: [float(row[2 + place]) for row in sections] for place, rule in enumerate(SHOWN)}
    made.append(figures.accuracy_by_section(folder / "analogies", [row[0] for row in sections], bars))
    return made
