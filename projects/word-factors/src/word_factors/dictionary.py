"""The dictionary step: how Phi moves once a batch is encoded. No back-propagation.

`quadratic_update` is the paper's: a gradient step on the weighted residual in which each factor's step is divided by a
running mean of its squared activation. `OnlineUpdate` is that of Mairal et al. (2010): block coordinate descent on
accumulated statistics, which converges in a few passes over a vocabulary.

Dimensions: d coordinates, K factors, B words of the batch, as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from word_factors.inference import Codes

UpdateName = Literal["quadratic", "online"]
UPDATES: tuple[UpdateName, ...] = get_args(UpdateName)
Reduce = Callable[[Tensor], Tensor]
"""Mean of a tensor over all processes."""


def alone(tensor: Tensor) -> Tensor:
    """The mean over one process."""
    return tensor


def unit_columns(phi: Tensor) -> Tensor:
    """Columns scaled to norm 1."""
    return phi / phi.norm(dim=0, keepdim=True).clamp(min=torch.finfo(phi.dtype).tiny)


def random_dictionary(d: int, K: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """[d, K] normal numbers with unit columns, the published start."""
    return unit_columns(torch.randn(d, K, generator=generator, dtype=dtype))


def coherence(phi: Tensor) -> Tensor:
    """Largest |phi_i . phi_j| over i != j."""
    gram = phi.T @ phi
    return gram.fill_diagonal_(0).abs().amax()


def quadratic_update(
    phi: Tensor, R: Tensor, alpha: Tensor, h: Tensor, step: float, floor: float, weight: Tensor, reduce: Reduce = alone
) -> tuple[Tensor, Tensor]:
    """Phi + step [(R c) alpha^T / B] diag(1 / (h + floor)), columns scaled to norm 1.

    Args:
        phi: [d, K]. R: [d, B] X - Phi alpha. alpha: [K, B]. h: [K] running mean of alpha^2, of this batch included.
        step: s. floor: epsilon_0, which bounds the step of a factor hardly used. weight: [B] c.

    Returns: (Phi [d, K], norm of the change before scaling).
    """
    gradient = reduce((R * weight) @ alpha.T / alpha.shape[1])  # [d, K]
    change = step * gradient / (h + floor)
    return unit_columns(phi + change), change.norm()


class Averages:
    """Running means over batches, of length T: squared activation h, activation, energy of signal and residual.

    They start at zero, as in the published code, so that the first steps are up to 1 / floor times as long, until h
    has filled. `correct` divides h by 1 - (1 - 1/T)^t instead.

    Args:
        K: factors. length: T, in batches. correct: take the bias of the start away.
    """

    def __init__(self, K: int, length: int, correct: bool, device: torch.device | str = "cpu") -> None:
        self.length, self.correct, self.count = length, correct, 0
        self.h = torch.zeros(K, device=device)
        self.activity = torch.zeros(K, device=device)
        self.energies = torch.zeros(2, device=device)  # signal, residual

    def update(self, X: Tensor, codes: Codes, reduce: Reduce = alone) -> None:
        """Take in a batch: X [d, B] and its codes."""
        alpha = codes.alpha
        fresh = torch.cat(
            [
                alpha.square().mean(dim=1),
                alpha.mean(dim=1),
                torch.stack([X.square().sum(dim=0).mean(), codes.residual.square().sum(dim=0).mean()]),
            ]
        )
        fresh = reduce(fresh)
        K, share = len(self.h), 1 / self.length
        self.count += 1
        self.h = torch.lerp(self.h, fresh[:K], share)
        self.activity = torch.lerp(self.activity, fresh[K : 2 * K], share)
        self.energies = torch.lerp(self.energies, fresh[2 * K :], share)

    def mean_square(self) -> Tensor:
        """[K] what the step is divided by: h, corrected for its start at zero if asked for."""
        return self.h / (1 - (1 - 1 / self.length) ** self.count) if self.correct else self.h

    def snr(self) -> Tensor:
        """Signal-to-noise ratio in decibels."""
        signal, noise = self.energies.clamp(min=torch.finfo(torch.float32).tiny)
        return 10 * torch.log10(signal / noise)

    def state_dict(self) -> dict[str, object]:
        return {"h": self.h, "activity": self.activity, "energies": self.energies, "count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        for name in ("h", "activity", "energies"):
            value = state[name]
            assert isinstance(value, Tensor)
            setattr(self, name, value.to(self.h.device))
        self.count = int(state["count"])  # pyright: ignore[reportArgumentType]


def annealed(step: float, final: float | None, progress: float, decay: Literal["exponential", "inverse"]) -> float:
    """Step size at `progress` in [0, 1] on the way from `step` to `final` (None: constant).

    exponential: equal factors in equal times. inverse: 1 / t, fast at first.
    """
    if final is None:
        return step
    if decay == "exponential":
        return step * (final / step) ** progress
    return step / (1 + (step / final - 1) * progress)


BLOCK = 32  # columns whose statistics stay in the cache while they move


class OnlineUpdate:
    """Block coordinate descent on A = sum c alpha alpha^T and B = sum c x alpha^T with forgetting
    (Mairal, Bach, Ponce, Sapiro 2010, algorithm 2), columns kept at norm 1.

    Args:
        d, K: shape of the dictionary. forgetting: what the statistics so far are multiplied by at each batch.
    """

    def __init__(self, d: int, K: int, forgetting: float, device: torch.device | str = "cpu") -> None:
        self.forgetting = forgetting
        self.A = torch.zeros(K, K, device=device)
        self.B = torch.zeros(d, K, device=device)

    def update(
        self, phi: Tensor, X: Tensor, alpha: Tensor, weight: Tensor, reduce: Reduce = alone
    ) -> tuple[Tensor, Tensor]:
        """Take in a batch and move every column once, in turn. Returns (Phi, norm of the change).

        A column whose factor has not been used keeps its place.
        """
        from word_factors.descent import move_rows  # late: numba takes half a second to import

        weighted = alpha * weight  # [K, B]
        size = alpha.shape[1]
        self.A = self.forgetting * self.A + reduce(weighted @ alpha.T / size)
        self.B = self.forgetting * self.B + reduce(X @ weighted.T / size)
        rows = phi.T.contiguous()  # [K, d]: a column of Phi lies in one piece
        target, used = self.B.T.contiguous(), self.A.diagonal().tolist()
        tiny = torch.finfo(phi.dtype).tiny
        floor = 1e-10 * max(*used, tiny)
        for begin in range(0, len(rows), BLOCK):
            block = slice(begin, begin + BLOCK)
            # What is left for these columns, once for all; then kept up to date as they move, which touches them alone.
            rest = torch.addmm(target[block], self.A[block], rows, alpha=-1)
            within = self.A[block, block].contiguous()
            if phi.device.type == "cpu":
                move_rows(rows[block].numpy(), rest.numpy(), within.numpy(), floor, tiny)
            else:
                move_tensors(rows[block], rest, within, used[block], floor, tiny)
        new = rows.T.contiguous()
        return new, (new - phi).norm()

    def state_dict(self) -> dict[str, Tensor]:
        return {"A": self.A, "B": self.B}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.A, self.B = state["A"].to(self.A.device), state["B"].to(self.B.device)


def move_tensors(rows: Tensor, rest: Tensor, shared: Tensor, used: Sequence[float], floor: float, tiny: float) -> None:
    """`descent.move_rows` in tensors, for devices that numba does not reach. In place.

    Args:
        rows, rest, shared, floor, tiny: as there. used: the diagonal of `shared`.
    """
    for row, left, column, own in zip(rows, rest, shared, used, strict=True):
        if own <= floor:
            continue
        moved = left.div(own).add_(row)
        moved.div_(torch.linalg.vector_norm(moved).clamp_(min=tiny))
        rest.addr_(column, moved - row, alpha=-1)
        row.copy_(moved)


class DeadFactors:
    """Counts words since each factor was last in use, and puts a residual in the place of one that is dead.

    A factor is dead when h has stayed below `threshold` for `patience` words.
    """

    def __init__(self, K: int, patience: int, threshold: float = 1e-8, device: torch.device | str = "cpu") -> None:
        self.patience, self.threshold = patience, threshold
        self.idle = torch.zeros(K, dtype=torch.int64, device=device)
        self.reseeded = 0

    def update(self, h: Tensor, words: int) -> Tensor:
        """[K] bool: dead now. `words` is the size of the batch."""
        self.idle = torch.where(h < self.threshold, self.idle + words, 0)
        return self.idle >= self.patience

    def reseed(self, phi: Tensor, dead: Tensor, R: Tensor) -> Tensor:
        """Phi with dead columns replaced by the directions of the batch's largest residuals R [d, B]."""
        columns = dead.nonzero().flatten()[: R.shape[1]]
        if not len(columns):
            return phi
        largest = R.norm(dim=0).topk(len(columns)).indices
        phi = phi.clone()
        phi[:, columns] = unit_columns(R[:, largest])
        self.idle[columns] = 0
        self.reseeded += len(columns)
        return phi

    def state_dict(self) -> dict[str, object]:
        return {"idle": self.idle, "reseeded": self.reseeded}

    def load_state_dict(self, state: dict[str, object]) -> None:
        idle = state["idle"]
        assert isinstance(idle, Tensor)
        self.idle, self.reseeded = idle.to(self.idle.device), int(state["reseeded"])  # pyright: ignore
