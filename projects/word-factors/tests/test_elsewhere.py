"""Whole runs on a pretended accelerator: nothing of them is left on the CPU that a GPU would miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.capture import Graphs
from shared.elsewhere import PretendedGraphs, elsewhere
from shared.loop import Loop
from word_factors.analysis import google_questions
from word_factors.config import TrainConfig
from word_factors.learning import WordFactors
from word_factors.measures import learned, measure_factors
from word_factors.questions import AnalogyTask


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A small run on random vectors of words that analogies ask for."""
    task = AnalogyTask.from_file(google_questions()).choose(["family", "gram7-past-tense", "gram8-plural"])
    words = list(dict.fromkeys(w for s in task.sections for p in s.pairs for w in (p.left, p.answers[0])))
    folder = tmp_path_factory.mktemp("elsewhere")
    x = np.random.default_rng(0).standard_normal((len(words), 24)).astype(np.float32)
    np.savez(folder / "v.npz", vectors=x, words=np.array(words), counts=1e4 / (1.0 + np.arange(len(words))))
    return TrainConfig(
        vectors=folder / "v.npz", factors=40, steps=6, batch_size=64, inference_steps=10, lam=0.2, device="meta",
        quiet=True, data_root=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"inference": "fista"},
        {"inference": "exact"},
        {"update": "quadratic", "init": "gaussian", "weighting": "sqrt"},
        {"update": "quadratic", "reseed": True, "target_active": 3.0, "bias_correct": True},
    ],
)
def test_dictionaries_are_learned(config: TrainConfig, changes: dict[str, Any]) -> None:
    with elsewhere():
        found = learned(replace(config, **changes))
    assert found.model.phi.device.type == "cpu"
    assert found.codes.nnz > 0


class Replaying(WordFactors):
    """Replays the steps of FISTA on any device."""

    def graphs(self) -> Graphs | None:
        return PretendedGraphs()


@pytest.mark.parametrize("changes", [{}, {"update": "quadratic", "init": "gaussian", "factors": 60}])
def test_replayed_steps_learn_the_same_dictionary(config: TrainConfig, changes: dict[str, Any]) -> None:
    small = replace(config, steps=10, **changes)
    with elsewhere():
        plain, replaying = WordFactors(small), Replaying(small)
        for task in (plain, replaying):
            Loop(task, small, "word-factors", folder=False).run()
    assert plain.recorded is None
    assert replaying.recorded is not None
    assert [captured.recorded for captured in replaying.recorded.captured.values()] == [1]
    np.testing.assert_allclose(replaying.model().phi.numpy(), plain.model().phi.numpy(), rtol=0, atol=1e-4)


def test_what_claims_ask_for_is_measured(config: TrainConfig) -> None:
    with elsewhere():
        values = measure_factors(config, None, thorough=False)
    assert 0 <= values["macro boost"] <= 1
    assert values["active"] > 0


def test_a_killed_cell_goes_on_to_what_it_would_have_been(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(config, device="cpu", steps=12, eval_every=3)
    whole = learned(small, None, tmp_path / "whole")
    assert [row["step"] for row in whole.history] == [0, 3, 6, 9, 12]
    assert whole.history[-1]["energy"] < whole.history[0]["energy"]
    step = WordFactors.step

    def mortal(task: WordFactors, batch: Any) -> Any:
        if task.loop.step == 7:
            raise KeyboardInterrupt
        return step(task, batch)

    monkeypatch.setattr(WordFactors, "step", mortal)
    with pytest.raises(KeyboardInterrupt):
        learned(small, None, tmp_path / "killed")
    monkeypatch.undo()
    again = learned(small, None, tmp_path / "killed")
    assert again.history == whole.history
    assert again.model.phi.equal(whole.model.phi)
