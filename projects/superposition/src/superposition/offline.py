"""Superposition after training: networks that were trained alone are bound, summed, and read out again (2.10).

net = superpose([a, b, c], "rotation", seed=0)
net(x, 1)           # b, and noise from a and c that `theory.noise_variance` predicts
net.retrieve(1)     # the same as a plain network
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.config import UserError
from superposition.kinds import INVERTIBLE, PHASES, Kind
from superposition.layers import PSPConv2d, PSPLinear
from superposition.nets import Superposed, contextualize


def superpose(models: Sequence[nn.Module], kind: Kind, seed: int = 0) -> Superposed:
    """Sum of bound models, W = sum_s W_s C_s^-1 in every linear layer and convolution; all else is averaged.

    Args:
        models: plain networks of one shape. kind: an invertible family of real contexts. seed: of the contexts.

    Raises:
        UserError: fewer than two models, other shapes, a kind that cannot be undone.
    """
    if len(models) < 2:
        raise UserError("models", len(models), "two or more")
    if kind not in INVERTIBLE or kind in PHASES or kind == "none":
        raise UserError("--kind", kind, [k for k in INVERTIBLE if k not in PHASES and k != "none"])
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in models]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            odd = sorted(set(shape.items()) ^ set(shapes[0].items()))
            raise UserError(f"model {number}", odd[:3], "tensors of the same names and shapes as model 0's")
    average = copy.deepcopy(models[0])
    with torch.no_grad():
        state = average.state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensor.copy_(torch.stack([model.state_dict()[name] for model in models]).mean(0))
    net = contextualize(average, kind, len(models), seed=seed)
    with torch.no_grad():
        for name, layer in net.layers():
            assert isinstance(layer, (PSPLinear, PSPConv2d))
            kernels = [_kernel(model, name) for model in models]
            layer.weight.copy_(sum(_unbound(layer, kernel, s) for s, kernel in enumerate(kernels)))  # pyright: ignore
    return net


def _kernel(model: nn.Module, name: str) -> Tensor:
    weight: Any = model.get_submodule(name).weight
    return weight.detach()


def _unbound(layer: PSPLinear | PSPConv2d, kernel: Tensor, s: int) -> Tensor:
    """W_s C_s^-1, in the shape of the kernel."""
    if layer.__class__ is PSPConv2d and layer.groups > 1:  # a group at a time, each with its part of the context
        groups = layer.groups
        inputs = kernel[0].numel()
        row = layer.contexts.unbind(kernel.new_ones(1, layer.contexts.dim), s).view(groups, 1, inputs)
        return (kernel.view(groups, -1, inputs) * row).view_as(kernel)
    return layer.contexts.unbind_weight(kernel.flatten(1), s).view_as(kernel)


def layer_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every linear layer of a plain network is fed for inputs x: name -> [N, d]."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, a, name=name: seen.__setitem__(name, a[0].detach()))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def noise_by_layer(
    models: Sequence[nn.Module], kind: Kind, k: int, x: Tensor, draws: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Noise on the pre-activations of model k, layer by layer, each fed what the clean model feeds it.

    Args:
        models: plain perceptrons of one shape. kind: binary or rotation. k: which is read out.
        x: images [N, ...]. draws: sets of contexts.

    Returns:
        layer -> measured variance over draws, the exact and the isotropic prediction, measured over exact, the power of
        the signal, the number of inputs and the effective number of them (section 2.1); means over images and outputs.
    """
    from superposition.contexts import derived_seed, make_contexts
    from superposition.theory import effective_dimension, isotropic_variance, noise_variance

    found: dict[str, dict[str, float]] = {}
    for name, fed in layer_inputs(models[k], x).items():
        weights = [_kernel(model, name) for model in models]
        total = torch.zeros(len(fed), len(weights[0]), dtype=torch.float64, device=fed.device)
        for draw in range(draws):
            family = make_contexts(kind, fed.shape[1], derived_seed(seed, draw), name)
            seen = family.bind(fed, k)
            noise = sum(family.unbind(seen, s) @ weights[s].T for s in range(len(weights)) if s != k)
            total += noise.double().square()  # pyright: ignore
        measured = float((total / draws).mean())
        exact = float(noise_variance(kind, weights, fed, k).double().mean())
        signal = float((fed @ weights[k].T).double().square().mean())
        found[name] = {
            "measured": measured, "exact": exact, "isotropic": float(isotropic_variance(weights, fed, k).mean()),
            "ratio": measured / exact, "signal": signal, "inputs": fed.shape[1],
            "effective": float(effective_dimension(fed[fed.abs().sum(1) > 0]).mean()),
        }  # fmt: skip
    return found
