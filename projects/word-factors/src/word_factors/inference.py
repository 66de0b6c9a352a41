"""Codes: the non-negative sparse combination of factors that explains a vector best (Section 2 of the paper).

    E(x, alpha) = 1/2 |x - Phi alpha|^2 + lam sum_j alpha_j,    alpha >= 0

Three ways to the same minimum: `fista`, the paper's; `ista`, the same without momentum; `solve`, which works on each
word's few candidate factors, to a certified tolerance. Dimensions: d coordinates, K factors, B vectors side by side as
columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from shared.capture import Captured, Graphs
from shared.config import UserError, check_range
from shared.device import compiled_function

ACTIVE = 1e-6
"""Activations above this count as active."""

COUPLINGS = 1 << 22  # inner products of candidates that `solve` holds at a time: 16 MiB

Form = Literal["auto", "residual", "gram"]
Kernel = Literal["auto", "words", "batched"]


class Codes(NamedTuple):
    """What inference returns.

    Attributes:
        alpha: [K, B] activations, non-negative.
        residual: [d, B] X - Phi alpha.
        gap: [B] how far each code is from satisfying the optimality conditions, in the units of lam (`kkt_gap`).
        steps: iterations done.
    """

    alpha: Tensor
    residual: Tensor
    gap: Tensor
    steps: int


def kkt_gap(alpha: Tensor, correlation: Tensor, lam: float) -> Tensor:
    """Largest violation of the optimality conditions of each column; zero at the minimum and nowhere else.

    At the minimum phi_j . r = lam where alpha_j > 0, and phi_j . r <= lam where alpha_j = 0.

    Args:
        alpha: [K, B]. correlation: [K, B] Phi^T r with r = X - Phi alpha.

    Returns: [B].
    """
    excess = correlation - lam
    return torch.where(alpha > 0, excess.abs(), excess.clamp(min=0)).amax(dim=0)


def energy(residual: Tensor, alpha: Tensor, lam: float) -> Tensor:
    """[B] E of each column, from its residual [d, B] and code [K, B]."""
    return residual.square().sum(dim=0) / 2 + lam * alpha.sum(dim=0)


def duality_gap(X: Tensor, phi: Tensor, alpha: Tensor, lam: float) -> Tensor:
    """[B] upper bound on how far E lies above its minimum: E minus the dual objective at the scaled residual.

    The dual is max 1/2 |x|^2 - 1/2 |x - theta|^2 subject to Phi^T theta <= lam.
    """
    residual = X - phi @ alpha
    largest = (phi.T @ residual).amax(dim=0).clamp(min=torch.finfo(X.dtype).tiny)
    theta = residual * (lam / largest).clamp(max=1.0)
    dual = (X.square().sum(dim=0) - (X - theta).square().sum(dim=0)) / 2
    return energy(residual, alpha, lam) - dual


def lipschitz(phi: Tensor) -> float:
    """lambda_max(Phi Phi^T), exact or from above: an estimate from below would let the step diverge behind the clamp at
    zero. On CUDA it is `spectral_bound`, a few products in place of an eigendecomposition, which takes a GPU longer
    than the codes do."""
    d, K = phi.shape
    gram = phi @ phi.T if d <= K else phi.T @ phi
    if gram.is_cuda:
        return float(spectral_bound(gram))
    # On Apple's GPUs there is no double precision.
    return float(torch.linalg.eigvalsh((gram.cpu() if gram.device.type == "mps" else gram).double())[-1])


def spectral_bound(gram: Tensor, squarings: int = 8) -> Tensor:
    """An upper bound on lambda_max of a positive semidefinite matrix [n, n]: the Frobenius norm of its power 2^s, to
    the power 2^-s, at most n^(2^-s / 2) too large (1 % for n = 500 and s = 8)."""
    power = gram.double()
    scale = torch.zeros((), dtype=power.dtype, device=power.device)  # log of the norms taken out so far
    for s in range(squarings + 1):
        norm = torch.linalg.matrix_norm(power)
        scale = scale + norm.log() / 2**s
        power = power / norm
        if s < squarings:
            power = power @ power
    return scale.exp()


def lam_max(X: Tensor, phi: Tensor) -> float:
    """The smallest lam at which every code is zero: the largest phi_j . x."""
    return float((phi.T @ X).max())


def check_shapes(X: Tensor, phi: Tensor, lam: float) -> None:
    """Raise `UserError` unless X [d, B], Phi [d, K] and lam >= 0 fit together."""
    if X.dim() != 2 or phi.dim() != 2 or X.shape[0] != phi.shape[0]:
        raise UserError("vectors", f"shape {list(X.shape)}", f"[d, B] with d = {phi.shape[0]} of the dictionary")
    check_range("--lam", lam, 0)


def fista(
    X: Tensor,
    phi: Tensor,
    lam: float,
    n_steps: int,
    tol: float | None = None,
    *,
    start: Tensor | None = None,
    restart: bool = False,
    form: Form = "auto",
    momentum: bool = True,
    check_every: int = 10,
    compile: bool = False,
    recorded: RecordedSteps | None = None,
) -> Codes:
    """Non-negative FISTA: proximal gradient steps of size 1 / lambda_max(Phi Phi^T) with Nesterov's momentum.

    Args:
        X: [d, B] vectors. phi: [d, K] dictionary. lam: weight of the activations.
        n_steps: steps at most.
        tol: stop once every column's `kkt_gap` is at most tol * lam; None for all steps.
        start: [K, B] activations to start from; default zero.
        restart: drop a column's momentum whenever it points uphill.
        form: `residual` computes Phi^T (X - Phi y), 4 d K operations a vector; `gram` (Phi^T Phi) y, 2 K^2; `auto`
            takes the cheaper one.
        momentum: False for ISTA.
        check_every: steps between tests of `tol`.
        compile: fuse what surrounds the products of a step by `torch.compile`; for a fixed number of steps with
            momentum and without restarts, other calls run as they are.
        recorded: replays the steps as one graph, in the same calls.

    Raises:
        UserError: shapes that do not fit, a negative lam.
    """
    check_shapes(X, phi, lam)
    d, K = phi.shape
    eta = 1.0 / max(lipschitz(phi), torch.finfo(X.dtype).tiny)
    gram_form = form == "gram" or (form == "auto" and 2 * d >= K)
    # One matrix and one constant a call: y - eta (G y - Phi^T X + lam) = (I - eta G) y + eta (Phi^T X - lam).
    mix = torch.eye(K, dtype=X.dtype, device=X.device).sub_(phi.T @ phi, alpha=eta) if gram_form else phi
    push = (phi.T @ X).sub_(lam).mul_(eta) if gram_form else X
    a = torch.zeros(K, X.shape[1], dtype=X.dtype, device=X.device) if start is None else start.clone()
    y, new = a.clone(), torch.empty_like(a)
    t: float | Tensor = torch.ones(X.shape[1], dtype=X.dtype, device=X.device) if restart else 1.0
    steps = 0
    fixed = momentum and not restart and tol is None
    if recorded is not None and fixed:
        a, steps = recorded(push, mix, a, eta, lam, n_steps, gram_form), n_steps
    elif compile and fixed:
        a, steps = _fused_steps(push, mix, a, eta, lam, n_steps, gram_form), n_steps
    while steps < n_steps:
        if gram_form:
            torch.addmm(push, mix, y, out=new)
        else:
            residual = torch.addmm(X, phi, y, alpha=-1)  # [d, B]
            torch.addmm(y, phi.T, residual, alpha=eta, out=new).sub_(eta * lam)
        new.clamp_(min=0)
        if momentum:
            if isinstance(t, Tensor):  # O'Donoghue and Candes: restart where momentum and gradient step disagree
                t = torch.where(((y - new) * (new - a)).sum(dim=0) > 0, 1.0, t)
                following: float | Tensor = (1 + torch.sqrt(1 + 4 * t * t)) / 2
            else:
                following = (1 + math.sqrt(1 + 4 * t * t)) / 2
            weight = 1 + (t - 1) / following
            t = following
            torch.lerp(a, new, weight, out=y)  # new + (t - 1) / t' (new - a)
        else:
            y.copy_(new)
        a, new = new, a
        steps += 1
        if tol is not None and steps % check_every == 0 and steps < n_steps:
            gap = kkt_gap(a, phi.T @ (X - phi @ a), lam)
            if bool((gap <= tol * (lam or 1.0)).all()):
                break
    residual = X - phi @ a
    return Codes(a, residual, kkt_gap(a, phi.T @ residual, lam), steps)


class RecordedSteps:
    """Runs of a fixed number of FISTA steps as graphs: two products and three small operations a step, which without
    one would wait for Python thousands of times a batch.

    Args:
        graphs: what records them.
    """

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs
        self.captured: dict[tuple[int, bool], Captured] = {}

    def __call__(
        self, push: Tensor, mix: Tensor, start: Tensor, eta: float, lam: float, n_steps: int, gram_form: bool
    ) -> Tensor:
        """[K, B] activations after `n_steps` of `fista` from `start`."""
        key = (n_steps, gram_form)
        if key not in self.captured:
            self.captured[key] = Captured(functools.partial(_fixed_steps, n_steps, gram_form), self.graphs)
        shrink = torch.full((), eta * lam, dtype=start.dtype, device=start.device)
        back = mix if gram_form else (mix * eta).T  # what brings the residual back to activations; of no use to `gram`
        alpha = self.captured[key](key, push, mix, back, start, shrink)["alpha"]
        assert isinstance(alpha, Tensor)
        return alpha


def _fixed_steps(
    n_steps: int, gram_form: bool, push: Tensor, mix: Tensor, back: Tensor, start: Tensor, shrink: Tensor
) -> dict[str, Tensor | float]:
    """The steps of `fista` as a function of tensors alone, but for their number."""
    a, y, new = start.clone(), start.clone(), torch.empty_like(start)
    for weight in _momenta(n_steps):
        if gram_form:
            torch.addmm(push, mix, y, out=new)
        else:
            torch.addmm(y, back, torch.addmm(push, mix, y, alpha=-1), out=new).sub_(shrink)
        new.clamp_(min=0)
        torch.lerp(a, new, weight, out=y)
        a, new = new, a
    return {"alpha": a}


def _momenta(n_steps: int) -> list[float]:
    """1 + (t - 1) / t' of each step, what `lerp` takes from the last activations to the point of the next gradient."""
    t, weights = 1.0, []
    for _ in range(n_steps):
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        weights.append(1 + (t - 1) / following)
        t = following
    return weights


def _fused_steps(
    push: Tensor, mix: Tensor, start: Tensor, eta: float, lam: float, n_steps: int, gram_form: bool
) -> Tensor:
    """[K, B] activations after `n_steps` of `fista` from `start`, by a compiled step."""
    step = _compiled_step(gram_form)
    a, y = start, start
    # Numbers travel as tensors: a step that saw another number would be compiled anew.
    scales = torch.tensor([eta, eta * lam], dtype=start.dtype, device=start.device)
    for weight in torch.tensor(_momenta(n_steps), dtype=start.dtype, device=start.device):
        a, y = step(push, mix, a, y, weight, scales)
    return a


@functools.cache
def _compiled_step(gram_form: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """One step (push, mix, a, y, weight, scales) -> (a, y), compiled."""

    def gram(push: Tensor, mix: Tensor, a: Tensor, y: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.addmm(push, mix, y).clamp(min=0)
        return new, torch.lerp(a, new, weight)

    def residual(X: Tensor, phi: Tensor, a: Tensor, y: Tensor, weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        correlation = phi.T @ torch.addmm(X, phi, y, alpha=-1)
        new = (y + scales[0] * correlation - scales[1]).clamp(min=0)
        return new, torch.lerp(a, new, weight)

    return compiled_function(gram if gram_form else residual)


def ista(X: Tensor, phi: Tensor, lam: float, n_steps: int, tol: float | None = None, **options: object) -> Codes:
    """`fista` without momentum, for comparison."""
    return fista(X, phi, lam, n_steps, tol, momentum=False, **options)  # pyright: ignore[reportArgumentType]


def solve(
    X: Tensor,
    phi: Tensor,
    lam: float,
    tol: float = 1e-4,
    *,
    candidates: int = 16,
    max_rounds: int = 20,
    chunk: int = 2048,
    kernel: Kernel = "auto",
) -> Codes:
    """Codes to a certified tolerance, by working sets.

    A code has a dozen active factors among hundreds. Each vector gets a few of its own: active factors and those with
    the largest correlation. The small problems, taken from Phi^T Phi, are solved by sweeps of coordinate descent, which
    find the active factors, and by linear systems, which give their activations. The optimality conditions are checked
    on all K factors, and vectors that violate them go round again. The minimum is that of `fista`, reached many times
    faster; `Codes.steps` counts the rounds.

    Args:
        X: [d, B]. phi: [d, K] with unit columns. lam: weight of the activations, positive.
        tol: largest `kkt_gap` over lam. max_rounds: rounds at most. chunk: vectors at a time, which bounds memory.
        candidates: of a vector at first, in the batched kernel.
        kernel: `words` goes through the vectors one by one on the CPU, compiled by numba (`descent`); `batched` solves
            all side by side with torch, and leaves to `words` those it cannot finish (codes of many factors, factors
            that resemble one another); `auto` takes `batched` on CUDA devices.

    Raises:
        UserError: shapes that do not fit, lam not positive.
    """
    check_shapes(X, phi, lam)
    check_range("--lam", lam, 0, open_low=True)
    by_words = kernel == "words" or (kernel == "auto" and X.device.type != "cuda")
    gram = phi.T @ phi  # [K, K]
    parts: list[Tensor] = []
    gaps: list[Tensor] = []
    rounds = 0
    for piece in X.split(chunk, dim=1):
        if by_words:
            alpha, gap, used = _solve_words(piece.T @ phi, gram, lam, tol, max_rounds)
            gaps.append(gap)
        else:
            push = piece.T @ phi
            alpha, used = _solve_piece(push, gram, lam, tol, candidates, max_rounds)
            left = kkt_gap(alpha.T, (push - alpha @ gram).T, lam) > tol * lam
            if bool(left.any()):
                alpha[left], _, more = _solve_words(push[left], gram, lam, tol, max_rounds)
                used = max(used, more)
        parts.append(alpha)
        rounds = max(rounds, used)
    codes = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else X.new_zeros(0, phi.shape[1])  # [B, K]
    alpha = codes.T
    if gaps and X.device.type == "cpu":  # the kernel has looked at all K factors; a code is sparse: so is what it makes
        from scipy import sparse

        made: Any = sparse.csr_array(codes.numpy()) @ phi.T.numpy()
        return Codes(alpha, X - torch.from_numpy(made).T, torch.cat(gaps), rounds)
    residual = X - phi @ alpha
    return Codes(alpha, residual, kkt_gap(alpha, phi.T @ residual, lam), rounds)


def _solve_words(push: Tensor, gram: Tensor, lam: float, tol: float, max_rounds: int) -> tuple[Tensor, Tensor, int]:
    """alpha [B, K] from push [B, K] = X^T Phi, what is left of the conditions [B], and the rounds it took; computed on
    the CPU."""
    from word_factors.descent import solve_words  # late: numba takes half a second to import

    here, matrix = push.cpu().numpy(), gram.cpu().numpy()
    alpha, gaps, rounds = solve_words(here, matrix, lam, tol, max_rounds, torch.get_num_threads())
    return torch.from_numpy(alpha).to(push.device), torch.from_numpy(gaps).to(push.device), rounds


def _solve_piece(
    push: Tensor, gram: Tensor, lam: float, tol: float, candidates: int, max_rounds: int
) -> tuple[Tensor, int]:
    """alpha [B, K] from push [B, K] = X^T Phi, and the rounds it took."""
    K = push.shape[1]
    alpha = torch.zeros_like(push)
    todo = torch.arange(len(push), device=push.device)
    size, sweeps, rounds, whole = min(candidates, K), 4, 0, 0
    # Twice with all factors as candidates: what is left then is for the other kernel.
    while len(todo) and rounds < max_rounds and whole < 2:
        rounds += 1
        whole += size == K
        again = []
        for rows in todo.split(max(1, COUPLINGS // size**2)):
            a, b = alpha[rows], push[rows]
            correlation = b if rounds == 1 else b - a @ gram
            # Active factors first, then those that push hardest to become active. Where more are active than there
            # is room for, those left out keep their activations for this round.
            score = torch.where(a > 0, float("inf"), correlation)
            chosen = score.topk(size, dim=1, sorted=False).indices  # [b, s]
            values = _descend(a.gather(1, chosen), correlation.gather(1, chosen) - lam, chosen, gram, sweeps, tol * lam)
            a = a.scatter_(1, chosen, values)
            alpha[rows] = a
            gap = kkt_gap(a.T, (b - a @ gram).T, lam)
            again.append(rows[gap > tol * lam])
        todo = torch.cat(again)
        size, sweeps = min(size + candidates // 2 if rounds < 4 else 2 * size, K), min(2 * sweeps, 32)
    return alpha, rounds


def _descend(values: Tensor, excess: Tensor, chosen: Tensor, gram: Tensor, sweeps: int, goal: float) -> Tensor:
    """Activations of every vector's candidates: coordinate descent, then an active set as Lawson and Hanson's.

    Args:
        values: [b, s] activations to start from. excess: [b, s] phi_j . r - lam there.
        chosen: [b, s] which factors they are.
        sweeps: of coordinate descent; of the active set as many corrections, at most.
        goal: violation of optimality at which a vector is done.

    Returns: [b, s].
    """
    values, excess = values.clone(), excess.clone()
    coupling = gram[chosen.T.unsqueeze(-1), chosen.unsqueeze(0)]  # [s, b, s]
    for _ in range(sweeps):
        for i in range(chosen.shape[1]):
            new = (values[:, i] + excess[:, i]).clamp_(min=0)  # phi_i has norm 1: the minimum along this coordinate
            change = new - values[:, i]
            values[:, i] = new
            excess.addcmul_(change.unsqueeze(1), coupling[i], value=-1)
    todo = torch.arange(len(values), device=values.device)
    # In double precision: candidates of a vector are often close to one another.
    a, matrix = values.double(), coupling.transpose(0, 1).double()
    target = excess.double() + torch.einsum("bij,bj->bi", matrix, a)  # (Phi^T x)_j - lam
    for turn in range(sweeps):
        slack = target - torch.einsum("bij,bj->bi", matrix, a)
        active = a > 0
        if turn:  # let in the factor that pushes hardest
            push = torch.where(active, -torch.inf, slack)
            hardest = push.argmax(dim=1, keepdim=True)
            active = active.scatter(1, hardest, push.gather(1, hardest) > 0.5 * goal)
        system = matrix * (active.unsqueeze(1) & active.unsqueeze(2))
        system.diagonal(dim1=1, dim2=2).masked_fill_(~active, 1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        solved = torch.cholesky_solve((target * active).unsqueeze(2), factor).squeeze(2) * active
        solved = torch.where((failed == 0).unsqueeze(1), solved, a)
        # As far towards the solution as no activation turns negative; the one that stops the way leaves.
        shrinking = active & (solved < 0)
        reach = torch.where(shrinking, a / (a - solved).clamp(min=1e-300), torch.inf)
        length, first = reach.min(dim=1, keepdim=True)
        a = a + length.clamp(max=1.0) * (solved - a)
        a = torch.where(shrinking.any(dim=1, keepdim=True), a.scatter(1, first, 0.0), a).clamp(min=0)
        values[todo] = a.to(values.dtype)
        gap = kkt_gap(a.T, (target - torch.einsum("bij,bj->bi", matrix, a)).T, 0.0)
        open_ = gap > 0.5 * goal
        if not bool(open_.any()):
            break
        todo, a, matrix, target = todo[open_], a[open_], matrix[open_], target[open_]
    return values
