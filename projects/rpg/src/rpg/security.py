"""The key of a model: the seed of its plans.

A ring and a network's shapes give the weights only together with the permutation and the signs, which follow from the
seed. The same ring under another seed is a network that knows nothing (the paper's remark on security; tested).

What this protects, and what not:

- It is obfuscation, not encryption. Nothing here is a cryptographic primitive: PCG64 is no cipher, and a ring alone
  leaks the histogram of its values, its size, and, with the host's own parameters beside it, the architecture, the
  normalisation statistics and a trained classifier head.
- A key has at most 63 bits; one chosen by hand (0, 1, 42, a date) is found by trying. Use `make_key`.
- Whoever holds the key, one dense export, or the running network's memory holds the weights. Layer outputs of the
  running network can be fitted; a few known layers give away the plan, for it is linear.
- A file written by `save(..., hide_key=True)` holds a salted, deliberately slow digest, so that a key can be checked
  but not read. It does not hide the ring. Anyone who can run the network on labelled data can check keys without it.

To keep a model secret, encrypt the file with a tool made for that.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import UserError, check_range

if TYPE_CHECKING:
    from rpg.wrap import RPGModel

KEYS = 2**63  # keys are 0 .. KEYS - 1
ROUNDS = 200_000  # of PBKDF2: about a tenth of a second a guess


def make_key() -> int:
    """A random key from the operating system's source."""
    return secrets.randbelow(KEYS)


def tag(key: int, salt: bytes | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """A verification tag: lets a key be checked, slowly, and not be read.

    Args:
        key: in 0 .. 2^63 - 1.
        salt: random by default, so that equal keys of two models do not show.
        rounds: of PBKDF2-HMAC-SHA256.

    Raises:
        UserError: key out of range.
    """
    check_range("key", key, 0, KEYS - 1)
    salt = secrets.token_bytes(16) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha256", key.to_bytes(8, "little"), salt, rounds)
    return {"salt": salt.hex(), "rounds": rounds, "digest": digest.hex()}


def matches(key: int, key_tag: Mapping[str, Any]) -> bool:
    """Whether a tag was made from this key.

    Raises:
        UserError: key out of range, or a tag that is none.
    """
    try:
        salt, rounds, digest = bytes.fromhex(key_tag["salt"]), int(key_tag["rounds"]), str(key_tag["digest"])
        if not 1 <= rounds <= 100 * ROUNDS:  # a hostile file must not keep us busy for hours
            raise ValueError(f"{rounds} rounds")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("model file: key tag", "damaged", "salt, rounds and digest", str(error)) from error
    return hmac.compare_digest(tag(key, salt, rounds)["digest"], digest)


def save(model: RPGModel, path: Path, *, hide_key: bool = False) -> int:
    """Write a model file, with the key or with its tag instead. Returns its bytes.

    Raises:
        UserError: `hide_key` for rings of different keys.
    """
    from rpg.wrap import write_model

    stored = model.stored()
    return write_model(hidden(stored) if hide_key else stored, path)


def hidden(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored model without its key, and with the key's tag."""
    keys = {spec["seed"] for spec in stored["plans"].values()}
    if len(keys) != 1:
        raise UserError("key", f"{len(keys)} different ones", "one key for all rings")
    plans = {name: {**spec, "seed": None} for name, spec in stored["plans"].items()}
    return {**stored, "plans": plans, "key_tag": tag(keys.pop())}


def verify(path: Path, key: int) -> bool:
    """Whether `key` is the key of a model file.

    Raises:
        UserError: no such file, not a model file, or key out of range.
    """
    from rpg.wrap import read_model

    check_range("key", key, 0, KEYS - 1)
    stored = read_model(path)
    if "key_tag" in stored:
        return matches(key, stored["key_tag"])
    return all(spec.get("seed") == key for spec in stored["plans"].values())


def with_key(model: RPGModel, key: int) -> RPGModel:
    """A copy of a model under another key: the same rings and own parameters, other permutations and signs.

    Raises:
        UserError: key out of range.
    """
    check_range("key", key, 0, KEYS - 1)
    other = copy.deepcopy(model)
    for ring in other.rings.values():
        ring.rekey(key)  # pyright: ignore[reportCallIssue]
    return other
