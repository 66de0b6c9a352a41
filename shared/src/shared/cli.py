"""The command-line app that every member builds on: the same verbs, typed configs, presets, exit codes.

    app = App("rpg", "Recurrent Parameter Generators (arXiv 2107.07110)")

    @app.verb(TrainConfig, presets=TRAIN_PRESETS)
    def train(config: TrainConfig) -> int | None:
        "Train one network."
        from rpg.train import train          # torch is imported here, not when `--help` is asked for
        return train(config)

    main = app.main

Exit codes: 0 done; 1 a claim or a run failed; 2 the user's input was refused; 130 and 143 stopped by a signal.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.config import RunConfig, RunFailed, Stopped, UserError, check_choice
from shared.run import is_full, write_json


@dataclass(frozen=True)
class Verb:
    """A subcommand: its config type, its presets, the function that does it."""

    name: str
    config: type[Any]
    presets: Mapping[str, Any]
    function: Callable[[Any], int | None]

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").strip().splitlines()[0]


class App:
    """Verbs under one name.

    Args:
        member: name of the console script and of the run folders.
        summary: one line on the paper.
        package: import name, for `python -m <package>`; default: `member` with underscores.
    """

    def __init__(self, member: str, summary: str, package: str | None = None) -> None:
        self.member, self.summary = member, summary
        self.package = package or member.replace("-", "_")
        self.verbs: dict[str, Verb] = {}

    def verb(
        self, config: type[Any], presets: Mapping[str, Any] | None = None, name: str | None = None
    ) -> Callable[[Callable[[Any], int | None]], Callable[[Any], int | None]]:
        """Register a function of one config as a verb. Its docstring is the verb's manual."""

        def register(function: Callable[[Any], int | None]) -> Callable[[Any], int | None]:
            verb = Verb(name or function.__name__.replace("_", "-"), config, presets or {}, function)
            self.verbs[verb.name] = verb
            return function

        return register

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run a command line; returns the exit code and never shows a traceback for a user's mistake."""
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        with _sigterm_as_exit(), _short_warnings(self.member):
            try:
                return self._dispatch(arguments) or 0
            except UserError as error:
                print(f"{self.member}: error: {error}", file=sys.stderr)
                return 2
            except RunFailed as error:
                print(f"{self.member}: run failed: {error}", file=sys.stderr)
                return 1
            except Stopped as stopped:
                if os.environ.get("RANK", "0") == "0":  # all processes stop together: one says it
                    print(f"{self.member}: {stopped.message}", file=sys.stderr)
                return stopped.code
            except KeyboardInterrupt:
                print(f"{self.member}: interrupted", file=sys.stderr)
                return 130
            except BrokenPipeError:  # the reader of our output left (`| head`)
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141
            except OSError as error:
                if not is_full(error):
                    raise
                where = f" ({error.filename})" if error.filename else ""
                print(f"{self.member}: error: no space left on the device{where}", file=sys.stderr)
                return 2
            except SystemExit as stop:
                # tyro exits by itself: 0 after --help, 2 after a flag it cannot take.
                return stop.code if isinstance(stop.code, int) else int(stop.code is not None)

    def _dispatch(self, arguments: list[str]) -> int | None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self.manual())
            return 0
        check_choice("command", arguments[0], self.verbs)
        verb = self.verbs[arguments[0]]
        config = self.parse(verb, arguments[1:])
        wanted = getattr(config, "devices", 1)
        if isinstance(config, RunConfig) and wanted > 1 and "WORLD_SIZE" not in os.environ:
            return start_processes([sys.executable, "-m", self.package, *arguments], wanted)
        with contextlib.nullcontext() if getattr(config, "quiet", False) else _shown_log(self.package):
            return verb.function(config)

    def parse(self, verb: Verb, arguments: list[str]) -> Any:
        """The config that a verb's flags describe: the preset's (or the resumed run's) fields, then the flags."""
        import tyro

        default: Any = None
        preset = _flag(arguments, "--preset")
        if preset is not None and verb.presets:
            check_choice("--preset", preset, verb.presets)
            default = verb.presets[preset]
        resume = _flag(arguments, "--resume")
        for field in dataclasses.fields(verb.config):
            # A verb for which an inherited flag makes no sense takes it out of its constructor.
            if not field.init and _given(arguments, flag := "--" + field.name.replace("_", "-")):
                raise UserError(flag, "this flag", f"none: `{verb.name} --help` says what stands in its place")
        if resume is not None and issubclass(verb.config, RunConfig):
            from shared.run import saved_config

            default = saved_config(Path(resume), verb.config, self.member)
        if default is None and verb.presets:
            default = next(iter(verb.presets.values()))
        if default is not None and resume is None:
            default = _make_room(default, arguments)
        if default is None:
            # Positional fields have no default: let tyro ask for them.
            with contextlib.suppress(TypeError):
                default = verb.config()
        manual = (verb.function.__doc__ or "").strip()
        if verb.presets:
            manual += "\n\nPresets: " + ", ".join(verb.presets) + f" (default {next(iter(verb.presets))})."
        options: dict[str, Any] = {} if default is None else {"default": default}
        if not {"-h", "--help"} & set(arguments):
            _check_choices(verb.config, arguments)
        with _own_refusals():
            return tyro.cli(
                verb.config,
                args=arguments,
                prog=f"{self.member} {verb.name}",
                description=manual,
                config=(tyro.conf.PositionalRequiredArgs,),  # a field without default is given by place
                **options,
            )

    def manual(self) -> str:
        """What `--help` without a verb prints."""
        width = max(len(name) for name in self.verbs)
        lines = [f"usage: {self.member} COMMAND [flags]", "", self.summary, "", "commands:"]
        lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in self.verbs.items()]
        lines += ["", f"`{self.member} COMMAND --help` lists the flags of a command and their defaults."]
        return "\n".join(lines)


@contextlib.contextmanager
def _shown_log(package: str) -> Iterator[None]:
    """Lines that the member's own modules log reach the terminal, once; those of libraries stay as they are."""
    logger, handler = logging.getLogger(package), logging.StreamHandler()
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _check_choices(config: type[Any], arguments: Sequence[str], prefix: str = "--") -> None:
    """Refuse a word that is none of its flag's choices with the nearest one: tyro only lists them."""
    for field in (field for field in dataclasses.fields(config) if field.init):
        hint = typing.get_type_hints(config)[field.name]
        flag = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            _check_choices(hint, arguments, flag + ".")
        elif choices := _choices(hint):
            for value in _values(arguments, flag, many=typing.get_origin(hint) is tuple):
                check_choice(flag, value, choices)


def _choices(hint: Any) -> list[str]:
    """The words that a flag of this type can take; empty where it takes others too."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return [str(choice) for choice in inner]
    if origin is tuple:
        return _choices(inner[0]) if len(set(inner) - {Ellipsis}) == 1 else []
    if origin in (typing.Union, types.UnionType):
        parts = [["None"] if part is type(None) else _choices(part) for part in inner]
        return [choice for part in parts for choice in part] if all(parts) else []
    return []


def _values(arguments: Sequence[str], flag: str, many: bool) -> list[str]:
    """What is given after a flag, wherever it stands: one word, or all up to the next flag."""
    found: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") != flag:
            continue
        following = list(itertools.takewhile(lambda word: not word.startswith("--"), arguments[position + 1 :]))
        found += [value] if equals else following[: None if many else 1]
    return found


@contextlib.contextmanager
def _own_refusals() -> Iterator[None]:
    """Let a config's `UserError` through tyro, which would put any `ValueError` into a box of its own and exit."""
    said = io.StringIO()
    refused: BaseException | None = None
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stop:
        refused = stop
        while refused is not None and not isinstance(refused, UserError):
            refused = refused.__context__
        if refused is not None:
            raise refused from None
        raise
    finally:
        if refused is None:
            sys.stderr.write(said.getvalue())


def _make_room(default: Any, arguments: Sequence[str]) -> Any:
    """A flag that excludes others takes the place of what the preset says for them; and what a preset says to go with
    one value of a flag (`unset_by`: flag -> fields) does not stay where another value is given."""
    for name, others in getattr(default, "unset_by", {}).items():
        if _given(arguments, "--" + name.replace("_", "-")):
            default = dataclasses.replace(default, **dict.fromkeys(others))
    for group in getattr(default, "exclusive", ()):
        flags = {name: "--" + name.replace("_", "-") for name in group}
        given = [name for name, flag in flags.items() if _given(arguments, flag)]
        if given:
            default = dataclasses.replace(default, **{name: None for name in group if name not in given})
    return default


def _given(arguments: Sequence[str], flag: str) -> bool:
    return any(argument.split("=", 1)[0].replace("_", "-") == flag for argument in arguments)


def _flag(arguments: Sequence[str], name: str) -> str | None:
    """Value of a flag that must be known before the others can be read."""
    for position, argument in enumerate(arguments):
        if argument == name:
            if position + 1 == len(arguments):
                raise UserError(name, "", "a value after the flag")
            return arguments[position + 1]
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :]
    return None


@contextlib.contextmanager
def _short_warnings(member: str) -> Iterator[None]:
    """Warnings are for the user: what they say, without the line of code that said it."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{member}: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextlib.contextmanager
def _sigterm_as_exit() -> Any:
    """Outside the training loop SIGTERM ends the program through its `finally` clauses, with 143."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(128 + number, "terminated")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_processes(command: Sequence[str], count: int) -> int:
    """Run `command` in `count` processes that find each other, as torchrun would; returns the first bad exit code.

    Signals go to all of them; when one fails the others are ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cores = os.cpu_count() or 1
    children: list[subprocess.Popen[bytes]] = []
    for rank in range(count):
        places = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_PORT": port,
        }
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            **{key: str(value) for key, value in places.items()},
        }
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            codes = [child.poll() for child in children]
            failed = next((code for code in codes if code), None)
            if failed is not None:
                _end(children)
                return failed if failed > 0 else 128 - failed
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.05)
    finally:
        _end(children)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(children: Iterable[subprocess.Popen[bytes]]) -> None:
    """Give processes a moment to finish by themselves, then terminate, then kill."""
    for patience, act in ((5.0, None), (5.0, "terminate"), (5.0, "kill")):
        running = [child for child in children if child.poll() is None]
        if not running:
            return
        for child in running:
            if act is not None:
                getattr(child, act)()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(child.poll() is None for child in running):
            time.sleep(0.05)


def member_home(package: str) -> Path:
    """The folder of a member in a checkout: the one that holds `claims.toml`, `results/` and `benchmarks/`.

    Raises:
        UserError: the package is installed without its checkout.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        home = Path(spec.origin).resolve().parents[2]
        if (home / "claims.toml").exists():
            return home
    raise UserError("checkout", package, "a source checkout of the member, where claims.toml and benchmarks/ lie")


@dataclass(frozen=True)
class BenchConfig:
    """Flags of `bench`."""

    only: str | None = None
    """Run this race alone."""
    quick: bool = False
    """Small sizes, seconds instead of minutes: shows that the race runs, its ratios mean nothing."""
    record: bool = False
    """Keep the races' tables in results/bench.json, from where `shared.claims docs` puts them into the README."""

    def __post_init__(self) -> None:
        if self.record and self.quick:
            raise UserError("--record and --quick", "both", "one of them")


def bench(package: str, config: BenchConfig) -> int:
    """Run the races in the member's `benchmarks/`, each in a process of its own, one after the other."""
    folder = member_home(package) / "benchmarks"
    races = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if config.only is not None:
        check_choice("--only", config.only, races)
        races = {config.only: races[config.only]}
    codes = []
    with tempfile.TemporaryDirectory() as scratch:
        records = {name: Path(scratch) / f"{name}.json" for name in races}
        for name, path in races.items():
            print(f"== {name}", flush=True)
            flags = ["--quick"] if config.quick else ["--json", str(records[name])] if config.record else []
            codes.append(subprocess.run([sys.executable, str(path), *flags]).returncode)
        if config.record:
            kept = folder.parent / "results" / "bench.json"
            before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
            made = {name: json.loads(p.read_text(encoding="utf-8")) for name, p in records.items() if p.exists()}
            write_json(kept, {**before, **made})
    return max(codes, default=0)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], quiet: bool = False) -> None:
    """Print a table as wide as the terminal; floats to four digits, text as it is."""
    if quiet:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a plain string would be read as markup, and lose what stands in brackets

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(f"{cell:.4g}" if isinstance(cell, float) else str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:  # a log is not 80 columns wide
        console = Console(width=160)
    console.print(table)


def override(config: Any, **changes: Any) -> Any:
    """A copy of a frozen config with some fields changed."""
    return dataclasses.replace(config, **changes)
