"""The promises of the loop."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_tasks import Dictionary, Gan, Regression, ToyConfig, Unroll, make

from shared.config import RunConfig, RunFailed, UserError
from shared.loop import Loop, Task, cell_loop, load_checkpoint, split_batch, total_steps
from shared.metrics import read_metrics


def rows(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Metrics without the clock, which no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder, split)]


def config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"out": folder, "device": "cpu", "quiet": True, "steps": 60, **changes})


def run(task: Task, settings: RunConfig) -> dict[str, Any]:
    return Loop(task, settings, "toy").run()


# -- tasks of every kind -----------------------------------------------------------------------------------------


def test_gan_with_two_optimisers_moves_towards_its_data(tmp_path: Path) -> None:
    summary = run(Gan(), config(tmp_path / "gan", steps=400))
    first = rows(tmp_path / "gan", "eval")[0]["distance"]
    assert summary["metrics"]["distance"] < 0.5 * first


def test_dictionary_learned_without_backpropagation_finds_its_atoms(tmp_path: Path) -> None:
    summary = run(Dictionary(), config(tmp_path / "dictionary", steps=200))
    assert summary["metrics"]["match"] > 0.98


def test_unroll_with_its_own_gradient_agrees_with_autograd_and_descends(tmp_path: Path) -> None:
    task = Unroll()
    run(task, config(tmp_path / "unroll", steps=1))
    rate = torch.tensor(-4.0, dtype=torch.float64, requires_grad=True)
    w = torch.ones(3, dtype=torch.float64)
    for _ in range(10):
        w = w - rate.exp() * task.curvature * w
    (0.5 * (task.curvature * w * w).sum()).backward()
    assert rate.grad is not None
    assert task.log_rate.grad is not None
    torch.testing.assert_close(task.log_rate.grad, rate.grad, rtol=1e-12, atol=0)
    run(Unroll(), config(tmp_path / "long", steps=200))
    losses = [row["outer_loss"] for row in rows(tmp_path / "long", "train")]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("kind", ["regression", "gan", "dictionary", "unroll"])
def test_every_kind_of_task_resumes_bit_for_bit(tmp_path: Path, kind: Any) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    settings = ToyConfig(kind=kind, steps=30, device="cpu", quiet=True, eval_every=10, checkpoint_every=7)

    class Cut(Exception):
        pass

    def cut(task: Task, at: int) -> Task:
        step = task.step

        def limited(batch: Any) -> Any:
            limited.calls += 1
            if limited.calls > at:
                raise Cut
            return step(batch)

        limited.calls = 0
        task.step = limited
        return task

    from dataclasses import replace

    Loop(make(settings), replace(settings, out=whole), "toy").run()
    first = replace(settings, out=halves)
    with pytest.raises(Cut):
        Loop(cut(make(settings), 17), first, "toy").run()
    Loop(make(settings), replace(first, resume=halves), "toy").run()
    assert rows(halves) == rows(whole)


# -- killed, stopped, resumed ------------------------------------------------------------------------------------


def test_killed_at_random_steps_and_resumed_gives_the_same_metrics_and_weights(tmp_path: Path, toy: Any) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ["--steps", 120, "--checkpoint-every", 10, "--log-every", 1, "--pause", 0.002]
    done = toy("train", "--out", whole, *flags)
    assert done.returncode == 0, done.stderr
    dice = random.Random(5)
    how: list[object] = ["train", "--out", killed, *flags]
    for target in sorted(dice.sample(range(12, 110), 2)):

        def reached(target: int = target) -> bool:
            path = killed / "metrics.jsonl"
            return path.exists() and path.read_bytes().count(b'"split": "train"') >= target

        result = toy.interrupt_when(reached, signal.SIGKILL, *how)
        assert result.returncode == -signal.SIGKILL
        how = ["train", "--resume", killed]
    done = toy(*how)
    assert done.returncode == 0, done.stderr
    assert rows(killed) == rows(whole)
    states = [torch.load(p / "checkpoints" / "step-000000120.pt", weights_only=True) for p in (whole, killed)]
    for name, tensor in states[0]["task"]["model"].items():
        assert torch.equal(tensor, states[1]["task"]["model"][name])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_finishes_the_step_writes_a_checkpoint_and_says_how_to_resume(
    tmp_path: Path, toy: Any, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    flags = ["--steps", 100_000, "--checkpoint-every", 50_000, "--eval-every", 50_000, "--log-every", 1]
    started = lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 500  # noqa: E731
    result = toy.interrupt_when(started, number, "train", "--out", out, *flags)
    assert result.returncode == code
    assert f"--resume {out}" in result.stderr
    assert "Traceback" not in result.stderr
    saved = sorted((out / "checkpoints").glob("step-*.pt"))
    last = rows(out, "train")[-1]["step"]
    assert [path.name for path in saved] == [f"step-{last:09d}.pt"]


def test_time_limit_stops_with_a_checkpoint_that_can_be_resumed(tmp_path: Path) -> None:
    settings = ToyConfig(out=tmp_path / "run", device="cpu", quiet=True, steps=100_000, max_minutes=0.005)
    summary = Loop(make(settings), settings, "toy").run()
    assert summary["status"].startswith("stopped after")
    assert (tmp_path / "run" / "checkpoints" / f"step-{summary['steps']:09d}.pt").exists()
    assert summary["steps"] < 100_000
    # What is reported was measured on the weights that the run ended with.
    assert next(reversed(list(read_metrics(tmp_path / "run", "eval"))))["step"] == summary["steps"]


def test_resume_before_the_first_checkpoint_starts_over_with_a_warning(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", steps=5)
    loop = Loop(Regression(), settings, "toy")  # opens the folder, writes config.json, and is never run
    assert loop.folder is not None
    loop.folder.begin()
    loop.folder.close()
    with pytest.warns(UserWarning, match="no checkpoint"):
        summary = run(Regression(), config(tmp_path / "run", steps=5, resume=tmp_path / "run"))
    assert summary["steps"] == 5


# -- what must not happen ----------------------------------------------------------------------------------------


class Diverging(Regression):
    def step(self, batch: Any) -> dict[str, Any]:
        metrics = super().step(batch)
        if self.loop.step + 1 == 25:
            metrics["ring_norm"] = torch.tensor(float("nan"))
        return metrics


def test_metric_that_is_not_finite_stops_naming_step_metric_and_last_good_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"'ring_norm' is nan at step 25.*step-000000020\.pt; the state .*diverged"):
        run(Diverging(), config(out, checkpoint_every=10, log_every=7))
    assert sorted(path.name for path in (out / "checkpoints").glob("*.pt")) == [
        "step-000000010.pt",
        "step-000000020.pt",
    ]
    assert rows(out, "train")[24]["ring_norm"] is None


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    run(Regression(), config(tmp_path / "often", eval_every=3))
    run(Regression(), config(tmp_path / "once", eval_every=60))
    assert rows(tmp_path / "often", "train") == rows(tmp_path / "once", "train")


def test_second_run_into_the_same_folder_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    run(Regression(), config(tmp_path / "run", steps=3))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--force"):
        Loop(Regression(), config(tmp_path / "run", steps=3), "toy")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    run(Regression(), config(tmp_path / "run", steps=2, force=True))
    assert rows(tmp_path / "run", "train")[-1]["step"] == 2


def test_folder_of_a_running_run_is_refused_even_with_force(tmp_path: Path) -> None:
    first = Loop(Regression(), config(tmp_path / "run", steps=3), "toy")
    with pytest.raises(UserError, match="no other run"):
        Loop(Regression(), config(tmp_path / "run", steps=3, force=True), "toy")
    first.run()


def test_force_never_empties_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"config\.json"):
        Loop(Regression(), config(tmp_path, force=True), "toy")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


class Refusing(Regression):
    def start(self, loop: Loop) -> None:
        raise UserError("--width", 3, "another width")


def test_a_run_that_is_refused_leaves_no_trace_and_replaces_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--width"):
        run(Refusing(), config(tmp_path / "deep" / "run"))
    assert list(tmp_path.iterdir()) == []
    run(Regression(), config(tmp_path / "run", steps=3))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--width"):
        run(Refusing(), config(tmp_path / "run", force=True))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resume_under_another_config_is_refused_naming_the_fields(tmp_path: Path) -> None:
    run(Regression(), config(tmp_path / "run", steps=3))
    with pytest.raises(UserError, match=r"steps: 3 there, 4 here"):
        Loop(Regression(), config(tmp_path / "run", steps=4, resume=tmp_path / "run"), "toy")


def test_resume_of_another_members_run_is_refused(tmp_path: Path) -> None:
    run(Regression(), config(tmp_path / "run", steps=3))
    with pytest.raises(UserError, match="a run of other"):
        Loop(Regression(), config(tmp_path / "run", steps=3, resume=tmp_path / "run"), "other")


def test_checkpoint_with_other_tensors_is_refused_naming_the_part(tmp_path: Path) -> None:
    run(Regression(), config(tmp_path / "run", steps=3))
    task = Gan()
    Loop(task, config(tmp_path / "gan", steps=1), "toy").run()
    with pytest.raises(UserError, match="the parts generator"):
        load_checkpoint(tmp_path / "run", task, "toy")


# -- numbers -----------------------------------------------------------------------------------------------------


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    def losses(folder: Path, accumulate: int) -> list[float]:
        run(Regression(noise=False, batch_size=15), config(folder, steps=20, accumulate=accumulate))
        return [row["loss"] for row in rows(folder, "train")]

    whole, cut = losses(tmp_path / "1", 1), losses(tmp_path / "4", 4)  # 15 samples in four pieces: unequal ones
    assert cut == pytest.approx(whole, rel=1e-5)


def test_two_processes_give_the_curve_of_one_with_twice_the_batch(tmp_path: Path, toy: Any) -> None:
    flags = ["--steps", 12, "--no-noise", "--quiet"]
    two = toy("train", "--out", tmp_path / "two", "--devices", 2, "--batch-size", 8, *flags)
    assert two.returncode == 0, two.stderr
    one = toy("train", "--out", tmp_path / "one", "--batch-size", 16, *flags)
    assert one.returncode == 0, one.stderr
    for name in ("loss", "gradient_norm"):
        left, right = ([row[name] for row in rows(tmp_path / each, "train")] for each in ("two", "one"))
        assert left == pytest.approx(right, rel=1e-5)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


def test_two_processes_stop_together_on_a_signal_and_resume(tmp_path: Path, toy: Any) -> None:
    out = tmp_path / "run"
    flags = ["--devices", 2, "--steps", 400, "--log-every", 5, "--checkpoint-every", 400, "--pause", 0.005]
    started = lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 500  # noqa: E731
    result = toy.interrupt_when(started, signal.SIGTERM, "train", "--out", out, *flags)
    assert result.returncode == 143, result.stderr
    assert result.stderr.count("Stopped by SIGTERM") == 1
    done = toy("train", "--resume", out)
    assert done.returncode == 0, done.stderr
    whole = toy("train", "--out", tmp_path / "whole", *flags)
    assert whole.returncode == 0, whole.stderr
    assert rows(out, "train") == rows(tmp_path / "whole", "train")


def test_summary_says_what_ran_where(tmp_path: Path) -> None:
    summary = run(Regression(), config(tmp_path / "run", steps=3))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["status"] == "finished"
    assert summary["hardware"]["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(summary["versions"]["torch"])
    assert summary["metrics"]["loss"] == rows(tmp_path / "run", "eval")[-1]["loss"]


def test_a_loop_without_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = Loop(Regression(), RunConfig(steps=3, device="cpu", quiet=True), "toy", folder=False).run()
    assert summary["steps"] == 3
    assert list(tmp_path.iterdir()) == []


def test_epochs_become_steps_by_the_length_of_the_data() -> None:
    class Ten:
        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Any:
            return iter(range(10))

    assert total_steps(RunConfig(epochs=2.5), Ten()) == 25
    assert total_steps(RunConfig(steps=3), Ten()) == 3
    with pytest.raises(UserError, match="--epochs"):
        total_steps(RunConfig(epochs=1), None)
    with pytest.raises(UserError, match="--steps"):
        total_steps(RunConfig(), Ten())


def test_split_batch_covers_every_sample_once() -> None:
    batch = {"x": torch.arange(7), "pair": (torch.arange(7) * 2, torch.arange(7).reshape(7, 1)), "name": "n"}
    pieces = split_batch(batch, 3)
    assert torch.equal(torch.cat([piece["x"] for piece, _ in pieces]), batch["x"])
    assert torch.equal(torch.cat([piece["pair"][1] for piece, _ in pieces]), batch["pair"][1])
    assert sum(weight for _, weight in pieces) == pytest.approx(1.0)
    with pytest.raises(UserError, match="--accumulate"):
        split_batch((torch.arange(2),), 3)


@pytest.mark.gpu
def test_mixed_precision_run_on_a_gpu_resumes_and_learns(tmp_path: Path) -> None:
    settings = RunConfig(out=tmp_path / "run", device="cuda", quiet=True, steps=60)
    task = Regression()
    task.x, task.y = task.x.cuda(), task.y.cuda()
    summary = Loop(task, settings, "toy").run()
    assert summary["precision"] == "bf16"
    assert summary["metrics"]["loss"] < rows(tmp_path / "run", "train")[0]["loss"]


def test_the_best_checkpoint_is_one_whose_own_weights_were_judged(tmp_path: Path) -> None:
    class Judged(Task):
        """Scores -1, -2, ... as it goes on: the first judged weights are the best."""

        score = ("quality", "max")

        def start(self, loop: Loop) -> None:
            self.model = torch.nn.Linear(1, 1)

        def batches(self) -> None:
            return None

        def step(self, batch: Any) -> dict[str, Any]:
            self.model.bias.data += 1
            return {}

        def evaluate(self) -> dict[str, Any]:
            return {"quality": -float(self.model.bias.data)}

        def state(self) -> dict[str, Any]:
            return {"model": self.model}

    settings = config(tmp_path / "run", steps=12, eval_every=4, checkpoint_every=3, keep=1)
    Loop(Judged(), settings, "toy").run()
    scores = {path.name: path for path in (tmp_path / "run" / "checkpoints").glob("*.pt")}
    assert "step-000000006.pt" not in scores  # saved after the judgement of step 4, with other weights


def test_weights_that_are_not_finite_become_no_checkpoint(tmp_path: Path) -> None:
    class Ruined(Regression):
        def step(self, batch: Any) -> dict[str, Any]:
            metrics = super().step(batch)
            if self.loop.step == 11:  # the update after a loss that was still a number
                next(iter(self.model.parameters())).data.fill_(float("nan"))
            return metrics

    with pytest.raises(RunFailed, match=r"not finite at step 12.*step-000000008"):
        run(Ruined(), config(tmp_path / "run", steps=40, checkpoint_every=4))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert kept[-1] == "step-000000008.pt"


def test_a_cells_run_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    whole = run(Regression(), config(tmp_path / "whole"))
    assert cell_loop(Regression(), config(tmp_path), "toy", None).folder is None
    task = Regression()
    loop = cell_loop(task, RunConfig(device="cpu", quiet=True, steps=60, checkpoint_every=10), "toy", tmp_path / "cell")
    step = task.step

    def mortal(batch: Any) -> Any:
        if loop.step == 35:
            raise KeyboardInterrupt
        return step(batch)

    task.step = mortal
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    again = cell_loop(
        Regression(), RunConfig(device="cpu", quiet=True, steps=60, checkpoint_every=10), "toy", tmp_path / "cell"
    )
    assert again.run()["metrics"] == whole["metrics"]
    assert rows(tmp_path / "cell" / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("remains", ["lock", "config", "checkpoint"])
def test_a_cells_run_that_cannot_be_taken_up_begins_anew(tmp_path: Path, remains: str) -> None:
    flags = RunConfig(device="cpu", quiet=True, steps=60, checkpoint_every=10)
    whole = cell_loop(Regression(), flags, "toy", tmp_path / "whole").run()
    folder = tmp_path / "cell" / "run"
    if remains == "lock":  # killed before anything else was written
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
    else:
        loop = cell_loop(Regression(), flags, "toy", tmp_path / "cell")
        loop.run()
        assert loop.folder is not None
        loop.folder.close()
        if remains == "config":
            (folder / "config.json").write_bytes(b"\xff\xfe{")
        else:
            for path in (folder / "checkpoints").glob("*.pt"):
                path.write_bytes(b"half")
    again = cell_loop(Regression(), flags, "toy", tmp_path / "cell")
    assert again.step == 0
    assert again.run()["metrics"] == whole["metrics"]


def test_a_cells_run_in_use_is_refused_and_stays(tmp_path: Path) -> None:
    flags = RunConfig(device="cpu", quiet=True, steps=60, checkpoint_every=10)
    for steps in (0, 20):  # before its first checkpoint, and after
        task = Regression()
        loop = cell_loop(task, replace(flags, max_minutes=None), "toy", tmp_path / str(steps))
        assert loop.folder is not None
        step = task.step

        def mortal(batch: Any, loop: Loop = loop, step: Any = step, steps: int = steps) -> Any:
            if loop.step == steps:
                with pytest.raises(UserError, match="no other run"):
                    cell_loop(Regression(), flags, "toy", tmp_path / str(steps))
            return step(batch)

        task.step = mortal
        assert loop.run()["steps"] == 60
        assert (tmp_path / str(steps) / "run" / "summary.json").exists()


def test_a_cell_of_many_looks_is_not_kept_at_every_one(tmp_path: Path) -> None:
    flags = RunConfig(device="cpu", quiet=True, steps=1000, eval_every=5)
    assert cell_loop(Regression(), flags, "toy", tmp_path).config.checkpoint_every == 20


@pytest.mark.gpu
def test_observers_see_the_gradient_itself_under_fp16(tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "fp16"):
        task = Regression()
        loop = Loop(task, config(tmp_path / precision, steps=1, device="cuda", precision=precision), "toy")
        update = loop.update

        def watched(*given: Any, update: Any = update, task: Any = task, **named: Any) -> Any:
            def observe() -> dict[str, Any]:
                return {"norm": torch.cat([p.grad.flatten() for p in task.model.parameters()]).norm()}

            return update(*given, **named, observe=observe)

        loop.update = watched  # type: ignore[method-assign]
        loop.run()
        found[precision] = rows(tmp_path / precision)[0]["norm"]
    assert found["fp16"] == pytest.approx(found["fp32"], rel=0.02)
