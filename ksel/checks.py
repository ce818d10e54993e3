"""Ranges of the numeric settings and settings without use, checked before any work begins."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import reduce

from ksel.config import EnvConfig, RunConfig
from ksel.errors import UsageError
from ksel.objectives import UNSAID
from ksel.tasks import get_task

FEWEST_OF_A_PROBE = 16
"""Rows of the reward split from which on a regression to the student's states says something."""

# option, lowest allowed, highest allowed, whether the lowest itself is excluded
RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("seed", 0, 2**31 - 1, False),
    ("threads", 0, 4096, False),
    ("evaluations", 0, 10_000, False),
    ("rows.train", 1, math.inf, False),
    ("rows.reward", 1, math.inf, False),
    ("rows.dev", 1, math.inf, False),
    ("rows.dev_on_the_way", 1, math.inf, False),
    ("batching.size", 1, math.inf, False),
    ("batching.eval_size", 1, math.inf, False),
    ("batching.max_length", 3, 100_000, False),
    ("batching.bucket", 1, math.inf, False),
    ("fine_tune.epochs", 0, math.inf, True),
    ("fine_tune.learning_rate", 0, math.inf, True),
    ("fine_tune.tiny_epochs", 0, math.inf, True),
    ("fine_tune.tiny_learning_rate", 0, math.inf, True),
    ("knowledge.balance_every", 1, math.inf, False),
    ("knowledge.max_gain", 0, math.inf, True),
    ("fine_tune.batch_size", 1, math.inf, False),
    ("fine_tune.warmup", 0, 1, False),
    ("fine_tune.weight_decay", 0, math.inf, False),
    ("fine_tune.max_updates", 1, math.inf, False),
    ("fine_tune.seed", 0, 2**31 - 1, False),
    ("signals.budget", 1, math.inf, False),
    ("optim.epochs", 0, math.inf, True),
    ("optim.max_updates", 1, math.inf, False),
    ("optim.learning_rate", 0, math.inf, True),
    ("optim.head_rate", 0, math.inf, True),
    ("optim.warmup", 0, 1, False),
    ("optim.weight_decay", 0, math.inf, False),
    ("optim.max_grad_norm", 0, math.inf, False),
    ("optim.accumulate", 1, math.inf, False),
    ("optim.grad_norm_every", 0, math.inf, False),
    ("env.phase_steps", 1, math.inf, False),
    ("env.window", 1, math.inf, False),
    ("students", 1, 4096, False),
    ("credit.rows", 1, math.inf, False),
    ("credit.every", 1, math.inf, False),
    ("credit.horizon", 1, math.inf, False),
    ("credit.batch", 0, math.inf, False),
    ("credit.interval", 1, math.inf, False),
    ("credit.window", 1, math.inf, False),
    ("credit.clip_every", 1, math.inf, False),
    ("branches.count", 2, 4096, False),
    ("branches.updates", 1, math.inf, False),
    ("branches.every", 1, math.inf, False),
    ("env.margin_width", 0, math.inf, True),
    ("env.cost_per_type", 0, math.inf, False),
    ("env.exploration", 0, math.inf, False),
    ("env.final_metric", 0, math.inf, False),
    ("best_static.candidates", 2, 100_000, False),
    ("best_static.eta", 2, math.inf, False),
    ("best_static.least", 1, math.inf, False),
    ("race.share", 0, 1, True),
    ("race.least", 1, math.inf, False),
    ("race.challengers", 1, math.inf, False),
    ("race.doubt", 0, math.inf, False),
    ("random.probability", 0, 1, False),
    ("annealed.start", 0, 1, False),
    ("episodes.count", 1, math.inf, False),
    ("episodes.share", 0, 1, True),
    ("dynamic.label", 0, 1, False),
    ("checkpoint.every", 0, math.inf, False),
    ("checkpoint.share", 0, 1, True),
    ("span.stride", 0, math.inf, False),
    ("span.max_question", 1, math.inf, False),
    ("span.max_answer", 1, math.inf, False),
    ("span.n_best", 1, math.inf, False),
    ("span.null_threshold", -math.inf, math.inf, False),
)


def check_config(config: RunConfig) -> None:
    """Refuse numbers out of range and choices that contradict each other.

    Raises:
        UsageError: names the option, the value and what is allowed.
    """
    if config.task != "custom":
        get_task(config.task)
    for option, lowest, highest, excluded in RANGES:
        value = _get(config, option)
        if value is None:
            continue
        number = float(value)  # type: ignore[arg-type]
        outside = not lowest <= number <= highest or (excluded and number == lowest)
        if outside or not math.isfinite(number):
            above = f"above {lowest:g}" if excluded else f"{lowest:g} or more"
            upper = "" if highest == math.inf else f", at most {highest:g}"
            raise UsageError(f"--{option}: {value} is out of range. Give a number {above}{upper}.")
    if config.device not in ("auto", "cpu") and not config.device.startswith("cuda"):
        raise UsageError(f"--device: '{config.device}' is not known. Give auto, cpu or cuda.")
    if not config.env.observe or len(set(config.env.observe)) != len(config.env.observe):
        raise UsageError(
            "--env.observe: name at least one part, each once: training, student_cls, teacher_cls."
        )
    if config.optim.accumulate > config.batching.size:
        raise UsageError(
            f"--optim.accumulate: {config.optim.accumulate} micro-batches out of "
            f"--batching.size {config.batching.size} examples. Lower it, or raise the size."
        )
    if config.env.objective == "probe" and config.rows.reward < FEWEST_OF_A_PROBE:
        raise UsageError(
            f"--rows.reward {config.rows.reward}: --env.objective probe fits a regression to the reward split. Give {FEWEST_OF_A_PROBE} rows or more, or choose another objective."
        )
    _refuse_unused(config)


# option, the option that decides whether it is used, the values under which it is
USED_WITH: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("env.margin_width", "env.objective", ("margin",)),
    ("signals.budget", "signals.source", ("auto", "memory", "disk")),
    ("env.window", "env.reward", ("auto", "amortized")),
    ("credit.clip_every", "credit.clip", (True,)),
    ("signals.dtype", "signals.source", ("auto", "memory", "disk")),
)


def _refuse_unused(config: RunConfig) -> None:
    """Refuse a setting that another one puts out of use."""
    _refuse_unused_spans(config)
    if config.teacher is not None and config.teachers:
        raise UsageError(
            "--teacher and --teachers: give one of them. Several teachers are --teachers A B C."
        )
    if len(config.teachers) == 1:
        raise UsageError(
            f"--teachers: one teacher is --teacher {config.teachers[0]}. Name several, or use that."
        )
    if not config.fine_tune.together and len(config.teachers) < 2:
        raise UsageError(
            "--fine_tune.together: not used with one teacher. Leave it out, or name several with "
            "--teachers A B C."
        )
    for option, decides, values in USED_WITH:
        chosen = _get(config, decides)
        if chosen not in values and _get(config, option) != _get(RunConfig(), option):
            raise UsageError(
                f"--{option}: not used with --{decides} {chosen}. Leave it out, or set "
                f"--{decides} to {' or '.join(map(str, values))}."
            )
    if config.checkpoint.every == 0 and _differs(config, "checkpoint.share"):
        raise UsageError(
            "--checkpoint.share: not used with --checkpoint.every 0, which writes no checkpoints. Leave "
            "it out, or raise that."
        )
    if config.evaluations == 0 and config.rows.dev_on_the_way != RunConfig().rows.dev_on_the_way:
        raise UsageError(
            "--rows.dev_on_the_way: not used with --evaluations 0. Leave it out, or raise that."
        )


FOR_LEARNERS = (
    "objective",
    "margin_width",
    "reward_scale",
    "cost_per_type",
    "exploration",
    "final_metric",
    "observe",
)
"""Settings of the environment that only an agent that learns makes use of."""


def check_unrewarded(config: RunConfig, *, observes: bool) -> None:
    """Refuse settings of rewards and observations for an agent that does not learn from them.

    Args:
        config: the run.
        observes: True if the agent's rule reads the observation.

    Raises:
        UsageError: names the option.
    """
    for name in FOR_LEARNERS:
        if name == "observe" and observes:
            continue
        if asks_for(config.env, name):
            origin = f" It may come from --method {config.method}." if config.method else ""
            raise UsageError(
                f"--env.{name}: not used with --agent {config.agent}, which does not learn: "
                f"nothing is rewarded or observed.{origin} Leave it out, or choose one that learns, "
                f"such as a2c."
            )


def asks_for(env: EnvConfig, name: str) -> bool:
    """True where a setting of the environment is not what it is when nothing is said."""
    value = getattr(env, name)
    return value not in UNSAID if name == "objective" else value != getattr(EnvConfig(), name)


def has_spans(config: RunConfig) -> bool:
    """True if the task asks for spans.

    Raises:
        UsageError: the task is unknown.
    """
    return _spans(config)[0]


def _spans(config: RunConfig) -> tuple[bool, bool]:
    """Whether the task asks for spans, and whether questions may have no answer."""
    if config.task == "custom":
        return config.custom.kind != "auto", config.custom.kind == "span_v2"
    task = get_task(config.task)
    return task.is_span, task.unanswerable


def _refuse_unused_spans(config: RunConfig) -> None:
    """Refuse settings of spans where the task has none."""
    spans, both = _spans(config)
    given = [f.name for f in fields(config.span) if _differs(config, f"span.{f.name}")]
    if given and not spans:
        raise UsageError(
            f"--span.{given[0]}: not used with --task {config.task}, which has no spans. Leave it "
            f"out, or choose squad or squad_v2."
        )
    if "null_threshold" in given and not both:
        raise UsageError(
            f"--span.null_threshold: not used with --task {config.task}, whose questions all have "
            f"an answer. Leave it out, or choose squad_v2."
        )


def _differs(config: RunConfig, option: str) -> bool:
    return _get(config, option) != _get(RunConfig(), option)


def _get(config: RunConfig, option: str) -> object:
    return reduce(getattr, option.split("."), config)
