"""Trained runs: train one, open one again, its codes, groups, names and reliability."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from shared.checkpoint import Checkpoints
from shared.cli import override
from shared.config import UserError
from shared.device import choose_device
from shared.run import saved_config, write_json
from word_factors.config import TrainConfig
from word_factors.embedding import Embedding
from word_factors.model import FactorModel, load_codes, save_codes
from word_factors.naming import automatic_names, match_names, read_names, signatures
from word_factors.preprocess import Transform
from word_factors.reliability import reliability
from word_factors.sources import open_source

MEMBER = "word-factors"
MODEL_FILE, CODES_FILE, GROUPS_FILE, NAMES_FILE = "model.pt", "codes.npz", "groups.json", "names.yaml"
RELIABILITY_FILE = "reliability.json"


@dataclass
class Run:
    """A trained run at hand.

    Attributes:
        folder: where it lies. config: its flags. model: dictionary with its embedding.
        device: where codes are computed. quiet: no progress bar.
    """

    folder: Path
    config: TrainConfig
    model: FactorModel
    device: str = "cpu"
    quiet: bool = False

    @property
    def embedding(self) -> Embedding:
        """The embedding that was taken apart."""
        assert self.model.embedding is not None
        return self.model.embedding

    @cached_property
    def codes(self) -> sparse.csr_array:
        """[V, K] codes of the vocabulary; kept in the run folder, computed where they are missing or of another
        dictionary."""
        path = self.folder / CODES_FILE
        if path.exists():
            try:
                codes, digest = load_codes(path)
            except UserError as error:  # the run's own to renew
                warnings.warn(f"{error} Computed again.", stacklevel=2)
            else:
                if digest == self.model.digest:
                    return codes
        codes = self.model.encode(device=self.device, quiet=self.quiet)
        save_codes(codes, self.model.digest, path)
        return codes

    @cached_property
    def phi(self) -> NDArray[np.float32]:
        """[d, K]."""
        return self.model.phi.numpy()

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """[V, d] preprocessed vectors."""
        return self.model.vectors()

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """[K] group of each factor, if `groups` has been run on this dictionary."""
        try:
            found = self._kept(GROUPS_FILE, "labels")
        except ValueError as error:
            path = self.folder / GROUPS_FILE
            raise UserError("groups", path, "a file written by `groups`", f"{error}. Run `groups` again.") from None
        return None if found is None else found.astype(np.int64)

    def _kept(self, name: str, field: str) -> NDArray[np.float64] | None:
        """[K] what a command has kept of the factors of this dictionary, if it has.

        Raises:
            ValueError: a damaged file.
        """
        path = self.folder / name
        if not path.exists():
            return None
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["model"] != self.model.digest:
                return None
            found = np.array(kept[field], dtype=np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(error) from None
        if found.shape != (self.model.K,) or not np.isfinite(found).all():
            raise ValueError(f"{found.size} {field} for {self.model.K} factors")
        return found

    def keep_labels(self, labels: NDArray[np.int64], how: dict[str, Any]) -> None:
        """Keep groups for the other commands."""
        write_json(self.folder / GROUPS_FILE, {"model": self.model.digest, **how, "labels": labels.tolist()})

    @cached_property
    def reliability(self) -> NDArray[np.float64] | None:
        """[K] mean best cosine of each factor in the runs it was last compared with; None if it never was."""
        try:
            return self._kept(RELIABILITY_FILE, "reliability")
        except ValueError as error:  # to look at factors does not take it
            path = self.folder / RELIABILITY_FILE
            warnings.warn(f"{path} is not used: {error}. Run `reliability` again.", stacklevel=2)
            return None

    def compare(self, others: Sequence[Run]) -> NDArray[np.float64] | None:
        """[K] mean best cosine of each factor in other runs of the same space, kept for the other commands; without any
        the one that was kept."""
        if others:
            self.reliability = reliability([self.phi, *(other.phi for other in others)])
            content = {
                "model": self.model.digest,
                "runs": [str(other.folder) for other in others],
                "reliability": self.reliability.tolist(),
            }
            write_json(self.folder / RELIABILITY_FILE, content)
        return self.reliability


def open_run(folder: Path, data_root: Path | None = None, device: str = "auto", quiet: bool = False) -> Run:
    """Open a run, finished or stopped at a checkpoint.

    Raises:
        UserError: no run there, no checkpoint yet, missing data, an embedding that has changed since.
    """
    saved = saved_config(folder, TrainConfig, MEMBER)
    config = override(saved, data_root=data_root or saved.data_root, resume=None, quiet=quiet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*says nothing about frequencies.*")  # said when it was trained
        embedding = open_source(override(config, weighting="uniform"), folder).embedding
    if (folder / MODEL_FILE).exists():
        model = FactorModel.load(folder / MODEL_FILE)
    else:
        state = Checkpoints(folder / "checkpoints").load("newest")
        if state is None:
            raise UserError("run folder", folder, "one with a checkpoint", "Has the run reached its first checkpoint?")
        kept = state["task"]["dictionary"]
        transform = Transform.fit(config.preprocess, embedding.vectors)
        model = FactorModel(kept["phi"], float(kept["lam"]), transform, embedding.digest)
    return Run(folder, config, model.attach(embedding), str(choose_device(device)), quiet)


def open_others(first: Run, folders: Sequence[Path], data_root: Path | None, device: str, quiet: bool) -> list[Run]:
    """Further runs whose dictionaries live in the space of the first.

    Raises:
        UserError: one was learned on vectors of another embedding or preprocessing, or holds the same dictionary.
    """
    runs = [open_run(folder, data_root, device, quiet) for folder in folders]
    for run in runs:
        if run.model.digest == first.model.digest:
            hint = "Its dictionary is this run's: all factors would be found again."
            raise UserError("--others", run.folder, "runs under other seeds", hint)
        same = run.model.vocabulary == first.model.vocabulary
        if not same or run.config.preprocess != first.config.preprocess:
            hint = "`word-factors reliability` compares activations on shared words for runs on different vectors."
            raise UserError(
                "--others", run.folder, f"runs on {first.embedding.name}, --preprocess {first.config.preprocess}", hint
            )
    return runs


def factor_names(run: Run) -> list[str]:
    """[K] the name that a person gave each factor, else its three top words and, where there is one, the hand-made
    class that it finds well (see `naming.automatic_names`)."""
    from word_factors.analysis import google_questions
    from word_factors.classes import class_lexicon

    found = automatic_names(run.codes, run.embedding, class_lexicon(google_questions()))
    path = run.folder / NAMES_FILE
    if not path.exists():
        return found
    try:
        given = match_names(read_names(path), signatures(run.codes, run.embedding))
    except UserError as error:  # to look at factors does not take names
        warnings.warn(f"{path} is not used: {error}", stacklevel=2)
        return found
    if given.unmatched:
        lost = ", ".join(repr(entry.name) for entry in given.unmatched)
        warnings.warn(f"{path} names factors that this dictionary does not have: {lost}", stacklevel=2)
    return [given.names.get(j, name) for j, name in enumerate(found)]


def with_reliability(run: Run, names: Sequence[str]) -> list[str]:
    """[K] names, each with the factor's reliability beside it: `r 0.93`, or `r ?` where no other run was compared."""
    found = run.reliability
    return [f"{name} [r {'?' if found is None else format(found[j], '.2f')}]" for j, name in enumerate(names)]


def reliability_column(run: Run) -> list[str]:
    """[K] the same as a column of a table."""
    return ["?"] * run.model.K if run.reliability is None else [f"{value:.2f}" for value in run.reliability]


def hint_reliability(run: Run) -> None:
    """Say, where nothing is known of it, how to learn what `r ?` would be."""
    if run.reliability is None and not run.quiet:
        print("reliability (r) unknown: name runs on the same vectors under other seeds by --others.")
