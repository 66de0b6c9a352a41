"""The experiments behind the claims: which cells a preset runs, what is computed from them. Imports no torch.

Cells `factors` learn a dictionary of one embedding under several seeds; cells `wiki44 ...`, one a method, train vectors
on one corpus, which takes longest, and learn a dictionary of them under every seed: on the CPU these belong to the
preset cpu-long. Dictionaries and codes travel
inside the outcomes, so that seeds and embeddings can be compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.claims import LADDER, Cell, Ladder, Missing, Outcomes, ReproduceConfig, Study
from shared.config import UserError, from_json
from word_factors.config import EMBEDDERS, TrainConfig
from word_factors.packing import unpack, unpack_codes
from word_factors.reliability import (
    Match,
    match_factors,
    match_profiles,
    random_control,
    reliability,
    shuffled_control,
    times_found,
)

SEEDS = {"smoke": 2, "cpu": 3, "cpu-long": 3, "gpu": 5, "paper": 2}
BOOSTED = {"gram5": "gram5-present-participle", "gram7": "gram7-past-tense", "gram9": "gram9-plural-verbs"}
SHOWN = ("3CosAdd", "boost", "group-boost", "random", "random-far", "base+offset", "3CosAvg", "LRCos")
VECTOR_EPOCHS = {"cbow": 5, "sg": 5, "fasttext": 5, "glove": 15}  # of wiki44
RECURS = 0.5  # cosine of activations from which on a factor counts as found in another embedding
SIMPLE = ("raw", "pca", "rotation")
LEARNED = ("ica", "spine", "sklearn")
TEXT8 = ("text8", "text8.gz", "text8.xz", "text8.zip")  # under the data root
BATS = ("word_benchmarks/BATS_3.0", "BATS_3.0")  # under the data root
ANALOGY = ("man", "woman", "king", "queen")  # whose change of code is drawn


def factor_cells(preset: str) -> dict[str, dict[str, Any]]:
    """The dictionary that most claims are about: name -> fields of `TrainConfig`."""
    if preset == "smoke":
        return {
            "factors": {
                "data": "articles", "dim": 50, "vector_epochs": 4, "preprocess": "center", "factors": 100,
                "weighting": "sqrt-uniform",
                "steps": 200, "batch_size": 100, "inference_steps": 30, "eval_every": 200,
            }
        }  # fmt: skip
    if preset == "cpu":
        return {"factors": {"data": "googlenews", "factors": 500, "epochs": 3, "weighting": "sqrt-uniform"}}
    published = {
        "data": "googlenews", "factors": 1000, "update": "quadratic", "init": "gaussian", "weighting": "sqrt",
        "batch_size": 100, "inference_steps": 500, "step_size": 0.05, "step_final": 0.005, "steps": 40_000,
        "inference": "fista",
    }  # fmt: skip
    if preset == "gpu":
        return {"factors": published}
    return {"factors": {**published, "data": "glove6b", "preprocess": "none", "target_active": 12.0, "steps": 200_000}}


def corpus_cells(preset: str) -> dict[str, dict[str, Any]]:
    """Vectors of one corpus by every method, which dictionaries are then learned of."""
    size: dict[str, Any] = {"dim": 100, "factors": 300}
    if preset == "gpu":  # the published size; gensim trains on the CPU, where 300 dimensions want several cores
        size = {"dim": 300, "factors": 1000, "vector_workers": 8}
    return {
        f"wiki44 {embedder}": {
            "data": "wiki44", "embedder": embedder, "max_words": 20_000, "epochs": 3, "weighting": "sqrt-uniform",
            "vector_epochs": VECTOR_EPOCHS[embedder], **size,
        }
        for embedder in EMBEDDERS
    }  # fmt: skip


class WordFactorsStudy(Study):
    """Word Embedding Visualization via Dictionary Learning."""

    member: ClassVar[str] = "word-factors"
    package: ClassVar[str] = "word_factors"
    presets: ClassVar[tuple[Ladder, ...]] = LADDER
    libraries: ClassVar[tuple[str, ...]] = ("gensim", "scikit-learn", "scipy", "numba")

    def cells(self, config: ReproduceConfig) -> list[Cell]:
        from shared.data import data_root

        planned = {} if config.preset == "cpu-long" else factor_cells(config.preset)
        if config.preset == "paper":  # frequencies from text8, as published; by rank where it is not at hand
            root = data_root(config.data_root)
            text8 = next((root / name for name in TEXT8 if (root / name).exists()), None)
            planned["factors"] |= {} if text8 is None else {"counts": str(text8)}
        vectors = corpus_cells(config.preset) if config.preset in ("cpu-long", "gpu") else {}
        check_data({str(fields["data"]) for fields in (*planned.values(), *vectors.values())}, config)
        seeds = config.seeds or SEEDS[config.preset]
        # Vectors take longest: first, so that no core waits for the last of them.
        slowest = sorted(vectors, key=lambda name: ("glove", "fasttext", "sg", "cbow").index(name.split()[-1]))
        cells = [Cell(name, {**vectors[name], "dictionaries": seeds}, 0) for name in slowest]
        return cells + [Cell(name, fields, seed) for name, fields in planned.items() for seed in range(seeds)]

    def absent(self, config: ReproduceConfig) -> Mapping[str, str]:
        from shared.data import data_root

        if config.preset in ("smoke", "cpu-long"):
            return {}
        root = data_root(config.data_root)
        wanted = {
            "factors: bats": BATS,
            "factors: coherence": ("wikipedia_en_2014/wiki44.txt.xz",),
            "factors: intruders": ("word_vectors/glove_twitter_12k_25d.npz",),
        }
        return {
            prefix: f"{files[0]} is not under the data root"
            for prefix, files in wanted.items()
            if not any((root / file).exists() for file in files)
        }

    def run(self, cell: Cell, config: ReproduceConfig) -> dict[str, Any]:
        from word_factors.measures import measure_embedding, measure_factors

        fields = dict(cell.settings)
        dictionaries = fields.pop("dictionaries", None)
        flags = {"seed": cell.seed, "device": config.device, "quiet": True}
        settings = from_json(TrainConfig, {**fields, **flags, "preset": config.scale, "data_root": config.data_root})
        if dictionaries is None:
            source = _source(dataclasses.replace(settings, seed=0))
            return measure_factors(settings, source, thorough=config.preset != "smoke", scratch=self.scratch)
        return measure_embedding(settings, dictionaries, self.scratch)

    def quantities(self) -> Mapping[str, Callable[[Outcomes], Sequence[float]]]:
        found: dict[str, Callable[[Outcomes], Sequence[float]]] = {
            "smoke-energy": partial(plain, metric="energy_kept"),
            "active": partial(plain, metric="active"),
            "left-over": partial(plain, metric="left_over"),
            "snr": partial(plain, metric="snr"),
            "fista-150": partial(plain, metric="fista_150"),
            "fista-150-restarted": partial(plain, metric="fista_150_restarted"),
            "reliability": lambda o: [match.mean for match in matches(o)],
            "reliability-over-random": lambda o: [match.mean / chance(o) for match in matches(o)],
            "reliability-share": lambda o: [match.share(0.8) for match in matches(o)],
            "classes-ratio": partial(precision_ratio, against=SIMPLE),
            "classes-ratio-learned": partial(precision_ratio, against=LEARNED),
            "classes-ratio-bats": partial(precision_ratio, against=SIMPLE, prefix="bats "),
            "coherence-gain": partial(difference, one="coherence", other="coherence_shuffled"),
            "intruders-gain": partial(difference, one="intruders", other="intruders_chance"),
            "three-cos-add": partial(plain, metric="three_cos_add"),
            "boost-gain": partial(gain, rule="boost", over="3CosAdd"),
            "random-gain": partial(gain, rule="random", over="3CosAdd"),
            "random-far-gain": partial(gain, rule="random-far", over="3CosAdd"),
            "boost-over-average": partial(gain, rule="boost", over="3CosAvg"),
            "boost-over-offset": partial(gain, rule="boost", over="base+offset"),
            "boost-worst": lambda o: [min(each.values()) for each in section_gains(o)],
            "embeddings-ratio": embeddings_ratio,
        }
        for word in ("queen", "she", "best", "January", "Spain"):
            found[f"word-{word}"] = partial(plain, metric=f"word-{word}")
        for short, section in BOOSTED.items():
            found[f"boost-{short}"] = partial(section_gain, section=section)
        return found

    def tables(self, outcomes: Outcomes) -> Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]:
        tables: dict[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {}
        if "factors" in outcomes:
            tables["Analogies, held out by pair: accuracy (mean of seeds)"] = analogy_table(outcomes)
            tables["Questions of each section, and why some were dropped"] = coverage_rows(outcomes)
            tables["Further rules, and factors fitted on the tested pairs (optimistic)"] = further_rules(outcomes)
            tables["Held-out average precision on hand-made classes (mean of seeds)"] = class_rows(outcomes)
            if "bats class_rows" in outcomes.raw("factors")[0]:
                tables["The same on classes of BATS, the ten best and the means"] = class_rows(outcomes, "bats ", 10)
            if judged := judges_rows(outcomes):
                tables["Top words of factors before other judges (mean of seeds)"] = judged
            tables["Factors found again in another run"] = reliability_rows(outcomes)
            tables["The most reliable factors of the first seed, and as many drawn at random"] = example_rows(outcomes)
        embedders = [name for name in outcomes.names() if name.startswith("wiki44")]
        if embedders:
            tables["Vectors of one corpus by four methods, and their factors"] = embedding_rows(outcomes, embedders)
        if len(embedders) > 1:
            tables["Factors across embeddings: mean best cosine of activations"] = across_rows(outcomes, embedders)
            tables[f"Factors that recur across embeddings (activations, cosine above {RECURS:g}, first seed)"] = (
                stable_rows(outcomes, embedders)
            )
            tables["Ten factors in the most embeddings, of the highest mean cosine, and ten drawn at random"] = (
                recurring_rows(outcomes, embedders[-1], embedders)
            )
        return tables

    def figures(self, outcomes: Outcomes, folder: Path) -> list[Path]:
        from word_factors.study_figures import draw

        return draw(outcomes, folder)


@lru_cache(maxsize=1)
def _source(settings: TrainConfig) -> Any:
    """Vectors, trained or read once a process: dictionaries under every seed are of the same ones."""
    from word_factors.sources import open_source

    return open_source(settings)


def check_data(names: set[str], config: ReproduceConfig) -> None:
    """Refuse before hours are spent what cannot work: data that are not there."""
    from shared.data import data_root
    from word_factors.corpus import CORPORA, open_corpus
    from word_factors.vectors import EMBEDDINGS, find_embedding

    root = data_root(config.data_root)
    for name in sorted(names):
        if name in CORPORA:
            open_corpus(name, root)
        elif name in EMBEDDINGS:
            find_embedding(name, root)
        else:
            raise UserError("--data", name, [*CORPORA, *EMBEDDINGS])


# -- quantities: one value a seed -------------------------------------------------------------------------------------


def plain(outcomes: Outcomes, metric: str) -> list[float]:
    """A measure of the dictionary.

    Raises:
        Missing: this preset does not take it (a word outside the vocabulary, a baseline left out).
    """
    if any(metric not in values for values in outcomes.raw("factors")):
        raise Missing(f"factors: {metric}")
    return outcomes.values("factors", metric)


def dictionaries(outcomes: Outcomes) -> list[NDArray[np.float32]]:
    """[d, K] of every seed."""
    return [unpack(values["dictionary"]).astype(np.float32) for values in outcomes.raw("factors")]


def matches(outcomes: Outcomes) -> list[Match]:
    """Each seed's factors in the next seed's dictionary, the last one's in the first's.

    Raises:
        Missing: fewer than two seeds.
    """
    phis = dictionaries(outcomes)
    if len(phis) < 2:
        raise Missing("factors: a second seed")
    return [match_factors(phi, phis[(seed + 1) % len(phis)]) for seed, phi in enumerate(phis)]


def chance(outcomes: Outcomes) -> float:
    """Mean best cosine of random dictionaries of the same shape."""
    d, K = dictionaries(outcomes)[0].shape
    return float(random_control(d, K, K).mean())


def precision_ratio(outcomes: Outcomes, against: Sequence[str], prefix: str = "") -> list[float]:
    """Mean average precision of the factors over that of the best of some baselines; `prefix` names the classes."""
    own = plain(outcomes, f"{prefix}ap factors")
    others = [plain(outcomes, f"{prefix}ap {name}") for name in against]
    return [mine / max(theirs) for mine, theirs in zip(own, zip(*others, strict=True), strict=True)]


def difference(outcomes: Outcomes, one: str, other: str) -> list[float]:
    """One measure of the dictionary less another."""
    return [a - b for a, b in zip(plain(outcomes, one), plain(outcomes, other), strict=True)]


def gain(outcomes: Outcomes, rule: str, over: str) -> list[float]:
    """Difference of two rules, mean of sections."""
    pairs = zip(outcomes.values("factors", f"macro {rule}"), outcomes.values("factors", f"macro {over}"), strict=True)
    return [a - b for a, b in pairs]


def section_gains(outcomes: Outcomes) -> list[dict[str, float]]:
    """Gain of `boost` over 3CosAdd by section."""
    return [
        {
            part["section"]: part["accuracy"]["boost"] - part["accuracy"]["3CosAdd"]
            for part in values["heldout"]["sections"]
        }
        for values in outcomes.raw("factors")
    ]


def section_gain(outcomes: Outcomes, section: str) -> list[float]:
    """The same of one section.

    Raises:
        Missing: it has too few pairs in the vocabulary.
    """
    gains = section_gains(outcomes)
    if any(section not in each for each in gains):
        raise Missing(f"factors: {section}")
    return [each[section] for each in gains]


def embedding_seeds(outcomes: Outcomes) -> int:
    """Dictionaries of every embedding.

    Raises:
        Missing: an embedding was not trained.
    """
    return min(len(outcomes.raw(f"wiki44 {embedder}")[0]["dictionaries"]) for embedder in EMBEDDERS)


def profile_match(outcomes: Outcomes, one: str, other: str, seed: int) -> tuple[float, float]:
    """Dictionary `seed` of one embedding in the next one of the other: (mean best
    cosine of activations over shared words, the same with the words of one side shuffled)."""
    codes = shared_codes(outcomes, one, other, seed)
    return match_profiles(*codes).mean, float(shuffled_control(*codes, draws=1).mean())


def shared_codes(outcomes: Outcomes, one: str, other: str, seed: int) -> tuple[Any, Any]:
    """Codes [V, K] of the words that two embeddings share, in the same order: under dictionary `seed` of the one and
    the next of the other, for under one seed both would have begun from the same words and met the same batches."""
    left, right = outcomes.raw(one)[0], outcomes.raw(other)[0]
    place = {word: row for row, word in enumerate(right["vocabulary"])}
    pairs = [(row, place[word]) for row, word in enumerate(left["vocabulary"]) if word in place]
    mine, theirs = (list(rows) for rows in zip(*pairs, strict=True))
    codes = left["dictionaries"][seed]["codes"], right["dictionaries"][(seed + 1) % len(right["dictionaries"])]["codes"]
    return unpack_codes(codes[0])[mine], unpack_codes(codes[1])[theirs]


def embeddings_ratio(outcomes: Outcomes) -> list[float]:
    """Mean over all pairs of embeddings of (match / shuffled match)."""
    names = [f"wiki44 {embedder}" for embedder in EMBEDDERS]
    ratios = []
    for seed in range(embedding_seeds(outcomes)):
        found = [profile_match(outcomes, one, other, seed) for one, other in combinations(names, 2)]
        ratios.append(math.fsum(match / control for match, control in found) / len(found))
    return ratios


# -- tables -----------------------------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


def analogy_table(outcomes: Outcomes) -> Table:
    """A row a section and two means, a column a rule."""
    tables = [values["heldout"] for values in outcomes.raw("factors")]
    sections = [part["section"] for part in tables[0]["sections"]]
    rows: list[list[Any]] = []
    for place, section in enumerate(sections):
        parts = [table["sections"][place] for table in tables]
        accuracy = [mean([part["accuracy"][rule] for part in parts]) for rule in SHOWN]
        rows.append([section, parts[0]["pairs"], *accuracy])
    for label in ("micro", "macro"):
        name = "all, by question" if label == "micro" else "all, by section"
        rows.append([name, "", *(mean([table[label][rule] for table in tables]) for rule in SHOWN)])
    skipped = tables[0]["skipped"]
    if skipped:
        rows.append(["too few pairs: " + ", ".join(name for name, _ in skipped), "", *([""] * len(SHOWN))])
    return ("section", "pairs", *SHOWN), rows


def coverage_rows(outcomes: Outcomes) -> Table:
    """A row a section: questions in the file, asked, dropped, and the words most often missing from the vocabulary."""
    rows = [
        [part["section"], part["questions"], part["kept"], part["questions"] - part["kept"],
         ", ".join(f"{word} ({count})" for word, count in part["missing"])]
        for part in outcomes.raw("factors")[0]["coverage"]
    ]  # fmt: skip
    return ("section", "in the file", "asked", "dropped", "not in the vocabulary (questions)"), rows


def further_rules(outcomes: Outcomes) -> Table:
    """Rules that the first table leaves out, and `boost` fitted on the very pairs it is tested on."""
    first = outcomes.raw("factors")[0]["heldout"]
    rest = [rule for rule in first["macro"] if rule not in SHOWN]
    rows: list[list[Any]] = [
        [rule, *(mean(outcomes.values("factors", f"{kind} {rule}")) for kind in ("micro", "macro"))] for rule in rest
    ]
    for rule in ("3CosAdd", "boost", "group-boost"):
        rows.append(
            [
                f"{rule}, in sample, sections of two pairs and more",
                "",
                mean(outcomes.values("factors", f"insample macro {rule}")),
            ]
        )
    return ("rule", "by question", "by section"), rows


def class_rows(outcomes: Outcomes, prefix: str = "", best: int | None = None) -> Table:
    """A row a class (the `best` ones by factors), a column a method; means over all classes and AUC at the end."""
    runs = outcomes.raw("factors")
    methods = [name for name in ("factors", *SIMPLE, *LEARNED) if f"{prefix}ap {name}" in runs[0]]
    by_class: dict[str, list[list[float]]] = {}
    words: dict[str, int] = {}
    for values in runs:
        for name, count, precision, _ in values.get(f"{prefix}class_rows", ()):
            by_class.setdefault(name, []).append(precision)
            words[name] = count
    rows: list[list[Any]] = [
        [name, words[name], *(mean(list(column)) for column in zip(*found, strict=True))]
        for name, found in by_class.items()
    ]
    rows.sort(key=lambda row: -row[2])
    means = f"mean of {len(rows)}"
    rows = rows[:best]
    for label, key in ((means, "ap"), ("mean AUC (zeros tie: tells little)", "auc")):
        rows.append([label, "", *(mean(outcomes.values("factors", f"{prefix}{key} {name}")) for name in methods)])
    return ("class", "words", *methods), rows


def judges_rows(outcomes: Outcomes) -> Table | None:
    """Coherence on another corpus and intruders picked by another embedding, beside chance; None if none judged."""
    names = {
        "coherence (c_npmi) on wiki44": ("coherence", "coherence_shuffled"),
        "intruders picked by GloVe of Twitter": ("intruders", "intruders_chance"),
    }
    rows = []
    for label, metrics in names.items():
        if all(metric in values for values in outcomes.raw("factors") for metric in metrics):
            rows.append([label, *(mean(outcomes.values("factors", metric)) for metric in metrics)])
    return (("judge", "factors", "chance"), rows) if rows else None


def reliability_rows(outcomes: Outcomes) -> Table:
    """Each seed in the next one: dictionaries, activations, and the random control."""
    phis = dictionaries(outcomes)
    columns = ("compared", "mean best cosine", "median", "> 0.6", "> 0.8", "> 0.9", "one to one", "control")
    if len(phis) < 2:
        return columns, []
    rows: list[list[Any]] = []
    for seed, match in enumerate(matches(outcomes)):
        rows.append([f"dictionary, seed {seed} in seed {(seed + 1) % len(phis)}", *summary(match), chance(outcomes)])
    codes = [unpack_codes(values["codes"]) for values in outcomes.raw("factors")]
    match = match_profiles(codes[0], codes[1])
    rows.append(["activations, seed 0 in seed 1", *summary(match), float(shuffled_control(codes[0], codes[1]).mean())])
    return columns, rows


def summary(match: Match) -> list[Any]:
    """Mean, median, shares, one-to-one mean."""
    shares = [f"{100 * match.share(threshold):.0f} %" for threshold in (0.6, 0.8, 0.9)]
    return [match.mean, match.quantiles()[0.5], *shares, match.assigned_mean]


def example_rows(outcomes: Outcomes, count: int = 10) -> Table:
    """Top words of the most reliable factors of the first seed, then of a seeded random draw: not chosen by eye."""
    values = outcomes.raw("factors")[0]
    phis = dictionaries(outcomes)
    found = reliability(phis) if len(phis) > 1 else np.full(phis[0].shape[1], np.nan)
    drawn = np.random.default_rng(0).choice(len(found), min(count, len(found)), replace=False)
    rows = [
        [kind, int(j), float(found[j]), f"{100 * values['use'][j]:.1f} %", ", ".join(values["top_words"][j][:8])]
        for kind, chosen in (("most reliable", np.argsort(-found, kind="stable")[:count]), ("random", np.sort(drawn)))
        for j in chosen
    ]
    return ("", "factor", "reliability", "use", "top words"), rows


def embedding_rows(outcomes: Outcomes, names: Sequence[str]) -> Table:
    """How good the vectors are, and what their factors explain. A broken trainer shows here."""
    columns = ("vectors", "WS-353", "SimLex-999", "3CosAdd", "active factors", "left over", "epochs of vectors")
    rows = []
    for name in names:
        vectors = outcomes.raw(name)[0]
        good = [vectors[metric] for metric in ("ws353", "simlex", "three_cos_add")]
        learned = [mean([each[metric] for each in vectors["dictionaries"]]) for metric in ("active", "left_over")]
        rows.append([name, *good, *learned, VECTOR_EPOCHS[name.split()[-1]]])
    return columns, rows


def across_rows(outcomes: Outcomes, names: Sequence[str]) -> Table:
    """Every pair of embeddings: match, shuffled match, their ratio."""
    rows = []
    for one, other in combinations(names, 2):
        seeds = min(len(outcomes.raw(name)[0]["dictionaries"]) for name in (one, other))
        found = [profile_match(outcomes, one, other, seed) for seed in range(seeds)]
        match, control = (mean(list(column)) for column in zip(*found, strict=True))
        rows.append([f"{one.split()[-1]} in {other.split()[-1]}", match, control, match / control])
    return ("compared", "match", "shuffled words", "ratio"), rows


def stable_rows(outcomes: Outcomes, names: Sequence[str]) -> Table:
    """How many factors of each embedding are found in r and more of all embeddings, their own among them; beside it
    the same with the words of the other side shuffled."""
    counts = range(2, len(names) + 1)
    rows = []
    for one in names:
        others = [shared_codes(outcomes, one, other, 0) for other in names if other != one]
        times = times_found([match_profiles(*codes).best for codes in others], RECURS)
        shuffled = times_found([shuffled_control(*codes, draws=1) for codes in others], RECURS)
        found = [[int((each >= r).sum()) for r in counts] for each in (times, shuffled)]
        rows.append([one.split()[-1], len(times), *found[0], *found[1]])
    columns = ("factors of", "all", *(f"in {r}+" for r in counts), *(f"in {r}+, shuffled words" for r in counts))
    return columns, rows


def recurring_rows(outcomes: Outcomes, one: str, names: Sequence[str], count: int = 10) -> Table:
    """Top words of the factors of one embedding that are found in the most others, by mean best cosine."""
    found = np.array([match_profiles(*shared_codes(outcomes, one, o, 0)).best for o in names if o != one])  # [R - 1, K]
    times = times_found(list(found), RECURS)
    order = np.lexsort((-found.mean(axis=0), -times))[:count]
    drawn = np.random.default_rng(0).choice(len(times), min(count, len(times)), replace=False)
    tops = outcomes.raw(one)[0]["dictionaries"][0]["top_words"]
    rows = [
        [int(j), how, int(times[j]), float(found[:, j].mean()), ", ".join(tops[j])]
        for how, chosen in (("best", order), ("at random", drawn))
        for j in chosen
    ]
    return (f"factor of {one.split()[-1]}", "chosen", "embeddings", "mean cosine", "top words"), rows
