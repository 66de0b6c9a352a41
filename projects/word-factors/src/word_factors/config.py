"""What can be set: one frozen dataclass a verb, and the presets. Imports no torch and no gensim."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from shared.config import RunConfig, UserError, check_choice, check_range

CorpusName = Literal["articles", "wiki44", "text8"]
EmbeddingName = Literal["googlenews", "glove-twitter", "glove6b", "glove840b", "googlenews-full", "fasttext-wiki"]
DataName = Literal[
    "articles", "wiki44", "text8",
    "googlenews", "glove-twitter", "glove6b", "glove840b", "googlenews-full", "fasttext-wiki",
]  # fmt: skip
DATA: tuple[DataName, ...] = get_args(DataName)
Embedder = Literal["cbow", "sg", "fasttext", "glove"]
EMBEDDERS: tuple[Embedder, ...] = get_args(Embedder)
WeightingName = Literal["sqrt", "frequency", "uniform", "sqrt-uniform", "corpus"]
PreprocessName = Literal["none", "unit", "center", "scale"]
Update = Literal["quadratic", "online"]
Init = Literal["gaussian", "words"]
Inference = Literal["fista", "exact"]
Decay = Literal["exponential", "inverse"]
Protocol = Literal["heldout", "leave-one-out", "insample", "named"]


@dataclass(frozen=True)
class VectorFlags:
    """Where word vectors come from. Shared by `train` and `vectors`."""

    data: DataName = "articles"
    """articles: 106 Wikipedia articles that ship inside gensim; wiki44, text8: corpora under --data-root; the others:
    vector files under --data-root. On a corpus, vectors are trained first."""
    corpus: Path | None = None
    """Instead of --data: a plain text file (.txt, .gz, .xz, .bz2), a line a paragraph; vectors are trained on it."""
    max_words: int | None = None
    """Keep this many words: of a corpus the most frequent, of a file of vectors the first, which are that as a rule."""
    embedder: Embedder = "cbow"
    """How vectors are trained on a corpus."""
    dim: int = 100
    """d, coordinates of a vector trained on a corpus."""
    window: int | None = None
    """Words on either side that count as context. Default: 8; for glove 10."""
    vector_epochs: int = 20
    """Passes over the corpus."""
    min_count: int = 5
    """Leave out words used less often."""
    vector_seed: int = 0
    """Seed of the vectors, apart from --seed: runs that differ in --seed share their vectors."""
    vector_workers: int = 1
    """gensim's threads. With more than one, vectors differ from run to run."""

    def check_vectors(self) -> None:
        """Raise `UserError` for values out of range."""
        check_choice("--data", self.data, DATA)
        check_choice("--embedder", self.embedder, EMBEDDERS)
        check_range("--max-words", self.max_words, 2)
        check_range("--dim", self.dim, 1)
        check_range("--window", self.window, 1)
        check_range("--vector-epochs", self.vector_epochs, 1)
        check_range("--min-count", self.min_count, 1)
        check_range("--vector-seed", self.vector_seed, 0, 2**32 - 1)
        check_range("--vector-workers", self.vector_workers, 1)


@dataclass(frozen=True)
class TrainConfig(VectorFlags, RunConfig):
    """One run: word vectors to word factors."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (*RunConfig.exclusive, ("vectors", "corpus"))

    vectors: Path | None = None
    """Instead of --data: a file of word vectors (word2vec or GloVe text, word2vec binary, fastText, npz, gensim)."""
    counts: Path | None = None
    """How often words are used: a corpus (plain text, .gz, .xz, .bz2) or a file with `word count` lines. Default: as
    the vectors have them, else by rank."""
    factors: int = 300
    """K, word factors."""
    lam: float = 0.1
    """Weight of the activations, in the units after --preprocess."""
    target_active: float | None = None
    """Find the weight at which a word has this many active factors on average, instead of --lam."""
    preprocess: PreprocessName = "unit"
    """none; unit: rows to norm 1; center: minus the mean; scale: divided by the mean norm."""
    weighting: WeightingName = "sqrt"
    """How words are drawn and weighted; sqrt is the published one, sqrt-uniform the same objective with less noise,
    corpus walks the text."""
    update: Update = "online"
    """online: block coordinate descent on accumulated statistics, converges in a few epochs; quadratic: the published
    rule."""
    init: Init = "words"
    """Dictionary to start from: random word vectors, or normal numbers as published."""
    batch_size: int = 256
    """Words a step and process."""
    inference: Inference = "fista"
    """How a batch is encoded: `fista`, the paper's, a fixed number of steps; `exact`, by working sets to 0.1 % of the
    weight, several times faster on a CPU."""
    inference_steps: int = 50
    """FISTA steps a batch."""
    capture: bool = True
    """On CUDA: replay the FISTA steps of a batch as one graph. Not with --compile."""
    forgetting: float = 0.97
    """online: what earlier statistics are multiplied by at each batch."""
    step_size: float = 0.005
    """quadratic: s."""
    step_final: float | None = None
    """quadratic: step size at the end. Default: constant."""
    decay: Decay = "exponential"
    """quadratic: how the step gets there."""
    floor: float = 0.001
    """quadratic: epsilon_0, added to the mean squared activation that a factor's step is divided by."""
    average: int = 300
    """T, batches over which running means reach back."""
    bias_correct: bool = False
    """Correct the running means for their start at zero. The published rule does not: its first steps are long."""
    lam_warmup: int = 0
    """Steps over which the weight of the activations rises from a third."""
    reseed: bool = False
    """Put the largest residual in the place of a factor that no longer is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_vectors()
        for flag, value, valid in (
            ("--preprocess", self.preprocess, get_args(PreprocessName)),
            ("--weighting", self.weighting, get_args(WeightingName)),
            ("--update", self.update, get_args(Update)),
            ("--init", self.init, get_args(Init)),
            ("--decay", self.decay, get_args(Decay)),
        ):
            check_choice(flag, value, valid)
        check_range("--factors", self.factors, 2)
        check_range("--lam", self.lam, 0, open_low=True)
        check_range("--target-active", self.target_active, 0, open_low=True)
        check_range("--batch-size", self.batch_size, 1)
        check_choice("--inference", self.inference, get_args(Inference))
        check_range("--inference-steps", self.inference_steps, 1)
        check_range("--forgetting", self.forgetting, 0, 1)
        check_range("--step-size", self.step_size, 0, open_low=True)
        check_range("--step-final", self.step_final, 0, open_low=True)
        check_range("--floor", self.floor, 0, open_low=True)
        check_range("--average", self.average, 1)
        check_range("--lam-warmup", self.lam_warmup, 0)
        if self.precision in ("bf16", "fp16"):
            raise UserError("--precision", self.precision, ["auto", "fp32"], "Codes need 32 bits to converge.")
        if self.compile and self.inference == "exact":
            raise UserError("--compile", self.compile, "--inference fista: nothing else is compiled by torch")
        if self.accumulate != 1:
            raise UserError("--accumulate", self.accumulate, "1: a batch is encoded word by word, use --batch-size")


_CPU = TrainConfig(epochs=3, weighting="sqrt-uniform")
_PUBLISHED = TrainConfig(
    data="googlenews", factors=1000, update="quadratic", init="gaussian", weighting="sqrt", batch_size=100,
    inference_steps=500, step_size=0.05, step_final=0.005,
)  # fmt: skip
TRAIN_PRESETS: dict[str, TrainConfig] = {
    "cpu": _CPU,
    "smoke": replace(
        _CPU, preset="smoke", epochs=None, steps=200, dim=50, vector_epochs=10, factors=100, batch_size=100,
        inference_steps=30,
    ),
    "gpu": replace(_PUBLISHED, preset="gpu", steps=40_000),
    "paper": replace(
        _PUBLISHED, preset="paper", data="glove6b", steps=200_000, preprocess="none", target_active=12.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class VectorsConfig(VectorFlags):
    """Flags of `vectors`."""

    vectors: Path | None = None
    """Instead of --data: a file of word vectors, to be written in another format."""
    counts: Path | None = None
    """How often its words are used: a corpus or a file with `word count` lines."""
    out: Path = Path("vectors.npz")
    """Where the vectors go: .npz, .txt or .vec (word2vec text), .bin (word2vec binary)."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: $PAPERS_DATA, else the user cache."""
    quiet: bool = False
    """No progress bar."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        self.check_vectors()
        check_choice("--out", self.out.suffix, (".npz", ".txt", ".vec", ".bin"))
        if self.vectors is not None and self.corpus is not None:
            raise UserError("--vectors and --corpus", [str(self.vectors), str(self.corpus)], "one of them")
        if self.vectors is not None or (self.corpus is None and self.data in get_args(EmbeddingName)):
            for field in ("embedder", "dim", "window", "vector_epochs", "min_count", "vector_seed", "vector_workers"):
                value = getattr(self, field)
                if value != getattr(VectorFlags, field):
                    hint = "These vectors are there already."
                    raise UserError("--" + field.replace("_", "-"), value, "vectors that are trained on a corpus", hint)


@dataclass(frozen=True)
class RunChoice:
    """A trained run and where to work on it."""

    run: Path
    """Run folder, written by `train`."""
    _: KW_ONLY
    data_root: Path | None = None
    """Folder that holds data sets. Default: the run's, else $PAPERS_DATA, else the user cache."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quiet: bool = False
    """No progress bar, no table."""


@dataclass(frozen=True)
class EncodeConfig(RunChoice):
    """Flags of `encode`."""

    vectors: Path | None = None
    """Encode this file of vectors instead of the run's own vocabulary."""
    tol: float = 1e-4
    """Largest violation of the optimality conditions, relative to the weight of the activations."""
    out: Path | None = None
    """Where the codes go. Default: <run>/codes.npz."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--tol", self.tol, 0, open_low=True)


@dataclass(frozen=True)
class EvaluateConfig(RunChoice):
    """Flags of `evaluate`."""

    coherence: bool = False
    """Also the coherence of top words on another corpus (gensim's articles, or --corpus), beside random words."""
    corpus: Path | None = None
    """Corpus that judges coherence; implies --coherence."""
    judge: Path | None = None
    """Vectors that the factors were not learned on, which pick the intruder among a factor's top words."""
    curve: bool = False
    """Also draw sparsity and error over the weight of the activations."""
    out: Path | None = None
    """Write the metrics to this JSON file."""
    force: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class FactorsConfig(RunChoice):
    """Flags of `factors`."""

    sort: Literal["use", "reliability", "id", "random"] = "use"
    """Order of the table; random is seeded by --seed: a fair sample, not the best."""
    count: int = 20
    """Rows; 0 for all."""
    words: int = 8
    """Top words a factor."""
    others: tuple[Path, ...] = ()
    """Runs on the same vectors under other seeds, for the reliability beside each name; kept for later commands."""
    min_rank: int | None = None
    """Only words among this many most frequent ones."""
    weight: Literal["alpha", "sqrt"] = "alpha"
    """Top words by their activation, or by it times the root of the word's frequency."""
    seed: int = 0
    """Seed of the order `random`."""
    out: Path | None = None
    """Also write the whole table to this CSV file."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**32 - 1)
        check_range("--count", self.count, 0)
        check_range("--words", self.words, 1)
        check_range("--min-rank", self.min_rank, 1)


@dataclass(frozen=True)
class WordConfig(RunChoice):
    """Flags of `word`."""

    words: tuple[str, ...]
    """Words to take apart."""
    _: KW_ONLY
    count: int = 8
    """Factors shown a word."""
    threshold: float = 0.15
    """Share of the code from which on a group counts as a sense."""
    others: tuple[Path, ...] = ()
    """Runs on the same vectors under other seeds, for the reliability beside each name; kept for later commands."""
    out: Path | None = None
    """Where the figure goes, without suffix. Default: <run>/figures/word-<words>."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        if not self.words:
            raise UserError("words", "none", "one word or more")
        check_range("--count", self.count, 1)
        check_range("--threshold", self.threshold, 0, 1)


@dataclass(frozen=True)
class GroupsConfig(RunChoice):
    """Flags of `groups`."""

    groups: int | None = None
    """c, groups. Default: 0.175 K, the published proportion; with --others K, one a factor."""
    neighbours: int | None = None
    """k, edges kept a factor. Default: 20, the published number; with --others the number of runs."""
    method: Literal["spectral", "hierarchical"] = "spectral"
    """How factors are gathered."""
    others: tuple[Path, ...] = ()
    """Runs on the same vectors under other seeds: gather the factors of all; a group found in every run is robust."""
    seed: int = 0
    """Seed of k-means."""
    count: int = 20
    """Groups shown, the most used first; 0 for all."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**32 - 1)
        check_range("--groups", self.groups, 1)
        check_range("--neighbours", self.neighbours, 1)
        if self.neighbours is not None and self.method == "hierarchical":
            raise UserError("--neighbours", self.neighbours, "with --method spectral: a hierarchy has no edges to keep")
        check_range("--count", self.count, 0)


@dataclass(frozen=True)
class ReliabilityConfig:
    """Flags of `reliability`."""

    runs: tuple[Path, ...]
    """Two run folders or more. On the same vectors dictionaries are compared, on others activations on shared words."""
    threshold: float = 0.8
    """Cosine from which on a factor counts as found again."""
    seed: int = 0
    """Seed of the random control."""
    data_root: Path | None = None
    """Folder that holds data sets. Default: the run's, else $PAPERS_DATA, else the user cache."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    out: Path | None = None
    """Where the figure goes, without suffix. Default: figures/reliability in the first run."""
    force: bool = False
    """Replace an existing file."""
    quiet: bool = False
    """No progress bar, no table."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**32 - 1)
        if len(self.runs) < 2:
            raise UserError("runs", len(self.runs), "two run folders or more")
        check_range("--threshold", self.threshold, 0, 1)


@dataclass(frozen=True)
class ClassesConfig(RunChoice):
    """Flags of `classes`."""

    questions: Path | None = None
    """Analogy file whose sections give classes. Default: the Google questions, which ship inside gensim."""
    bats: Path | None = None
    """BATS folder, whose relations give classes too."""
    lists: Path | None = None
    """YAML file of classes of your own: name -> words."""
    baselines: tuple[Literal["raw", "pca", "rotation", "ica", "spine", "sklearn"], ...] = ("raw", "pca", "rotation")
    """What factors stand beside; ica, spine and sklearn take a minute or more."""
    splits: int = 4
    """Times that each class is halved."""
    seed: int = 0
    """Seed of the halves and baselines."""
    out: Path | None = None
    """Write the table to this JSON file."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**32 - 1)
        check_range("--splits", self.splits, 1)


@dataclass(frozen=True)
class AnalogyConfig(RunChoice):
    """Flags of `analogy`."""

    questions: Path | None = None
    """File of questions. Default: the Google questions, which ship inside gensim."""
    bats: Path | None = None
    """BATS folder in place of a file."""
    protocol: Protocol = "heldout"
    """heldout: pairs of a section split in halves; leave-one-out: by pair; insample: fitted on what is tested, and so
    optimistic; named: factors given by --named, nothing fitted."""
    named: tuple[str, ...] = ()
    """named: section=factor+factor or section=g<group>, e.g. gram4-superlative=12+40."""
    gamma: float | None = None
    """named: how far along the factors. Default: 1."""
    splits: int = 4
    """heldout: times that the pairs are halved."""
    seed: int = 0
    """Seed of the halves and of the random control."""
    out: Path | None = None
    """Write the table to this JSON file."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**32 - 1)
        check_range("--splits", self.splits, 1)
        check_range("--gamma", self.gamma, float("-inf"), float("inf"))
        if self.gamma is not None and self.protocol != "named":
            raise UserError("--gamma", self.gamma, "with --protocol named: others choose it on training pairs")
        if (self.protocol == "named") != bool(self.named):
            raise UserError("--named", list(self.named), "section=factors with --protocol named, and with no other")


@dataclass(frozen=True)
class ExplainConfig(RunChoice):
    """Flags of `explain`."""

    words: tuple[str, str, str, str]
    """Four words: a is to b as c is to d."""
    _: KW_ONLY
    count: int = 8
    """Factors shown, by size of the change."""
    others: tuple[Path, ...] = ()
    """Runs on the same vectors under other seeds, for the reliability beside each name; kept for later commands."""
    out: Path | None = None
    """Where the figure goes, without suffix. Default: <run>/figures/explain-<words>."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--count", self.count, 1)


@dataclass(frozen=True)
class GenerateConfig(RunChoice):
    """Flags of `generate`."""

    factors: tuple[int, ...] = ()
    """Factors along which pairs are sought."""
    groups: tuple[int, ...] = ()
    """Groups of factors, likewise."""
    low: float = 0.01
    """A pair's first word has less activation than this."""
    high: float = 0.15
    """Its second word has more."""
    gamma: float | None = None
    """Step along the factor. Default: its mean activation in the words that have it."""
    alike: float = 0.6
    """Least cosine of the two codes without the factor."""
    pairs: int = 30
    """Pairs a section at most."""
    seed: int = 0
    """Seed of the shuffled control."""
    out: Path | None = None
    """Where the questions go. Default: <run>/generated.txt."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--seed", self.seed, 0, 2**32 - 1)
        if not self.factors and not self.groups:
            raise UserError("--factors", "none", "factor numbers (see `factors`), or --groups (see `groups`)")
        check_range("--low", self.low, 0, open_low=True)
        check_range("--high", self.high, self.low)
        check_range("--gamma", self.gamma, 0, open_low=True)
        check_range("--alike", self.alike, -1, 1)
        check_range("--pairs", self.pairs, 2)


@dataclass(frozen=True)
class NameConfig(RunChoice):
    """Flags of `name`."""

    factor: int | None = None
    """Factor to be named."""
    to: str | None = None
    """Its name. Without --factor: lists the names."""
    names: Path | None = None
    """YAML file of names. Default: <run>/names.yaml."""

    def __post_init__(self) -> None:
        if (self.factor is None) != (self.to is None):
            raise UserError("--factor and --to", [self.factor, self.to], "both, or neither to list the names")


@dataclass(frozen=True)
class ExploreConfig(RunChoice):
    """Flags of `explore`."""

    out: Path | None = None
    """Where the page goes. Default: <run>/explore.html."""
    others: tuple[Path, ...] = ()
    """Runs on the same vectors under other seeds, for the reliability beside each name; kept for later commands."""
    max_words: int | None = None
    """Words on the page, the most frequent. Default: all."""
    force: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_range("--max-words", self.max_words, 1)
