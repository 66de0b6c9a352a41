"""Deep equilibrium models (Bai et al. 2019, 2020): the fixed point z* = f(z*) and its implicit gradient.

B batch, n numbers in one sample's state, m memory of Anderson's method.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solve:
    """How one search for a fixed point went.

    Attributes:
        residuals: ||f(z) - z|| / ||f(z)|| after each evaluation of f, of the worst sample in the batch.
        converged: whether every sample came under the tolerance.
    """

    residuals: tuple[float, ...]
    converged: bool

    @property
    def iterations(self) -> int:
        """Evaluations of f."""
        return len(self.residuals)


@dataclass
class FixedPoint:
    """The forward solve and, once the gradient has been taken, the backward one."""

    forward: Solve
    backward: Solve | None = None


def _mixing(g: Tensor, dg: Tensor) -> Tensor:
    """The combination c [B, m] of the columns of dg [B, n, m] with the smallest ||g - dg c||, for g [B, n].

    Normal equations of unit columns, by Cholesky: late columns are orders of magnitude smaller than early ones, and
    torch's batched LU has failed silently on the CPU. The ridge keeps collinear columns solvable.
    """
    scale = dg.norm(dim=1).clamp_min(torch.finfo(dg.dtype).tiny)  # [B, m]
    unit = dg / scale[:, None]
    gram = unit.mT @ unit  # [B, m, m]
    ridge = 100 * torch.finfo(dg.dtype).eps
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    factor, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(unit.mT @ g[:, :, None], factor)[:, :, 0] / scale


@torch.no_grad()
def anderson(
    f: Map, z: Tensor, *, memory: int = 5, beta: float = 1.0, iterations: int = 18, tolerance: float = 1e-3
) -> tuple[Tensor, Solve]:
    """Anderson acceleration (Walker & Ni 2011, type II) of z <- f(z), each sample on its own.

    With residuals g_k = f(z_k) - z_k and differences dG, dZ over the last m steps,
    z_{k+1} = z_k + beta g_k - (dZ + beta dG) c,   c = argmin ||g_k - dG c||.

    Args:
        f: maps states [B, n] to states [B, n].
        z: the start [B, n].
        memory: m, differences kept; 0 is the plain iteration.
        beta: damping of the step along the residual.
        iterations: most evaluations of f.
        tolerance: stop when the relative residual of every sample is below it.

    Returns:
        f(z) of the iterate z with the smallest residual, per sample, and how it went. A state that stops being
        finite ends the search; the best one before it is returned.
    """
    if iterations < 1:
        raise ValueError(f"iterations: {iterations}; at least one evaluation is needed")
    states: deque[Tensor] = deque(maxlen=memory + 1)
    gaps: deque[Tensor] = deque(maxlen=memory + 1)
    best = torch.zeros_like(z)
    best_residual = torch.full_like(z[:, :1], math.inf)  # [B, 1]
    residuals: list[float] = []
    for _ in range(iterations):
        image = f(z).to(z.dtype)  # under autocast f may answer in half precision; the mixing must not
        g = image - z
        residual = g.norm(dim=1, keepdim=True) / image.norm(dim=1, keepdim=True).clamp_min(1e-12)
        better = residual < best_residual
        best, best_residual = torch.where(better, image, best), torch.where(better, residual, best_residual)
        residuals.append(residual.max().item() if len(z) else 0.0)
        if not math.isfinite(residuals[-1]) or best_residual.max().item() < tolerance:
            break
        states.append(z)
        gaps.append(g)
        z = z + beta * g
        if len(gaps) > 1:
            with torch.autocast(z.device.type, enabled=False):
                dz = torch.stack([b - a for a, b in zip(states, list(states)[1:], strict=False)], dim=2)  # [B, n, m]
                dg = torch.stack([b - a for a, b in zip(gaps, list(gaps)[1:], strict=False)], dim=2)
                z = z - ((dz + beta * dg) @ _mixing(g, dg)[:, :, None])[:, :, 0]
    return best, Solve(tuple(residuals), bool((best_residual < tolerance).all()))


class _ImplicitGradient(torch.autograd.Function):
    """The identity forward; backward replaces g by the solution of u = J^T u + g, J = df/dz at the fixed point."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, z: Tensor, report: FixedPoint, settings: dict[str, Any]) -> Tensor:
        ctx.save_for_backward(image, z)
        ctx.report, ctx.settings = report, settings
        return image.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, z = ctx.saved_tensors
        (g,) = gradients

        def adjoint(u: Tensor) -> Tensor:
            return torch.autograd.grad(image, z, u, retain_graph=True)[0] + g

        u, ctx.report.backward = anderson(adjoint, g, **ctx.settings)
        return u, None, None, None


def fixed_point(
    f: Map,
    z: Tensor,
    *,
    memory: int = 5,
    beta: float = 1.0,
    forward_iterations: int = 18,
    backward_iterations: int = 20,
    tolerance: float = 1e-3,
) -> tuple[Tensor, FixedPoint]:
    """z* = f(z*) with the gradient of the fixed point, not of the iterations that found it.

    For a loss L, dL/dp = u^T df/dp with u = J^T u + dL/dz*, J = df/dz* (implicit function theorem): memory does not
    grow with the iterations. Parameters and inputs reach the gradient through f's closure; the start z does not.

    Args:
        f: maps states [B, n] to states [B, n]; samples must not look at each other (no batch norm).
        z: the start [B, n].
        memory, beta, tolerance: see `anderson`; they hold for both solves.
        forward_iterations, backward_iterations: most evaluations of f, and of J^T.

    Returns:
        z* [B, n] and the report, whose `backward` is filled in when the gradient is taken.
    """
    z, solve = anderson(f, z.detach(), memory=memory, beta=beta, iterations=forward_iterations, tolerance=tolerance)
    report = FixedPoint(solve)
    if not torch.is_grad_enabled():
        return z, report
    z.requires_grad_()
    image = f(z)
    settings = {"memory": memory, "beta": beta, "iterations": backward_iterations, "tolerance": tolerance}
    return _ImplicitGradient.apply(image, z, report, settings), report  # pyright: ignore[reportReturnType]
