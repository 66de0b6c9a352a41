"""The command line: presets, flags, manuals, refusals, exit codes."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import PRESETS, ToyConfig

from shared.cli import App, print_table, start_processes
from shared.config import RunConfig, RunFailed, Stopped, UserError


@pytest.fixture
def app() -> Any:
    """An app whose verb notes the config it was given."""
    made: Any = App("toy", "A toy.")
    made.seen = []

    @made.verb(ToyConfig, PRESETS)
    def train(config: ToyConfig) -> int:
        """Train a toy.

        At length.
        """
        made.seen.append(config)
        return 0

    @made.verb(RunConfig)
    def explode(config: RunConfig) -> int:
        """Fail in the way that --seed says."""
        raise [UserError("--x", 1, "2"), RunFailed("nan"), Stopped(143, "bye"), KeyboardInterrupt()][config.seed]

    return made


def test_flags_override_the_preset(app: Any) -> None:
    assert app.main(["train", "--preset", "smoke", "--batch-size", "3"]) == 0
    (config,) = app.seen
    assert (config.preset, config.steps, config.batch_size) == ("smoke", 10, 3)


def test_a_flag_takes_the_place_of_what_the_preset_says_for_its_rivals(app: Any) -> None:
    assert app.main(["train", "--epochs", "2"]) == 0
    assert (app.seen[0].steps, app.seen[0].epochs) == (None, 2.0)
    assert app.main(["train", "--epochs", "2", "--steps=3"]) == 2


def test_without_preset_the_first_one_holds(app: Any) -> None:
    assert app.main(["train"]) == 0
    assert app.seen[0] == PRESETS["cpu"]


def test_resume_takes_the_config_of_the_run(app: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"member": "toy", "steps": 77, "seed": 5}))
    assert app.main(["train", "--resume", str(tmp_path)]) == 0
    assert (app.seen[0].steps, app.seen[0].seed, app.seen[0].resume) == (77, 5, tmp_path)


def test_manual_lists_verbs_and_flags(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--help"]) == 0
    assert "train    Train a toy." in capsys.readouterr().out
    assert app.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for text in ("At length.", "--batch-size", "Samples a step and device.", "Presets: cpu, smoke"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["'trian'", "did you mean 'train'"]),
        (["train", "--preset", "cpuu"], ["--preset", "'cpuu'", "did you mean 'cpu'"]),
        (["train", "--preset"], ["--preset"]),
        (["train", "--steps", "0"], ["--steps", "'0'", "valid: a number >= 1"]),
        (["train", "--steps", "many"], ["--steps", "many"]),
        (["train", "--stepz", "3"], ["--stepz", "--steps"]),
        (["train", "--kind", "gaan"], ["--kind", "gaan", "regression", "did you mean 'gan'"]),
        (["train", "--kind=dictionnary"], ["--kind", "did you mean 'dictionary'"]),
        (["train", "--others", "gan", "unrol", "--steps", "3"], ["--others", "'unrol'", "did you mean 'unroll'"]),
        (["train", "--device", "cpu", "--precision", "fp23"], ["--precision", "did you mean 'fp32'"]),
        (["train", "--seed", "-1"], ["--seed", "[0, 9223372036854775807]"]),
        (["train", "--resume", "nowhere"], ["nowhere", "config.json"]),
    ],
)
def test_refusals_exit_with_2_and_name_flag_value_and_what_is_valid(
    app: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    assert app.main(arguments) == 2
    captured = capsys.readouterr()
    for text in expected:
        assert text in captured.err + captured.out
    assert "Traceback" not in captured.err
    # Either ours, or tyro's (which points to the manual): never one inside the other.
    assert captured.err.startswith("toy: error: ") != ("train --help" in captured.err)
    assert app.seen == []


def test_a_word_that_is_a_choice_is_taken_in_every_form(app: Any) -> None:
    assert app.main(["train", "--kind=gan", "--others", "gan", "unroll", "--steps", "3"]) == 0
    assert (app.seen[0].kind, app.seen[0].others) == ("gan", ("gan", "unroll"))


@pytest.mark.parametrize(("seed", "code"), [(0, 2), (1, 1), (2, 143), (3, 130)])
def test_exit_codes(app: Any, seed: int, code: int) -> None:
    assert app.main(["explode", "--seed", str(seed)]) == code


def test_a_bug_keeps_its_traceback(app: Any) -> None:
    @app.verb(RunConfig)
    def buggy(config: RunConfig) -> int:
        """Has a bug."""
        return 1 // 0

    with pytest.raises(ZeroDivisionError):
        app.main(["buggy"])


def test_a_disk_that_is_full_wherever_it_was_noticed_is_no_bug(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    @app.verb(RunConfig)
    def fill(config: RunConfig) -> int:
        """Write what does not fit."""
        with open("/dev/full", "w") as file:
            file.write("x")
        return 0

    assert app.main(["fill"]) == 2
    assert "toy: error: no space left on the device" in capsys.readouterr().err


def test_what_the_member_logs_is_shown_unless_it_is_to_be_quiet(app: Any, capsys: pytest.CaptureFixture[str]) -> None:
    @app.verb(RunConfig)
    def talk(config: RunConfig) -> int:
        """Log a line."""
        logging.getLogger("toy.wrap").info("a is tied to b")
        logging.getLogger("library").info("chatter")
        return 0

    assert app.main(["talk"]) == 0
    assert capsys.readouterr().err == "a is tied to b\n"
    assert app.main(["talk", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a [bold] title", ("of [name]",), [("she, her [r 0.93]",), ("[/] :smile:",), (0.123456,)])
    out = capsys.readouterr().out
    for text in ("a [bold] title", "of [name]", "she, her [r 0.93]", "[/] :smile:", "0.1235"):
        assert text in out


def test_a_warning_is_what_it_says_and_no_line_of_code(app: Any) -> None:
    shown = []

    @app.verb(RunConfig)
    def warn(config: RunConfig) -> int:
        """Warn."""
        shown.append(warnings.formatwarning("mind the step", UserWarning, "file.py", 3))
        return 0

    before = warnings.formatwarning
    assert app.main(["warn"]) == 0
    assert shown == ["toy: warning: mind the step\n"]
    assert warnings.formatwarning is before


def test_processes_find_each_other_and_the_first_failure_ends_all(tmp_path: Path) -> None:
    code = (
        "import os, sys, time, pathlib; r = os.environ['RANK']; pathlib.Path(sys.argv[1], r).touch();\n"
        "assert os.environ['WORLD_SIZE'] == '2'\n"
        "sys.exit(7) if r == '1' else time.sleep(60)"
    )
    assert start_processes([sys.executable, "-c", code, str(tmp_path)], 2) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_recorded_races_are_kept_side_by_side_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from shared import cli
    from shared.claims import races_section

    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name, times in (("one", 1), ("two", 2)):
        code = (
            "import sys; from pathlib import Path; from shared.races import record\n"
            f"record(Path(sys.argv[2]), 'race {name}', ('what', 'ratio'), [('a', '{times}x')], 'cpu')\n"
        )
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(cli, "member_home", lambda package: tmp_path)
    for name in ("one", "two"):
        assert cli.bench("toy", cli.BenchConfig(only=name, record=True)) == 0
    section = "".join(races_section(tmp_path / "results" / "bench.json"))
    assert "**race one**" in section
    assert "| a | 2x |" in section
    assert "thread" in section
    assert races_section(tmp_path / "nothing.json") == []
    with pytest.raises(UserError, match="--record and --quick"):
        cli.BenchConfig(quick=True, record=True)
