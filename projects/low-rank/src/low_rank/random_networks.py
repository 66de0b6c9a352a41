"""Networks drawn at random, and the rank of what they compute: the bias that is there before any training.

    ranks = product_ranks(64, depth=4, draws=1000, init="normal", generator=generator)      # of W_4 W_3 W_2 W_1
    ranks = gram_ranks(x, depth=4, width=128, draws=50, generator=generator)                # of a ReLU network on x
    dominance(shallow_ranks, deep_ranks).holds                                              # is the deeper one lower?

"The volume of parameters whose rank is at most r" is the distribution function of the rank under the distribution of
the weights (section 3 of the paper); linear networks are judged by the product of their matrices, others by the Gram
matrix of their last hidden layer on a batch of inputs.

A network takes all its numbers from the generator before the next one does: drawing ten networks is drawing one ten
times, and the chunks that bound the memory change nothing.

Dimension letters: S networks, N samples, D inputs, w width, d depth, n side of square matrices.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from low_rank.models import activation_module, gain
from low_rank.names import ACTIVATIONS
from low_rank.rank import effective_rank, gram_effective_rank
from shared.config import UserError, check_choice, check_range

RESIDUALS: Mapping[str, str] = {
    "none": "h <- act(h W)",
    "post": "h <- h + act(h W)",
    "block": "h <- h + act(h W) V",
    "block-scaled": "h <- h + act(h W) V / sqrt(d)",
    "branch": "h <- act(h W) V, the block without its skip",
    "linear": "h <- h + h V",
}
"""What a layer does. The first layer of `none` and `post` is act(x W_1), where nothing can be skipped for the change of
width; the other kinds start from a linear map h = x W_0 to the width."""
NORMALISATIONS: Mapping[str, str] = {
    "none": "none",
    "batch": "over the samples, with their own statistics, before the activation",
    "layer": "over the features, before the activation",
}
EPSILON = 1e-5  # of normalisation, as in torch
CUT = 2.0  # standard deviations at which `truncated` ends
SMALL = 64  # side of matrices whose singular values are always taken on the CPU
ROUNDING = 64  # unit roundoffs that features must vary by to count as different
BYTES = 256 * 2**20  # that a chunk may take, about, where no chunk is given


# -- weights ----------------------------------------------------------------------------------------------------------


def _normal(noise: Tensor) -> Tensor:
    return noise / math.sqrt(noise.shape[-1])


def _uniform(noise: Tensor) -> Tensor:
    return (2 * noise - 1) * math.sqrt(3 / noise.shape[-1])


def _xavier(noise: Tensor) -> Tensor:
    return noise * math.sqrt(2 / (noise.shape[-1] + noise.shape[-2]))


def _orthogonal(noise: Tensor) -> Tensor:
    wide = noise.shape[-2] < noise.shape[-1]
    q, r = torch.linalg.qr(noise.mT if wide else noise)
    # The signs of R's diagonal make the factor unique, and so uniform over orthogonal matrices.
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(noise)
    q = q * sign.unsqueeze(-2)
    return q.mT if wide else q


def _truncated(noise: Tensor) -> Tensor:
    beyond = math.erfc(CUT / math.sqrt(2))  # probability of what is cut off
    within = torch.erfinv((1 - beyond) * (2 * noise - 1)) * math.sqrt(2)
    density = math.exp(-(CUT**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * CUT * density / (1 - beyond)
    return within / math.sqrt(variance * noise.shape[-1])


INITS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "normal": _normal,
    "uniform": _uniform,
    "xavier": _xavier,
    "kaiming": _normal,
    "orthogonal": _orthogonal,
    "truncated": _truncated,
}
"""Distributions of weights, as maps of noise [..., out, in]: uniform on [0, 1) for those in `FROM_UNIFORM`, else
standard normal."""
FROM_UNIFORM = ("uniform", "truncated")
WITH_GAIN = ("kaiming", "orthogonal")  # that are scaled by the activation's gain


def _noise(init: str, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
    make = torch.rand if init in FROM_UNIFORM else torch.randn
    return make(*shape, generator=generator, dtype=dtype, device=generator.device)


def init_gain(init: str, activation: str) -> float:
    """Factor on weights that feed an activation: its own (`models.gain`) for kaiming and orthogonal ones, else 1."""
    check_choice("--init", init, INITS)
    return gain(activation) if init in WITH_GAIN else 1.0


def draw_weights(
    init: str,
    draws: int,
    outputs: int,
    inputs: int,
    generator: Generator,
    *,
    gain: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Random matrices: [S, out, in], on the generator's device.

    Args:
        init: the distribution; entries are independent with mean 0 and variance
            normal, kaiming: 1/in, normal;
            uniform: 1/in, uniform;
            truncated: 1/in, normal up to two standard deviations (of the uncut normal);
            xavier: 2/(in + out), normal;
            orthogonal: uniform over matrices with orthonormal columns (rows where out < in) instead.
        draws: S. gain: factor on all entries.

    Raises:
        UserError: unknown distribution; sizes below 1.
    """
    check_choice("--init", init, INITS)
    for name, size in (("draws", draws), ("outputs", outputs), ("inputs", inputs)):
        check_range(name, size, 1)
    noise = torch.stack([_noise(init, (outputs, inputs), generator, dtype) for _ in range(draws)])
    return gain * INITS[init](noise)


# -- products ---------------------------------------------------------------------------------------------------------


def end_to_end(ws: Sequence[Tensor]) -> Tensor:
    """The matrix that layers x -> W_l x compute together, W_d ... W_1: [..., n, n], batched.

    Args:
        ws: W_1, ..., W_d, each [..., n, n]; other shapes [..., out, in] will do where they fit.

    Raises:
        UserError: no matrices, or matrices that do not fit.
    """
    if not ws:
        raise UserError("matrices", "none", "one or more")
    for l, (first, second) in enumerate(itertools.pairwise(ws), 2):
        if second.shape[-1] != first.shape[-2]:
            raise UserError(f"matrix {l}: shape", list(second.shape), f"[..., out, {first.shape[-2]}]")
    return functools.reduce(lambda product, w: w @ product, ws)


def product_ranks(
    n: int,
    depth: int,
    draws: int,
    init: str = "normal",
    generator: Generator | None = None,
    *,
    gain: float = 1.0,
    dtype: torch.dtype = torch.float64,
    chunk: int | None = None,
) -> Tensor:
    """Effective ranks, in nats, of random products W_d ... W_1 of n x n matrices: [S], double precision.

    Args:
        init: of the factors, as in `draw_weights`. generator: whose device is used; default: a new one with seed 0.
        gain: factor on all factors; it changes no rank.
        dtype: of the products; their singular values are taken in double precision anyhow.
        chunk: products that are formed at once; it bounds the memory and changes no number. Default: about 256 MB.

    Raises:
        UserError: an unknown distribution; sizes below 1; products that vanish or overflow in this precision.
    """
    check_choice("--init", init, INITS)
    for name, size in (("--n", n), ("--depth", depth), ("--draws", draws), ("chunk", chunk)):
        check_range(name, size, 1)
    generator = generator or Generator().manual_seed(0)
    found = []
    for count in _chunks(draws, chunk, 3 * depth * n * n * dtype.itemsize):
        noise = torch.stack([_noise(init, (depth, n, n), generator, dtype) for _ in range(count)])
        factors = gain * INITS[init](noise)
        product = end_to_end(factors.unbind(1))
        _check_size(product, depth, "a product of matrices")
        found.append(in_threads(effective_rank, product))
    return torch.cat(found)


def _chunks(total: int, chunk: int | None, size: int) -> Iterator[int]:
    """Parts of a total, of `chunk` items or of as many as fit in `BYTES` at `size` bytes each."""
    chunk = chunk or max(1, BYTES // size)
    for start in range(0, total, chunk):
        yield min(chunk, total - start)


def _check_size(values: Tensor, depth: int, what: str) -> None:
    """Refuse batches [S, ...] with a member that is not finite, or that is zero in a precision that is not the best."""
    hint = "Use float64, or a gain nearer to the one that keeps the size."
    if not bool(values.isfinite().all()):
        raise UserError("--depth", depth, f"a depth at which {what} is finite in {_short(values.dtype)}", hint)
    vanished = int((values.flatten(1).abs().amax(dim=1) == 0).sum())
    if vanished and values.dtype != torch.float64:
        valid = f"a depth at which {what} does not vanish in {_short(values.dtype)} ({vanished} of {len(values)} did)"
        raise UserError("--depth", depth, valid, hint)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_threads(measure: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """`measure` of a batch [S, m, n].

    LAPACK takes matrices one after the other, and its own threads are of no use on small ones: every thread gets a part
    of the batch. Small matrices of other devices come here too, as LAPACK is faster than CUDA's solvers at them.
    """
    if min(matrices.shape[-2:]) <= SMALL and matrices.device.type != "cpu":
        return in_threads(measure, matrices.cpu()).to(matrices.device)
    threads = min(torch.get_num_threads(), len(matrices))
    if matrices.device.type != "cpu" or threads < 2:
        return measure(matrices)
    with ThreadPoolExecutor(threads) as pool:
        return torch.cat(list(pool.map(measure, matrices.chunk(threads))))


# -- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """Hidden layers of equal width, without biases.

    Attributes:
        inputs, width, depth: D, w, d.
        activation: one of `names.ACTIVATIONS`. residual: one of `RESIDUALS`.
        every: layers that a skip leads around; what is left over after the last skip has none.
        normalisation: one of `NORMALISATIONS`; without parameters.

    Raises:
        UserError: unknown names; sizes below 1; `every` given where there are no skips.
    """

    inputs: int
    width: int
    depth: int
    activation: str = "relu"
    residual: str = "none"
    every: int = 1
    normalisation: str = "none"

    def __post_init__(self) -> None:
        check_range("inputs", self.inputs, 1)
        check_range("--width", self.width, 1)
        check_range("--depth", self.depth, 1)
        check_choice("--activation", self.activation, ACTIVATIONS)
        check_choice("--skips", self.residual, RESIDUALS)
        check_choice("--normalisation", self.normalisation, NORMALISATIONS)
        check_range("layers around which a skip leads", self.every, 1, math.inf if self.skips else 1)

    @property
    def skips(self) -> bool:
        """Whether there are skip connections."""
        return self.residual not in ("none", "branch")

    @property
    def has_stem(self) -> bool:
        """Whether a linear map W_0 comes before all layers."""
        return self.residual not in ("none", "post")

    @property
    def has_branch(self) -> bool:
        """Whether a layer has a second matrix, V."""
        return self.residual in ("block", "block-scaled", "branch")

    @property
    def hidden(self) -> int:
        """Square matrices W after the first matrix."""
        return self.depth - (not self.has_stem)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of `Weights`, S left out, in the order in which a network is drawn."""
        square = (self.width, self.width)
        shapes = [(self.width, self.inputs), (self.hidden, *square)]
        return [*shapes, (self.depth, *square)] if self.has_branch else shapes

    @property
    def parameters(self) -> int:
        """Numbers in one network."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Weights:
    """Matrices of S networks of one architecture.

    Attributes:
        first: [S, w, D], W_0 or W_1. hidden: [S, hidden, w, w] those after it, V in linear residual networks.
            branch: [S, d, w, w] V of blocks, or None.
    """

    first: Tensor
    hidden: Tensor
    branch: Tensor | None = None

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, chosen: Tensor | slice) -> Weights:
        """Some of the networks: a mask [S], indices or a slice."""
        branch = None if self.branch is None else self.branch[chosen]
        return Weights(self.first[chosen], self.hidden[chosen], branch)

    @staticmethod
    def cat(parts: Sequence[Weights]) -> Weights:
        """Networks of one architecture, one after the other."""
        branches = [part.branch for part in parts if part.branch is not None]
        return Weights(
            torch.cat([part.first for part in parts]),
            torch.cat([part.hidden for part in parts]),
            torch.cat(branches) if branches else None,
        )


def draw(
    net: Architecture,
    draws: int,
    init: str = "kaiming",
    generator: Generator | None = None,
    *,
    gain: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Weights:
    """Random networks, on the generator's device.

    Args:
        init: as in `draw_weights`. generator: default: a new one with seed 0.
        gain: factor on matrices that feed an activation. Default: `init_gain`. Others (W_0, V) have 1.

    Raises:
        UserError: unknown distribution; no draws.
    """
    check_choice("--init", init, INITS)
    check_range("--draws", draws, 1)
    generator = generator or Generator().manual_seed(0)
    drawn = [[_noise(init, shape, generator, dtype) for shape in net.shapes] for _ in range(draws)]
    matrices = [INITS[init](torch.stack(noise)) for noise in zip(*drawn, strict=True)]
    fed = init_gain(init, net.activation) if gain is None else gain
    if not net.has_stem:
        matrices[0] = fed * matrices[0]
    if net.residual != "linear":
        matrices[1] = fed * matrices[1]
    return Weights(*matrices)


def forward(net: Architecture, weights: Weights, x: Tensor) -> Tensor:
    """The last hidden layer of every network on the same inputs: [N, D] to [S, N, w].

    Raises:
        UserError: inputs of another size; inputs or features that are not finite (names the layer).
    """
    if x.dim() != 2 or x.shape[1] != net.inputs or not len(x):
        raise UserError("inputs: shape", list(x.shape), f"[N, {net.inputs}]")
    _check_finite(x, "inputs")
    act = activation_module(net.activation)

    def layer(h: Tensor, w: Tensor, v: Tensor | None = None) -> Tensor:
        z = _normalise(h @ w.mT, net.normalisation)
        if net.residual == "linear":
            return z
        return act(z) if v is None else act(z) @ v.mT

    h = x @ weights.first.mT if net.has_stem else layer(x, weights.first)
    _check_finite(h, "features before layer 1" if net.has_stem else "features of layer 1")
    scale = 1 / math.sqrt(net.depth) if net.residual == "block-scaled" else 1.0
    held = h
    for l in range(net.hidden):
        h = layer(h, weights.hidden[:, l], None if weights.branch is None else weights.branch[:, l])
        if net.skips and (l + 1) % net.every == 0:
            h = held = held + scale * h
        _check_finite(h, f"features of layer {l + 2 - net.has_stem}")
    return h


def _normalise(z: Tensor, kind: str) -> Tensor:
    """Mean 0 and variance 1 of [S, N, w] over samples or features."""
    if kind == "none":
        return z
    dim = 1 if kind == "batch" else 2
    variance, mean = torch.var_mean(z, dim=dim, correction=0, keepdim=True)
    return (z - mean) * (variance + EPSILON).rsqrt()


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise UserError(what, "entries that are not finite", "finite numbers", "Use float64, or a smaller gain.")


def features(
    x: Tensor,
    depth: int,
    width: int,
    draws: int,
    activation: str = "relu",
    init: str = "kaiming",
    residual: str = "none",
    normalisation: str = "none",
    generator: Generator | None = None,
    *,
    every: int = 1,
    gain: float | None = None,
) -> Tensor:
    """The last hidden layer of random networks on inputs [N, D]: [S, N, w], in the precision of x.

    h_l = act(h_{l-1} W_l^T) from h_0 = x, without biases (section 3 of the paper), or with skip connections.

    Args:
        draws: S. activation, residual, normalisation, every: as in `Architecture`. init, gain: as in `draw`.
        generator: on the device of x; default: a new one with seed 0.

    Raises:
        UserError: as `Architecture`, `draw` and `forward`.
    """
    net = Architecture(x.shape[-1], width, depth, activation, residual, every, normalisation)
    return forward(net, draw(net, draws, init, _generator(generator, x), gain=gain, dtype=x.dtype), x)


def gram_ranks(
    x: Tensor,
    depth: int,
    width: int,
    draws: int,
    activation: str = "relu",
    init: str = "kaiming",
    residual: str = "none",
    normalisation: str = "none",
    generator: Generator | None = None,
    *,
    every: int = 1,
    gain: float | None = None,
    center: bool = False,
    normalize: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Effective ranks, in nats, of the Gram matrices of `features`: [S], double precision.

    Args:
        center, normalize: as in `rank.gram_effective_rank`.
        chunk: networks at once; it bounds the memory and changes no number. Default: about 256 MB.

    Raises:
        UserError: as `features`; features that vanish in a precision below float64. Warns of networks whose features
            are the same for all samples: their rank is 0.
    """
    net = Architecture(x.shape[-1], width, depth, activation, residual, every, normalisation)
    check_range("chunk", chunk, 1)
    check_range("--draws", draws, 1)
    generator = _generator(generator, x)
    size = (3 * net.parameters + 4 * len(x) * width) * x.dtype.itemsize
    found = []
    for count in _chunks(draws, chunk, size):
        h = forward(net, draw(net, count, init, generator, gain=gain, dtype=x.dtype), x)
        _check_size(h, depth, "the last hidden layer")
        found.append(feature_ranks(h, center=center, normalize=normalize))
    ranks = torch.cat(found)
    if constant := int((ranks == 0).sum()):
        warnings.warn(f"{constant} of {draws} networks have constant features: their rank is 0.", stacklevel=2)
    return ranks


def feature_ranks(features: Tensor, *, center: bool = False, normalize: bool = False) -> Tensor:
    """Effective ranks, in nats, of the Gram matrices of features [S, N, w]: [S]; exactly 0 for features that are
    constant up to rounding, of which centring would leave the rounding errors alone.

    Args:
        center, normalize: as in `rank.gram_effective_rank`.
    """
    resolution = ROUNDING * torch.finfo(features.dtype).eps
    features = features.double()
    spread = (features - features[:, :1]).abs().amax(dim=(1, 2))
    varied = spread > resolution * features.abs().amax(dim=(1, 2))
    ranks = features.new_zeros(len(features))
    if bool(varied.any()):
        measure = functools.partial(gram_effective_rank, center=center, normalize=normalize)
        ranks[varied] = in_threads(measure, features[varied])
    return ranks


def _generator(generator: Generator | None, x: Tensor) -> Generator:
    if generator is None:
        return Generator(x.device).manual_seed(0)
    if generator.device.type != x.device.type:
        raise UserError("generator: device", generator.device, f"{x.device}, that of the inputs")
    return generator


# -- volume -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dominance:
    """Whether one distribution function lies above another, as far as samples tell.

    Attributes:
        violation: the largest amount by which it lies below, at any r. excess: the largest by which it lies above.
        band: sum of the half-widths of the two bands.
        holds: no violation beyond the band. strict: an excess beyond the band.
    """

    violation: float
    excess: float
    band: float
    holds: bool
    strict: bool


def empirical_cdf(sample: Tensor, r: Tensor) -> Tensor:
    """Share of a sample [S] that is at most r: [...] to [...]. Of ranks: the share of volume of rank r or less.

    Raises:
        UserError: an empty sample.
    """
    if sample.dim() != 1 or not len(sample):
        raise UserError("sample: shape", list(sample.shape), "[S] with S >= 1")
    ordered = sample.sort().values
    return torch.searchsorted(ordered, r.to(ordered).contiguous(), right=True).double() / len(sample)


def dkw(n: int, alpha: float = 0.05) -> float:
    """Half-width of a band around the distribution function of n samples that holds the true one everywhere with
    probability 1 - alpha: sqrt(ln(2 / alpha) / (2n)) (Dvoretzky, Kiefer and Wolfowitz, 1956; Massart, 1990).

    Raises:
        UserError: n below 1, alpha outside (0, 1].
    """
    check_range("samples", n, 1)
    check_range("--level", alpha, 0, 1, open_low=True)
    return math.sqrt(math.log(2 / alpha) / (2 * n))


def dominance(lower: Tensor, upper: Tensor, alpha: float = 0.05) -> Dominance:
    """Is CDF_upper(r) >= CDF_lower(r) for all r, up to the two bands? (The paper's claim of volume, as a test.)

    Args:
        lower: [S] ranks of the shallower networks, whose distribution function ought to be the lower one.
        upper: [S'] ranks of the deeper ones. alpha: of each band; both hold with probability 1 - 2 alpha or more.

    Raises:
        UserError: as `dkw` and `empirical_cdf`; ranks that are not finite.
    """
    _check_finite(torch.cat([lower, upper]), "ranks")
    points = torch.cat([lower, upper])  # both functions are constant between these
    difference = empirical_cdf(upper, points) - empirical_cdf(lower, points)
    violation, excess = max(0.0, float(-difference.min())), max(0.0, float(difference.max()))
    band = dkw(len(lower), alpha) + dkw(len(upper), alpha)
    return Dominance(violation, excess, band, violation <= band, excess > band)
