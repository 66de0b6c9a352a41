"""Each preprocessing does what its name says, and is undone."""

from __future__ import annotations

import numpy as np
import pytest

from shared.config import UserError
from word_factors.preprocess import PREPROCESSES, Transform

VECTORS = (np.random.default_rng(0).standard_normal((50, 7)) * 3 + 1).astype(np.float32)


@pytest.mark.parametrize("kind", PREPROCESSES)
def test_preprocessing_is_undone_and_survives_saving(kind: str) -> None:
    transform = Transform.fit(kind, VECTORS)  # pyright: ignore[reportArgumentType]
    done = transform.apply(VECTORS)
    np.testing.assert_allclose(transform.undo(done, np.linalg.norm(VECTORS, axis=1)), VECTORS, rtol=1e-4, atol=1e-5)
    again = Transform.from_state(transform.state_dict())
    np.testing.assert_array_equal(again.apply(VECTORS), done)


def test_what_each_does() -> None:
    np.testing.assert_array_equal(Transform.fit("none", VECTORS).apply(VECTORS), VECTORS)
    np.testing.assert_allclose(np.linalg.norm(Transform.fit("unit", VECTORS).apply(VECTORS), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(Transform.fit("center", VECTORS).apply(VECTORS).mean(axis=0), 0, atol=1e-5)
    scaled = Transform.fit("scale", VECTORS).apply(VECTORS)
    assert np.linalg.norm(scaled, axis=1).mean() == pytest.approx(1, rel=1e-5)


def test_unit_without_norms_stays_unit_and_keeps_zero() -> None:
    transform = Transform.fit("unit", VECTORS)
    np.testing.assert_array_equal(transform.undo(transform.apply(VECTORS)), transform.apply(VECTORS))
    assert not transform.apply(np.zeros((1, 7), np.float32)).any()


def test_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(UserError, match="--preprocess"):
        Transform.fit("whiten", VECTORS)  # pyright: ignore[reportArgumentType]
