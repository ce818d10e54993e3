"""Credit: how much of the objective's next drop is owed to each knowledge type, for all masks at once.

To first order an update along the gradient of loss L_k lowers the objective J on the reward split by
``rate * <grad L_k, P grad J>``, P being AdamW's preconditioner. The inner products with all K gradients are
the derivatives of the K losses along one direction, ``P grad J``, which forward-mode differentiation
gives in one pass, however many types there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ksel.data import BatchOrder, Split
from ksel.knowledge import KnowledgePool, mean_loss
from ksel.ledger import Ledger
from ksel.models import Tap
from ksel.objectives import Fit, objective_loss, reads_states
from ksel.optim import RATE
from ksel.search_config import CreditConfig, CreditSizes
from ksel.tasks import Task
from ksel.types import Batch, Needs, Signals

STEP = 5e-4
"""Finite difference: length of the step over that of the weights."""
SKETCH = 50_000_000
"""Numbers of all types' gradients together that are kept to compare them (4 bytes each)."""

Teach = Callable[[Batch], list[Signals]]
"""The signals of each teacher that all types of the pool need."""


@dataclass
class CreditState:
    """What has been learned about a student's credit so far.

    Attributes:
        average: parameter name -> decaying sum of held-out gradients.
        count: decaying number of them; ``average / count`` is their mean.
        slopes: [K] derivative of each loss along the direction; nan = not known.
        losses: [K] the losses themselves, on the same rows.
        gram: [K, K] inner products of the losses' gradients; nan = not known.
        fit: of the ``calibrated`` and the ``probe`` objective.
    """

    average: dict[str, Tensor]
    count: float
    slopes: np.ndarray
    losses: np.ndarray
    gram: np.ndarray
    fit: Fit

    def copy(self) -> CreditState:
        """An independent copy."""
        return replace(
            self,
            average={name: tensor.clone() for name, tensor in self.average.items()},
            slopes=self.slopes.copy(),
            losses=self.losses.copy(),
            gram=self.gram.copy(),
        )


class Credit:
    """Measures credit for a student in training; never changes the student.

    Args:
        tap: on the student, in whatever precision it trains.
        pool: its knowledge pool.
        reward: the reward split.
        task: decides between classes, scores and spans.
        objective: name of the objective, see :mod:`ksel.objectives`.
        margin_width: of the ``margin`` objective.
        settings: how credit is measured.
        sizes: on how many rows, see :func:`ksel.search_config.credit_sizes`.
        bucket: batches of the reward split that are sorted by length together.
        ledger: where the work is counted.
        limit: norm to which gradients are clipped; 0 = they are not.

    Attributes:
        state: see :class:`CreditState`.
    """

    def __init__(
        self,
        tap: Tap,
        pool: KnowledgePool,
        reward: Split,
        task: Task,
        objective: str,
        margin_width: float,
        settings: CreditConfig,
        sizes: CreditSizes,
        bucket: int,
        ledger: Ledger,
        limit: float = 1.0,
    ) -> None:
        # in full precision whatever the student trains in: its differences are small
        self.tap = Tap(tap.model)
        self.pool, self.reward, self.task = pool, reward, task
        self.objective, self.margin_width = objective, margin_width
        self.settings, self.sizes = settings, sizes
        self.bucket, self.ledger = bucket, ledger
        self.clips = settings.clip and limit > 0
        self.decay = max(0.0, 1.0 - settings.every / settings.horizon)
        self.needs = Needs.union(type.student for type in pool)
        self.reset(0)

    @property
    def method(self) -> str:
        """``jvp`` or ``difference``: what ``auto`` stands for."""
        # Two plain forwards measure faster than one forward-mode pass without fused attention.
        return "difference" if self.settings.method == "auto" else self.settings.method

    def reset(self, data_seed: int) -> None:
        """Forget everything; ``data_seed`` decides the order of the held-out rows."""
        count = len(self.pool)
        named = self._named()
        unknown = np.full(count, math.nan)
        self.state = CreditState(
            {name: torch.zeros_like(p) for name, p in named.items()},
            0.0,
            unknown.copy(),
            unknown.copy(),
            np.full((count, count), math.nan),
            Fit(),
        )
        self.seed(data_seed)

    def seed(self, data_seed: int) -> None:
        """Set the order of the held-out rows alone."""
        rows = min(self.sizes.rows, len(self.reward))
        self.order = BatchOrder(self.reward.lengths, rows, self.bucket, data_seed)

    def _named(self) -> dict[str, Tensor]:
        """The student's parameters that take part, by name."""
        model = self.tap.model
        words = model.get_input_embeddings().weight
        return {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and (self.settings.embeddings or p is not words)
        }

    # ----------------------------------------------------------------- one update

    def measure(
        self, update: int, batch: Batch, teach: Teach, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take in the student as it is before an update.

        Args:
            update: number of the update, from 0.
            batch: the training batch of the update.
            teach: gives the teachers' signals for rows of it.
            optimizer: the student's AdamW, whose second moments precondition the direction.
        """
        settings, state = self.settings, self.state
        self.tap.model.eval()
        if update % settings.every == 0:
            self.add_held_out(update // settings.every)
        slopes_due = update % settings.interval == 0 or np.isnan(state.slopes).any()
        gram_due = self.clips and (update % settings.clip_every == 0 or np.isnan(state.gram).any())
        if not (slopes_due or gram_due):
            return
        part = few_rows(batch, self.sizes.batch)
        teachers = teach(part)
        if slopes_due:
            with self.ledger.time("credit", len(part)):
                direction = self.direction(optimizer)
                state.slopes, state.losses = self.derivatives(part, teachers, direction)
        if gram_due:
            with self.ledger.time("credit", len(part)):
                state.gram = self.gradient_products(part, teachers)

    def add_held_out(self, number: int) -> None:
        """Add the objective's gradient on a few rows of the reward split to the running average."""
        rows = self.order.rows(number)
        device = next(self.tap.model.parameters()).device
        batch = self.reward.batch(rows).to(device)
        named = self._named()
        with self.ledger.time("credit", len(batch)):
            loss = objective_loss(
                self.objective,
                self._outputs(batch),
                batch.labels,
                self.task,
                self.margin_width,
                self.state.fit,
            )
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, grad in zip(named, grads, strict=True):
                average = self.state.average[name].mul_(self.decay)
                if grad is not None:
                    average.add_(grad)
            self.state.count = self.state.count * self.decay + 1.0

    def _outputs(self, batch: Batch) -> Tensor:
        """What the objective is made of, with the graph behind it."""
        if reads_states(self.objective):
            last = int(self.tap.model.config.num_hidden_layers)
            return self.tap(batch, Needs(cls=frozenset((last,)))).cls[last]
        logits = self.tap(batch, Needs(logits=True)).logits
        assert logits is not None
        if self.task.is_span:
            logits = logits.masked_fill(~batch.attention_mask.bool()[..., None], -math.inf)
        return logits

    # ----------------------------------------------------------------- the direction

    def direction(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """P g by parameter name: g the mean held-out gradient, P the preconditioner.

        AdamW divides by the root of the second moment *after* the update that is looked at; the
        square of g stands for that update's own part in it, so that a parameter without a past
        moves as far as AdamW lets it move, and no further.
        """
        count = max(self.state.count, 1e-12)
        means = {name: total / count for name, total in self.state.average.items()}
        named = self._named()
        if self.settings.preconditioner == "none":
            return {name: g * _group_of(named[name], optimizer)[RATE] for name, g in means.items()}
        return {name: _adam(g, named[name], optimizer) for name, g in means.items()}

    def derivatives(
        self, batch: Batch, teachers: list[Signals], direction: dict[str, Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Derivative of each of the K losses along a direction, and the losses: [K], [K]."""
        named = {name: p.detach() for name, p in self._named().items()}

        def losses(weights: dict[str, Tensor]) -> Tensor:
            return self._losses(batch, teachers, weights)

        if self.method == "jvp":
            # fused attention has no forward-mode derivative
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                values, slopes = jvp(losses, (named,), (direction,))  # type: ignore[misc]
        else:
            values, slopes = _central_difference(losses, named, direction)
        return _numbers(slopes), _numbers(values)

    def gradient_products(self, batch: Batch, teachers: list[Signals]) -> np.ndarray:
        """[K, K] inner products of the gradients of the K losses, all parameters taken together.

        Where the gradients are large an evenly spaced part of them stands for the whole; the
        lengths (the diagonal) are exact.
        """
        parameters = [
            p
            for module in (self.tap.model, self.pool.projections)
            for p in module.parameters()
            if p.requires_grad
        ]
        losses = self._losses(batch, teachers, {})
        size = sum(p.numel() for p in parameters) * len(self.pool)
        stride = max(1, math.ceil(size / SKETCH))
        rows, squares = [], []
        for loss in losses:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            flat = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, grads, strict=True)
            ]
            squares.append(sum(g.double().square().sum() for g in flat))
            rows.append(torch.cat([g.flatten()[::stride] for g in flat]))
        sketch = torch.stack(rows)
        products = (sketch @ sketch.T).double()
        lengths = products.diagonal().clamp_min(1e-30).sqrt()
        cosines = products / lengths / lengths[:, None]
        true = torch.stack([torch.as_tensor(s) for s in squares]).sqrt()
        return _numbers(cosines * true * true[:, None])

    def gradient_norms(self) -> np.ndarray:
        """[K] norms of the losses' gradients when they were last compared; nan = not known."""
        return np.sqrt(self.state.gram.diagonal())

    def _losses(self, batch: Batch, teachers: list[Signals], weights: dict[str, Tensor]) -> Tensor:
        student = self.tap(batch, self.needs, weights)
        return torch.stack([mean_loss(t, student, teachers[t.source], batch) for t in self.pool])


def few_rows(batch: Batch, count: int) -> Batch:
    """Evenly spaced rows of a batch (it may be sorted by length); 0 or enough = all of it."""
    if count == 0 or count >= len(batch):
        return batch
    rows = torch.linspace(0, len(batch) - 1, count).round().long().to(batch.ids.device)
    part = batch.take(rows)
    return part.trim(int(part.attention_mask.sum(1).max()))


def _adam(g: Tensor, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    group = _group_of(parameter, optimizer)
    decay, state = group["betas"][1], optimizer.state[parameter]
    second = state["exp_avg_sq"] * decay + g.square() * (1.0 - decay)
    corrected = second / (1.0 - decay ** (state["step"] + 1.0))
    return g * group[RATE] / (corrected.sqrt() + group["eps"])


def _group_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    raise KeyError("the parameter is not in the optimiser")


def _central_difference(
    losses: Callable[[dict[str, Tensor]], Tensor],
    weights: dict[str, Tensor],
    direction: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """(values, derivatives) from the losses a little to both sides."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(torch.stack(_norms(direction)))
        scale = torch.linalg.vector_norm(torch.stack(_norms(weights)))
        step = STEP * scale / length.clamp_min(1e-30)
        sides = [
            losses({n: torch.addcmul(p, direction[n], sign * step) for n, p in weights.items()})
            for sign in (1.0, -1.0)
        ]
        return (sides[0] + sides[1]) / 2, (sides[0] - sides[1]) / (2 * step)


def _norms(tensors: dict[str, Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(list(tensors.values())))


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


# --------------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class Prediction:
    """What one update is predicted to do.

    Attributes:
        drop: predicted drop of the objective for the mask taken, f(a).
        credit: [K] the part owed to each type given the rest of the mask: f(a with k on) -
            f(a with k off) for bits, the partial derivative for weights.
    """

    drop: float
    credit: np.ndarray


def predict(
    slopes: np.ndarray,
    gram: np.ndarray | None,
    weight: np.ndarray,
    mask: np.ndarray,
    *,
    rate: float,
    limit: float,
    norm: float,
    soft: bool,
) -> Prediction:
    """Predict the drop for a mask, and what each type has a part in.

    With c_k = rate * weight_k * slope_k the drop is f(a) = s(a) sum_k a_k c_k, where s(a) is what
    clipping leaves of the gradient of mask a: min(1, limit / norm(a)). The norm of any mask comes
    from the inner products of the types' gradients; that of the mask taken is known.

    Args:
        slopes: [K] derivative of each loss along the direction.
        gram: [K, K] inner products of the losses' gradients; None = clipping is left out.
        weight: [K] what each loss is multiplied with where its type is on.
        mask: [K] bits or weights, as carried out.
        rate: learning rate.
        limit: norm to which gradients are clipped; 0 = they are not.
        norm: of the gradient of the mask taken; 0 or nan = not known.
        soft: True if the mask holds weights.

    Returns:
        All nan where slopes are not known.
    """
    single = rate * weight * slopes
    if gram is None or limit <= 0 or np.isnan(gram).any():
        return Prediction(float(mask @ single), single)
    products = gram * np.outer(weight, weight)
    taken = _length(products, mask)
    correction = norm / taken if norm > 0 and taken > 0 else 1.0

    def drop(a: np.ndarray) -> float:
        length = correction * _length(products, a)
        return float(a @ single) * (min(1.0, limit / length) if length > 0 else 1.0)

    if soft:
        return Prediction(drop(mask), _slope(single, products, mask, limit, correction))
    credit = np.array(
        [drop(_with(mask, k, 1.0)) - drop(_with(mask, k, 0.0)) for k in range(len(mask))]
    )
    return Prediction(drop(mask), credit)


def _length(products: np.ndarray, mask: np.ndarray) -> float:
    return math.sqrt(max(float(mask @ products @ mask), 0.0))


def _with(mask: np.ndarray, k: int, value: float) -> np.ndarray:
    changed = mask.astype(np.float64)
    changed[k] = value
    return changed


def _slope(
    single: np.ndarray, products: np.ndarray, mask: np.ndarray, limit: float, correction: float
) -> np.ndarray:
    """Gradient of f with respect to the weights."""
    length = _length(products, mask)
    if length == 0 or correction * length <= limit:
        return single
    share = limit / (correction * length)
    return share * (single - float(mask @ single) * (products @ mask) / length**2)


def all_masks(count: int) -> Iterator[np.ndarray]:
    """Every mask of ``count`` bits, the empty one first."""
    for number in range(2**count):
        yield np.array([(number >> k) & 1 for k in range(count)], dtype=np.float64)
