"""Networks, and any `nn.Module` made contextual.

net = contextualize(model, "binary", seed=0)    # every Linear and Conv2d, one set of weights for all contexts
net.set_context(3); net(x)                      # or net(x, 3), or net(x, LongTensor) with one for every sample
plain = net.retrieve(3)                         # the model of context 3, without contexts
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shared.config import UserError, check_choice
from superposition.complex import Complex
from superposition.contexts import Contexts, Index, make_contexts
from superposition.kinds import PHASES, Kind
from superposition.layers import (
    ComplexPSPConv2d,
    ComplexPSPLinear,
    Contextual,
    PSPConv2d,
    PSPLinear,
    RealPart,
    SplitReLU,
    kernel_inputs,
)
from superposition.norm import PerTaskBatchNorm2d, StaticBatchNorm2d


class Superposed(nn.Module):
    """A network whose contextual layers act under one context at a time.

    Args:
        host: a network with contextual layers (and, it may be, `PerTaskBatchNorm2d`) anywhere inside.
        limit: contexts 0 to limit - 1 are all there are; None for no end.
    """

    def __init__(self, host: nn.Module, limit: int | None = None) -> None:
        super().__init__()
        self.host, self.limit = host, limit
        self._keyed = [m for m in host.modules() if isinstance(m, (Contextual, PerTaskBatchNorm2d))]
        self.k: Index = 0

    def layers(self) -> Iterator[tuple[str, Contextual]]:
        """Contextual layers with their names in the host."""
        for name, module in self.host.named_modules():
            if isinstance(module, Contextual):
                yield name, module

    def families(self) -> list[Contexts]:
        """Context families, one a contextual layer."""
        return [layer.contexts for _, layer in self.layers()]

    def set_context(self, k: Index) -> None:
        """Use context k (or one for every sample, [B]) until told otherwise.

        Raises:
            IndexError: a layer has no such context; names it.
        """
        for module in self._keyed:
            if isinstance(module, Contextual):
                module.contexts.check(k)
        for module in self._keyed:
            module.k = k
        self.k = k

    def forward(self, x: Tensor, k: Index | None = None) -> Tensor:
        """The host's output under context k, or under the one that was set."""
        if k is None:
            return self.host(x)
        before = self.k
        self.set_context(k)
        try:
            return self.host(x)
        finally:
            for module in self._keyed:
                module.k = before
            self.k = before

    def retrieve(self, k: int | float) -> nn.Module:
        """The network that context k selects, without contexts: its weights are W C_k. A copy."""
        return _without_contexts(copy.deepcopy(self.host), k)

    def __deepcopy__(self, memo: dict[int, Any]) -> Superposed:
        twin = type(self)(copy.deepcopy(self.host, memo), self.limit)
        twin.set_context(self.k)
        return twin.train(self.training)


def _without_contexts(host: nn.Module, k: int | float) -> nn.Module:
    """Put plain layers in the places of contextual ones."""
    if isinstance(host, (Contextual, PerTaskBatchNorm2d)):
        return _plain(host, k)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(host.named_modules(remove_duplicate=False)):
        if isinstance(module, (Contextual, PerTaskBatchNorm2d)):
            if module not in made:
                made[module] = _plain(module, k)
            _put(host, name, made[module])
    return host


def _key_norms(network: nn.Module, k: int) -> None:
    """Statistics of context k in every normalisation that keeps several."""
    for module in network.modules():
        if isinstance(module, PerTaskBatchNorm2d):
            module.k = k


def _plain(module: nn.Module, k: int | float) -> nn.Module:
    if isinstance(module, PerTaskBatchNorm2d):
        return module.retrieved(int(k))
    assert isinstance(module, Contextual)
    return module.retrieved(k)


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


def contextualize(
    module: nn.Module,
    kind: Kind,
    num_contexts: int | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    *,
    seed: int = 0,
    learn: Sequence[str] = (),
    bias: bool | None = None,
) -> Superposed:
    """Bind the linear layers and convolutions of any network to contexts. The network is copied, its weights with it.

    Args:
        module: what to make contextual.
        kind: a family of real contexts.
        num_contexts: K; None for no end.
        include, exclude: name patterns of layers, as `fnmatch` reads them.
        seed: seeds the contexts.
        learn: name patterns of layers whose contexts are learned.
        bias: False takes the biases of bound layers away (as the authors' binary layers have none).

    A layer that the network uses under two names stays one. What its owner does not call as a layer cannot be bound:
    exclude it.

    Raises:
        UserError: a complex kind; a pattern that meets no layer; a layer that cannot be bound: of a derived class (as
            in `nn.MultiheadAttention`, or under a parametrisation), or with a weight that another module has too.
    """
    if kind in PHASES:
        hint = "Phasors need a network of complex numbers: see `fully_connected(..., kind=...)`."
        raise UserError("--kind", kind, "a kind of real contexts for networks of real numbers", hint)
    host = copy.deepcopy(module)
    found = dict(host.named_modules(remove_duplicate=False))
    names = [name for name, each in found.items() if isinstance(each, (nn.Linear, nn.Conv2d))]
    for pattern in (*(p for p in include if p != "*"), *exclude, *learn):
        if not fnmatch.filter(names, pattern):
            raise UserError("layer pattern", pattern, names)
    chosen = [n for n in names if _meets(n, include) and not _meets(n, exclude)]
    if not chosen:
        raise UserError("layers to bind", "none", "a network with nn.Linear or nn.Conv2d, and patterns that meet one")
    for name in chosen:
        _check_bindable(found, name)
    bound: dict[nn.Module, Contextual] = {}
    for name in chosen:
        plain = found[name]
        if plain not in bound:
            bound[plain] = _bound_layer(plain, name, kind, num_contexts, seed, _meets(name, learn), bias)
        if name == "":
            return Superposed(bound[plain], num_contexts)
        _put(host, name, bound[plain])
    return Superposed(host, num_contexts)


def _check_bindable(modules: Mapping[str, nn.Module], name: str) -> None:
    """Refuse a layer whose binding would do nothing, or something else than what its network means.

    Raises:
        UserError: names the layer and the reason.
    """
    layer = modules[name]
    hint = f"Leave it out: exclude=[{name!r}]."
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise UserError(f"layer {name!r}", type(layer).__name__, "nn.Linear or nn.Conv2d itself", hint)
    own = {id(parameter) for parameter in layer.parameters()}
    for other, module in modules.items():
        if module is not layer and own & {id(p) for p in module.parameters(recurse=False)}:
            raise UserError(f"layer {name!r}", f"a weight that {other!r} has too", "one of its own", hint)


def _meets(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _bound_layer(
    plain: nn.Module, name: str, kind: Kind, limit: int | None, seed: int, learn: bool, bias: bool | None
) -> Contextual:
    if isinstance(plain, nn.Conv2d):
        layer: Contextual = PSPConv2d(plain, make_contexts(kind, kernel_inputs(plain), seed, name, limit, learn))
        if bias is False:
            layer.bias = None  # pyright: ignore
        return _alike(layer.to(plain.weight), plain)
    assert isinstance(plain, nn.Linear)
    family = make_contexts(kind, plain.in_features, seed, name, limit, learn)
    has_bias = plain.bias is not None and bias is not False
    made = PSPLinear(plain.in_features, plain.out_features, family, has_bias).to(plain.weight)
    with torch.no_grad():
        made.weight.copy_(plain.weight)
        if made.bias is not None:
            made.bias.copy_(plain.bias)
    return _alike(made, plain)


def _alike(made: Contextual, plain: nn.Linear | nn.Conv2d) -> Contextual:
    """What was frozen stays so, and what was in evaluation mode."""
    for name, parameter in plain.named_parameters():
        own = getattr(made, name)
        if own is not None:
            own.requires_grad_(parameter.requires_grad)
    return made.train(plain.training)


# -- architectures ----------------------------------------------------------------------------------------------------


def plain_fully_connected(widths: Sequence[int], bias: bool = True) -> nn.Sequential:
    """[B, ...] to [B, widths[-1]] with ReLUs between linear layers; xavier_normal weights, biases of 0 (section 2.5).

    Args:
        widths: inputs, hidden units, outputs.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias)
        nn.init.xavier_normal_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fully_connected(
    widths: Sequence[int],
    kind: Kind = "none",
    *,
    seed: int = 0,
    limit: int | None = None,
    learn: bool = False,
    bias: bool = True,
    numbers: str | None = None,
    part: str = "full",
) -> Superposed:
    """A perceptron of real or complex numbers under any kind of contexts.

    Args:
        widths: inputs, hidden units, outputs: [784, 256, 256, 256, 10].
        kind: contexts; those of phases make the network complex.
        seed, limit, learn: of the contexts.
        bias: whether layers have one.
        numbers: real or complex; default: as the kind asks.
        part: `real` drops the imaginary part after every layer (an ablation of the complex network).

    Raises:
        UserError: real numbers for a kind of phases, or complex ones for another.
    """
    numbers = numbers or ("complex" if kind in PHASES else "real")
    check_choice("--numbers", numbers, ("real", "complex"))
    check_choice("--part", part, ("full", "real"))
    if numbers == "real":
        if kind in PHASES:
            raise UserError("--numbers", numbers, f"complex: contexts of kind {kind} are phasors")
        if part != "full":
            raise UserError("--part", part, "full in a network of real numbers")
        return contextualize(
            plain_fully_connected(widths, bias), kind, limit, seed=seed, learn=("*",) if learn else (), bias=bias
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        family = make_contexts(kind, inputs, seed, str(1 + 2 * number), limit, learn)
        layers += [ComplexPSPLinear(inputs, outputs, family, bias, part), SplitReLU()]
    return Superposed(nn.Sequential(*layers[:-1], RealPart()), limit)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with normalisation and a shortcut, 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None
        self.norm3 = norm(outputs) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        if self.shortcut is not None and self.norm3 is not None:
            x = self.norm3(self.shortcut(x))
        return (x + y).relu()


class ResNet(nn.Module):
    """CIFAR residual network: 3 x 3 stem, stages of basic blocks that halve the side, mean, linear (section 2.6).

    Args:
        channels: of the images. classes: outputs.
        widths: of the stages: (64, 128, 256, 512) for ResNet-18.
        blocks: in each stage.
        norm: makes the normalisation for a number of channels.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: int = 2,
        norm: Callable[[int], nn.Module] = StaticBatchNorm2d,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.norm = norm(widths[0])
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(BasicBlock(inputs, width, 2 if stage and not block else 1, norm))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.output = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, classes]."""
        x = self.blocks(self.norm(self.stem(x)).relu())
        return self.output(x.mean((2, 3)))


class Separate(nn.Module):
    """K networks of their own, one a context: the upper bound, and what a superposition must not secretly be.

    Args:
        make: builds one. contexts: K.
    """

    def __init__(self, make: Callable[[], nn.Module], contexts: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(make() for _ in range(contexts))
        self.limit = contexts
        self.k: Index = 0

    def set_context(self, k: Index) -> None:
        """Use network k until told otherwise."""
        self.k = _whole(k, self.limit)
        _key_norms(self, self.k)

    def forward(self, x: Tensor, k: Index | None = None) -> Tensor:
        chosen = _whole(self.k if k is None else k, self.limit)
        _key_norms(self.networks[chosen], chosen)
        return self.networks[chosen](x)

    def retrieve(self, k: int | float) -> nn.Module:
        chosen = _whole(k, self.limit)
        return _without_contexts(copy.deepcopy(self.networks[chosen]), chosen)

    def families(self) -> list[Contexts]:
        return []


class MultiHead(nn.Module):
    """One network with an output layer for every context.

    Args:
        trunk: a network whose last module is `output` or, in a sequence, a linear layer. contexts: K.
    """

    def __init__(self, trunk: nn.Module, contexts: int) -> None:
        super().__init__()
        name, last = [(n, m) for n, m in trunk.named_modules() if isinstance(m, nn.Linear)][-1]
        self.heads = nn.ModuleList(
            nn.Linear(last.in_features, last.out_features, last.bias is not None) for _ in range(contexts)
        )
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.xavier_normal_(head.weight)
            if head.bias is not None:
                nn.init.zeros_(head.bias)
        _put(trunk, name, nn.Identity())
        self.trunk, self.place, self.limit = trunk, name, contexts
        self.k: Index = 0

    def set_context(self, k: Index) -> None:
        """Use head k (and its statistics) until told otherwise."""
        self.k = _whole(k, self.limit)

    def forward(self, x: Tensor, k: Index | None = None) -> Tensor:
        chosen = _whole(self.k if k is None else k, self.limit)
        _key_norms(self.trunk, chosen)
        return self.heads[chosen](self.trunk(x))

    def retrieve(self, k: int | float) -> nn.Module:
        """The trunk with head k, as a plain network."""
        chosen = _whole(k, self.limit)
        network = copy.deepcopy(self.trunk)
        _put(network, self.place, copy.deepcopy(self.heads[chosen]))
        return _without_contexts(network, chosen)

    def families(self) -> list[Contexts]:
        return []


def _whole(k: Index, limit: int) -> int:
    if isinstance(k, Tensor):
        raise UserError("context", "one for every sample", "one for the batch: these networks have parts for each")
    if int(k) != k or not 0 <= k < limit:
        raise IndexError(f"context {k} asked for; there are contexts 0 to {limit - 1}")
    return int(k)


def count_parameters(network: nn.Module) -> int:
    """Numbers in the parameters."""
    return sum(math.prod(parameter.shape) for parameter in network.parameters())


__all__ = [
    "BasicBlock",
    "Complex",
    "ComplexPSPConv2d",
    "ComplexPSPLinear",
    "MultiHead",
    "PSPConv2d",
    "PSPLinear",
    "ResNet",
    "Separate",
    "Superposed",
    "contextualize",
    "count_parameters",
    "fully_connected",
    "plain_fully_connected",
]  # fmt: skip
