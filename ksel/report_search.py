"""Part of the report: the search, its rewards and schedules, and the masks that one of masks compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksel import plots
from ksel.page import folded, missing, note, number, show, table
from ksel.report_run import Run

SEARCH_MAPS = 12
"""Schedules of search episodes on the page, the last ones."""


def search(run: Run) -> str:
    """What happened before the final student."""
    numbers = [episode for stage, episode in run.stages if stage == "search"]
    if (run.summary.get("cost") or {}).get("online"):
        heats = ((run.summary.get("students") or [{}])[0].get("learned") or {}).get("heats")
        if heats:
            return _heats(heats, run.fact("pool") or [])
        return missing("There were no episodes: the agent learned while the final student trained.")
    if run.schedule is None or not numbers:
        return missing("There was no search: the agent does not learn, or the run ended before.")
    record = run.summary.get("search") or {}
    body = _students(record)
    plays = (record.get("learned") or {}).get("plays")
    if plays:
        return body + _plays(plays, run.fact("pool") or [])
    rewards = {n: run.schedule.stage("search", n)["reward"].to_numpy() for n in numbers}
    body += show(
        plots.reward_curve(rewards, "Rewards of the search"),
        "rewards",
        "Reward of each decision and mean of each search episode",
    )
    maps = ""
    for n in numbers[-SEARCH_MAPS:]:
        rows = run.schedule.stage("search", n)
        title = f"Search episode {n + 1}"
        figure = plots.schedule_heat_map(
            run.schedule.actions("search", n), run.schedule.pool, rows["update"].to_numpy(), title
        )
        maps += show(figure, f"search{n}", f"Heat map of the schedule of {title}")
    count = min(len(numbers), SEARCH_MAPS)
    return body + folded(f"Schedules of {count} search episodes", maps)


def _students(record: Mapping[str, Any]) -> str:
    """How several students trained side by side."""
    count, mode = record.get("students", 1), record.get("vectorized")
    if count == 1 or mode is None:
        return ""
    how = {"vmap": "in one batched step (vmap)", "loop": "one after the other (loop)"}
    return note(f"{count} students side by side, {how.get(mode, mode)}.")


def _heats(heats: Sequence[Mapping[str, Any]], pool: Sequence[str]) -> str:
    """The heats of a race: who challenged whom, and how it went."""
    rows = []
    for heat in heats:
        masks = [
            "".join("&#9679;" if name in heat[who] else "&#9675;" for name in pool)
            for who in ("incumbent", "challenger")
        ]
        values = [number(v, ".4g") if v is not None else "diverged" for v in heat["objectives"]]
        t = number(heat["t"], "+.1f") if heat["t"] is not None else "diverged"
        over = "takes over" if heat["taken"] else "given up"
        rows.append([f"{heat['start']}&ndash;{heat['end']}", *masks, *values, t, over])
    heads = ["updates", "mask", "challenger", "objective", "challenger's", "t", "verdict"]
    return note(
        "Heats: the student was forked; one lane kept its mask, each of the others had a challenger's, on "
        "the same batches. Lines with the same updates are one heat. t is how far the challenger was ahead on the reward split, in standard errors "
        f"over its rows or windows. One dot for each of {', '.join(map(str, pool))}."
    ) + table(heads, rows)


def _plays(plays: Sequence[Mapping[str, Any]], pool: Sequence[str]) -> str:
    """The masks that were compared, the best first, and their score in each round."""
    rounds = sorted({int(play["rung"]) for play in plays})
    lengths = {n: max(play["decisions"] for play in plays if play["rung"] == n) for n in rounds}
    scores: dict[tuple[str, ...], dict[int, Any]] = {}
    for play in plays:
        scores.setdefault(tuple(play["mask"]), {})[int(play["rung"])] = play["score"]

    def order(mask: tuple[str, ...]) -> tuple[int, float]:
        last = max(scores[mask])
        score = scores[mask][last]
        return -last, -score if isinstance(score, (int, float)) else float("inf")

    ordered = sorted(scores, key=order)
    rows = []
    for place, mask in enumerate(ordered):
        dots = ['<span class="on">&#9679;</span>' if name in mask else "&middot;" for name in pool]
        cells = [
            number(scores[mask][n], "+.3g")
            if scores[mask].get(n) is not None
            # a round that was played and has no score
            else ("diverged" if n in scores[mask] else "")
            for n in rounds
        ]
        rows.append(["best" if place == 0 else str(place + 1), *dots, *cells])
    heads = ["", *map(str, pool), *(f"{lengths[n]} decisions" for n in rounds)]
    return note(
        "Masks that were compared, each held for a short training of its own. The numbers are drops "
        "of the objective on the reward split; the best masks of a round went on to longer "
        "trainings."
    ) + table(heads, rows, emphasis="best")
