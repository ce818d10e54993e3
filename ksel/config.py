"""Every setting of a run, in dataclasses; the text under a field is its help on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class CustomTaskConfig:
    """A task of your own (with --task custom and --data DIR)."""

    text: str = "text"
    """Column of the text, or of the first text of a pair."""
    text_pair: str | None = None
    """Column of the second text; null for single texts."""
    label: str = "label"
    """Column of the label: class numbers, class names, or scores."""
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
class StudentConfig:
    """Shape and start of the student."""

    layers: int | None = None
    """Transformer layers; null = half the teacher's."""
    width: int | None = None
    """Hidden width; null = the teacher's."""
    heads: int | None = None
    """Attention heads; null = the teacher's."""
    feed_forward: int | None = None
    """Feed-forward width; null = the teacher's."""
    init: str = "auto"
    """Start from teacher layers (first, skip, last), random, or a folder with a checkpoint;
    auto = first where width and feed-forward width are the teacher's, else random."""
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


@dataclass
class SignalsConfig:
    """Where teacher signals come from while the student trains."""

    source: Literal["auto", "memory", "disk", "live"] = "auto"
    """Compute once and keep in memory or on disk, or run the teacher on each batch (live);
    auto = memory where the signals fit under the limit, else live."""
    limit_mb: int = 2048
    """Largest size of the signals kept in memory under auto (MB)."""
    dtype: Literal["float16", "float32"] = "float32"
    """Precision of the stored signals; losses are computed in float32 either way."""


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
    """Knowledge types, each kind[/matching]; the agent's action has one number for each."""
    temperature: float = 4.0
    """Temperature T of response; the loss is T^2 KL(teacher || student)."""
    normalize_cls: bool = True
    """Bring [CLS] states to unit length before cls_hidden compares them (Patient KD)."""
    attention_loss: Literal["mse", "kl"] = "mse"
    """How attention compares two attention maps."""
    relation_heads: int | None = None
    """Heads R of query_relation, key_relation and value_relation; null = the teacher's heads."""
    balance: Literal["ema", "none"] = "ema"
    """ema: divide each loss by its running size, so that all are of order 1; none: leave it."""
    ema_decay: float = 0.98
    """Decay of the running size per update."""
    max_gain: float = 100.0
    """balance ema multiplies no loss by more than this: a loss near 0, where the student matches
    the teacher already, is left small."""
    weights: dict[str, float] = field(default_factory=dict)
    """Static weight of a knowledge type by its name, on top of the balance; missing = 1."""


@dataclass
class OptimConfig:
    """The student's optimiser: AdamW, linear warm-up, then linear decay to zero."""

    epochs: float = 3.0
    """Passes over the training rows: the step budget."""
    max_updates: int | None = None
    """The step budget in optimiser updates; overrides epochs."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
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
    objective: Literal["cross_entropy", "calibrated", "margin"] = "cross_entropy"
    """What a reward is the drop of, on the reward split."""
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
class EpisodesConfig:
    """The search: episodes in which the agent learns, before the final student."""

    count: int = 2
    """Episodes; each costs share x the step budget, and measuring after each decision."""
    share: float = 1.0
    """Length of an episode as a share of the step budget."""
    final: Literal["sample", "mode"] = "sample"
    """The frozen policy draws from its distribution, or takes the most likely action."""


@dataclass
class A2CConfig:
    """Stable-Baselines3's A2C."""

    observation: Literal["dict", "flat"] = "flat"
    """Give the policy the parts of the observation by name, or as one vector."""
    learning_rate: float = 6e-3
    """Learning rate."""
    n_steps: int = 8
    """Decisions between two updates of the policy."""
    gamma: float = 0.9
    """Discount per decision."""
    gae_lambda: float = 0.95
    """Trade-off of bias and variance in the advantage."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Clip the policy's gradient to this norm."""
    normalize_advantage: bool = True
    """Bring the advantages of an update to mean 0 and deviation 1."""
    use_rms_prop: bool = False
    """RMSprop as in the A2C paper; false = Adam."""
    start: float = 0.85
    """Probability that a type is on (soft: its mean weight) before anything is learned."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden widths of actor and critic."""


@dataclass
class PPOConfig:
    """Stable-Baselines3's PPO."""

    observation: Literal["dict", "flat"] = "flat"
    """Give the policy the parts of the observation by name, or as one vector."""
    learning_rate: float = 2e-3
    """Learning rate."""
    n_steps: int = 16
    """Decisions between two updates of the policy."""
    batch_size: int = 16
    """Decisions of one minibatch."""
    n_epochs: int = 6
    """Passes over the collected decisions per update."""
    gamma: float = 0.9
    """Discount per decision."""
    gae_lambda: float = 0.95
    """Trade-off of bias and variance in the advantage."""
    clip_range: float = 0.2
    """Clipping of the probability ratio."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Clip the policy's gradient to this norm."""
    normalize_advantage: bool = True
    """Bring the advantages of a minibatch to mean 0 and deviation 1."""
    start: float = 0.85
    """Probability that a type is on (soft: its mean weight) before anything is learned."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden widths of actor and critic."""


@dataclass
class StaticConfig:
    """One mask held for the whole run."""

    mask: list[str] = field(default_factory=lambda: ["all"])
    """all, or the knowledge types that are on."""


@dataclass
class RandomConfig:
    """random_hard and random_soft: a new draw at each decision."""

    probability: float = 0.5
    """random_hard: probability that a type is on."""


@dataclass
class AnnealedConfig:
    """Teacher signals fade while the label loss grows (Annealing-KD)."""

    start: float = 1.0
    """Weight of the teacher's types at the start; it falls linearly to 0."""


@dataclass
class RunConfig:
    """ksel: distil a teacher into a small student while an agent selects the teacher's signals."""

    task: str = "qnli"
    """cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli, or custom (see --custom)."""
    agent: str = "a2c"
    """Who chooses the mask: a2c, ppo, static, random_hard, random_soft, annealed, round_robin."""
    data: str | None = None
    """Folder with the task's train and dev files (parquet, csv, tsv, jsonl), or with a folder
    glue/TASK; hub = the Hugging Face hub or its cache; builtin = the generated corpus;
    null = the hub, then the built-in corpus, said aloud."""
    teacher: str | None = None
    """Folder or hub name of a Hugging Face encoder, with or without a head for the task;
    embedded = all-MiniLM-L6-v2 from the extra of that name; tiny = a small BERT trained on the
    spot; null = all-MiniLM-L6-v2 from the hub, then embedded, then tiny, said aloud."""
    seed: int = 0
    """Seed of the splits, the student's head, the batches, and the agent."""
    out: str = "runs"
    """Folder in which the run's own folder is made."""
    name: str | None = None
    """Name of the run's folder; null = TASK-AGENT-sSEED-TIME."""
    store: str | None = None
    """Folder for fine-tuned teachers and cached signals; null = ~/.cache/ksel (KSEL_STORE)."""
    device: str = "auto"
    """auto, cpu, or cuda."""
    threads: int = 0
    """Threads of torch on the CPU; 0 = one per core. Part of what makes a replay exact."""
    references: list[str] = field(default_factory=lambda: ["finetune", "all"])
    """Students distilled beside the selected one, with the same start, batches and budget:
    finetune (label only), all, or the name of one knowledge type."""
    evaluations: int = 4
    """Measurements of the dev metrics on the way of the final and reference students."""
    custom: CustomTaskConfig = field(default_factory=CustomTaskConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    signals: SignalsConfig = field(default_factory=SignalsConfig)
    knowledge: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    static: StaticConfig = field(default_factory=StaticConfig)
    random: RandomConfig = field(default_factory=RandomConfig)
    annealed: AnnealedConfig = field(default_factory=AnnealedConfig)
