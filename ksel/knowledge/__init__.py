"""What a student can learn from a teacher: one small file per family of losses."""

from ksel.knowledge.base import KnowledgeType, mean_loss, units
from ksel.knowledge.pool import KINDS, KnowledgePool, build_pool, projection_key

__all__ = [
    "KINDS",
    "KnowledgePool",
    "KnowledgeType",
    "build_pool",
    "mean_loss",
    "projection_key",
    "units",
]
