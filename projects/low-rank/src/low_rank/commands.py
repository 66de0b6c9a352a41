"""What the verbs `volume`, `regress` and `optimizers` do: compute, print, draw, write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from low_rank import figures, studies
from low_rank.config import OptimizersConfig, RegressConfig, VolumeConfig
from low_rank.train import MEMBER
from shared.cli import print_table
from shared.config import UserError, to_json
from shared.run import free_path, write_json


def results_folder(out: Path | None, name: str, force: bool) -> tuple[Path, Path]:
    """(folder, its table <name>.json), which is not there yet or may be replaced; the default folder's may always.

    Raises:
        UserError: a table is there.
    """
    folder = out or Path("runs") / MEMBER / name
    if folder.is_file():
        raise UserError("--out", folder, "a folder")
    return folder, free_path(folder / f"{name}.json", force or out is None)


def written(table: Path, config: Any, values: Mapping[str, Any], drawn: list[Path], quiet: bool) -> int:
    """Write a study's table, and say where it and its figures are."""
    write_json(table, {"config": to_json(config), **values})
    if not quiet:
        for path in (table, *drawn):
            print(path)
    return 0


def volume(config: VolumeConfig) -> int:
    """`low-rank volume`."""
    folder, table = results_folder(config.out, "volume", config.force)
    values = studies.volume(config)
    steps = {step["to"]: step for step in values["steps"]}
    rows = []
    for row in values["rows"]:
        step = steps.get(row["depth"])
        lower = "" if step is None else ("yes" if step["holds"] and step["strict"] else "no")
        rows.append((row["depth"], row["mean"], row["deviation"], row.get("deficit"), row.get("limit"), lower))
    columns = ("layers", "mean rank (nats)", "deviation", "ln n - mean", "its limit", "below the depth before")
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    what = f"products of {config.n} x {config.n} matrices"
    if config.nets == "features":
        seen = f"images of {config.data}" if config.inputs == "images" else "Gaussian vectors"
        what = f"{config.activation} networks of width {config.n} on {config.images} {seen}"
    print_table(f"{what}: {config.draws:,} draws a depth", [columns[i] for i in kept],
                [[row[i] for i in kept] for row in rows], config.quiet)  # fmt: skip
    drawn = [figures.volume(folder / "volume", values, what)]
    if values.get("sampled"):
        drawn.append(figures.density(folder / "density", values["sampled"], config.n))
    return written(table, config, values, drawn, config.quiet)


def regress(config: RegressConfig) -> int:
    """`low-rank regress`."""
    folder, table = results_folder(config.out, "regress", config.force)
    values = studies.regression(config)
    rows = [
        (
            row["depth"],
            row["train"],
            row["test"],
            row["test_se"],
            row["rho_start"],
            row["rho"],
            row["fitted"],
            row["fitted_at"],
        )
        for row in values["rows"]
    ]
    shortest = values["minimum_norm"]
    least = (shortest["train"], shortest["test"], shortest["test_se"], None, shortest["rho"], None, None)
    rows.append(("least norm", *least))
    rows.append(("truth", None, None, None, None, values["true_rank"], None, None))
    columns = ("factors", "training error", "test error", "its s.e.", "rank at first (nats)", "after", "fitted",
               "at step")  # fmt: skip
    title = f"rank {config.rank} in {config.n} dimensions from {config.samples} samples, {config.draws} draws"
    print_table(title, columns, rows, config.quiet)
    drawn = [
        figures.regression(folder / "regress", values, title),
        figures.trajectories(folder / "trajectories", values),
    ]
    return written(table, config, values, drawn, config.quiet)


def optimizers(config: OptimizersConfig) -> int:
    """`low-rank optimizers`."""
    folder, table = results_folder(config.out, "optimizers", config.force)
    images = config.problem != "regression"
    if config.cma:  # refused now, and not after all the rest
        size, width = (config.images, config.width) if images else (8, studies.CMA_WIDTH)
        studies.evolvable(config, studies.pair_of(config, size), width)
    values: dict[str, Any] = {}
    drawn = []
    names = ("optimizer", "depth", "reached", "rate", "rho_start", "rho", "test", "steps")
    if config.problem != "classification":
        values = studies.optimisers(config)
        columns = ("optimizer", "factors", "reached", "learning rate", "rank at first (nats)", "there", "test error",
                   "steps")  # fmt: skip
        problem = f"rank {config.rank} in {config.n} dimensions from {config.samples} samples"
        title = f"{problem}, at a training error of {config.target:g}"
        print_table(title, columns, [[row[k] for k in names] for row in values["rows"]], config.quiet)
        drawn.append(figures.lines(folder / "optimizers", values["rows"], title))
    if images:
        values["classified"] = found = studies.classified(config)
        columns = ("optimizer", "hidden layers", "reached", "learning rate", "Gram rank at first (nats)", "there",
                   "test accuracy", "steps")  # fmt: skip
        one, other = config.classes
        problem = f"networks of width {config.width}, {config.images} images of {config.data} {one} and {other}"
        title = f"{problem}: no training error, loss {config.loss:g}"
        print_table(title, columns, [[row[k] for k in names] for row in found["rows"]], config.quiet)
        drawn.append(figures.lines(folder / "classification", found["rows"], title, "hidden layers", figures.GRAM_RANK))
    for name, found in (("search", studies.searches(config)), ("cma", studies.evolved(config))):
        if found is None:
            continue
        values[name] = found
        shown = ("depth", "kept", "draws", "share", "low", "high", "rho", "accuracy")
        print_table(f"{name}: networks without an error on eight images", shown,
                    [[row.get(k) for k in shown] for row in found["rows"]], config.quiet)  # fmt: skip
    return written(table, config, values, drawn, config.quiet)
