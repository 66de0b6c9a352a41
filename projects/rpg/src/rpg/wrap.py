"""`RPGModel`: any network, its weights drawn from rings.

    model = RPGModel(torchvision.models.resnet18(), dof_ratio=0.2)
    logits = model(images)

The host keeps its own parameters (stem, normalisation, biases, classifier); the generated ones are no longer
parameters of it. Before each forward pass they are set as plain attributes, so that the host, its hooks and
its checkpointed segments find them where they were. The model's parameters are the rings and what the host kept.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rpg.compress import unpacked
from rpg.hosts.host import NORMS, Host, generated_names, scope_of, unnormalised_layers
from rpg.hosts.names import SCOPES
from rpg.plan import VERSION, histogram, make_plan, split_budget
from rpg.ring import Ring, check_spec, initial_scales, traced
from rpg.security import matches
from shared.config import UserError, check_choice, check_range

log = logging.getLogger(__name__)
MODEL_FORMAT = "rpg-model-2"
OLD_FORMATS = ("rpg-model-1",)  # 1 has no checksum; it is read as before


@dataclass(frozen=True)
class Slot:
    """A generated parameter: its name in the host, its other names where it is tied, shape, ring and place there."""

    name: str
    aliases: tuple[str, ...]
    shape: torch.Size
    ring: str
    layer: int


class RPGModel(nn.Module):
    """A host whose weights come from one or several rings.

    Args:
        host: any module; taken over and changed.
        ring_size: M, all rings together.
        dof_ratio: M / N instead, in (0, 1]. Default: an eighth.
        scope: `global`; `stage`, `block`, `subnetwork` for hosts of this package; `layer`; or pairs
            (name pattern, ring name). The budget is shared out in proportion to the weights that a ring makes.
        plan: kind of plan, see `rpg.plan.KINDS`.
        include: `fnmatch` patterns of the generated parameters. Default: the host's own, see
            `rpg.hosts.host.generated_names`.
        exclude: patterns of parameters that stay the host's own.
        seed: the key; the plan is a function of it.
        chunk, offset: see `make_plan`.
        ring_init: see `rpg.ring.INITS`.
        keep_weights: start from the host's weights instead: the ring becomes their least-squares projection.

    Raises:
        UserError: sizes out of range, patterns that match nothing, a parameter matched by two rings, parameters that
            cannot be generated (lazy, quantised).
    """

    def __init__(
        self,
        host: nn.Module,
        ring_size: int | None = None,
        dof_ratio: float | None = None,
        scope: str | Sequence[tuple[str, str]] = "global",
        plan: str = "even",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        seed: int = 0,
        *,
        chunk: int = 1,
        offset: str = "random",
        ring_init: str = "host",
        keep_weights: bool = False,
    ) -> None:
        super().__init__()
        _check_host(host)
        names = choose_names(host, include, exclude)
        aliases = _aliases(host, names)
        parameters = dict(host.named_parameters())
        rings = assign_rings(host, names, scope)
        total = sum(parameters[name].numel() for name in names)
        size = ring_numbers(total, ring_size, dof_ratio, chunk)
        weights = [sum(parameters[name].numel() for name in group) for group in rings.values()]
        shares = [size] if len(rings) == 1 else ring_shares(size, weights, chunk)
        self.vanilla_parameters = sum(p.numel() for p in host.parameters())
        dtype = parameters[names[0]].dtype
        starting = {name: parameters[name].detach().clone() for name in names} if keep_weights else {}
        self.slots: list[Slot] = []
        self.rings = nn.ModuleDict()
        for ring in rings:
            if hasattr(self.rings, ring) or not ring:
                raise UserError("scope", ring, "ring names that are not words of Python's dictionaries")
        for (ring, group), share in zip(rings.items(), shares, strict=True):
            shapes = [parameters[name].shape for name in group]
            own = ring_init == "host" and isinstance(host, Host)
            kinds = [host.initialisation(name) for name in group] if own else ring_init  # pyright: ignore
            scales, std = initial_scales(shapes, kinds)
            sizes = [math.prod(shape) for shape in shapes]
            made = make_plan(sizes, share, plan, seed, chunk, offset=offset, ring=ring)
            self.rings[_key(ring)] = Ring(made, scales, std).to(dtype)
            for layer, name in enumerate(group):
                self.slots.append(Slot(name, aliases[name], parameters[name].shape, _key(ring), layer))
        loose = unnormalised_layers(host, names)
        for slot in self.slots:
            for name in (slot.name, *slot.aliases):
                module, attribute = _owner(host, name)
                del module._parameters[attribute]
                setattr(module, attribute, None)
        self.host = host
        self._attached: tuple[Any, ...] = ()
        self._leaves: tuple[tuple[Tensor, ...], ...] | None = None
        if keep_weights:
            for key, ring in self.rings.items():
                ring.project([starting[slot.name] for slot in self.slots if slot.ring == key])  # pyright: ignore
        uses = total / size
        self.advice = ""
        if loose and uses > 1.5:
            self.advice = (
                f"{len(loose)} of {len(names)} generated layers feed no normalisation ({', '.join(loose[:3])}"
                f"{', ...' if len(loose) > 3 else ''}): a step on the ring moves their output {math.sqrt(uses):.1f} "
                f"times as far as a step on the plain network. Consider --lr-scale sqrt_r."
            )
            warnings.warn(self.advice, stacklevel=2)

    # -- the network ---------------------------------------------------------------------------------------------

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The host's forward pass under the generated weights."""
        if torch.compiler.is_compiling() or any(traced(weight) for weight in self.ring_parameters()):
            # A transform's or a compiler's tensors must not stay behind in the host.
            return functional_call(self.host, self.weights(), inputs, named)
        # Not so otherwise: segments that are computed anew in the backward pass look for their weights in the host.
        self.attach(self._all_layers())
        return self.host(*inputs, **named)

    @torch.compiler.disable  # a compiler would unroll hundreds of tiles to gain nothing
    def weights(self) -> dict[str, Tensor]:
        """Host name -> generated weight in the host's shape. Made once until a ring changes.

        `torch.func.functional_call(model.host, model.weights(), inputs)` is the model, written out.
        """
        layers = dict(zip(self.rings, self._all_layers(), strict=True))
        return {
            name: layers[slot.ring][slot.layer].view(slot.shape)
            for slot in self.slots
            for name in (slot.name, *slot.aliases)
        }

    def _all_layers(self) -> tuple[tuple[Tensor, ...], ...]:
        if self._leaves is not None:
            return self._leaves
        return tuple(ring.layers() for ring in self.rings.values())  # pyright: ignore[reportCallIssue]

    def attach(self, layers: tuple[Any, ...]) -> None:
        """Set generated layers, one tuple a ring, as the host's weights; nothing is done where they are set already."""
        if len(layers) == len(self._attached) and all(a is b for a, b in zip(layers, self._attached, strict=True)):
            return
        by_ring = dict(zip(self.rings, layers, strict=True))
        for slot in self.slots:
            weight = by_ring[slot.ring][slot.layer].view(slot.shape)
            for name in (slot.name, *slot.aliases):
                module, attribute = _owner(self.host, name)
                object.__setattr__(module, attribute, weight)
        self._attached = layers

    def detach(self) -> None:
        """Take generated weights off the host and out of the rings' caches: they come back with the next forward."""
        for slot in self.slots:
            for name in (slot.name, *slot.aliases):
                module, attribute = _owner(self.host, name)
                object.__setattr__(module, attribute, None)
        self._attached = ()
        for ring in self.rings.values():
            ring.forget()  # pyright: ignore[reportCallIssue]

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Around the micro-batches of one step: weights are generated once, gradients gather in them, and one
        accumulation carries their sum into the rings on leaving.

        The rings' gradients are complete only then. Hooks of `DistributedDataParallel` see them too late to exchange
        them: there, leave this out (weights are still generated once a step).
        """
        made = self._all_layers()
        flat = [layer for layers in made for layer in layers]
        if self._leaves is not None or not any(layer.requires_grad for layer in flat):
            yield
            return
        self._leaves = tuple(tuple(layer.detach().requires_grad_() for layer in layers) for layers in made)
        leaves = [leaf for layers in self._leaves for leaf in layers]
        try:
            yield
        finally:
            self._leaves = None
        used = [(w, leaf.grad) for w, leaf in zip(flat, leaves, strict=True) if leaf.grad is not None]
        if used:
            torch.autograd.backward([weight for weight, _ in used], [gradient for _, gradient in used])

    # -- accounts ------------------------------------------------------------------------------------------------

    def ring(self, name: str | None = None) -> nn.Parameter:
        """W of a ring, `[M]`; the name may be left out where there is one.

        Raises:
            UserError: no ring of that name.
        """
        if name is None and len(self.rings) == 1:
            return next(iter(self.rings.values())).weight  # pyright: ignore[reportReturnType]
        names = {ring.plan.ring: ring for ring in self.rings.values()}  # pyright: ignore
        check_choice("ring", name, names)
        return names[name].weight  # pyright: ignore

    def ring_parameters(self) -> list[nn.Parameter]:
        """W of every ring."""
        return [ring.weight for ring in self.rings.values()]  # pyright: ignore[reportReturnType]

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that the host kept, by name."""
        return dict(self.host.named_parameters())

    @property
    def generated(self) -> int:
        """N, generated weights."""
        return sum(math.prod(slot.shape) for slot in self.slots)

    @property
    def uses(self) -> float:
        """r = N / M."""
        return self.generated / self.ring_total

    @property
    def ring_total(self) -> int:
        """M, numbers in all rings."""
        return sum(parameter.numel() for parameter in self.ring_parameters())

    def dof(self) -> int:
        """Free parameters in all: rings and own parameters."""
        return self.ring_total + sum(p.numel() for p in self.own_parameters().values())

    def report(self) -> dict[str, Any]:
        """The accounts: generated N, ring M, own parameters, total, both ratios, every layer and every ring."""
        own = sum(p.numel() for p in self.own_parameters().values())
        rings: Any = list(self.rings.values())
        return {
            "generated": self.generated,
            "ring": self.ring_total,
            "own": own,
            "total": self.ring_total + own,
            "vanilla": self.vanilla_parameters,
            "ring_over_generated": self.ring_total / self.generated,
            "total_over_vanilla": (self.ring_total + own) / self.vanilla_parameters,
            "layers": [
                {
                    "name": slot.name,
                    "shape": list(slot.shape),
                    "ring": self.rings[slot.ring].plan.ring,  # pyright: ignore
                    "scale": self.rings[slot.ring].scales[slot.layer],  # pyright: ignore
                }
                for slot in self.slots
            ],
            "rings": [{**ring.plan.spec(), "uses": histogram(ring.plan.counts())} for ring in rings],
        }

    def parameter_groups(
        self, lr: float, weight_decay: float, ring_lr: float | None = None, lr_scale: str = "none"
    ) -> list[dict[str, Any]]:
        """Optimiser groups: rings and own weights under weight decay, biases and normalisation without.

        Args:
            lr: of own parameters, and of rings unless `ring_lr` is given.
            weight_decay: of rings and of own weights.
            ring_lr: of rings.
            lr_scale: `none` (as the authors), `sqrt_r` or `r`: each ring's rate is divided by that, r = N / M. A step
                on the ring moves theta by sqrt(r) (uncorrelated gradients) to r (equal ones) as far.
        """
        check_choice("lr_scale", lr_scale, ("none", "sqrt_r", "r"))
        groups: list[dict[str, Any]] = []
        for ring in self.rings.values():
            uses = ring.plan.total / ring.plan.ring_size  # pyright: ignore
            scale = {"none": 1.0, "sqrt_r": math.sqrt(uses), "r": uses}[lr_scale]
            groups.append({
                "params": [ring.weight], "lr": (lr if ring_lr is None else ring_lr) / scale,
                "weight_decay": weight_decay, "name": f"ring {ring.plan.ring}",
            })  # fmt: skip
        return groups + plain_groups(self.host, lr, weight_decay)

    # -- saving --------------------------------------------------------------------------------------------------

    def export_dense(self) -> dict[str, Tensor]:
        """A state dict of the host as if it had never been generated: for use without this package."""
        with torch.no_grad():
            made = {name: weight.detach().clone() for name, weight in self.weights().items()}
        return {**{name: value.detach().clone() for name, value in self.host.state_dict().items()}, **made}

    def own_state(self) -> dict[str, Tensor]:
        """Parameters and buffers that the host kept, by name, tied ones under their first name only."""
        state = {name: value for name, value in self.host.state_dict().items() if isinstance(value, Tensor)}
        first: dict[tuple[Any, ...], str] = {}
        for name, value in state.items():
            # A tensor on no device, or of no numbers, has no address to be known by.
            place = (value.data_ptr() or name, value.dtype, value.shape, value.stride())
            first.setdefault(place, name)
        return {name: state[name] for name in first.values()}

    def stored(self) -> dict[str, Any]:
        """Everything a model file holds: rings, own state packed in one tensor a dtype, the plans' specifications.
        No index, no sign: they follow from the key."""
        rings: Any = self.rings
        return {
            "format": MODEL_FORMAT,
            "version": VERSION,
            "rings": {key: ring.weight.detach().cpu() for key, ring in rings.items()},
            "plans": {key: ring.plan.spec() for key, ring in rings.items()},
            "own": pack(self.own_state()),
        }

    def save(self, path: Path) -> int:
        """Write the model file: at most itemsize * (M + own numbers) + 64 KiB. Returns its size in bytes.

        Raises:
            UserError: the disk is full or refuses the write. `path` is as it was before.
        """
        return write_model(self.stored(), path)

    def load(self, path: Path) -> None:
        """Read a model file into a model of the same config.

        Raises:
            UserError: not a model file, or one of another network, plan or key; says which field differs.
        """
        self.restore(read_model(path))

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take over what `stored` returned, after checking all of it: a refused file changes nothing.

        Raises:
            UserError: another network's, plan's or key's; says which field differs.
        """
        if "host_threshold" in stored:
            raise UserError("model file", "a pruned host", "a plain model", "rpg.compress.load_pruned_host reads it.")
        if set(stored["plans"]) != set(self.rings):
            raise UserError("model file: rings", ", ".join(stored["plans"]), ", ".join(self.rings))
        rings: Any = self.rings
        if "key_tag" in stored:
            seed = next(iter(rings.values())).plan.seed
            if not matches(seed, stored["key_tag"]):
                raise UserError(
                    "key", seed, "the key that the model file was written under; it holds no more than a tag"
                )
        for key, ring in rings.items():
            spec = {**stored["plans"][key]}
            if "key_tag" in stored:
                spec["seed"] = ring.plan.seed
            check_spec(spec, ring.plan)
        weights = {key: unpacked(stored["rings"][key]) for key in rings}
        for key, ring in rings.items():
            if weights[key].shape != ring.weight.shape:
                shapes = list(weights[key].shape), list(ring.weight.shape)
                raise UserError(f"model file: ring {key}", f"shape {shapes[0]}", f"shape {shapes[1]}")
        own, mine = unpack(stored["own"]), self.own_state()
        wrong = {name for name in own.keys() | mine.keys() if name not in own or name not in mine}
        wrong |= {name for name in own.keys() & mine.keys() if own[name].shape != mine[name].shape}
        if wrong:
            raise UserError("model file: own parameters", ", ".join(sorted(wrong)), "those of this network")
        with torch.no_grad():
            for name, value in own.items():
                mine[name].copy_(value)  # a state dict's tensors are the module's own
            for key, ring in rings.items():
                ring.weight.copy_(weights[key])

    def __getstate__(self) -> dict[str, Any]:
        self.detach()  # generated weights are no leaves: they cannot be copied, and need not be
        # torch's compiled call belongs to this very object: a copy that kept it would go on calling the original.
        return {name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"}

    def __deepcopy__(self, memo: dict[int, Any]) -> RPGModel:
        state = self.__getstate__()
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in state.items()})
        return twin


def _key(ring: str) -> str:
    return ring.replace(".", "/")  # module names hold no dots


def _owner(host: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return host.get_submodule(path), attribute


def choose_names(host: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]) -> list[str]:
    """Names of the parameters to generate, in the order of the host; tied ones once, under their first name.

    Raises:
        UserError: a pattern that matches nothing, or nothing left to generate; the names are listed.
    """
    first = _first_names(host)
    for field, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in first):
                raise UserError(field, pattern, first, "The pattern matches no parameter.")

    def matched(patterns: Sequence[str]) -> set[str]:
        return {first[name] for name in first for pattern in patterns if fnmatchcase(name, pattern)}

    chosen = set(default_names(host)) if include is None else matched(include)
    names = [name for name, _ in host.named_parameters() if name in chosen - matched(exclude)]
    if not names:
        raise UserError("include", list(include or ()), first, "No parameter is left to generate.")
    return names


def default_names(host: nn.Module) -> list[str]:
    """What is generated unless patterns say otherwise: what a host of this package says; of any other network the
    convolution and linear weights without the first convolution (the stem) and the last linear map (the classifier)."""
    names = generated_names(host)
    if isinstance(host, Host):
        return names
    stem = next((m for m in host.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    classifier = next((m for m in reversed(list(host.modules())) if isinstance(m, nn.Linear)), None)
    spared = {id(module.weight) for module in (stem, classifier) if module is not None}
    parameters = dict(host.named_parameters())
    return [name for name in names if id(parameters[name]) not in spared]


def _first_names(host: nn.Module) -> dict[str, str]:
    """Name of every parameter -> the first name of the same numbers: a tied parameter, or one of shared storage."""
    places: dict[tuple[Any, ...], str] = {}
    found: dict[str, str] = {}
    for name, parameter in host.named_parameters(remove_duplicate=False):
        _check_parameter(name, parameter)
        address = parameter.data_ptr() or id(parameter)
        found[name] = places.setdefault((address, parameter.dtype, parameter.shape, parameter.stride()), name)
    return found


def assign_rings(host: nn.Module, names: Sequence[str], scope: str | Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Ring name -> its parameters, in the order of the host.

    Raises:
        UserError: unknown scope; a scope that this host has no parts for; a parameter that two rings ask for, or none.
    """
    rings: dict[str, list[str]] = {}
    if not isinstance(scope, str):
        for pattern, _ in scope:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError("scope", pattern, names, "The pattern matches no generated parameter.")
        for name in names:
            asked = list(dict.fromkeys(ring for pattern, ring in scope if fnmatchcase(name, pattern)))
            if len(asked) != 1:
                which = " and ".join(repr(ring) for ring in asked) or "no ring"
                raise UserError("scope", f"{name} is matched by {which}", "patterns that give every parameter one ring")
            rings.setdefault(asked[0], []).append(name)
        return rings
    check_choice("scope", scope, SCOPES)
    if scope not in ("global", "layer") and not isinstance(host, Host):
        raise UserError("scope", scope, ("global", "layer", "pairs (pattern, ring)"), "This host names no such parts.")
    for name in names:
        if scope == "global":
            ring = "global"
        elif scope == "layer":
            ring = name.rpartition(".")[0] or name
        else:
            ring = scope_of(host, name, scope)  # pyright: ignore[reportArgumentType]
        rings.setdefault(ring, []).append(name)
    return rings


def ring_numbers(total: int, ring_size: int | None, dof_ratio: float | None, chunk: int = 1) -> int:
    """M for N = `total` generated weights; from a ratio the nearest multiple of `chunk`, at least one.

    Raises:
        UserError: both given; out of range (N and the valid range are named).
    """
    if ring_size is not None and dof_ratio is not None:
        raise UserError("ring_size and dof_ratio", (ring_size, dof_ratio), "one of them")
    check_range("chunk", chunk, 1, total)
    if ring_size is not None:
        if not 1 <= ring_size <= total:
            raise UserError("ring_size", ring_size, f"an integer in [1, N = {total}]")
        return ring_size
    if dof_ratio is not None and not 0 < dof_ratio <= 1:
        raise UserError("dof_ratio", dof_ratio, f"a number in (0, 1], of N = {total} generated weights")
    blocks = round(total * (0.125 if dof_ratio is None else dof_ratio) / chunk)
    return min(max(1, blocks), total // chunk) * chunk


def ring_shares(size: int, weights: Sequence[int], chunk: int = 1) -> list[int]:
    """M of several rings: `size` in proportion to the weights that each makes, in whole chunks, never more than these.

    Raises:
        UserError: less than a chunk a ring, a size of broken chunks, or a ring that makes less than a chunk.
    """
    if size % chunk:
        raise UserError("ring_size", size, f"a multiple of the chunk, {chunk}")
    if min(weights) < chunk:
        raise UserError("chunk", chunk, f"at most {min(weights)}, what the smallest ring makes")
    limits = [weight // chunk for weight in weights]
    shares = split_budget(size // chunk, weights)
    spare = sum(max(0, share - limit) for share, limit in zip(shares, limits, strict=True))
    shares = [min(share, limit) for share, limit in zip(shares, limits, strict=True)]
    for index in sorted(range(len(shares)), key=lambda i: shares[i] - limits[i]):  # most room first
        moved = min(spare, limits[index] - shares[index])
        shares[index], spare = shares[index] + moved, spare - moved
    return [share * chunk for share in shares]


def _aliases(host: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Other names of tied parameters: generated once, kept tied."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for name, first in _first_names(host).items():
        if first in found and name != first:
            found[first].append(name)
    for name, others in found.items():
        if others:
            log.info("%s is tied to %s: generated once", name, ", ".join(others))
    return {name: tuple(others) for name, others in found.items()}


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.UninitializedParameter):
        raise UserError(name, "a lazy parameter", "parameters with a shape", "Run the host on one batch first.")
    if not parameter.is_floating_point():
        raise UserError(name, parameter.dtype, "floating-point parameters", "Quantised hosts cannot be generated.")


def _check_host(host: nn.Module) -> None:
    """Refuse quantised layers (their weights are no parameters: a ring would silently pass them by)."""
    for name, module in host.named_modules():
        kind = type(module).__module__
        if ".quantized" in kind or callable(getattr(module, "_packed_params", None)) or "bitsandbytes" in kind:
            valid = "layers with floating-point weights"
            raise UserError(name or "host", type(module).__name__, valid, "Quantised hosts cannot be generated.")


def plain_groups(module: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of a plain network: weights under decay; biases, scales and shifts without."""
    exempt = {
        id(parameter)
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(part, NORMS) or name.endswith("bias") or parameter.dim() < 2
    }
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if id(parameter) not in exempt]
    spared = [parameter for parameter in parameters if id(parameter) in exempt]
    groups = [("weights", decayed, weight_decay), ("biases and norms", spared, 0.0)]
    return [{"params": p, "lr": lr, "weight_decay": wd, "name": name} for name, p, wd in groups if p]


def pack(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state dict as one flat tensor a dtype and a list of (name, shape): many small tensors cost headers."""
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            groups.setdefault(str(value.dtype).removeprefix("torch."), []).append((name, value.detach().cpu()))
    return {
        dtype: {
            "names": [(name, list(value.shape)) for name, value in items],
            "values": torch.cat([value.reshape(-1) for _, value in items]),
        }
        for dtype, items in groups.items()
    }


def unpack(packed: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict that `pack` was given.

    Raises:
        UserError: names, shapes and numbers that do not fit together.
    """
    state: dict[str, Tensor] = {}
    try:
        for group in packed.values():
            sizes = [math.prod(shape) for _, shape in group["names"]]
            for (name, shape), values in zip(group["names"], group["values"].split(sizes), strict=True):
                state[name] = values.reshape(shape)
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise UserError("model file: own parameters", "damaged", "an undamaged file", str(error)[:200]) from error
    return state


def checksum(value: Any) -> str:
    """SHA-256 over what a model file holds, whatever order its dictionaries are in; hexadecimal."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            digest.update(f"tensor {part.dtype} {list(part.shape)}:".encode())
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping):
            digest.update(f"mapping {len(part)}:".encode())
            for key in sorted(part, key=str):
                add(str(key))
                add(part[key])
        elif isinstance(part, (list, tuple)):
            digest.update(f"list {len(part)}:".encode())
            for item in part:
                add(item)
        else:
            content = repr(part)
            digest.update(f"{type(part).__name__} {len(content)}:{content}".encode())

    add(value)
    return digest.hexdigest()


def write_model(stored: Mapping[str, Any], path: Path) -> int:
    """Write what `RPGModel.stored` returned, in whatever form, with its checksum. Returns the file's bytes.

    Raises:
        UserError: the disk is full or refuses the write. `path` is as it was before.
    """
    from shared.checkpoint import save_atomically

    save_atomically({**stored, "checksum": checksum(stored)}, path)
    return path.stat().st_size


def read_model(path: Path) -> dict[str, Any]:
    """Read a model file; runs no code of it.

    Raises:
        UserError: missing, damaged (its checksum is not that of its content), or no model file.
    """
    from shared.checkpoint import load_plain

    stored = load_plain(path, "model file", "an undamaged model file, written by `rpg export` or `train`")
    known = (MODEL_FORMAT, *OLD_FORMATS)
    if not isinstance(stored, dict) or stored.get("format") not in known:
        formats = " or ".join(known)
        raise UserError("model file", path, f"a file of format {formats}, written by `rpg export` or `train`")
    expected = stored.pop("checksum", None)
    if stored["format"] == MODEL_FORMAT and expected != checksum(stored):
        hint = "Its checksum is not the one it was written with."
        raise UserError("model file", path, "an undamaged model file", hint)
    rings, plans, own = (stored.get(name) for name in ("rings", "plans", "own"))
    parts = isinstance(rings, dict) and isinstance(plans, dict) and isinstance(own, dict)
    if not parts or set(rings) != set(plans) or not all(isinstance(spec, dict) for spec in plans.values()):
        raise UserError("model file", path, "a file with rings, plans and own parameters")
    return stored
