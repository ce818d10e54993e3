"""What a distiller is built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from ksel.config import KnowledgeConfig, OptimConfig
from ksel.credit import Credit
from ksel.data import Split
from ksel.knowledge import KnowledgePool
from ksel.ledger import Ledger
from ksel.models import Tap
from ksel.observing import Watched
from ksel.signals import TeacherSource
from ksel.stages import Stage


@dataclass(frozen=True)
class DistillerParts:
    """What a distiller is built from.

    Attributes:
        student: with its initial weights, on its device.
        pool: the knowledge pool; its projections are trained with the student.
        sources: each teacher's signals for the rows of ``train``.
        train: training rows.
        batch_size, bucket: see :class:`ksel.data.BatchOrder`.
        optim, knowledge: settings.
        stages: the stages of the run, see :func:`ksel.stages.build_stages`.
        updates: the step budget of a full distillation.
        watched: what is observed beside the losses.
        dropout: the student's dropout probability.
        seed: seed of the student's own dropout generator.
        ledger: where the work is counted.
        make_credit: given the student's tap, makes what measures its credit; None = not measured.
    """

    student: PreTrainedModel
    pool: KnowledgePool
    sources: tuple[TeacherSource, ...]
    train: Split
    batch_size: int
    bucket: int
    optim: OptimConfig
    knowledge: KnowledgeConfig
    stages: tuple[Stage, ...]
    updates: int
    watched: Watched
    dropout: float
    seed: int
    ledger: Ledger = field(default_factory=Ledger)
    make_credit: Callable[[Tap], Credit] | None = None
