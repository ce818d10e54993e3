"""Everything an episode needs, from settings alone: splits, shapes, refusals, repeatability."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from ksel import machine
from ksel import setup as room
from ksel.config import OptimConfig, RunConfig
from ksel.errors import UsageError
from ksel.machine import available_cores, pick_device, resolve_threads, store_folder
from ksel.models import load_classifier, load_tokenizer, weights_fingerprint
from ksel.planning import check_students_memory, step_budget
from ksel.settings import config_from_dict
from ksel.setup import Setup, prepare
from ksel.tasks import get_task
from ksel.types import Shape


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_settings(tiny_settings: Callable[..., dict]) -> Callable[..., dict]:
    """Settings of a tiny run, with another teacher or other data where given."""

    def make(**changes: Any) -> dict:
        moved = {name: changes.pop(name) for name in ("teacher", "data") if name in changes}
        return tiny_settings(**changes) | moved

    return make


@pytest.fixture(scope="module")
def encoder(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without a head."""
    folder = tmp_path_factory.mktemp("encoder")
    load_classifier(str(tiny_teacher), get_task("rte")).bert.save_pretrained(folder)
    load_tokenizer(str(tiny_teacher)).save_pretrained(folder)
    return folder


class Notes:
    """A progress that only notes what is said and how far the stages came."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: dict[str, list[int]] = {}

    def say(self, message: str) -> None:
        self.said.append(message)

    def stage(self, name: str, total: int) -> Any:
        notes = self

        class Bar:
            done = 0

            def advance(self, n: int = 1, **_: float) -> None:
                self.done += n
                notes.stages[name] = [self.done, total]

            def close(self) -> None:
                notes.stages[name].append(-1)

        return Bar()


def start(setup: Setup) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in setup.student.state_dict().items()}


def texts(setup: Setup, name: str) -> list[bytes]:
    return [row.tobytes() for row in getattr(setup, name).input_ids]


# --------------------------------------------------------------------------- splits


def test_train_reward_and_dev_hold_different_rows_with_their_own_labels(
    tmp_path: Path, tiny_teacher: Path, tiny_settings: Callable[..., dict]
) -> None:
    # every text is unique and says its own label
    folder = tmp_path / "unique"
    folder.mkdir()
    for name, count, offset in (("train", 120, 0), ("dev", 30, 500)):
        numbers = np.arange(count) + offset
        table = {
            "sentence1": [
                " ".join(tiny.COLOURS[int(d)] for d in np.base_repr(n, 6).zfill(5)) for n in numbers
            ],
            "sentence2": ["a box" if n % 2 else "a cup" for n in numbers],
            "label": numbers % 2,
            "idx": np.zeros(count, dtype=int),  # of no use as a key
        }
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    setup = prepare(config_from_dict(tiny_settings(data=str(folder))))
    rows = {name: texts(setup, name) for name in ("train", "reward")}
    rows["dev"] = [row.tobytes() for row in setup.dev["dev"].input_ids]
    assert [len(rows[name]) for name in ("train", "reward", "dev")] == [96, 24, 30]
    everything = [row for part in rows.values() for row in part]
    assert len(set(everything)) == len(everything) == 150
    (box,) = setup.tokenizer("box", add_special_tokens=False)["input_ids"]
    for split in (setup.train, setup.reward, setup.dev["dev"]):
        says = torch.tensor([int(box in row) for row in split.input_ids])
        assert torch.equal(says, split.labels)
        assert [len(row) for row in split.input_ids] == split.lengths.tolist()
    assert setup.reward.labels.sum() == 12


def test_training_rows_are_tokenised_once(
    tiny_settings: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    real = room.tokenize

    def counting(rows: Any, *rest: Any) -> Any:
        counts.append(len(rows))
        return real(rows, *rest)

    monkeypatch.setattr(room, "tokenize", counting)
    prepare(config_from_dict(tiny_settings()))
    assert sorted(counts) == [40, 200]


# --------------------------------------------------------------------------- repeatability


def test_the_same_settings_twice_give_the_same_start_and_order(
    tiny_settings: Callable[..., dict],
) -> None:
    torch.manual_seed(1)
    first = prepare(config_from_dict(tiny_settings()))
    torch.manual_seed(2)
    second = prepare(config_from_dict(tiny_settings()))
    assert weights_fingerprint(first.student) == weights_fingerprint(second.student)
    assert weights_fingerprint(first.pool.projections) == weights_fingerprint(
        second.pool.projections
    )
    for name in ("train", "reward"):
        assert texts(first, name) == texts(second, name)
    for setup in (first, second):
        setup.distiller.reset(data_seed=5, updates=3)
    assert [first.distiller.order.rows(u).tolist() for u in range(30)] == [
        second.distiller.order.rows(u).tolist() for u in range(30)
    ]


def test_another_seed_changes_head_and_order_alone(
    encoder: Path, tiny_settings: Callable[..., dict]
) -> None:
    def made(seed: int) -> Setup:
        values = tiny_settings(teacher=str(encoder), fine_tune={"max_updates": 2}, seed=seed)
        return prepare(config_from_dict(values))

    first, second = made(0), made(1)
    assert first.plan.source == "pretrained"
    one, two = start(first), start(second)
    differing = {name for name in one if not torch.equal(one[name], two[name])}
    assert differing == {"classifier.weight"}
    assert weights_fingerprint(first.teacher.model) == weights_fingerprint(second.teacher.model)
    assert sorted(texts(first, "reward")) != sorted(texts(second, "reward"))


def test_two_setups_share_no_state(tiny_settings: Callable[..., dict]) -> None:
    first, second = (prepare(config_from_dict(tiny_settings())) for _ in range(2))
    before, teacher = start(second), weights_fingerprint(second.teacher.model)
    counted = dict(second.ledger.examples)
    first.distiller.reset(data_seed=0, updates=3)
    for _ in range(3):
        first.distiller.update(np.ones(5))
    with torch.no_grad():
        first.teacher.model.classifier.weight.zero_()
    after = start(second)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert weights_fingerprint(second.teacher.model) == teacher
    assert second.ledger.examples == counted
    assert weights_fingerprint(first.student) != weights_fingerprint(second.student)


def test_preparing_leaves_torchs_generator_alone(
    encoder: Path, tiny_settings: Callable[..., dict]
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    prepare(config_from_dict(tiny_settings(teacher=str(encoder), fine_tune={"max_updates": 2})))
    assert torch.equal(torch.rand(2), expected)


def test_only_student_and_projections_learn(tiny_setup: Callable[..., Setup]) -> None:
    setup = tiny_setup(
        student={"layers": 2, "width": 8}, knowledge={"pool": ["label", "hidden/skip"]}
    )
    learning = {id(p) for g in setup.distiller.optimizer.param_groups for p in g["params"]}
    modules = (setup.student, setup.pool.projections)
    assert learning == {id(p) for module in modules for p in module.parameters()}
    assert not any(p.requires_grad for p in setup.teacher.model.parameters())


# --------------------------------------------------------------------------- tasks


def write(folder: Path, name: str, rows: int, labels: Any, columns: tuple[str, str]) -> None:
    rng = np.random.default_rng(rows)
    words = [[" ".join(rng.choice(tiny.THINGS, 4)) for _ in range(rows)] for _ in columns]
    table = dict(zip(columns, words, strict=True)) | {"label": labels[:rows]}
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)


def test_regression(tmp_path: Path, encoder: Path, tiny_settings: Callable[..., dict]) -> None:
    scores = np.linspace(0, 5, 100).round(2)
    for name, rows in (("train", 100), ("dev", 20)):
        write(tmp_path / "stsb", name, rows, scores, ("sentence1", "sentence2"))
    values = tiny_settings(
        task="stsb",
        data=str(tmp_path / "stsb"),
        teacher=str(encoder),
        fine_tune={"max_updates": 2},
        student={"layers": 2, "init": "random"},
        knowledge={"pool": ["label", "response", "hidden/skip"]},
        env={"objective": "calibrated"},
    )
    setup = prepare(config_from_dict(values))
    assert setup.student.num_labels == setup.teacher.model.num_labels == 1
    assert setup.student.config.problem_type == "regression"
    assert setup.train.labels.dtype == torch.float32
    setup.distiller.reset(data_seed=0, updates=1)
    assert np.isfinite(setup.distiller.update(np.ones(3)).loss).all()
    values["env"] = {"objective": "margin"}
    with pytest.raises(UsageError, match=r"--env\.objective"):
        prepare(config_from_dict(values))


def test_three_classes_and_two_dev_files(
    tmp_path: Path, tiny_settings: Callable[..., dict]
) -> None:
    teacher = tiny.write_teacher(tmp_path / "teacher", task="mnli")
    labels = np.arange(90) % 3
    for name, rows in (("train", 90), ("dev_matched", 18), ("dev_mismatched", 24)):
        write(tmp_path / "mnli", name, rows, labels, ("premise", "hypothesis"))
    values = tiny_settings(task="mnli", data=str(tmp_path / "mnli"), teacher=str(teacher))
    setup = prepare(config_from_dict(values))
    assert {name: len(split) for name, split in setup.dev.items()} == {
        "dev_matched": 18,
        "dev_mismatched": 24,
    }
    assert setup.student.num_labels == 3
    setup.distiller.reset(data_seed=0, updates=1)
    assert np.isfinite(setup.distiller.update(np.ones(5)).loss).all()


def test_a_task_of_ones_own(
    tmp_path: Path, encoder: Path, tiny_settings: Callable[..., dict]
) -> None:
    names = np.array(["calm", "angry"] * 50)
    for name, rows in (("train", 100), ("dev", 20)):
        write(tmp_path / "own", name, rows, names, ("review", "unused"))
    values = tiny_settings(
        task="custom",
        data=str(tmp_path / "own"),
        teacher=str(encoder),
        fine_tune={"max_updates": 2},
        custom={"text": "review", "labels": ["calm", "angry"], "metrics": ["f1"]},
    )
    setup = prepare(config_from_dict(values))
    assert setup.student.config.id2label == {0: "calm", 1: "angry"}
    assert setup.task.metrics == ("f1",)


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"heads": 3}}, r"--student\.heads 3 does not divide"),
        ({"student": {"width": 8, "init": "first"}}, r"--student\.init first"),
        (
            {
                "student": {"width": 8},
                "knowledge": {"pool": ["value_relation/last_1"], "relation_heads": 16},
            },
            r"--knowledge\.pool: 'value_relation/last_1' .*16 relation heads.*8.*16",
        ),
        ({"knowledge": {"pool": ["response@2"]}}, r"'response@2' names teacher 2.*--teachers"),
        (
            {"knowledge": {"pool": ["sample_similarity"]}, "optim": {"accumulate": 2}},
            r"--optim\.accumulate 2: sample_similarity",
        ),
        (
            {"knowledge": {"pool": ["sample_similarity"]}, "batching": {"size": 1}},
            r"--batching\.size 1: sample_similarity",
        ),
        (
            {"stages": [{"pool": ["label"], "share": 0.5}, {"share": 0.4}]},
            r"--stages: the shares 0\.5, 0\.4 add up to 0\.9",
        ),
        ({"span": {"stride": 9}}, r"--span\.stride: not used with --task rte"),
        ({"fine_tune": {"together": False}}, r"--fine_tune\.together: not used with one teacher"),
        ({"teachers": ["a", "b"]}, r"--teacher and --teachers: give one"),
        (
            {"student": {"heads": 2}, "knowledge": {"pool": ["attention/skip"]}},
            r"--knowledge\.pool: 'attention/skip'.*head",
        ),
        ({"student": {"init": "frist"}}, r"--student\.init.*first"),
        ({"batching": {"max_length": 129}}, r"--batching\.max_length: 129 .* 128"),
        ({"rows": {"reward": 199}}, r"--rows\.reward"),
        ({"optim": {"max_updates": None, "epochs": 0.01}}, r"--optim\.epochs"),
        ({"device": "cuda"}, r"--device cuda"),
        ({"teacher": "no/such"}, r"--teacher: 'no/such'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_teacher_is_trained(
    encoder: Path,
    tiny_settings: Callable[..., dict],
    changes: dict,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "device" in changes:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(room, "prepare_teachers", lambda *_: pytest.fail("trained"))
    values = tiny_settings(**{"teacher": str(encoder), **changes})
    with pytest.raises(UsageError, match=message) as caught:
        prepare(config_from_dict(values))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_fewer_positions_is_refused(
    tmp_path: Path, tiny_teacher: Path, tiny_settings: Callable[..., dict]
) -> None:
    model = load_classifier(str(tiny_teacher), get_task("rte"))
    short = type(model)(
        type(model.config)(**model.config.to_dict() | {"max_position_embeddings": 20})
    )
    short.save_pretrained(tmp_path / "short")
    values = tiny_settings(student={"layers": None, "init": str(tmp_path / "short")})
    with pytest.raises(UsageError, match=r"--batching\.max_length: 32 .* the 20 .*--student\.init"):
        prepare(config_from_dict(values))


# --------------------------------------------------------------------------- small settings


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match=f"--device {name}: no CUDA"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="--device cuda:1: there are 1"):
        pick_device("cuda:1")
    with pytest.raises(UsageError, match="--device cudax is not a device"):
        pick_device("cudax")


def test_threads(tiny_settings: Callable[..., dict]) -> None:
    torch.set_num_threads(2)
    prepare(config_from_dict(tiny_settings(threads=1)))
    assert torch.get_num_threads() == 1
    assert resolve_threads(RunConfig(threads=3)).threads == 3


@pytest.mark.parametrize(
    ("environment", "threads"),
    [(None, 6), ("1", 1), (" 4 ", 4), ("64", 6), ("0", 6), ("-2", 6), ("many", 6), ("4,2", 6)],
)
def test_threads_of_the_environment_are_not_exceeded(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, threads: int
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    config = resolve_threads(RunConfig())
    assert config.threads == threads
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # a run that goes on has the number that it began with
    assert resolve_threads(config).threads == threads
    assert resolve_threads(RunConfig(threads=9)).threads == 9


def test_there_is_a_core() -> None:
    assert available_cores() >= 1


def test_step_budget() -> None:
    config = RunConfig(optim=OptimConfig(epochs=1.5))
    config.batching.size = 10
    assert step_budget(config, 105) == 15
    config.optim.max_updates = 7
    assert step_budget(config, 105) == 7
    with pytest.raises(UsageError, match=r"--optim\.epochs: 0\.5 of 5 rows"):
        step_budget(RunConfig(optim=OptimConfig(epochs=0.5)), 5)


def test_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KSEL_STORE", str(tmp_path))
    assert store_folder(RunConfig()) == tmp_path
    assert store_folder(RunConfig(store="elsewhere")) == Path("elsewhere")
    monkeypatch.delenv("KSEL_STORE")
    assert store_folder(RunConfig()) == Path.home() / ".cache" / "ksel"


def test_stages_are_reported_to_their_end(
    encoder: Path, tiny_settings: Callable[..., dict]
) -> None:
    notes = Notes()
    values = tiny_settings(teacher=str(encoder), fine_tune={"max_updates": 3})
    setup = prepare(config_from_dict(values), notes)  # type: ignore[arg-type]
    assert notes.stages == {"teacher": [3, 3, -1]}
    assert any("176 train, 24 reward (cut from train), 40 dev" in line for line in notes.said)
    assert setup.fallbacks == []
    again = Notes()
    prepare(config_from_dict(values), again)  # type: ignore[arg-type]
    assert "teacher" not in again.stages


def test_fallbacks_are_said_and_recorded(
    tiny_settings: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ksel import locating

    real = locating.importlib.util.find_spec
    monkeypatch.setattr(
        locating.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == locating.EMBEDDED_PACKAGE else real(name, *rest),
    )
    notes = Notes()
    values = tiny_settings(
        teacher=None, fine_tune={"max_updates": 2}, student={}, signals={"source": "live"}
    )
    setup = prepare(config_from_dict(values), notes)  # type: ignore[arg-type]
    assert len(setup.fallbacks) == 1
    assert "small BERT" in setup.fallbacks[0]
    assert f"teacher: {setup.fallbacks[0]}" in notes.said
    assert setup.teacher.record["fallback"] == setup.fallbacks[0]
    assert json.dumps(setup.teacher.record)


def test_the_settings_name_what_was_found(tiny_settings: Callable[..., dict]) -> None:
    values = tiny_settings(
        data=None,
        teacher="tiny",
        fine_tune={"max_updates": 1},
        rows={"train": 64, "reward": 24},
    )
    config = tiny.make_setup(values).config
    assert (config.data, config.teacher) == ("builtin", "tiny")
    assert config.env.objective == "cross_entropy", "what auto stands for"


@pytest.mark.parametrize(("free", "fits"), [(10**9, False), (10**10, True), (None, True)])
def test_students_beyond_memory_are_refused_before_a_teacher_is_trained(
    monkeypatch: pytest.MonkeyPatch, free: int | None, fits: bool
):
    """8 students of 3 x 384 with 30,522 words: 8 x 3 x 4 bytes x (11.7 M + 5.3 M) = 1.6 GB."""
    monkeypatch.setattr("ksel.planning.free_bytes", lambda device: free)
    config = RunConfig(students=8, device="cpu")
    shape = Shape(layers=3, width=384, heads=12, feed_forward=1536)
    if fits:
        check_students_memory(config, shape, 30_522)
    else:
        with pytest.raises(UsageError, match=r"--students 8: .* 1\.5 GiB, and 0\.9 GiB"):
            check_students_memory(config, shape, 30_522)


def test_the_memory_of_several_students_is_looked_at_first(
    monkeypatch: pytest.MonkeyPatch, tiny_settings: Any
):
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("a teacher was made ready")

    monkeypatch.setattr(room, "prepare_teachers", trained)
    monkeypatch.setattr("ksel.planning.free_bytes", lambda device: 1000)
    with pytest.raises(UsageError, match="--students 4"):
        prepare(config_from_dict(tiny_settings(agent="a2c", students=4)))
