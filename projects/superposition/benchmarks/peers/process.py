"""Our end of the conversation with `avalanche_peer.py`, and the environment it runs in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.config import UserError
from superposition.streams import Samples

PACKAGES = ("avalanche-lib>=0.6",)


def peer_python(folder: Path) -> Path:
    """The interpreter of a new environment with Avalanche, made by uv.

    Raises:
        UserError: uv is missing, or the packages cannot be had.
    """
    python = folder / "bin" / "python"
    version = torch.__version__.split("+")[0]
    for command in (
        ["uv", "venv", "--quiet", "--python", "3.11", str(folder)],
        ["uv", "pip", "install", "--quiet", "--python", str(python), f"torch=={version}", *PACKAGES],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip()[-300:]
            raise UserError("--peer-python", "nothing", "an interpreter that has avalanche-lib 0.6", why) from None
    return python


def write_mnist(folder: Path, images: Tensor, labels: Tensor) -> None:
    """Images [N, 1, 28, 28] uint8 and labels [N] as the files that torchvision's `MNIST` reads, for training and
    testing alike."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    sized = np.array([2051, len(images), 28, 28], ">i4").tobytes()
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(sized + images.numpy().astype(np.uint8).tobytes())
        named = np.array([2049, len(labels)], ">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(named + labels.numpy().astype(np.uint8).tobytes())


class Peer:
    """A process of Avalanche's that answers line by line.

    Args:
        python: its interpreter. samples: the data. folder: for their file. threads: of torch. mnist: folder of
            `write_mnist`, for the stream that Avalanche ships.
    """

    def __init__(self, python: Path, samples: Samples, folder: Path, threads: int, mnist: Path | None = None) -> None:
        path = folder / "data.npz"
        np.savez(path, **{name: getattr(samples, name).numpy() for name in ("x", "y", "x_test", "y_test")})
        script = Path(__file__).with_name("avalanche_peer.py")
        self.process = subprocess.Popen(
            [str(python), str(script), str(path), str(threads), str(mnist or "")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.torch = self._answer()["torch"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise UserError("--peer-python", self.process.args, "an interpreter that has avalanche-lib 0.6 and torch")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, Any]:
        """One command, one answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
