"""The study on invented outcomes: what quantities, tables and figures make of known numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from shared.claims import Cell, Missing, Outcomes, ReproduceConfig, read_claims
from shared.cli import member_home
from shared.config import UserError, from_json
from word_factors.config import EMBEDDERS, TRAIN_PRESETS, TrainConfig
from word_factors.experiments import (
    BOOSTED,
    LEARNED,
    SHOWN,
    SIMPLE,
    WordFactorsStudy,
    chance,
    corpus_cells,
    embeddings_ratio,
    factor_cells,
    matches,
    recurring_rows,
    stable_rows,
)
from word_factors.packing import pack, pack_codes

RULES = [*SHOWN, "3CosMul", "mask"]


def dictionary(seed: int, shared: int = 15) -> np.ndarray:
    """[20, 24] unit columns, the first `shared` the same for all seeds."""
    phi = np.random.default_rng(seed).standard_normal((20, 24))
    phi[:, :shared] = np.random.default_rng(99).standard_normal((20, shared))
    return (phi / np.linalg.norm(phi, axis=0)).astype(np.float16)


def factor_values(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    sections = [*BOOSTED.values(), "family"]
    accuracy = dict.fromkeys(RULES, 0.5) | {"boost": 0.55, "3CosAvg": 0.6}
    codes = sparse.csr_array((rng.exponential(size=(50, 24)) * (rng.random((50, 24)) < 0.3)).astype(np.float32))
    tops = [[(f"w{j}{n}", 1.0 - 0.1 * n) for n in range(10)] for j in range(24)]
    return {
        "active": 12.0, "left_over": 0.4, "snr": 4.0, "unused": 0.0, "median_use": 0.02, "lam": 0.1, "fista_150": 1e-4,
        "energy_kept": 0.8, "fista_150_restarted": 1e-5,
        "coverage": [{"section": "family", "questions": 506, "kept": 156, "missing": [["groom", 44]]}],
        "three_cos_add": 0.784, "dictionary": pack(dictionary(seed)), "codes": pack_codes(codes),
        "top_words": [[w for w, _ in top] for top in tops], "top_activations": tops,
        "labels": (np.arange(24) % 4).tolist(), "use": [0.1] * 24, "similarity": pack(np.eye(24, dtype=np.float16)),
        "curve": [[0.05, 20.0, 0.3], [0.1, 12.0, 0.4]],
        "looked_at": {
            "words": ["queen"], "codes": pack(rng.random((1, 24)).astype(np.float32)), "left_over": [0.4],
            "analogy": pack(rng.standard_normal((2, 24)).astype(np.float32)),
        },
        **{f"word-{word}": 1.0 for word in ("queen", "she", "best", "January", "Spain")},
        **{f"macro {rule}": accuracy[rule] for rule in RULES}, **{f"micro {rule}": accuracy[rule] for rule in RULES},
        **{f"insample macro {rule}": 0.7 for rule in ("3CosAdd", "boost", "group-boost")},
        **{f"ap {name}": 0.05 for name in ("raw", "pca", "rotation", "ica", "spine", "sklearn")}, "ap factors": 0.2,
        **{f"auc {name}": 0.8 for name in ("factors", "raw", "pca", "rotation", "ica", "spine", "sklearn")},
        **{f"bats ap {name}": 0.04 for name in ("raw", "pca", "rotation", "ica", "spine", "sklearn")},
        "bats ap factors": 0.1, **{f"bats auc {name}": 0.8 for name in ("factors", *SIMPLE, *LEARNED)},
        "bats class_rows": [[f"B{n}, left", 9, [0.1 + n, *[0.04] * 6], 3] for n in range(12)],
        "coherence": 0.2, "coherence_shuffled": 0.05, "intruders": 0.7, "intruders_chance": 0.2,
        "class_rows": [["family, left", 20, [0.2, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05], 3]],
        "heldout": {
            "sections": [{"section": s, "pairs": 20, "accuracy": accuracy} for s in sections],
            "micro": accuracy, "macro": accuracy, "skipped": [["tiny", 4]],
        },
    }  # fmt: skip


def embedding_values(number: int, seeds: int, random: bool) -> dict[str, Any]:
    """Codes of the same factors in another order, unless random."""
    dictionaries = []
    for seed in range(seeds):
        truth = np.random.default_rng(7).exponential(size=(60, 10)) * (np.random.default_rng(8).random((60, 10)) < 0.2)
        if random:
            truth = np.random.default_rng((seed, number, 5)).permutation(truth)
        order = np.random.default_rng((seed, number)).permutation(10)
        codes = sparse.csr_array(truth[:, order].astype(np.float32))
        tops = [[f"f{factor}", "w1"] for factor in order.tolist()]
        dictionaries.append({"codes": pack_codes(codes), "active": 10.0 + seed, "left_over": 0.3, "top_words": tops})
    words = [f"w{i}" for i in range(60)]
    return {"vocabulary": words, "ws353": 0.4, "simlex": 0.2, "three_cos_add": 0.1, "dictionaries": dictionaries}


def outcomes(seeds: int = 3, random: bool = False) -> Outcomes:
    finished = [(Cell("factors", {}, seed), {"values": factor_values(seed), "seconds": 1.0}) for seed in range(seeds)]
    for number, embedder in enumerate(EMBEDDERS):
        values = embedding_values(number, seeds, random)
        finished.append((Cell(f"wiki44 {embedder}", {}, 0), {"values": values, "seconds": 1.0}))
    return Outcomes(finished)


def test_every_claim_names_a_quantity_and_has_a_value_on_full_outcomes() -> None:
    quantities = WordFactorsStudy().quantities()
    for claim in read_claims(member_home("word_factors") / "claims.toml").claims:
        values = quantities[claim.quantity](outcomes())
        assert len(values) == 3, claim.id
        assert all(np.isfinite(values)), claim.id


def test_factors_that_recur_across_embeddings_are_counted_and_shown() -> None:
    names = [f"wiki44 {embedder}" for embedder in EMBEDDERS]
    columns, rows = stable_rows(outcomes(), names)
    assert columns[2:5] == ("in 2+", "in 3+", "in 4+")
    for row in rows:
        assert row[1:5] == [10, 10, 10, 10]  # the same factors everywhere, in another order
        assert row[7] < 10  # not so with shuffled words
    _, shown = recurring_rows(outcomes(), names[0], names)
    assert [row[1] for row in shown] == ["best"] * 10 + ["at random"] * 10
    assert [row[2] for row in shown] == [4] * 20
    assert all(row[3] == pytest.approx(1) for row in shown)
    _, rows = stable_rows(outcomes(random=True), names)
    assert all(row[4] < 10 for row in rows)


def test_quantities_are_what_the_numbers_say() -> None:
    quantities = WordFactorsStudy().quantities()
    expected = {"boost-gain": 0.05, "random-gain": 0.0, "random-far-gain": 0.0,
                "boost-over-average": -0.05, "boost-worst": 0.05,
                "boost-gram5": 0.05, "classes-ratio": 4.0, "classes-ratio-learned": 4.0,
                "classes-ratio-bats": 2.5, "coherence-gain": 0.15, "intruders-gain": 0.5}  # fmt: skip
    for name, value in expected.items():
        assert quantities[name](outcomes()) == pytest.approx([value] * 3), name


def test_reliability_is_one_for_shared_factors_and_chance_for_the_rest() -> None:
    found = matches(outcomes())
    assert len(found) == 3
    for match in found:
        np.testing.assert_allclose(match.best[:15], 1, atol=1e-3)
        assert match.best[15:].max() < 0.95
        assert match.share(0.99) == pytest.approx(15 / 24)
    assert 0.2 < chance(outcomes()) < 0.8
    with pytest.raises(Missing):
        matches(outcomes(seeds=1))


def test_embeddings_with_the_same_factors_stand_out_and_unrelated_ones_do_not() -> None:
    assert min(embeddings_ratio(outcomes())) > 1.5
    assert max(embeddings_ratio(outcomes(random=True))) < 1.3


def test_tables_and_figures_are_made_from_what_is_there(tmp_path: Path) -> None:
    study = WordFactorsStudy()
    tables = study.tables(outcomes())
    assert len(tables) == 12
    bats = next(rows for title, (_, rows) in tables.items() if "BATS" in title)
    assert [row[0] for row in bats[:2]] == ["B11, left", "B10, left"]
    assert len(bats) == 12  # ten and two means
    for columns, rows in tables.values():
        assert rows
        assert all(len(row) == len(columns) for row in rows)
    made = study.figures(outcomes(), tmp_path)
    assert len(made) == 8
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    assert study.tables(Outcomes([])) == {}
    assert study.figures(Outcomes([]), tmp_path) == []


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu", "paper"])
def test_cells_are_configs_and_the_published_ones_are_the_presets(preset: Any) -> None:
    for fields in (*factor_cells(preset).values(), *corpus_cells(preset).values()):
        from_json(TrainConfig, {**fields, "preset": preset})
    if preset in ("gpu", "paper"):
        cell = from_json(TrainConfig, {**factor_cells(preset)["factors"], "preset": preset})
        assert cell == replace(TRAIN_PRESETS[preset])


def test_missing_data_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="word2vec_googlenews"):
        WordFactorsStudy().cells(ReproduceConfig(preset="gpu", data_root=tmp_path))
    names = {cell.name for cell in WordFactorsStudy().cells(ReproduceConfig(preset="smoke", data_root=tmp_path))}
    assert names == {"factors"}
    with pytest.raises(UserError, match="wiki44"):
        WordFactorsStudy().cells(ReproduceConfig(preset="cpu-long", data_root=tmp_path))


def test_the_long_preset_is_the_corpus_and_the_short_one_the_rest(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("word_factors.experiments.check_data", lambda names, config: None)
    short, long = (
        {cell.name for cell in WordFactorsStudy().cells(ReproduceConfig(preset=preset, data_root=tmp_path))}
        for preset in ("cpu", "cpu-long")
    )
    assert short == {"factors"}
    assert long == {f"wiki44 {embedder}" for embedder in EMBEDDERS}


def test_the_study_imports_no_torch() -> None:
    import subprocess

    code = "import sys, word_factors.experiments, word_factors.study_figures; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_corpus_is_heard_from_its_beginning_up_to_a_number_of_tokens() -> None:
    from word_factors.measures import beginning

    texts = [["a"] * 3, ["b"] * 3, ["c"] * 3]
    assert list(beginning(texts, 4)) == texts[:2]
    assert list(beginning(texts, 100)) == texts
