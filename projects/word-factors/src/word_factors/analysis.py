"""The verbs that compare factors with something made by hand: `analogy`, `explain`, `generate`, `classes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.cli import print_table
from shared.config import UserError, check_range
from shared.figures import free_figure
from shared.run import free_path, write_json
from word_factors import figures
from word_factors.analogy import Space
from word_factors.analogy_table import Named
from word_factors.config import AnalogyConfig, ClassesConfig, ExplainConfig, GenerateConfig
from word_factors.manipulation import Factors, differences, section_profile
from word_factors.protocols import evaluate
from word_factors.questions import AnalogyTask, IndexedTask
from word_factors.runs import (
    Run,
    factor_names,
    hint_reliability,
    open_others,
    open_run,
    reliability_column,
    with_reliability,
)

SHOWN_RULES = ("3CosAdd", "boost", "group-boost", "random", "random-far", "base+offset", "3CosAvg", "LRCos")


def google_questions() -> Path:
    """The Google analogy questions, as they ship inside gensim: 19,544 in 14 sections.

    Raises:
        UserError: gensim is not installed whole.
    """
    try:
        from gensim.test.utils import datapath
    except ImportError as error:
        raise UserError("gensim", "not installed", "gensim >= 4.4, with its test data", str(error)) from error
    path = Path(datapath("questions-words.txt"))
    if not path.exists():
        raise UserError("--questions", path, "a file of questions: this gensim comes without its test data")
    return path


def task_of(questions: Path | None, bats: Path | None) -> AnalogyTask:
    """The questions that flags name."""
    if questions is not None and bats is not None:
        raise UserError("--questions and --bats", [questions, bats], "one of them")
    return AnalogyTask.from_bats(bats) if bats is not None else AnalogyTask.from_file(questions or google_questions())


def space_of(run: Run, task: IndexedTask) -> tuple[Space, Factors]:
    """A run's vocabulary as unit vectors, and its factors in that space."""
    space = Space(run.vectors, task.forms, device=run.device)
    return space, Factors(run.phi, run.codes, run.labels, space.norms)


def analogy(config: AnalogyConfig) -> int:
    """`word-factors analogy`."""
    if config.out is not None:
        free_path(config.out, config.force)
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    task = task_of(config.questions, config.bats).in_vocabulary(run.embedding)
    space, factors = space_of(run, task)
    rules = ["3CosMul", "PairDirection", "only-b", "only-c", "boost", "mask", "set", "code"]
    rules += ["boost-sources"] if config.protocol != "named" else []
    rules += ["group-boost"] if factors.labels is not None else []
    table = evaluate(
        task, space, factors, rules, config.protocol, splits=config.splits, seed=config.seed,
        named=named_sections(config) or None, quiet=config.quiet,
    )  # fmt: skip
    shown = [rule for rule in SHOWN_RULES if rule in table.rules]
    rows = [(part.section, part.questions, *(part.accuracy(rule) for rule in shown)) for part in table.sections]
    rows += [("all, by question", sum(p.questions for p in table.sections), *(table.micro(rule) for rule in shown))]
    rows += [("all, by section", "", *(table.macro(rule) for rule in shown))]
    optimistic = ", optimistic: fitted on what is tested" if table.optimistic else ""
    print_table(f"analogies, {config.protocol}{optimistic}", ("section", "questions", *shown), rows, config.quiet)
    print_table(
        "what sections move along: factors by t of the change of the code, over all pairs",
        ("section", "factor", "name", "reliability", "mean change", "t"), profile_rows(run, task), config.quiet,
    )  # fmt: skip
    others = [(rule, table.micro(rule), table.macro(rule)) for rule in table.rules if rule not in shown]
    print_table("further rules", ("rule", "by question", "by section"), others, config.quiet)
    if not config.quiet:
        for report in task.coverage:
            if report.dropped:
                print(report)
        folded = int((task.forms != np.arange(len(task.forms))).sum())
        if folded:
            print(f"{folded} words differ from a more frequent one in case only, and count as that one.")
        if table.skipped:
            skipped = ", ".join(f"{name} ({pairs} pairs)" for name, pairs in table.skipped)
            print(f"skipped, too few pairs or not named: {skipped}")
        if table.micro("3CosAdd") < 0.1:
            print("3CosAdd itself answers next to nothing: the corpus was too small for analogies.")
        bars = {rule: [part.accuracy(rule) for part in table.sections] for rule in shown}
        drawn = figures.accuracy_by_section(
            run.folder / "figures" / f"analogy-{config.protocol}", [part.section for part in table.sections], bars
        )
        print(f"figure: {drawn}")
    if config.out is not None:
        coverage = [
            {"section": c.section, "questions": c.questions, "kept": c.kept, "missing": [list(m) for m in c.missing]}
            for c in task.coverage
        ]
        about = {"embedding": run.embedding.name, "seed": config.seed, "coverage": coverage}
        write_json(config.out, {**table.to_json(), **about})
    return 0


def profile_rows(run: Run, task: IndexedTask, most: int = 2) -> list[tuple[str, int, str, str, str, str]]:
    """Of every section the factors with the largest t either way: mean and t of the change from left to right words."""
    names, known = factor_names(run), reliability_column(run)
    rows = []
    for section in task.sections:
        profile = section_profile(run.codes, section.pairs)
        order = np.argsort(-profile.t, kind="stable")
        for j in (*order[:most], *order[-most:]):
            if profile.mean[j]:
                change = f"{profile.mean[j]:+.3f}", f"{profile.t[j]:+.1f}"
                rows.append((section.name, int(j), names[j], known[j], *change))
    return rows


def named_sections(config: AnalogyConfig) -> dict[str, Named]:
    """`--named section=12+40` and `section=g3` as what `evaluate` takes.

    Raises:
        UserError: an entry of another form.
    """
    found = {}
    for entry in config.named:
        section, _, what = entry.rpartition("=")
        parts = what.split("+")
        if not section or not all(part.removeprefix("g").isdecimal() for part in parts):
            raise UserError("--named", entry, "section=factor+factor or section=g<group>, e.g. gram4-superlative=12+40")
        if section in found:
            raise UserError("--named", entry, "each section once", "Join its factors: section=12+40.")
        groups = tuple(int(part[1:]) for part in parts if part.startswith("g"))
        chosen = tuple(int(part) for part in parts if not part.startswith("g"))
        found[section] = Named(chosen, groups, 1.0 if config.gamma is None else config.gamma)
    return found


def explain(config: ExplainConfig) -> int:
    """`word-factors explain`."""
    if config.out is not None:
        free_figure(config.out, config.force)
    from word_factors.manipulation import explain as contrast

    run = open_run(config.run, config.data_root, config.device, config.quiet)
    a, b, c, d = run.embedding.rows(config.words).tolist()
    run.compare(open_others(run, config.others, config.data_root, config.device, config.quiet))
    found = contrast(run.codes, a, b, c, d, run.labels, config.count)
    names, known = factor_names(run), reliability_column(run)
    marked = with_reliability(run, names)
    words = config.words
    for (left, right), part in (((words[0], words[1]), found.ab), ((words[2], words[3]), found.cd)):
        rows = [(j, names[j], known[j], f"{change:+.3f}") for j, change in part.factors]
        print_table(f"from {left} to {right}", ("factor", "name", "reliability", "change"), rows, config.quiet)
        if part.groups:
            members = [(g, group_words(run, marked, g), f"{change:+.3f}") for g, change in part.groups[: config.count]]
            print_table("in groups", ("group", "factors", "change"), members, config.quiet)
    shared = [(j, names[j], known[j], f"{change:+.3f}") for j, change in found.shared]
    columns = ("factor", "name", "reliability", "smaller change")
    print_table("what both have in common", columns, shared, config.quiet)
    hint_reliability(run)
    deltas = list(differences(run.codes, np.array([[a, b], [c, d]])))
    out = config.out or run.folder / "figures" / f"explain-{'-'.join(words)}".replace("/", "_")
    path = figures.analogy_difference(out, words, deltas, marked, config.count)
    if not config.quiet:
        print(f"figure: {path}")
    return 0


def group_words(run: Run, names: list[str], group: int, most: int = 3) -> str:
    """A group by its most used factors."""
    assert run.labels is not None
    members = np.flatnonzero(run.labels == group)
    use = np.bincount(run.codes.indices, minlength=run.model.K)
    chosen = members[np.argsort(-use[members], kind="stable")][:most]
    return " | ".join(names[j] for j in chosen) + (" ..." if len(members) > most else "")


def generate(config: GenerateConfig) -> int:
    """`word-factors generate`."""
    from word_factors.generate import generate as pairs_along
    from word_factors.generate import generated_task, score

    run = open_run(config.run, config.data_root, config.device, config.quiet)
    for j in config.factors:
        check_range("--factors", j, 0, run.model.K - 1)
    for flag, chosen in (("--factors", config.factors), ("--groups", config.groups)):
        if len(set(chosen)) < len(chosen):
            raise UserError(flag, list(chosen), "each number once")
    out = free_path(config.out or run.folder / "generated.txt", config.force)
    forms = {}
    rows = np.array([forms.setdefault(word.lower(), row) for row, word in enumerate(run.embedding.words)])
    space = Space(run.vectors, rows, device=run.device)
    factors = Factors(run.phi, run.codes, run.labels, space.norms)
    names = factor_names(run)
    wanted = [(f"factor{j}-{slug(names, j)}", [j]) for j in config.factors]
    for group in config.groups:
        if run.labels is None or group not in run.labels:
            valid = "a run with groups: `word-factors groups` first" if run.labels is None else "a group of this run"
            raise UserError("--groups", group, valid)
        wanted.append((f"group{group}", np.flatnonzero(run.labels == group).tolist()))
    found = [
        pairs_along(
            space, factors, chosen, title, low=config.low, high=config.high, gamma=config.gamma, alike=config.alike,
            most=config.pairs,
        )
        for title, chosen in wanted
    ]  # fmt: skip
    known = reliability_column(run)
    task = generated_task(found, run.embedding)
    task.to_file(out)
    scores = {part.section: part for part in score(task.in_vocabulary(run.embedding), space, config.seed)}
    body = []
    for part, (_, chosen) in zip(found, wanted, strict=True):
        examples = ", ".join(f"{run.embedding.words[u]}-{run.embedding.words[v]}" for u, v in part.pairs[:4].tolist())
        result = scores.get(part.name)
        accuracy = ("-", "-") if result is None else (result.accuracy, result.shuffled)
        marks = ", ".join(known[j] for j in chosen[:5]) + (" ..." if len(chosen) > 5 else "")
        body.append((part.name, marks, len(part.pairs), *accuracy, examples))
    columns = ("section", "reliability", "pairs", "3CosAdd", "shuffled pairs", "examples")
    print_table("generated analogies", columns, body, config.quiet)
    if not config.quiet:
        print(out)
    return 0


def slug(names: list[str], j: int) -> str:
    """A factor's name as part of a section's."""
    return "-".join(names[j].replace(",", " ").split())


def classes(config: ClassesConfig) -> int:
    """`word-factors classes`."""
    if config.out is not None:
        free_path(config.out, config.force)
    from word_factors.baselines import baseline_scores
    from word_factors.classes import class_lexicon, class_table, index_classes

    run = open_run(config.run, config.data_root, config.device, config.quiet)
    lexicon = class_lexicon(config.questions or google_questions(), config.bats, config.lists)
    indexed = index_classes(lexicon, run.embedding)
    methods: dict[str, Any] = {"factors": run.codes}
    for name in config.baselines:
        methods[name] = baseline_scores(
            name, run.vectors, run.model.K, run.model.lam, seed=config.seed, quiet=config.quiet
        )
    table = class_table(methods, indexed, config.seed, config.splits, quiet=config.quiet)
    names = with_reliability(run, factor_names(run))
    body: list[Sequence[object]] = [
        (name, words, *precision, f"{best}: {names[best]}") for name, words, precision, best in table.rows()
    ]
    body.append(("mean average precision", "", *(table.mean_ap(method) for method in methods), ""))
    body.append(("mean AUC (zeros tie: tells little)", "", *(table.mean_auc(method) for method in methods), ""))
    title = "held-out average precision of the column chosen on the other half of a class"
    print_table(title, ("class", "words", *methods, "factor"), body, config.quiet)
    if not config.quiet and table.skipped:
        print("too few words in the vocabulary: " + ", ".join(f"{name} ({n})" for name, n in table.skipped))
    if config.out is not None:
        write_json(config.out, {**table.to_json(), "embedding": run.embedding.name, "seed": config.seed})
    return 0
