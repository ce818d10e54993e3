"""The objectives that rewards are drops of: their values, and the differentiable losses behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from ksel.config import Objective
from ksel.errors import UsageError, unknown_name
from ksel.probe import Ridge, fit_ridge, ridge_rows
from ksel.tasks import Task

AUTO: Literal["auto"] = "auto"
CROSS_ENTROPY: Literal["cross_entropy"] = "cross_entropy"
PROBE: Literal["probe"] = "probe"
OBJECTIVES = (CROSS_ENTROPY, "calibrated", "margin", PROBE)
"""Names of the objectives; see :func:`objective_value`."""
UNSAID = (AUTO, CROSS_ENTROPY)
"""Values of ``--env.objective`` that ask for nothing special: what it is where nothing is said."""

LOG_TEMPERATURE = (-5.0, 5.0)
"""Natural logarithms of the smallest and largest temperature that ``calibrated`` may choose."""


@dataclass(frozen=True)
class Fit:
    """What an objective fits to the outputs of a whole split.

    ``calibrated``: ``slope * logits + intercept``; classes and spans have a slope alone, one over the
    temperature. ``probe``: a regression on the states.
    """

    slope: float = 1.0
    intercept: float = 0.0
    ridge: Ridge | None = None

    def to(self, device: torch.device) -> Fit:
        """The same on a device."""
        return self if self.ridge is None else replace(self, ridge=self.ridge.to(device))


def objective_value(
    name: str, logits: Tensor, labels: Tensor, task: Task, margin_width: float
) -> float:
    """The number whose drop is a reward; lower is better; nan for logits that are not all finite.

    For spans start and end count alike: each is a choice among the real tokens of its window.

    * ``cross_entropy``: mean cross-entropy (nats); for regression the mean squared error.
    * ``calibrated``: mean cross-entropy at the temperature that makes it least; for regression the
      mean squared error after the best affine fit. Both ignore over- and under-confidence.
    * ``margin``: mean ``sigmoid(-(logit of the label - largest other logit) / margin_width)``, a
      smooth share of errors. Not for regression.
    * ``probe``: mean squared error of a ridge regression from the student's [CLS] states of its last
      layer to the label (one-hot) or score, each row predicted by all others, see :mod:`ksel.probe`. It
      does not look at the head. Not for spans.

    Args:
        name: one of :data:`OBJECTIVES`.
        logits: [N, C], [N, 1] for regression, or [N, L, 2] for spans, padded with -inf; for ``probe``
            the states [N, h].
        labels: [N] int64 class ids or float scores, or [N, 2] int64 tokens.
        task: decides between classes, scores and spans.
        margin_width: width of the smooth step of ``margin`` (logits).

    Raises:
        UsageError: unknown name, ``margin`` for regression, a width that is not positive.
    """
    return value_and_fit(name, logits, labels, task, margin_width)[0]


def value_and_fit(
    name: str, logits: Tensor, labels: Tensor, task: Task, margin_width: float
) -> tuple[float, Fit | None]:
    """An objective and what it was fitted with; None where a logit is not finite.

    Arguments and errors as of :func:`objective_value`.
    """
    check_objective(name, task)
    if not _usable(logits, task):
        return math.nan, None
    logits = logits.double()
    fit = fit_objective(name, logits, labels, task)
    if fit.ridge is not None:
        return float(fit.ridge.rows.mean()), fit
    return float(objective_loss(name, logits, labels, task, margin_width, fit)), fit


def reads_states(name: str) -> bool:
    """True if the objective looks at the student's last [CLS] states in place of its logits."""
    return name == PROBE


def _targets(labels: Tensor, task: Task) -> Tensor:
    """What a probe predicts: scores [N, 1], or classes one-hot [N, C], in float64."""
    if task.is_regression:
        return labels.double()[:, None]
    return F.one_hot(labels, task.num_outputs).double()


def _log_temperature(logits: Tensor, labels: Tensor) -> float:
    """Logarithm of the temperature at which the cross-entropy of logits [N, C] is least."""

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits * np.exp(-log_temperature), labels))

    # convex in 1/T, so it has one minimum in log T as well
    fit = minimize_scalar(loss, bounds=LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-6})
    return min((float(fit.x), *LOG_TEMPERATURE), key=loss)


def check_objective(name: str, task: Task, option: str = "--env.objective") -> None:
    """Refuse an objective that the task has none of; ``option`` is where it was given.

    Raises:
        UsageError: unknown name, ``margin`` for regression, ``probe`` for spans.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES, option)
    if name == "margin" and task.is_regression:
        raise UsageError(
            f"{option} margin: task {task.name} has scores, not classes; use cross_entropy "
            f"(mean squared error) or calibrated (after the best affine fit)."
        )
    if name == PROBE and task.is_span:
        raise UsageError(
            f"{option} probe: task {task.name} asks for spans, and a probe reads one state of "
            f"each text; use cross_entropy or calibrated."
        )


def of_heats(name: str, task: Task) -> str:
    """The objective that heats compare: what ``auto`` stands for, or the one that is named."""
    if name != AUTO:
        return name
    return "calibrated" if task.is_span else PROBE


def of_rewards(name: Objective) -> Objective:
    """The objective of an environment: ``auto`` is ``cross_entropy`` where no agent has a say."""
    return CROSS_ENTROPY if name == AUTO else name


def fit_objective(name: str, logits: Tensor, labels: Tensor, task: Task) -> Fit:
    """The fit at which ``calibrated`` is least, or the probe; other objectives fit nothing.

    Arguments as of :func:`objective_value`; the logits must be finite (but for padding).
    """
    if name == PROBE:
        return Fit(ridge=fit_ridge(logits, _targets(labels, task)))
    if name != "calibrated":
        return Fit()
    logits = logits.double()
    if task.is_regression:
        x, y = logits[:, 0], labels.double()
        x_mean, y_mean = x.mean(), y.mean()
        spread = (x - x_mean).square().mean()
        slope = ((x - x_mean) * (y - y_mean)).mean() / spread if spread > 0 else spread * 0.0
        return Fit(float(slope), float(y_mean - slope * x_mean))
    return Fit(float(np.exp(-_log_temperature(*_choices(logits, labels, task)))))


def objective_loss(
    name: str, logits: Tensor, labels: Tensor, task: Task, margin_width: float, fit: Fit
) -> Tensor:
    """The objective of a batch as a scalar that can be differentiated.

    The derivative of ``calibrated`` with its fit held still is that of :func:`objective_value`:
    at the best fit the derivative with respect to the fit is 0. ``probe`` is here what its regression
    minimises (:func:`ksel.probe.ridge_rows`), in place of the errors of rows that were left out.

    Args:
        name, logits, labels, task, margin_width: as of :func:`objective_value`.
        fit: of a whole split, see :func:`fit_objective`.

    Raises:
        UsageError: a width that is not positive.
        ValueError: ``probe`` without a fit.
    """
    return _losses(name, logits, labels, task, margin_width, fit, "mean")


def objective_rows(
    name: str, logits: Tensor, labels: Tensor, task: Task, margin_width: float
) -> Tensor:
    """The objective row by row, for paired comparisons; its mean is :func:`objective_value`.

    ``calibrated`` is fitted to all rows together. The two choices of a span count half each.

    Arguments as of :func:`objective_value`.

    Returns:
        [N] float64; nan everywhere where a logit is not finite (but for the padding of spans).

    Raises:
        UsageError: as :func:`objective_value`.
    """
    check_objective(name, task)
    if not _usable(logits, task):
        return torch.full((len(logits),), math.nan, dtype=torch.float64)
    logits = logits.double()
    if name == PROBE:
        return fit_ridge(logits, _targets(labels, task)).rows
    fit = fit_objective(name, logits, labels, task)
    return (
        _losses(name, logits, labels, task, margin_width, fit, "none").view(len(logits), -1).mean(1)
    )


def _usable(logits: Tensor, task: Task) -> bool:
    padded = logits == -torch.inf if task.is_span else torch.zeros_like(logits, dtype=torch.bool)
    return bool((torch.isfinite(logits) | padded).all())


def _losses(
    name: str,
    logits: Tensor,
    labels: Tensor,
    task: Task,
    margin_width: float,
    fit: Fit,
    reduction: str,
) -> Tensor:
    if name == PROBE:
        if fit.ridge is None:
            raise ValueError("the probe has to be fitted to a split first")
        errors = ridge_rows(logits, _targets(labels, task), fit.ridge)
        return errors.mean() if reduction == "mean" else errors
    if name == "calibrated":
        logits = logits * fit.slope + fit.intercept
    if task.is_regression:
        return F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction=reduction)
    logits, labels = _choices(logits, labels, task)
    if name != "margin":
        return F.cross_entropy(logits, labels, reduction=reduction)
    if margin_width <= 0:
        raise UsageError(f"--env.margin_width: {margin_width}; give a width above 0 (logits).")
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    values = torch.sigmoid((others - own) / margin_width)
    return values.mean() if reduction == "mean" else values


def _choices(logits: Tensor, labels: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Spans as choices among tokens: start and end one after the other."""
    if not task.is_span:
        return logits, labels
    return logits.transpose(1, 2).flatten(0, 1), labels.flatten()
