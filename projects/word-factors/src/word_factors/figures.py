"""The figures: factors by their top words, words by their factors, reliability, groups, analogies, training curves.

Every function takes plain data and a path without suffix, and returns the PNG it wrote. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.figures import COLOURS, figure

TopWords = Sequence[tuple[str, float]]


def png(path: Path) -> Path:
    """The file that a figure's stem becomes."""
    return path.with_name(path.name + ".png")


def top_words_of_factors(path: Path, factors: Sequence[tuple[str, TopWords]]) -> Path:
    """Rows are factors, columns their top words by falling activation; a bar's height is the activation.

    Args:
        factors: (label, [(word, activation), ...]) each.
    """
    columns = max(len(words) for _, words in factors)
    size = (1.2 + 0.72 * columns, 0.62 * len(factors) + 0.4)
    with figure(path, len(factors), 1, figsize=size, squeeze=False) as (drawn, axes):
        drawn.suptitle("activation; the number is that of the row's first word", fontsize=7)
        for axis, (label, words) in zip(axes[:, 0], factors, strict=True):
            heights = [activation for _, activation in words]
            axis.bar(range(len(words)), heights, width=0.75, color=COLOURS[0])
            axis.set_xlim(-0.6, columns - 0.4)
            axis.set_ylim(0, 1.5 * max(heights, default=1.0))
            for place, (word, height) in enumerate(words):
                shown = word if place else f"{word} {height:.2f}"
                axis.annotate(shown, (place, height), (0, 1), textcoords="offset points", ha="center", fontsize=7)
            axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            axis.spines["left"].set_visible(False)
    return png(path)


def factors_of_words(
    path: Path, words: Sequence[str], codes: NDArray[np.floating], names: Sequence[str], peaks: int = 4
) -> Path:
    """A row a word: its activations along the factor index, the largest named.

    Args:
        codes: [n, K] activations of the words. names: [K].
    """
    with figure(path, len(words), 1, figsize=(7.5, 1.8 * len(words) + 0.5), sharex=True, squeeze=False) as (_, axes):
        for axis, word, row in zip(axes[:, 0], words, codes, strict=True):
            active = np.flatnonzero(row)
            axis.vlines(active, 0, row[active], color=COLOURS[0], linewidth=1.2)
            top = max(float(row.max()), 1e-6)
            chosen = [j for j in np.argsort(-row, kind="stable")[:peaks].tolist() if row[j] > 0]
            axis.set_ylim(0, 1.15 * top + 0.2 * top * max(len(chosen), 1))
            # Names stand above each other over the bars, and a thin line leads from each to its own.
            for line, j in enumerate(sorted(chosen)):
                side = "left" if j < 0.6 * len(row) else "right"
                level = 1.15 * top + 0.2 * top * (len(chosen) - 1 - line)
                axis.plot([j, j], [row[j], level], color="0.7", linewidth=0.6, zorder=0)
                white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
                axis.text(j, level, f" {names[j]} ", ha=side, va="bottom", fontsize=7, bbox=white)
            axis.set_ylabel(f"activation\nin {word}")
            axis.set_xlim(-1, len(row))
        axes[-1, 0].set_xlabel("factor")
    return png(path)


def shares_of_words(path: Path, words: Sequence[tuple[str, Sequence[tuple[str, float]], float]]) -> Path:
    """Stacked shares of what words are made of, what factors leave over at the end.

    Args:
        words: (word, [(name, share of the code), ...], residual share of the energy). The code's shares are drawn
            over 1 - residual.
    """
    with figure(path, figsize=(8.5, 0.62 * len(words) + 0.9)) as (_, axis):
        for place, (_, parts, left) in enumerate(words):
            begin = 0.0
            shown = 0.0
            for number, (name, share) in enumerate(parts):
                width = share * (1 - left)
                axis.barh(place, width, left=begin, color=COLOURS[number % 6], height=0.7, edgecolor="white")
                if width > 0.07:
                    named, _, mark = name.partition(
                        " ["
                    )  # what is known of its reliability stays with a name cut short
                    named = named if len(name) < 130 * width else named.split(",")[0]
                    fitting = f"{share:.2f}\n{named}" + (f"\n[{mark}" if mark else "")
                    axis.text(begin + width / 2, place, fitting, ha="center", va="center", fontsize=6)
                begin, shown = begin + width, shown + share
            rest = max(0.0, 1 - shown) * (1 - left)
            axis.barh(place, rest, left=begin, color="#bbbbbb", height=0.7, edgecolor="white")
            axis.barh(place, left, left=begin + rest, color="#e6e6e6", height=0.7, edgecolor="white", hatch="//")
            axis.text(1 - left / 2, place, f"left over\n{left:.2f}", ha="center", va="center", fontsize=6)
        axis.set_yticks(range(len(words)), [word for word, _, _ in words])
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xlabel("shares of the code within the energy explained (grey: other factors; hatched: left over)")
        axis.grid(False)
    return png(path)


def reliability_histogram(
    path: Path, found: NDArray[np.floating], control: NDArray[np.floating], label: str = "best cosine in another run"
) -> Path:
    """How well factors are found again, beside random unit vectors.

    Args:
        found: [K] best-match cosines (or means over runs). control: the same for random dictionaries.
    """
    bins = np.linspace(0, 1, 51)
    with figure(path) as (_, axis):
        axis.hist(control, bins, density=True, color=COLOURS[1], alpha=0.6, label=f"random, mean {control.mean():.2f}")
        axis.hist(found, bins, density=True, color=COLOURS[0], alpha=0.7, label=f"factors, mean {found.mean():.2f}")
        axis.set_xlabel(label)
        axis.set_ylabel("density")
        axis.legend()
    return png(path)


def ordered_coactivation(path: Path, similarity: NDArray[np.floating], labels: NDArray[np.integer]) -> Path:
    """The co-activation matrix, factors ordered by group, larger groups first.

    Args:
        similarity: [K, K]. labels: [K].
    """
    sizes = np.bincount(labels)
    order = np.lexsort((labels, -sizes[labels]))
    limit = float(np.quantile(similarity[similarity > 0], 0.99)) if (similarity > 0).any() else 1.0
    with figure(path, figsize=(5.2, 4.6)) as (drawn, axis):
        shown = axis.imshow(similarity[np.ix_(order, order)], cmap="magma_r", vmin=0, vmax=limit, interpolation="none")
        drawn.colorbar(shown, ax=axis, label="normalised co-activation", shrink=0.8, extend="max")
        axis.set_xlabel("factor, ordered by group")
        axis.set_ylabel("factor, ordered by group")
        axis.grid(False)
    return png(path)


def analogy_difference(
    path: Path, words: Sequence[str], differences: Sequence[NDArray[np.floating]], names: Sequence[str], count: int = 8
) -> Path:
    """Change of the code from a to b and from c to d, for the factors that change most.

    Args:
        words: a, b, c, d. differences: alpha_b - alpha_a and alpha_d - alpha_c, [K] each. names: [K].
    """
    a, b, c, d = words
    order = np.argsort(-np.abs(differences[0]) - np.abs(differences[1]), kind="stable")[:count]
    place = np.arange(len(order))
    with figure(path, figsize=(7.0, 0.42 * len(order) + 1.0)) as (_, axis):
        for number, (delta, label) in enumerate(zip(differences, (f"{a} to {b}", f"{c} to {d}"), strict=True)):
            axis.barh(place + 0.4 * number - 0.2, delta[order], height=0.38, color=COLOURS[number], label=label)
        axis.set_yticks(place, [names[j] for j in order], fontsize=7)
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel("change of activation")
        axis.legend()
    return png(path)


def accuracy_by_section(path: Path, sections: Sequence[str], accuracy: Mapping[str, Sequence[float]]) -> Path:
    """Grouped bars: a group a section, a bar a rule.

    Args:
        accuracy: rule -> one value a section (NaN where it was not tested).
    """
    width = 0.8 / len(accuracy)
    with figure(path, figsize=(0.75 * len(sections) + 2.0, 3.8)) as (_, axis):
        for number, (rule, values) in enumerate(accuracy.items()):
            place = np.arange(len(sections)) + (number - (len(accuracy) - 1) / 2) * width
            axis.bar(place, values, width, label=rule, color=COLOURS[number % len(COLOURS)])
        axis.set_xticks(range(len(sections)), sections, rotation=35, ha="right", fontsize=7)
        axis.set_ylabel("accuracy")
        axis.set_ylim(0, 1)
        axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2), fontsize=7)
    return png(path)


def training_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Energy and its parts, signal-to-noise ratio, active factors, over steps.

    Args:
        rows: of `metrics.jsonl`, split `train`.
    """
    steps = [row["step"] for row in rows]
    panels = (
        ("energy a word", ("energy", "data")),
        ("signal to noise (dB)", ("snr",)),
        ("active factors", ("active",)),
    )
    with figure(path, 1, 3, figsize=(9.0, 2.8)) as (_, axes):
        for axis, (label, names) in zip(axes, panels, strict=True):
            for name in names:
                axis.plot(steps, [row[name] for row in rows], label=name)
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            if len(names) > 1:
                axis.legend()
    return png(path)


def sparsity_curve(path: Path, points: Sequence[tuple[float, float, float]], chosen: float) -> Path:
    """Active factors and error over the weight of the activations.

    Args:
        points: (lam, active, relative residual) each. chosen: lam of the run.
    """
    lams, active, left = zip(*points, strict=True)
    with figure(path, figsize=(5.6, 3.4)) as (_, axis):
        axis.semilogx(lams, active, "o-", color=COLOURS[0])
        axis.set_xlabel("weight of the activations")
        axis.set_ylabel("active factors a word", color=COLOURS[0])
        other = axis.twinx()
        other.semilogx(lams, left, "s-", color=COLOURS[1])
        other.set_ylabel("energy left over", color=COLOURS[1])
        other.set_ylim(0, 1)
        other.grid(False)
        axis.axvline(chosen, color="black", linewidth=0.8, linestyle=":")
        axis.minorticks_off()
        axis.set_xticks(lams, [f"{lam:.2g}" for lam in lams])
    return png(path)
