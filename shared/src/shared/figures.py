"""One look for every figure, saved as PNG and SVG."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from shared.run import free_path, writing

# Okabe and Ito's colours: told apart by colour-blind readers and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

STYLE: dict[str, Any] = {
    "figure.figsize": (5.4, 3.6),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.hashsalt": "papers",  # the same figure gives the same file
}


_VECTORS = ContextVar("_VECTORS", default=True)


@contextlib.contextmanager
def png_only() -> Iterator[None]:
    """Within it no figure writes an SVG: of what goes into documents only the PNG is kept."""
    token = _VECTORS.set(False)
    try:
        yield
    finally:
        _VECTORS.reset(token)


def free_figure(stem: Path, force: bool) -> Path:
    """`stem`, if no figure of that name is there, or it may be replaced.

    Raises:
        UserError: as `shared.run.free_path`.
    """
    for suffix in (".png", ".svg"):
        free_path(stem.with_name(stem.name + suffix), force)
    return stem


@contextlib.contextmanager
def figure(
    path: Path, rows: int = 1, columns: int = 1, *, svg: bool = True, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """Draw a figure in the common style and save it as `path`.png (and .svg).

    Args:
        path: where to, without suffix; the folder is made.
        svg: write the SVG as well, unless within `png_only`.
        rows, columns, options: as for `matplotlib.pyplot.subplots`.

    Raises:
        UserError: the disk is full or refuses the write.

    Yields:
        (figure, axes) as `matplotlib.pyplot.subplots` gives them.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    with mpl.rc_context(settings):
        # A bare Figure, not pyplot: nothing is registered globally, nothing needs a display.
        drawn = Figure(**{key: options.pop(key) for key in ("figsize", "dpi") if key in options})
        FigureCanvasAgg(drawn)
        axes = drawn.subplots(rows, columns, **options)
        yield drawn, axes
        stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
        with writing(path, "figure"):
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.savefig(f"{stem}.png", metadata={"Software": None})
            if svg and _VECTORS.get():
                drawn.savefig(f"{stem}.svg", metadata={"Date": None})
