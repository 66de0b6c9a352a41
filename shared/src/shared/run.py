"""A run's folder: `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, `figures/`, `summary.json`.

One process writes a folder at a time: a lock says so, and it dies with the process that holds it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any, BinaryIO

from shared.config import RunConfig, UserError, differences, from_json, to_json

if sys.platform == "win32":  # the lock is advisory and POSIX; Windows runs unlocked
    fcntl = None
else:
    import fcntl


class FolderInUse(UserError):
    """Another run is writing to the folder."""


class RunFolder:
    """Opens (or takes up again) the folder of one run.

    Args:
        member: the paper's name, `rpg`; part of the default path and of `config.json`.
        config: what runs; with `config.resume` the folder of that run is taken up.

    Raises:
        UserError: the folder is in use, holds another run (without `--force`), or its config differs.
    """

    def __init__(self, member: str, config: RunConfig, *, primary: bool = True) -> None:
        self.member, self.config, self.resumed = member, config, config.resume is not None
        self.primary = primary
        if config.resume is not None:
            self.path = config.resume
            check_same_run(self.path, member, config)
        else:
            self.path = config.out or default_folder(member)
        self._lock: Any = None
        self._made: list[Path] = []
        if not primary:
            return
        occupied = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if occupied and not self.path.is_dir():
            raise UserError("--out", self.path, "a folder, new or empty")
        if occupied:
            self._take_lock()  # a folder in use is refused even with --force
            if not self.resumed and not config.force:
                raise UserError(
                    "--out",
                    self.path,
                    "a new or empty folder",
                    f"Go on with that run by --resume {self.path}, or replace it by --force.",
                )
            if not self.resumed and not (self.path / "config.json").exists():
                raise UserError("--force", self.path, "the folder of an earlier run (it holds no config.json)")
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError("--out", self.path, "a folder that can be written", error.strerror or "") from error
        self._take_lock()

    def begin(self) -> None:
        """Take the folder into use, once it is sure that the run can start: only now is an earlier run replaced."""
        if not self.primary or self.resumed:
            return
        if self.config.force and any(entry.name != ".lock" for entry in self.path.iterdir()):
            self._empty()
        write_json(self.path / "config.json", {"member": self.member, **to_json(self.config)})

    def discard(self) -> None:
        """Leave no trace of a run that could not start: what was there before stays, what was made goes."""
        if not self.primary or self.resumed:
            return
        (self.path / ".lock").unlink(missing_ok=True)
        self.close()
        for folder in self._made:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()

    def _take_lock(self) -> None:
        if fcntl is None or self._lock is not None:
            return
        self._lock = _locked(self.path)

    def _empty(self) -> None:
        for entry in self.path.iterdir():
            if entry.name == ".lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`: final metrics, seconds, versions, commit."""
        if self.primary:
            write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Give the folder free for others. Safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed.

    Raises:
        FolderInUse: another process holds it.
    """
    assert fcntl is not None
    handle = open(folder / ".lock", "a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise FolderInUse("--out", folder, "a folder that no other run is writing to") from None
    return handle


def refuse_in_use(folder: Path) -> None:
    """Nothing, unless a run is writing to the folder.

    Raises:
        FolderInUse: one is.
    """
    if fcntl is not None and (folder / ".lock").exists():
        _locked(folder).close()


def default_folder(member: str) -> Path:
    """`runs/<member>/<time>`, never a folder that exists."""
    base = Path("runs") / member / time.strftime("%Y%m%d-%H%M%S")
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def saved_config(folder: Path, kind: type[Any], member: str | None = None) -> Any:
    """The config that a run's folder was started with.

    Raises:
        UserError: no run there, or a run of another member.
    """
    values = _read_config(folder)
    owner = values.pop("member", None)
    if member is not None and owner != member:
        raise UserError("--resume", folder, f"a run of {member}", f"That folder holds a run of {owner}.")
    return from_json(kind, values, where=str(folder / "config.json"))


def check_same_run(folder: Path, member: str, config: RunConfig) -> None:
    """Refuse to go on with a run under another config, naming the fields that differ."""
    saved = saved_config(folder, type(config), member)
    changed = differences(saved, config)
    if changed:
        listed = "; ".join(f"{name}: {before!r} there, {now!r} here" for name, (before, now) in changed.items())
        raise UserError("--resume", folder, "the config that the run was started with", f"It differs in {listed}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise UserError("run folder", path, "a mapping of flags, written by `train`")
        return found
    except OSError:
        raise UserError("run folder", folder, "a folder that holds config.json, written by `train`") from None
    except ValueError as error:  # no JSON, or no text at all
        raise UserError("run folder", path, "readable JSON", str(error)) from None


@contextlib.contextmanager
def writing(path: Path, field: str = "file", hint: str = "") -> Iterator[None]:
    """Around what writes to `path`: a disk that is full, or refuses, is the user's to mend, and is told as such.

    Args:
        path: what is being written.
        field: what it is, in the user's words.
        hint: one more sentence, such as what is still whole.

    Raises:
        UserError: the write failed; names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        why = "no space left on the device" if is_full(error) else error.strerror or str(error)
        said = f"Could not write it: {why}." + (f" {hint}" if hint else "")
        raise UserError(field, path, "a place with room that can be written", said) from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it follows from, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_path(path: Path, force: bool, field: str = "--out") -> Path:
    """`path`, if nothing is lost by writing it; its folder is made.

    Raises:
        UserError: a file is there and `force` was not given; the folder cannot be made.
    """
    if path.exists() and not force:
        raise UserError(field, path, "a file that does not exist yet", "Replace it by --force.")
    with writing(path, field):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one.

    Raises:
        UserError: as `write_atomically`.
    """
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        UserError: the disk is full or refuses the write. `path` is as it was before.
    """
    with writing(path), replacing(path) as handle:
        handle.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its name once it is written, whole and on the disk; its folder is made.

    Raises:
        OSError: the write failed. `path` is as it was before, and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` survive a power cut."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the packages that matter to a result."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "accelerate", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the code that runs, `-dirty` appended where the tree differs; `unknown` outside a checkout."""
    here = Path(__file__).parent
    try:
        call = {"cwd": here, "capture_output": True, "text": True, "timeout": 10, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **call).stdout.strip()
        changed = subprocess.run(
            [
                "git",
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ":/",
                ":(exclude,top)projects/*/results/*",
            ],
            **call,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("-dirty" if changed else "")
