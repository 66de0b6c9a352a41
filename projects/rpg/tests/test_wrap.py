"""RPGModel: equal to the plain network where it must be, whole through everything that is done to modules."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from rpg.hosts import make_host
from rpg.layers import RPGConv2d, RPGLinear, draw
from rpg.plan import make_plan
from rpg.ring import Ring
from rpg.wrap import RPGModel, plain_groups, read_model, ring_shares
from shared.config import UserError

DOUBLE = torch.float64


class Small(nn.Module):
    """A stem, two generated convolutions with normalisation, a generated linear map, a classifier."""

    def __init__(self, segments: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.a, self.norm_a = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.norm_b = nn.Conv2d(6, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.c, self.norm_c = nn.Linear(12, 20), nn.LayerNorm(20)
        self.head = nn.Linear(20, 4)
        self.segments = segments

    def body(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_a(self.a(x)))
        return torch.relu(self.norm_b(self.b(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = checkpoint(self.body, x, use_reentrant=False) if self.segments else self.body(x)  # pyright: ignore
        return self.head(torch.relu(self.norm_c(self.c(x))))


def model_of(host: nn.Module | None = None, seed: int = 0, **options: Any) -> RPGModel:
    torch.manual_seed(seed)
    host = Small() if host is None else host
    return RPGModel(host, **{"dof_ratio": 0.25, **options})


def batch(n: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw_ = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=draw_, dtype=dtype), torch.randint(4, (n,), generator=draw_)


def loss_of(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    x, y = batch(dtype=dtype)
    return nn.functional.cross_entropy(model(x).float() if dtype != DOUBLE else model(x), y)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# -- what is generated


def test_default_generates_all_but_stem_and_classifier() -> None:
    model = model_of()
    assert [slot.name for slot in model.slots] == ["a.weight", "b.weight", "c.weight"]
    assert model.generated == 6 * 6 * 9 + 6 * 12 * 9 + 12 * 20
    assert model.ring_total == round(model.generated / 4)
    own = sum(p.numel() for p in Small().parameters()) - model.generated
    assert sum(p.numel() for p in model.parameters()) == model.dof() == model.ring_total + own
    report = model.report()
    assert (report["generated"], report["ring"], report["own"]) == (model.generated, model.ring_total, own)
    assert report["total_over_vanilla"] == model.dof() / sum(p.numel() for p in Small().parameters())
    assert sum(number for uses in report["rings"] for number in uses["uses"].values()) == model.ring_total


def test_no_weight_hides_among_the_parameters_and_training_keeps_ring_values() -> None:
    """A fake would keep weights of its own and merely start them from the ring."""
    model = model_of(exclude=["c.*"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    values = model.ring().detach().abs()
    scales = {layer["name"]: layer["scale"] for layer in model.report()["layers"]}
    for name, weight in model.weights().items():
        gap = (weight.detach().abs().view(-1, 1) / scales[name] - values).abs().min(1).values
        assert float(gap.max()) < 1e-6
    assert not {slot.name for slot in model.slots} & dict(model.host.named_parameters()).keys()
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == model.dof()


def test_include_exclude_and_rings_by_pattern() -> None:
    model = model_of(include=["*.weight"], exclude=["norm*", "head.*"])
    assert {slot.name for slot in model.slots} == {"stem.weight", "a.weight", "b.weight", "c.weight"}
    model = model_of(scope=[("a.*", "first"), ("[bc].*", "rest")])
    assert {ring.plan.ring: len(ring.plan.sizes) for ring in model.rings.values()} == {"first": 1, "rest": 2}
    assert model.ring("first").numel() + model.ring("rest").numel() == round(model.generated / 4)
    assert model.ring("rest").numel() == pytest.approx(model.ring_total * (648 + 240) / 1212, abs=1)
    layered = model_of(scope="layer")
    assert [ring.plan.ring for ring in layered.rings.values()] == ["a", "b", "c"]


@pytest.mark.parametrize("scope", ["global", "stage", "block", "layer"])
def test_scopes_spend_the_exact_budget(scope: str) -> None:
    torch.manual_seed(0)
    model = RPGModel(make_host("resnet18", width=8), ring_size=5000, scope=scope)
    assert model.ring_total == 5000
    assert len(model.rings) == {"global": 1, "stage": 4, "block": 8, "layer": 19}[scope]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


# Identity 4: a whole ring under equal constants is the plain network in other coordinates.
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["mlp", "resnet18"])
def test_whole_ring_follows_the_plain_network_step_by_step(name: str, optimiser: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 8} if name == "resnet18" else {"width": 16, "in_channels": 1}
    plain = make_host(name, image_size=16, **options).double()
    start = copy.deepcopy(plain.state_dict())
    model = RPGModel(copy.deepcopy(plain), dof_ratio=1.0, ring_init="constant", keep_weights=True)
    x, y = torch.randn(8, options.get("in_channels", 3), 16, 16, dtype=DOUBLE), torch.randint(10, (8,))

    def optimizer_of(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if optimiser == "sgd":
            return torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        return torch.optim.Adam(groups, lr=1e-3)

    ours = optimizer_of(model.parameter_groups(0.05 if optimiser == "sgd" else 1e-3, 5e-4))
    theirs = optimizer_of(plain_groups(plain, 0.05 if optimiser == "sgd" else 1e-3, 5e-4))
    for _ in range(20):
        for network, optimizer in ((model, ours), (plain, theirs)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        dense = model.export_dense()
        for key, value in plain.state_dict().items():
            assert float((dense[key] - value).abs().max()) < 1e-10, key
    moved = [float((plain.state_dict()[name] - start[name]).abs().max()) for name in start if name.endswith("weight")]
    assert min(moved) > 1e-4


# Identity 6: plan `reuse` on equal layers is one module called again and again.
def test_reuse_is_one_convolution_called_thrice() -> None:
    class Stack(nn.Module):
        def __init__(self, layers: list[nn.Module]) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x

    def convolution() -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3, padding=1, bias=False)

    torch.manual_seed(0)
    tied = convolution().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RPGModel(
            Stack([convolution() for _ in range(3)]).double(), ring_size=144, plan="reuse", include=["*"],
            ring_init="constant",
        )  # fmt: skip
    with torch.no_grad():
        model.ring().copy_(tied.weight.flatten())
    x = torch.randn(2, 4, 8, 8, dtype=DOUBLE)
    ours, theirs = model(x), Stack([tied] * 3)(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(model.ring().grad, tied.weight.grad.flatten(), rtol=1e-12, atol=1e-12)


# Identity 7: three ways to the same network.
def test_wrapped_parametrised_and_handwritten_networks_are_bitwise_equal() -> None:
    wrapped = model_of().eval()
    ring: Ring = next(iter(wrapped.rings.values()))  # pyright: ignore
    own = wrapped.own_state()
    parametrised, handwritten = Small(), Small()
    for layer, module in enumerate((parametrised.a, parametrised.b, parametrised.c)):
        draw(module, ring, layer)
    handwritten.a = RPGConv2d(ring, 0, 6, 6, 3, padding=1, bias=False)
    handwritten.b = RPGConv2d(ring, 1, 6, 12, 3, padding=1, bias=False)
    handwritten.c = RPGLinear(ring, 2, 12, 20)
    x, _ = batch()
    expected = wrapped(x)
    for network in (parametrised, handwritten):
        missing, unexpected = network.load_state_dict(own, strict=False)
        assert not unexpected
        assert all("ring" in name or "original" in name for name in missing)
        network.eval()
        assert torch.equal(network(x), expected)
        assert sum(p.numel() for p in network.parameters()) == wrapped.dof()
        wrapped.zero_grad()
        network(x).square().sum().backward()
        back = ring.weight.grad.clone()  # pyright: ignore
        wrapped.zero_grad()
        wrapped(x).square().sum().backward()
        assert torch.equal(ring.weight.grad, back)  # pyright: ignore
    called = functional_call(wrapped.host, wrapped.weights(), (x,))
    assert torch.equal(called, expected)


def test_layers_refuse_what_does_not_fit() -> None:
    ring = Ring(make_plan([12, 8], 5), [1.0, 1.0])
    with pytest.raises(UserError, match=r"layer.*2"):
        RPGLinear(ring, 2, 3, 4)
    with pytest.raises(UserError, match=r"\(4, 4\), 16 numbers.*12 numbers"):
        RPGLinear(ring, 0, 4, 4)
    with pytest.raises(UserError, match=r"name.*wieght.*weight"):
        draw(nn.Linear(3, 4), ring, 0, "wieght")
    layer = RPGLinear(ring, 0, 3, 4)
    assert torch.equal(copy.deepcopy(layer)(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(torch.ones(1, 3)), layer(torch.ones(1, 3)))


# Identity 9: the dense export.
@pytest.mark.parametrize("plan", ["even", "hash", "reuse", "haar"])
def test_dense_export_is_the_wrapped_model_bitwise(plan: str) -> None:
    model = model_of(plan=plan)
    loss_of(model).backward()  # running statistics move
    model.eval()
    dense = Small()
    dense.load_state_dict(model.export_dense(), strict=True)
    x, _ = batch()
    assert torch.equal(dense.eval()(x), model(x))


# -- survival


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_work_after_a_step_and_are_independent(duplicate) -> None:
    model = model_of()
    loss_of(model).backward()
    twin = duplicate(model)
    assert loss_of(twin).item() == loss_of(model).item()
    with torch.no_grad():
        twin.ring().zero_()
    assert loss_of(twin).item() != loss_of(model).item()
    twin.zero_grad()
    model.zero_grad()
    loss_of(model).backward()
    assert twin.ring().grad is None


def test_strict_state_dict_round_trip_through_a_file() -> None:
    model, twin = model_of(seed=0), model_of(seed=1)
    loss_of(model).backward()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    assert twin.load_state_dict(torch.load(buffer, weights_only=True), strict=True) == ([], [])
    assert torch.equal(twin.eval()(batch()[0]), model.eval()(batch()[0]))
    generated = {slot.name for slot in model.slots}
    assert not any(name.removeprefix("host.") in generated for name in model.state_dict())
    assert all(v.dtype != torch.int32 for v in model.state_dict().values() if isinstance(v, Tensor))


def test_state_of_another_network_plan_or_key_is_refused() -> None:
    state = model_of().state_dict()
    for options, named in (({"seed": 1}, "seed"), ({"plan": "hash"}, "kind"), ({"exclude": ["c.*"]}, "sizes")):
        other = RPGModel(Small(), ring_size=303, **options)
        before = other.ring().detach().clone()
        with pytest.raises(UserError, match=named):
            other.load_state_dict(state)
        assert torch.equal(other.ring(), before)


def test_to_another_dtype_and_back() -> None:
    model = model_of().eval()
    x, _ = batch()
    expected = model(x)
    model.double()
    assert model(x.double()).dtype == DOUBLE
    torch.testing.assert_close(model(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    model.float()
    assert torch.equal(model(x), expected)
    half = model.to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_autocast() -> None:
    model = model_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert model.ring().grad.dtype == torch.float32
    half = gradients(model)
    model.zero_grad()
    model.host.norm_a.reset_running_stats()
    loss_of(model).backward()
    full = gradients(model)
    similarity = nn.functional.cosine_similarity(half["rings.global.weight"], full["rings.global.weight"], dim=0)
    assert float(similarity) > 0.99


def test_checkpointed_segments_and_whole_models() -> None:
    plain, segments = model_of(), model_of(Small(segments=True))
    segments.load_state_dict(plain.state_dict())
    loss_of(plain).backward()
    loss_of(segments).backward()
    assert_same(gradients(plain), gradients(segments))
    again = model_of()
    x, y = batch()
    for reentrant in (False, True):
        again.zero_grad()
        inputs = x.clone().requires_grad_()
        nn.functional.cross_entropy(checkpoint(again, inputs, use_reentrant=reentrant), y).backward()  # pyright: ignore
        assert_same(gradients(plain), gradients(again))


@pytest.mark.slow
def test_compiled_model_is_the_model() -> None:
    model, twin = model_of(), model_of()
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        for network, own in ((compiled, model), (twin, twin)):
            own.zero_grad()
            loss_of(network).backward()  # pyright: ignore
        assert_same(gradients(model), gradients(twin), rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                p.sub_(0.1 * p.grad)
                q.sub_(0.1 * q.grad)


def test_functional_transforms() -> None:
    model = model_of().double().eval()
    x, y = batch(4, DOUBLE)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = functional_call(model, {**parameters, **buffers}, (x[None],))
        return nn.functional.cross_entropy(out, y[None])

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    for index in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[index : index + 1]), y[index : index + 1]).backward()
        assert_same({name: g[index] for name, g in per_sample.items()}, gradients(model), rtol=1e-9, atol=1e-12)
    # Forward over reverse: a Hessian-vector product against a difference of gradients.
    key = "rings.global.weight"
    direction = torch.randn_like(parameters[key])

    def gradient(ring: Tensor) -> Tensor:
        return torch.func.grad(lambda w: loss({**parameters, key: w}, x[0], y[0]))(ring)

    product = torch.func.jvp(gradient, (parameters[key],), (direction,))[1]
    step = 1e-6
    difference = (gradient(parameters[key] + step * direction) - gradient(parameters[key] - step * direction)) / (
        2 * step
    )
    torch.testing.assert_close(product, difference, rtol=1e-4, atol=1e-6)


def test_ensemble_by_vmap_over_rings() -> None:
    model = model_of().double().eval()
    x, _ = batch(4, DOUBLE)
    rings = torch.randn(3, model.ring_total, dtype=DOUBLE)
    outputs = torch.func.vmap(lambda ring: functional_call(model, {"rings.global.weight": ring}, (x,)))(rings)
    for ring, output in zip(rings, outputs, strict=True):
        with torch.no_grad():
            model.ring().copy_(ring)
        torch.testing.assert_close(model(x), output)


def test_frozen_ring_trains_the_rest() -> None:
    model = model_of()
    model.ring().requires_grad_(False)
    loss_of(model).backward()
    assert model.ring().grad is None
    assert model.host.head.weight.grad is not None
    model.ring().requires_grad_(True)
    loss_of(model).backward()
    assert model.ring().grad is not None


@pytest.fixture
def one_process_group() -> Iterator[None]:
    from torch import distributed

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_distributed_data_parallel() -> None:
    plain, model = model_of(), model_of()
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        for network, own in ((plain, plain), (parallel, model)):
            own.zero_grad()
            loss_of(network).backward()
        assert_same(gradients(plain), gradients(model))
    names = {name for name, _ in parallel.module.named_parameters()}
    assert "rings.global.weight" in names


def test_hooks_and_in_place_edits_of_the_host_see_the_weights() -> None:
    model = model_of()
    seen: list[Tensor] = []
    model.host.a.register_forward_hook(lambda module, args, output: seen.append(module.weight))
    model(batch()[0])
    assert torch.equal(seen[0], model.weights()["a.weight"])


# -- once a step


def count_generations(model: RPGModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = Ring.generate
    monkeypatch.setattr(Ring, "generate", lambda self, weight: calls.append(1) or original(self, weight))
    return calls


def test_weights_are_generated_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    calls = count_generations(model, monkeypatch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        (loss_of(model) + loss_of(model)).backward()
        assert len(calls) == step + 1
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            model(batch()[0])
    assert len(calls) == 4


def test_micro_batches_share_one_generation_and_one_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = model_of().eval(), model_of().eval()
    x, y = batch(12)
    calls = count_generations(model, monkeypatch)
    with model.accumulating():
        for part in range(3):
            rows = slice(4 * part, 4 * part + 4)
            (nn.functional.cross_entropy(model(x[rows]), y[rows]) / 3).backward()
    assert len(calls) == 1
    nn.functional.cross_entropy(twin(x), y).backward()
    assert_same(gradients(model), gradients(twin), rtol=1e-4, atol=1e-6)
    with torch.no_grad(), model.accumulating():  # nothing to gather: nothing is done
        model(x)


# -- tied weights, files, groups


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(10, 10, bias=False), nn.LayerNorm(10)
        self.second = nn.Linear(10, 10, bias=False)
        self.second.weight = self.first.weight
        self.other = nn.Linear(10, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.norm(self.second(self.norm(self.first(x)))))


def test_tied_weights_are_generated_once_and_stay_tied(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rpg.wrap"):
        model = RPGModel(Tied(), dof_ratio=1.0, include=["first.*", "second.*"])
    assert "first.weight is tied to second.weight" in caplog.text
    assert model.generated == 100
    model(torch.randn(2, 10)).sum().backward()
    assert model.host.first.weight is model.host.second.weight
    assert set(model.weights()) == {"first.weight", "second.weight"}
    restored = Tied()
    restored.load_state_dict(model.export_dense())
    assert restored.second.weight is restored.first.weight


def test_model_file_is_the_ring_the_own_numbers_and_little_else(tmp_path: Path) -> None:
    with torch.device("meta"):
        host = make_host("resnet18", num_classes=1000, image_size=224)
    host = host.to_empty(device="cpu")
    for p in [*host.parameters(), *host.buffers()]:
        nn.init.zeros_(p)
    model = RPGModel(host, ring_size=2_359_296)
    model.eval()(torch.zeros(1, 3, 32, 32))
    own = sum(value.numel() * value.element_size() for value in model.own_state().values())
    bytes_ = model.save(tmp_path / "model.pt")
    assert bytes_ == (tmp_path / "model.pt").stat().st_size
    assert bytes_ <= 4 * 2_359_296 + own + 65_536
    stored = read_model(tmp_path / "model.pt")
    assert "float32" in stored["own"]
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    assert state.tell() <= 4 * 2_359_296 + own + 65_536


def test_model_file_round_trip_and_refusals(tmp_path: Path) -> None:
    model, twin = model_of(seed=0), model_of(seed=1)
    loss_of(model).backward()
    path = tmp_path / "model.pt"
    model.save(path)
    twin.load(path)
    assert torch.equal(twin.eval()(batch()[0]), model.eval()(batch()[0]))
    other = RPGModel(Small(), dof_ratio=0.25, seed=5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(UserError, match=r"seed: 0 saved, 5 here"):
        other.load(path)
    wider = Small()
    wider.head = nn.Linear(20, 7)
    with pytest.raises(UserError, match=r"own parameters.*head"):
        RPGModel(wider, dof_ratio=0.25).load(path)
    with pytest.raises(UserError, match="rings"):
        model_of(scope="layer").load(path)
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(other.state_dict()[name], value)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="undamaged"):
        twin.load(path)
    with pytest.raises(UserError, match="exists"):
        twin.load(tmp_path / "nothing.pt")
    torch.save({"format": "other"}, path)
    with pytest.raises(UserError, match="rpg-model-2"):
        twin.load(path)


def test_parameter_groups() -> None:
    model = model_of(scope=[("a.*", "first"), ("[bc].*", "rest")], dof_ratio=1 / 4)
    groups = {group["name"]: group for group in model.parameter_groups(0.1, 5e-4)}
    assert set(groups) == {"ring first", "ring rest", "weights", "biases and norms"}
    assert groups["ring first"]["weight_decay"] == groups["weights"]["weight_decay"] == 5e-4
    assert groups["biases and norms"]["weight_decay"] == 0
    own = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(own) == sorted(id(p) for p in model.parameters())
    spared = {id(p) for p in groups["biases and norms"]["params"]}
    for name, parameter in model.own_parameters().items():
        assert (id(parameter) in spared) == (name not in ("stem.weight", "head.weight"))
    uses = 4.0
    for lr_scale, factor in (("none", 1.0), ("sqrt_r", uses**0.5), ("r", uses)):
        ring = next(iter(model.parameter_groups(0.1, 0, ring_lr=0.2, lr_scale=lr_scale)))
        assert ring["lr"] == pytest.approx(0.2 / factor, rel=0.01)
    with pytest.raises(UserError, match=r"lr_scale.*none.*sqrt_r.*r"):
        model.parameter_groups(0.1, 0, lr_scale="half")


# -- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ring_size": 0, "dof_ratio": None}, r"ring_size.*0.*\[1, N = 1212\]"),
        ({"ring_size": 1213, "dof_ratio": None}, r"ring_size.*1213.*\[1, N = 1212\]"),
        ({"dof_ratio": 0.0}, r"dof_ratio.*0.*\(0, 1\].*1212"),
        ({"dof_ratio": 1.5}, r"dof_ratio.*1\.5.*\(0, 1\]"),
        ({"dof_ratio": float("nan")}, r"dof_ratio.*nan"),
        ({"ring_size": 5}, r"ring_size and dof_ratio"),
        ({"plan": "evn"}, r"plan.*evn.*even.*hash"),
        ({"include": ["layer1.*"]}, r"include.*layer1.*a\.weight.*head\.weight"),
        ({"exclude": ["layer1.*"]}, r"exclude.*layer1"),
        ({"exclude": ["*"]}, r"include.*No parameter is left"),
        ({"scope": [("a.*", "one"), ("*", "two")]}, r"a\.weight.*'one' and 'two'"),
        ({"scope": [("a.*", "one")]}, r"b\.weight.*no ring"),
        ({"scope": [("z.*", "one")]}, r"scope.*z\.\*.*matches no generated"),
        ({"scope": "stage"}, r"scope.*stage.*global.*layer"),
        ({"scope": "stages"}, r"scope.*stages.*stage"),
        ({"chunk": 5000}, r"chunk.*5000"),
        ({"ring_init": "zeros"}, r"ring_init.*zeros.*fan_out"),
    ],
)
def test_refusals_name_field_value_and_valid_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        model_of(**options)


def test_lazy_and_quantised_hosts_are_refused() -> None:
    with pytest.raises(UserError, match=r"0\.weight.*lazy"):
        RPGModel(nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)))

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)

    with pytest.raises(UserError, match=r"(?s)scale.*int8.*[Qq]uantised"):
        RPGModel(Packed(), include=["layer.weight"])
    quantised = torch.ao.nn.quantized.Linear(4, 4)
    with pytest.raises(UserError, match=r"(?s)1.*Linear.*[Qq]uantised"):
        RPGModel(nn.Sequential(nn.Linear(4, 4), quantised, nn.Linear(4, 4)), include=["0.weight"])


def test_layers_without_normalisation_are_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"feed no normalisation.*sqrt_r"):
        RPGModel(make_host("mlp", in_channels=1, image_size=28), dof_ratio=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of()  # every generated layer is normalised
        RPGModel(make_host("mlp", in_channels=1, image_size=28), dof_ratio=1.0)  # no step is longer


def test_shares_of_chunked_rings() -> None:
    assert sum(ring_shares(640, [1000, 300, 64], 64)) == 640
    assert all(share % 64 == 0 for share in ring_shares(640, [1000, 300, 64], 64))
    with pytest.raises(UserError, match="chunk"):
        ring_shares(640, [1000, 30], 64)
    with pytest.raises(UserError, match="ring_size"):
        ring_shares(650, [1000, 300], 64)


def test_unknown_ring_is_named() -> None:
    with pytest.raises(UserError, match=r"ring.*other.*global"):
        model_of().ring("other")


@pytest.mark.gpu
def test_gpu_gradient_is_the_cpus() -> None:
    model = model_of().eval()
    loss_of(model).backward()
    expected = gradients(model)
    model.zero_grad()
    model.cuda()
    x, y = batch()
    nn.functional.cross_entropy(model(x.cuda()), y.cuda()).backward()
    assert_same({n: g.cpu() for n, g in gradients(model).items()}, expected, rtol=1e-3, atol=1e-5)
    model.cpu()
    assert torch.isfinite(loss_of(model))


@pytest.mark.gpu
def test_gpu_compiled_model_is_the_model() -> None:
    model = model_of().cuda().eval()
    x = batch()[0].cuda()
    compiled = torch.compile(model)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("host", "size", "expected"),
    [
        ("vit-mini", 32, lambda name, shape: 0.02),
        ("patch-resnet", 32, lambda name, shape: math.sqrt(2 / (shape[0] * 9))),
        ("mlp", 28, lambda name, shape: math.sqrt((1 if name == "layers.2.weight" else 2) / shape[1])),
    ],
)
def test_layers_start_as_suits_their_host(host: str, size: int, expected: Any) -> None:
    torch.manual_seed(0)
    model = RPGModel(make_host(host, in_channels=3, image_size=size), dof_ratio=0.5)
    weights = model.weights()
    for slot in model.slots:
        ring: Any = model.rings[slot.ring]
        wanted = expected(slot.name, slot.shape)
        assert ring.scales[slot.layer] * ring.std == pytest.approx(wanted), slot.name
        assert weights[slot.name].std().item() == pytest.approx(wanted, rel=0.15), slot.name


def test_a_copy_of_a_compiled_model_is_called_by_itself() -> None:
    import pickle

    model = RPGModel(make_host("mlp", in_channels=1, image_size=8), dof_ratio=0.25)
    x = torch.randn(2, 1, 8, 8)
    model.compile(backend="eager")
    expected = model(x)
    twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(x), expected)
    with torch.no_grad():
        for ring in twin.ring_parameters():
            ring.zero_()
    assert not torch.allclose(twin(x), expected)
    torch.testing.assert_close(model(x), expected)
