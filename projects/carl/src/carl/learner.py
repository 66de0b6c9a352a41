"""What is learned: an ensemble, its optimiser, and everything that was met. One learner a problem.

The optimiser lives as long as the run, its moments with it; a fit goes on from the last weights. Every fit draws its
bootstrap rows anew and takes the inputs' mean and spread from the whole buffer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from carl.buffer import Buffer
from carl.catastrophe import LossName
from carl.ensemble import Ensemble, minibatches
from carl.episodes import Episode
from carl.noise import mixed
from carl.settings import Setting
from carl.task import PlanningTask

LEARNING_RATE = 1e-3


class Learner:
    """An ensemble that learns from a buffer.

    Args:
        task: what states and predictions are.
        setting: sizes.
        seed: of the first weights.
        device: of weights and buffer.
        loss: how the catastrophe head's loss is weighted.
        head: whether it is trained.
    """

    def __init__(
        self,
        task: PlanningTask,
        setting: Setting,
        seed: int,
        device: torch.device | str = "cpu",
        loss: LossName = "scaled",
        head: bool = True,
    ) -> None:
        self.head = head
        self.task, self.setting, self.device = task, setting, torch.device(device)
        self.loss: LossName = loss
        self._begin(mixed(seed, "weights"))
        self.buffer = Buffer(task.state_dim, task.action_dim, self.device)

    def _begin(self, seed: int) -> None:
        """New weights and a new optimiser."""
        setting, task = self.setting, self.task
        self.ensemble = Ensemble(
            setting.nets, task.input_dim, task.target_dim, setting.hidden, setting.decays,
            torch.Generator().manual_seed(seed), setting.activation, setting.probabilistic,
        ).to(self.device)  # fmt: skip
        self.optimizer = torch.optim.Adam(self.ensemble.parameters(), lr=LEARNING_RATE, fused=True)

    @property
    def fitted(self) -> bool:
        """Whether there was a fit: before it, there is nothing to plan with."""
        return bool(self.optimizer.state)

    @property
    def met_catastrophe(self) -> bool:
        """Whether the head had a positive example to learn from."""
        return self.head and bool(self.buffer.catastrophes.any())

    def remember(self, episode: Episode) -> None:
        """Add an episode to the buffer; one whose simulation broke down is left out."""
        if not episode.unstable and episode.length:
            self.buffer.add(
                torch.from_numpy(episode.states), torch.from_numpy(episode.actions),
                torch.from_numpy(episode.catastrophes.astype(np.float32)),
            )  # fmt: skip

    def inputs(self, states: Tensor, actions: Tensor) -> Tensor:
        """(n, i): what the nets see."""
        return torch.cat([self.task.features(states), actions], dim=-1)

    def fit(self, seed: int) -> dict[str, float]:
        """One fit on the whole buffer. Returns means over its last pass: `loss`, `likelihood`, `head`."""
        setting, buffer = self.setting, self.buffer
        if setting.fresh and self.fitted:
            self._begin(mixed(seed, "weights"))
        states, actions, following = self.task.augmented(buffer.states, buffer.actions, buffer.following)
        inputs, targets = self.inputs(states, actions), self.task.targets(states, following)
        rows = len(inputs)
        labels = buffer.catastrophes.repeat(rows // len(buffer))
        self.ensemble.normalise(inputs)
        if not setting.probabilistic:
            self.ensemble.normalise_targets(targets)
        steps_an_epoch = math.ceil(rows / setting.batch)
        epochs, limit = setting.epochs, None
        if setting.fit_steps is not None:
            epochs, limit = math.ceil(setting.fit_steps / steps_an_epoch), setting.fit_steps
        generator = torch.Generator().manual_seed(seed)
        steps = minibatches(rows, setting.nets, epochs, setting.batch, generator)[:limit]
        seen: list[Tensor] = []
        sizes = [part.shape[1] for part in steps]
        for chosen in torch.cat(steps, dim=1).to(self.device).split(sizes, dim=1):  # one transfer
            x, y = inputs[chosen], targets[chosen]
            if setting.noise:
                x = x + setting.noise * self.ensemble.std_in * self._noise(x.shape, generator)
                y = y + setting.noise * self.ensemble.std_out * self._noise(y.shape, generator)
            losses = self.ensemble.losses(x, y, labels[chosen] if self.head else None, self.loss)
            self.optimizer.zero_grad()
            losses.total.backward()
            self.optimizer.step()
            seen.append(torch.stack([losses.total, losses.likelihood, losses.head]).detach())
        means = torch.stack(seen[-steps_an_epoch:]).mean(dim=0).tolist()
        return dict(zip(("loss", "likelihood", "head"), means, strict=True))

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).to(self.device)

    def copy(self) -> Learner:
        """A learner that goes its own way from here, optimiser and buffer too."""
        other = object.__new__(Learner)
        other.__dict__.update(self.__dict__)
        other.ensemble = copy.deepcopy(self.ensemble)
        other.optimizer = torch.optim.Adam(other.ensemble.parameters(), lr=LEARNING_RATE, fused=True)
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.buffer = Buffer(self.task.state_dim, self.task.action_dim, self.device)
        other.buffer.load_state_dict(self.buffer.state_dict())
        return other

    def state_dict(self) -> dict[str, Any]:
        return {
            "ensemble": self.ensemble.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "buffer": self.buffer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in (("ensemble", self.ensemble), ("optimizer", self.optimizer), ("buffer", self.buffer)):
            part.load_state_dict(state[name])

    # -- how good it is ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def errors(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """How well steps of episodes are foreseen: mean over rows, dimensions and nets of the negative log-likelihood
        (`nll`, without its constant), squared error of the nets' mean (`mse`), and deviation between nets
        (`disagreement`). NaN for none."""
        rows = [episode for episode in episodes if episode.length and not episode.unstable]
        if not rows:
            return dict.fromkeys(("nll", "mse", "disagreement"), math.nan)
        states, actions, following = self._rows(rows)
        mean, logvar, _ = self.ensemble(self.inputs(states, actions))
        y = self.task.targets(states, following)
        nll = math.nan
        if self.setting.probabilistic:
            nll = float(0.5 * ((mean - y).square() * torch.exp(-logvar) + logvar).mean())
        mse = (mean.mean(dim=0) - y).square().mean()
        return {"nll": nll, "mse": float(mse), "disagreement": float(mean.std(dim=0, correction=0).mean())}

    @torch.no_grad()
    def catastrophe_probability(self, episodes: Sequence[Episode]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Of every step of the episodes: (E, n) probability that the next state is a catastrophe by every net, and (n,)
        whether it was."""
        states, actions, _ = self._rows(episodes)
        logit = self.ensemble(self.inputs(states, actions)).logit.squeeze(-1)
        happened = np.concatenate([episode.catastrophes for episode in episodes])
        return torch.sigmoid(logit).double().cpu().numpy(), happened

    @torch.no_grad()
    def votes_ahead(
        self, episodes: Sequence[Episode], horizon: int, beta: float, seed: int = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What planning goes by: from every state of the episodes, particles under the actions that were taken.

        Returns: (n, horizon) share of the nets that vote for a catastrophe h + 1 steps ahead, and (n, horizon) whether
            it came, NaN beyond the end of the episode; n counts the states that were acted in.
        """
        task, nets = self.task, self.setting.nets
        generator = torch.Generator(self.device).manual_seed(seed)
        votes, came = [np.empty((0, horizon))], [np.empty((0, horizon))]
        for episode in episodes:
            n = episode.length
            here = torch.from_numpy(episode.states[:n]).to(self.device).unsqueeze(0).expand(nets, -1, -1)
            taken = np.concatenate([episode.actions, np.repeat(episode.actions[-1:], horizon, axis=0)])
            actions = torch.from_numpy(taken).to(self.device)
            happened = np.concatenate([episode.catastrophes, np.full(horizon, np.nan)])
            shares = []
            for h in range(horizon):
                x = torch.cat([task.features(here), actions[h : h + n].expand(nets, -1, -1)], dim=-1)
                mean, logvar, logit = self.ensemble(x)
                noise = torch.randn(mean.shape, generator=generator, device=self.device)
                here = task.advance(here, mean + torch.exp(0.5 * logvar) * noise)
                shares.append((torch.sigmoid(logit.squeeze(-1)) > beta).double().mean(dim=0).cpu().numpy())
            votes.append(np.stack(shares, axis=1))
            came.append(np.stack([happened[h : h + n] for h in range(horizon)], axis=1))
        return np.concatenate(votes), np.concatenate(came)

    def _rows(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
        """States (n, s), actions (n, a), next states (n, s) of episodes, on the device."""
        parts = (
            np.concatenate([episode.states[:-1] for episode in episodes]),
            np.concatenate([episode.actions for episode in episodes]),
            np.concatenate([episode.states[1:] for episode in episodes]),
        )
        states, actions, following = (torch.from_numpy(part).to(self.device) for part in parts)
        return states, actions, following
