"""Students, teachers and batches with random weights and tokens: weights do not matter for time."""

from __future__ import annotations

import numpy as np
import torch
from transformers import BertConfig

from ksel.config import KnowledgeConfig, OptimConfig
from ksel.credit import Credit
from ksel.data import Split
from ksel.distiller import Distiller
from ksel.knowledge import KINDS, build_pool
from ksel.ledger import Ledger
from ksel.models import Tap, label_settings, new_model
from ksel.observing import Watched
from ksel.parts import DistillerParts
from ksel.search_config import CreditConfig, credit_sizes
from ksel.signals import LiveTeacher
from ksel.stages import build_stages
from ksel.tasks import get_task
from ksel.types import Shape, TeacherView

TASK = get_task("qnli")
VOCABULARY = 30522


def random_split(rows: int, length: int, seed: int) -> Split:
    """Rows of exactly ``length`` random tokens."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1000, VOCABULARY, length) for _ in range(rows)]
    return Split(
        input_ids=ids,
        token_type_ids=[np.zeros(length, dtype=np.int64) for _ in ids],
        labels=torch.from_numpy(rng.integers(0, 2, rows)),
        lengths=np.full(rows, length),
        pad_token_id=0,
    )


def many_types(count: int) -> list[str]:
    """``count`` different knowledge types: each kind once, then other layers."""
    plain = [name for name, kind in KINDS.items() if kind.lowest_layer is None]
    layered = [name for name, kind in KINDS.items() if kind.lowest_layer is not None]
    names = ["label", "response", "hidden/skip", "value_relation/skip", "cls_hidden/skip"]
    names += [name for name in plain if name not in names]
    names += [f"{kind}/{m}" for m in ("skip", "last", "first") for kind in layered]
    return list(dict.fromkeys(names))[:count]


def model(shape: Shape, length: int, device: str) -> torch.nn.Module:
    """A BERT with random weights."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=max(512, length),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **label_settings(TASK),
    )
    return new_model(config, TASK).to(device)


def random_distiller(
    student: Shape,
    teacher: Shape,
    types: list[str],
    *,
    length: int,
    batch: int,
    device: str = "cpu",
    credit: CreditConfig | None = None,
) -> Distiller:
    """A distiller over random rows, whose teacher runs on each batch."""
    torch.manual_seed(0)
    train, reward = random_split(4 * batch, length, 0), random_split(2 * batch, length, 1)
    settings = KnowledgeConfig(pool=types)
    pool = build_pool(settings, task=TASK, student=student, teachers=[TeacherView(teacher)], seed=0)
    ledger = Ledger()
    source = LiveTeacher(model(teacher, length, device), ledger)
    config = credit or CreditConfig()
    sizes = credit_sizes(config, batch)

    def make_credit(tap: Tap) -> Credit:
        return Credit(tap, pool, reward, TASK, "cross_entropy", 1.0, config, sizes, 1, ledger)

    parts = DistillerParts(
        student=model(student, length, device),
        pool=pool,
        sources=(source,),
        train=train,
        batch_size=batch,
        bucket=1,
        optim=OptimConfig(grad_norm_every=0),
        knowledge=settings,
        stages=build_stages([], pool.names, 1e-4),
        updates=100_000,
        watched=Watched(0.0, None, None),
        dropout=0.0,
        seed=0,
        ledger=ledger,
        make_credit=make_credit,
    )
    return Distiller(parts)
