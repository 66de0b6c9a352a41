"""One thread a test process, no GPU tests without a GPU, and small embeddings made on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from word_factors.embedding import Embedding

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def planted() -> tuple[Embedding, np.ndarray, np.ndarray]:
    """An embedding of 400 words that are sparse sums of 24 factors in 16 dimensions: (embedding, phi [16, 24],
    alpha [400, 24])."""
    rng = np.random.default_rng(5)
    phi = rng.standard_normal((16, 24))
    phi /= np.linalg.norm(phi, axis=0)
    alpha = np.zeros((400, 24))
    for row in alpha:
        row[rng.choice(24, 3, replace=False)] = rng.exponential(1.0, 3)
    vectors = (alpha @ phi.T + 0.01 * rng.standard_normal((400, 16))).astype(np.float32)
    words = tuple(f"word{number}" for number in range(400))
    counts = 1e4 / (np.arange(400) + 1.0)
    return Embedding(words, vectors, counts, "corpus", "planted"), phi.astype(np.float32), alpha.astype(np.float32)
