"""Every YAML file in configs/ is a run's settings; the published set-ups build the pools they name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml

import configs
from agents.make import AGENTS, check_settings
from ksel.config import RunConfig
from ksel.grids import read_grid
from ksel.knowledge import build_pool
from ksel.methods import read_yaml
from ksel.settings import config_from_file, parse_run
from ksel.tasks import TASKS
from ksel.types import Shape, TeacherView

FOLDER = Path(str(resources.files(configs)))
EVERY = sorted(FOLDER.rglob("*.yaml"))
SWEEPS = [path for path in EVERY if path.parent.name == "sweeps"]
FILES = [path for path in EVERY if path not in SWEEPS and "@*" not in path.read_text()]
NAMES = [path.relative_to(FOLDER).as_posix() for path in FILES]
PAPER = {"paper/bert_base_6_layers.yaml": 6, "paper/bert_base_3_layers.yaml": 3}
BERT_BASE = Shape(12, 768, 12, 3072)


def test_the_expected_files_are_there() -> None:
    assert {"quick.yaml", *PAPER, *(f"agents/{agent}.yaml" for agent in AGENTS)} <= set(NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_parses_to_a_run(path: Path) -> None:
    config = config_from_file(path)
    assert isinstance(config, RunConfig)
    check_settings(config)


PLAIN = [path for path in FILES if "methods" not in path.parts]  # those are in test_methods.py


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.name)
def test_every_value_of_the_file_arrives_through_the_command_line(path: Path) -> None:
    config = parse_run(["--config", str(path)])
    for name, value in read_yaml(path).items():
        given = getattr(config, name)
        if isinstance(value, dict):
            assert {inner: getattr(given, inner) for inner in value} == value
        else:
            assert given == value


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_says_at_the_top_how_to_launch_it(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("python -m ksel.run " in line for line in comments)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_cells_of_a_sweep_parse(path: Path, tmp_path: Path) -> None:
    assert "python -m ksel.sweep " in path.read_text()
    grid = read_grid(path)
    own = tmp_path / "cell.yaml"
    for cell in grid.cells[::11]:
        own.write_text(yaml.safe_dump(cell.settings))
        check_settings(parse_run(["--config", str(own), "--data", "d"]))


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agents_file_is_about_that_agent(agent: str) -> None:
    assert config_from_file(FOLDER / "agents" / f"{agent}.yaml").agent == agent


@pytest.mark.parametrize("task", [*TASKS])
@pytest.mark.parametrize("name", PAPER)
def test_the_paper_set_ups_build_their_pool_on_every_task(name: str, task: str) -> None:
    config = parse_run(["--config", str(FOLDER / name), "--task", task])
    layers = PAPER[name]
    assert config.student.layers == layers
    student = Shape(layers, BERT_BASE.width, BERT_BASE.heads, BERT_BASE.feed_forward)
    pool = build_pool(
        config.knowledge,
        task=TASKS[task],
        student=student,
        teachers=[TeacherView(BERT_BASE)],
        seed=0,
    )
    pairs = {type.spec: type.pairs for type in pool}
    taught = {6: (2, 4, 6, 8, 10), 3: (4, 8)}[layers]
    assert tuple(t for _, t in pairs["cls_hidden/skip"]) == taught
    assert tuple(t for _, t in pairs["hidden/skip"]) == (*taught, 12)
    assert pairs["value_relation/last_1"] == ((layers, 12),)
