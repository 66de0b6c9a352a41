"""Small tasks of very different kinds, run by the loop without a branch for any; also a program to kill and resume.

python toy_tasks.py regression --out RUN --steps 200
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.cli import App
from shared.config import RunConfig
from shared.data import Batches
from shared.loop import Loop, Task


class Regression(Task):
    """A small network with dropout and noise on its inputs: draws from the global stream at every step."""

    score = ("loss", "min")

    def __init__(self, batch_size: int = 16, seed: int = 0, noise: bool = True, pause: float = 0.0) -> None:
        self.batch_size, self.seed, self.noise, self.pause = batch_size, seed, noise, pause
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(256, 5, generator=generator)
        self.y = torch.sin(self.x.sum(1, keepdim=True))

    def start(self, loop: Loop) -> None:
        self.loop = loop
        self.model = nn.Sequential(
            nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.1 if self.noise else 0.0), nn.Linear(16, 1)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 20, 0.9)
        self.trained, self.prepared = loop.prepare(self.model, self.optimizer)

    def batches(self) -> Batches:
        return Batches((self.x, self.y), self.batch_size, self.seed, rank=self.loop.rank, world=self.loop.world)

    def step(self, batch: Any) -> dict[str, Any]:
        time.sleep(self.pause)

        def loss(piece: Any) -> Tensor:
            x, y = piece
            if self.noise:
                x = x + 0.01 * torch.randn_like(x)
            return (self.trained(x) - y).square().mean()

        return self.loop.update(batch, loss, self.prepared, model=self.trained, clip=5.0, scheduler=self.scheduler)

    def evaluate(self) -> dict[str, Any]:
        self.model.eval()
        torch.randn(3)  # an evaluation that draws must not change training
        with torch.no_grad():
            x, y = self.x.to(self.loop.device), self.y.to(self.loop.device)
            loss = (self.model(x) - y).square().mean()
        self.model.train()
        return {"loss": loss}

    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


class Gan(Task):
    """Two networks, two optimisers, two losses a step: the step is the task's own."""

    def start(self, loop: Loop) -> None:
        self.loop = loop
        self.generator, self.critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
        self.generate = torch.optim.Adam(self.generator.parameters(), 2e-2, betas=(0.5, 0.9))
        self.criticise = torch.optim.Adam(self.critic.parameters(), 2e-2, betas=(0.5, 0.9))
        self.centre = torch.tensor([2.0, -1.0])

    def step(self, batch: Any) -> dict[str, Any]:
        assert batch is None  # this task has no data loader
        real = self.centre + 0.3 * torch.randn(64, 2)
        fake = self.generator(torch.randn(64, 2))
        softplus = nn.functional.softplus
        critic_loss = softplus(-self.critic(real)).mean() + softplus(self.critic(fake.detach())).mean()
        self.criticise.zero_grad()
        self.loop.accelerator.backward(critic_loss)
        self.criticise.step()
        generator_loss = softplus(-self.critic(fake)).mean()
        self.generate.zero_grad()
        self.loop.accelerator.backward(generator_loss)
        self.generate.step()
        return {"critic_loss": critic_loss, "generator_loss": generator_loss}

    def evaluate(self) -> dict[str, Any]:
        return {"distance": (self.generator.bias - self.centre).norm()}

    def state(self) -> dict[str, Any]:
        parts = ("generator", "critic", "generate", "criticise")
        return {name: getattr(self, name) for name in parts}


class Atoms:
    """State that is no module: a dictionary and what it has seen."""

    def __init__(self, atoms: Tensor) -> None:
        self.atoms, self.seen = atoms, 0

    def state_dict(self) -> dict[str, Any]:
        return {"atoms": self.atoms, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.atoms, self.seen = state["atoms"].clone(), state["seen"]


class Dictionary(Task):
    """Dictionary learning without back-propagation: soft-thresholded codes, a projected Hebbian update, no loss
    returned to anybody."""

    def start(self, loop: Loop) -> None:
        self.truth = nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), dim=1)
        codes = torch.rand(512, 4, generator=torch.Generator().manual_seed(2))
        self.x = (codes * (codes > 0.7)) @ self.truth
        self.learned = Atoms(nn.functional.normalize(torch.randn(4, 8), dim=1))

    def batches(self) -> Batches:
        return Batches((self.x,), 64, seed=3)

    def step(self, batch: Any) -> dict[str, Any]:
        (x,) = batch
        atoms = self.learned.atoms
        codes = torch.zeros(len(x), 4)
        size = 1 / torch.linalg.matrix_norm(atoms @ atoms.T, 2)
        for _ in range(20):  # proximal gradient: no autograd anywhere
            codes = (codes - size * ((codes @ atoms - x) @ atoms.T + 0.02)).clamp_min(0)
        residual = x - codes @ atoms
        self.learned.atoms = nn.functional.normalize(atoms + 0.5 * codes.T @ residual / len(x) * 10, dim=1)
        self.learned.seen += len(x)
        return {"residual": residual.square().mean(), "active": (codes > 0).float().mean()}

    def evaluate(self) -> dict[str, Any]:
        return {"match": (self.learned.atoms @ self.truth.T).abs().max(0).values.mean()}

    def state(self) -> dict[str, Any]:
        return {"atoms": self.learned}


class Unroll(Task):
    """Learns a step size through ten unrolled steps of gradient descent; the task computes its gradient itself
    (forward mode, by hand) and hands it to the optimiser."""

    def start(self, loop: Loop) -> None:
        self.log_rate = nn.Parameter(torch.tensor(-4.0, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.log_rate], lr=0.05)
        self.curvature = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
        self.module = nn.ParameterList([self.log_rate])

    def step(self, batch: Any) -> dict[str, Any]:
        rate = self.log_rate.detach().exp()
        w, tangent = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for _ in range(10):
            tangent = tangent - rate * self.curvature * tangent - rate * self.curvature * w
            w = w - rate * self.curvature * w
        loss = 0.5 * (self.curvature * w * w).sum()
        self.log_rate.grad = (self.curvature * w * tangent).sum()
        self.optimizer.step()
        return {"outer_loss": loss}

    def state(self) -> dict[str, Any]:
        return {"rate": self.module, "optimizer": self.optimizer}


@dataclass(frozen=True)
class ToyConfig(RunConfig):
    kind: Literal["regression", "gan", "dictionary", "unroll"] = "regression"
    """Which toy."""
    others: tuple[Literal["regression", "gan", "dictionary", "unroll"], ...] = ()
    """More toys: names that the tests of the command line misspell."""
    batch_size: int = 16
    """Samples a step and device."""
    noise: bool = True
    """Dropout and input noise."""
    pause: float = 0.0
    """Seconds to sleep each step."""


KINDS: dict[str, Any] = {"gan": Gan, "dictionary": Dictionary, "unroll": Unroll}


def make(config: ToyConfig) -> Task:
    if config.kind == "regression":
        return Regression(config.batch_size, config.seed, config.noise, config.pause)
    return KINDS[config.kind]()


app = App("toy", "Toy tasks on the common loop.", package="toy_tasks")
PRESETS = {
    "cpu": ToyConfig(steps=60, device="cpu"),
    "smoke": ToyConfig(preset="smoke", steps=10, device="cpu"),
}


@app.verb(ToyConfig, PRESETS)
def train(config: ToyConfig) -> int:
    """Train a toy."""
    Loop(make(config), config, "toy").run()
    return 0


if __name__ == "__main__":
    sys.exit(app.main())
