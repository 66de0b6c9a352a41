"""Every verb once, as a user types it; manuals and refusals without torch; a killed run resumed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.metrics import read_metrics
from word_factors.analysis import google_questions
from word_factors.cli import app, main
from word_factors.naming import read_names
from word_factors.questions import AnalogyTask

VERBS = (
    "train", "vectors", "encode", "factors", "word", "groups", "reliability", "classes", "analogy", "explain",
    "generate", "name", "explore", "evaluate", "reproduce", "bench",
)  # fmt: skip
SMALL = ["--factors", "40", "--steps", "40", "--batch-size", "64", "--inference-steps", "20", "--lam", "0.2"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of three Google sections with a planted offset each, in 24 dimensions, as an npz with counts."""
    rng = np.random.default_rng(0)
    task = AnalogyTask.from_file(google_questions()).choose(["family", "gram7-past-tense", "gram8-plural"])
    found: dict[str, np.ndarray] = {}
    for section in task.sections:
        offset = 1.5 * rng.standard_normal(24)
        for pair in section.pairs:
            left = found.setdefault(pair.left, rng.standard_normal(24))
            found.setdefault(pair.answers[0], left + offset + 0.1 * rng.standard_normal(24))
    path = tmp_path_factory.mktemp("vectors") / "planted.npz"
    counts = 1e4 / (1.0 + np.arange(len(found)))
    np.savez(
        path, vectors=np.stack(list(found.values())).astype(np.float32), words=np.array(list(found)), counts=counts
    )
    return path


@pytest.fixture(scope="module")
def runs(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs under two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        flags = ["--vectors", str(vectors), *SMALL, "--device", "cpu", "--quiet", "--seed", seed]
        assert main(["train", *flags, "--out", str(folder / seed)]) == 0
    return [folder / "0", folder / "1"]


def test_all_verbs_are_there() -> None:
    assert sorted(app.verbs) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_manual_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"usage: word-factors {verb}" in capsys.readouterr().out


def test_manuals_and_refusals_import_neither_torch_nor_gensim() -> None:
    code = (
        "import sys; from word_factors.cli import main; import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    codes = [main(['train', '--help']), main(['train', '--update', 'adam']), main(['train', '--lam', '0'])]\n"
        "print(codes, 'torch' in sys.modules, 'gensim' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[0, 2, 2] False False", result.stderr


def test_run_folder_is_whole(runs: list[Path]) -> None:
    for name in (
        "config.json", "metrics.jsonl", "summary.json", "model.pt", "codes.npz", "tensorboard", "figures/curves.png",
        "figures/factors.png",
    ):  # fmt: skip
        assert (runs[0] / name).exists(), name
    energies = [row["energy"] for row in read_metrics(runs[0], "train")]
    assert energies[-1] < energies[0]
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert summary["metrics"]["kkt_gap"] <= 1e-4


def test_vectors_are_trained_on_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join("the cat sat on the mat and the dog sat too" for _ in range(60)))
    out = tmp_path / "v.vec"
    flags = ["--corpus", str(text), "--dim", "8", "--vector-epochs", "2", "--out", str(out)]
    assert main(["vectors", *flags]) == 0
    assert "counts from corpus" in capsys.readouterr().out
    assert main(["vectors", *flags]) == 2
    assert "--force" in capsys.readouterr().err
    run = tmp_path / "run"
    small = ["--factors", "4", "--steps", "3", "--batch-size", "4", "--lam", "0.05", "--device", "cpu", "--quiet"]
    assert main(["train", *flags[:-2], *small, "--out", str(run)]) == 0
    assert (run / "vectors.npz").exists()  # found again by the next command, not trained again
    assert main(["word", str(run), "cat", "--device", "cpu", "--quiet"]) == 0


def test_encode_own_and_other_vectors(runs: list[Path], vectors: Path, tmp_path: Path) -> None:
    from word_factors.model import load_codes

    own, other = tmp_path / "own.npz", tmp_path / "other.npz"
    assert main(["encode", str(runs[0]), "--out", str(own), "--quiet"]) == 0
    assert main(["encode", str(runs[0]), "--vectors", str(vectors), "--out", str(other), "--quiet"]) == 0
    one, two = load_codes(own)[0], load_codes(other)[0]
    assert (one != two).nnz == 0
    assert main(["encode", str(runs[0]), "--vectors", str(vectors), "--quiet"]) == 2
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, vectors=np.random.default_rng(1).standard_normal((5, 24)), words=np.array(list("abcde")))
    with pytest.warns(UserWarning, match="another embedding"):
        assert main(["encode", str(runs[0]), "--vectors", str(foreign), "--out", str(tmp_path / "f.npz")]) == 0


def test_factors_with_reliability_and_csv(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, run = tmp_path / "factors.csv", tmp_path / "run"
    shutil.copytree(runs[0], run)
    assert main(["factors", str(run), "--sort", "reliability"]) == 2  # nothing is known of it yet
    flags = ["--others", str(runs[1]), "--sort", "reliability", "--count", "5", "--out", str(out)]
    assert main(["factors", str(run), *flags]) == 0
    assert "5 of 40 factors" in capsys.readouterr().out
    with open(out, newline="") as file:
        found = [float(row["reliability"]) for row in csv.DictReader(file)]
    assert len(found) == 40
    assert found == sorted(found, reverse=True)
    assert main(["factors", str(run), "--sort", "reliability", "--quiet"]) == 0  # from now on it is


def test_word_shows_what_is_left_over(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["word", str(runs[0]), "king", "queen"]) == 0
    out = capsys.readouterr().out
    assert "left over" in out
    assert (runs[0] / "figures" / "word-king-queen.png").exists()
    assert main(["word", str(runs[0]), "quean"]) == 2
    assert "queen" in capsys.readouterr().err


def test_reliability_is_beside_names_once_runs_were_compared(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from word_factors.reliability import match_factors
    from word_factors.runs import open_run, with_reliability

    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    assert main(["word", str(run), "king"]) == 0
    out = capsys.readouterr().out
    assert "[r ?]" in out
    assert "by --others" in out
    assert not (run / "reliability.json").exists()
    assert main(["word", str(run), "king", "--others", str(run)]) == 2
    assert "other seeds" in capsys.readouterr().err

    assert main(["word", str(run), "king", "--others", str(runs[1])]) == 0
    assert "by --others" not in capsys.readouterr().out
    one, two = (open_run(folder, device="cpu", quiet=True) for folder in (run, runs[1]))
    best = match_factors(one.phi, two.phi).best
    np.testing.assert_allclose(one.reliability, best)
    names = with_reliability(one, [f"name {j}" for j in range(40)])
    assert names == [f"name {j} [r {value:.2f}]" for j, value in enumerate(best)]
    strongest = int(one.codes[[one.embedding.index["king"]]].toarray().argmax())
    capsys.readouterr()
    for verb in (
        ["word", "king"], ["factors", "--count", "0"], ["groups", "--groups", "7", "--count", "0"],
        ["explain", "man", "king", "woman", "queen"], ["name", "--factor", str(strongest), "--to", "royal"],
    ):  # fmt: skip
        assert main([verb[0], str(run), *verb[1:]]) == 0
        out = capsys.readouterr().out
        assert "[r ?]" not in out, verb[0]
        if verb[0] == "groups":
            assert any(f"[r {value:.2f}]" in out for value in best), out
        else:
            for j in range(40) if verb[0] == "factors" else [strongest]:
                assert f" {best[j]:.2f} " in out, f"{verb[0]}: {out}"
    assert f"{best[strongest]:.2f}" in out

    (run / "reliability.json").write_text('{"model": 1')
    with pytest.warns(UserWarning, match="not used"):
        assert main(["word", str(run), "king"]) == 0
    # Of another dictionary nothing is believed.
    (run / "reliability.json").write_text(json.dumps({"model": two.model.digest, "reliability": [0.5] * 40}))
    assert open_run(run, device="cpu", quiet=True).reliability is None


def test_groups_then_everything_that_uses_them(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs[0])
    assert main(["groups", run, "--groups", "7"]) == 0
    assert "7 groups of 40 factors" in capsys.readouterr().out
    kept = json.loads((runs[0] / "groups.json").read_text())
    assert len(set(kept["labels"])) >= 7
    assert main(["groups", run, "--method", "hierarchical", "--groups", "7", "--quiet"]) == 0
    assert main(["groups", run, "--others", str(runs[1])]) == 0
    assert "of all 2 runs" in capsys.readouterr().out
    assert main(["groups", run, "--groups", "41"]) == 2
    assert "[1, 40]" in capsys.readouterr().err


def test_reliability_of_a_run_in_itself_is_one(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reliability", str(runs[0]), str(runs[0])]) == 0
    assert "│ 0   │ 1 " in capsys.readouterr().out
    assert main(["reliability", str(runs[0]), str(runs[1]), "--quiet"]) == 0
    assert (runs[0] / "figures" / "reliability.png").exists()
    assert main(["reliability", str(runs[0])]) == 2


def test_runs_on_other_vectors_are_compared_by_their_words(
    runs: list[Path], vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "narrow"
    flags = ["--vectors", str(vectors), "--max-words", "150", *SMALL, "--device", "cpu", "--quiet", "--out", str(run)]
    assert main(["train", *flags]) == 0
    assert main(["reliability", str(runs[0]), str(run)]) == 0
    assert "activations over shared words" in capsys.readouterr().out
    assert main(["factors", str(runs[0]), "--others", str(run)]) == 2
    assert "reliability" in capsys.readouterr().err


def test_analogy_explain_and_generate(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(runs[0]), tmp_path / "a.json"
    assert main(["analogy", run, "--splits", "2", "--out", str(out)]) == 0
    table = json.loads(out.read_text())
    assert {part["section"] for part in table["sections"]} >= {"family", "gram7-past-tense", "gram8-plural"}
    assert table["micro"]["3CosAdd"] > 0.5
    assert "dropped" in capsys.readouterr().out
    assert main(["analogy", run, "--protocol", "insample", "--quiet"]) == 0
    assert main(["analogy", run, "--protocol", "named", "--named", "family=1+2", "--quiet"]) == 0
    assert main(["analogy", run, "--protocol", "named", "--named", "family=x", "--quiet"]) == 2
    assert main(["analogy", run, "--protocol", "named", "--quiet"]) == 2
    assert main(["explain", run, "king", "queen", "man", "woman"]) == 0
    assert "in common" in capsys.readouterr().out
    assert main(["generate", run, "--factors", "999"]) == 2
    assert "[0, 39]" in capsys.readouterr().err
    assert main(["generate", run, "--groups", "999"]) == 2
    bad = tmp_path / "bad.txt"
    bad.write_text(": family\nboy girl brother\n")
    assert main(["analogy", run, "--questions", str(bad)]) == 2
    assert "2" in capsys.readouterr().err
    bad.write_text(": none\nqwx qwy qwz qwv\n")
    assert main(["analogy", run, "--questions", str(bad)]) == 2
    questions = tmp_path / "q.txt"
    use = np.bincount(json_codes(runs[0]).indices, minlength=40)
    chosen = str(int(use.argmax()))
    code = main(["generate", run, "--factors", chosen, "--alike", "-1", "--high", "0.02", "--out", str(questions)])
    assert code == 0
    assert AnalogyTask.from_file(questions).sections[0].name.startswith(f"factor{chosen}")


def json_codes(run: Path) -> Any:
    from word_factors.model import load_codes

    return load_codes(run / "codes.npz")[0]


def test_classes(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    assert main(["classes", str(runs[0]), "--baselines", "raw", "rotation", "--out", str(out), "--quiet"]) == 0
    means = json.loads(out.read_text())["means"]
    assert set(means) == {"factors", "raw", "rotation"}
    assert all(0 < value["ap"] <= 1 for value in means.values())


def test_a_file_of_names_joins_those_that_are_there(runs: list[Path], tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "names.yaml"
    shutil.copytree(runs[0], run)
    (run / "names.yaml").unlink(missing_ok=True)
    assert main(["name", str(run), "--factor", "3", "--to", "three", "--names", str(file), "--quiet"]) == 0
    for factor, name in (("3", "old"), ("5", "five")):
        assert main(["name", str(run), "--factor", factor, "--to", name, "--quiet"]) == 0
    assert main(["name", str(run), "--names", str(file), "--quiet"]) == 0
    assert {entry.name for entry in read_names(run / "names.yaml")} == {"three", "five"}  # the file wins


def test_files_that_are_there_are_not_replaced_unasked(
    runs: list[Path], vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (runs[0] / "codes.npz").read_bytes()
    flags = ["--vectors", str(vectors), "--out", str(runs[0] / "codes.npz"), "--quiet", "--force"]
    assert main(["encode", str(runs[0]), *flags]) == 2
    assert (runs[0] / "codes.npz").read_bytes() == own
    run = str(runs[0])
    for number, (file, arguments) in enumerate([
        ("w.png", ["word", run, "king"]), ("w-shares.svg", ["word", run, "king"]),
        ("w.svg", ["explain", run, "king", "queen", "man", "woman"]), ("w.png", ["reliability", run, str(runs[1])]),
    ]):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / file).write_text("precious")
        assert main([*arguments, "--out", str(folder / "w"), "--quiet"]) == 2
        assert "--force" in capsys.readouterr().err
        assert (folder / file).read_text() == "precious"
    for verb in ("evaluate", "classes", "analogy"):
        assert main([verb, run, "--out", str(tmp_path / "0" / "w.png"), "--quiet"]) == 2
        assert "--force" in capsys.readouterr().err


def test_names_follow_the_words(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs[0])
    assert main(["name", run, "--factor", "3", "--to", "my factor"]) == 0
    capsys.readouterr()
    assert main(["name", run]) == 0
    assert "my factor" in capsys.readouterr().out
    assert main(["factors", run, "--count", "0"]) == 0
    assert "my factor" in capsys.readouterr().out
    # Another dictionary does not inherit the name.
    assert main(["name", str(runs[1]), "--names", str(runs[0] / "names.yaml")]) == 2
    assert "dictionary" in capsys.readouterr().err
    assert main(["name", run, "--factor", "40", "--to", "x"]) == 2
    # In its folder it is passed over with a warning: to look at factors does not take names.
    (runs[0] / "names.yaml").rename(runs[1] / "names.yaml")
    with pytest.warns(UserWarning, match="is not used"):
        assert main(["factors", str(runs[1]), "--quiet"]) == 0
    (runs[1] / "names.yaml").unlink()


def test_explore_writes_one_page(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["explore", str(runs[0]), "--others", str(runs[1]), "--out", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!")
    assert "queen" in page.read_text(encoding="utf-8")
    assert main(["explore", str(runs[0]), "--out", str(page)]) == 2


def runs_vectors(run: Path) -> Path:
    return Path(json.loads((run / "config.json").read_text())["vectors"])


def test_evaluate(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    judge = tmp_path / "judge.npz"
    kept = np.load(runs_vectors(runs[0]))
    turned = kept["vectors"][:, ::-1] + 0.1 * np.random.default_rng(0).standard_normal(kept["vectors"].shape)
    np.savez(judge, vectors=turned, words=kept["words"], counts=kept["counts"])
    flags = ["--curve", "--judge", str(judge), "--out", str(out), "--quiet"]
    assert main(["evaluate", str(runs[0]), *flags]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["intruders picked"] > metrics["intruders picked by chance"]
    assert metrics["weight at which all codes are zero"] > metrics["weight of the activations"]
    assert 0 < metrics["energy left over"] < 1


def test_coherence_is_not_judged_on_the_text_that_trained_the_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "run"
    stream = np.random.default_rng(0)
    text.write_text(" ".join(f"w{n}" for n in stream.zipf(1.5, 6000) if n < 60))
    flags = ["--dim", "8", "--factors", "10", "--steps", "5", "--device", "cpu", "--quiet"]
    assert main(["train", "--corpus", str(text), *flags, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--coherence", "--corpus", str(text)]) == 2
    assert "another text" in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() + " w1 w2")
    assert main(["evaluate", str(out), "--coherence", "--corpus", str(other), "--quiet"]) == 0


def test_a_stopped_run_can_be_looked_at(vectors: Path, tmp_path: Path) -> None:
    """Without a model file, from its newest checkpoint."""
    run = tmp_path / "run"
    flags = ["--vectors", str(vectors), *SMALL, "--device", "cpu", "--quiet", "--out", str(run)]
    assert main(["train", *flags]) == 0
    (run / "model.pt").unlink()
    (run / "codes.npz").unlink()
    assert main(["word", str(run), "king", "--quiet"]) == 0


def test_killed_and_resumed_run_is_the_run_never_killed(vectors: Path, tmp_path: Path) -> None:
    flags = [
        "--vectors", vectors, "--factors", "40", "--steps", "250", "--batch-size", "32", "--lam", "0.2", "--device",
        "cpu", "--quiet", "--checkpoint-every", "20", "--log-every", "1", "--weighting", "sqrt",
    ]  # fmt: skip

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "word_factors", "train", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    whole, killed = start("--out", tmp_path / "whole", *flags), start("--out", tmp_path / "killed", *flags)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while (not metrics.exists() or metrics.read_bytes().count(b"\n") < 60) and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    assert whole.wait(120) == 0
    resumed = start("--resume", tmp_path / "killed")
    assert resumed.wait(120) == 0, resumed.communicate()

    def rows(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(folder)]

    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "gogglenews"], "googlenews"),
        (["train", "--preset", "gpuu"], "gpu"),
        (["train", "--vectors", "nowhere.txt"], "nowhere.txt"),
        (["train", "--corpus", "nowhere.txt"], "nowhere.txt"),
        (["train", "--device", "cuda:9", "--data", "articles"], "--device"),
        (["train", "--factors", "1"], "--factors"),
        (["train", "--data", "glove6b"], "glove.6B.300d.txt"),
        (["train", "--weighting", "corpus", "--vectors", "VECTORS", "--factors", "8", "--steps", "2"], "--weighting"),
        (["train", "--vectors", "VECTORS", "--factors", "5000", "--steps", "2"], "--factors"),
        (["train", "--vectors", "VECTORS", "--factors", "8", "--steps", "2", "--lam", "9"], "less than"),
        (["factors", "nowhere"], "config.json"),
        (["explain", "nowhere", "a", "b", "c"], "argument"),
        (["generate", "nowhere"], "--factors"),
        (["vectors", "--out", "vectors.csv"], ".npz"),
        (["bench", "--only", "nothing"], "--only"),
        (["reproduce", "--preset", "cpu", "--data-root", "/nowhere"], "--data-root"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_is_valid(
    arguments: list[str],
    message: str,
    vectors: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAPERS_DATA", str(tmp_path))
    assert main([str(vectors) if argument == "VECTORS" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damaged_groups_and_places_that_cannot_be_written_are_told_of(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "groups.json").write_text('{"model": ')
    assert main(["factors", str(run)]) == 2
    assert "groups.json" in capsys.readouterr().err
    kept = json.loads((runs[0] / "groups.json").read_text()) if (runs[0] / "groups.json").exists() else None
    if kept is None:
        (run / "groups.json").unlink()
        assert main(["groups", str(run), "--quiet"]) == 0
        kept = json.loads((run / "groups.json").read_text())
    (run / "groups.json").write_text(json.dumps({**kept, "labels": kept["labels"][:3]}))
    assert main(["factors", str(run)]) == 2
    assert "3 labels" in capsys.readouterr().err
    (run / "groups.json").unlink()
    assert main(["generate", str(run), "--factors", "3", "3"]) == 2
    assert "each number once" in capsys.readouterr().err
    twice = ["--protocol", "named", "--named", "family=1", "family=2"]
    assert main(["analogy", str(run), *twice]) == 2
    assert "each section once" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    generate = ["generate", str(run), "--factors", "0", "--force", "--out"]
    for place in (tmp_path / "folder", tmp_path / "file" / "inside.txt"):
        assert main([*generate, str(place)]) == 2
        assert str(place) in capsys.readouterr().err
    assert main(["explore", str(run), "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert "page.html" in capsys.readouterr().err


@pytest.mark.slow
def test_every_verb_on_a_run_over_gensims_articles(tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    small = ["--data", "articles", "--dim", "50", "--vector-epochs", "2", "--preprocess", "center", "--factors", "100"]
    steps = ["--steps", "200", "--batch-size", "100", "--inference-steps", "30", "--device", "cpu", "--quiet"]
    assert main(["train", *small, *steps, "--out", run]) == 0
    for verb, *rest in (
        ["encode", "--out", f"{out}/codes.npz"], ["factors", "--count", "5"], ["word", "king"], ["groups"],
        ["reliability", run], ["classes"], ["analogy", "--splits", "1"],
        ["explain", "king", "queen", "man", "woman"], ["name", "--factor", "3", "--to", "mine"],
        ["generate", "--factors", "3", "--alike", "0", "--high", "0.1", "--low", "0.05", "--out", f"{out}/made.txt"],
        ["explore", "--out", f"{out}/page.html"],
        ["evaluate"],
    ):  # fmt: skip
        assert main([verb, run, *rest, "--quiet"]) == 0, verb
    assert main(["vectors", "--vectors", f"{run}/vectors.npz", "--out", f"{out}/plain.txt", "--quiet"]) == 0
    assert all((tmp_path / "out" / name).stat().st_size for name in ("codes.npz", "made.txt", "page.html", "plain.txt"))


@pytest.mark.slow
def test_reproduce_smoke_on_embedded_data(tmp_path: Path) -> None:
    flags = ["--preset", "smoke", "--device", "cpu", "--quiet", "--jobs", "1", "--out", str(tmp_path / "out")]
    assert main(["reproduce", *flags, "--results", str(tmp_path / "results")]) == 0
    report = json.loads((tmp_path / "results" / "smoke.json").read_text())
    assert report["failed"] == []
    verdicts = {row["id"]: row["verdict"] for row in report["claims"]}
    assert verdicts.pop("smoke-explains") == "pass"
    assert set(verdicts.values()) == {"not-run"}
    assert report["tables"]


# -- what a user can get wrong, and what must not be trusted --------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "run"
    assert main(["train", "--vectors", str(vectors), *SMALL, "--device", "cpu", "--quiet", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("verb", ["factors", "groups", "analogy", "generate", "classes", "reliability"])
def test_negative_seeds_are_refused(small_run: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"generate": ["--factors", "0"], "reliability": [str(small_run)]}.get(verb, [])
    assert main([verb, str(small_run), *extra, "--seed", "-1"]) == 2
    assert "--seed: got '-1'" in capsys.readouterr().err


def test_codes_that_are_damaged_are_computed_again(small_run: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    whole = (run / "codes.npz").read_bytes()
    for damaged in (whole[:-40], whole[:200] + b"junk" * 20 + whole[280:], b"no archive"):
        (run / "codes.npz").write_bytes(damaged)
        with pytest.warns(UserWarning, match="Computed again"):
            assert main(["factors", str(run), "--device", "cpu", "--quiet"]) == 0
        assert (run / "codes.npz").read_bytes() == whole


def test_looser_codes_do_not_take_the_place_of_the_runs_own(
    small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (small_run / "codes.npz").read_bytes()
    assert main(["encode", str(small_run), "--device", "cpu", "--quiet", "--tol", "0.5", "--force"]) == 0
    assert (small_run / "codes.npz").read_bytes() == before
    assert (small_run / "codes-0.5.npz").exists()
    own = str(small_run / "codes.npz")
    assert main(["encode", str(small_run), "--device", "cpu", "--tol", "0.5", "--out", own, "--force"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["encode", str(small_run), "--device", "cpu", "--quiet"]) == 0


def test_a_file_of_vectors_is_converted(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from word_factors.vectors import read_vectors

    out = tmp_path / "v.txt"
    assert main(["vectors", "--vectors", str(vectors), "--out", str(out), "--max-words", "7"]) == 0
    one, other = read_vectors(vectors, limit=7, quiet=True), read_vectors(out, quiet=True)
    rows = [other.index[word] for word in one.words]
    np.testing.assert_array_equal(other.vectors[rows], one.vectors)
    assert main(["vectors", "--vectors", str(vectors), "--out", str(tmp_path / "w.txt"), "--dim", "7"]) == 2
    assert "--dim: got '7'" in capsys.readouterr().err


def test_counts_beside_a_corpus_are_counts_and_are_looked_for_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from word_factors.config import TrainConfig
    from word_factors.sources import open_source

    rng = np.random.default_rng(0)
    text = "\n".join(" ".join(rng.choice(["cat", "dog", "tree", "sun", "moon"], 12)) for _ in range(60))
    (tmp_path / "t.txt").write_text(text)
    (tmp_path / "c.txt").write_text("cat 100000\ndog 3\ntree 2\nsun 1\nmoon 1\n")
    config = TrainConfig(corpus=tmp_path / "t.txt", counts=tmp_path / "c.txt", dim=4, vector_epochs=1, factors=3,
                         quiet=True)  # fmt: skip
    embedding = open_source(config).embedding
    assert embedding.counts[embedding.index["cat"]] == 100_000
    flags = ["--dim", "4", "--vector-epochs", "1", "--factors", "3", "--steps", "2", "--device", "cpu", "--quiet"]
    train = ["train", "--corpus", str(tmp_path / "t.txt"), *flags, "--out", str(tmp_path / "run")]
    assert main([*train, "--counts", "/nowhere/at/all"]) == 2
    assert "--counts" in capsys.readouterr().err
    assert main(train) == 0
    (tmp_path / "t.txt").rename(tmp_path / "elsewhere.txt")  # the run holds its vectors: it needs the corpus no more
    assert main(["word", str(tmp_path / "run"), "cat", "--device", "cpu"]) == 0


def test_flags_that_would_do_nothing_are_refused(
    small_run: Path, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("king 5\nqueen 7\n")
    walk = ["--weighting", "corpus", "--counts", str(tmp_path / "list.txt"), "--out", str(tmp_path / "no")]
    for arguments, named in (
        (["analogy", str(small_run), "--gamma", "50"], "--gamma"),
        (["analogy", str(small_run), "--protocol", "named", "--named", "family=1", "--gamma", "nan"], "--gamma"),
        (["analogy", str(small_run), "--protocol", "named", "--named", "family=\u00b2"], "--named"),
        (["groups", str(small_run), "--method", "hierarchical", "--neighbours", "3"], "--neighbours"),
        (["train", "--vectors", str(vectors), *SMALL, *walk], "--counts"),
    ):
        assert main(arguments) == 2, arguments
        assert named in capsys.readouterr().err


def test_analogy_shows_what_sections_move_along(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analogy", str(small_run), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "what sections move along" in out
    assert "mean change" in out


def test_memory_is_that_of_a_batch(small_run: Path) -> None:
    import tracemalloc

    from word_factors.runs import open_run

    run = open_run(small_run, None, "cpu", True)
    embedding = run.embedding
    words = tuple(f"w{i}" for i in range(40_000))
    many = np.resize(embedding.vectors, (40_000, embedding.dim))
    from word_factors.embedding import Embedding

    large = Embedding(words, np.ascontiguousarray(many), np.ones(40_000), "rank", "many")
    run.model.embedding = large
    codes = run.model.encode(large.vectors[:64])
    tracemalloc.start()
    run.model.residual_share(codes[np.zeros(40_000, int)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.vectors.nbytes / 2


def test_top_words_can_be_weighted_by_frequency_and_matches_show_their_quantiles(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for weight in ("alpha", "sqrt"):
        out = tmp_path / f"{weight}.csv"
        flags = ["--device", "cpu", "--quiet", "--count", "0", "--out", str(out), "--weight", weight]
        assert main(["factors", str(small_run), *flags]) == 0
        tables.append(out.read_text())
    assert tables[0] != tables[1]
    assert main(["reliability", str(small_run), str(small_run), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for level in ("10 %", "25 %", "50 %", "75 %", "90 %"):
        assert level in shown
