"""Settings from YAML layers and the command line, through jsonargparse; and back to YAML."""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import (
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

from ksel.checks import check_config
from ksel.config import RunConfig, StageConfig
from ksel.errors import UsageError
from ksel.methods import QUICK as QUICK  # for compare as well
from ksel.methods import (
    for_each_teacher,
    keep_weights,
    merged,
    method_file,
    method_names,
    packaged,
    read_method,
    read_yaml,
)

set_parsing_settings(docstring_parse_attribute_docstrings=True)

RUN = "python -m ksel.run"


class _Help(DefaultHelpFormatter):
    """jsonargparse's help without the types that only repeat the choices shown anyway."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        text = re.sub(r"type: Literal\[[^]]*\], ", "", text)
        text = re.sub(r"list\[StageConfig\]", "list of {pool, share, learning_rate}", text)
        text = re.sub(r"dict\[str,\s+Literal\[([^]]*)\]\]", r"mapping of names to \1", text)
        return re.sub(
            r"list\[Literal\[([^]]*)\]\]", lambda m: f"list of {m[1].replace(chr(39), '')}", text
        )


class _Guarded(argparse.Action):
    """An option that :func:`ksel.cli.guard` takes off before parsing; here for ``--help`` only."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help
        )

    def __call__(self, *_: Any) -> None:
        """Nothing is left to do."""


@functools.cache
def build_parser(prog: str = RUN) -> ArgumentParser:
    """The command line of a run: every field of RunConfig, ``--config`` and ``--print_config``."""
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [--task TASK] [--agent AGENT] [--config FILE] [--SETTING VALUE ...]",
        description=(
            "The main job: prepare data and teacher, search while the agent learns, distil the "
            "final student under the frozen policy and its references, sum up. A setting of a "
            "group is written --group.setting VALUE, a list '[a, b]', and nothing null."
        ),
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_Help,
        epilog=(
            "Layers, each over the one before: defaults; configs/quick.yaml (without --config, "
            "--data DIR and --data hub); configs/agents/AGENT.yaml; configs/methods/METHOD.yaml; "
            f"--config files; the command line. Methods: {', '.join(method_names())}."
        ),
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; repeatable.")
    parser.add_argument("--debug", action=_Guarded, help="Show the traceback of an error.")
    if prog == RUN:
        parser.add_argument(
            "--resume RUN", action=_Guarded, help="Go on with an interrupted run; stands alone."
        )
    parser.add_class_arguments(RunConfig)
    for action in parser._actions:
        if action.dest in _groups():
            action.help = argparse.SUPPRESS  # --group FILE would be a second, lesser --config
        if action.dest == "print_config":
            action.help = "Print all settings as YAML, which --config takes back, and exit."
            action.metavar = ""
    return parser


def parse_run(argv: Sequence[str]) -> RunConfig:
    """Settings from the command line, checked.

    Raises:
        UsageError: an unknown or contradictory setting, or a value out of its range.
        SystemExit: after ``--help`` or ``--print_config``.
    """
    words = spread_lists(argv)
    layers = layer_names(words)
    agent = next((Path(name).stem for name in layers if name.startswith("agents/")), None)
    below = [part for layer in layers for part in ("--config", packaged(layer))]
    return _parse(build_parser(), [*below, *words], agent)


def spread_lists(argv: Sequence[str]) -> list[str]:
    """``--teachers A B C`` as the one list that the parser takes."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word != "--teachers" or not rest or rest[0].startswith(("-", "[")):
            words.append(word)
            continue
        names = []
        while rest and not rest[0].startswith("-"):
            names.append(rest.pop(0))
        words += ["--teachers", json.dumps(names)]
    return words


def parse_over(saved: Path, argv: Sequence[str], prog: str) -> RunConfig:
    """Settings of a saved run with a command line over them, checked; no other layer lies below.

    Args:
        saved: the run's ``config.yaml``.
        argv: options of :func:`build_parser`.
        prog: the entry point's name.

    Raises:
        UsageError: an unknown or contradictory setting, or a value out of its range.
    """
    return _parse(build_parser(prog), ["--config", str(saved), *spread_lists(argv)])


def partial_settings(argv: Sequence[str], prog: str) -> dict[str, Any]:
    """The settings that a command line names, nested, with nothing below them.

    Args:
        argv: options of :func:`build_parser`.
        prog: the entry point's name.

    Raises:
        UsageError: an unknown setting, or a value of the wrong type.
    """
    try:
        given = build_parser(prog).parse_args(spread_lists(argv), defaults=False)
    except Exception as error:  # jsonargparse: ArgumentError, KeyError, TypeError, ...
        raise _explain(error) from error
    values: dict[str, Any] = json.loads(json.dumps(given.as_dict()))  # lists for tuples, as in YAML
    return values


def config_from_dict(values: dict[str, Any], *, layered: bool = True) -> RunConfig:
    """Settings from a (nested, JSON-able) dictionary over the dataclass defaults, checked.

    Args:
        values: the settings.
        layered: lay the file of the method that they name below them; False for settings that are
            complete, such as a saved run's.

    Raises:
        UsageError: an unknown or contradictory setting, or a value out of its range.
    """
    _check_names(values)
    method = values.get("method")
    if layered and isinstance(method, str):
        values = merged(read_method(method), values)
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
    return config_from_dict(read_yaml(path), layered=False)


def config_to_yaml(config: RunConfig) -> str:
    """All settings as YAML that ``--config`` takes back; folders are written as absolute paths."""
    values = asdict(config)
    for name in ("data", "teacher"):
        values[name] = _absolute(values[name])
    values["teachers"] = [_absolute(name) for name in values["teachers"]]
    values["student"]["init"] = _absolute(values["student"]["init"])
    values["custom"]["score_range"] = list(values["custom"]["score_range"])
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _absolute(name: str | None) -> str | None:
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def layer_names(argv: Sequence[str]) -> list[str]:
    """The YAML files of ``configs/`` that lie under this command line, the lowest first."""
    files = _values(argv, "--config")
    data = _values(argv, "--data")
    layers = [QUICK] if not files and (not data or data[-1] == "builtin") else []
    agent: str = RunConfig.agent
    method: str | None = None
    given = []
    for file in files:
        values = read_yaml(Path(file))
        _check_names(values)
        given.append(values)
        method = values.get("method", method)
    words = _values(argv, "--method")
    method = words[-1] if words else method
    below = []
    if method not in (None, "null"):
        below = [method_file(str(method))]
        given.insert(0, read_method(str(method)))
    for values in given:
        agent = str(values.get("agent", agent))
    agent = (_values(argv, "--agent") or [agent])[-1]
    own = f"agents/{agent}.yaml"
    if (resources.files("configs") / own).is_file():
        layers.append(own)
    return [*layers, *below]


def config_files(argv: Sequence[str]) -> list[str]:
    """The user's own YAML files on a command line."""
    return _values(argv, "--config")


def _values(argv: Sequence[str], option: str) -> list[str]:
    found = []
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            found.append(argv[i + 1])
        elif word.startswith(f"{option}="):
            found.append(word[len(option) + 1 :])
    return found


def _parse(parser: ArgumentParser, argv: Sequence[str], agent: str | None = None) -> RunConfig:
    try:
        return _finish(parser, parser.parse_args(list(argv)))
    except UsageError:
        raise
    except Exception as error:  # jsonargparse: ArgumentError, KeyError, TypeError, ...
        raise _explain(error, agent) from error


def _finish(parser: ArgumentParser, parsed: Namespace) -> RunConfig:
    # jsonargparse renamed it in 4.49.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    values = vars(instantiate(parsed))
    config = RunConfig(**{f.name: values[f.name] for f in fields(RunConfig)})
    _refuse_null("", config)
    config = keep_weights(for_each_teacher(config))
    check_config(config)
    return config


def _groups() -> list[str]:
    """Names of the groups of settings."""
    return [f.name for f in fields(RunConfig) if is_dataclass(getattr(RunConfig(), f.name))]


def known_options() -> list[str]:
    """Dotted names of all settings, in the order of ``--help``."""
    groups, default = _groups(), RunConfig()
    return [f.name for f in fields(RunConfig) if f.name not in groups] + [
        f"{group}.{inner.name}" for group in groups for inner in fields(getattr(default, group))
    ]


def _check_names(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse names that are no settings, and groups that are no mappings (jsonargparse skips those).

    Raises:
        UsageError: names the setting and the nearest one there is.
    """
    groups, known = _groups(), known_options()
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in groups:
            if not isinstance(value, Mapping):
                raise _not_a_group(name)
            _check_names(value, f"{name}.")
        elif name not in known:
            raise _unknown_setting(name)


def _refuse_null(prefix: str, settings: Any) -> None:
    """Refuse null where a value is needed; jsonargparse takes it for 'not given'."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            _refuse_null(f"{prefix}{field.name}.", value)
        elif isinstance(value, list):
            for number, item in enumerate(value, 1):
                if is_dataclass(item):
                    _refuse_null(f"{prefix}{field.name}: number {number}: ", item)
        elif value is None and type(None) not in get_args(hints[field.name]):
            raise UsageError(f"--{prefix}{field.name}: null is not valid; it needs a value.")


MOST_MEANT = 3
"""Settings that are offered for a bare name that several groups have."""


def _meant(name: str, agent: str | None) -> list[str]:
    """Settings that an unknown one may stand for, the likeliest first.

    A name without its group stands for those of the groups that have it: the student's optimiser
    and the run's agent come first.
    """
    bare = name.replace("-", "_")
    ends = [one for one in known_options() if one.rpartition(".")[2] == bare]
    ranks = {"optim": 0, agent: 1}
    ends.sort(key=lambda one: ranks.get(one.partition(".")[0], 2))
    return ends[:MOST_MEANT] or difflib.get_close_matches(name, known_options(), n=1, cutoff=0.5)


def _unknown_setting(name: str, agent: str | None = None) -> UsageError:
    near = [f"--{one}" for one in _meant(name, agent)]
    listed = " or ".join([", ".join(near[:-1]), near[-1]] if near[1:] else near)
    hint = f" Did you mean {listed}?" if near else ""
    return UsageError(
        f"--{name}: unknown setting.{hint} See python -m ksel.run --help for all of them."
    )


def _not_a_group(name: str) -> UsageError:
    inner = next(option for option in known_options() if option.startswith(f"{name}."))
    return UsageError(
        f"--{name} is a group of settings, not a value. Set what is in it, such as --{inner}."
    )


def _explain(error: Exception, agent: str | None = None) -> UsageError:
    """One readable message out of jsonargparse's, with the nearest option where one is unknown."""
    text = " ".join(str(error).split())
    if "Unable to load config" in text and (group := re.search(r'key "(\w+)"', text)):
        return _not_a_group(group.group(1))
    stage = re.search(r"StageConfig'?: .*?'(\w+)' is not accepted", text)
    if stage:
        known = ", ".join(f.name for f in fields(StageConfig))
        return UsageError(f"--stages: '{stage[1]}' is no setting of a stage. Known: {known}.")
    invalid = re.search(r'[Kk]ey "([^"]+)": (.*)', text)
    if invalid:
        return _invalid_value(invalid.group(1), invalid.group(2))
    unknown = re.search(r"[Uu]nrecognized arguments: --([^\s=]+)", text)
    if unknown:
        return _unknown_setting(unknown.group(1), agent)
    stray = re.search(r"[Uu]nrecognized arguments: (\S+)", text)
    if stray:
        return UsageError(
            f"'{stray.group(1)}' belongs to no option. Write settings as --SETTING VALUE, and a "
            f"list or a value with blanks in quotes."
        )
    missing = re.search(r"argument (--\S+): expected one argument", text)
    if missing:
        return UsageError(
            f"{missing.group(1)}: its value is missing. Write {missing.group(1)} VALUE."
        )
    return UsageError(text)


WORDS = {
    "NoneType": "null",
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "list": "a list in brackets, such as '[a, b]'",
    "dict": "a mapping, such as '{label: 0.5}'",
}
"""What a type is called in a message."""


def _invalid_value(name: str, reason: str) -> UsageError:
    """A value of the wrong type, with what is allowed."""
    given = re.search(r"(?:Given value|Got value): (.*)$", reason)
    choices = re.search(r"typing\.Literal\[([^\]]+)\]", reason)
    size = re.search(r"tuple with (\d+) elements", reason)
    kinds = re.findall(r"class '(?:\w+\.)*(\w+)'", reason.split("Given value type")[0])
    if choices:
        allowed = f"one of {choices.group(1)}"
    elif size:
        allowed = f"{size.group(1)} numbers in brackets, such as '[0, 1]'"
    else:
        allowed = " or ".join(dict.fromkeys(WORDS.get(kind, kind) for kind in kinds)) or reason
    value = given.group(1) if given else "the value"
    near = difflib.get_close_matches(value, re.findall(r"'(\w+)'", allowed), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near and choices else ""
    return UsageError(f"--{name}: {value} is not valid.{hint} Give {allowed}.")
