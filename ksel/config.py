"""Every setting of a run, in dataclasses; the text under a field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ksel.agent_config import (
    A2CConfig,
    AllActionConfig,
    AnnealedConfig,
    BanditConfig,
    BestStaticConfig,
    DDPGConfig,
    DynamicConfig,
    EpisodesConfig,
    GreedyConfig,
    PPOConfig,
    RaceConfig,
    RandomConfig,
    StaticConfig,
)
from ksel.checkpoint_config import CheckpointConfig
from ksel.search_config import BranchesConfig, CreditConfig

__all__ = [
    "A2CConfig",
    "AllActionConfig",
    "AnnealedConfig",
    "BanditConfig",
    "BatchingConfig",
    "BestStaticConfig",
    "BranchesConfig",
    "CheckpointConfig",
    "CreditConfig",
    "CustomTaskConfig",
    "DDPGConfig",
    "DynamicConfig",
    "EnvConfig",
    "EpisodesConfig",
    "FineTuneConfig",
    "GreedyConfig",
    "KnowledgeConfig",
    "OptimConfig",
    "PPOConfig",
    "RaceConfig",
    "RandomConfig",
    "RowsConfig",
    "RunConfig",
    "SignalsConfig",
    "SpanConfig",
    "StageConfig",
    "StaticConfig",
    "StudentConfig",
]


Objective = Literal["auto", "cross_entropy", "calibrated", "margin", "probe"]
"""What a reward is the drop of, see :mod:`ksel.objectives`."""


@dataclass
class CustomTaskConfig:
    """A task of your own (with --task custom and --data DIR)."""

    kind: Literal["auto", "span", "span_v2"] = "auto"
    """auto: classes where --custom.labels names them, else scores; span: the label is a part of the
    second text that answers the first, as in squad; span_v2: some questions have no answer."""
    text: str = "text"
    """Column of the text, of the first text of a pair, or of the question."""
    text_pair: str | None = None
    """Column of the second text, or of the context of the question; null for single texts."""
    label: str = "label"
    """Column of the label: class numbers, class names, scores, or answers."""
    labels: list[str] = field(default_factory=list)
    """Names of the classes in the order of their numbers; empty for regression."""
    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    """Metrics to report, the headline first: accuracy, f1, matthews, pearson, spearman."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest score (regression only)."""


@dataclass
class RowsConfig:
    """How many examples each split has (rows)."""

    train: int | None = None
    """Rows taken from the training file before splitting, the same for every seed; null = all."""
    reward: int = 256
    """Rows of the training file kept for rewards, never trained on."""
    dev: int | None = None
    """Rows of the dev file that are scored at the end; null = all."""
    dev_on_the_way: int = 500
    """Rows of the dev file scored at the points on the way."""


@dataclass
class BatchingConfig:
    """How examples become batches."""

    size: int = 32
    """Examples of one optimiser update."""
    eval_size: int = 128
    """Examples of one batch without gradients."""
    max_length: int = 128
    """Longest sequence (tokens); longer texts are cut."""
    bucket: int = 16
    """Batches whose examples are sorted by length together; 1 = no length buckets."""


@dataclass
class SpanConfig:
    """Extractive question answering (squad, squad_v2, custom tasks of kind span)."""

    stride: int = 128
    """Tokens that two windows of a long context share (at most half of a window is used)."""
    max_question: int = 40
    """Longest question (tokens); longer ones are cut."""
    max_answer: int = 30
    """Longest answer (tokens)."""
    n_best: int = 20
    """Candidates for the start and for the end of an answer, per window."""
    null_threshold: float = 0.0
    """squad_v2: no answer is given where the score of none exceeds that of the best by more."""


@dataclass
class StudentConfig:
    """Shape and start of the student."""

    shape: str | None = None
    """A named shape such as 4x312 or 6x768 (docs/data.md lists them) instead of the sizes below; heads
    may be given beside it."""
    layers: int | None = None
    """Transformer layers; null = half the teacher's."""
    width: int | None = None
    """Hidden width; null = the teacher's."""
    heads: int | None = None
    """Attention heads; null = the teacher's."""
    feed_forward: int | None = None
    """Feed-forward width; null = the teacher's."""
    init: str = "auto"
    """Start from teacher layers (first, skip, last, spread, or pairs such as 1-2+2-4), random, or a
    folder with a checkpoint; auto = first where width and feed-forward width are the teacher's,
    else random."""
    source: Literal["auto", "pretrained", "teacher"] = "auto"
    """Weights that first, skip and last copy from: the checkpoint the teacher was fine-tuned
    from, or the fine-tuned teacher; auto = pretrained where there is one."""
    dropout: float = 0.0
    """Dropout probability while the student trains; its random numbers are its own."""


@dataclass
class FineTuneConfig:
    """Fine-tuning of a teacher that has no head for the task."""

    epochs: float = 3.0
    """Passes over the training rows."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    tiny_epochs: float = 6.0
    """Passes for the tiny teacher, which starts from random weights; at most 2,000 updates."""
    tiny_learning_rate: float = 5e-4
    """Peak learning rate for the tiny teacher."""
    batch_size: int = 32
    """Examples of one update."""
    warmup: float = 0.1
    """Share of the updates with rising learning rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay (not on biases and norms)."""
    max_updates: int | None = None
    """Upper bound on the updates; null = epochs decide."""
    seed: int = 0
    """Seed of head, batches and dropout; apart from --seed, so that runs share the teacher."""
    together: bool = True
    """Several teachers: fine-tune them together with one pooling and prediction layer that they
    share (MT-BERT); false = each for itself."""


@dataclass
class SignalsConfig:
    """Where teacher signals come from while the student trains."""

    source: Literal["auto", "memory", "disk", "live"] = "auto"
    """Keep what the teacher computes, the first time that a row needs it, in memory or on disk, or
    run it on each batch (live); auto = memory where there is room, else disk; live where the
    budget has no room for anything."""
    budget: int = 8192
    """Largest size of the signals that are kept (MB, all teachers together): those of whole examples
    first, then those of tokens while they fit; what does not fit is computed live."""
    dtype: Literal["float16", "float32"] = "float32"
    """Precision of the signals that are kept. float16 takes half the room and moves most gradients by
    less than 0.1 %; losses are computed in float32 either way."""


@dataclass
class KnowledgeConfig:
    """The knowledge pool and how its losses are formed."""

    pool: list[str] = field(
        default_factory=lambda: [
            "label",
            "response",
            "cls_hidden/skip",
            "hidden/skip",
            "value_relation/last_1",
        ]
    )
    """Knowledge types, each kind[/matching][@teacher]; the agent's action has one number for each."""
    temperature: float = 4.0
    """Temperature T of response; the loss is T^2 KL(teacher || student)."""
    temperature_schedule: Literal["constant", "linear", "flsw", "cwsm"] = "constant"
    """linear: from temperature to temperature_end over a stage; flsw, cwsm: each example its own,
    by how far the student is off (flsw) or how sure it is (cwsm)."""
    temperature_end: float = 1.0
    """linear: the temperature at the end of a stage."""
    temperature_range: float = 1.0
    """flsw, cwsm: how far an example's temperature moves from the mean (beta)."""
    temperature_power: float = 1.0
    """flsw: exponent of the distance between the answers of student and teacher (gamma)."""
    confidence: bool = False
    """Weigh each example's response by 1 / (1 + the teacher's cross-entropy) (MT-BERT)."""
    logit_annealing: int = 0
    """logits: number of steps in which the teacher's logits grow to their full size
    (Annealing-KD); 0 = full size from the start."""
    normalize_cls: bool = True
    """Bring [CLS] states to unit length before cls_hidden compares them (Patient KD)."""
    cls_reduction: Literal["sum", "width", "mean"] = "sum"
    """cls_hidden: sum the squared differences over layers and width (Patient KD's paper), average
    them over both (mean; its authors' code), or over the width only (width; as hidden does)."""
    cls_last: Literal["auto", "keep"] = "auto"
    """cls_hidden: auto leaves the last student layer out where response of the same teacher covers
    it (Patient KD); keep compares the layers as matched."""
    projection: Literal["auto", "always"] = "auto"
    """Learned projections of the student's states: only where the widths differ, or always."""
    attention_loss: Literal["mse", "kl"] = "mse"
    """How attention and attention_mean compare two attention maps."""
    attention_on: Literal["maps", "scores"] = "maps"
    """attention, attention_sum, attention_mean with mse: compare the maps, or the scores before the
    softmax (TinyBERT)."""
    contrastive_temperature: float = 0.1
    """Temperature of sample_contrastive."""
    relation_heads: int | None = None
    """Heads R of query_relation, key_relation and value_relation; null = the teacher's heads."""
    balance: Literal["ema", "none", "gradient"] = "ema"
    """ema: divide each loss by its running size, so that all are of order 1; gradient: by the
    running norm of its gradient, so that all pull alike; none: leave it."""
    balance_every: int = 10
    """balance gradient: updates between two measurements of the norms."""
    ema_decay: float = 0.98
    """Decay of the running size, or norm, per update."""
    max_gain: float = 100.0
    """balance ema and gradient multiply no loss by more than this: a loss near 0, where the student
    matches the teacher already, is left small."""
    weights: dict[str, float] = field(default_factory=dict)
    """Static weight of a knowledge type by its name, on top of the balance; missing = 1."""
    weight_schedules: dict[str, Literal["growth", "decay"]] = field(default_factory=dict)
    """A type's weight grows from 0, or decays to 0, linearly over each stage; missing = constant."""


@dataclass
class StageConfig:
    """One stage of a run with several."""

    pool: list[str] = field(default_factory=list)
    """The knowledge types of --knowledge.pool that can be selected in this stage; [] = all."""
    share: float = 1.0
    """Share of the step budget; the shares of all stages add up to 1."""
    learning_rate: float | None = None
    """Peak learning rate; null = --optim.learning_rate."""


@dataclass
class OptimConfig:
    """The student's optimiser: AdamW, linear warm-up, then linear decay to zero."""

    epochs: float = 3.0
    """Passes over the training rows: the step budget."""
    max_updates: int | None = None
    """The step budget in optimiser updates; overrides epochs."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    head_rate: float = 1.0
    """Learning rate of the student's head (pooler and classifier) in multiples of that of the rest. A head
    that starts from random numbers is what a short budget waits for; 5 to 10 helps there."""
    warmup: float = 0.1
    """Share of the updates with rising learning rate."""
    weight_decay: float = 0.01
    """AdamW's weight decay (not on biases and norms)."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global norm; 0 = no clipping."""
    accumulate: int = 1
    """Micro-batches per update; changes memory, not the loss."""
    grad_norm_every: int = 50
    """Updates between two measurements of each type's own gradient norm; 0 = first use only."""
    bf16: bool = True
    """On CUDA: run the models under bfloat16 autocast. No effect on the CPU."""
    embeddings: Literal["train", "lazy", "frozen"] = "train"
    """Word embeddings of the student: updated with the rest; lazy: only the rows of tokens in the
    batch (lazy Adam); frozen: never."""


@dataclass
class EnvConfig:
    """The Gymnasium environment around the student's training step."""

    phase_steps: int = 1
    """Optimiser updates for which one decision is held."""
    actions: Literal["auto", "hard", "soft"] = "auto"
    """hard: K bits; soft: K numbers in [0, 1]; auto: what the agent works with."""
    observe: list[Literal["training", "student_cls", "teacher_cls"]] = field(
        default_factory=lambda: ["training"]
    )
    """Parts of the observation; training alone lets a policy move between students and tasks."""
    reward: Literal["auto", "measured", "amortized"] = "auto"
    """measured: the true drop of the objective after each decision; amortized: the drop predicted
    from credit, checked against true drops over windows; auto = what the agent works with."""
    window: int = 50
    """amortized: updates between two measurements of the true drop."""
    objective: Objective = "auto"
    """What a reward is the drop of, on the reward split; probe: of what a linear probe reads from the
    student's states, whatever its head makes of them; auto = what suits the agent, cross_entropy for
    most."""
    margin_width: float = 1.0
    """Width of the smooth 0-1 loss of the margin objective (logits)."""
    reward_scale: Literal["running", "quantile", "none"] = "running"
    """running: divide by the running root mean square; quantile: map the 20-80 % range of the
    drops to [-1, 1]; none: the plain drop. Starts anew with each episode."""
    cost_per_type: float = 0.0
    """Reward taken off for each selected type (soft: for each unit of weight), per decision."""
    exploration: float = 0.0
    """Weight of the exploration reward of the selection paper; 0 = off."""
    final_metric: float = 0.0
    """Weight of the headline metric on the reward split, added to the last reward; 0 = off."""


@dataclass
class RunConfig:
    """ksel: distil a teacher into a small student while an agent selects the teacher's signals."""

    task: str = "qnli"
    """cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, squad, squad_v2, or custom (see --custom)."""
    agent: str = "a2c"
    """Who chooses the mask: all_action, race, greedy, a2c, ppo, ddpg, bandit, best_static, static, random_hard,
    random_soft, annealed, round_robin, dynamic."""
    method: str | None = None
    """A published method by name (a file of configs/methods); null = your own mix."""
    data: str | None = None
    """Folder with the task's train and dev files (parquet, csv, tsv, jsonl), or with a folder
    glue/TASK; hub = the Hugging Face hub or its cache; builtin = the generated corpus;
    null = the hub, then the built-in corpus, said aloud."""
    teacher: str | None = None
    """Folder or hub name of a Hugging Face encoder, with or without a head for the task;
    embedded = all-MiniLM-L6-v2 from the extra of that name; tiny = a small BERT trained on the
    spot; null = all-MiniLM-L6-v2 from the hub, then embedded, then tiny, said aloud."""
    teachers: list[str] = field(default_factory=list)
    """Several teachers instead of one, --teachers A B C; the student has the tokenizer of the first,
    and kind[/matching]@2 is a signal of the second."""
    seed: int = 0
    """Seed of the splits, the student's head, the batches, and the agent."""
    out: str = "runs"
    """Folder in which the run's own folder is made."""
    name: str | None = None
    """Name of the run's folder; null = TASK-AGENT-sSEED-TIME (METHOD for AGENT)."""
    store: str | None = None
    """Folder for fine-tuned teachers and cached signals; null = ~/.cache/ksel (KSEL_STORE)."""
    device: str = "auto"
    """auto, cpu, or cuda."""
    threads: int = 0
    """Threads of torch on the CPU; 0 = one per core, or OMP_NUM_THREADS where that is set and lower.
    Part of what makes a replay exact."""
    search: Literal["auto", "episodes", "online", "branch"] = "auto"
    """How the agent learns: episodes: over students of its own, before the final one; online: while the
    one and only student trains; branch: online, from forks of the student; auto = what the agent
    works with."""
    students: int = 1
    """Students that train side by side in the episodes of the search, on the same batches."""
    vectorize: Literal["auto", "loop", "vmap"] = "auto"
    """Several students: loop: one after the other; vmap: in one batched step; auto = vmap on CUDA where
    the architecture allows it, else loop."""
    references: list[str] = field(default_factory=lambda: ["finetune", "all"])
    """Students distilled beside the selected one, with the same start, batches and budget:
    finetune (label only), all, or the name of one knowledge type."""
    evaluations: int = 4
    """Measurements of the dev metrics on the way of the final and reference students."""
    custom: CustomTaskConfig = field(default_factory=CustomTaskConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    span: SpanConfig = field(default_factory=SpanConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    signals: SignalsConfig = field(default_factory=SignalsConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    stages: list[StageConfig] = field(default_factory=list)
    """Stages one after the other, each with its own pool, share of the budget and learning rate;
    [] = one stage with all."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    all_action: AllActionConfig = field(default_factory=AllActionConfig)
    greedy: GreedyConfig = field(default_factory=GreedyConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    ddpg: DDPGConfig = field(default_factory=DDPGConfig)
    bandit: BanditConfig = field(default_factory=BanditConfig)
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    static: StaticConfig = field(default_factory=StaticConfig)
    best_static: BestStaticConfig = field(default_factory=BestStaticConfig)
    race: RaceConfig = field(default_factory=RaceConfig)
    random: RandomConfig = field(default_factory=RandomConfig)
    annealed: AnnealedConfig = field(default_factory=AnnealedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
