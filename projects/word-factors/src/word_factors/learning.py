"""Learning a dictionary on the shared loop: encode a batch, move the dictionary, without back-propagation.

min over Phi of E_q[ c_w min_alpha 1/2 |x_w - Phi alpha|^2 + lam sum(alpha) ], columns of norm 1 (Section 2).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.capture import CudaGraphs, Graphs
from shared.config import UserError
from shared.loop import Loop, Stateful, Task
from word_factors.config import TrainConfig
from word_factors.dictionary import (
    Averages,
    DeadFactors,
    OnlineUpdate,
    alone,
    annealed,
    coherence,
    quadratic_update,
    random_dictionary,
    unit_columns,
)
from word_factors.embedding import Embedding
from word_factors.inference import ACTIVE, RecordedSteps, energy, fista, lam_max, solve
from word_factors.model import FactorModel
from word_factors.preprocess import Transform
from word_factors.sources import VECTORS_FILE, Source, open_source
from word_factors.weighting import WordSampler, root_frequency, weights

JUDGED = 1000  # words that an evaluation during training encodes
BISECTED = 500  # words on which the weight of the activations is sought
RETARGETS = 5  # times that it is sought again, over the first half of a run
EXACT = 1e-3  # largest violation of optimality over lam in a batch of `--inference exact`
LEAST = 1e-3  # weights below this share of the largest correlation are not sought
PATIENCE = 5  # a factor is dead after this many times --average words without use


class Dictionary:
    """What is learned: Attributes: phi [d, K]; lam, a float that `--target-active` may move."""

    def __init__(self, phi: Tensor, lam: float) -> None:
        self.phi, self.lam = phi, lam

    def state_dict(self) -> dict[str, Any]:
        return {"phi": self.phi, "lam": self.lam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["phi"].shape != self.phi.shape:
            raise ValueError(f"a dictionary of {list(state['phi'].shape)}, not {list(self.phi.shape)}")
        self.phi, self.lam = state["phi"].to(self.phi.device), float(state["lam"])


class History:
    """What was measured while training, a row a time, with `step`; part of a checkpoint."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """Another row; what a run did after the checkpoint it goes on from is measured again, and so left out."""
        self.rows = [row for row in self.rows if row["step"] < step]
        self.rows.append({"step": float(step), **{name: float(value) for name, value in metrics.items()}})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])


class WordBatches:
    """Batches (x [B, d] preprocessed, c [B] weights) from a sampler of rows; takes a row's vector when it is drawn, so
    that memory holds the embedding once."""

    def __init__(
        self, sampler: WordSampler, embedding: Embedding, transform: Transform, c: NDArray[np.float64]
    ) -> None:
        self.sampler, self.embedding, self.transform = sampler, embedding, transform
        self.c = c.astype(np.float32)
        self.state_dict, self.load_state_dict = sampler.state_dict, sampler.load_state_dict

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.sampler:
            x = self.transform.apply(self.embedding.vectors[rows.numpy()])
            yield torch.from_numpy(x), torch.from_numpy(self.c[rows.numpy()])


class WordFactors(Task):
    """One run.

    Args:
        config: its flags.
        source: the embedding, if it is at hand already; default: what the config names.
    """

    def __init__(self, config: TrainConfig, source: Source | None = None) -> None:
        self.config, self.source = config, source

    # -- the loop's questions ------------------------------------------------------------------------------------

    def start(self, loop: Loop) -> None:
        config = self.config
        self.loop, self.device = loop, loop.device
        # Codes are compared with lam to four digits: TF32, which has three, would do as an answer but not as a proof.
        torch.set_float32_matmul_precision("highest")
        if self.source is None:
            run = loop.folder.path if loop.folder is not None and loop.folder.resumed else None
            self.source = open_source(config, run)
        embedding = self.embedding
        self.transform = Transform.fit(config.preprocess, embedding.vectors)
        self.q, self.c = weights(embedding.counts, config.weighting)
        self.dictionary = Dictionary(self._first_dictionary(), config.lam)
        sample = self._sample(BISECTED, 1)
        if config.target_active is not None:
            self.dictionary.lam = lam_for(sample, self.dictionary.phi, config.target_active)
        largest = lam_max(sample, self.dictionary.phi)
        if self.dictionary.lam >= largest:
            hint = "Every code would be zero."
            raise UserError("--lam", self.dictionary.lam, f"less than {largest:.4g}, the largest phi . x", hint)
        d, K = self.dictionary.phi.shape
        self.averages = Averages(K, config.average, config.bias_correct, self.device)
        self.online = OnlineUpdate(d, K, config.forgetting, self.device)
        self.dead = DeadFactors(K, PATIENCE * config.average, device=self.device)
        self.judged = self._sample(JUDGED, 2)
        self.history = History()
        graphs = self.graphs() if config.capture and not config.compile else None
        self.recorded = None if graphs is None else RecordedSteps(graphs)

    def graphs(self) -> Graphs | None:
        """How the steps of FISTA are recorded on the run's device; None where they cannot be."""
        return CudaGraphs(self.device) if self.device.type == "cuda" else None

    def opened(self, folder: Path) -> None:
        assert self.source is not None
        if self.source.trained:
            from word_factors.vectors import write_vectors

            write_vectors(self.source.embedding, folder / VECTORS_FILE)

    def batches(self) -> WordBatches:
        assert self.source is not None
        sampler = WordSampler(
            self.q, self.config.batch_size, self.config.seed, tokens=self.source.tokens, rank=self.loop.rank,
            world=self.loop.world,
        )  # fmt: skip
        return WordBatches(sampler, self.embedding, self.transform, self.c)

    def state(self) -> Mapping[str, Stateful]:
        parts = {"dictionary": self.dictionary, "averages": self.averages, "dead": self.dead, "history": self.history}
        return parts | ({"online": self.online} if self.config.update == "online" else {})

    # -- one step ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor | float]:
        config, phi = self.config, self.dictionary.phi
        self._retarget()
        if self.loop.step == 0:
            self.history.add(0, judge(self.judged, phi, self.dictionary.lam))
        X, weight = batch[0].T, batch[1]  # [d, B], [B]
        lam = self._lam_now()
        if config.inference == "exact":
            codes = solve(X, phi, lam, EXACT)
        else:
            codes = fista(X, phi, lam, config.inference_steps, compile=config.compile, recorded=self.recorded)
        self.averages.update(X, codes, self._mean)
        h = self.averages.mean_square()
        progress = self.loop.step / max(1, self.loop.total - 1)
        step_size = annealed(config.step_size, config.step_final, progress, config.decay)
        if config.update == "quadratic":
            new, change = quadratic_update(
                phi, codes.residual, codes.alpha, h, step_size, config.floor, weight, self._mean
            )
        else:
            new, change = self.online.update(phi, X, codes.alpha, weight, self._mean)
        dead = self.dead.update(self.averages.h, X.shape[1] * self.loop.world)
        if config.reseed and bool(dead.any()):
            new = self._same_everywhere(self.dead.reseed(new, dead, codes.residual))
        self.dictionary.phi = new
        energies = energy(codes.residual, codes.alpha, lam)
        metrics: dict[str, Tensor | float] = {
            "energy": energies.mean(),
            "data": codes.residual.square().sum(dim=0).mean() / 2,
            "l1": codes.alpha.sum(dim=0).mean(),
            "snr": self.averages.snr(),
            "active": (codes.alpha > ACTIVE).sum(dim=0).float().mean(),
            "kkt_gap": codes.gap.max() / lam,
            "step_norm": change,
            "h_min": h.min(),
            "h_max": h.max(),
            "dead": dead.sum().float(),
            "coherence": coherence(new),
            "lam": lam,
        }
        if config.update == "quadratic":
            metrics["step_size"] = step_size
        if config.reseed:
            metrics["reseeded"] = float(self.dead.reseeded)
        return metrics

    def _lam_now(self) -> float:
        """lam, on its way up from a third during the warm-up."""
        lam, warmup = self.dictionary.lam, self.config.lam_warmup
        return lam if self.loop.step >= warmup else lam * (1 + 2 * self.loop.step / warmup) / 3

    def _retarget(self) -> None:
        """As the dictionary improves, fewer factors serve: seek lam again at a few places of the run's first half."""
        every = max(1, self.loop.total // (2 * RETARGETS))
        step = self.loop.step
        if self.config.target_active is None or step == 0 or step % every or step > self.loop.total // 2:
            return
        self.dictionary.lam = lam_for(self._sample(BISECTED, 1), self.dictionary.phi, self.config.target_active)

    def _mean(self, tensor: Tensor) -> Tensor:
        if self.loop.world == 1:
            return alone(tensor)
        return self.loop.accelerator.reduce(tensor, "mean")  # pyright: ignore[reportReturnType]

    def _same_everywhere(self, tensor: Tensor) -> Tensor:
        if self.loop.world > 1:
            torch.distributed.broadcast(tensor := tensor.contiguous(), src=0)
        return tensor

    # -- the start -----------------------------------------------------------------------------------------------

    @property
    def embedding(self) -> Embedding:
        """The embedding that is taken apart."""
        assert self.source is not None
        return self.source.embedding

    @functools.cached_property
    def p(self) -> NDArray[np.float64]:
        """[V] root of the words' frequencies, summing to 1."""
        return root_frequency(self.embedding.counts)

    def _first_dictionary(self) -> Tensor:
        config, K = self.config, self.config.factors
        if config.init == "gaussian":
            generator = torch.Generator().manual_seed(config.seed)
            return random_dictionary(self.embedding.dim, K, generator).to(self.device)
        rows = np.random.default_rng((config.seed, 3)).choice(len(self.embedding), K, replace=False, p=self.p)
        return unit_columns(self._columns(rows))

    def _sample(self, size: int, stream: int) -> Tensor:
        """[d, n] a fixed sample of preprocessed vectors, drawn by the root of frequency, the same for all seeds."""
        size = min(size, len(self.embedding))
        rows = np.random.default_rng(stream).choice(len(self.embedding), size, replace=False, p=self.p)
        return self._columns(rows)

    def _columns(self, rows: NDArray[np.int64]) -> Tensor:
        x = self.transform.apply(self.embedding.vectors[rows])
        return torch.from_numpy(np.ascontiguousarray(x.T)).to(self.device)

    # -- the end -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, Tensor | float]:
        metrics = judge(self.judged, self.dictionary.phi, self.dictionary.lam)
        self.history.add(self.loop.step, metrics)
        if metrics["active"] < 0.5:
            hint = f"lam = {self.dictionary.lam:.4g} leaves {metrics['active']:.2f} active factors a word: lower --lam."
            warnings.warn(hint, stacklevel=2)
        if metrics["active"] > 0.5 * self.dictionary.phi.shape[1]:
            hint = f"lam = {self.dictionary.lam:.4g} leaves codes dense, {metrics['active']:.0f} factors: raise --lam."
            warnings.warn(hint, stacklevel=2)
        return metrics

    def model(self) -> FactorModel:
        """The dictionary as it is now."""
        phi = self.dictionary.phi.cpu()
        return FactorModel(phi, self.dictionary.lam, self.transform, self.embedding.digest, self.embedding)


def judge(X: Tensor, phi: Tensor, lam: float) -> dict[str, Tensor | float]:
    """How well a dictionary explains vectors X [d, n].

    energy: mean of E; data: its first part; relative_residual: energy left over / energy; snr: the same in decibels;
    active: mean number of active factors; kkt_gap: largest violation of optimality over lam; unused: factors that no
    vector uses.
    """
    codes = solve(X, phi, lam)
    squares = codes.residual.square().sum()
    residual = squares / X.square().sum()
    active = codes.alpha > ACTIVE
    return {
        "energy": float(energy(codes.residual, codes.alpha, lam).mean()),
        "data": float(squares) / (2 * X.shape[1]),
        "relative_residual": float(residual),
        "snr": float(-10 * torch.log10(residual)),
        "active": float(active.sum(dim=0).float().mean()),
        "kkt_gap": float(codes.gap.max() / lam),
        "unused": float((~active.any(dim=1)).sum()),
    }


def lam_for(X: Tensor, phi: Tensor, active: float, steps: int = 25) -> float:
    """The weight of the activations at which vectors X [d, n] have `active` active factors on average, by bisection in
    its logarithm.

    Raises:
        UserError: more factors than any weight makes active.
    """
    low = high = lam_max(X, phi)
    found = 0.0

    def count(lam: float) -> float:
        return float((solve(X, phi, lam, tol=1e-2).alpha > ACTIVE).sum(dim=0).float().mean())

    while found < active:  # from above: small weights are the slow ones
        high, low = low, low / 2
        if high < LEAST * lam_max(X, phi):
            raise UserError("--target-active", active, f"at most {found:.1f}, what a weight of {high:.2g} gives")
        found = count(low)
    for _ in range(steps):
        middle = float(np.sqrt(low * high))
        if count(middle) > active:
            low = middle
        else:
            high = middle
        if high / low < 1.005:
            break
    return float(np.sqrt(low * high))
