"""Learning on the shared loop: it finds planted factors, and a killed run resumed is the run never killed."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.config import Stopped, UserError
from shared.loop import Loop
from shared.metrics import read_metrics
from word_factors.config import TrainConfig
from word_factors.embedding import Embedding
from word_factors.learning import WordFactors, judge, lam_for
from word_factors.runs import MEMBER
from word_factors.sources import Source

Planted = tuple[Embedding, np.ndarray, np.ndarray]
BASE = TrainConfig(
    factors=24, lam=0.05, preprocess="none", weighting="uniform", batch_size=50, steps=160, device="cpu", quiet=True
)


def learn(config: TrainConfig, embedding: Embedding, folder: Any = False) -> tuple[WordFactors, dict[str, Any]]:
    task = WordFactors(config, Source(embedding))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = Loop(task, config, MEMBER, folder=folder).run()
    return task, summary


def match(task: WordFactors, phi: np.ndarray) -> float:
    """Mean best cosine of the true factors."""
    return float((torch.from_numpy(phi).T @ task.dictionary.phi).amax(dim=1).mean())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]


@pytest.mark.parametrize(
    "changes",
    [
        {"update": "online"},
        {"update": "quadratic", "step_size": 0.05, "steps": 1500, "init": "gaussian", "average": 100},
    ],
)
def test_both_updates_find_planted_factors(planted: Planted, changes: dict[str, Any]) -> None:
    embedding, phi, _ = planted
    task, summary = learn(replace(BASE, **changes), embedding)
    assert match(task, phi) > 0.9
    assert summary["metrics"]["relative_residual"] < 0.05
    torch.testing.assert_close(task.dictionary.phi.norm(dim=0), torch.ones(24), rtol=0, atol=1e-6)


def test_exact_inference_learns_what_many_steps_of_fista_do(planted: Planted) -> None:
    exact, summary = learn(replace(BASE, update="online", inference="exact"), planted[0])
    steps, converged = learn(replace(BASE, update="online", inference_steps=500), planted[0])
    assert summary["metrics"]["energy"] == pytest.approx(converged["metrics"]["energy"], rel=1e-3)
    assert float((exact.dictionary.phi * steps.dictionary.phi).sum(dim=0).min()) > 0.999


def test_every_logged_number_is_there(planted: Planted, tmp_path: Path) -> None:
    config = replace(BASE, steps=5, out=tmp_path / "run", update="quadratic", reseed=True)
    learn(config, planted[0], None)
    logged = next(read_metrics(tmp_path / "run", "train"))
    assert {
        "energy", "data", "l1", "snr", "active", "kkt_gap", "step_norm", "h_min", "h_max", "dead", "coherence", "lam",
        "step_size", "reseeded",
    } <= set(logged)  # fmt: skip
    assert logged["energy"] == pytest.approx(logged["data"] + BASE.lam * logged["l1"], rel=1e-5)


@pytest.mark.parametrize("update", ["online", "quadratic"])
def test_resumed_run_is_the_run_never_stopped(planted: Planted, tmp_path: Path, update: Any) -> None:
    config = replace(BASE, update=update, steps=40, checkpoint_every=7, weighting="sqrt", target_active=3.0)
    embedding = planted[0].first(100)
    learn(replace(config, out=tmp_path / "whole"), embedding, None)

    class Interrupted(WordFactors):
        def step(self, batch: Any) -> Any:
            if self.loop.step == 23:
                self.loop._signal = 15  # as if SIGTERM had come
            return super().step(batch)

    stopped = replace(config, out=tmp_path / "stopped")
    with pytest.raises(Stopped):
        Loop(Interrupted(stopped, Source(embedding)), stopped, MEMBER).run()
    learn(replace(stopped, resume=tmp_path / "stopped"), embedding, None)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_vectors_trained_for_a_run_lie_beside_it(planted: Planted, tmp_path: Path) -> None:
    config = replace(BASE, steps=2, out=tmp_path / "run")
    task = WordFactors(config, Source(planted[0], trained=True))
    Loop(task, config, MEMBER).run()
    assert (tmp_path / "run" / "vectors.npz").exists()
    from word_factors.vectors import read_vectors

    kept = read_vectors(tmp_path / "run" / "vectors.npz", quiet=True)
    np.testing.assert_array_equal(kept.vectors, planted[0].vectors)
    np.testing.assert_array_equal(kept.counts, planted[0].counts)


def test_target_active_is_reached(planted: Planted) -> None:
    task, summary = learn(replace(BASE, target_active=4.0), planted[0].first(150))
    assert summary["metrics"]["active"] == pytest.approx(4.0, abs=0.5)
    assert task.dictionary.lam != BASE.lam


def test_lam_for_hits_its_target_and_refuses_the_impossible(planted: Planted) -> None:
    embedding, phi, _ = planted
    X, dictionary = torch.from_numpy(embedding.vectors[:100].T.copy()), torch.from_numpy(phi)
    for target in (1.5, 3.0, 5.0):
        assert judge(X, dictionary, lam_for(X, dictionary, target))["active"] == pytest.approx(target, abs=0.1)
    with pytest.raises(UserError, match="--target-active"):
        lam_for(X, dictionary, 24.0)


def test_lam_above_the_largest_correlation_is_refused_with_that_number(planted: Planted, tmp_path: Path) -> None:
    config = replace(BASE, lam=1e4, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"less than \d.*\n.*zero"):
        learn(config, planted[0], None)
    assert not (tmp_path / "run").exists()


def test_lam_that_leaves_almost_nothing_warns(planted: Planted) -> None:
    embedding, phi, _ = planted
    X = torch.from_numpy(embedding.vectors.T.copy())
    config = replace(BASE, steps=1, lam=0.7 * float((torch.from_numpy(phi).T @ X).max()))
    with pytest.warns(UserWarning, match="lower --lam"):
        Loop(WordFactors(config, Source(embedding)), config, MEMBER, folder=False).run()


def test_lam_that_leaves_codes_dense_warns(planted: Planted) -> None:
    config = replace(BASE, steps=1, lam=1e-5, factors=12)
    with pytest.warns(UserWarning, match="raise --lam"):
        Loop(WordFactors(config, Source(planted[0])), config, MEMBER, folder=False).run()


def test_warmup_begins_at_a_third(planted: Planted, tmp_path: Path) -> None:
    learn(replace(BASE, steps=30, lam_warmup=20, out=tmp_path / "run"), planted[0], None)
    lams = [row["lam"] for row in read_metrics(tmp_path / "run", "train")]
    assert lams[0] == pytest.approx(BASE.lam / 3)
    assert lams[10] == pytest.approx(BASE.lam * 2 / 3)
    assert lams[20:] == pytest.approx([BASE.lam] * 10)


def test_reseeding_brings_a_dead_factor_back(planted: Planted) -> None:
    """A factor that points away from every word is never active; reseeded, it is."""

    class Broken(WordFactors):
        def start(self, loop: Loop) -> None:
            super().start(loop)
            mean = torch.from_numpy(self.embedding.vectors).mean(dim=0)
            self.dictionary.phi[:, 0] = -mean / mean.norm()

    embedding = replace(planted[0], vectors=np.abs(planted[0].vectors))  # all vectors in one orthant
    unused = []
    for reseed in (False, True):
        config = replace(BASE, reseed=reseed, average=10, steps=80, lam=0.5)
        task = Broken(config, Source(embedding))
        Loop(task, config, MEMBER, folder=False).run()
        model = task.model()
        used = np.asarray((model.encode() > 0).sum(axis=0)).ravel()
        unused.append((task.dead.reseeded, int(used[0]), int((used == 0).sum())))
    assert unused[0][:2] == (0, 0)  # left as it was: no word has it
    assert unused[1][0] >= 1
    assert unused[1][1] > 0
    assert unused[1][2] < unused[0][2]


def test_two_processes_learn_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Through the command line, on vectors in a file: gloo, two processes."""
    import os
    import subprocess
    import sys

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "v.npz", vectors=rng.standard_normal((300, 10)).astype(np.float32),
             words=np.array([f"w{i}" for i in range(300)]), counts=1e3 / (1.0 + np.arange(300)))  # fmt: skip
    flags = ["--vectors", tmp_path / "v.npz", "--factors", "16", "--steps", "12", "--device", "cpu", "--quiet",
             "--eval-every", "12"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, extra in (("one", ["--batch-size", "40"]), ("two", ["--batch-size", "20", "--devices", "2"])):
        command = [sys.executable, "-m", "word_factors", "train", *flags, *extra, "--out", tmp_path / name]
        done = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = ([row["data"] for row in read_metrics(tmp_path / name, "train")] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": 1}, "--factors"),
        ({"lam": 0.0}, "--lam"),
        ({"weighting": "zipf"}, "--weighting"),
        ({"precision": "bf16"}, "32 bits"),
        ({"accumulate": 2}, "--accumulate"),
        ({"forgetting": 1.5}, "--forgetting"),
        ({"update": "adam"}, "--update"),
        ({"inference": "lars"}, "--inference"),
        ({"inference": "exact", "compile": True}, "--compile"),
        ({"vectors": Path("a"), "corpus": Path("b")}, "--vectors and --corpus"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(BASE, **changes)
