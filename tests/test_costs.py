"""Where a run's time went, and what its search cost in plain distillations."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ksel.costs import cost_lines, cost_rows, cost_table, multiples, search_cost, stage_cost
from ksel.ledger import Ledger

SPENT = Ledger(
    {"agent": 1.0, "teacher": 3.0, "dev": 9.0, "data": 0.5, "sleep": 0.25, "credit": 0.0},
    {"agent": 4, "teacher": 64, "dev": 500, "data": 0, "credit": 0},
)


def stage(seconds: float, teacher: float = 0.0, rows: int = 8) -> dict[str, Any]:
    """A stage in which the teacher computed ``rows`` rows, and the student saw 12."""
    spent = Ledger(
        {"teacher": teacher, "student_forward": 0.5}, {"teacher": rows, "student_forward": 12}
    )
    return stage_cost(spent, seconds)


def test_a_stage_names_the_parts_that_had_work() -> None:
    cost = stage_cost(SPENT, 10.0)
    assert cost["seconds"] == 10.0
    assert set(cost["parts"]) == {"agent", "teacher", "dev", "data", "sleep"}
    assert cost["parts"]["teacher"] == {"seconds": 3.0, "examples": 64}


def test_rows_add_up_to_the_sum_and_dev_is_beside_it() -> None:
    rows = cost_rows(stage_cost(SPENT, 10.0))
    assert [row.name for row in rows] == [
        *("data", "teacher", "agent", "sleep"),
        *("rest", "sum", "beside it: dev"),
    ]
    by_name = {row.name: row for row in rows}
    assert by_name["rest"].seconds == pytest.approx(10.0 - 4.75)
    assert by_name["sum"].seconds == sum(row.seconds for row in rows[:-2]) == 10.0
    assert by_name["sum"].share == 1.0
    assert by_name["teacher"].share == pytest.approx(0.3)
    assert by_name["teacher"].examples == 64
    assert by_name["sum"].examples is None
    assert by_name["beside it: dev"].share is None


def test_multiples_of_a_plain_distillation() -> None:
    costs = {"search": stage(30.0), "final": stage(12.0), "reference:all": stage(10.0)}
    found = multiples(costs, kept=True)
    assert (found["search_multiple"], found["total_multiple"]) == (3.0, 4.2)
    assert found["plain_seconds"] == 10.0
    assert search_cost(found, ["all"])["multiple"] == 4.2
    assert search_cost(found, ["all"])["reason"] is None


def test_a_plain_distillation_alone_would_have_run_the_teacher_too() -> None:
    costs = {
        "search": stage(30.0, 4.0, 9),
        "final": stage(12.0, 1.0, 3),
        "reference:all": stage(10.0),
    }
    found = multiples(costs, kept=True)
    assert (found["plain_seconds"], found["shared_teacher_seconds"]) == (15.0, 5.0)
    assert found["total_multiple"] == pytest.approx(42 / 15)
    assert "5.00 s of it for teacher signals" in cost_lines(found)[0]
    live = {**costs, "reference:all": stage(10.0, 3.0)}
    assert multiples(live, kept=False)["total_multiple"] == pytest.approx(4.2)
    assert "of it for" not in cost_lines(multiples(live, kept=False))[0]


def test_rows_that_only_the_search_asked_for_are_not_the_plain_ones() -> None:
    costs = {
        "search": stage(30.0, 5.0, 40),
        "final": stage(12.0, 1.0, 8),
        "reference:all": stage(10.0),
    }
    assert multiples(costs, kept=True)["shared_teacher_seconds"] == pytest.approx(6.0 * 12 / 48)
    # each teacher is asked for each row
    assert multiples(costs, kept=True, teachers=2)["shared_teacher_seconds"] == pytest.approx(3.0)
    # without episodes the final student computed what the plain one would have: whole blocks
    alone = {"final": stage(12.0, 6.0, 48), "reference:all": stage(10.0)}
    assert multiples(alone, kept=True)["shared_teacher_seconds"] == 6.0
    nothing = {**costs, "search": stage(30.0, 0.0, 0), "final": stage(12.0, 0.0, 0)}
    assert multiples(nothing, kept=True)["shared_teacher_seconds"] == 0.0


def test_an_agent_that_learns_online_has_one_figure_for_both() -> None:
    costs = {"final": stage(12.0), "reference:all": stage(10.0)}
    (_, line) = cost_lines(multiples(costs, kept=True, online=True))
    assert line == (
        "cost of search and student: the agent learned while the student trained, so one figure "
        "holds both: 12.0 s = 1.20 x plain"
    )
    (line,) = cost_lines(multiples({"final": stage(12.0)}, kept=True, online=True))
    assert "one figure holds both: 12.0 s (as multiples" in line


@pytest.mark.parametrize(
    ("stages", "references", "reason"),
    [
        (("search", "final"), ["finetune"], "not among --references"),
        (("search", "final"), ["all"], "ended before"),
        (("search",), ["all"], "ended before"),
        (("reference:all",), ["all"], "ended before"),
    ],
)
def test_without_both_sides_there_is_a_reason_and_no_multiple(
    stages: tuple[str, ...], references: list[str], reason: str
) -> None:
    found = multiples({name: stage(5.0) for name in stages}, kept=False)
    told = search_cost(found, references)
    assert told["multiple"] is None
    assert reason in told["reason"]


def test_an_agent_that_does_not_search_costs_its_student_alone() -> None:
    found = multiples({"final": stage(12.0), "reference:all": stage(10.0)}, kept=True)
    assert (found["search_seconds"], found["search_multiple"]) == (0.0, 0.0)
    assert found["total_multiple"] == 1.2
    assert "cost of the search: none; with the final student: 12.0 s = 1.20 x plain" in cost_lines(
        found
    )


def test_the_table_is_narrow_with_large_numbers() -> None:
    big = Ledger(
        dict.fromkeys(("student_backward", "held_out", "dev"), 98_765.4),
        dict.fromkeys(("student_backward", "held_out", "dev"), 2_345_678),
    )
    stages = ("search", "final", "reference:finetune", "reference:all")
    table = cost_table({name: stage_cost(big, 234_567.8) for name in stages})
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) < 100
    assert "finetune" not in out.getvalue()
    (backward,) = (line.split() for line in lines if "student_backward" in line)
    assert backward == ["student_backward", *["2,345,678", "98,765", "42%"] * 3]


def test_a_part_that_one_stage_lacks_is_a_dash_there() -> None:
    table = cost_table({"search": stage_cost(SPENT, 10.0), "final": stage(5.0, 2.0)})
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    (agent,) = (line.split() for line in out.getvalue().splitlines() if "agent" in line)
    assert agent == ["agent", "4", "1.00", "10%", "-", "-", "-"]


def test_no_stage_no_table() -> None:
    assert cost_table({}) is None
