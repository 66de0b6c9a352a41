"""Plans: which ring entry, with which sign, becomes which weight.

A plan is a function of (layer sizes, ring size, kind, seed) and of nothing else: not of the device, the platform, or
the order in which rings were made. It is therefore never stored; a model file holds its specification, a few bytes.
Every draw is made here from the raw words of a PCG64, whose stream NumPy guarantees; its distributions it may change.

    theta_l = a_l * s_l (.) W[pi_l]      pi_l: [n_l] in 0..M-1,  s_l: [n_l] in {-1, +1}

Legend: M ring size, N = sum n_l generated weights, L layers, B chunk, r = N / M uses of an entry.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.config import UserError, check_choice, check_range

VERSION = 2  # of the functions below: a change of any plan's outcome is a new version

KINDS = {
    "even": "every entry used floor(N/M) or ceil(N/M) times, one permutation over all layers, random signs",
    "ring": "a cursor walks the ring; each layer takes consecutive entries, permutes them, random signs",
    "hash": "HashedNets: independent uniform entries, random signs; some entries stay unused",
    "reuse": "every layer starts at entry 0, no permutation, no signs: the classic tied layer",
    "seq": "the cursor walks on from layer to layer, no permutation, no signs",
    "perm_only": "even without signs",
    "sign_only": "the cursor walks on, no permutation, random signs",
    "haar": "a random rotation of the ring for every layer; theory's reference, for small layers",
}
PERMUTED = ("even", "ring", "hash", "perm_only")
PILE = 2**17  # values that are permuted in one go, in the cache
STRETCH = 2**20  # values that are dealt in one go
HAAR_LIMIT = 2048  # a Haar matrix of this side is 32 MiB in double precision

# Streams of randomness, spawned from the seed: a permutation and the signs must not share one.
_ORDER, _SIGNS, _OFFSETS, _ROTATION = range(4)


@dataclass(frozen=True)
class Plan:
    """A plan, worked out on demand. Made by `make_plan`.

    Attributes:
        sizes: n_l of each layer. ring_size: M. kind, seed, chunk, offset, ring: as for `make_plan`.
    """

    sizes: tuple[int, ...]
    ring_size: int
    kind: str
    seed: int
    chunk: int = 1
    offset: str = "random"
    ring: str = "global"
    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def total(self) -> int:
        """N, generated weights."""
        return sum(self.sizes)

    @property
    def signed(self) -> bool:
        """Whether the plan flips signs."""
        return self.kind in ("even", "ring", "hash", "sign_only")

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Where each layer lies among the N weights: (begin, end)."""
        ends = np.cumsum(self.sizes)
        return tuple((int(end) - size, int(end)) for end, size in zip(ends, self.sizes, strict=True))

    def all_indices(self) -> NDArray[np.int32]:
        """pi of all layers, `[N]`, worked out anew. Raises `UserError` for `haar`, which picks no entries."""
        if self.kind == "haar":
            raise UserError("plan", "haar", [kind for kind in KINDS if kind != "haar"], "haar mixes all entries.")
        return _indices(self)

    def all_signs(self) -> NDArray[np.int8]:
        """s of all layers, `[N]`, +1 or -1."""
        if not self.signed:
            return np.ones(self.total, np.int8)
        words = self._stream(_SIGNS).random_raw(-(-self.total // 64)).astype("<u8", copy=False)
        signs = np.unpackbits(words.view(np.uint8), count=self.total).view(np.int8)
        signs *= -2
        signs += 1
        return signs

    def indices(self, layer: int) -> NDArray[np.int32]:
        """pi_l, `[n_l]`."""
        begin, end = self.bounds[layer]
        return self._kept("indices", self.all_indices)[begin:end]

    def signs(self, layer: int) -> NDArray[np.int8]:
        """s_l, `[n_l]`, +1 or -1."""
        begin, end = self.bounds[layer]
        return self._kept("signs", self.all_signs)[begin:end]

    def _kept(self, name: str, work_out: Callable[[], Any]) -> Any:
        # Whoever asks layer by layer would otherwise pay for all layers every time.
        if name not in self._cache:
            self._cache[name] = work_out()
        return self._cache[name]

    def counts(self) -> NDArray[np.int64]:
        """Uses of each ring entry, `[M]`."""
        if self.kind == "haar":
            return np.full(self.ring_size, len(self.sizes), np.int64)
        return np.bincount(self.all_indices(), minlength=self.ring_size)

    def blocks(self) -> NDArray[np.int32] | None:
        """For a chunked plan the block of each run of `chunk` weights, `[ceil(N / chunk)]`: the same map, shorter."""
        if self.chunk == 1:
            return None
        return self.all_indices()[:: self.chunk] // np.int32(self.chunk)

    def rotation(self, layer: int) -> NDArray[np.float64]:
        """A_l of a `haar` plan, `[n_l, M]`: rows (or columns, whichever are fewer) orthonormal, uniform."""
        rows, columns = self.sizes[layer], self.ring_size
        q, r = np.linalg.qr(_normal(self._stream(_ROTATION, layer), max(rows, columns), min(rows, columns)))
        q = q * np.sign(np.diagonal(r))  # without it the factorisation's sign convention would bias the draw
        return q if rows >= columns else q.T

    def matrix(self, scales: Sequence[float] | None = None) -> Any:
        """G, the sparse `[N, M]` map with theta = G W, as a SciPy CSR array.

        Args:
            scales: a_l; ones by default.
        """
        from scipy import sparse

        constants = np.repeat(np.ones(len(self.sizes)) if scales is None else np.asarray(scales), self.sizes)
        if self.kind == "haar":
            dense = np.concatenate([self.rotation(layer) for layer in range(len(self.sizes))])
            return sparse.csr_array(constants[:, None] * dense)
        rows = np.arange(self.total + 1)
        values = constants * self.all_signs()
        return sparse.csr_array((values, self.all_indices(), rows), shape=(self.total, self.ring_size))

    def digest(self) -> str:
        """Hash of the layer sizes: the part of a plan that the network must agree with."""
        return hashlib.sha256(np.asarray(self.sizes, "<i8").tobytes()).hexdigest()[:16]

    def spec(self) -> dict[str, Any]:
        """What a model file stores instead of indices: everything that decides the plan, as JSON values."""
        names = ("ring_size", "kind", "seed", "chunk", "offset", "ring")
        return {"version": VERSION, "sizes": self.digest(), **{name: getattr(self, name) for name in names}}

    def _stream(self, *purpose: int) -> np.random.PCG64:
        # A ring's name enters as entropy, so that two rings under one seed are independent.
        name = int.from_bytes(hashlib.sha256(self.ring.encode()).digest()[:8], "little")
        return np.random.PCG64(np.random.SeedSequence([self.seed, name, VERSION], spawn_key=purpose))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


def make_plan(
    sizes: Sequence[int],
    ring_size: int,
    kind: str = "even",
    seed: int = 0,
    chunk: int = 1,
    *,
    offset: str = "random",
    ring: str = "global",
    allow_unused: bool = False,
) -> Plan:
    """A plan for layers of these sizes from a ring of `ring_size` numbers (Section 3 of the paper).

    Args:
        sizes: n_l of each layer.
        ring_size: M, at most N unless `allow_unused`.
        kind: one of `KINDS`.
        seed: the model's key.
        chunk: B; permuted plans permute blocks of B consecutive entries, which reads memory in runs. Divides M.
        offset: `ring`: where layers start, `random` or `continue`.
        ring: the ring's name; rings of other names get independent plans.
        allow_unused: permit M > N, where M - N entries are never used.

    Raises:
        UserError: a size out of range (N and the valid range are named), an unknown kind (they are listed), a chunk
            that does not divide the ring or goes with a plan that permutes nothing.
    """
    check_choice("plan", kind, KINDS)
    check_choice("offset", offset, ("random", "continue"))
    check_range("seed", seed, 0, 2**63 - 1)
    if not sizes or min(sizes) < 1:
        raise UserError("sizes", list(sizes), "at least one layer of at least one weight")
    total = sum(sizes)
    limit = 2**31 - 1 if allow_unused or kind == "haar" else total
    if not 1 <= ring_size <= limit:
        hint = f"The network has N = {total:,} generated weights." + (
            " More ring than weights leaves entries unused; allow_unused=True permits it." if ring_size > total else ""
        )
        raise UserError("ring_size", ring_size, f"an integer in [1, {limit}]", hint)
    if total > 2**31 - 1:
        raise UserError("sizes", total, "at most 2^31 - 1 generated weights a ring")
    if chunk < 1 or ring_size % chunk:
        raise UserError("chunk", chunk, f"a divisor of the ring size, {ring_size}")
    if chunk > 1 and kind not in PERMUTED:
        raise UserError(
            "chunk", chunk, f"1 for plan {kind!r}, which permutes nothing; larger for {', '.join(PERMUTED)}"
        )
    if kind == "haar" and max(*sizes, ring_size) > HAAR_LIMIT:
        raise UserError("plan", "haar", f"layers and rings of at most {HAAR_LIMIT} numbers")
    return Plan(tuple(int(size) for size in sizes), int(ring_size), kind, int(seed), int(chunk), offset, ring)


def _indices(plan: Plan) -> NDArray[np.int32]:
    size, total = plan.ring_size, plan.total
    if plan.kind == "reuse":
        return np.concatenate([np.arange(n, dtype=np.int64) % size for n in plan.sizes]).astype(np.int32)
    if plan.kind in ("seq", "sign_only"):
        return np.resize(np.arange(size, dtype=np.int32), total)
    # The others work on blocks of `chunk` entries; a block is an entry where chunk is 1.
    stream, chunk = plan._stream(_ORDER), plan.chunk
    entries, needed = size // chunk, -(-total // chunk)
    if plan.kind == "ring":
        blocks = _walk(plan, stream)
    elif plan.kind == "hash":
        blocks = _uniform(stream, entries, needed)
    else:
        blocks = _even(entries, needed, stream, cut=needed * chunk > total)
    return _spread(blocks, chunk)[:total]


def _even(entries: int, needed: int, stream: np.random.PCG64, cut: bool) -> NDArray[np.int32]:
    """floor(needed / entries) copies of all entries and distinct random ones for the rest, in one permutation."""
    rest = needed % entries
    blocks = np.resize(np.arange(entries, dtype=np.int32), needed)
    if rest:
        extra = _permuted(np.arange(entries, dtype=np.int32), stream)[:rest]
        blocks[needed - rest :] = extra
    blocks = _permuted(blocks, stream)
    if cut and rest:
        # The last block is used in part: let it be one of those used once more, so that counts differ by one at most.
        last = np.flatnonzero(np.isin(blocks, extra))[-1]
        blocks[[last, -1]] = blocks[[-1, last]]
    return blocks


def _permuted(values: NDArray[np.int32], stream: np.random.PCG64) -> NDArray[np.int32]:
    """A uniform permutation, perhaps in place: every value gets a random key, and the keys are put in order.

    In time linear in their number: a first byte of the key deals the values into 256 piles that fit the cache, each of
    which is ordered by 32 bits more. Values of equal keys keep their order: of ResNet-34's 21 million some two hundred
    pairs, too few to matter. A pile is all there is where the values are few enough for one.
    """
    permuted, ends = values, [len(values)]
    if len(values) > PILE:
        first = _words(stream, len(values), np.uint8)
        ends = np.cumsum(np.bincount(first, minlength=256)).tolist()
        permuted = _dealt(values, first, [0, *ends[:-1]])
    for begin, end in itertools.pairwise([0, *ends]):
        low, high = _words(stream, 2 * (end - begin), np.uint16).reshape(2, -1)
        permuted[begin:end] = permuted[begin:end].take(by_halves(low, high))
    return permuted


def _dealt(values: NDArray[np.int32], piles: NDArray[np.uint8], starts: list[int]) -> NDArray[np.int32]:
    """`values` in the stable order of their piles, pile p from `starts[p]` on. A stretch at a time: orders are 64-bit
    integers, and fresh memory for those of all values would cost more than all else."""
    dealt, free = np.empty_like(values), list(starts)
    for begin in range(0, len(values), STRETCH):
        mine = piles[begin : begin + STRETCH]
        run = values[begin : begin + STRETCH].take(mine.argsort(kind="stable"))
        ends = np.cumsum(np.bincount(mine, minlength=256)).tolist()
        for pile, (left, right) in enumerate(itertools.pairwise([0, *ends])):
            dealt[free[pile] : free[pile] + right - left] = run[left:right]
            free[pile] += right - left
    return dealt


def _words(stream: np.random.PCG64, count: int, kind: type[np.unsignedinteger]) -> NDArray[Any]:
    """Independent uniform words of 8 or 16 bits, from the raw ones in little-endian order; the last raw one is used in
    part."""
    raw = stream.random_raw(-(-count * np.dtype(kind).itemsize // 8)).astype("<u8", copy=False)
    return raw.view(np.dtype(kind).newbyteorder("<")).astype(kind, copy=False)[:count]


def by_halves(low: NDArray[np.uint16], high: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The stable order of keys high * 2^16 + low. NumPy orders 16-bit integers by counting, in linear time: for what
    fits the cache this is several times faster than a sort."""
    order = low.argsort(kind="stable")
    return order.take(high.take(order).argsort(kind="stable"))


def _uniform(stream: np.random.PCG64, below: int, count: int) -> NDArray[np.int32]:
    """Independent integers in 0 .. below - 1: 32 random bits times the range, its upper half (off by 2^-32 at most)."""
    words = stream.random_raw(count)
    words >>= np.uint64(32)
    words *= np.uint64(below)
    words >>= np.uint64(32)
    return words.astype(np.int32)


def _normal(stream: np.random.PCG64, rows: int, columns: int) -> NDArray[np.float64]:
    """Standard normal numbers after Box and Muller, `[rows, columns]`."""
    words = stream.random_raw(2 * rows * columns) >> np.uint64(11)
    first, second = (words.astype(np.float64) + 0.5).reshape(2, rows, columns) * 2.0**-53  # in (0, 1)
    return np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)


def _walk(plan: Plan, stream: np.random.PCG64) -> NDArray[np.int32]:
    """Each layer takes the next (or a random) run of blocks, around the ring, and permutes it. With chunks, the
    borders between layers are rounded down to whole blocks."""
    entries, chunk = plan.ring_size // plan.chunk, plan.chunk
    needed = -(-plan.total // chunk)
    borders = np.cumsum([0, *plan.sizes]) // chunk
    borders[-1] = needed
    starts = _uniform(plan._stream(_OFFSETS), entries, len(plan.sizes))
    blocks = np.empty(needed, np.int32)
    for layer, (begin, end) in enumerate(itertools.pairwise(borders)):
        start = int(begin if plan.offset == "continue" else starts[layer])
        run = ((start + np.arange(end - begin)) % entries).astype(np.int32)
        blocks[begin:end] = _permuted(run, stream)
    return blocks


def _spread(blocks: NDArray[np.int32], chunk: int) -> NDArray[np.int32]:
    if chunk == 1:
        return blocks
    return (blocks[:, None] * np.int32(chunk) + np.arange(chunk, dtype=np.int32)).reshape(-1)


def histogram(counts: NDArray[np.int64]) -> dict[int, int]:
    """Uses -> number of ring entries used so often."""
    values, numbers = np.unique(counts, return_counts=True)
    return {int(value): int(number) for value, number in zip(values, numbers, strict=True)}


def split_budget(total: int, weights: Sequence[int]) -> list[int]:
    """Share out `total` ring numbers in proportion to `weights` by largest remainder, at least one each.

    Raises:
        UserError: fewer numbers than shares.
    """
    if total < len(weights):
        raise UserError("ring_size", total, f"at least {len(weights)}, one number a ring")
    whole = sum(weights)
    # Integer arithmetic: floating shares can lose a number.
    shares = [max(1, total * weight // whole) for weight in weights]
    remainders = [(total * weight % whole, -index) for index, weight in enumerate(weights)]
    order = [-index for _, index in sorted(remainders, reverse=True)]
    position = 0
    while sum(shares) < total:
        shares[order[position % len(order)]] += 1
        position += 1
    while sum(shares) > total:  # the guaranteed ones came on top: take them back where there is most
        shares[max(range(len(shares)), key=lambda index: shares[index])] -= 1
    return shares
