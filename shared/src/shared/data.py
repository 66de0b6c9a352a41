"""Where data lies, what to say when it does not, and batches whose order and noise can be taken up anywhere.

`Batches` is the source of batches of every task. Its order is a function of (seed, epoch), and every random choice
inside a batch a function of (seed, epoch, batch, rank): nothing depends on how a run got there, on workers, or on the
global random streams. That is what makes a resumed run the run that was never stopped.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import UserError, check_range

if TYPE_CHECKING:
    from torch import Generator, Tensor

VARIABLE = "PAPERS_DATA"


def data_root(flag: Path | None = None) -> Path:
    """The folder that holds data sets: `--data-root`, else $PAPERS_DATA, else the user's cache.

    Raises:
        UserError: a folder was named and is not there.
    """
    named = flag if flag is not None else os.environ.get(VARIABLE)
    if named:
        root = Path(named).expanduser()
        if not root.is_dir():
            field = "--data-root" if flag is not None else VARIABLE
            raise UserError(field, named, "a folder that exists")
        return root
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "papers"


def find(root: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` (files or folders, relative to `root`) that is there."""
    return next((root / name for name in names if (root / name).exists()), None)


def require(root: Path, names: Sequence[str], *, what: str, how: str) -> Path:
    """The first of `names` that lies under `root`.

    Args:
        root: the data root.
        names: alternatives, relative to the root, best first.
        what: the data set, as a reader knows it.
        how: how to come by it: one sentence.

    Raises:
        UserError: none of them is there; says which file to put where.
    """
    found = find(root, names)
    if found is None:
        places = " or ".join(str(root / name) for name in names)
        hint = f"{how} The folder is set by --data-root or ${VARIABLE}."
        raise UserError(what, "no such file", f"data at {places}", hint)
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raise `UserError` unless the file has this digest."""
    found = sha256(path)
    if found != expected:
        raise UserError(
            str(path), found, f"the SHA-256 {expected}", "The file is damaged or another version: fetch it again."
        )


def fetch(url: str, path: Path, expected: str, *, progress: bool = True) -> Path:
    """Download a file unless it is there whole. It appears under its name only when its checksum is right.

    Raises:
        UserError: offline, or the content is not what was expected.
    """
    if path.exists():
        check_sha256(path, expected)
        return path
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        try:
            torch.hub.download_url_to_file(url, str(temporary), hash_prefix=None, progress=progress)
        except OSError as error:
            hint = f"Download it elsewhere and put it at {path}. ({error})"
            raise UserError("download", url, "an address that can be reached", hint) from error
        check_sha256(temporary, expected)
        os.replace(temporary, path)
    return path


@dataclass(frozen=True)
class _Key:
    """What a batch is made from: its samples and the seed of its noise."""

    samples: Any
    seed: int


class Batches:
    """Training batches without end, from any position on.

    Args:
        data: a tuple of tensors of equal length (on any device; a batch is one `index_select` each), or a map-style
            data set, whose samples are collated as PyTorch's loader does.
        batch_size: samples a step and process.
        seed: decides order and noise.
        shuffle: a new permutation every epoch; else the order of the data.
        rank, world: this process among all. A step's samples are those of one process with `world` times the batch
            size; each process takes its slice.
        transform: applied to a whole batch; draws from the generator it is handed and from nothing else.
        drop_last: leave out an epoch's last, smaller batch.
        workers: processes that build batches of a data set (tensors need none).

    Attributes:
        epoch, position: where iteration stands: `position` batches of `epoch` have been handed out.

    Raises:
        UserError: a batch larger than the data.
    """

    def __init__(
        self,
        data: tuple[Tensor, ...] | Any,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        transform: Callable[[Any, Generator], Any] | None = None,
        drop_last: bool = True,
        workers: int = 0,
    ) -> None:
        import torch

        check_range("--batch-size", batch_size, 1)
        self.tensors = isinstance(data, tuple) and all(isinstance(part, torch.Tensor) for part in data)
        self.size = len(data[0]) if self.tensors else len(data)
        if self.tensors and any(len(part) != self.size for part in data):
            raise ValueError(f"tensors of unequal lengths {[len(part) for part in data]}")
        self.data, self.batch_size, self.seed, self.shuffle = data, batch_size, seed, shuffle
        self.rank, self.world, self.transform, self.workers = rank, world, transform, workers
        whole = batch_size * world
        self.length = self.size // whole if drop_last else -(-self.size // whole)
        if self.length == 0:
            raise UserError("--batch-size", whole, f"at most the {self.size} training samples")
        self.epoch = self.position = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.length

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Any]:
        """Batches from where `state_dict` stands, over epochs without end."""
        source = self._in_workers() if self.workers and not self.tensors else map(self._build, self._keys())
        for batch in source:
            # Counted when handed out: what workers have built ahead is not part of the state.
            self.position += 1
            if self.position == self.length:
                self.epoch, self.position = self.epoch + 1, 0
            yield batch

    def order(self, epoch: int) -> Tensor:
        """The order of an epoch, a function of the seed and the epoch alone: `[size]` indices."""
        import torch

        if not self.shuffle:
            return torch.arange(self.size)
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(_mix(self.seed, epoch)))

    def _keys(self) -> Iterator[_Key]:
        epoch, position = self.epoch, self.position
        while True:
            order = self.order(epoch)
            for index in range(position, self.length):
                begin = (index * self.world + self.rank) * self.batch_size
                whole = order[index * self.world * self.batch_size : (index + 1) * self.world * self.batch_size]
                if len(whole) < self.world * self.batch_size:  # a last, smaller batch: shared out evenly
                    mine = whole.tensor_split(self.world)[self.rank]
                else:
                    mine = order[begin : begin + self.batch_size]
                yield _Key(mine, _mix(self.seed, epoch, index, self.rank))
            epoch, position = epoch + 1, 0

    def _build(self, key: _Key) -> Any:
        import torch

        if self.tensors:
            device = self.data[0].device
            samples = key.samples.to(device, non_blocking=True)
            batch: Any = tuple(part.index_select(0, samples) for part in self.data)
        else:
            device = torch.device("cpu")
            batch = _collate(self.data, key)
        if self.transform is None:
            return batch
        return self.transform(batch, torch.Generator(device).manual_seed(key.seed))

    def _in_workers(self) -> Iterator[Any]:
        import torch
        from torch.utils.data import DataLoader

        loader = DataLoader(
            _Buildable(self._build),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=self._keys(),  # pyright: ignore[reportArgumentType]
            num_workers=self.workers,
            generator=torch.Generator(),  # or the loader would draw from the global stream
        )
        return iter(loader)


class _Buildable:
    """A data set whose items are whole batches, so that a worker builds one at a time."""

    def __init__(self, build: Callable[[_Key], Any]) -> None:
        self.build = build

    def __getitem__(self, key: _Key) -> Any:
        return self.build(key)


def _collate(data: Any, key: _Key) -> Any:
    """Samples of a data set, whose own random choices are bound to the batch's seed and leave no trace."""
    from torch.utils.data import default_collate

    from shared.device import kept_rng, set_seed

    with kept_rng():
        set_seed(key.seed)
        return default_collate([data[index] for index in key.samples.tolist()])


def _mix(*numbers: int) -> int:
    """One seed from several numbers; neighbours give unrelated streams."""
    content = b"".join(number.to_bytes(16, "little", signed=True) for number in numbers)
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")
