"""A teacher's dev metrics, measured once: runs that share teacher and dev rows share its scores."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from ksel.data import Split
from ksel.errors import UsageError
from ksel.files import write_json
from ksel.models import architecture, weights_fingerprint
from ksel.tasks import Task

FORMAT = 1
"""Raise it when a metric changes its meaning."""


def scores_key(
    model: PreTrainedModel, task: Task, dev: Mapping[str, Split], batch_size: int
) -> str:
    """SHA-256 (hex) of all that decides a teacher's metrics: weights, rows, labels, task."""
    splits = []
    for name, split in dev.items():
        assert split.labels is not None
        labels = hashlib.sha256(split.labels.numpy().tobytes()).hexdigest()
        splits.append([name, split.fingerprint(), labels])
    content = [
        FORMAT,
        weights_fingerprint(model),
        architecture(model.config),
        asdict(task),
        splits,
        batch_size,
        next(model.parameters()).device.type,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def known_scores(
    store: Path,
    model: PreTrainedModel,
    task: Task,
    dev: Mapping[str, Split],
    batch_size: int,
    measure: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """The teacher's metrics: from the store where they are there, else measured and kept.

    Answers to questions are decoded and compared as texts, which the key does not hold: spans are
    measured each time, and so are splits without labels (which refuse). A file that cannot be read is
    made again; one that cannot be written is done without.

    Args:
        store: folder of the store.
        model: the teacher, on its device.
        task: which metrics.
        dev: dev split name -> its rows in the teacher's tokens.
        batch_size: rows of one forward pass.
        measure: measures the metrics.
    """
    if task.is_span or any(split.labels is None for split in dev.values()):
        return measure()
    key = scores_key(model, task, dev, batch_size)
    path = store / "scores" / f"{task.name}-{key[:24]}.json"
    found = _read(path, key)
    if found is not None:
        return found
    metrics = measure()
    if all(map(math.isfinite, metrics.values())):
        try:
            write_json(path, {"key": key, "metrics": metrics, "sha256": _sum(key, metrics)})
        except UsageError:
            return metrics  # what cannot be kept is measured again
    return metrics


def _read(path: Path, key: str) -> dict[str, float] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(name): float(value) for name, value in content["metrics"].items()}
        return metrics if content["sha256"] == _sum(key, metrics) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sum(key: str, metrics: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps([key, dict(metrics)], sort_keys=True).encode()).hexdigest()
