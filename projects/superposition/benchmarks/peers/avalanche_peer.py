"""Avalanche's side of the races; runs in an environment that has avalanche-lib and nothing of ours.

python avalanche_peer.py DATA.npz [THREADS] [MNIST]          # then commands on standard input, one JSON answer a line

epoch                                       train Naive for one epoch on the next permutation, of tensors
shipped                                     the same on the next experience of Avalanche's own PermutedMNIST
{"method": "ewc", "strength": 1.0, ...}     train a whole stream, answer the accuracies on all tasks
"""

import contextlib
import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

with contextlib.redirect_stdout(sys.stderr):
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.classic import PermutedMNIST
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import (
        AGEMPlugin,
        EvaluationPlugin,
        EWCPlugin,
        SynapticIntelligencePlugin,
    )
    from avalanche.training.supervised import Naive

BATCH = 128


class PerSampleEWC(EWCPlugin):
    """Their importances over batches of one sample: squares of per-sample gradients, as the method has it."""

    def compute_importances(self, model, criterion, optimizer, dataset, device, batch_size, num_workers=0):
        return super().compute_importances(model, criterion, optimizer, dataset, device, 1, num_workers)


def network(widths):
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def permuted(x, j):
    order = np.arange(784) if j == 0 else np.random.RandomState(4321 + 1000 * j).permutation(784)
    return x.flatten(1)[:, torch.from_numpy(order)].view_as(x)


def dataset(x, y):
    plain = TensorDataset(x, y)
    plain.targets = y.tolist()
    return as_classification_dataset(plain)


def stream(data, tasks):
    train = [dataset(permuted(data.x, j), data.y) for j in range(tasks)]
    test = [dataset(permuted(data.x_test, j), data.y_test) for j in range(tasks)]
    return benchmark_from_datasets(train=train, test=test)


def strategy(model, plugins, epochs):
    return Naive(
        model=model,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-4),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=epochs,
        eval_mb_size=1000,
        plugins=plugins,
        evaluator=EvaluationPlugin(loggers=[]),
    )


def plugin(asked):
    method, strength = asked["method"], asked.get("strength", 0.0)
    if method == "ewc":
        return [PerSampleEWC(ewc_lambda=strength / 2)]  # theirs has no factor 1/2
    if method == "si":
        return [SynapticIntelligencePlugin(si_lambda=2 * strength, eps=asked["xi"])]  # theirs has one
    if method == "agem":
        return [AGEMPlugin(patterns_per_experience=asked["memory"], sample_size=256)]
    return []


def run(data, asked):
    torch.manual_seed(asked["seed"])
    model = network(asked["widths"])
    scenario = stream(data, asked["tasks"])
    own = strategy(model, plugin(asked), asked["epochs"])
    for experience in scenario.train_stream:
        own.train(experience, num_workers=0, drop_last=True)
    model.eval()
    with torch.no_grad():
        found = [
            float((model(permuted(data.x_test, j)).argmax(1) == data.y_test).float().mean())
            for j in range(asked["tasks"])
        ]
    return {"tasks": found}


def main():
    with np.load(sys.argv[1]) as content:
        data = SimpleNamespace(**{name: torch.from_numpy(content[name]) for name in content.files})
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    fast, place = {}, 0
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            if (name := line.strip()) in ("epoch", "shipped"):
                if name not in fast:
                    made = (
                        PermutedMNIST(10, seed=0, dataset_root=sys.argv[3]) if name == "shipped" else stream(data, 10)
                    )
                    fast[name] = strategy(network([784, 256, 256, 256, 10]), [], 1), list(made.train_stream)
                own, experiences = fast[name]
                own.train(experiences[place % 10], num_workers=0, drop_last=True)
                place += 1
                answer = {"done": place}
            else:
                answer = run(data, json.loads(line))
        print(json.dumps(answer), flush=True)


main()
