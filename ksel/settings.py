"""Settings from YAML layers and the command line, through jsonargparse; and back to YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ksel.checks import check_config
from ksel.config import RunConfig
from ksel.errors import UsageError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

QUICK = "quick.yaml"


def build_parser(prog: str = "python -m ksel.run") -> ArgumentParser:
    """The command line of a run: every field of RunConfig, ``--config`` and ``--print_config``."""
    parser = ArgumentParser(
        prog=prog,
        description=(RunConfig.__doc__ or "").strip(),
        exit_on_error=False,
        allow_abbrev=False,
        epilog=(
            "Layers, each over the one before: defaults; configs/quick.yaml (if no --config is "
            "given); configs/agents/AGENT.yaml; --config files; the command line."
        ),
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; repeatable.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    parser.add_class_arguments(RunConfig)
    return parser


def parse_run(argv: Sequence[str]) -> RunConfig:
    """Settings from the command line, checked.

    Raises:
        UsageError: an unknown or contradictory setting, or a value out of its range.
        SystemExit: after ``--help`` or ``--print_config``.
    """
    return _parse(build_parser(), [*_layers(argv), *argv])


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Settings from a (nested, JSON-able) dictionary over the dataclass defaults, checked.

    Raises:
        UsageError: an unknown or contradictory setting, or a value out of its range.
    """
    parser = build_parser()
    try:
        return _finish(parser, parser.parse_object(values))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse: ArgumentError, KeyError, TypeError, ...
        raise _explain(error) from error


def config_from_file(path: Path) -> RunConfig:
    """Settings of a saved run.

    Raises:
        UsageError: the file is missing, unreadable, or not a run's settings.
    """
    return config_from_dict(read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UsageError: missing, unreadable, or something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config: cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config: {path} holds no settings; it must map names to values.")
    return values


def config_to_yaml(config: RunConfig) -> str:
    """All settings as YAML that ``--config`` takes back; folders are written as absolute paths."""
    values = asdict(config)
    for name in ("data", "teacher"):
        values[name] = _absolute(values[name])
    values["student"]["init"] = _absolute(values["student"]["init"])
    values["custom"]["score_range"] = list(values["custom"]["score_range"])
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from the dataclass defaults, by dotted name."""
    default = RunConfig()
    changed = {}
    for field in fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        if not is_dataclass(value):
            if value != usual:
                changed[field.name] = value
            continue
        for inner in fields(value):
            if getattr(value, inner.name) != getattr(usual, inner.name):
                changed[f"{field.name}.{inner.name}"] = getattr(value, inner.name)
    return changed


def _absolute(name: str | None) -> str | None:
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def _layers(argv: Sequence[str]) -> list[str]:
    """The YAML layers below the user's own, as command-line arguments."""
    files = _values(argv, "--config")
    layers = [] if files else [QUICK]
    agent = RunConfig.agent
    for file in files:
        agent = str(read_yaml(Path(file)).get("agent", agent))
    agent = (_values(argv, "--agent") or [agent])[-1]
    own = f"agents/{agent}.yaml"
    if (resources.files("configs") / own).is_file():
        layers.append(own)
    return [part for layer in layers for part in ("--config", _packaged(layer))]


def _packaged(name: str) -> str:
    return str(resources.files("configs") / name)


def _values(argv: Sequence[str], option: str) -> list[str]:
    found = []
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            found.append(argv[i + 1])
        elif word.startswith(f"{option}="):
            found.append(word[len(option) + 1 :])
    return found


def _parse(parser: ArgumentParser, argv: Sequence[str]) -> RunConfig:
    try:
        return _finish(parser, parser.parse_args(list(argv)))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse: ArgumentError, KeyError, TypeError, ...
        raise _explain(error) from error


def _finish(parser: ArgumentParser, parsed: Namespace) -> RunConfig:
    values = vars(parser.instantiate_classes(parsed))
    config = RunConfig(**{f.name: values[f.name] for f in fields(RunConfig)})
    check_config(config)
    return config


def _known_options() -> list[str]:
    names = []
    for field in fields(RunConfig):
        value = getattr(RunConfig(), field.name)
        names += (
            [f"{field.name}.{inner.name}" for inner in fields(value)]
            if is_dataclass(value)
            else [field.name]
        )
    return names


def _explain(error: Exception) -> UsageError:
    """One readable message out of jsonargparse's, with the nearest option where one is unknown."""
    text = " ".join(str(error).split())
    invalid = re.search(r'[Kk]ey "([\w.]+)": (.*)', text)
    if invalid:
        return _invalid_value(invalid.group(1), invalid.group(2))
    unknown = (
        re.search(r"[Uu]nrecognized arguments: --([\w.]+)", text)
        or re.search(r"[Kk]ey ['\"]([\w.]+)['\"] is not expected", text)
        or re.search(r"[Oo]ption ['\"]?([\w.]+)['\"]? is not accepted", text)
        or re.search(r"Group ['\"][\w.]+['\"] does not accept option ['\"]([\w.]+)['\"]", text)
        or re.search(r"No action for key ['\"]([\w.]+)['\"]", text)
    )
    if unknown:
        name = unknown.group(1)
        near = difflib.get_close_matches(name, _known_options(), n=1, cutoff=0.5)
        hint = f" Did you mean --{near[0]}?" if near else ""
        return UsageError(
            f"--{name}: unknown setting.{hint} See python -m ksel.run --help for all of them."
        )
    return UsageError(text)


def _invalid_value(name: str, reason: str) -> UsageError:
    """A value of the wrong type, with what is allowed."""
    given = re.search(r"(?:Given value|Got value): (.*)$", reason)
    choices = re.search(r"typing\.Literal\[([^\]]+)\]", reason)
    expected = reason.split("Given value type")[0]
    kinds = re.findall(r"class '(?:\w+\.)*(\w+)'", expected)
    if choices:
        allowed = f"one of {choices.group(1)}"
    else:
        words = {"NoneType": "null", "float": "a number", "int": "a whole number", "str": "text"}
        allowed = " or ".join(dict.fromkeys(words.get(kind, kind) for kind in kinds)) or reason
    value = given.group(1) if given else "the value"
    near = difflib.get_close_matches(value, re.findall(r"'(\w+)'", allowed), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"--{name}: {value} is not valid.{hint} Give {allowed}.")
