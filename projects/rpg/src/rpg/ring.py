"""A ring: the free numbers, and the layers that are drawn from them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rpg.generate import Tables, generate, tables_of
from rpg.plan import Plan
from shared.config import UserError, check_choice

INITS = {
    "host": "what suits the host, layer by layer: fan_out for convolutions, trunc_normal for transformers; "
    "for the perceptron fan_in and a linear head",
    "fan_out": "Kaiming, sqrt(2 / fan_out): what the authors aim at for convolutions",
    "fan_in": "Kaiming, sqrt(2 / fan_in)",
    "xavier": "Glorot, sqrt(2 / (fan_in + fan_out))",
    "linear": "gain 1, sqrt(1 / fan_in), for linear heads",
    "trunc_normal": "0.02 throughout, for transformers",
    "unit": "a ring of unit variance under layer constants sqrt(2 / fan_in)",
    "constant": "the same constant a = 1 for every layer; the ring has the root mean square of fan_out",
    "authors": "the authors' code: ring sqrt(2 / 4608), constants sqrt(4608 / (out k^2))",
}


class Ring(nn.Module):
    """W in R^M and the plan that unpacks it (Section 3 of the paper).

    The index and sign tensors follow from the plan: they are worked out on the device at hand, and appear neither
    in the state dict nor in pickles. The state dict carries the plan's specification, and refuses another's.

    Args:
        plan: which entry becomes which weight.
        scales: a_l, one a layer.
        std: standard deviation of the initial W.
    """

    def __init__(self, plan: Plan, scales: Sequence[float], std: float = 1.0) -> None:
        super().__init__()
        if len(scales) != len(plan.sizes) or not all(scale > 0 and math.isfinite(scale) for scale in scales):
            raise UserError("scales", list(scales), f"{len(plan.sizes)} positive numbers, one a layer")
        self.plan, self.scales, self.std = plan, tuple(float(scale) for scale in scales), std
        self.weight = nn.Parameter(torch.empty(plan.ring_size))
        self._tables: tuple[torch.device, Tables] | None = None
        self._cached: tuple[Any, tuple[Tensor, ...]] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W ~ N(0, std^2) from torch's global generator."""
        nn.init.normal_(self.weight, std=self.std)

    def layers(self) -> tuple[Tensor, ...]:
        """theta_l, `[n_l]` each. Generated once, until W changes (by its version counter) or gradients are
        switched on or off; so all forward passes of a step share one generation."""
        weight = self.weight
        if traced(weight):
            return self.generate(weight)
        # The parameter itself is compared, so that it lives as long as what was made of it.
        state = (
            weight, weight._version, weight.data_ptr(), weight.dtype, weight.device,
            torch.is_grad_enabled() and weight.requires_grad, torch.is_inference_mode_enabled(),
        )  # fmt: skip
        if self._cached is None or not _same(self._cached[0], state):
            self._cached = (state, self.generate(weight))
        return self._cached[1]

    def layer(self, index: int) -> Tensor:
        """theta_l of one layer, `[n_l]`."""
        return self.layers()[index]

    def forget(self) -> None:
        """Drop generated weights: needed only after writing into `weight.data`, which no version counter sees."""
        self._cached = None

    def tables(self) -> Tables:
        """The plan, worked out for the ring's device."""
        device = self.weight.device
        if self._tables is None or self._tables[0] != device:
            self._tables = (device, tables_of(self.plan, self.scales, device))
        return self._tables[1]

    def generate(self, weight: Tensor) -> tuple[Tensor, ...]:
        """theta_l from any W `[M]` on the ring's device; keeps nothing."""
        return generate(weight, self.tables())

    def rekey(self, seed: int) -> None:
        """Draw the plan anew from another seed; W stays as it is."""
        self.plan = dataclasses.replace(self.plan, seed=seed)
        self._tables = self._cached = None

    @torch.no_grad()
    def project(self, layers: Sequence[Tensor]) -> None:
        """Set W to the least-squares fit of given weights, (G^T G)^-1 G^T theta; G^T G is diagonal.

        Raises:
            UserError: plan `haar`, whose G^T G is not.
        """
        gram = self.gram_diagonal()
        total = self.tables().accumulate([layer.detach().reshape(-1).to(self.weight) for layer in layers])
        self.weight.copy_(total / gram.clamp_min(torch.finfo(gram.dtype).tiny))

    def gram_diagonal(self) -> Tensor:
        """diag(G^T G), `[M]`: the sum of a_l^2 over the uses of each entry.

        Raises:
            UserError: plan `haar`, whose G^T G is not diagonal.
        """
        squares = np.repeat(np.square(self.scales), self.plan.sizes)
        gram = np.bincount(self.plan.all_indices(), squares, minlength=self.plan.ring_size)
        return torch.from_numpy(gram).to(self.weight)

    # -- saving and copying ---------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        return self.plan.spec()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        check_spec(state, self.plan)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Before any tensor is copied: a refused state dict must leave the ring as it was.
        extra = state_dict.get(prefix + "_extra_state")
        if extra is not None:
            check_spec(extra, self.plan)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": None, "_cached": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Ring:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        twin._tables = self._tables  # never written to: they can be shared
        return twin

    def extra_repr(self) -> str:
        plan = self.plan
        return f"M={plan.ring_size}, N={plan.total}, layers={len(plan.sizes)}, plan={plan.kind!r}, chunk={plan.chunk}"


def traced(weight: Tensor) -> bool:
    """Whether W belongs to a `torch.func` transform: what is made of it lives only there, and must not be kept."""
    return torch._C._functorch.is_functorch_wrapped_tensor(weight)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[0] is other[0] and one[1:] == other[1:]


def check_spec(spec: Mapping[str, Any], plan: Plan) -> None:
    """Raise `UserError` naming every field in which a saved plan's specification is not this plan's."""
    ours = plan.spec()
    changed = {name: (spec.get(name), ours[name]) for name in ours if spec.get(name) != ours[name]}
    if changed:
        listed = "; ".join(f"{name}: {there!r} saved, {here!r} here" for name, (there, here) in changed.items())
        hint = "The network's layers differ in size." if "sizes" in changed else ""
        raise UserError(
            "checkpoint", f"ring {plan.ring!r}", "the plan that this model has", f"{listed}. {hint}".strip()
        )


def target_std(shape: Sequence[int], kind: str) -> float:
    """sigma_l: the standard deviation that a layer of this shape starts with.

    Args:
        shape: `[out, in, ...]` of a linear or convolution weight.
        kind: one of `INITS`; `host` is for those who know the host, and without one means fan_out.
    """
    check_choice("ring_init", kind, INITS)
    receptive = math.prod(shape[2:])
    fan_in = (shape[1] if len(shape) > 1 else 1) * receptive
    fan_out = shape[0] * receptive
    if kind in ("fan_in", "unit"):
        return math.sqrt(2 / fan_in)
    if kind == "xavier":
        return math.sqrt(2 / (fan_in + fan_out))
    if kind == "linear":
        return math.sqrt(1 / fan_in)
    if kind == "trunc_normal":
        return 0.02
    return math.sqrt(2 / fan_out)


def initial_scales(shapes: Sequence[Sequence[int]], kind: str | Sequence[str]) -> tuple[tuple[float, ...], float]:
    """Layer constants a_l and the ring's standard deviation sigma_W, such that layer l starts with sigma_l.

    sigma_W is the root mean square of sigma_l over all weights, so that the mean of a_l^2 is 1 and a ring of N numbers
    has the optimiser's units of the plain network. `authors` and `unit` fix sigma_W instead; `constant` fixes a_l.

    Args:
        shapes: of the layers.
        kind: one of `INITS` for all layers, or one a layer (of those that fix neither).
    """
    sizes = [math.prod(shape) for shape in shapes]
    kinds = [kind] * len(shapes) if isinstance(kind, str) else list(kind)
    targets = [target_std(shape, each) for shape, each in zip(shapes, kinds, strict=True)]
    mean_square = sum(n * sigma**2 for n, sigma in zip(sizes, targets, strict=True)) / sum(sizes)
    if kind == "constant":
        return (1.0,) * len(shapes), math.sqrt(mean_square)
    fixed = {"authors": math.sqrt(2 / 4608), "unit": 1.0}
    std = fixed[kind] if isinstance(kind, str) and kind in fixed else math.sqrt(mean_square)
    return tuple(sigma / std for sigma in targets), std
