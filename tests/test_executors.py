"""Executors: the same answers from all; workers that live on, die, are replaced, and are stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import executor_jobs
import pytest

from ksel import executors_ray
from ksel.errors import UsageError
from ksel.executors import Done, Executor, Inline, Local, Work, check_executor
from ksel.executors_ray import Ray, check_reach

HERE = str(Path(__file__).resolve().parent)
WORKER = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {HERE!r}); import executor_jobs; from ksel.executors import "
    f"serve; sys.exit(serve(executor_jobs.do))",
]


@pytest.fixture(autouse=True)
def workers_find_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)  # for the workers of a Ray cluster


def local(folder: Path, workers: int = 1, threads: int = 1) -> Local:
    return Local(WORKER, workers, threads, folder / "workers.log")


def results(executor: Executor, *payloads: dict) -> dict[str, Done]:
    """What became of these pieces, named 0, 1, ..."""
    with executor:
        for number, payload in enumerate(payloads):
            executor.submit(Work(str(number), payload))
        return {done.work.name: done for done in executor.finished()}


@pytest.fixture(params=["inline", "local", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Executor:
    if request.param == "inline":
        return Inline(executor_jobs.do)
    return local(tmp_path) if request.param == "local" else make_ray()


def make_ray() -> Ray:
    """A cluster of two workers on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ksel[ray]'")
    return Ray(executor_jobs.do, address=None, cpus=1, gpus=0, threads=1, workers=2)


# --------------------------------------------------------------------------- what all do alike


def test_each_piece_ends_with_what_it_gave_or_why_it_failed(executor: Executor) -> None:
    done = results(
        executor, {"job": "echo", "value": 7}, {"job": "mistake"}, {"job": "bug"}, {"job": "echo"}
    )
    assert sorted(done) == ["0", "1", "2", "3"]
    assert done["0"].result is not None
    assert done["0"].result["value"] == 7
    assert done["1"].result is None
    assert done["1"].error == "--x: not so."
    assert done["2"].error == "ZeroDivisionError: a bug"
    assert "executor_jobs.py" in (done["2"].details or "")
    assert done["3"].error is None


def test_pieces_may_be_added_while_results_are_read(executor: Executor) -> None:
    seen = []
    with executor:
        executor.submit(Work("first", {"job": "echo", "value": 1}))
        for done in executor.finished():
            assert done.result is not None
            seen.append(done.result["value"])
            if done.work.name == "first":
                executor.submit(Work("second", {"job": "echo", "value": 2}))
    assert seen == [1, 2]


# --------------------------------------------------------------------------- worker processes


def test_a_worker_lives_on_for_the_next_piece(tmp_path: Path) -> None:
    done = results(local(tmp_path), *[{"job": "echo"}] * 3)
    processes = {one.result["process"] for one in done.values() if one.result}
    assert len(processes) == 1
    assert processes != {os.getpid()}


def test_threads_are_fixed_before_anything_is_imported(tmp_path: Path) -> None:
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"]
    done = results(local(tmp_path, threads=3), {"job": "environment", "names": names})
    assert done["0"].result == dict(zip(names, ["3", "3", "PASSIVE"], strict=True))


def test_the_piece_of_a_killed_worker_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    done = results(local(tmp_path), {"job": "die_once", "notes": str(file)}, {"job": "echo"})
    assert done["0"].result == {"tries": 2}
    (_, first), (_, second) = executor_jobs.notes(file)
    assert first != second
    assert done["1"].error is None


def test_a_piece_that_kills_its_workers_fails_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    done = results(local(tmp_path), {"job": "die", "notes": str(file)}, {"job": "echo"})
    assert done["0"].result is None
    assert "died 2 times (signal SIGKILL" in (done["0"].error or "")
    assert len(executor_jobs.notes(file)) == 2
    assert done["1"].result is not None


def test_a_worker_that_cannot_start_is_an_error_of_the_piece(tmp_path: Path) -> None:
    broken = Local([str(tmp_path / "absent")], 1, 1, tmp_path / "log")
    assert "could not be started" in (results(broken, {"job": "echo"})["0"].error or "")


def test_leaving_interrupts_what_runs(tmp_path: Path) -> None:
    file, stopped = tmp_path / "notes", tmp_path / "stopped"
    with local(tmp_path, workers=2) as executor:
        payload = {"job": "wait", "notes": str(file), "stopped": str(stopped)}
        executor.submit(Work("long", payload))
        wait_for(file)
    assert stopped.exists()
    assert not alive(int(executor_jobs.notes(file)[0][1]))


def wait_for(path: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_log_takes_what_goes_to_the_file_descriptors(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    script = f"""
import os, pathlib
from ksel.executors import into_log
print("before")
with into_log(pathlib.Path({str(log)!r})):
    print("by python")
    os.write(2, b"by a library\\n")
print("after")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert sorted(log.read_text().splitlines()) == ["by a library", "by python"]
    assert done.stdout == "before\nafter\n"
    assert done.stderr == ""


# --------------------------------------------------------------------------- Ray


@pytest.mark.slow
def test_ray_tries_the_piece_of_a_killed_worker_again(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    done = results(
        make_ray(),
        {"job": "die_once", "notes": str(file)},
        {"job": "echo"},
        {"job": "die"},
        {"job": "environment", "names": ["OMP_NUM_THREADS"]},
    )
    assert done["0"].result == {"tries": 2}
    assert len({process for _, process in executor_jobs.notes(file)}) == 2
    assert done["1"].error is None
    assert "died 2 times" in (done["2"].error or "")
    assert done["3"].result == {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_leaving_ray_interrupts_what_runs(tmp_path: Path) -> None:
    file, stopped = tmp_path / "notes", tmp_path / "stopped"
    with make_ray() as executor:
        executor.submit(Work("long", {"job": "wait", "notes": str(file), "stopped": str(stopped)}))
        wait_for(file)
    assert stopped.exists()


@pytest.mark.slow
def test_resources_that_no_machine_has_are_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ksel[ray]'")
    greedy = Ray(executor_jobs.do, address=None, cpus=1, gpus=3, threads=1, workers=1)
    with pytest.raises(UsageError, match="--ray_gpus 3: no machine"), greedy:
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_an_unreachable_cluster_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=f"--ray_address {address}: no Ray cluster answers"):
        check_reach(address)


def test_a_cluster_decides_its_own_workers() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ksel[ray]'")
    with pytest.raises(UsageError, match="--workers"):
        Ray(executor_jobs.do, address="h:1", cpus=1, gpus=0, threads=1, workers=2)
    with pytest.raises(UsageError, match="--ray_cpus"):
        Ray(executor_jobs.do, address=None, cpus=0, gpus=0, threads=1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'ksel\[ray\]'"):
        executors_ray._import()


def test_an_unknown_executor_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'local'.*inline, local, ray"):
        check_executor("lcal")
