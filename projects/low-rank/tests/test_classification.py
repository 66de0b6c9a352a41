"""Training: what is trained is what is asked for, data are as said, ranks are those of the multiplied-out weights."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from low_rank.classification import Classification, layer_weights, make_model, spaced
from low_rank.cli import main
from low_rank.config import TRAIN_PRESETS, TrainConfig
from low_rank.models import gain
from low_rank.names import ACTIVATIONS
from low_rank.overparam import ExpandedLinear, collapse
from low_rank.rank import effective_rank, gram_effective_rank
from low_rank.train import chosen_by_test, differences, label, measure, open_run, train
from shared.augment import normalise
from shared.config import RunFailed, UserError
from shared.elsewhere import elsewhere
from shared.loop import Loop
from shared.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:capacity reduced")  # kernels of 3 x 3 twice are no matter here
SMALL = replace(TRAIN_PRESETS["smoke"], device="cpu", quiet=True, eval_every=10, max_test=200)


def ran(**fields: Any) -> Classification:
    config = replace(SMALL, **fields)
    task = Classification(config)
    Loop(task, config, "low-rank", folder=False).run()
    return task


@pytest.mark.parametrize(
    "fields",
    [
        {"expand": "none"}, {"depth": 2}, {"depth": 3, "expand_width": 2.0}, {"depth": 3, "factor_skips": (1, 2)},
        {"depth": 2, "factor_norm": True}, {"expand": "linear", "mode": "activations"}, {"start": "preserve"},
        {"expand": "none", "regulariser": "nuclear", "strength": 1e-3}, {"skip": 1, "hidden": 3},
        {"optimizer": "adam", "lr": 3e-3}, {"schedule": "steps", "warmup": 5, "clip": 1.0}, {"authors_init": True},
        {"model": "cnn-small", "augment": "crop-flip", "steps": 25, "max_train": 300, "depth": 2, "clip": None},
        {"model": "cnn-small", "depth": 2, "kernels": (3, 1), "steps": 4, "max_train": 200}, {"side": 6},
        {"label_noise": 0.4, "validation": 300},
    ],
)  # fmt: skip
def test_every_way_of_training_learns_and_equals_its_plain_network(fields: dict[str, Any]) -> None:
    task = ran(**fields)
    first, last = task.history.rows[0], task.history.rows[-1]
    assert first["step"] == 0
    assert last["step"] == task.loop.total
    assert last["train_loss"] < first["train_loss"]
    error = task.collapsed_error()
    assert error < 1e-9
    assert (error > 0) is (task.config.expand != "none")  # two ways to the same number, which round differently
    plain = collapse(task.model)
    with torch.no_grad():
        mine, theirs = task.weights(), layer_weights(plain)
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-5, atol=1e-6)
        assert task.history.ranks[-1][name] == pytest.approx(float(effective_rank(weight.detach())), abs=1e-4)
        values = task.history.spectra[-1][name]
        assert values[0] == 1
        assert len(values) == min(weight.shape)


def test_a_step_is_gradient_descent_on_the_factors() -> None:
    config = replace(
        SMALL, steps=1, momentum=0.0, lr=0.1, schedule="constant", hidden=1, depth=2, weight_decay=0.01, clip=None
    )
    task = Classification(config)
    loop = Loop(task, config, "low-rank", folder=False)
    seen = {}
    step = task.step

    def spied(batch: Any) -> Any:
        seen["batch"] = tuple(part.clone() for part in batch)
        seen["before"] = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        return step(batch)

    task.step = spied
    loop.run()
    model = make_model(config)
    model.load_state_dict(seen["before"])
    x, y = seen["batch"]
    h = x.flatten(1)
    for name, module in model.named_children():  # factor by factor, written out
        if isinstance(module, ExpandedLinear):
            parts = dict(module.named_parameters())
            weights = [parts[n] for n in parts if n.startswith("weights")]
            biases = [parts[n] for n in parts if n.startswith("biases")]
            assert len(weights) == 2, name
            for w, b in zip(weights, biases, strict=True):
                h = h @ w.T + b
        elif name.startswith("act"):
            h = h.relu()
    loss = torch.nn.functional.cross_entropy(h, y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, before), gradient, now in zip(seen["before"].items(), gradients, task.model.parameters(), strict=True):
        expected = before - 0.1 * (gradient + 0.01 * before)
        torch.testing.assert_close(now.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_the_penalty_is_that_of_the_products() -> None:
    config = replace(SMALL, depth=2, regulariser="squared-l2", strength=0.5, steps=1)
    task = Classification(config)
    rows = []
    step = task.step
    task.step = lambda batch: rows.append(step(batch)) or rows[-1]
    before: dict[str, torch.Tensor] = {}
    start = task.start

    def spied(loop: Loop) -> None:
        start(loop)
        before.update({name: weight.detach().clone() for name, weight in task.weights().items()})

    task.start = spied
    Loop(task, config, "low-rank", folder=False).run()
    size = sum(float(weight.square().sum()) for weight in before.values())
    assert float(rows[0]["penalty"]) == pytest.approx(size, rel=1e-5)
    assert float(rows[0]["loss"]) == pytest.approx(float(rows[0]["cross_entropy"]) + 0.5 * size, rel=1e-5)


def test_held_out_samples_are_not_trained_on_and_noise_touches_no_other_labels() -> None:
    plain = ran(steps=1)
    held = ran(steps=1, validation=297, label_noise=0.3)
    assert len(held.x_train) + len(held.x_new) == len(plain.x_train)
    everything = torch.cat([held.x_train, held.x_new]).flatten(1)
    assert torch.equal(everything.unique(dim=0), plain.x_train.flatten(1).unique(dim=0))
    seen = {bytes(image.numpy().tobytes()) for image in held.x_train}
    overlap = sum(bytes(image.numpy().tobytes()) in seen for image in held.x_new)
    twins = len(plain.x_train) - len(plain.x_train.flatten(1).unique(dim=0))
    assert overlap <= twins
    labels = {bytes(i.numpy().tobytes()): int(y) for i, y in zip(plain.x_train, plain.y_train, strict=True)}
    wrong = sum(labels[bytes(i.numpy().tobytes())] != int(y) for i, y in zip(held.x_train, held.y_train, strict=True))
    assert 0.2 < wrong / len(held.x_train) < 0.3  # of three tenths, one in ten keeps its label by chance
    assert all(labels[bytes(i.numpy().tobytes())] == int(y) for i, y in zip(held.x_new, held.y_new, strict=True))
    assert torch.equal(held.x_test, plain.x_test)
    assert "test" not in held.history.rows[0]
    assert held.history.rows[-1]["test"] == held.measure(held.x_test, held.y_test)["accuracy"]


def test_images_are_scaled_by_area() -> None:
    task = ran(steps=1, side=4)
    whole = ran(steps=1)
    means = whole.x_test.float().reshape(-1, 1, 4, 2, 4, 2).mean(dim=(3, 5))
    assert float((task.x_test.float() - means).abs().max()) <= 0.5


def test_the_learning_rate_follows_its_schedule() -> None:
    def rates(**fields: Any) -> list[float]:
        task = ran(steps=20, lr=1.0, momentum=0.0, clip=1e-6, log_every=1, **fields)
        return [task.rate(step) for step in range(20)]

    cosine = rates(schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * s / 20)) / 2 for s in range(20)])
    assert rates(schedule="steps") == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)
    assert rates(schedule="constant", warmup=4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 17)


def test_gram_rank_is_that_of_the_last_hidden_layer_on_test_images() -> None:
    task = ran(hidden=1, probes=50)
    x = normalise(task.x_test[torch.linspace(0, 199, 50).round().long()], task.data).flatten(1)
    with torch.no_grad():
        model = collapse(task.model).eval()
        h = torch.relu(model.get_submodule("linear1")(x))
    assert task.gram_rank() == pytest.approx(float(gram_effective_rank(h)), abs=1e-5)


def test_preserving_keeps_the_function_the_architecture_is_drawn_with() -> None:
    torch.manual_seed(3)
    plain = make_model(replace(SMALL, expand="none"))
    torch.manual_seed(3)
    kept = make_model(replace(SMALL, start="preserve"))
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(kept(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("authors", [False, True])
def test_last_factors_have_the_gain_of_the_activation(activation: Any, authors: bool) -> None:
    torch.manual_seed(0)
    model: Any = make_model(TrainConfig(epochs=1, activation=activation, depth=2, authors_init=authors))
    for layer, fed in ((model.linear1, gain(activation)), (model.linear2, gain(activation)),
                       (model.classifier, gain(activation) if authors else 1.0)):  # fmt: skip
        assert layer.gain == fed
        first, last = (w.detach() for w in layer.weights)
        assert float(last.std()) == pytest.approx(fed / math.sqrt(last.shape[1]), rel=0.15 if len(last) < 50 else 0.02)
        assert float(first.std()) == pytest.approx(1 / math.sqrt(first.shape[1]), rel=0.15 if len(first) < 50 else 0.02)


def test_products_of_too_many_factors_are_refused_before_training() -> None:
    """One unit between three hundred factors: below what single precision can hold."""
    with pytest.raises(UserError, match=r"(?s)--depth.*linear1.*fewer or wider factors"):
        ran(width=2, expand_width=0.5, depth=300, steps=1)


def test_titles_say_what_else_is_not_the_plain_network() -> None:
    assert label(TrainConfig(epochs=1)) == "mlp on digits, all layers as products of 3"
    norms = label(TrainConfig(epochs=1, factor_norm=True, factor_skips=(1, -1)))
    assert norms.endswith("products of 3, normalised between, skips around 1, -1")
    same, wider = (label(TrainConfig(epochs=1, model="cnn", depth=2, kernels=k)) for k in ((1, 3), (3, 3)))
    assert same.endswith("kernels 1 x 3")
    assert "kernels 3 x 3" in wider
    assert "another capacity" in wider
    assert chosen_by_test("best", TrainConfig(epochs=1))
    assert not chosen_by_test("best", TrainConfig(epochs=1, validation=9))
    assert not chosen_by_test("newest", TrainConfig(epochs=1))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "run"
    config = replace(SMALL, model="cnn-small", depth=2, kernels=(3, 3), max_train=100, steps=3, eval_every=1, keep=3,
                     out=folder)  # fmt: skip
    Loop(Classification(config), config, "low-rank").run()
    return folder


def test_the_plain_file_says_what_its_architecture_has_not(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plain.pt"
    assert main(["collapse", str(kept), "--out", str(out)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    saved = torch.load(out, weights_only=True)
    assert saved["kernels"] == [3, 3]
    assert set(saved["differs"]) == {"conv1.weight", "conv2.weight", "conv3.weight"}
    assert saved["differs"]["conv1.weight"] == [32, 1, 5, 5]
    assert "not a state dict of the architecture cnn-small" in text
    assert "conv1.weight 32 x 1 x 5 x 5" in text
    assert "another capacity" in text


def test_a_plain_file_of_the_architecture_itself_has_no_differences() -> None:
    config = replace(SMALL, model="cnn-small", depth=2, kernels=(1, 3))
    assert differences(collapse(make_model(config)), config) == {}
    normed = replace(config, factor_norm=True)
    with pytest.warns(UserWarning, match="biases"):
        found = differences(collapse(make_model(normed)), normed)
    assert set(found) == {"conv1.bias", "conv2.bias", "conv3.bias"}


def test_evaluations_show_ranks_at_first_beside_those_now(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main(["evaluate", str(kept), "--device", "cpu", "--out", str(out), "--which", "best"]) == 0
    text = capsys.readouterr().out
    flat = " ".join(text.replace("│", " ").replace("┃", " ").split())
    assert "at first" in flat
    assert "the best on the test set" in flat
    found = json.loads(out.read_text())["metrics"]
    task, _ = open_run(kept, "best", "cpu")
    for when, ranks in (("at first", task.history.ranks[0]), ("now", task.history.ranks[-1])):
        hidden = [rank for name, rank in ranks.items() if name != "classifier"]
        assert found[f"rank of hidden weights, {when}"] == pytest.approx(sum(hidden) / len(hidden))


def test_ranks_of_checkpoints_and_of_architectures_as_drawn(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def table(*words: str) -> list[list[str]]:
        capsys.readouterr()
        assert main(["ranks", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if " x " in line and "│" in line]

    newest, *earlier = sorted((kept / "checkpoints").glob("step-*.pt"), reverse=True)
    assert table(str(newest)) == table(str(kept))
    assert table(str(earlier[-1])) != table(str(kept))
    assert [row[0] for row in table(str(newest))] == ["conv1", "conv2", "conv3", "fc1", "classifier"]
    drawn = table("cnn-small", "--seed", "3")
    assert [row[0] for row in drawn] == ["conv1", "conv2", "conv3", "fc1", "classifier"]
    assert table("cnn-small", "--seed", "3") == drawn
    assert table("cnn-small", "--seed", "4") != drawn
    assert main(["ranks", "cnn-smal"]) == 2
    assert "cnn-small" in capsys.readouterr().err
    (tmp_path / "moved.pt").write_bytes(newest.read_bytes())
    assert main(["ranks", str(tmp_path / "moved.pt")]) == 2
    assert "in the folder of its run" in " ".join(capsys.readouterr().err.split())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]


def test_killed_and_resumed_is_never_stopped(tmp_path: Path) -> None:
    flags = ["--preset", "smoke", "--steps", "200", "--eval-every", "20", "--checkpoint-every", "20", "--device", "cpu"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [sys.executable, "-m", "low_rank", "train", *flags, "--quiet", "--out"]
    subprocess.run([*command, str(whole)], check=True)
    process = subprocess.Popen([*command, str(cut)])
    limit = time.monotonic() + 60
    while not list(cut.glob("checkpoints/*")) and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "low_rank", "train", "--resume", str(cut), "--quiet"], check=True)
    assert rows_of(cut) == rows_of(whole)
    one, other = (open_run(folder, device="cpu")[0] for folder in (whole, cut))
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)
    assert vars(one.history) == vars(other.history)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(RunFailed, match="loss"):
        ran(lr=1e12, momentum=0.0, steps=60)


def test_what_cells_return_is_what_claims_read() -> None:
    values = measure(replace(SMALL, steps=4))
    assert set(values["hidden_ranks"]) == {"linear1", "linear2"}
    assert set(values["ranks"]) == {"linear1", "linear2", "classifier"}
    assert set(values["hidden_ranks_at_first"]) == {"linear1", "linear2"}
    assert all(values["ranks_at_first"][name] == rank for name, rank in values["hidden_ranks_at_first"].items())
    assert values["hidden_ranks_at_first"] != values["hidden_ranks"]
    json.dumps(values)


@pytest.mark.parametrize("fields", [{"depth": 2}, {"factor_norm": True}, {"model": "cnn-small", "max_train": 200}])
def test_runs_elsewhere(fields: dict[str, Any]) -> None:
    with elsewhere():
        values = measure(replace(SMALL, device="meta", steps=3, batch_size=32, **fields))
    assert 0 <= values["accuracy"] <= 1


@pytest.mark.gpu
def test_a_run_on_a_gpu_in_half_precision_learns(tmp_path: Path) -> None:
    config = replace(SMALL, device="cuda", precision="bf16", steps=60, out=tmp_path / "run")
    assert train(config) == 0
    task, step = open_run(tmp_path / "run", device="cuda")
    assert step == 60
    assert task.history.rows[-1]["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"model": "mpl"}, "mlp"), ({"activation": "rellu"}, "relu"), ({"regulariser": "nuclar"}, "nuclear"),
        ({"depth": 0}, "--depth"), ({"kernels": (3,)}, "--kernels"), ({"factor_skips": (4,)}, "--factor-skips"),
        ({"mode": "weights", "factor_norm": True}, "--mode"), ({"strength": 1.0}, "--strength"),
        ({"lr": math.inf}, "--lr"), ({"weight_decay": math.inf}, "--weight-decay"),
        ({"channels": math.inf}, "--channels"), ({"expand_width": math.inf}, "--expand-width"),
        ({"strength": math.inf, "regulariser": "l1"}, "--strength"),
        ({"expand": "none", "factor_norm": True}, "--expand"), ({"expand_width": 0.0}, "--expand-width"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(fields: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        TrainConfig(epochs=1, **fields)


def test_too_much_held_out_is_refused() -> None:
    with pytest.raises(UserError, match="--validation"):
        ran(validation=5000)


def test_images_that_are_looked_at_are_of_all_classes() -> None:
    task = ran(data="mnist5k", max_test=None, steps=1, probes=40)  # whose images are in the order of their classes
    assert task.probes()[1].unique().tolist() == list(range(10))
    assert spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert spaced(3, 4).tolist() == [0, 1, 2]
