"""Settings: layers, overrides, YAML and back, help, and the messages for what is no setting."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.make import AGENTS
from ksel.checks import FOR_LEARNERS, RANGES, USED_WITH, check_config, check_unrewarded
from ksel.config import RunConfig, StageConfig
from ksel.errors import UsageError
from ksel.settings import (
    build_parser,
    config_from_dict,
    config_from_file,
    config_to_yaml,
    known_options,
    parse_over,
    parse_run,
)
from ksel.tasks import TASKS

CHANGED: dict[str, Any] = {
    "task": "custom",
    "agent": "ppo",
    "method": "finetune",
    "data": "some/data",
    "teacher": None,
    "teachers": ["one", "two"],
    "seed": 7,
    "out": "elsewhere",
    "name": "mine",
    "store": "some/store",
    "device": "cpu",
    "threads": 3,
    "search": "episodes",
    "students": 3,
    "vectorize": "loop",
    "references": ["all", "response"],
    "evaluations": 2,
    "stages": [StageConfig(["label"], 0.4, 1e-4), StageConfig(["response"], 0.6)],
    "custom.kind": "span_v2",
    "custom.text": "a",
    "custom.text_pair": "b",
    "custom.label": "y",
    "custom.labels": ["no", "yes"],
    "custom.metrics": ["matthews", "accuracy"],
    "custom.score_range": (1.0, 5.0),
    "rows.train": 900,
    "rows.reward": 100,
    "rows.dev": 300,
    "rows.dev_on_the_way": 50,
    "batching.size": 16,
    "batching.eval_size": 64,
    "batching.max_length": 50,
    "batching.bucket": 1,
    "span.stride": 64,
    "span.max_question": 32,
    "span.max_answer": 10,
    "span.n_best": 5,
    "span.null_threshold": 1.5,
    "student.shape": "4x312",
    "student.layers": 3,
    "student.width": 64,
    "student.heads": 2,
    "student.feed_forward": 128,
    "student.init": "skip",
    "student.source": "teacher",
    "student.dropout": 0.1,
    "fine_tune.epochs": 2.5,
    "fine_tune.learning_rate": 1e-4,
    "fine_tune.tiny_epochs": 1.5,
    "fine_tune.tiny_learning_rate": 2e-4,
    "fine_tune.batch_size": 8,
    "fine_tune.warmup": 0.2,
    "fine_tune.weight_decay": 0.0,
    "fine_tune.max_updates": 10,
    "fine_tune.seed": 4,
    "fine_tune.together": False,
    "signals.source": "disk",
    "signals.budget": 100,
    "signals.dtype": "float16",
    "knowledge.pool": ["label", "response"],
    "knowledge.temperature": 2.0,
    "knowledge.temperature_schedule": "flsw",
    "knowledge.temperature_end": 2.0,
    "knowledge.temperature_range": 0.5,
    "knowledge.temperature_power": 2.0,
    "knowledge.confidence": True,
    "knowledge.logit_annealing": 5,
    "knowledge.normalize_cls": False,
    "knowledge.cls_reduction": "mean",
    "knowledge.cls_last": "keep",
    "knowledge.projection": "always",
    "knowledge.attention_loss": "kl",
    "knowledge.attention_on": "scores",
    "knowledge.contrastive_temperature": 0.2,
    "knowledge.relation_heads": 6,
    "knowledge.balance": "none",
    "knowledge.balance_every": 5,
    "knowledge.ema_decay": 0.9,
    "knowledge.max_gain": 50.0,
    "knowledge.weights": {"label": 2.0, "hidden/skip": 0.5},
    "knowledge.weight_schedules": {"label": "growth"},
    "optim.epochs": 1.5,
    "optim.max_updates": 70,
    "optim.learning_rate": 1e-3,
    "optim.head_rate": 5.0,
    "optim.warmup": 0.0,
    "optim.weight_decay": 0.1,
    "optim.max_grad_norm": 0.0,
    "optim.accumulate": 2,
    "optim.grad_norm_every": 3,
    "optim.bf16": False,
    "optim.embeddings": "frozen",
    "env.phase_steps": 5,
    "env.actions": "soft",
    "env.observe": ["training", "student_cls"],
    "env.reward": "amortized",
    "env.window": 20,
    "env.objective": "margin",
    "env.margin_width": 2.0,
    "env.reward_scale": "quantile",
    "env.cost_per_type": 0.1,
    "env.exploration": 0.2,
    "env.final_metric": 0.3,
    "credit.rows": 4,
    "credit.every": 3,
    "credit.horizon": 50,
    "credit.batch": 0,
    "credit.interval": 3,
    "credit.window": 5,
    "credit.method": "jvp",
    "credit.preconditioner": "none",
    "credit.embeddings": True,
    "credit.clip": True,
    "credit.clip_every": 10,
    "branches.count": 3,
    "branches.updates": 5,
    "branches.every": 20,
    "episodes.count": 5,
    "episodes.share": 0.5,
    "episodes.final": "mode",
    "all_action.learning_rate": 1e-1,
    "all_action.n_steps": 3,
    "all_action.gamma": 0.7,
    "all_action.gae_lambda": 0.7,
    "all_action.entropy": 0.2,
    "all_action.max_grad_norm": 1.0,
    "all_action.soft": "sigmoid",
    "all_action.concentration": 3.0,
    "all_action.start": 0.6,
    "all_action.anchor": 0.1,
    "all_action.block": 5,
    "all_action.memory": 6,
    "all_action.doubt": 2.0,
    "all_action.net_arch": [8],
    "greedy.threshold": 0.1,
    "a2c.observation": "dict",
    "a2c.learning_rate": 1e-2,
    "a2c.n_steps": 4,
    "a2c.gamma": 0.5,
    "a2c.gae_lambda": 0.5,
    "a2c.ent_coef": 0.0,
    "a2c.vf_coef": 1.0,
    "a2c.max_grad_norm": 1.0,
    "a2c.normalize_advantage": False,
    "a2c.use_rms_prop": True,
    "a2c.start": 0.6,
    "a2c.net_arch": [8],
    "ppo.observation": "dict",
    "ppo.learning_rate": 1e-2,
    "ppo.n_steps": 4,
    "ppo.batch_size": 4,
    "ppo.n_epochs": 2,
    "ppo.gamma": 0.5,
    "ppo.gae_lambda": 0.5,
    "ppo.clip_range": 0.1,
    "ppo.ent_coef": 0.0,
    "ppo.vf_coef": 1.0,
    "ppo.max_grad_norm": 1.0,
    "ppo.normalize_advantage": False,
    "ppo.start": 0.6,
    "ppo.net_arch": [8, 4],
    "ddpg.encoder": 8,
    "ddpg.learning_rate": 1e-2,
    "ddpg.buffer_size": 100,
    "ddpg.learning_starts": 4,
    "ddpg.batch_size": 8,
    "ddpg.gradient_steps": 2,
    "ddpg.tau": 0.1,
    "ddpg.gamma": 0.5,
    "ddpg.gamma_on": "reward",
    "ddpg.noise": 0.4,
    "ddpg.threshold": 0.6,
    "ddpg.at_least_one": False,
    "ddpg.net_arch": [8],
    "bandit.algorithm": "linucb",
    "bandit.learning_rate": 0.2,
    "bandit.exploration": 0.2,
    "bandit.forgetting": 0.02,
    "bandit.width": 2.0,
    "bandit.ridge": 2.0,
    "dynamic.label": 0.5,
    "static.mask": ["label"],
    "best_static.candidates": 9,
    "best_static.eta": 2,
    "best_static.least": 3,
    "race.share": 0.2,
    "race.least": 10,
    "race.challengers": 3,
    "race.doubt": 1.5,
    "race.objective": "cross_entropy",
    "random.probability": 0.25,
    "annealed.start": 0.5,
    "checkpoint.every": 10,
    "checkpoint.share": 0.5,
}
"""A valid value other than the default for each setting, but for those in SAME."""
# of no use beside teachers, and putting credit.clip_every out of use; tested on their own
SAME = {"teacher", "credit.clip"}


def get(config: RunConfig, option: str) -> Any:
    value: Any = config
    for part in option.split("."):
        value = getattr(value, part)
    return value


def with_values(flat: dict[str, Any]) -> RunConfig:
    """The defaults with some values changed, not parsed and not checked."""
    config = RunConfig()
    for option, value in flat.items():
        group, _, name = option.rpartition(".")
        setattr(getattr(config, group) if group else config, name, value)
    return config


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option, value in flat.items():
        group, _, name = option.rpartition(".")
        place = values.setdefault(group, {}) if group else values
        place[name] = plain(value)
    return values


def plain(value: Any) -> Any:
    """The value as YAML knows it."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return asdict(value) if is_dataclass(value) else value


def written(folder: Path, values: dict[str, Any], name: str = "settings.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def from_command_line() -> RunConfig:
    argv = []
    for option, value in CHANGED.items():
        text = yaml.safe_dump(plain(value), default_flow_style=True).strip()
        argv += [f"--{option}", value if isinstance(value, str) else text]
    return parse_run([word.removesuffix("\n...") for word in argv])


@pytest.fixture(scope="module")
def from_yaml(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = written(tmp_path_factory.mktemp("settings"), nested(CHANGED))
    return parse_run(["--config", path])


def test_every_setting_is_in_the_table_of_changes():
    assert list(CHANGED) == known_options()


@pytest.mark.parametrize("option", CHANGED)
def test_a_setting_can_be_changed(
    option: str, from_command_line: RunConfig, from_yaml: RunConfig
) -> None:
    assert get(from_command_line, option) == CHANGED[option]
    assert get(from_yaml, option) == CHANGED[option]
    assert (get(RunConfig(), option) != CHANGED[option]) is (option not in SAME)
    assert type(get(from_command_line, option)) is type(CHANGED[option])


def test_clipping_can_be_left_out_of_credit():
    assert parse_run(["--agent", "all_action", "--credit.clip", "false"]).credit.clip is False


def test_yaml_round_trip(from_command_line: RunConfig, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(from_command_line), encoding="utf-8")
    assert config_from_file(path) == from_command_line
    assert parse_run(["--config", str(path)]) == from_command_line
    assert config_from_dict(yaml.safe_load(path.read_text())) == from_command_line


def test_saved_settings_name_folders_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    saved = yaml.safe_load(config_to_yaml(parse_run(["--data", "data", "--teacher", "tiny"])))
    assert saved["data"] == str(tmp_path / "data")
    assert saved["teacher"] == "tiny"


def test_configs_do_not_share_their_lists():
    first = config_from_dict({"task": "rte"})
    first.knowledge.pool.append("fsp")
    first.a2c.net_arch.clear()
    first.optim.epochs = 99
    assert config_from_dict({"task": "rte"}) == RunConfig(task="rte")


# ------------------------------------------------------------------------ layers


def packaged(name: str) -> dict[str, Any]:
    return yaml.safe_load((resources.files("configs") / name).read_text(encoding="utf-8"))


def test_quick_lies_over_the_defaults_where_no_config_is_given(tmp_path: Path):
    quick = packaged("quick.yaml")["optim"]["epochs"]
    usual = RunConfig().optim.epochs
    assert usual != quick
    assert parse_run([]).optim.epochs == quick
    assert parse_run(["--agent=ppo"]).optim.epochs == quick
    assert parse_run(["--data", "builtin"]).optim.epochs == quick
    own = written(tmp_path, {"task": "rte"})
    assert parse_run(["--config", own]).optim.epochs == usual
    assert parse_run([f"--config={own}"]).optim.epochs == usual
    assert parse_run(["--data", "hub"]).optim.epochs == usual
    assert parse_run([f"--data={tmp_path}"]).optim.epochs == usual


def test_each_layer_lies_over_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "configs"
    (folder / "agents").mkdir(parents=True)
    written(folder, {"seed": 1, "threads": 1, "a2c": {"gamma": 0.1, "n_steps": 31}}, "quick.yaml")
    written(folder / "agents", {"agent": "a2c", "a2c": {"gamma": 0.2}}, "a2c.yaml")
    written(folder / "agents", {"agent": "ppo", "ppo": {"gamma": 0.3}}, "ppo.yaml")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path / package)
    quick = parse_run([])
    assert (quick.seed, quick.threads, quick.a2c.n_steps, quick.a2c.gamma) == (1, 1, 31, 0.2)
    assert parse_run(["--agent", "ppo"]).ppo.gamma == 0.3
    one = written(tmp_path, {"seed": 2, "a2c": {"gamma": 0.4, "n_steps": 5}}, "one.yaml")
    two = written(tmp_path, {"a2c": {"gamma": 0.5}}, "two.yaml")
    config = parse_run(["--config", one, "--config", two, "--a2c.n_steps", "6"])
    assert (config.seed, config.threads) == (2, 0)
    assert (config.a2c.gamma, config.a2c.n_steps) == (0.5, 6)


def test_the_agent_of_a_config_file_brings_its_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "configs"
    (folder / "agents").mkdir(parents=True)
    written(folder / "agents", {"agent": "ppo", "ppo": {"gamma": 0.3}}, "ppo.yaml")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path / package)
    own = written(tmp_path, {"agent": "ppo"})
    assert parse_run(["--config", own]).ppo.gamma == 0.3
    assert parse_run(["--config", own, "--agent", "a2c"]).ppo.gamma == RunConfig().ppo.gamma
    assert parse_run(["--config", own, "--agent", "a2c"]).agent == "a2c"


def test_a_saved_run_has_no_layers_below_it(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(RunConfig(agent="ppo", seed=5)), encoding="utf-8")
    config = parse_over(path, ["--task", "rte"], "python -m ksel.replay")
    assert config == RunConfig(agent="ppo", seed=5, task="rte")
    with pytest.raises(UsageError, match="--tusk: unknown setting"):
        parse_over(path, ["--tusk", "rte"], "python -m ksel.replay")


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agents_settings_are_the_defaults(agent: str):
    """Else a config saved by one agent would carry another's leftovers, refused as unused."""
    assert config_from_dict(packaged(f"agents/{agent}.yaml")) == RunConfig(agent=agent)


# ------------------------------------------------------------------------ help


@pytest.fixture(scope="module")
def help_text() -> str:
    return " ".join(build_parser().format_help().split())


def test_help_explains_each_setting(help_text: str):
    for option in known_options():
        found = re.search(rf"--{re.escape(option)}\+? (.*?)\(type: ([^)]*)\)", help_text)
        assert found, option
        explanation = re.sub(r"^\S+ |\[ITEM,...\]|\{[^}]*\}", "", found.group(1))
        assert len(explanation.strip()) > 4, f"--{option} is not explained"


def test_help_names_tasks_agents_and_defaults(help_text: str):
    task = help_text[help_text.index("--task TASK c") : help_text.index("--agent AGENT W")]
    agent = help_text[help_text.index("--agent AGENT W") : help_text.index("--data DATA")]
    assert [name for name in (*TASKS, "custom") if name not in task] == []
    assert [name for name in AGENTS if name not in agent] == []
    assert "Rows of the training file kept for rewards" in help_text
    assert "default: 256" in help_text


def test_help_has_no_noise(help_text: str, capsys: pytest.CaptureFixture[str]):
    assert "Path to a configuration file" not in help_text
    assert "Literal[" not in help_text
    assert "none =" not in help_text  # nothing is written null
    with pytest.raises(SystemExit) as ended:
        parse_run(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == ""


def test_print_config_is_valid_yaml_that_config_takes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["--agent", "ppo", "--ppo.n_steps", "5", "--task", "rte"]
    with pytest.raises(SystemExit) as ended:
        parse_run([*argv, "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    values = yaml.safe_load(printed.out)
    assert [name for name in asdict(RunConfig()) if name not in values] == []
    assert "debug" not in values
    path = tmp_path / "printed.yaml"
    path.write_text(printed.out, encoding="utf-8")
    assert parse_run(["--config", str(path)]) == parse_run(argv)


# ------------------------------------------------------------------------ what is no setting


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--tsk", "rte"], "--tsk: unknown setting. Did you mean --task?"),
        (["--optim.epoch", "3"], "--optim.epoch: unknown setting. Did you mean --optim.epochs?"),
        (["--optim.lr=3"], "--optim.lr: unknown setting."),
        (
            ["--learning_rate", "1e-3"],
            "Did you mean --optim.learning_rate, --a2c.learning_rate or --fine_tune.learning_rate?",
        ),
        (
            ["--learning-rate", "1e-3", "--agent", "ppo"],
            "Did you mean --optim.learning_rate, --ppo.learning_rate or --fine_tune.learning_rate?",
        ),
        (["--phase_steps", "2"], "Did you mean --env.phase_steps?"),
        (["--task", "SST2"], "--task: unknown task 'SST2'. Did you mean 'sst2'?"),
        (["--task", "qnly"], "--task: unknown task 'qnly'. Did you mean 'qnli'?"),
        (
            ["--env.objective", "crossentropy"],
            "--env.objective: crossentropy is not valid. Did you mean 'cross_entropy'?",
        ),
        (["--env.observe", "[trainin]"], "Did you mean 'training'?"),
        (["--references", "finetune"], "--references: finetune is not valid. Give a list"),
        (["--optim.epochs", "many"], "--optim.epochs: many is not valid. Give a number."),
        (["--rows.train", "2.5"], "--rows.train: 2.5 is not valid. Give a whole number or null."),
        (["--optim.bf16", "maybe"], "--optim.bf16: maybe is not valid. Give true or false."),
        (["--knowledge.weights", "3"], "--knowledge.weights: 3 is not valid. Give a mapping"),
        (["--custom.score_range", "[1]"], "Give 2 numbers in brackets"),
        (["--optim", "3"], "--optim is a group of settings, not a value."),
        (["--seed"], "--seed: its value is missing."),
        (["--seed", "--task", "rte"], "--seed: its value is missing."),
        (["rte"], "'rte' belongs to no option."),
        (["--config", "absent.yaml"], "--config: cannot read absent.yaml: No such file"),
    ],
)
def test_a_wrong_command_line_is_explained(argv: list[str], says: str):
    with pytest.raises(UsageError) as refused:
        parse_run(argv)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tsk": "rte"}, "--tsk: unknown setting. Did you mean --task?"),
        ({"optim": {"epoch": 1}}, "--optim.epoch: unknown setting. Did you mean --optim.epochs?"),
        ({"optim": 3}, "--optim is a group of settings, not a value."),
        ({"optim": None}, "--optim is a group of settings, not a value."),
        ({"knowledge": {"pool": None}}, "--knowledge.pool: null is not valid; it needs a value."),
        ({"task": None}, "--task: null is not valid; it needs a value."),
        ({"knowledge": {"pool": "label"}}, "--knowledge.pool: label is not valid. Give a list"),
        ({"seed": "x"}, "--seed: x is not valid. Give a whole number."),
        ({"debug": True}, "--debug: unknown setting."),
        ({"config": "other.yaml"}, "--config: unknown setting."),
        ({3: 4}, "--3: unknown setting."),
    ],
)
def test_a_wrong_file_is_explained(values: dict[str, Any], says: str, tmp_path: Path):
    with pytest.raises(UsageError, match=re.escape(says)):
        parse_run(["--config", written(tmp_path, values)])
    with pytest.raises(UsageError, match=re.escape(says)):
        config_from_dict(values)


@pytest.mark.parametrize("content", ["- a\n- b\n", "", "task: [", "\x00", "just words"])
def test_a_file_that_is_no_settings_is_refused(content: str, tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="--config: "):
        parse_run(["--config", str(path)])


# ------------------------------------------------------------------------ checks


@pytest.mark.parametrize(("option", "lowest", "highest", "excluded"), RANGES)
def test_a_number_out_of_range_is_refused(
    option: str, lowest: float, highest: float, excluded: bool
):
    whole = isinstance(CHANGED[option], int)
    below = lowest if excluded else lowest - 1
    above = [highest + 1] if highest < float("inf") else []
    for value in [below, *above]:
        number = int(value) if whole else float(value)
        with pytest.raises(UsageError, match=f"--{option}: .* is out of range"):
            check_config(with_values({option: number}))
    assert lowest <= CHANGED[option] <= highest


def test_not_a_number_is_refused():
    for value in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"--optim.learning_rate: .* is out of range"):
            config_from_dict({"optim": {"learning_rate": value}})


OTHER_CHOICE = {
    "signals.budget": "live",
    "signals.dtype": "live",
    "student.source": "random",
    "env.window": "measured",
    "credit.clip_every": False,
}


@pytest.mark.parametrize(("option", "decides", "values"), USED_WITH)
def test_a_setting_without_use_is_refused(option: str, decides: str, values: tuple[str, ...]):
    other = OTHER_CHOICE.get(option, "cross_entropy")
    changed = CHANGED[option]
    with pytest.raises(UsageError, match=f"--{option}: not used with --{decides} {other}"):
        check_config(with_values({decides: other, option: changed}))
    for value in values:
        check_config(with_values({decides: value, option: changed}))


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"device": "tpu"}, "--device"),
        ({"env": {"observe": []}}, "--env.observe"),
        ({"env": {"observe": ["training", "training"]}}, "--env.observe"),
        ({"optim": {"accumulate": 9}, "batching": {"size": 8}}, "--optim.accumulate"),
        ({"evaluations": 0, "rows": {"dev_on_the_way": 9}}, "--rows.dev_on_the_way"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], option: str):
    with pytest.raises(UsageError, match=f"^{option}: "):
        config_from_dict(values)


@pytest.mark.parametrize("name", FOR_LEARNERS)
def test_rewards_need_an_agent_that_learns(name: str):
    env = {"objective": "margin"} if name == "margin_width" else {}
    config = config_from_dict({"env": {**env, name: CHANGED[f"env.{name}"]}, "agent": "static"})
    with pytest.raises(UsageError, match=r"--env\.\w+: not used with --agent static"):
        check_unrewarded(config, observes=False)
    check_unrewarded(RunConfig(agent="static"), observes=False)


def test_a_rule_may_choose_what_it_observes():
    config = config_from_dict({"env": {"observe": ["training", "student_cls"]}, "agent": "dynamic"})
    check_unrewarded(config, observes=True)


def test_all_groups_are_dataclasses_with_their_own_name():
    groups = [f.name for f in fields(RunConfig) if is_dataclass(getattr(RunConfig(), f.name))]
    assert {option.partition(".")[0] for option in known_options() if "." in option} == set(groups)
