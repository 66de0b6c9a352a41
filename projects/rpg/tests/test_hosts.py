"""Host networks: exact sizes, agreement with torchvision, names and scopes, and what they claim about norms."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from rpg.hosts import HOSTS, SCOPES, host_options, make_host
from rpg.hosts.host import (
    generated_count,
    generated_names,
    matching_names,
    parameter_count,
    scope_of,
    unnormalised_layers,
)
from shared.config import UserError


def test_names_need_no_torch():
    code = "import sys, rpg.hosts, rpg.hosts.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_host_lists_names_and_suggests():
    with pytest.raises(UserError, match=r"patch-resnet.*did you mean 'resnet18'"):
        make_host("resnet-18")


def test_unknown_option_lists_options():
    with pytest.raises(UserError, match=r"'widht'.*width"):
        make_host("mlp", widht=3)
    with pytest.raises(UserError, match="depth"):
        make_host("resnet18", depth=34)  # the depth is in the name
    with pytest.raises(UserError, match="depth"):
        make_host("mlp", depth=-1)
    assert host_options("vit-tiny")["width"] == 192


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("mlp", "width", "abc", "a whole number"),
        ("mlp", "width", 1.5, "a whole number"),
        ("patch-resnet", "width", True, "a whole number"),
        ("patch-resnet", "zero_init", 1, "true or false"),
        ("resnet18", "form", 3, "a word"),
        ("vit-tiny", "patch", "four", "a whole number"),
        ("msblock", "beta", "big", "a number"),
    ],
)
def test_option_of_another_type_is_refused_by_name(name: str, option: str, value: object, wanted: str):
    with pytest.raises(UserError, match=f"{name}: option {option}: got '{value}'; valid: {wanted} \\(default"):
        make_host(name, **{option: value})  # pyright: ignore


def test_options_of_every_type_are_taken():
    make_host("patch-resnet", width=4, zero_init=True)
    make_host("resnet18", width=4, form=None)
    make_host("msblock", beta=1, tolerance=0.5)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("value", ["abc", 1.5, 0, -1, True, None, 3, 7])
def test_no_value_of_an_option_is_a_traceback(name: str, value: object):
    for option in host_options(name):
        with torch.device("meta"), contextlib.suppress(UserError):
            make_host(name, **{option: value})  # pyright: ignore


# Totals of torchvision's documentation; generated = total - stem - BN - classifier.
@pytest.mark.parametrize(
    ("name", "total", "generated", "layers"),
    [
        ("resnet18", 11_689_512, 11_157_504, 19),
        ("resnet34", 21_797_672, 21_258_240, 35),
        ("resnet50", 25_557_032, 23_445_504, 52),
    ],
)
def test_resnet_counts(name: str, total: int, generated: int, layers: int):
    with torch.device("meta"):
        imagenet = make_host(name, num_classes=1000, image_size=224)
        cifar = make_host(name, num_classes=10, image_size=32)
    assert parameter_count(imagenet) == total
    assert len(generated_names(imagenet)) == layers
    # The stem is outside the ring, so both forms draw the same number of weights.
    assert generated_count(imagenet) == generated_count(cifar) == generated


def test_mlp_and_patch_resnet_counts():
    mlp = make_host("mlp", in_channels=1, image_size=28)
    assert generated_count(mlp) == 118_016
    assert parameter_count(mlp) == 118_016 + 128 + 128 + 10
    narrow = {width: make_host("mlp", in_channels=1, image_size=28, width=width) for width in (1, 4)}
    assert parameter_count(narrow[1]) == 807
    host = make_host("patch-resnet")
    assert generated_count(host) == 73_728
    assert len(generated_names(host)) == 8
    assert generated_count(make_host("patch-resnet", width=11)) == 8_712


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_imagenet_form_equals_torchvision(depth: int):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(depth)
    reference = getattr(models, f"resnet{depth}")(num_classes=7)
    host = make_host(f"resnet{depth}", num_classes=7, image_size=224)
    host.load_state_dict(reference.state_dict(), strict=True)
    # BN at its start is the identity up to eps; random statistics make the test see it.
    for module in (*reference.modules(), *host.modules()):
        if isinstance(module, nn.BatchNorm2d):
            generator = torch.Generator().manual_seed(module.num_features)
            module.running_mean.normal_(generator=generator)  # pyright: ignore
            module.running_var.uniform_(0.5, 2, generator=generator)  # pyright: ignore
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(host.eval()(x), reference.eval()(x))


def test_vit_tiny_has_the_published_size():
    with torch.device("meta"):
        host = make_host("vit-tiny", num_classes=1000, image_size=224)
    assert parameter_count(host) == 5_717_416
    assert generated_count(host) == 12 * 12 * 192**2  # qkv 3, proj 1, mlp 8 squares in each of 12 blocks


def test_vit_equals_torchvision():
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    reference = models.VisionTransformer(
        image_size=28, patch_size=7, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=32, num_classes=5
    )
    with torch.no_grad():  # torchvision starts with zeros here and there, which would hide a wrong mapping
        for parameter in reference.parameters():
            parameter.normal_(std=0.5)
    parts = {
        "conv_proj": "patch_embed",
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "encoder.ln.": "norm.",
        "encoder.layers.encoder_layer_": "layers.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "heads.head": "head",
    }
    state = {}
    for name, value in reference.state_dict().items():
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        state[name] = value
    host = make_host("vit-mini", num_classes=5, image_size=28, patch=7, depth=2, width=8, heads=2)
    host.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(host.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-5)


def test_zero_init_makes_blocks_the_identity():
    host = make_host("patch-resnet", zero_init=True)
    x = torch.rand(2, 32, 8, 8)  # not negative: the closing ReLU changes nothing
    torch.testing.assert_close(host.pairs(x), x)
    resnet = make_host("resnet50", width=4, zero_init=True)
    assert all(block.bn3.weight.eq(0).all() for block in resnet.layer3)


def flat(output: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor:
    """Any host's output as one row a sample."""
    parts = output.values() if isinstance(output, dict) else [output]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


SMALL = [
    pytest.param("mlp", {"width": 16}, id="mlp"),
    pytest.param("patch-resnet", {"width": 8}, id="patch-resnet"),
    pytest.param("resnet18", {"width": 4}, id="resnet18"),
    pytest.param("resnet50", {"width": 4}, id="resnet50"),
    pytest.param("vit-mini", {"width": 16, "depth": 2}, id="vit-mini"),
    pytest.param("msblock", {"width": 4, "expansion": 1, "calls": 2}, id="msblock"),
    pytest.param("msblock", {"width": 4, "expansion": 1, "calls": 2, "share": "kernels"}, id="msblock-tied"),
    pytest.param("hourglass", {"width": 8, "depth": 1}, id="hourglass"),
    pytest.param("multitask", {"width": 4, "levels": 2}, id="multitask"),
    pytest.param("multitask", {"width": 4, "levels": 2, "variant": "reuse"}, id="multitask-reuse"),
]


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_shapes_and_gradient_reach_every_parameter(name: str, options: dict):
    torch.manual_seed(0)
    host = make_host(name, in_channels=1, num_classes=5, image_size=28, **options)
    output = flat(host(torch.randn(3, 1, 28, 28)))
    maps = {"hourglass": 2 * 5 * 14**2, "multitask": (1 + 3) * 28**2}  # stacks * joints * cells; channels * pixels
    assert output.shape == (3, maps.get(name, 5))
    (output * torch.randn_like(output)).sum().backward()
    for parameter_name, parameter in host.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(("name", "options"), SMALL)
def test_unnormalised_layers_are_those_whose_scale_matters(name: str, options: dict):
    torch.manual_seed(0)
    host = make_host(name, in_channels=1, num_classes=5, image_size=28, **options).double()
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    parameters = dict(host.named_parameters())
    matters = []
    with torch.no_grad():
        for norm in host.modules():  # eps breaks exact invariance
            if hasattr(norm, "eps"):
                norm.eps = 1e-12  # pyright: ignore
        before = flat(host(x))
        for weight in generated_names(host):
            parameters[weight].mul_(2)
            if not torch.allclose(flat(host(x)), before, rtol=1e-6, atol=1e-8):
                matters.append(weight)
            parameters[weight].div_(2)
    assert matters == unnormalised_layers(host)


def test_scopes():
    host = make_host("resnet18", width=4)
    name = "layer2.0.downsample.0.weight"
    assert [scope_of(host, name, scope) for scope in ("global", "stage", "block", "layer")] == [
        "global",
        "layer2",
        "layer2.0",
        "layer2.0.downsample.0",
    ]
    assert scope_of(host, "conv1.weight", "stage") == "rest"
    with pytest.raises(UserError, match="no subnetworks"):
        scope_of(host, name, "subnetwork")
    with pytest.raises(UserError, match="did you mean 'stage'"):
        scope_of(host, name, "stages")


@pytest.mark.parametrize("name", HOSTS)
def test_every_generated_weight_has_a_ring_in_every_scope(name: str):
    with torch.device("meta"):
        host = make_host(name, image_size=64)
    names = generated_names(host)
    assert names
    for pattern in host.generated_patterns:
        assert matching_names(host, [pattern])
    for scope in SCOPES[:-1]:
        assert "rest" not in {scope_of(host, weight, scope) for weight in names}
    if host.subnetworks():
        assert "subnetwork" in {scope_of(host, weight, "subnetwork") for weight in names}
        assert len({generated_count(host, copy) for copy in host.subnetworks()}) == 1


def test_pattern_that_matches_nothing_lists_the_parameters():
    with pytest.raises(UserError, match=r"layers\.0\.weight"):
        matching_names(make_host("mlp"), ["conv*"])


def test_generated_names_of_any_module():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 2))
    assert generated_names(module) == ["0.weight", "3.weight"]
    assert unnormalised_layers(module) == ["3.weight"]
