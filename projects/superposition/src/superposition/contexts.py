"""Context families: the invertible maps C_k that bind a model to its key (arXiv 1902.05522).

    family = make_contexts("binary", dim=784, seed=0, layer="layers.0")
    bound = family.bind(x, k)               # C_k x for every row of x [B, d]
    bound = family.bind(x, LongTensor)      # a context for every row
    kernel = family.bind_weight(W, k)       # W C_k, the weight that a plain layer would have

A context is a function of (seed, kind, layer, k) and of nothing else: it is drawn when first asked for, is part of no
checkpoint, and neither another layer nor another task changes it. Learned contexts are parameters, one for each k, so
that an optimiser that trains one of them has nothing to do with the others.

Dimension letters: B batch, d inputs of a layer, m outputs, K contexts.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Self, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor, nn

from shared.config import UserError, check_choice
from superposition.complex import Complex
from superposition.kinds import KINDS, LEARNABLE, Kind

Index: TypeAlias = int | float | Tensor  # one context, or one for every sample [B]
log = logging.getLogger(__name__)

TABLE = 4096  # contexts 0 .. TABLE - 1 are kept in one tensor, so that a mixed batch is one gather
KEPT_MATRICES = 2  # a matrix has d^2 numbers: 2.5 MB for 784 inputs


class Contexts(nn.Module):
    """A family of contexts for inputs of one layer.

    Args:
        dim: d, inputs.
        seed: seeds all families of a network. layer: the layer's name; two layers have independent families.
        limit: K, how many contexts there are; None for no end.
        learn: make the contexts parameters, drawn as usual to begin with. Needs `limit`.

    Raises:
        UserError: a family that needs `limit` has none, one that cannot be learned, a dimension it cannot have.
    """

    kind: ClassVar[Kind]
    orthogonal: ClassVar[bool] = True

    def __init__(self, dim: int, seed: int = 0, layer: str = "", limit: int | None = None, learn: bool = False) -> None:
        super().__init__()
        if dim < 1:
            raise UserError("inputs of a layer", dim, "an integer >= 1")
        if limit is not None and limit < 1:
            raise UserError("--contexts", limit, "an integer >= 1")
        if learn and self.kind not in LEARNABLE:
            raise UserError("--learn-context", self.kind, LEARNABLE)
        if learn and limit is None:
            raise UserError("--contexts", None, "a number of contexts: learned ones are parameters")
        self.dim, self.seed, self.layer, self.limit, self.learn = dim, seed, layer, limit, learn
        self.learned = nn.ParameterList()
        if learn:
            assert limit is not None
            self.learned.extend(nn.Parameter(self._draw(k)) for k in range(limit))

    # what a family is ----------------------------------------------------------------------------------------------

    def _draw(self, k: int) -> Tensor:
        """Context k as this family stores it, on the CPU."""
        raise NotImplementedError

    def sample(self, k: int | float) -> Tensor:
        """C_k: its diagonal [d] (complex for phasors), or the matrix [d, d]."""
        raise NotImplementedError

    def bind(self, x: Tensor, k: Index) -> Tensor:
        """C_k x for every row: [B, d] to [B, d]."""
        raise NotImplementedError

    def unbind(self, y: Tensor, k: Index) -> Tensor:
        """C_k^-1 y for every row.

        Raises:
            UserError: a family whose maps cannot be undone.
        """
        raise NotImplementedError

    def bind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        """W C_k: [m, d] to [m, d], so that (W C_k) x = W (C_k x)."""
        raise NotImplementedError

    def unbind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        """W C_k^-1: what model k adds to a superposition."""
        raise NotImplementedError

    def numbers(self, contexts: int) -> int:
        """Numbers that `contexts` stored contexts take."""
        return contexts * self.dim

    def bits(self) -> int:
        """Bits of one such number."""
        return 32

    def nbytes(self, contexts: int) -> int:
        """Bytes that `contexts` stored contexts take; drawn from a seed they take none."""
        return math.ceil(self.numbers(contexts) * self.bits() / 8)

    # common ----------------------------------------------------------------------------------------------------------

    def stream(self, k: int) -> Generator:
        """Randomness of context k: a function of seed, kind, layer and k."""
        return Generator().manual_seed(derived_seed(self.seed, "context", self.kind, self.layer, k))

    def check(self, k: Index) -> None:
        """Refuse an index that is no context of this family.

        Raises:
            IndexError: below 0, or beyond the family's end; names the layer, k and the limit.
            UserError: a fraction where contexts are counted.
        """
        if isinstance(k, Tensor):
            if k.is_floating_point() and not self.continuous:
                raise UserError(f"context of layer {self.layer!r}", str(k.dtype), "integers: only `power` takes reals")
            if k.is_floating_point():
                for value in k.unique().tolist():
                    self.check(value)
                return
            for value in (int(k.min()), int(k.max())) if k.numel() else ():
                self.check(value)
            return
        if isinstance(k, bool):
            raise UserError(f"context of layer {self.layer!r}", k, "an integer")
        if isinstance(k, float):
            if not math.isfinite(k):
                raise UserError(f"context of layer {self.layer!r}", k, "a finite number")
            if not self.continuous and not k.is_integer():
                raise UserError(f"context of layer {self.layer!r}, kind {self.kind}", k, "an integer >= 0",
                                "Contexts between two others exist in the kind `power` alone.")  # fmt: skip
        if k < 0 or (self.limit is not None and k > self.limit - 1):
            end = "without end" if self.limit is None else f"0 to {self.limit - 1}"
            raise IndexError(f"layer {self.layer!r}: context {k} asked for; there are contexts {end} ({self.kind})")

    continuous: ClassVar[bool] = False

    def gram(self, ks: Sequence[float]) -> Tensor:
        """<C_s, C_k> for all pairs, [K, K]: sum_j conj(c_sj) c_kj, or the trace of C_s^T C_k; d on the diagonal of a
        family of unit entries or orthogonal matrices."""
        flat = torch.stack([self.sample(k).reshape(-1) for k in ks]).detach()
        flat = flat.to(torch.complex128 if flat.is_complex() else torch.float64)
        return flat.conj() @ flat.T

    def collisions(self, ks: Sequence[float]) -> float:
        """Mean |cosine| between different contexts, normalised by their lengths; 0 for a single one."""
        if len(ks) < 2:
            return 0.0
        gram = self.gram(ks).abs()
        length = gram.diagonal().sqrt()
        cosine = gram / (length[:, None] * length[None, :])
        return float((cosine.sum() - cosine.diagonal().sum()) / (len(ks) * (len(ks) - 1)))

    def extra_repr(self) -> str:
        end = "" if self.limit is None else f", limit={self.limit}"
        return f"{self.kind}, {self.dim}, seed={self.seed}{end}{', learned' if self.learn else ''}"


class _Tabled(Contexts):
    """Families whose context is one row: rows are kept in a table on the device where they are used."""

    _table: Tensor

    def __init__(self, dim: int, seed: int = 0, layer: str = "", limit: int | None = None, learn: bool = False) -> None:
        super().__init__(dim, seed, layer, limit, learn)
        self._known = 0  # rows 0 .. known - 1 of the table are drawn
        self._far: OrderedDict[tuple[int, torch.device, torch.dtype], Tensor] = OrderedDict()  # beyond the table
        self.register_buffer("_table", torch.empty(0, *self._row_shape()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved or converted, the table is emptied: cosines rounded to float32 would stay so in float64."""
        before = self._table.device, self._table.dtype
        super()._apply(fn, recurse)
        if before != (self._table.device, self._table.dtype):
            self._table, self._known = self._table[:0], 0
            self._far.clear()
        return self

    def _row_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def _row(self, k: int) -> Tensor:
        """What the table holds of a drawn context."""
        return self._draw(k)

    def rows(self, k: Index, like: Tensor) -> Tensor:
        """The row of one context, or [B, ...] one for every sample; on the device and of the type of `like`."""
        self.check(k)
        if self.learn:
            return self._learned_rows(k)
        if isinstance(k, Tensor):
            if k.numel() and int(k.max()) >= TABLE:
                chosen, where = k.unique(return_inverse=True)
                return torch.stack([self.rows(int(each), like) for each in chosen])[where]
            self._fill(int(k.max()) if k.numel() else 0, like)
            return self._table.index_select(0, k.to(self._table.device))
        k = int(k)
        if k < TABLE:
            self._fill(k, like)
            return self._table[k]
        key = (k, like.device, like.dtype)  # cosines rounded to float32 must not serve float64
        if key not in self._far:
            self._far[key] = self._row(k).to(like)
            if len(self._far) > 64:
                self._far.popitem(last=False)
        return self._far[key]

    def _fill(self, k: int, like: Tensor) -> None:
        if self._table.device != like.device or self._table.dtype != like.dtype:
            if self._known:
                log.info("contexts of layer %r move to %s, %s", self.layer, like.device, like.dtype)
            self._table, self._known = self._table[:0].to(like), 0
        if k >= self._known:
            count = max(k + 1, min(2 * self._known, TABLE, self.limit or TABLE))
            drawn = torch.stack([self._row(each) for each in range(self._known, count)])
            self._table = torch.cat([self._table, drawn.to(like)])
            self._known = count

    def _learned_rows(self, k: Index) -> Tensor:
        if not isinstance(k, Tensor):
            return self._learned_row(self.learned[int(k)])
        chosen, where = k.unique(return_inverse=True)  # the others have no part in it, and no gradient
        return torch.stack([self._learned_row(self.learned[int(each)]) for each in chosen])[where]

    def _learned_row(self, parameter: Tensor) -> Tensor:
        return parameter


class Plain(Contexts):
    """No context: C_k is the identity for every k."""

    kind = "none"

    def sample(self, k: int | float) -> Tensor:
        self.check(k)
        return torch.ones(self.dim)

    def bind(self, x: Tensor, k: Index) -> Tensor:
        return x

    def unbind(self, y: Tensor, k: Index) -> Tensor:
        return y

    def bind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return weight

    def unbind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return weight

    def numbers(self, contexts: int) -> int:
        return 0


class Diagonal(_Tabled):
    """C_k = diag(c_k) with real c_k."""

    def sample(self, k: int | float) -> Tensor:
        if isinstance(k, float):
            self.check(k)
        return self.rows(k, self.learned[0] if self.learn else self._table)

    def bind(self, x: Tensor, k: Index) -> Tensor:
        return x * _spread(self.rows(k, x), x, k)

    def unbind(self, y: Tensor, k: Index) -> Tensor:
        row = _spread(self.rows(k, y), y, k)
        if not self.learn and self.kind not in ("binary", "hadamard", "normal"):
            raise UserError(f"inverse of a context, kind {self.kind}", k, "a kind that is invertible: binary, ...")
        return y / row

    def bind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return weight * self.rows(k, weight)

    def unbind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return self.unbind(weight, k)


class Binary(Diagonal):
    """Signs with equal chances; each context is its own inverse."""

    kind = "binary"

    def _draw(self, k: int) -> Tensor:
        return torch.randint(0, 2, (self.dim,), generator=self.stream(k)).float() * 2 - 1

    def bits(self) -> int:
        return 32 if self.learn else 1


class Hadamard(Diagonal):
    """Rows of the Sylvester-Hadamard matrix under one random order of rows and random signs of columns, a layer each:
    <c_s, c_k> = 0 exactly.

    Raises:
        UserError: d is not a power of two, or more contexts than d.
    """

    kind = "hadamard"

    def __init__(self, dim: int, seed: int = 0, layer: str = "", limit: int | None = None, learn: bool = False) -> None:
        if dim & (dim - 1):
            hint = "Kinds without this condition: binary, complex, rotation, permutation."
            raise UserError(f"inputs of layer {layer!r}, kind hadamard", dim, "a power of 2", hint)
        limit = dim if limit is None else limit
        if limit > dim:
            raise UserError(f"contexts of layer {layer!r}, kind hadamard", limit, f"at most the {dim} inputs")
        super().__init__(dim, seed, layer, limit, learn)

    def _draw(self, k: int) -> Tensor:
        own = self.stream(-1)  # what all contexts of the layer share
        row = int(torch.randperm(self.dim, generator=own)[k])
        signs = torch.randint(0, 2, (self.dim,), generator=own) * 2 - 1
        # Entry j of row i is (-1)^(number of common ones of i and j).
        common = np.bitwise_and(np.arange(self.dim), row)
        parity = np.array([int(value).bit_count() & 1 for value in common])
        return (signs * torch.from_numpy(1 - 2 * parity)).float()

    def bits(self) -> int:
        return 1


class Mask(Diagonal):
    """0 or 1 with equal chances."""

    kind, orthogonal = "mask", False

    def _draw(self, k: int) -> Tensor:
        return torch.randint(0, 2, (self.dim,), generator=self.stream(k)).float()

    def bits(self) -> int:
        return 32 if self.learn else 1


class Ternary(Diagonal):
    """-1, 0 or 1 with equal chances."""

    kind, orthogonal = "ternary", False

    def _draw(self, k: int) -> Tensor:
        return torch.randint(-1, 2, (self.dim,), generator=self.stream(k)).float()

    def bits(self) -> int:
        return 32 if self.learn else 2


class Normal(Diagonal):
    """Standard Gaussian factors."""

    kind, orthogonal = "normal", False

    def _draw(self, k: int) -> Tensor:
        return torch.randn(self.dim, generator=self.stream(k))


class Phasors(_Tabled):
    """C_k = diag(exp(i phi_k)), phi_j uniform on (-pi, pi]; the inverse is the conjugate."""

    kind = "complex"

    def _row_shape(self) -> tuple[int, ...]:
        return (2, self.dim)

    def phases(self, k: int) -> Tensor:
        """phi of the independent context k, [d], in (-pi, pi]."""
        return math.pi - 2 * math.pi * torch.rand(self.dim, generator=self.stream(k), dtype=torch.float64)

    def _draw(self, k: int) -> Tensor:
        return self.phases(k).float()

    def _row(self, k: int) -> Tensor:
        phases = self._phases_of(k)
        return torch.stack([phases.cos(), phases.sin()])  # [2, d]

    def _phases_of(self, k: int | float) -> Tensor:
        """Phases of context k as it is used."""
        return self.phases(int(k))

    def _learned_row(self, parameter: Tensor) -> Tensor:
        return torch.stack([parameter.cos(), parameter.sin()])

    def rows(self, k: Index, like: Tensor) -> Tensor:
        """cos and sin, [2, d]; [B, 2, d] for a context each."""
        return super().rows(k, like)

    def sample(self, k: int | float) -> Tensor:
        self.check(k)
        if self.learn:
            row = self.rows(k, self.learned[0])
            return torch.complex(row[0], row[1])
        phases = self._phases_of(k)
        return torch.complex(phases.cos(), phases.sin())

    def turn(self, x: Complex | Tensor, k: Index, sign: float = 1.0) -> Complex:
        """exp(i sign phi_k) x: (a, b) to (a p - b q, b p + a q), with p = cos phi, q = sin phi.

        Args:
            x: complex [B, d], or real, of which only half the work is to be done.
        """
        real = isinstance(x, Tensor)
        like = x if real else x.parts
        row = self.rows(k, like)
        p, q = (row[0], row[1]) if row.dim() == 2 else (row[:, 0], row[:, 1])
        p, q = (_spread(each, x if real else x.parts[0], k) for each in (p, q))
        q = q if sign > 0 else -q
        if real:
            return Complex(torch.stack([x * p, x * q]))
        a, b = x.parts
        return Complex(torch.stack([a * p - b * q, b * p + a * q]))

    def bind(self, x: Tensor, k: Index) -> Tensor:
        """On native complex tensors [B, d]; layers call `turn`, which knows `Complex`."""
        return x * self._native(k, x)

    def unbind(self, y: Tensor, k: Index) -> Tensor:
        return y * self._native(k, y).conj()

    def _native(self, k: Index, like: Tensor) -> Tensor:
        row = self.rows(k, like.real if like.is_complex() else like)
        phasors = torch.complex(row[0], row[1]) if row.dim() == 2 else torch.complex(row[:, 0], row[:, 1])
        return _spread(phasors, like, k)

    def bind_parts(self, weight: Tensor, k: int | float, sign: float = 1.0) -> Tensor:
        """W C_k (or, with sign -1, W C_k^-1) of a complex weight held as parts [2, m, d]."""
        p, q = self.rows(k, weight)
        q = q if sign > 0 else -q
        real, imaginary = weight
        return torch.stack([real * p - imaginary * q, real * q + imaginary * p])

    def bind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        """Of a native complex weight [m, d]."""
        return weight * self._native(k, weight)

    def unbind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return weight * self._native(k, weight).conj()


class Power(Phasors):
    """Powers of one base context, phi(k) = k phi, for any real k: a single number tells contexts apart."""

    kind, continuous = "power", True

    def _phases_of(self, k: int | float) -> Tensor:
        return k * self.phases(0)

    def rows(self, k: Index, like: Tensor) -> Tensor:
        fraction = isinstance(k, Tensor) and k.is_floating_point()
        if not fraction and not (isinstance(k, float) and not k.is_integer()) and not _negative(k):
            return super().rows(k, like)
        self.check(k)
        base = self.phases(0).to(like.device)
        turned = k[:, None].double() * base if isinstance(k, Tensor) else k * base
        return torch.stack([turned.cos(), turned.sin()], -2).to(like)

    def check(self, k: Index) -> None:
        if self.limit is None and not isinstance(k, Tensor) and math.isfinite(k):
            return  # any real number, negative ones too
        if isinstance(k, Tensor) and self.limit is None and bool(torch.isfinite(k).all()):
            return
        super().check(k)

    def numbers(self, contexts: int) -> int:
        return self.dim + contexts


class LocalMix(Phasors):
    """phi~(k) = (phi(k-1) + phi(k) + phi(k+1)) / 3, indices modulo the number of contexts.

    Averaging shrinks the phases, so that mixed contexts never become orthogonal: see `theory.mix_correlations`.

    Raises:
        UserError: no number of contexts.
    """

    kind = "local-mix"

    def __init__(self, dim: int, seed: int = 0, layer: str = "", limit: int | None = None, learn: bool = False) -> None:
        if limit is None:
            raise UserError("--contexts", None, f"a number of contexts: {self.kind} takes neighbours modulo it")
        if limit < 4:
            raise UserError("--contexts", limit, f"at least 4 for {self.kind}: the neighbours of three are all three")
        super().__init__(dim, seed, layer, limit, learn)

    def _neighbours(self, k: int | float) -> list[Tensor]:
        assert self.limit is not None
        return [self.phases((int(k) + step) % self.limit) for step in (-1, 0, 1)]

    def _phases_of(self, k: int | float) -> Tensor:
        return torch.stack(self._neighbours(k)).mean(0)


class LocalMult(LocalMix):
    """The product of the three neighbouring phasors."""

    kind = "local-mult"

    def _phases_of(self, k: int | float) -> Tensor:
        return torch.stack(self._neighbours(k)).sum(0)


class Matrix(Contexts):
    """C_k is a matrix; one or two are kept, for d^2 numbers each are too many to keep all."""

    def __init__(self, dim: int, seed: int = 0, layer: str = "", limit: int | None = None, learn: bool = False) -> None:
        super().__init__(dim, seed, layer, limit, learn)
        self._kept: OrderedDict[tuple[int, torch.device, torch.dtype], Tensor] = OrderedDict()

    def drawn(self, k: int | float, like: Tensor) -> Tensor:
        """What `_draw` gives for context k, on the device (and, where it is real, of the type) of `like`."""
        self.check(k)
        if self.learn:
            return self.learned[int(k)]
        key = (int(k), like.device, like.dtype)
        if key not in self._kept:
            found = self._draw(int(k))
            self._kept[key] = found.to(like) if found.is_floating_point() else found.to(like.device)
            if len(self._kept) > KEPT_MATRICES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def by_rows(self, x: Tensor, k: Tensor, inverse: bool = False) -> Tensor:
        """A context for every row: rows are sorted by context and bound group by group."""
        self.check(k)
        if not len(k):
            return x
        order = torch.argsort(k)
        chosen, counts = k.unique(return_counts=True)
        act = self.unbind if inverse else self.bind
        parts = [act(part, int(each)) for each, part in zip(chosen, x[order].split(counts.tolist()), strict=True)]
        return torch.cat(parts)[torch.argsort(order)]

    def sample(self, k: int | float) -> Tensor:
        return self.bind_weight(torch.eye(self.dim), k)

    def bind(self, x: Tensor, k: Index) -> Tensor:
        if isinstance(k, Tensor):
            return self.by_rows(x, k)
        return self._act(x, self.drawn(k, x))

    def unbind(self, y: Tensor, k: Index) -> Tensor:
        if isinstance(k, Tensor):
            return self.by_rows(y, k, inverse=True)
        return self._undo(y, self.drawn(k, y))

    def bind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return self._undo(weight, self.drawn(k, weight))  # rows of W C are C^T w: C is orthogonal

    def unbind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        return self._act(weight, self.drawn(k, weight))

    def _act(self, x: Tensor, drawn: Tensor) -> Tensor:
        """C x of every row."""
        raise NotImplementedError

    def _undo(self, x: Tensor, drawn: Tensor) -> Tensor:
        """C^T x of every row."""
        raise NotImplementedError


class Rotation(Matrix):
    """Uniform (Haar) on the orthogonal group O(d): Q of a Gaussian matrix's QR, with the signs of R's diagonal folded
    in; without them Q is not uniform. A learned one starts so and is then any matrix."""

    kind = "rotation"

    def _draw(self, k: int) -> Tensor:
        gaussian = torch.randn(self.dim, self.dim, generator=self.stream(k), dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        exact = q * r.diagonal().sign()
        return exact.float() if self.learn else exact

    def _act(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x @ drawn.T

    def _undo(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x @ drawn

    def unbind(self, y: Tensor, k: Index) -> Tensor:
        if self.learn and not isinstance(k, Tensor):  # no longer orthogonal
            return torch.linalg.solve(self.drawn(k, y), y.T).T
        return super().unbind(y, k)

    def unbind_weight(self, weight: Tensor, k: int | float) -> Tensor:
        if self.learn:
            return torch.linalg.solve(self.drawn(k, weight).T, weight.T).T
        return super().unbind_weight(weight, k)

    def numbers(self, contexts: int) -> int:
        return contexts * self.dim**2


class Householder(Matrix):
    """I - 2 v v^T / |v|^2 with a Gaussian v."""

    kind = "householder"

    def _draw(self, k: int) -> Tensor:
        v = torch.randn(self.dim, generator=self.stream(k), dtype=torch.float64)
        return v / v.norm()

    def _act(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x - 2 * (x @ drawn)[..., None] * drawn

    def _undo(self, x: Tensor, drawn: Tensor) -> Tensor:
        return self._act(x, drawn)


class Permutation(Matrix):
    """(C x)_i = x_pi(i)."""

    kind = "permutation"

    def _draw(self, k: int) -> Tensor:
        return torch.randperm(self.dim, generator=self.stream(k))

    def _act(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x[..., drawn]

    def _undo(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x[..., torch.argsort(drawn)]


class SignedPermutation(Matrix):
    """(C x)_i = s_i x_pi(i)."""

    kind = "signed-permutation"

    def _draw(self, k: int) -> Tensor:
        generator = self.stream(k)
        order = torch.randperm(self.dim, generator=generator)
        signs = torch.randint(0, 2, (self.dim,), generator=generator) * 2 - 1
        return torch.stack([order, signs])

    def _act(self, x: Tensor, drawn: Tensor) -> Tensor:
        return x[..., drawn[0]] * drawn[1].to(x.dtype)

    def _undo(self, x: Tensor, drawn: Tensor) -> Tensor:
        return (x * drawn[1].to(x.dtype))[..., torch.argsort(drawn[0])]


FAMILIES: dict[Kind, type[Contexts]] = {
    family.kind: family
    for family in (
        Plain, Binary, Phasors, Rotation, Power, LocalMix, LocalMult, Hadamard, Householder, Permutation,
        SignedPermutation, Mask, Ternary, Normal,
    )
}  # fmt: skip


def make_contexts(
    kind: Kind, dim: int, seed: int = 0, layer: str = "", limit: int | None = None, learn: bool = False
) -> Contexts:
    """A family by name; arguments as of `Contexts`."""
    check_choice("--kind", kind, KINDS)
    return FAMILIES[kind](dim, seed, layer, limit, learn and kind != "none")


def derived_seed(*parts: object) -> int:
    """A seed from anything that prints; other parts give unrelated streams."""
    content = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")


def _spread(row: Tensor, x: Tensor, k: Index) -> Tensor:
    """A row for every sample, [B, d], for inputs [B, ..., d]: the same for all that lies between."""
    if not isinstance(k, Tensor) or x.dim() <= 2:
        return row
    return row.view(len(row), *[1] * (x.dim() - 2), row.shape[-1])


def _negative(k: Index) -> bool:
    return bool((k < 0).any()) if isinstance(k, Tensor) else k < 0
