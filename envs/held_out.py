"""The student on the reward split: what an objective is made of, its value, and its drops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ksel.distiller import Distiller
from ksel.evaluation import predict_logits, predict_states, score_split
from ksel.objectives import objective_rows, reads_states, value_and_fit
from ksel.records import DivergedError
from ksel.setup import Setup


class HeldOut:
    """Measures a student on the reward split, and remembers what the objective was.

    Args:
        setup: the reward split, the task, and ``env.objective``.
        distiller: of the student; with credit, the objective's fit goes to it.
        logits: gives the student's logits on the split; None = from forward passes of the student.

    Attributes:
        value: the objective when it was last measured; nan = never in this episode.
        initial: at the episode's start.
        at: the update after which it was measured last; -1 = never.
    """

    def __init__(
        self, setup: Setup, distiller: Distiller, logits: Callable[[], Tensor] | None = None
    ) -> None:
        self.setup, self.distiller = setup, distiller
        self.settings = setup.config.env
        self.logits = logits or (lambda: self._outputs(predict_logits))
        self.forget()

    def forget(self) -> None:
        """A new episode: nothing is known."""
        self.value = self.initial = math.nan
        self.at = -1
        self._seen: Tensor | None = None

    def begin(self) -> None:
        """Measure the episode's start."""
        self.value = self.initial = self.objective()
        self.at = 0

    def drop(self, update: int) -> float:
        """The true drop of the objective since it was measured last.

        Args:
            update: updates done by now.

        Raises:
            DivergedError: the objective is not finite.
        """
        before, self.value = self.value, self.objective()
        self.at = update
        if not math.isfinite(before - self.value):
            raise DivergedError(
                f"the {self.settings.objective} objective on the reward split is {self.value}"
            )
        return before - self.value

    def info(self) -> dict[str, float]:
        """The objective for ``info``; empty where it is not known."""
        return {"objective": self.value} if math.isfinite(self.value) else {}

    def objective(self) -> float:
        """The objective as it is now."""
        name, task = self.settings.objective, self.setup.task
        outputs = self._outputs_of(name)
        self._seen = None if reads_states(name) else outputs
        value, fit = value_and_fit(name, outputs, self._labels, task, self.settings.margin_width)
        if self.distiller.credit is not None and fit is not None and math.isfinite(value):
            self.distiller.credit.state.fit = fit.to(self.distiller.device)
        return value

    def rows(self, objective: str) -> np.ndarray:
        """An objective as it is now, row by row [R]; nan where the student diverged."""
        outputs, width = self._outputs_of(objective), self.settings.margin_width
        return objective_rows(objective, outputs, self._labels, self.setup.task, width).numpy()

    def metric(self) -> float:
        """The headline metric, of the outputs that the objective was last made of."""
        setup = self.setup
        logits = self.logits() if self._seen is None else self._seen
        metrics = score_split(setup.task, logits, setup.reward, setup.config.span)
        return metrics[setup.task.metrics[0]]

    @property
    def _labels(self) -> Tensor:
        labels = self.setup.reward.labels
        assert labels is not None
        return labels

    def _outputs_of(self, objective: str) -> Tensor:
        """What an objective is made of: the student's logits, or its states."""
        return self._outputs(predict_states) if reads_states(objective) else self.logits()

    def _outputs(self, predict: Callable[..., Tensor]) -> Tensor:
        split = self.setup.reward
        with self.distiller.ledger.time("held_out", len(split)):
            return predict(
                self.distiller.student,
                split,
                batch_size=self.setup.config.batching.eval_size,
                device=self.distiller.device,
            )
