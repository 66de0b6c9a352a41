"""Every figure is drawn from plain data, and lands where its function says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from word_factors import figures

RNG = np.random.default_rng(0)
CODES = RNG.exponential(size=(3, 12)) * (RNG.random((3, 12)) < 0.4)
NAMES = [f"a{j}, b{j}, c{j}" for j in range(12)]
ROWS = [{"step": s, "energy": 1 / s, "data": 0.5 / s, "snr": float(s), "active": 5.0} for s in range(1, 9)]


def similarity() -> np.ndarray:
    half = RNG.random((12, 12))
    return half + half.T


@pytest.mark.parametrize(
    "draw",
    [
        lambda p: figures.top_words_of_factors(p, [("factor 1", [("one", 0.5), ("two", 0.2)]), ("2", [("x", 1.0)])]),
        lambda p: figures.factors_of_words(p, ["u", "v", "w"], CODES, NAMES),
        lambda p: figures.shares_of_words(p, [("u", [("a, b", 0.6), ("c", 0.2)], 0.4), ("v", [], 1.0)]),
        lambda p: figures.reliability_histogram(p, RNG.random(50), 0.2 * RNG.random(50)),
        lambda p: figures.ordered_coactivation(p, similarity(), np.arange(12) % 3),
        lambda p: figures.ordered_coactivation(p, np.zeros((4, 4)), np.zeros(4, int)),
        lambda p: figures.analogy_difference(p, ["a", "b", "c", "d"], [CODES[0] - CODES[1], CODES[1]], NAMES),
        lambda p: figures.accuracy_by_section(p, ["s", "t"], {"3CosAdd": [0.2, 0.4], "boost": [0.3, float("nan")]}),
        lambda p: figures.training_curves(p, ROWS),
        lambda p: figures.sparsity_curve(p, [(0.05, 20.0, 0.3), (0.1, 12.0, 0.4), (0.2, 5.0, 0.6)], 0.1),
    ],
)  # fmt: skip
def test_figure_is_a_png_at_its_path(draw: object, tmp_path: Path) -> None:
    made = draw(tmp_path / "deep" / "figure")  # pyright: ignore[reportCallIssue]
    assert made == tmp_path / "deep" / "figure.png"
    assert made.read_bytes().startswith(b"\x89PNG")
    assert made.with_suffix(".svg").exists()
