"""The two phases: what a variant starts from, what it shares, what is refused, and what a killed run resumes to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carl import commands
from carl.adaptation import Branch, adapt, branch, is_test_point
from carl.cli import app, main
from carl.config import METHODS, TrainConfig
from carl.episodes import packed, unpacked
from carl.learner import Learner
from carl.pretraining import make_learners, pretrain, source_iteration, source_of
from carl.risk import Risk
from carl.settings import POLICY_SETTINGS, SETTINGS, Setting
from carl.task import task_of
from carl.train import CautiousAdaptation
from shared.checkpoint import save_atomically
from shared.config import Stopped, UserError
from shared.loop import Loop, load_checkpoint
from shared.metrics import read_metrics

SMALL = SETTINGS["smoke"]["cartpole"]
TASK = task_of("cartpole")
VERBS = ("train", "adapt", "evaluate", "sweep", "reproduce", "envs", "record", "bench")


@pytest.fixture(scope="module")
def learner() -> Learner:
    """After a source phase of two episodes."""
    return pretrain("cartpole", SMALL, [0])[0][0]


# -- source phase --------------------------------------------------------------------------------------------------


def test_every_source_episode_is_in_a_domain_of_its_own_within_the_sources() -> None:
    learners = make_learners("cartpole", SMALL, [0, 1])
    seen = []
    for iteration in range(3):
        done = source_iteration(learners, [0, 1], "cartpole", SMALL, iteration)
        seen += [each.episodes[0].domain for each in done]
        assert all(len(each.episodes) == 1 and each.episodes[0].phase == "source" for each in done)
    assert len(set(seen)) == 6
    assert all(source_of("cartpole").contains(domain) for domain in seen)
    assert [len(each.buffer) for each in learners] == [90, 90]  # three episodes of 30 steps: none ends early


def test_seeds_side_by_side_are_the_seeds_alone() -> None:
    together, _ = pretrain("cartpole", SMALL, [3, 4])
    alone, _ = pretrain("cartpole", SMALL, [4])
    for a, b in zip(together[1].ensemble.parameters(), alone[0].ensemble.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1].buffer.states, alone[0].buffer.states, rtol=1e-4, atol=1e-5)


def test_few_sources_are_drawn_once_within_the_range() -> None:
    few = source_of("cartpole").between(0.5, 0.6).few(2, 7)
    stream = np.random.default_rng(0)
    drawn = {few.sample(stream) for _ in range(40)}
    assert len(drawn) == 2
    assert all(0.5 <= domain <= 0.6 for domain in drawn)
    assert drawn == set(source_of("cartpole").between(0.5, 0.6).few(2, 7).choices)


def test_a_source_phase_without_the_head_leaves_it_alone_and_refuses_votes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--separate-sources"]
    assert main(["train", *flags, "--risk", "reward", "--source-domains", "2", "--out", str(out)]) == 0
    assert all(row["head"] == 0 for row in read_metrics(out, "train"))
    assert main(["adapt", str(out), "--device", "cpu", "--quiet"]) == 2  # --risk state
    assert main(["adapt", str(out), "--device", "cpu", "--quiet", "--method", "mb-frozen"]) == 0
    made = make_learners("cartpole", SMALL, [0, 0])
    made[1].head = False
    for each in made:
        each.buffer.load_state_dict(pretrain("cartpole", SMALL, [3])[0][0].buffer.state_dict())
        each.fit(0)
    with_head, without = (each.ensemble.biases[-1][..., -1].abs().max() for each in made)
    assert with_head > 0
    assert without == 0  # not a step was taken on the logit
    assert TrainConfig(separate_sources=True).with_head()  # CARL (State) cannot do without


def test_a_separate_source_phase_for_baselines_beside_a_run_with_the_head(tmp_path: Path) -> None:
    """Their head is never trained, and theirs is the source phase of a run that has none."""
    made = config(tmp_path / "run", separate_sources=True, source_iterations=2, adapt_iterations=1)
    task = CautiousAdaptation(made)
    Loop(task, made, "carl").run()
    own, plain, _ = task.branches
    assert (own.label, plain.label) == ("CARL (state)", "mb-finetune")
    assert own.learner.head
    assert not plain.learner.head
    lone = config(tmp_path / "lone", method="mb-finetune", separate_sources=True, source_iterations=2)
    other = CautiousAdaptation(lone)
    Loop(other, lone, "carl").run()
    for a, b in zip(plain.learner.ensemble.parameters(), other.branches[0].learner.ensemble.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    resumed = CautiousAdaptation(replace(made, resume=tmp_path / "run"))
    loop = Loop(resumed, resumed.config, "carl", folder=False)
    resumed.start(loop)
    load_checkpoint(tmp_path / "run", resumed, "carl", "newest")
    for a, b in zip(task.headless[0].ensemble.parameters(), resumed.headless[0].ensemble.parameters(), strict=True):
        assert torch.equal(a, b)


# -- adaptation ----------------------------------------------------------------------------------------------------


def test_variants_branch_off_one_source_and_leave_it_alone(learner: Learner) -> None:
    before = [p.clone() for p in learner.ensemble.parameters()]
    setting = replace(SMALL, adapt_iterations=2)
    branches = [
        branch(learner, Risk("none"), 1.0, 0, "mb-finetune"),
        branch(learner, Risk("none"), 1.0, 0, "mb-frozen", fits=False),
        branch(learner, Risk("state"), 1.0, 0, "carl", frozen_head=True),
    ]
    logs = adapt(branches, "cartpole", TASK, setting)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.ensemble.parameters(), strict=True))
    first = [log.adaptation[0].states[0] for log in logs]
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(logs[0].tests[0][0].states, logs[1].tests[0][0].states)  # zero-shot: the same model yet
    frozen, fitted = branches[1].learner, branches[0].learner
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.ensemble.parameters(), strict=True))
    assert len(frozen.buffer) == len(learner.buffer) < len(fitted.buffer)
    assert branches[2].voter is not None
    assert all(torch.equal(a, b) for a, b in zip(before, branches[2].voter.ensemble.parameters(), strict=True))
    assert not torch.equal(branches[2].learner.ensemble.weights[0], before[0])
    for log in logs:
        assert sorted(log.tests) == [0, 2]
        assert all(e.phase == "target" for e in log.adaptation)
        assert log.catastrophes() == np.cumsum([e.catastrophe for e in log.adaptation]).tolist()
        assert log.running_maximum()[-1] == max(e.reward for e in log.adaptation)


def test_test_episodes_are_not_learned_from(learner: Learner) -> None:
    setting = replace(SMALL, adapt_iterations=1)
    with_tests, without = (branch(learner, Risk("none"), 1.0, 0, "mb") for _ in range(2))
    logs = adapt([with_tests], "cartpole", TASK, setting, test_episodes=2)
    adapt([without], "cartpole", TASK, setting, test_episodes=0)
    assert len(logs[0].tests[0]) == 2
    assert torch.equal(with_tests.learner.buffer.states, without.learner.buffer.states)
    assert torch.equal(with_tests.learner.ensemble.weights[0], without.learner.ensemble.weights[0])


def test_tests_come_where_they_should() -> None:
    setting = replace(SMALL, adapt_iterations=10)
    assert [i for i in range(11) if is_test_point(i, setting)] == [0, 2, 4, 6, 8, 10]


def test_a_frozen_head_votes_as_the_source_phase_left_it(learner: Learner) -> None:
    """With the learner's own votes silenced, only the frozen head can still change a plan."""
    numb = learner.copy()
    with torch.no_grad():
        numb.ensemble.weights[-1][..., -1] = 0
        numb.ensemble.biases[-1][..., -1] = -100
    alert = learner.copy()
    with torch.no_grad():
        alert.ensemble.weights[-1][..., -1] *= 50
    setting = replace(SMALL, adapt_iterations=1)

    def first_actions(voter: Learner | None, risk: str) -> Any:
        made = Branch("x", numb.copy(), Risk(risk), 1.0, 0, False, voter)  # pyright: ignore
        return adapt([made], "cartpole", TASK, setting, 0)[0].adaptation[0].actions

    plain = first_actions(None, "none")
    assert np.array_equal(first_actions(None, "state"), plain)
    assert not np.array_equal(first_actions(alert, "state"), plain)


def test_votes_of_a_head_without_an_example_are_refused() -> None:
    naive = Learner(TASK, replace(SMALL, untrained_head=False), 0)
    with pytest.raises(UserError, match=r"--risk.*catastrophe"):
        branch(naive, Risk("state"), 1.0, 0, "carl")
    branch(naive, Risk("reward"), 1.0, 0, "carl")
    with pytest.warns(UserWarning, match="untrained head"):  # where the setting is too short for better
        branch(Learner(TASK, SMALL, 0), Risk("state"), 1.0, 0, "carl")
    with pytest.raises(UserError, match=r"--risk.*catastrophe"):
        branch(Learner(TASK, SMALL, 0, head=False), Risk("state"), 1.0, 0, "carl")


def test_episodes_survive_a_checkpoint(learner: Learner) -> None:
    log = adapt([branch(learner, Risk("state"), 1.0, 0, "x")], "cartpole", TASK, replace(SMALL, adapt_iterations=1), 0)[
        0
    ]
    again = unpacked(packed(log.adaptation[0]))
    assert np.array_equal(again.states, log.adaptation[0].states)
    assert again.reward == log.adaptation[0].reward
    assert again.votes is None


# -- on the loop ---------------------------------------------------------------------------------------------------


def config(out: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        **{"preset": "smoke", "out": out, "device": "cpu", "quiet": True, "checkpoint_every": 1, **changes}
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    clocks = ("seconds", "plan_ms")
    return [
        {k: v for k, v in row.items() if not any(k.endswith(clock) for clock in clocks)}
        for split in ("train", "eval") for row in read_metrics(folder, split)
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["carl", "pets-scratch", "ppo-dr", "rarl-finetune", "ppo-maml"])
@pytest.mark.parametrize("stop_at", [1, 3])
def test_resumed_run_is_the_run_never_stopped(tmp_path: Path, method: Any, stop_at: int) -> None:
    from carl.train import make_task

    changes: dict[str, Any] = {"method": method, "source_iterations": 2, "adapt_iterations": 3, "adapt_head": "frozen"}
    whole = config(tmp_path / "whole", **changes)
    Loop(make_task(whole), whole, "carl").run()
    stopped = config(tmp_path / "stopped", **changes)
    task = make_task(stopped)
    step = task.step

    def interrupted(batch: Any) -> Any:
        if task.loop.step == stop_at - 1:  # pyright: ignore
            task.loop._signal = signal.SIGTERM  # pyright: ignore
        return step(batch)

    task.step = interrupted
    with pytest.raises(Stopped):
        Loop(task, stopped, "carl").run()
    resumed = replace(stopped, resume=tmp_path / "stopped")
    Loop(make_task(resumed), resumed, "carl").run()
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_a_killed_run_resumes_to_the_run_never_killed(tmp_path: Path) -> None:
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--source-iterations", "6", "--adapt-iterations", "6"]

    def start(*extra: str | Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "carl", "train", *flags, *map(str, extra)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})

    whole, killed = start("--out", tmp_path / "whole"), start("--out", tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 60
    while not list(checkpoints.glob("step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) in (-signal.SIGKILL, 0)
    assert whole.wait(60) == 0
    resumed = start("--resume", tmp_path / "killed")
    assert resumed.wait(60) == 0, resumed.communicate()
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_a_run_tells_source_from_target_and_writes_what_others_go_on_from(tmp_path: Path) -> None:
    made = config(tmp_path / "run", seeds=2)
    assert made.steps == 3
    task = CautiousAdaptation(made)
    summary = Loop(task, made, "carl").run()
    found = list(read_metrics(tmp_path / "run", "train"))
    assert [row["target_phase"] for row in found] == [0, 0, 1]
    assert {"loss", "head", "return", "catastrophe", "length"} <= set(found[0])
    assert {"target_mse", "target_nll", "target_disagreement", "test_return"} <= set(found[2])
    assert {"source_return_last_3", "max_return", "catastrophes", "test_catastrophes"} <= set(summary["metrics"])
    assert (tmp_path / "run" / "source.pt").exists()


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--preset", "smoke", "--device", "cpu", "--out", str(out), "--quiet"]) == 0
    return out


def test_train_ends_with_files_and_figures(run: Path) -> None:
    account = json.loads((run / "adaptation.json").read_text())
    assert account["env"] == "cartpole"
    assert account["branches"][0]["label"] == "CARL (state)"
    assert len(account["branches"][0]["adaptation"]) == 1
    # Its baselines went through the target beside it, from the same first state.
    assert [each["label"] for each in account["branches"]] == ["CARL (state)", "mb-finetune", "pets-scratch"]
    for name in ("source", "adaptation"):
        assert (run / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_every_environment(method: str, tmp_path: Path) -> None:
    for env in ("cartpole", "duckietown", "half-cheetah"):
        out = tmp_path / env
        flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--method", method, "--env", env, "--out", str(out)]
        assert main(["train", *flags, "--risk", "reward"]) == 0
        branches = json.loads((out / "adaptation.json").read_text())["branches"]
        assert all(np.isfinite(e["return"]) for each in branches for e in each["adaptation"])


def test_adapt_branches_off_and_keeps_what_is_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapted"
    flags = ["adapt", str(run), "--device", "cpu", "--out", str(out)]
    assert main([*flags, "--risk", "reward", "--gamma", "70", "--target", "1.5"]) == 0
    found = json.loads((out / "adaptation.json").read_text())["branches"][0]
    assert (found["target"], found["risk"]["name"], found["risk"]["gamma"]) == (1.5, "reward", 70)
    assert main([*flags, "--method", "mb-frozen"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*flags, "--method", "pets-scratch", "--force"]) == 0


def test_evaluate_pairs_cautions_and_judges_the_head(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    for phase in ("source", "adapted"):
        flags = [
            "--device",
            "cpu",
            "--targets",
            "1.0",
            "--episodes",
            "2",
            "--phase",
            phase,
            "--out",
            str(out),
            "--force",
        ]
        assert main(["evaluate", str(run), *flags, "--risks", "none", "reward", "state", "reward+state"]) == 0
        found = json.loads(out.read_text())["found"]
        assert [entry["risk"] for entry in found[:4]] == ["none", "reward", "state", "reward+state"]
        assert all(len(entry["episodes"]) == 2 for entry in found[:4])
        assert found[4]["head"]["states"] > 0


def test_evaluate_after_some_episodes_in_every_target(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few-shot is adaptation and then the test: with seeds as `adapt` has them, the same model."""
    kept: list[Any] = []
    go_through = commands.go_through

    def watched(branches: Any, *given: Any) -> Any:
        logs = go_through(branches, *given)
        kept.append([(each.target, each.label, each.voter is not None, weights_of(each.learner)) for each in branches])
        return logs

    monkeypatch.setattr(commands, "go_through", watched)
    flags = ["--device", "cpu", "--quiet"]
    own = ["--risk", "reward", "--target", "1.5", "--iterations", "1", "--tests", "0", "--out", str(tmp_path / "a")]
    assert main(["adapt", str(run), *flags, *own]) == 0
    (adapted,) = kept.pop()
    flags = ["evaluate", str(run), *flags, "--episodes", "1", "--risks", "none", "reward", "--force"]
    out = tmp_path / "e.json"
    seed = json.loads((run / "config.json").read_text())["seed"]
    few = ["--targets", "1.0", "1.5", "--after", "1", "--out", str(out)]
    assert main([*flags, *few, "--seed", str(seed)]) == 0
    found = {(target, label): weights for some in kept for target, label, _, weights in some}
    assert set(found) == {(1.0, "none"), (1.0, "reward"), (1.5, "none"), (1.5, "reward")}
    torch.testing.assert_close(found[1.5, "reward"], adapted[3], rtol=0, atol=0)
    assert not torch.equal(found[1.5, "none"], adapted[3])
    assert not torch.equal(found[1.0, "reward"], adapted[3])
    report = json.loads(out.read_text())
    assert report["after"] == 1
    kept.clear()
    assert main([*flags, *few, "--seed", str(seed + 1)]) == 0
    assert all(not torch.equal(weights, found[target, label]) for some in kept for target, label, _, weights in some)
    kept.clear()
    assert main([*flags, *few[:3], "--out", str(out)]) == 0  # zero-shot: nothing learns
    assert not kept
    zero = json.loads(out.read_text())
    assert [e["mse"] for e in zero["found"] if "head" in e] != [e["mse"] for e in report["found"] if "head" in e]
    assert main([*flags, "--phase", "adapted", "--after", "1"]) == 2
    assert main([*flags, "--risk", "none"]) == 2  # several are compared: --risks

    frozen = tmp_path / "frozen"
    shutil.copytree(run, frozen)
    config = json.loads((frozen / "config.json").read_text())
    (frozen / "config.json").write_text(json.dumps({**config, "adapt_head": "frozen"}))
    flags[1] = str(frozen)
    assert main([*flags, *few]) == 0
    assert all(voted for some in kept for _, _, voted, _ in some)


def weights_of(learner: Learner) -> Tensor:
    """All weights of the ensemble in one row."""
    return torch.cat([p.detach().flatten() for p in learner.ensemble.parameters()])


def test_sweep_goes_over_the_grid_and_does_not_repeat_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    flags = ["sweep", str(run), "--device", "cpu", "--quiet", "--out", str(out), "--targets", "1.0", "1.5"]
    assert main([*flags, "--risks", "reward", "state", "--gammas", "30", "70", "--betas", "0.25", "0.5"]) == 0
    points = json.loads((out / "sweep.json").read_text())["points"]
    assert len(points) == 8
    more = ["sweep", str(run), "--device", "cpu", "--quiet", "--out", str(out), "--targets", "2.0"]
    assert main([*more, "--risks", "reward", "--gammas", "30", "--betas", "0.25", "--force"]) == 0
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 9  # others stay
    (tmp_path / "file").touch()
    assert main([*more[:5], str(tmp_path / "file"), "--targets", "2.0"]) == 2
    assert (out / "reward-gamma.png").exists()
    assert (out / "state-beta.png").exists()
    monkeypatch.setattr("carl.commands.go_through", lambda *given: pytest.fail("run again"))
    assert main([*flags, "--risks", "reward", "--gammas", "30", "70"]) == 0


def test_points_of_another_source_phase_are_not_taken_for_ones_own(run: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "sweep"
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet"]
    assert main(["train", *flags, "--seed", "5", "--out", str(other)]) == 0
    found = []
    for folder in (run, other):
        sweep = ["sweep", str(folder), "--device", "cpu", "--quiet", "--out", str(out), "--targets", "1.0"]
        assert main([*sweep, "--risks", "none"]) == 0
        found.append(json.loads((out / "sweep.json").read_text())["points"])
    assert len(found[1]) == 2
    assert found[1][0] != found[1][1]
    (out / "sweep.json").write_text("{")
    assert main([*sweep, "--risks", "none"]) == 2


def test_a_frozen_head_and_another_range_hold_in_the_other_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = [
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--quiet",
        "--adapt-head",
        "frozen",
        "--source-range",
        "0.4",
        "0.6",
    ]
    assert main(["train", *flags, "--target", "0.7", "--out", str(out)]) == 0
    seen = []
    run_branches = commands.run_branches
    monkeypatch.setattr(
        commands, "run_branches", lambda branches, *rest: seen.extend(branches) or run_branches(branches, *rest)
    )
    evaluate = ["evaluate", str(out), "--device", "cpu", "--quiet", "--episodes", "1", "--risks", "state"]
    assert main([*evaluate, "--phase", "adapted", "--targets", "0.7"]) == 0
    assert seen[0].voter is not None
    assert main([*evaluate, "--targets", "0.5"]) == 2  # inside this run's sources
    assert "0.4 to 0.6" in capsys.readouterr().err


def test_without_adaptation_the_zero_shot_test_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--adapt-iterations", "0", "--risk", "reward"]
    assert main(["train", *flags, "--out", str(out)]) == 0
    branch = json.loads((out / "adaptation.json").read_text())["branches"][0]
    assert (branch["adaptation"], list(branch["tests"])) == ([], ["0"])


def test_a_source_phase_without_a_catastrophe_leaves_out_who_votes() -> None:
    """And lets the others be what they are called."""
    from carl import measures

    seen = []
    adapting = measures.adapt
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        measures, "adapt", lambda branches, *rest, **more: seen.extend(branches) or adapting(branches, *rest, **more)
    )
    monkeypatch.setattr(Learner, "met_catastrophe", property(lambda self: False))
    monkeypatch.setitem(SETTINGS["smoke"], "cartpole", replace(SMALL, untrained_head=False))
    try:
        found = measures.experiment("smoke", "cpu", 0, env="cartpole", seeds=1, zero_shot=1)["seeds"][0]
    finally:
        monkeypatch.undo()
    assert found["refused"] == ["carl-state"]
    assert {each.label: each.risk.name for each in seen} == {
        "pets-scratch": "none", "mb-finetune": "none", "carl-reward": "reward",
    }  # fmt: skip
    assert {each["variant"] for each in found["zero_shot"]} == {"mb-frozen", "carl-reward"}


def test_record_writes_a_trajectory_with_its_votes(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "episode.npz"
    flags = ["record", str(run), "--device", "cpu", "--out", str(out)]
    assert main(flags) == 0
    with np.load(out) as found:
        n = len(found["actions"])
        assert found["states"].shape == (n + 1, 4)
        assert found["votes"].shape == (n, SMALL.horizon)
        assert float(found["domain"]) == 1.0
    assert main(flags) == 2  # nothing is replaced unasked


def test_a_car_is_filmed_without_any_display(tmp_path: Path) -> None:
    run, flags = tmp_path / "car", ["--preset", "smoke", "--device", "cpu", "--quiet", "--env", "duckietown"]
    assert main(["train", *flags, "--risk", "reward", "--out", str(run)]) == 0
    assert main(["record", str(run), "--device", "cpu", "--quiet", "--video", "--risk", "reward"]) == 0
    assert (run / "episode.gif").read_bytes().startswith(b"GIF8")
    (tmp_path / "mine.gif").write_text("kept")
    flags = ["record", str(run), "--device", "cpu", "--quiet", "--video", "--risk", "reward"]
    assert main([*flags, "--out", str(tmp_path / "mine.npz")]) == 2
    assert (tmp_path / "mine.gif").read_text() == "kept"


def test_envs_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs"]) == 0
    out = capsys.readouterr().out
    for word in ("cartpole", "duckietown", "half-cheetah", "baoding", "0.4 to 0.8"):
        assert word in out


@pytest.mark.parametrize("verb", VERBS)
def test_manuals_import_no_torch(verb: str) -> None:
    assert verb in app.verbs
    code = (
        f"import sys; from carl.cli import main; code = main(['{verb}', '--help']); "
        "sys.exit(code or ('torch' in sys.modules) * 3 or ('mujoco' in sys.modules) * 4)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--env", "cartpol"], "--env.*'cartpole'"),
        (["train", "--method", "carll"], "--method.*'carl'"),
        (["train", "--risk", "rewrd"], "--risk.*'reward'"),
        (["train", "--particles", "7", "--nets", "5"], "--particles: got '7'.*multiple of the 5 nets"),
        (["train", "--candidates", "10", "--elites", "11"], "--elites: got '11'.*10 candidates"),
        (["train", "--elites", "0"], "--elites"),
        (["train", "--horizon", "0"], "--horizon"),
        (["train", "--gamma", "100"], "--gamma: got '100"),
        (["train", "--gamma", "-1"], "--gamma"),
        (["train", "--beta", "1.5"], "--beta"),
        (["train", "--penalty", "-1"], "--penalty"),
        (["train", "--target", "0.05"], "--target: got '0.05'.*pole length"),
        (["train", "--target", "0.6"], "--target.*--in-distribution"),
        (["train", "--env", "duckietown", "--target", "0.03"], "--target.*car width"),
        (["train", "--env", "duckietown", "--target", "0.6"], "--target.*car width"),
        (["train", "--env", "half-cheetah", "--target", "6"], "--target.*disabled joint"),
        (["train", "--env", "half-cheetah", "--target", "0.5"], "--target.*whole number"),
        (["train", "--source-range", "0.8", "0.4"], "source range.*low < high"),
        (["train", "--source-range", "0.4", "0.4"], "source range.*low < high"),
        (["train", "--source-range", "0.4", "1.2"], "--target.*--in-distribution"),
        (["train", "--env", "half-cheetah", "--source-range", "1", "2"], "--source-range.*none"),
        (["train", "--source-domains", "0"], "--source-domains"),
        (["train", "--penalty", "inf"], "--penalty"),
        (["train", "--env", "half-cheetah", "--source-domains", "5"], "--source-domains.*4"),
        (["train", "--steps", "5"], "--steps"),
        (["train", "--devices", "2"], "--devices"),
        (["train", "--precision", "bf16"], "--precision"),
        (["train", "--preset", "cpuu"], "--preset.*'cpu'"),
        (["adapt", "/nowhere"], "/nowhere"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["reproduce", "--preset", "cpu-longer"], "--preset"),
        (["train", "--method", "ppo-dr", "--compile"], "--compile"),
    ],
)
def test_bad_words_are_refused_by_name(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert re.search(named, err, re.DOTALL), err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_source_phases_of_another_kind_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet"]
    assert main(["train", *flags, "--method", "pets-scratch", "--out", str(scratch)]) == 0
    assert main(["adapt", str(scratch), "--device", "cpu"]) == 2
    assert "pets-scratch" in capsys.readouterr().err
    state = torch.load(run / "source.pt", weights_only=True)
    for change, named in (({"env": "duckietown"}, "duckietown"), ({"sizes": {"hidden": [3], "nets": 2}}, "sizes")):
        other = tmp_path / named
        other.mkdir()
        (other / "config.json").write_bytes((run / "config.json").read_bytes())
        torch.save({**state, **change}, other / "source.pt")
        assert main(["adapt", str(other), "--device", "cpu"]) == 2
        assert named in capsys.readouterr().err
    (other / "source.pt").write_bytes(b"junk")
    assert main(["adapt", str(other), "--device", "cpu"]) == 2
    (other / "source.pt").unlink()
    assert main(["evaluate", str(other), "--device", "cpu"]) == 2
    assert "source.pt" in capsys.readouterr().err


def test_sizes_by_flags_take_the_presets_place() -> None:
    made = TrainConfig(hidden=(32, 32), nets=3, particles=6, fit_steps=0, fit_epochs=2, after_catastrophe=-1).setting()
    assert made.hidden == (32, 32)
    assert made.decays == (1e-4, 2.5e-4, 5e-4)
    assert (made.fit_steps, made.epochs, made.after_catastrophe) == (None, 2, None)
    assert TrainConfig().setting() == SETTINGS["cpu"]["cartpole"]


def test_published_sizes_are_the_published_ones() -> None:
    paper = SETTINGS["paper"]
    assert paper["cartpole"].hidden == (500, 500, 500)
    assert paper["duckietown"].hidden == (200, 200, 200)
    assert paper["half-cheetah"].hidden == (200, 200, 200, 200)
    for name, (n, k, h, t, epochs, iterations) in {
        "cartpole": (400, 40, 25, 200, 5, 50), "duckietown": (400, 40, 25, 125, 5, 100),
        "half-cheetah": (500, 50, 10, 1000, 10, 100),
    }.items():  # fmt: skip
        setting: Setting = paper[name]
        assert (setting.candidates, setting.elites, setting.horizon, setting.steps) == (n, k, h, t)
        assert (setting.epochs, setting.source_iterations, setting.adapt_iterations) == (epochs, iterations, 10)
        assert (setting.nets, setting.particles, setting.cem_iterations, setting.alpha) == (5, 20, 5, 0.1)
        assert setting.after_catastrophe is None


@pytest.mark.parametrize("method", ["ppo-dr", "rarl", "ppo-maml"])
def test_the_source_budget_of_a_policy_is_in_steps_that_were_taken(method: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        main(["train", "--preset", "smoke", "--method", method, "--device", "cpu", "--quiet", "--out", str(out)]) == 0
    )
    summary = json.loads((out / "summary.json").read_text())["metrics"]
    taken = [row["source_steps"] for row in read_metrics(out, "train") if "source_steps" in row]
    budget, parts = POLICY_SETTINGS["smoke"].budget, len(taken)
    largest = 4 * 2 * 2 * SMALL.steps  # of one update
    assert all(budget * (n + 1) / parts <= used < budget * (n + 1) / parts + largest for n, used in enumerate(taken))
    assert summary["source_steps"] == taken[-1]
    assert summary["source_updates"] >= parts


def test_no_target_outside_the_sources_is_said_and_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, flags = str(tmp_path / "run"), ["--device", "cpu", "--quiet"]
    wide = ["--preset", "smoke", "--source-range", "0.4", "2.5", "--target", "3.0", "--risk", "reward"]
    assert main(["train", *flags, *wide, "--out", out]) == 0
    for verb, flag in (("adapt", "--target"), ("evaluate", "--targets"), ("sweep", "--targets")):
        assert main([verb, out, *flags]) == 2
        assert flag in capsys.readouterr().err


def test_policies_are_evaluated_and_recorded_as_models_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, device = str(tmp_path / "run"), ["--device", "cpu", "--quiet"]
    assert main(["train", "--preset", "smoke", "--method", "ppo-dr", *device, "--out", out]) == 0
    found = {}
    for phase in ("source", "adapted"):
        file = tmp_path / f"{phase}.json"
        flags = [*device, "--targets", "1.0", "1.5", "--episodes", "2", "--seed", "0"]
        flags += ["--phase", phase, "--out", str(file)]
        assert main(["evaluate", out, *flags]) == 0
        found[phase] = [each["episodes"] for each in json.loads(file.read_text())["found"]]
    assert [len(episodes) for episodes in found["source"]] == [2, 2]
    assert found["source"] != found["adapted"]
    assert main(["record", out, *device, "--seed", "5", "--target", "1.5"]) == 0
    with np.load(tmp_path / "run" / "episode.npz") as episode:
        assert float(episode["domain"]) == 1.5
        assert len(episode["states"]) == len(episode["actions"]) + 1
        assert np.abs(episode["states"][0]).max() <= 0.01  # a first state of the environment
    few = tmp_path / "few.json"
    flags = [*device, "--targets", "1.0", "--episodes", "2", "--out", str(few), "--after", "1", "--force"]
    assert main(["evaluate", out, *flags, "--seed", "1"]) == 0
    assert json.loads(few.read_text())["found"][0]["episodes"] != found["adapted"][0]
    assert main(["evaluate", out, *flags, "--seed", "0"]) == 0
    # The run itself adapted for one episode at 1 m, from the same first state: the same policy, the same tests.
    assert json.loads(few.read_text())["found"][0]["episodes"] == found["adapted"][0]
    capsys.readouterr()
    source = tmp_path / "run" / "source.pt"
    content = torch.load(source, weights_only=True)
    for odd in ({"env": "duckietown"}, {"agents": [*content["agents"], *content["agents"]]}):
        save_atomically({**content, **odd}, source)
        assert main(["evaluate", out, *device]) == 2
        assert "source phase" in capsys.readouterr().err
    source.unlink()
    assert main(["evaluate", out, *device]) == 2
    assert "source.pt" in capsys.readouterr().err
