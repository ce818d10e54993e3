"""Settings of checkpoints; part of :mod:`ksel.config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CheckpointConfig:
    """Checkpoints, from which --resume RUN goes on with an interrupted run."""

    every: int = 50
    """Decisions between two checkpoints within a stage of the run; 0 = no checkpoints at all."""
    share: float = 0.01
    """Largest share of the run's time that writing them may take: where they cost more, they come
    less often; 1 = never put off."""
