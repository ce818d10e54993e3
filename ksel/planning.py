"""What the settings ask for, checked before any weights are loaded or any teacher is trained."""

from __future__ import annotations

from ksel.config import RunConfig
from ksel.data import updates_per_epoch
from ksel.errors import UsageError
from ksel.knowledge import KnowledgePool, build_pool
from ksel.machine import pick_device
from ksel.search_config import credit_sizes
from ksel.stacked_memory import GIB, free_bytes
from ksel.stages import stage_ends, stage_shares
from ksel.students import StudentPlan, plan_student
from ksel.tasks import Task
from ksel.teachers import Outline
from ksel.types import Shape, TeacherView


def plan_models(
    config: RunConfig, task: Task, outline: Outline, views: list[TeacherView]
) -> tuple[StudentPlan, KnowledgePool]:
    """Student and pool as the settings ask, checked before any weights are loaded.

    Args:
        config: the run's settings.
        task: its task.
        outline: of the first teacher.
        views: of all teachers.

    Raises:
        UsageError: names the option and what does not fit.
    """
    if task.is_span and not all(view.same_tokens for view in views):
        raise UsageError(
            f"--teachers: task {task.name} compares windows of tokens, so its teachers need one "
            f"tokenizer. Leave out those with another."
        )
    plan = plan_student(config.student, outline.shape, has_pretrained=outline.has_pretrained)
    pool = build_pool(
        config.knowledge,
        task=task,
        student=plan.shape,
        teachers=views,
        seed=config.seed,
    )
    taught = {type.source for type in pool if type.teacher}
    for number in range(1, len(views)):
        if number not in taught:
            raise UsageError(
                f"--teachers: no knowledge type takes a signal of teacher {number + 1}. Add one, "
                f"such as response@{number + 1}, to --knowledge.pool, or leave that teacher out."
            )
    coupled = [type.spec for type in pool if type.couples]
    if coupled and config.batching.size < 2:
        raise UsageError(
            f"--batching.size 1: {', '.join(coupled)} compares the examples of a batch, and there "
            f"is nothing to compare. Raise it, or take these out of --knowledge.pool."
        )
    if coupled and config.optim.accumulate > 1:
        raise UsageError(
            f"--optim.accumulate {config.optim.accumulate}: {', '.join(coupled)} compares the "
            f"examples of a batch, which micro-batches would change. Set it to 1, or take these "
            f"out of --knowledge.pool."
        )
    return plan, pool


def check_stage_budgets(config: RunConfig, updates: int) -> None:
    """Refuse a budget, of the run or of a search episode, that leaves a stage without an update.

    Raises:
        UsageError: names the option.
    """
    shares = stage_shares(config.stages)
    stage_ends(shares, updates)
    episode = episode_updates(config, updates)
    try:
        stage_ends(shares, episode)
    except UsageError as error:
        raise UsageError(
            f"--episodes.share {config.episodes.share:g}: a search episode has {episode} updates, "
            f"too few for {len(shares)} stages. Raise it, or the step budget."
        ) from error


def episode_updates(config: RunConfig, updates: int) -> int:
    """Optimiser updates of one search episode, ``updates`` being those of the run."""
    return max(1, round(updates * config.episodes.share))


def check_credit(config: RunConfig, pool: KnowledgePool, rows: int) -> None:
    """Refuse settings of credit that this pool and this reward split do not allow.

    Raises:
        UsageError: names the option.
    """
    settings = config.credit
    sizes = credit_sizes(settings, config.batching.size)
    if sizes.rows > rows:
        half = f" (half of --batching.size {config.batching.size})" if settings.rows is None else ""
        raise UsageError(
            f"--credit.rows: a held-out gradient of {sizes.rows} rows{half} is more than the reward "
            f"split has ({rows}). Give fewer, or raise --rows.reward."
        )
    if settings.embeddings and config.optim.embeddings != "train":
        raise UsageError(
            f"--credit.embeddings: the embeddings are {config.optim.embeddings}, so they have no "
            f"part in the direction. Leave it out, or set --optim.embeddings train."
        )
    clips = settings.clip and config.optim.max_grad_norm > 0
    if config.knowledge.balance == "gradient" and not clips:
        option = "--optim.max_grad_norm 0" if settings.clip else "--credit.clip false"
        raise UsageError(
            f"--knowledge.balance gradient: credit (--env.reward amortized) has to know the gradient "
            f"norms of types that were never selected, and {option} keeps it from measuring them. "
            f"Set --credit.clip true and --optim.max_grad_norm above 0, or --knowledge.balance ema, "
            f"or --env.reward measured."
        )
    coupled = [type.spec for type in pool if type.couples]
    if coupled and settings.batch == 1:
        raise UsageError(
            f"--credit.batch 1: {', '.join(coupled)} compares the examples of a batch, and there is "
            f"nothing to compare. Give 2 or more, or 0 for the whole batch."
        )


def check_students_memory(config: RunConfig, student: Shape, words: int) -> None:
    """Refuse more students than the memory holds, before any teacher is trained.

    A lower bound: weights, and AdamW's two moments of those that are trained, of the encoder alone.
    What a step takes beside them is known once the student stands: ``stacked_memory.chunk_size``.

    Args:
        config: the run's settings.
        student: shape of the student.
        words: size of its vocabulary.

    Raises:
        UsageError: names the option, what is needed and what is free.
    """
    free = free_bytes(pick_device(config.device))
    if config.students == 1 or free is None:
        return
    embedding = words * student.width
    layer = student.width * (4 * student.width + 2 * student.feed_forward)
    copies = {"train": 3, "lazy": 3, "frozen": 0}[config.optim.embeddings]
    needed = 4 * config.students * (3 * student.layers * layer + copies * embedding)
    if needed > free:
        raise UsageError(
            f"--students {config.students}: their weights and optimiser states alone take about "
            f"{needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB of memory are free. Lower --students, "
            f"--student.layers or --student.width."
        )


def step_budget(config: RunConfig, rows: int) -> int:
    """Optimiser updates of one full distillation.

    Raises:
        UsageError: the settings leave no update.
    """
    if config.optim.max_updates is not None:
        return config.optim.max_updates
    updates = int(config.optim.epochs * updates_per_epoch(rows, config.batching.size))
    if updates < 1:
        raise UsageError(
            f"--optim.epochs: {config.optim.epochs} of {rows} rows make no whole update. "
            f"Raise it, or set --optim.max_updates."
        )
    return updates
