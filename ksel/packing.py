"""States as plain JSON and named tensors, and back: nothing is pickled, no code is run.

A state is made of dictionaries, lists, tuples, numbers, texts, bytes, arrays, tensors, and records: the
dataclasses that the reader names. What JSON has no word for is an object with the key ``$``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARK = "$"

State = dict[str, Any]
"""See the module."""
Records = Mapping[str, type]
"""Name -> dataclass, of those that a state may hold."""


def records(*classes: type) -> dict[str, type]:
    """The table of dataclasses by name."""
    return {one.__name__: one for one in classes}


def pack(value: Any, known: Records) -> tuple[Any, dict[str, Tensor]]:
    """Take a state apart.

    Args:
        value: the state; see the module.
        known: the dataclasses that it may hold.

    Returns:
        A JSON value without nan or infinity, and the tensors (on the CPU) that it names.

    Raises:
        TypeError: something in it has no form here; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    packed, seen = _pack(value, "state", known, tensors), set()
    for name, tensor in tensors.items():
        own = tensor.cpu().contiguous()
        # safetensors refuses tensors that share their memory
        tensors[name] = own.clone() if own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    return packed, tensors


def unpack(value: Any, tensors: Mapping[str, Tensor], known: Records, device: torch.device) -> Any:
    """Put a state together again; equal to the bit to what :func:`pack` was given.

    Args:
        value, tensors: from :func:`pack`.
        known: the dataclasses that it may hold.
        device: where tensors go that were not on a CPU.

    Raises:
        KeyError, TypeError, ValueError: it is no such value.
    """

    def inner(part: Any) -> Any:
        return unpack(part, tensors, known, device)

    if isinstance(value, list):
        return [inner(part) for part in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: inner(part) for key, part in value.items()}
    kind = value[MARK]
    if kind == "number":
        return float(value["is"])
    if kind == "bytes":
        return bytes.fromhex(value["hex"])
    if kind == "tensor":
        tensor = tensors[value["name"]]
        return tensor if value["device"] == "cpu" else tensor.to(device)
    if kind in ("array", "scalar"):
        array = tensors[value["name"]].numpy().astype(np.dtype(value["dtype"]), copy=True)
        return array[()] if kind == "scalar" else array
    if kind == "tuple":
        return tuple(inner(part) for part in value["items"])
    if kind == "pairs":
        return {inner(key): inner(part) for key, part in value["items"]}
    if kind == "record":
        return known[value["class"]](**inner(value["fields"]))
    raise ValueError(f"unknown kind {kind!r}")


def _pack(value: Any, at: str, known: Records, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic) and not isinstance(value, float):
        return {**_array(np.asarray(value), at, tensors), MARK: "scalar"}
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {MARK: "number", "is": str(float(value))}
    if isinstance(value, bytes):
        return {MARK: "bytes", "hex": value.hex()}
    if isinstance(value, Tensor):
        tensors[at] = value.detach()
        return {MARK: "tensor", "name": at, "device": value.device.type}
    if isinstance(value, np.ndarray):
        return _array(value, at, tensors)
    if isinstance(value, tuple):
        return {MARK: "tuple", "items": _items(value, at, known, tensors)}
    if isinstance(value, list):
        return _items(value, at, known, tensors)
    if isinstance(value, Mapping):
        return _mapping(value, at, known, tensors)
    if is_dataclass(value) and known.get(type(value).__name__) is type(value):
        inside = {f.name: getattr(value, f.name) for f in fields(value)}
        packed = {name: _pack(v, f"{at}.{name}", known, tensors) for name, v in inside.items()}
        return {MARK: "record", "class": type(value).__name__, "fields": packed}
    raise TypeError(f"{at}: a {type(value).__name__} cannot be kept")


def _items(values: Sequence[Any], at: str, known: Records, tensors: dict[str, Tensor]) -> list[Any]:
    return [_pack(value, f"{at}.{i}", known, tensors) for i, value in enumerate(values)]


def _mapping(value: Mapping[Any, Any], at: str, known: Records, tensors: dict[str, Tensor]) -> Any:
    if all(isinstance(key, str) and key != MARK for key in value):
        return {key: _pack(part, f"{at}.{key}", known, tensors) for key, part in value.items()}
    pairs = [
        [_pack(key, f"{at}.{i}.key", known, tensors), _pack(part, f"{at}.{i}", known, tensors)]
        for i, (key, part) in enumerate(value.items())
    ]
    return {MARK: "pairs", "items": pairs}


def _array(value: np.ndarray, at: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{at}: an array of {value.dtype} cannot be kept")
    # safetensors has no unsigned numbers beyond bytes in all its versions
    wide = value.astype(np.int64) if value.dtype in (np.uint16, np.uint32) else value
    tensors[at] = torch.from_numpy(np.array(wide, order="C"))
    return {MARK: "array", "name": at, "dtype": value.dtype.str}
