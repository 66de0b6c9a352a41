"""The verbs that look at factors: `vectors`, `encode`, `factors`, `word`, `groups`, `reliability`, `name`, `explore`,
`evaluate`."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shared.cli import print_table
from shared.config import UserError, check_range
from shared.data import data_root
from shared.figures import free_figure
from shared.run import free_path, write_atomically, write_json
from word_factors import figures
from word_factors.config import (
    EncodeConfig,
    EvaluateConfig,
    ExploreConfig,
    FactorsConfig,
    GroupsConfig,
    NameConfig,
    ReliabilityConfig,
    VectorsConfig,
    WordConfig,
)
from word_factors.groups import coactivation, cross_run_groups, factor_groups, hierarchical_groups
from word_factors.inference import lam_max
from word_factors.learning import judge
from word_factors.model import FactorModel, save_codes
from word_factors.naming import (
    NamedFactor,
    Sense,
    WordReport,
    all_top_words,
    match_names,
    read_names,
    signature,
    signatures,
    top_words,
    word_report,
    write_names,
)
from word_factors.reliability import (
    match_factors,
    match_profiles,
    random_control,
    shared_rows,
    shuffled_control,
    times_found,
)
from word_factors.runs import (
    CODES_FILE,
    NAMES_FILE,
    Run,
    factor_names,
    hint_reliability,
    open_others,
    open_run,
    reliability_column,
    with_reliability,
)
from word_factors.train import vocabulary_measures
from word_factors.weighting import root_frequency

NEIGHBOURS = 20  # the published number of edges a factor
CURVE = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # weights of the activations over the run's, for `--curve`


def vectors(config: VectorsConfig) -> int:
    """`word-factors vectors`."""
    from word_factors.sources import corpus_of, trained_vectors
    from word_factors.vectors import open_embedding, read_vectors, write_vectors

    out = free_path(config.out, config.force)
    corpus = None if config.vectors is not None else corpus_of(config, config.data_root)
    if corpus is not None:
        if config.counts is not None:
            raise UserError("--counts", config.counts, "a file of vectors: the corpus that is trained on is counted")
        embedding = trained_vectors(config, corpus, config.quiet)
    elif config.vectors is not None:
        embedding = read_vectors(config.vectors, limit=config.max_words, counts=config.counts, quiet=config.quiet)
    else:
        root = data_root(config.data_root)
        embedding = open_embedding(config.data, root, config.max_words, counts=config.counts, quiet=config.quiet)
    write_vectors(embedding, out)
    if not config.quiet:
        print(f"{out}: {len(embedding):,} words, {embedding.dim} dimensions, counts from {embedding.counts_from}")
    return 0


def encode(config: EncodeConfig) -> int:
    """`word-factors encode`."""
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    usual = run.folder / CODES_FILE
    # Other verbs go by the codes that the run keeps for itself: looser or finer ones lie beside them.
    out = config.out or (usual if config.tol == EncodeConfig.tol else run.folder / f"codes-{config.tol:g}.npz")
    if out == usual and config.tol != EncodeConfig.tol:
        raise UserError("--out", out, f"another file: the run's own codes are to a tolerance of {EncodeConfig.tol:g}")
    if out != usual:
        free_path(out, config.force)
    model = run.model
    if config.vectors is not None:
        from word_factors.vectors import read_vectors

        if config.out is None or out.resolve() == usual.resolve():
            raise UserError("--out", config.out, f"a file for the codes of other vectors; {usual} is the run's own")
        other = read_vectors(config.vectors, quiet=config.quiet)
        if other.dim != run.embedding.dim:
            raise UserError("--vectors", f"{other.dim} dimensions", f"{run.embedding.dim}, those of the dictionary")
        same = [word for word in other.words if word in run.embedding.index]
        rows, own = other.rows(same), run.embedding.rows(same)
        if not len(same) or not np.allclose(other.vectors[rows], run.embedding.vectors[own], rtol=1e-2, atol=1e-3):
            hint = f"{len(same):,} of its {len(other):,} words are in {run.embedding.name}, with other vectors"
            warnings.warn(f"{config.vectors} is of another embedding than the factors ({hint}).", stacklevel=2)
        model = FactorModel(model.phi, model.lam, model.transform, other.digest, other)
    codes = model.encode(tol=config.tol, device=run.device, quiet=config.quiet)
    save_codes(codes, model.digest, out)
    if not config.quiet:
        print_table("codes", ("", "value"), list(vocabulary_measures(model, codes).items()))
        print(f"{out}: {len(model.vectors()):,} words, {codes.nnz:,} activations")
    return 0


def factors(config: FactorsConfig) -> int:
    """`word-factors factors`."""
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    if config.out is not None:
        free_path(config.out, config.force)
    found = run.compare(open_others(run, config.others, config.data_root, config.device, config.quiet))
    if config.sort == "reliability" and found is None:
        raise UserError("--sort", "reliability", "use, id, random; or name other runs by --others")
    use = np.bincount(run.codes.indices, minlength=run.model.K) / len(run.embedding)
    order = {
        "use": np.argsort(-use, kind="stable"),
        "id": np.arange(run.model.K),
        "random": np.random.default_rng(config.seed).permutation(run.model.K),
        "reliability": np.argsort(-(found if found is not None else use), kind="stable"),
    }[config.sort]
    tops = all_top_words(run.codes, run.embedding, config.words, config.min_rank, config.weight)
    names, labels, known = factor_names(run), run.labels, reliability_column(run)

    def row(j: int) -> tuple[object, ...]:
        return (
            j,
            names[j],
            f"{100 * use[j]:.2f} %",
            known[j],
            "" if labels is None else int(labels[j]),
            ", ".join(word for word, _ in tops[j]),
        )

    columns = ("factor", "name", "use", "reliability", "group", "top words")
    shown = order[: config.count or None]
    print_table(f"{len(shown)} of {run.model.K} factors, by {config.sort}", columns, map(row, shown), config.quiet)
    if config.out is not None:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(row(j) for j in order)
        write_atomically(config.out, text.getvalue().encode())
    return 0


def word(config: WordConfig) -> int:
    """`word-factors word`."""
    if config.out is not None:
        for stem in (config.out, config.out.with_name(config.out.name + "-shares")):
            free_figure(stem, config.force)
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    rows = run.embedding.rows(config.words)  # unknown words are refused before anything is computed
    run.compare(open_others(run, config.others, config.data_root, config.device, config.quiet))
    names = factor_names(run)
    reports = [
        word_report(run.codes, run.embedding, each, run.phi, run.vectors, run.labels, config.threshold)
        for each in config.words
    ]
    for report in reports:
        show_word(report, names, reliability_column(run), config.count, config.quiet)
    hint_reliability(run)
    marked = with_reliability(run, names)
    stem = "-".join(config.words)[:60].replace("/", "_")
    out = config.out or run.folder / "figures" / f"word-{stem}"
    made = [
        figures.factors_of_words(out, config.words, run.codes[rows].toarray(), marked),
        figures.shares_of_words(
            out.with_name(out.name + "-shares"),
            [(r.word, [(marked[j], share) for j, _, share in r.factors[:6]], min(1.0, r.left_over)) for r in reports],
        ),
    ]
    if not config.quiet:
        for path in made:
            print(f"figure: {path}")
    return 0


def show_word(report: WordReport, names: Sequence[str], known: Sequence[str], count: int, quiet: bool) -> None:
    """Print a word's factors as bars, then its senses; what the factors leave over stands with them.

    Args:
        known: [K] reliability of each factor, as text.
    """
    widest = max((share for _, _, share in report.factors), default=1.0)
    body: list[Sequence[object]] = [
        (j, names[j], known[j], f"{alpha:.3f}", f"{share:.2f}", "#" * round(30 * share / widest))
        for j, alpha, share in report.factors[:count]
    ]
    others = report.factors[count:]
    if others:
        _, alphas, shares = zip(*others, strict=True)
        body.append(("", f"{len(others)} more", "", f"{sum(alphas):.3f}", f"{sum(shares):.2f}", ""))
    body.append(("", "left over (share of the energy)", "", "", f"{report.left_over:.2f}", ""))
    print_table(report.word, ("factor", "name", "reliability", "activation", "share", ""), body, quiet)

    def named(sense: Sense) -> str:
        j = sense.factors[0][0]
        return f"{names[j]} [r {known[j]}]"

    if report.senses and not quiet:
        parts = (f"{sense.share:.2f} {{{named(sense)}}}" for sense in report.senses)
        left = f"left over: {report.left_over:.2f} of the energy"
        print(f"{report.word} = {' + '.join(parts)} + {report.rest:.2f} other factors ({left})\n")


def groups(config: GroupsConfig) -> int:
    """`word-factors groups`."""
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    check_range("--groups", config.groups, 1, run.model.K)
    names = factor_names(run)
    if config.others:
        return across_runs(config, run, names)
    names = with_reliability(run, names)
    p, neighbours = root_frequency(run.embedding.counts), config.neighbours or NEIGHBOURS
    if config.method == "spectral":
        found = factor_groups(run.codes, p, neighbours, config.groups, config.seed)
    else:
        found = hierarchical_groups(run.codes, p, config.groups)
    how = {"method": config.method, "neighbours": neighbours, "seed": config.seed}
    run.keep_labels(found.labels, how)
    use = np.bincount(run.codes.indices, minlength=run.model.K) / len(run.embedding)
    weight = np.bincount(found.labels, weights=use)
    order = np.argsort(-weight, kind="stable")[: config.count or None]
    body = []
    for group in order:
        members = found.members(int(group))
        inside = members[np.argsort(-use[members], kind="stable")]
        body.append((int(group), len(members), " | ".join(names[j] for j in inside[:5])))
    print_table(
        f"{found.clustered} groups of {run.model.K} factors", ("group", "factors", "most used"), body, config.quiet
    )
    path = figures.ordered_coactivation(
        run.folder / "figures" / "coactivation", coactivation(run.codes, p), found.labels
    )
    if not config.quiet:
        if len(found.isolated):
            listed = ", ".join(map(str, found.isolated[:20]))
            print(f"{len(found.isolated)} factors share no word with another, each a group of its own: {listed}")
        hint_reliability(run)
        print(f"kept in {run.folder}; figure: {path}")
    return 0


def across_runs(config: GroupsConfig, run: Run, names: Sequence[str]) -> int:
    """Groups over the factors of several runs; shows those that every run has."""
    if config.method != "spectral":
        raise UserError("--method", config.method, "spectral, with --others")
    others = open_others(run, config.others, config.data_root, config.device, config.quiet)
    found = cross_run_groups(
        [run.phi, *(other.phi for other in others)], config.groups, config.neighbours, seed=config.seed
    )
    run.compare(others)
    names = with_reliability(run, names)
    robust = found.robust[np.argsort(-found.cohesion[found.robust], kind="stable")]
    body = []
    for group in robust[: config.count or None]:
        own: list[int] = np.flatnonzero(found.labels[0] == group).tolist()
        total = sum(int((labels == group).sum()) for labels in found.labels)
        body.append((int(group), total, f"{found.cohesion[group]:.2f}", " | ".join(names[j] for j in own[:4])))
    title = f"{len(robust)} of {len(found.groups)} groups have a factor of all {len(found.labels)} runs"
    print_table(title, ("group", "factors", "cosine between runs", "in this run"), body, config.quiet)
    return 0


def reliability(config: ReliabilityConfig) -> int:
    """`word-factors reliability`."""
    if config.out is not None:
        free_figure(config.out, config.force)
    runs = [open_run(folder, config.data_root, config.device, config.quiet) for folder in config.runs]
    first, others = runs[0], runs[1:]
    same_space = all(
        run.model.vocabulary == first.model.vocabulary and run.config.preprocess == first.config.preprocess
        for run in others
    )
    body, best = [], []
    for other in others:
        if same_space:
            found = match_factors(first.phi, other.phi)
            control = random_control(first.embedding.dim, first.model.K, other.model.K, config.seed)
        else:
            mine, theirs = shared_rows(first.embedding, other.embedding)
            codes = first.codes[mine], other.codes[theirs]
            found, control = match_profiles(*codes), shuffled_control(*codes, config.seed)
        best.append(found.best)
        shares = (f"{100 * found.share(threshold):.0f} %" for threshold in (0.6, 0.8, 0.9))
        body.append(
            (other.folder.name, found.mean, *found.quantiles().values(), *shares, found.assigned_mean, control.mean())
        )
    what = "dictionaries" if same_space else "activations over shared words"
    quantiles = (f"{100 * level:g} %" for level in found.quantiles())
    columns = ("run", "mean best cosine", *quantiles, "> 0.6", "> 0.8", "> 0.9", "one to one", "control")
    print_table(f"factors of {first.folder.name} found again, by {what}", columns, body, config.quiet)
    if same_space and all(other.model.digest != first.model.digest for other in others):
        first.compare(others)  # from now on the other commands show it beside names
    mean = np.mean(best, axis=0)
    names = factor_names(first)
    order = np.argsort(-mean, kind="stable")
    ends = [*order[:8], *order[-4:]]
    rows = [(int(j), names[j], f"{mean[j]:.3f}") for j in ends]
    print_table("most and least reliable", ("factor", "name", "mean best cosine"), rows, config.quiet)
    out = config.out or first.folder / "figures" / "reliability"
    control = random_control(first.embedding.dim, first.model.K, others[0].model.K, config.seed)
    if not same_space:
        mine, theirs = shared_rows(first.embedding, others[0].embedding)
        control = shuffled_control(first.codes[mine], others[0].codes[theirs], config.seed)
    path = figures.reliability_histogram(out, mean, control)
    if not config.quiet:
        times = times_found(best, config.threshold)
        counts = ", ".join(f"{int((times >= r).sum())} in {r} and more" for r in range(2, len(runs) + 1))
        print(f"factors found at a cosine above {config.threshold:g}: {counts} of {len(runs)} runs")
        print(f"figure: {path}")
    return 0


def name(config: NameConfig) -> int:
    """`word-factors name`."""
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    path = config.names or run.folder / NAMES_FILE
    entries = list(read_names(path)) if path.exists() else []
    if config.names is not None and not entries and config.factor is None:
        raise UserError("--names", path, "a file of names")
    known = match_names(entries, signatures(run.codes, run.embedding))
    if config.factor is not None:
        assert config.to is not None
        if not config.to.strip():
            raise UserError("--to", config.to, "a name")
        check_range("--factor", config.factor, 0, run.model.K - 1)
        mark = signature(run.codes, run.embedding, config.factor)
        words = tuple(word for word, _ in top_words(run.codes, run.embedding, config.factor, 8))
        entries = [entry for entry in entries if entry.signature != mark]
        entries.append(NamedFactor(mark, config.to.strip(), words))
        write_names(path, entries)
        known = match_names(entries, signatures(run.codes, run.embedding))
    elif config.names is not None and path != run.folder / NAMES_FILE:
        own = run.folder / NAMES_FILE  # from now on the other commands use these names, and those it had for others
        taken = {entry.signature for entry in entries}
        entries += [entry for entry in (read_names(own) if own.exists() else ()) if entry.signature not in taken]
        write_names(own, entries)
        known = match_names(entries, signatures(run.codes, run.embedding))
    tops = all_top_words(run.codes, run.embedding, 8)
    found = reliability_column(run)
    body = [(j, given, found[j], ", ".join(word for word, _ in tops[j])) for j, given in sorted(known.names.items())]
    print_table(
        f"{len(body)} named factors, {path}", ("factor", "name", "reliability", "top words"), body, config.quiet
    )
    if known.unmatched and not config.quiet:
        listed = ", ".join(repr(entry.name) for entry in known.unmatched)
        print(f"names of factors that this dictionary does not have: {listed}")
    return 0


def explore(config: ExploreConfig) -> int:
    """`word-factors explore`."""
    from word_factors.explore import page_content, write_page

    run = open_run(config.run, config.data_root, config.device, config.quiet)
    out = free_path(config.out or run.folder / "explore.html", config.force)
    others = open_others(run, config.others, config.data_root, config.device, config.quiet)
    details = {
        "embedding": f"{run.embedding.name}, {len(run.embedding):,} words, {run.embedding.dim} dimensions",
        "factors": f"{run.model.K:,}",
        "weight of the activations": f"{run.model.lam:.4g}",
        "preprocessing": run.config.preprocess,
        "weighting": run.config.weighting,
        "seed": str(run.config.seed),
    }
    found = run.compare(others)
    if others:
        details["reliability"] = f"mean best cosine in {len(others)} other run{'s' if len(others) > 1 else ''}"
    elif found is not None:
        details["reliability"] = "mean best cosine in the runs last compared"
    content = page_content(
        run.embedding,
        run.phi,
        run.codes,
        residual=run.model.residual_share(run.codes),
        names=factor_names(run),
        labels=run.labels,
        reliability=found,
        max_words=config.max_words,
        title=f"Word factors of {run.embedding.name}",
        details=details,
    )
    size = write_page(out, content)
    if not config.quiet:
        print(f"{out}: {size / 1e6:.2f} MB; open it in a browser, it needs no network")
    return 0


def evaluate(config: EvaluateConfig) -> int:
    """`word-factors evaluate`."""
    if config.out is not None:
        free_path(config.out, config.force)
    run = open_run(config.run, config.data_root, config.device, config.quiet)
    measures: dict[str, float] = dict(vocabulary_measures(run.model, run.codes))
    phi = run.model.phi.to(run.device)
    X = torch.from_numpy(run.vectors).T.to(run.device)
    # On a few thousand words: with all of them the matrix of activations would be dense and large.
    sample = X[:, torch.from_numpy(fair_rows(X.shape[1], 4000)).to(run.device)]
    measures |= {f"sample, {key}": float(value) for key, value in judge(sample, phi, run.model.lam).items()}
    measures["weight of the activations"] = run.model.lam
    measures["weight at which all codes are zero"] = lam_max(sample, phi)
    gram = run.phi.T @ run.phi
    measures["coherence of the dictionary"] = float(np.abs(gram - np.diag(np.diag(gram))).max())
    made: list[Path] = []
    if config.curve:
        made.append(curve(run, sample[:, :1000], phi))
    if config.coherence or config.corpus is not None:
        measures |= coherence_measures(run, config.corpus, config.quiet)
    if config.judge is not None:
        from word_factors.coherence import intrusion
        from word_factors.vectors import read_vectors

        found = intrusion(run.codes, run.embedding, read_vectors(config.judge, quiet=config.quiet))
        measures |= {"intruders picked": found.accuracy, "intruders picked by chance": found.chance}
    print_table(f"{run.folder.name} on {run.embedding.name}", ("measure", "value"), measures.items(), config.quiet)
    if config.out is not None:
        write_json(config.out, {"run": run.folder.name, "embedding": run.embedding.name, "metrics": measures})
    if not config.quiet:
        for path in made:
            print(f"figure: {path}")
    return 0


def fair_rows(size: int, count: int) -> NDArray[np.int64]:
    """[min(size, count)] rows drawn with a fixed seed, rising."""
    return np.sort(np.random.default_rng(0).choice(size, min(size, count), replace=False))


def sparsity_points(X: torch.Tensor, phi: torch.Tensor, lam: float) -> list[tuple[float, float, float]]:
    """(weight, active factors, share of energy left over) of vectors X [d, n] over weights around `lam`."""
    points = []
    for factor in CURVE:
        found = judge(X, phi, factor * lam)
        points.append((factor * lam, float(found["active"]), float(found["relative_residual"])))
    return points


def curve(run: Run, X: torch.Tensor, phi: torch.Tensor) -> Path:
    """The figure of sparsity and error over the weight of the activations."""
    points = sparsity_points(X, phi, run.model.lam)
    return figures.sparsity_curve(run.folder / "figures" / "sparsity", points, run.model.lam)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def coherence_measures(run: Run, corpus: Path | None, quiet: bool) -> dict[str, float]:
    """c_npmi of the factors' top words on a corpus, beside the same words dealt out at random.

    Raises:
        UserError: the corpus is the one that the vectors were trained on.
    """
    from word_factors.coherence import coherence
    from word_factors.corpus import WIKI44, read_corpus, wikipedia_articles

    config = run.config
    if corpus is None and config.vectors is None and config.corpus is None and config.data == "articles":
        raise UserError("--coherence", "gensim's articles", "--corpus with another text: these trained the vectors")
    trained_on = [config.corpus] if config.vectors is None else []
    if config.vectors is None and config.corpus is None and config.data == "wiki44":
        trained_on += [data_root(config.data_root) / name for name in WIKI44]
    if corpus is not None and any(each is not None and _same_file(each, corpus) for each in trained_on):
        raise UserError("--corpus", corpus, "another text than the one that trained the vectors")
    text = read_corpus(corpus, lower=True) if corpus is not None else wikipedia_articles()
    topics = [[word for word, _ in top] for top in all_top_words(run.codes, run.embedding, 20)]
    found = coherence([topic for topic in topics if len(topic) > 1], text, quiet=quiet)
    return {
        "coherence, c_npmi of top words": float(np.nanmean(found.topics)),
        "coherence, shuffled words": float(np.nanmean(found.control)),
    }
