"""The house rules that a reader of one file cannot see: who may import whom, nothing unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = {
    "run",
    "replay",
    "replay_request",
    "predict",
    "report",
    "sweep",
    "compare",
    "compare_worker",
    "job_stages",
    "offline",
    "export",
    "__main__",
}
FILES = sorted(p for room in ("ksel", "envs", "agents") for p in (ROOT / room).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LONG = 6
"""Public functions of more lines than this explain themselves."""

by_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


def is_entry_point(path: Path) -> bool:
    return path.parent == ROOT / "ksel" and path.stem in ENTRY_POINTS


def imported(tree: ast.AST) -> set[str]:
    """Full names of all that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def forbidden_imports(path: Path, tree: ast.AST) -> list[str]:
    """What a file of this room must not import."""
    room = path.relative_to(ROOT).parts[0]
    entry_points = [f"ksel.{name}" for name in sorted(ENTRY_POINTS)]
    forbidden = {
        "ksel": [] if is_entry_point(path) else ["envs", "agents", *entry_points],
        "envs": ["agents", *entry_points],
        "agents": ["transformers", "datasets", *entry_points],
    }[room]
    return sorted(name for name in imported(tree) if within(name, *forbidden))


def unpickling(tree: ast.AST) -> list[str]:
    """Imports of pickling modules, and calls that would unpickle what a file holds."""
    found = [name for name in imported(tree) if within(name, *UNPICKLING)]
    found += [n for n in imported(tree) if n in ("torch.load", "numpy.load", "pandas.read_pickle")]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = (
            (called == "torch.load" and given.get("weights_only") != "True")
            or (called in ("np.load", "numpy.load") and given.get("allow_pickle") == "True")
            or called.endswith(".read_pickle")
            or (called.endswith(".load") and called.split(".")[-2] in ("A2C", "PPO", "DDPG"))
        )
        if unsafe:
            found.append(ast.unparse(node))
    return found


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public classes, and public functions and methods that are long, without a docstring."""
    if tree.body and not ast.get_docstring(tree):
        yield "the module"
    inside = [(node, "") for node in tree.body]
    while inside:
        node, of = inside.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            inside += [(child, f"{node.name}.") for child in node.body]
            long = True
        else:
            assert node.end_lineno is not None
            long = node.end_lineno - node.lineno + 1 > LONG
        if long and not ast.get_docstring(node):
            yield of + node.name


def test_the_rooms_are_where_they_are_looked_for() -> None:
    assert {"ksel/distiller.py", "envs/distillation.py", "agents/make.py"} <= set(NAMES)
    assert {f"ksel/{name}.py" for name in ENTRY_POINTS} <= set(NAMES)


@by_file
def test_imports_only_from_the_rooms_before_it(path: Path) -> None:
    assert forbidden_imports(path, ast.parse(path.read_text(encoding="utf-8"))) == []


@by_file
def test_nothing_is_unpickled(path: Path) -> None:
    assert unpickling(ast.parse(path.read_text(encoding="utf-8"))) == []


@by_file
def test_what_is_public_has_a_docstring(path: Path) -> None:
    assert list(undocumented(ast.parse(path.read_text(encoding="utf-8")))) == []


# --------------------------------------------------------------------------- the rules themselves


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ksel/leaving.py", "from ksel.report import write_report"),
        ("ksel/leaving.py", "from ksel import report"),
        ("ksel/setup.py", "def f():\n    import envs.reward"),
        ("ksel/setup.py", "from agents import policy"),
        ("envs/reward.py", "from agents.policy import Policy"),
        ("agents/make.py", "import transformers"),
        ("agents/make.py", "from datasets import Dataset"),
        ("agents/make.py", "from ksel.run import main"),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    assert forbidden_imports(ROOT / name, ast.parse(source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ksel/run.py", "from agents.make import AGENTS"),
        ("ksel/leaving.py", "from ksel.report_page import write_report"),
        ("envs/reward.py", "import ksel.types"),
        ("agents/make.py", "from envs.recording import Recorder"),
    ],
)
def test_a_right_import_is_not(name: str, source: str) -> None:
    assert not forbidden_imports(ROOT / name, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "frame = pandas.read_pickle(path)",
        "stable_baselines3.A2C.load(path)",
    ],
)
def test_unpickling_is_found(source: str) -> None:
    assert unpickling(ast.parse(source))


def test_safe_loading_is_not_taken_for_unpickling() -> None:
    assert not unpickling(ast.parse("torch.load(path, weights_only=True); np.load(path)"))


def test_a_missing_docstring_is_found() -> None:
    lines = "\n".join(f"        x = {i}" for i in range(LONG))
    source = (
        f'"""."""\nclass A:\n    def long(self):\n{lines}\n    def short(self):\n        pass\n'
    )
    assert set(undocumented(ast.parse(source))) == {"A", "A.long"}
