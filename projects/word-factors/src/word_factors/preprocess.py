"""What is done to word vectors before they are taken apart, and how it is undone.

The units of lam are those after preprocessing. Norms differ threefold among words, and frequent words have the
shortest vectors: left as they are, frequent words get few factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shared.config import check_choice

Preprocess = Literal["none", "unit", "center", "scale"]
PREPROCESSES: tuple[Preprocess, ...] = get_args(Preprocess)

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Transform:
    """A preprocessing fitted to an embedding.

    Attributes:
        kind: none; unit: rows to norm 1; center: minus the mean vector; scale: divided by the mean norm.
        mean: [d] what `center` takes away; zeros otherwise.
        scale: what `scale` divides by; 1 otherwise.
    """

    kind: Preprocess
    mean: Array
    scale: float = 1.0

    @classmethod
    def fit(cls, kind: Preprocess, vectors: Array) -> Transform:
        """Fit to vectors [V, d].

        Raises:
            UserError: an unknown kind.
        """
        check_choice("--preprocess", kind, PREPROCESSES)
        mean = vectors.mean(axis=0, dtype=np.float64) if kind == "center" else np.zeros(vectors.shape[1])
        scale = float(np.linalg.norm(vectors, axis=1).mean(dtype=np.float64)) if kind == "scale" else 1.0
        return cls(kind, mean.astype(np.float32), scale or 1.0)

    def apply(self, vectors: Array) -> Array:
        """[n, d] -> [n, d] preprocessed. A zero vector stays zero under `unit`."""
        if self.kind == "unit":
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
        return ((vectors - self.mean) / self.scale).astype(np.float32)

    def undo(self, vectors: Array, norms: NDArray[np.floating] | None = None) -> Array:
        """The way back. `unit` has forgotten the norms: give those of the original vectors [n], or get unit vectors."""
        if self.kind == "unit":
            return vectors if norms is None else (vectors * np.asarray(norms)[:, None]).astype(np.float32)
        return (vectors * self.scale + self.mean).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": self.mean.tolist(), "scale": self.scale}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Transform:
        return cls(state["kind"], np.array(state["mean"], dtype=np.float32), float(state["scale"]))
