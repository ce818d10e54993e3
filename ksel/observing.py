"""What an update shows of student and teacher beside the losses: entropy, agreement, [CLS] states."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ksel.records import Update
from ksel.types import Batch, Needs, Signals


@dataclass(frozen=True)
class Watched:
    """What is watched, and the signals that takes.

    Attributes:
        score_span: largest minus smallest score of a regression task; 0 for classes.
        student_layer, teacher_layer: layer whose mean [CLS] state is observed; None = not observed.
    """

    score_span: float
    student_layer: int | None
    teacher_layer: int | None

    @property
    def student(self) -> Needs:
        """Signals asked of the student."""
        return _needs(self.student_layer)

    @property
    def teacher(self) -> Needs:
        """Signals asked of the teacher."""
        return _needs(self.teacher_layer)


def _needs(layer: int | None) -> Needs:
    return Needs(logits=True, cls=frozenset(() if layer is None else (layer,)))


def _answers(logits: Tensor, batch: Batch) -> Tensor:
    """[b, classes] as they are; spans [b, n, 2] as [2 b, n], minus infinity where there is no token."""
    if logits.ndim == 2:
        return logits
    padded = ~batch.attention_mask.bool()[..., None]
    return logits.masked_fill(padded, -math.inf).movedim(-1, 0).flatten(0, 1)


@dataclass
class Observed:
    """Sums over the examples of a batch, gathered micro-batch by micro-batch.

    Attributes:
        watched: what to look at.
        examples: examples so far.
        sums: name of a field of :class:`ksel.records.Update` -> sum.
    """

    watched: Watched
    examples: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, student: Signals, teacher: Signals, batch: Batch) -> None:
        """Take in a micro-batch; teacher signals may be absent.

        Spans (logits [b, n, 2]) count the distributions of first and last token, over the real
        tokens, half each.
        """
        assert student.logits is not None
        logits = _answers(student.logits.detach(), batch)
        self.examples += len(batch)
        parts = len(logits) / len(batch)
        span = self.watched.score_span
        if not span:
            log_p = logits.log_softmax(-1)
            terms = (log_p.exp() * log_p).nan_to_num(0.0)  # 0 x -inf where there is no token
            largest = logits.isfinite().sum(-1).clamp_min(2).log()
            self._add("entropy", -(terms.sum(-1) / largest).sum() / parts)
        if teacher.logits is not None:
            taught = _answers(teacher.logits, batch)
            if span:
                alike = 1.0 - (logits - taught).abs() / span
            else:
                alike = (logits.argmax(-1) == taught.argmax(-1)).float()
            self._add("agreement", alike.sum() / parts)
        for name, signals, layer in (
            ("student_cls", student, self.watched.student_layer),
            ("teacher_cls", teacher, self.watched.teacher_layer),
        ):
            if layer is not None and layer in signals.cls:
                self._add(name, signals.cls[layer].detach().float().sum(0))

    def write(self, record: Update) -> None:
        """Put the means into an update's record."""
        means = {name: total / self.examples for name, total in self.sums.items()}
        if "entropy" in means:
            record.entropy = means["entropy"].item()
        if "agreement" in means:
            record.agreement = max(0.0, means["agreement"].item())
        for name in ("student_cls", "teacher_cls"):
            if name in means:
                setattr(record, name, means[name].cpu().numpy())

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
