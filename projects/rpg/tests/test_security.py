"""Keys: checked, hidden, and needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rpg.hosts import make_host
from rpg.security import KEYS, hidden, make_key, matches, save, tag, verify, with_key
from rpg.wrap import RPGModel, read_model
from shared.config import UserError

KEY = 2**62 + 12345


def model_of(key: int = KEY, scope: str = "global") -> RPGModel:
    torch.manual_seed(0)
    return RPGModel(make_host("patch-resnet", width=16), dof_ratio=0.25, scope=scope, seed=key).eval()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_keys_are_drawn_from_all_of_their_range() -> None:
    keys = {make_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(0 <= key < KEYS for key in keys)
    assert max(keys) > KEYS // 2


def test_tag_matches_its_key_alone_and_two_tags_of_one_key_differ() -> None:
    first, second = tag(KEY, rounds=10), tag(KEY, rounds=10)
    assert first["digest"] != second["digest"]
    assert matches(KEY, first)
    assert matches(KEY, second)
    assert not matches(KEY + 1, first)
    assert str(KEY) not in str(first)


@pytest.mark.parametrize(
    "damage", [{"rounds": 0}, {"rounds": 10**12}, {"rounds": "many"}, {"salt": "zz"}, {"digest": None, "salt": None}]
)
def test_damaged_tags_are_said_to_be(damage: dict) -> None:
    with pytest.raises(UserError, match="key tag"):
        matches(KEY, {**tag(KEY, rounds=10), **damage})


@pytest.mark.parametrize("key", [-1, KEYS])
def test_keys_out_of_range(key: int, tmp_path: Path) -> None:
    for call in (lambda: tag(key), lambda: with_key(model_of(), key), lambda: verify(tmp_path, key)):
        with pytest.raises(UserError, match="key"):
            call()


def test_hidden_key_opens_the_file_and_is_not_in_it(tmp_path: Path) -> None:
    model = model_of(scope="block")
    path = tmp_path / "model.pt"
    save(model, path, hide_key=True)
    stored = read_model(path)
    assert all(spec["seed"] is None for spec in stored["plans"].values())
    assert str(KEY).encode() not in path.read_bytes()
    assert KEY.to_bytes(8, "little") not in path.read_bytes()
    assert verify(path, KEY)
    assert not verify(path, 0)
    right = model_of(scope="block")
    nn.init.zeros_(right.ring_parameters()[0])
    right.load(path)
    assert torch.equal(right(images()), model(images()))
    wrong = model_of(7, "block")
    before = wrong(images())
    with pytest.raises(UserError, match=r"key.*7"):
        wrong.load(path)
    assert torch.equal(wrong(images()), before)


def test_open_key_is_in_the_file(tmp_path: Path) -> None:
    save(model_of(), tmp_path / "model.pt")
    assert verify(tmp_path / "model.pt", KEY)
    assert not verify(tmp_path / "model.pt", KEY - 1)
    with pytest.raises(UserError, match="exists"):
        verify(tmp_path / "nothing.pt", KEY)


def test_another_key_makes_unrelated_weights_of_the_same_numbers() -> None:
    model = model_of()
    other = with_key(model, KEY + 1)
    assert torch.equal(other.ring(), model.ring())
    for name, weight in model.weights().items():
        cosine = torch.nn.functional.cosine_similarity(weight.flatten(), other.weights()[name].flatten(), dim=0)
        assert abs(float(cosine)) < 5 / weight.numel() ** 0.5
    assert torch.equal(with_key(other, KEY)(images()), model(images()))


def test_rings_of_different_keys_cannot_share_a_tag() -> None:
    stored = model_of(scope="block").stored()
    name = next(iter(stored["plans"]))
    stored["plans"][name] = {**stored["plans"][name], "seed": 1}
    with pytest.raises(UserError, match=r"key.*2 different"):
        hidden(stored)


def trained(model: RPGModel) -> tuple[RPGModel, torch.Tensor, torch.Tensor]:
    """A network that has learned four blobs by heart."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 3, 1, 1, generator=draw)
    labels = torch.arange(4).repeat(64)
    x = centres[labels] + 0.3 * torch.randn(256, 3, 32, 32, generator=draw)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval(), x, labels


def test_a_trained_network_knows_nothing_under_another_key() -> None:
    torch.manual_seed(0)
    model, x, labels = trained(RPGModel(make_host("patch-resnet", width=16, num_classes=4), dof_ratio=0.25))
    with torch.no_grad():
        assert float((model(x).argmax(1) == labels).float().mean()) > 0.95
        accuracies = [float((with_key(model, key)(x).argmax(1) == labels).float().mean()) for key in range(1, 9)]
    # Four classes: chance is a quarter; a class is a blob, so that a single wrong network may still sort some of them.
    assert sum(accuracies) / len(accuracies) < 0.5
