"""Arrays and codes survive JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from word_factors.packing import pack, pack_codes, unpack, unpack_codes


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
def test_arrays_come_back_to_the_bit(dtype: type) -> None:
    array = (100 * np.random.default_rng(0).standard_normal((7, 5))).astype(dtype)
    back = unpack(json.loads(json.dumps(pack(array))))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_codes_come_back_to_half_precision() -> None:
    dense = np.random.default_rng(1).exponential(size=(20, 9)) * (np.random.default_rng(2).random((20, 9)) < 0.2)
    codes = sparse.csr_array(dense.astype(np.float32))
    back = unpack_codes(json.loads(json.dumps(pack_codes(codes))))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back.toarray(), dense, rtol=1e-3)
    np.testing.assert_array_equal(back.toarray() > 0, dense > 0)
