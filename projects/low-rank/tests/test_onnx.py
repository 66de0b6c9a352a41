"""The plain network as ONNX computes what the trained one does, for batches of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from low_rank.cli import main
from low_rank.train import open_run


@pytest.mark.parametrize("flags", [[], ["--model", "cnn-small", "--depth", "2", "--factor-norm", "--max-train", "200"]])
def test_onnx_is_the_network(flags: list[str], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    run, file = tmp_path / "run", tmp_path / "plain.onnx"
    small = ["--preset", "smoke", "--steps", "3", "--device", "cpu", "--quiet"]
    assert main(["train", *small, *flags, "--out", str(run)]) == 0
    assert main(["collapse", str(run), "--onnx", str(file), "--quiet"]) == 0
    graph: Any = onnx.load(file)
    onnx.checker.check_model(graph)
    program = ReferenceEvaluator(graph)
    task, _ = open_run(run, device="cpu")
    for count in (1, 5):
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        (found,) = program.run(None, {graph.graph.input[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, task.model(x).numpy(), rtol=1e-4, atol=1e-5)
    assert main(["collapse", str(run), "--onnx", str(file), "--force", "--quiet"]) == 0
    assert main(["collapse", str(run), "--out", str(tmp_path / "x.pt"), "--onnx", str(file), "--quiet"]) == 2
