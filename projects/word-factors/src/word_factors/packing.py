"""Arrays inside JSON: what an experiment hands on to figures and comparisons between seeds. Imports no torch."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def pack(array: NDArray[Any]) -> dict[str, Any]:
    """An array as JSON values, compressed."""
    content = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "content": content}


def unpack(packed: dict[str, Any]) -> NDArray[Any]:
    """The array again."""
    content = zlib.decompress(base64.b64decode(packed["content"]))
    return np.frombuffer(content, dtype=packed["dtype"]).reshape(packed["shape"])


def pack_codes(codes: sparse.csr_array) -> dict[str, Any]:
    """Sparse codes [V, K], activations in half precision."""
    return {
        "data": pack(codes.data.astype(np.float16)),
        "indices": pack(codes.indices.astype(np.int32)),
        "indptr": pack(codes.indptr.astype(np.int32)),
        "shape": [int(size) for size in codes.shape or ()],
    }


def unpack_codes(packed: dict[str, Any]) -> sparse.csr_array:
    """The codes again, float32."""
    parts = (unpack(packed["data"]).astype(np.float32), unpack(packed["indices"]), unpack(packed["indptr"]))
    return sparse.csr_array(parts, shape=tuple(packed["shape"]))
