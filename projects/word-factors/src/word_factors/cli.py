"""The command line: `word-factors train`, `word-factors word`, ... Imports no torch and no gensim."""

from __future__ import annotations

from shared.claims import ReproduceConfig
from shared.cli import App, BenchConfig
from word_factors.config import (
    TRAIN_PRESETS,
    AnalogyConfig,
    ClassesConfig,
    EncodeConfig,
    EvaluateConfig,
    ExplainConfig,
    ExploreConfig,
    FactorsConfig,
    GenerateConfig,
    GroupsConfig,
    NameConfig,
    ReliabilityConfig,
    TrainConfig,
    VectorsConfig,
    WordConfig,
)

app = App(
    "word-factors",
    "Word Embedding Visualization via Dictionary Learning: vectors as sums of word factors (arXiv 1910.03833).",
)


@app.verb(TrainConfig, TRAIN_PRESETS)
def train(config: TrainConfig) -> int:
    """Learn word factors; on a corpus, train word vectors first.

    Without flags: 300 factors of vectors trained on 106 Wikipedia articles that ship inside gensim, about a minute.
    Ends with the measures, a fair sample of factors with their top words, and figures in the run folder.

    word-factors train --data googlenews --factors 500
    word-factors train --vectors glove.6B.300d.txt --max-words 50000 --counts text8
    word-factors train --data wiki44 --embedder sg --update quadratic --steps 20000 --step-size 0.05 --step-final 0.005
    """
    from word_factors.train import train as run

    return run(config)


@app.verb(VectorsConfig)
def vectors(config: VectorsConfig) -> int:
    """Train word vectors on a corpus (CBOW, skip-gram, fastText or GloVe), or convert a file of vectors."""
    from word_factors import commands

    return commands.vectors(config)


@app.verb(EncodeConfig)
def encode(config: EncodeConfig) -> int:
    """Write the sparse codes of a run's vocabulary, or of another file of vectors, as a compressed npz."""
    from word_factors import commands

    return commands.encode(config)


@app.verb(FactorsConfig)
def factors(config: FactorsConfig) -> int:
    """Show factors: number, name, top words, use, reliability, group."""
    from word_factors import commands

    return commands.factors(config)


@app.verb(WordConfig)
def word(config: WordConfig) -> int:
    """Take words apart: their factors and groups as shares of the code, and what is left over.

    word-factors word runs/word-factors/RUN queen apple
    """
    from word_factors import commands

    return commands.word(config)


@app.verb(GroupsConfig)
def groups(config: GroupsConfig) -> int:
    """Gather factors that are active together, and keep the groups for the other commands."""
    from word_factors import commands

    return commands.groups(config)


@app.verb(ReliabilityConfig)
def reliability(config: ReliabilityConfig) -> int:
    """Say how well factors are found again in other runs or other embeddings, beside a random control."""
    from word_factors import commands

    return commands.reliability(config)


@app.verb(ClassesConfig)
def classes(config: ClassesConfig) -> int:
    """Compare factors with hand-made classes of words: held-out average precision, beside baselines."""
    from word_factors import analysis

    return analysis.classes(config)


@app.verb(AnalogyConfig)
def analogy(config: AnalogyConfig) -> int:
    """Answer word analogies with and without factors, beside every control, section by section."""
    from word_factors import analysis

    return analysis.analogy(config)


@app.verb(ExplainConfig)
def explain(config: ExplainConfig) -> int:
    """Show the factors in which two pairs of words differ: a is to b as c is to d.

    word-factors explain runs/word-factors/RUN man woman king queen
    """
    from word_factors import analysis

    return analysis.explain(config)


@app.verb(GenerateConfig)
def generate(config: GenerateConfig) -> int:
    """Make analogy questions from factors or groups, and score them beside shuffled pairs."""
    from word_factors import analysis

    return analysis.generate(config)


@app.verb(NameConfig)
def name(config: NameConfig) -> int:
    """Give a factor a name that follows its content, or list the names."""
    from word_factors import commands

    return commands.name(config)


@app.verb(ExploreConfig)
def explore(config: ExploreConfig) -> int:
    """Write one self-contained HTML page: type a word and see its factors, click a factor and see its words."""
    from word_factors import commands

    return commands.explore(config)


@app.verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> int:
    """Measure a dictionary: sparsity, energy left over and use of factors on the whole vocabulary, energy and
    optimality of training's codes on a sample of it."""
    from word_factors import commands

    return commands.evaluate(config)


@app.verb(ReproduceConfig)
def reproduce(config: ReproduceConfig) -> int:
    """Run the experiments behind the paper's claims, judge them, write results/<preset>.json and the figures.

    Presets: smoke, cpu, cpu-long, gpu, paper. Exits with 1 if a gated claim fails. Finished runs are kept and not run
    again.
    """
    from shared.claims import reproduce as run
    from word_factors.experiments import WordFactorsStudy

    return run(WordFactorsStudy(), config)


@app.verb(BenchConfig)
def bench(config: BenchConfig) -> int:
    """Race encoding and learning against scikit-learn, and analogies against gensim; prints ratios."""
    from shared.cli import bench as run

    return run("word_factors", config)


main = app.main
