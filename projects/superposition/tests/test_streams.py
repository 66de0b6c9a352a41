"""Streams: the published permutations, turned images against SciPy, schedules at their edges, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from shared.config import UserError
from superposition.streams import (
    Incremental,
    Permuting,
    PermutingLabels,
    Rotating,
    Samples,
    make_schedule,
    pixel_permutation,
    rotate,
    split_classes,
)


def samples(n: int = 40, classes: int = 10, side: int = 6) -> Samples:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, side, side, generator=generator)
    y = torch.arange(n) % classes
    return Samples(x, y, x.flip(0), y.flip(0))


def test_permutations_are_the_published_ones() -> None:
    assert np.array_equal(pixel_permutation(0, 784), np.arange(784))
    for j in (1, 7):
        expected = np.random.RandomState(4321 + 1000 * j).permutation(784)
        assert np.array_equal(pixel_permutation(j, 784), expected)


def test_a_permuted_batch_is_its_images_permuted_one_by_one() -> None:
    stream = Permuting(samples(), period=3, tasks=4, batch_size=8, seed=0)
    for t in (0, 4, 11, 5):
        x, y = stream.batch(t)
        chosen, order = stream.chosen(t), pixel_permutation(t // 3, 36)
        for row, index in enumerate(chosen.tolist()):
            assert torch.equal(x[row].flatten(), stream.samples.x[index].flatten()[order])
            assert int(y[row]) == int(stream.samples.y[index])
    shifted = Permuting(samples(), 3, 2, 8, 0, first=2)
    assert torch.equal(shifted.test(1)[0], stream.test(3)[0])
    assert (stream.steps, stream.task(11), stream.task(50)) == (12, 3, 3)


def test_batches_are_a_function_of_the_step_and_use_every_sample_once_an_epoch() -> None:
    one, two = (Permuting(samples(), 100, 1, 8, seed=1) for _ in range(2))
    later = [one.chosen(t).clone() for t in range(10)]
    assert torch.equal(two.chosen(9), later[9])
    assert sorted(torch.cat(later[:5]).tolist()) == list(range(40))
    assert not torch.equal(later[0], later[5])
    assert not torch.equal(Permuting(samples(), 100, 1, 8, seed=2).chosen(0), later[0])


def test_renamed_labels_are_a_permutation_of_the_labels() -> None:
    stream = PermutingLabels(samples(), 5, 3, 8, 0, classes=10)
    assert torch.equal(stream.test(0)[1], stream.samples.y_test)
    renamed = stream.renamed(torch.arange(10), 2)
    assert sorted(renamed.tolist()) == list(range(10))
    assert renamed.tolist() != list(range(10))
    assert torch.equal(stream.test(2)[1], renamed[stream.samples.y_test])
    assert torch.equal(stream.test(2)[0], stream.samples.x_test)


@pytest.mark.parametrize("degrees", [17.0, 123.4, -40.0, 359.0])
def test_turned_images_are_scipys_inside(degrees: float) -> None:
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    ours = rotate(x, degrees, -0.4)[:, 0].numpy()
    yy, xx = np.mgrid[:28, :28] - 13.5
    inside = np.hypot(yy, xx) < 12  # neighbours inside the image too
    for mine, image in zip(ours, x[:, 0].numpy(), strict=True):
        theirs = ndimage.rotate(image, degrees, order=1, reshape=False, cval=-0.4)
        assert np.abs(mine - theirs)[inside].max() < 1e-3


def test_quarter_turns_are_exact_and_a_full_one_is_nothing() -> None:
    x = torch.rand(2, 1, 7, 7)
    assert torch.equal(rotate(x, 360.0, 0.0), x)
    assert torch.equal(rotate(rotate(x, 90.0, 0.0), 270.0, 0.0), x)
    assert np.array_equal(rotate(x, 90.0, 0.0)[0, 0].numpy(), np.rot90(x[0, 0].numpy()))
    torch.testing.assert_close(rotate(x, 89.9999, 0.0), rotate(x, 90.0, 0.0), rtol=0, atol=1e-4)


def test_what_comes_in_from_outside_is_background() -> None:
    turned = rotate(torch.full((1, 1, 28, 28), 2.0), 45.0, -0.4)
    assert float(turned[0, 0, 0, 0]) == pytest.approx(-0.4)
    assert float(turned[0, 0, 14, 14]) == pytest.approx(2.0)


def test_schedules_at_their_edges() -> None:
    stream = Rotating(samples(), turn=1000, turns=2, batch_size=8, seed=0, bins=10, background=0.0)
    schedule = make_schedule("task", stream)
    assert [schedule(t) for t in (0, 99, 100, 999, 1000, 10**6)] == [0, 0, 1, 9, 0, 0]
    assert (stream.angle(250), stream.centre(0), stream.steps) == (90.0, 18.0, 2000)
    period = make_schedule("period", stream, every=100, length=10)
    assert [period(t) for t in (0, 99, 100, 999, 1000, 10**6)] == [0, 0, 1, 9, 0, 0]
    assert make_schedule("continuous", stream, rate=0.01)(250) == 2.5
    assert make_schedule("constant", stream)(12345) == 0
    drawn = make_schedule("random", stream, length=5, seed=1)
    found = [drawn(t) for t in range(200)]
    assert set(found) == set(range(5))
    assert found == [make_schedule("random", stream, length=5, seed=1)(t) for t in range(200)]
    tasks = make_schedule("task", Permuting(samples(), 1000, 50, 8, 0))
    assert [tasks(t) for t in (0, 99, 100, 999, 1000, 49_999)] == [0, 0, 0, 0, 1, 49]


def test_turning_batches_are_turned_by_their_step() -> None:
    stream = Rotating(samples(), 100, 1, 8, 0, bins=10, background=0.0)
    x, _ = stream.batch(30)
    assert torch.equal(x, rotate(stream.samples.x[stream.chosen(30)], 108.0, 0.0))
    assert torch.equal(stream.upright()[0], stream.samples.x_test)
    assert torch.equal(stream.test(2)[0], rotate(stream.samples.x_test, 90.0, 0.0))


def test_classes_are_split_and_relabelled() -> None:
    parts = split_classes(samples(), 10, 5)
    assert [sorted(set(part.y.tolist())) for part in parts] == [list(range(5))] * 2
    stream = Incremental(parts, period=4, batch_size=10, seed=0)
    assert (stream.tasks, stream.steps, stream.size(1)) == (2, 8, 20)
    x, y = stream.batch(6)
    originals = {image.numpy().tobytes(): int(label) for image, label in zip(samples().x, samples().y, strict=True)}
    assert [originals[image.numpy().tobytes()] - 5 for image in x] == y.tolist()
    with pytest.raises(UserError, match="1, 2, 5, 10"):
        split_classes(samples(), 10, 3)


def test_impossible_streams_are_refused() -> None:
    with pytest.raises(UserError, match="--period"):
        Permuting(samples(), 0, 1, 8, 0)
    with pytest.raises(UserError, match="divisor"):
        Rotating(samples(), 100, 1, 8, 0, bins=7, background=0.0)
    with pytest.raises(UserError, match="at most the 40"):
        Permuting(samples(), 1, 1, 41, 0)
