"""One interface for everything that chooses a mask, and the files that a policy is kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ksel.errors import UsageError
from ksel.files import atomic_path, write_json
from ksel.packing import State

FORMAT = 1
HEADER = "policy.json"
WEIGHTS = "policy.safetensors"

Observation = Mapping[str, np.ndarray]
OnStep = Callable[[np.ndarray, float], None]
"""(probabilities, log-probability) of a decision just taken; see :class:`Choice`."""
Keep = Callable[[int, Callable[[], State]], None]
"""Offered a point to go on from: decisions taken, and what gives the state of that moment."""


@dataclass(frozen=True)
class Choice:
    """One decision and how likely it was under the behaviour that made it.

    Attributes:
        action: [K] float32; bits (0 or 1) or weights in [0, 1].
        probabilities: [K] float32; hard: probability that the bit is on; soft: mean weight.
            A deterministic choice is its own probability.
        log_prob: log-probability (soft: log-density) of the whole action; 0 when deterministic.
    """

    action: np.ndarray
    probabilities: np.ndarray
    log_prob: float

    @staticmethod
    def certain(action: np.ndarray) -> Choice:
        """A deterministic choice."""
        action = action.astype(np.float32)
        return Choice(action, action.copy(), 0.0)


class Policy(Protocol):
    """Chooses an action for an observation; does not learn any more.

    Attributes:
        name: the agent it belongs to, as in ``--agent``.
        soft: True if actions are weights, False if they are bits.
        learns: True if it came out of learning.
        pool: names of the knowledge types, in the order of the action.
    """

    name: str
    soft: bool
    learns: bool
    pool: tuple[str, ...]

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; every random number of the episode is drawn from ``rng``."""

    def act(self, observation: Observation) -> Choice:
        """Choose for one observation; see :class:`Choice`."""
        ...

    def save(self, folder: Path) -> None:
        """Write ``policy.json`` (and ``policy.safetensors``) into the folder."""


@runtime_checkable
class Counting(Protocol):
    """A policy that counts the decisions of its episode; it has no other memory."""

    decision: int


@runtime_checkable
class Learner(Protocol):
    """Learns to choose actions in episodes of an environment, then is frozen.

    Attributes:
        name: the agent, as in ``--agent``.
        soft: True if actions are weights, False if they are bits.
        learns: always True.
        pool: names of the knowledge types, in the order of the action.
        learned: True once there is a policy to take, even of a search that was cut short.
    """

    name: str
    soft: bool
    learns: bool
    pool: tuple[str, ...]

    @property
    def learned(self) -> bool:
        """True once :meth:`frozen` has something to give."""
        ...

    def learn(
        self,
        env: Any,
        decisions: int,
        *,
        seed: int,
        logger_folder: Path | None = None,
        on_step: OnStep | None = None,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Learn from ``decisions`` steps of each student; returns the number taken of all.

        Args:
            env: a Gymnasium environment; for agents that can, a vector of them (see
                :func:`agents.stable_baselines.check_students`).
        """
        ...

    def frozen(self) -> Policy:
        """The policy as it is now; learning further does not change it."""
        ...

    def figures(self) -> dict[str, Any]:
        """What the search found, as JSON values for ``summary.json``; its ``says`` are lines for
        people. ``{}`` where the policy says it all."""
        ...

    def save_extra(self, folder: Path) -> None:
        """Write files for users of the library behind the agent, if there is one."""


@runtime_checkable
class Resumable(Learner, Protocol):
    """A learner that can go on from the middle of its learning, equal to the bit on a CPU."""

    keep: Keep | None
    """Offered the state of learning (see :mod:`ksel.packing`) wherever ``learn`` can go on from."""
    state: State | None
    """A state that was kept: ``learn``, called with the same arguments, goes on from it."""


def load_policy(
    folder: Path, *, pool: Sequence[str], observation: Mapping[str, tuple[int, ...]]
) -> Policy:
    """Load a saved policy of any kind; nothing is unpickled.

    Args:
        folder: where :meth:`Policy.save` wrote.
        pool: knowledge types of the run it is to be used in.
        observation: part of the observation -> its shape. Parts that the policy does not
            look at may be there.

    Raises:
        UsageError: a file is missing, damaged or of an unknown format, or the policy does not
            fit the pool or the observation (the message names the differences).
    """
    # Here, because all these modules build on this one.
    from agents import bandit, best_static, deterministic, factorised, fixed, frozen, race

    header = read_header(folder)
    loaders: dict[str, Callable[[dict[str, Any], Path], Policy]] = {
        "fixed": fixed.from_header,
        "stable_baselines": frozen.from_header,
        "ddpg": deterministic.from_header,
        "bandit": bandit.from_header,
        "best_static": best_static.from_header,
        "race": race.from_header,
        "all_action": factorised.from_header,
    }
    if header["kind"] not in loaders:
        raise damaged(folder / HEADER, f"unknown kind of policy '{header['kind']}'")
    refuse_other_pool(folder, header["pool"], pool)
    refuse_other_observation(folder, header["observation"], observation)
    return loaders[header["kind"]](header, folder)


def write_header(
    folder: Path,
    policy: Policy,
    kind: str,
    observation: Sequence[tuple[str, Sequence[int]]],
    **more: Any,
) -> None:
    """Write ``policy.json``: what every policy records, and ``more`` of its own.

    Args:
        folder: made if it is missing.
        policy: the policy.
        kind: key of the loader, see :func:`load_policy`.
        observation: the parts the policy looks at with their shapes, in its order.
        more: JSON values that the loader needs.
    """
    header = {
        "format": FORMAT,
        "kind": kind,
        "agent": policy.name,
        "soft": policy.soft,
        "pool": list(policy.pool),
        "observation": [[name, [int(n) for n in shape]] for name, shape in observation],
        **more,
    }
    write_json(folder / HEADER, header)


def write_weights(folder: Path, data: bytes) -> str:
    """Write ``policy.safetensors``; the SHA-256 of it belongs into ``policy.json``."""
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_weights(header: Mapping[str, Any], folder: Path) -> bytes:
    """Read ``policy.safetensors`` and compare it with its checksum in ``policy.json``.

    Raises:
        UsageError: it is missing or not the file that the header was written for.
    """
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    if hashlib.sha256(data).hexdigest() != header.get("weights_sha256"):
        raise damaged(path, f"its checksum is not the one in {HEADER}")
    return data


def read_header(folder: Path) -> dict[str, Any]:
    """Read and check ``policy.json``.

    Raises:
        UsageError: it is missing, damaged, or of another format.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"no policy in {folder}: {HEADER} is missing. Name the folder of a finished run "
            f"(its part 'policy')."
        ) from error
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(header, dict) or "format" not in header:
        raise damaged(path, "it does not describe a policy")
    if header["format"] != FORMAT:
        raise UsageError(
            f"{path}: format {header['format']} is unknown; this version of ksel reads format "
            f"{FORMAT}. Use the version of ksel that wrote it, or search anew."
        )
    _check_types(path, header)
    return header


def _check_types(path: Path, header: dict[str, Any]) -> None:
    for key, kind in (("kind", str), ("agent", str), ("soft", bool), ("pool", list)):
        if not isinstance(header.get(key), kind):
            raise damaged(path, f"'{key}' is missing or not a {kind.__name__}")
    try:
        parts = [(str(name), tuple(int(n) for n in shape)) for name, shape in header["observation"]]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, "'observation' is missing or not a list of names and shapes") from error
    if any(n < 1 for _, shape in parts for n in shape):
        raise damaged(path, "'observation' has a part without numbers")
    header["observation"] = parts


def damaged(path: Path, reason: str) -> UsageError:
    """The error for a policy file that cannot be used."""
    return UsageError(
        f"{path} is damaged or half-written ({reason}). Copy the run again, or search anew."
    )


def refuse_other_pool(
    folder: Path, has: Sequence[str], wanted: Sequence[str], *, logged: bool = False
) -> None:
    """Raise if a policy was made for another knowledge pool.

    Args:
        folder: of the policy.
        has: its pool.
        wanted: the run's.
        logged: the run is over, so that another policy is all that helps.

    Raises:
        UsageError: names the types that are missing, extra, or in another order.
    """
    if list(has) == list(wanted):
        return
    missing = [name for name in has if name not in wanted]
    extra = [name for name in wanted if name not in has]
    parts = []
    if missing:
        parts.append(f"the policy knows {', '.join(missing)}, the run does not")
    if extra:
        parts.append(f"the run has {', '.join(extra)}, the policy does not")
    if not parts:
        parts.append("the same types are in another order")
    option = "--policy" if logged else "--knowledge.pool"
    fix = f"Give one over {', '.join(wanted)}" if logged else f"Use its pool: {', '.join(has)}"
    raise UsageError(f"{option}: the policy in {folder} does not fit: {'; '.join(parts)}. {fix}.")


def refuse_other_observation(
    folder: Path,
    has: Sequence[tuple[str, tuple[int, ...]]],
    wanted: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise if a policy looks at something that the run does not show.

    Raises:
        UsageError: names each part that is absent or of another shape.
    """
    parts = []
    for name, shape in has:
        if name not in wanted:
            parts.append(f"'{name}' is not observed (add it to --env.observe)")
        elif tuple(wanted[name]) != tuple(shape):
            parts.append(f"'{name}' has shape {tuple(wanted[name])}, the policy needs {shape}")
    if parts:
        raise UsageError(
            f"--env.observe: the policy in {folder} does not fit: {'; '.join(parts)}. A policy "
            f"learned with --env.observe '[training]' moves between students of one pool."
        )
