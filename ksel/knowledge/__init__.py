"""What a student can learn from a teacher: one small file per family of losses."""

from ksel.knowledge.base import KnowledgeType, mean_loss, units
from ksel.knowledge.kinds import KINDS
from ksel.knowledge.pool import KnowledgePool, build_pool, projection_key, schedule_factor
from ksel.knowledge.specs import find_name, kind_of

__all__ = [
    "KINDS",
    "KnowledgePool",
    "KnowledgeType",
    "build_pool",
    "find_name",
    "kind_of",
    "mean_loss",
    "projection_key",
    "schedule_factor",
    "units",
]
