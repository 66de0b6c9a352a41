"""Elastic weight consolidation: a quadratic pull towards old weights, weighed by the diagonal Fisher information.

loss + lambda / 2 sum_i F_i (theta - theta_i*)^2, with a term for every task (`separate`) or one that is carried on
with decay gamma (`online`). The gradient, lambda (sum_i F_i theta - sum_i F_i theta_i*), needs two sums and no list of
tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config import check_choice
from superposition.baselines.regulariser import Regulariser, copies, zeros
from superposition.contexts import derived_seed


def fisher_diagonal(
    network: nn.Module, x: Tensor, y: Tensor, labels: str = "fisher", seed: int = 0, chunk: int = 50
) -> list[Tensor]:
    """Mean of per-sample squared gradients of log p(y | x), one tensor a parameter that asks for gradients.

    Args:
        network: logits from inputs. x, y: samples [N, ...], [N].
        labels: `fisher` draws y from the network's own distribution, `empirical` takes the labels.
        seed: of the draw. chunk: samples at a time.
    """
    check_choice("--fisher", labels, ("fisher", "empirical"))
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    detached = {name: p.detach() for name, p in named.items()}

    def loss(parameters: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, parameters, (sample[None],))
        return F.cross_entropy(logits, label[None])

    was = network.training
    network.eval()  # a sample has no batch to be normalised by
    if labels == "fisher":
        with torch.no_grad():
            probabilities = network(x).softmax(1).cpu()
        generator = torch.Generator().manual_seed(seed)
        y = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(y.device)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    totals = {name: torch.zeros_like(p) for name, p in detached.items()}
    for part, label in zip(x.split(chunk), y.split(chunk), strict=True):
        for name, gradient in per_sample(detached, part, label).items():
            totals[name] += gradient.square().sum(0)
    network.train(was)
    return [total / len(x) for total in totals.values()]


class EWC(Regulariser):
    """See the module.

    Args:
        network: what is trained. strength: lambda. labels: as of `fisher_diagonal`.
        consolidation: `separate` or `online`. gamma: decay of the running Fisher information (`online`).
        seed: of the drawn labels.
    """

    def __init__(
        self,
        network: nn.Module,
        strength: float,
        labels: str = "fisher",
        consolidation: str = "separate",
        gamma: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(network)
        check_choice("--consolidation", consolidation, ("separate", "online"))
        self.strength, self.labels, self.consolidation, self.gamma, self.seed = (
            strength, labels, consolidation, gamma, seed,
        )  # fmt: skip
        self.tasks = 0
        self.fisher, self.pull = zeros(self.parameters), zeros(self.parameters)  # sum F, sum F theta*
        self.constant = zeros(self.parameters)  # sum F theta*^2

    def gradient(self) -> dict[str, Tensor]:
        if not self.tasks or self.strength == 0:
            return {}
        self.add(self.penalty_gradient())
        return {}

    def penalty_gradient(self) -> list[Tensor]:
        """lambda (sum F theta - sum F theta*), a tensor a parameter."""
        triples = zip(self.fisher, self.parameters, self.pull, strict=True)
        return [self.strength * (f * p.detach() - g) for f, p, g in triples]

    def penalty(self) -> Tensor:
        """lambda / 2 sum F (theta - theta*)^2."""
        total = torch.zeros((), dtype=torch.float64)
        for f, p, g, c in zip(self.fisher, self.parameters, self.pull, self.constant, strict=True):
            theta = p.detach()
            # Grouped so that it is 0 exactly, not nearly, where theta is theta*.
            total += ((f * theta - g) * theta - (g * theta - c)).double().sum().cpu()
        return self.strength / 2 * total

    def end_task(self, x: Tensor, y: Tensor) -> None:
        fresh = fisher_diagonal(self.network, x, y, self.labels, derived_seed(self.seed, "fisher", self.tasks))
        theta = copies(self.parameters)
        if self.consolidation == "online":
            self.fisher = [self.gamma * old + new for old, new in zip(self.fisher, fresh, strict=True)]
            self.pull = [f * t for f, t in zip(self.fisher, theta, strict=True)]
            self.constant = [g * t for g, t in zip(self.pull, theta, strict=True)]
        else:
            pulls = [f * t for f, t in zip(fresh, theta, strict=True)]
            for place, (f, g, t) in enumerate(zip(fresh, pulls, theta, strict=True)):
                self.fisher[place] = self.fisher[place] + f
                self.pull[place] = self.pull[place] + g
                self.constant[place] = self.constant[place] + g * t
        self.tasks += 1

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks, "fisher": self.fisher, "pull": self.pull, "constant": self.constant}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tasks = state["tasks"]
        self.fisher, self.pull, self.constant = (
            [t.to(p) for t, p in zip(state[name], self.parameters, strict=True)]
            for name in ("fisher", "pull", "constant")
        )
