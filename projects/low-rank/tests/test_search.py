"""Random search and CMA-ES: what they keep is checked by plain loops, intervals by SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from low_rank import search
from low_rank.random_networks import Architecture, draw
from low_rank.rank import gram_effective_rank
from low_rank.search import (
    FEW,
    NORM,
    Classifiers,
    TwoClass,
    cma_search,
    draw_classifiers,
    random_search,
    training_loss,
    two_class,
    wilson,
)
from shared.config import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> tuple[Tensor, Tensor]:
    """Digits as a data set has them: uint8 [N, 1, 8, 8], labels [N]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images).mul(255 / 16).round().to(torch.uint8)  # type: ignore[attr-defined]
    return x[:, None], torch.tensor(bunch.target)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def data() -> TwoClass:
    return two_class(*images())


def outputs_by_hand(nets: Classifiers, k: int, x: Tensor) -> list[float]:
    """Network k on every image, one at a time, in NumPy's double precision."""
    first = nets.weights.first[k].double().numpy()
    hidden, readout = nets.weights.hidden[k].double().numpy(), nets.readout[k].double().numpy()
    found = []
    for image in x.double().numpy():
        h = np.maximum(first @ image, 0)
        for w in hidden:
            h = np.maximum(w @ h, 0)
        found.append(float(readout @ h))
    return found


# -- data


def test_two_classes_are_scaled_balanced_and_apart(data: TwoClass) -> None:
    assert [len(part) for part in vars(data).values()] == [8, 8, 64, 64, 200, 200]
    every = torch.cat([data.x_train, data.x_probe, data.x_test])
    torch.testing.assert_close(torch.linalg.vector_norm(every, dim=1), torch.full((272,), NORM))
    assert every.shape[1] == 64, "images of 8 pixels stay as they are"
    for y in (data.y_train, data.y_probe, data.y_test):
        assert float(y.sum()) == 0
        assert set(y.tolist()) == {-1.0, 1.0}
    assert len(every.unique(dim=0)) == 272, "no image is in two parts"


def test_images_are_those_of_their_classes_standardised(data: TwoClass) -> None:
    x, y = images()
    flat = x.flatten(1).double().numpy()
    both = flat[np.isin(y.numpy(), (0, 1))]
    z = (flat - both.mean(0)) / np.where(both.std(0) > 0, both.std(0), 1)
    z = NORM * z / np.linalg.norm(z, axis=1, keepdims=True)
    for image, sign in zip(data.x_train.numpy(), data.y_train.tolist(), strict=True):
        distances = np.abs(z - image).max(axis=1)
        assert distances.min() < 1e-5
        assert int(y[distances.argmin()]) == (sign + 1) / 2


def test_large_images_are_averaged_to_seven_pixels() -> None:
    x = torch.randint(0, 256, (40, 1, 28, 28), generator=seeded(), dtype=torch.uint8)
    y = torch.arange(40) % 2
    small = x.double().view(40, 1, 7, 4, 7, 4).mean(dim=(3, 5)).round().to(torch.uint8)
    large = two_class(x, y, train=8, probe=8, test=8)
    assert large.x_train.shape == (8, 49)
    # Rounding the averages to whole levels changes them by little.
    torch.testing.assert_close(two_class(small, y, train=8, probe=8, test=8).x_train, large.x_train, atol=0.1, rtol=0)


def test_classes_and_seeds_choose_images(data: TwoClass) -> None:
    x, y = images()
    again, other = two_class(x, y), two_class(x, y, seed=1)
    assert torch.equal(again.x_train, data.x_train)
    assert not torch.equal(other.x_train, data.x_train)
    # Swapping the classes swaps the signs.
    swapped = two_class(x, y, (1, 0))
    assert set(swapped.y_test.tolist()) == {-1.0, 1.0}
    ones = x[y == 1].flatten(1).double().mean(0)
    for chosen, sign in ((data, 1.0), (swapped, -1.0)):
        mean = chosen.x_test[chosen.y_test == sign].mean(0)
        opposite = chosen.x_test[chosen.y_test == -sign].mean(0)
        assert float((mean - opposite) @ (ones - ones.mean()).float()) > 0


def test_data_that_will_not_do_are_refused() -> None:
    x, y = images()
    refused: list[tuple[Any, str]] = [
        ({"classes": (0, 0)}, "two different"),
        ({"classes": (0, 11)}, "images of class 11"),
        ({"train": 7}, "even number"),
        ({"test": 2000}, "images of class 0"),
        ({"pool": 0}, "pool"),
    ]
    for arguments, named in refused:
        with pytest.raises(UserError, match=named):
            two_class(x, y, **arguments)
    with pytest.raises(UserError, match="shapes"):
        two_class(x[:, 0], y)
    with pytest.raises(UserError, match="blank"):
        two_class(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 2, train=2, probe=2, test=2)


# -- classifiers


def test_classifiers_are_networks_with_a_linear_read_out(data: TwoClass) -> None:
    nets = draw_classifiers(Architecture(64, 32, 3), 4, seeded())
    weights = draw(Architecture(64, 32, 3), 4, generator=(again := seeded()), dtype=torch.float32)
    assert torch.equal(nets.weights.first, weights.first)
    assert torch.equal(nets.readout, torch.randn(4, 32, generator=again) / math.sqrt(32))
    found = nets.outputs(data.x_probe)
    for k in range(4):
        np.testing.assert_allclose(found[k].numpy(), outputs_by_hand(nets, k, data.x_probe), rtol=1e-3, atol=1e-4)


def test_an_output_of_0_is_on_neither_side(data: TwoClass) -> None:
    nets = draw_classifiers(Architecture(64, 8, 1), 1, seeded())
    dead = Classifiers(nets.net, nets.weights, torch.zeros_like(nets.readout))
    assert float(dead.accuracy(data.x_test, data.y_test)) == 0


# -- random search


@pytest.mark.parametrize("depth", [1, 3])
def test_kept_networks_make_no_training_error(data: TwoClass, depth: int) -> None:
    found = random_search(data, depth, seeded(depth), target=40)
    assert found.classifiers is not None
    assert found.kept == len(found.classifiers) == len(found.ranks) == len(found.accuracy) >= 40
    assert not found.hollow
    for k in range(found.kept):
        outputs = outputs_by_hand(found.classifiers, k, data.x_train)
        assert all(f * y > 0 for f, y in zip(outputs, data.y_train.tolist(), strict=True))
    for k in (0, found.kept - 1):
        outputs = outputs_by_hand(found.classifiers, k, data.x_test)
        right = [f * y > 0 for f, y in zip(outputs, data.y_test.tolist(), strict=True)]
        assert float(found.accuracy[k]) == pytest.approx(sum(right) / 200)
        features = found.classifiers[k : k + 1].features(data.x_probe)[0]
        assert float(found.ranks[k]) == pytest.approx(float(gram_effective_rank(features)))
        assert float(found.ranks[k]) == pytest.approx(stats.entropy(np.linalg.svd(features.double())[1] ** 2))


def test_every_network_without_error_is_kept_and_no_other(data: TwoClass) -> None:
    found = random_search(data, 2, seeded(5), width=8, target=10**9, max_draws=1500)
    assert found.draws == 1500
    generator, right = seeded(5), []
    for _ in range(3):
        nets = draw_classifiers(Architecture(64, 8, 2), 500, generator)
        for k in range(500):
            outputs = outputs_by_hand(nets, k, data.x_train)
            if all(f * y > 0 for f, y in zip(outputs, data.y_train.tolist(), strict=True)):
                right.append(nets.readout[k])
    assert found.kept == len(right) > 0
    assert found.classifiers is not None
    assert torch.equal(found.classifiers.readout, torch.stack(right))


def test_the_search_stops_at_its_target_or_its_end(data: TwoClass) -> None:
    short = random_search(data, 1, seeded(), target=1, batch=50)
    assert short.kept >= 1
    assert short.draws % 50 == 0
    longer = random_search(data, 1, seeded(), target=short.kept + 1, batch=50)
    assert longer.draws > short.draws
    assert torch.equal(longer.ranks[: short.kept], short.ranks), "the same stream, further on"
    ended = random_search(data, 1, seeded(), max_draws=500)
    assert ended.draws == 500
    assert ended.hollow == (ended.kept < FEW) is True
    assert (ended.low, ended.high) == wilson(ended.kept, 500)
    assert ended.low < ended.share < ended.high


def test_a_search_that_finds_nothing_says_so(data: TwoClass) -> None:
    # The same image in both classes: no function has both signs.
    x = data.x_train.clone()
    x[data.y_train > 0] = x[data.y_train < 0]
    impossible = TwoClass(x, data.y_train, data.x_probe, data.y_probe, data.x_test, data.y_test)
    found = random_search(impossible, 1, max_draws=1000)
    assert (found.kept, found.draws, found.share, found.low, found.classifiers) == (0, 1000, 0.0, 0.0, None)
    assert found.hollow
    assert len(found.ranks) == len(found.accuracy) == 0
    assert 0 < found.high < 0.01


@pytest.mark.parametrize(
    ("second", "share"),
    [
        # Units see x or -x and never both: the two outputs are independent of each other.
        ((-1.0, 0.0), 1 / 4),
        # Outputs of wide networks are Gaussian; of orthogonal images they correlate by (E relu)^2 / E relu^2 = 1/pi.
        ((0.0, 1.0), 1 / 4 - math.asin(1 / math.pi) / (2 * math.pi)),
    ],
)
def test_chance_keeps_as_many_as_it_must(second: tuple[float, float], share: float) -> None:
    x = torch.tensor([(1.0, 0.0), second])
    y = torch.tensor([-1.0, 1.0])
    pair = TwoClass(x, y, x, y, x, y)
    found = random_search(pair, 1, seeded(), width=128, target=10**9, max_draws=6000)
    assert abs(found.share - share) < 4 * math.sqrt(share * (1 - share) / 6000)


def test_kept_networks_have_lower_rank_at_greater_depth(data: TwoClass) -> None:
    """Without any optimiser (the specification's measurement; there on Fashion-MNIST)."""
    found = [random_search(data, depth, seeded(depth), target=60).ranks for depth in (1, 2, 4)]
    means = [float(ranks.mean()) for ranks in found]
    errors = [float(ranks.std()) / math.sqrt(len(ranks)) for ranks in found]
    for i in range(2):
        assert means[i] - means[i + 1] > 4 * (errors[i] + errors[i + 1])


@pytest.mark.parametrize(("kept", "draws"), [(0, 500), (1, 500), (13, 1000), (500, 500), (150, 150_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilsons_interval_is_scipys(kept: int, draws: int, confidence: float) -> None:
    expected = stats.binomtest(kept, draws).proportion_ci(confidence, method="wilson")
    low, high = wilson(kept, draws, confidence)
    assert low == pytest.approx(expected.low, rel=1e-9, abs=1e-15)
    assert high == pytest.approx(expected.high, rel=1e-9)


def test_numbers_out_of_range_are_refused(data: TwoClass) -> None:
    refused: list[tuple[Any, str]] = [
        ({"depth": 0}, "--depth"),
        ({"depth": 1, "target": 0}, "target"),
        ({"depth": 1, "batch": 0}, "batch"),
        ({"depth": 1, "init": "kaimin"}, "did you mean 'kaiming'"),
    ]
    for arguments, named in refused:
        with pytest.raises(UserError, match=named):
            random_search(data, **arguments)
    refused = [((1, 0), "draws"), ((3, 2), "kept"), ((1, 2, 1.0), "confidence")]
    for arguments, named in refused:
        with pytest.raises(UserError, match=named):
            wilson(*arguments)


# -- CMA-ES


def test_training_losses_are_their_formulas() -> None:
    f = torch.randn(3, 5, generator=seeded(), dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(training_loss(f, y, "logistic"), (1 + (-y * f).exp()).log().mean(1))
    torch.testing.assert_close(training_loss(f, y, "squared"), ((f - y) ** 2).mean(1))
    with pytest.raises(UserError, match="logistic, squared"):
        training_loss(f, y, "hinge")  # pyright: ignore


@pytest.mark.parametrize("residual", ["none", "post", "block", "linear"])
@pytest.mark.parametrize("depth", [1, 3])
def test_numbers_in_a_row_are_the_network(residual: str, depth: int) -> None:
    nets = draw_classifiers(Architecture(6, 4, depth, "relu", residual), 3, seeded(), dtype=torch.float64)
    numbers = search._flat(nets)
    assert numbers.shape == (3, nets.net.parameters + 4)
    x = torch.randn(5, 6, generator=seeded(1), dtype=torch.float64)
    assert torch.equal(search._shaped(numbers, nets).outputs(x), nets.outputs(x))


def small(data: TwoClass, pixels: int = 12) -> TwoClass:
    """The same images through few of their pixels."""
    vary = data.x_test.var(0).argsort(descending=True)[:pixels]
    return TwoClass(
        data.x_train[:, vary], data.y_train, data.x_probe[:, vary], data.y_probe, data.x_test[:, vary], data.y_test
    )


@pytest.mark.parametrize("loss", ["logistic", "squared"])
@pytest.mark.parametrize("depth", [1, 3])
def test_cma_reaches_zero_training_error(data: TwoClass, loss: Any, depth: int) -> None:
    tiny = small(data)
    found = cma_search(tiny, depth, seeded(3), width=5, loss=loss)
    assert found.reached
    assert found.errors == 0
    outputs = outputs_by_hand(found.classifiers, 0, tiny.x_train)
    assert all(f * y > 0 for f, y in zip(outputs, tiny.y_train.tolist(), strict=True))
    y = tiny.y_train.double().numpy()
    each = np.log1p(np.exp(-y * outputs)) if loss == "logistic" else (np.array(outputs) - y) ** 2
    assert found.loss == pytest.approx(each.mean(), rel=1e-4)
    assert found.history[-1] == (found.evaluations, found.loss, 0)
    features = found.classifiers.features(tiny.x_probe)[0]
    assert found.rank == pytest.approx(float(gram_effective_rank(features)))
    right = [f * s > 0 for f, s in zip(outputs_by_hand(found.classifiers, 0, tiny.x_test), tiny.y_test, strict=True)]
    assert found.accuracy == pytest.approx(sum(map(bool, right)) / 200)


def test_cma_goes_on_to_a_target_of_the_loss(data: TwoClass) -> None:
    tiny = small(data)
    first = cma_search(tiny, 1, seeded(), width=5)
    further = cma_search(tiny, 1, seeded(), width=5, target=0.01)
    assert further.reached
    assert further.loss <= 0.01 < first.loss
    # The same search, stopped later.
    assert further.history[: len(first.history) - 1] == first.history[:-1]
    assert len(further.history) > len(first.history)


def test_cma_is_seeded_and_leaves_numpys_generator_alone(data: TwoClass) -> None:
    tiny = small(data)
    runs = []
    for disturbed in (1, 2):
        np.random.seed(disturbed)  # noqa: NPY002
        before: Any = np.random.get_state()  # noqa: NPY002
        runs.append(cma_search(tiny, 1, seeded(7), width=5, target=0.05))
        after: Any = np.random.get_state()  # noqa: NPY002
        assert np.array_equal(before[1], after[1])
        assert before[2] == after[2]
    assert runs[0].history == runs[1].history
    assert torch.equal(runs[0].classifiers.readout, runs[1].classifiers.readout)
    assert cma_search(tiny, 1, seeded(8), width=5, target=0.05).history != runs[0].history


def test_cma_that_runs_out_says_so(data: TwoClass) -> None:
    found = cma_search(small(data), 1, seeded(), width=5, target=0.0, max_evaluations=60, population=10)
    assert not found.reached
    assert found.evaluations == 60
    assert len(found.history) == 6
    assert found.loss == min(loss for _, loss, _ in found.history)


def test_cma_begins_where_it_is_told(data: TwoClass) -> None:
    tiny = small(data)
    own = draw_classifiers(Architecture(12, 5, 2), 3, seeded(9))[1:2]
    before = own.readout.clone()
    found = cma_search(tiny, 7, seeded(), width=99, step=1e-9, max_evaluations=20, target=0.0, start=own)
    assert found.classifiers.net == own.net
    torch.testing.assert_close(found.classifiers.weights.first, own.weights.first, rtol=0, atol=1e-6)
    assert torch.equal(own.readout, before)
    with pytest.raises(UserError, match=r"2,000.*width=32, depth=1"):
        cma_search(data, 1, width=4, start=draw_classifiers(Architecture(64, 32, 1), 1, seeded()))


def test_cma_with_variances_alone(data: TwoClass) -> None:
    assert cma_search(small(data), 2, seeded(), width=5, diagonal=True).reached


def test_cma_refuses_large_networks_and_wrong_numbers(data: TwoClass) -> None:
    with pytest.raises(UserError, match=r"2,000"):
        cma_search(data, 1, width=32)  # 64 * 32 + 32
    refused: list[tuple[Any, str]] = [
        ({"loss": "hinge"}, "logistic, squared"),
        ({"target": -1.0}, "target"),
        ({"step": 0.0}, "step"),
        ({"population": 1}, "population"),
        ({"max_evaluations": 0}, "max_evaluations"),
    ]
    for arguments, named in refused:
        with pytest.raises(UserError, match=named):
            cma_search(data, 1, width=4, **arguments)
