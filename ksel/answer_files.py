"""Answers as files: SQuAD's own JSON, tables, and JSON lines with the n best."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ksel.decoding import Candidate, Decoded
from ksel.errors import UsageError
from ksel.files import atomic_path, write_json
from ksel.rows import Rows


def odds_file(path: Path) -> Path:
    """Where the margins of no answer are written beside the answers."""
    return path.with_name(f"{path.stem}.null_odds.json")


def check_ids(rows: Rows, where: str) -> None:
    """Refuse questions of one name, of which SQuAD's format would keep only one.

    Raises:
        UsageError: an id comes twice.
    """
    seen: set[str] = set()
    for number, name in enumerate(rows.ids or (), start=1):
        if name in seen:
            raise UsageError(
                f"{where}: the id {name!r} in data row {number} has come before, and format json "
                f"has one answer for each id. Make the ids different, or use --format jsonl."
            )
        seen.add(name)


def write_answers(decoded: Decoded, form: str, path: Path) -> None:
    """Write the answers, each file whole or not at all.

    The score is that of the best candidate, whether it is given or not, and left open where a
    context has no token that could start or end one.

    Args:
        decoded: the answers.
        form: ``json``: one object, id -> answer, empty for none, and where there may be none the
            margins beside it (:func:`odds_file`), as the official scripts read them; ``tsv``: a
            row for each question; ``jsonl``: an object for each question with its candidates.
        path: the file.
    """
    if form == "json":
        ids = decoded.spans.ids
        write_json(path, dict(zip(ids, decoded.answers(), strict=True)))
        if decoded.threshold is not None:
            write_json(odds_file(path), dict(zip(ids, decoded.margins().tolist(), strict=True)))
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if form == "jsonl":
            for record, example in zip(_records(decoded), range(len(decoded)), strict=True):
                best = [_candidate(one) for one in decoded.candidates(example)]
                file.write(json.dumps({**record, "n_best": best}, ensure_ascii=False) + "\n")
            return
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        for number, record in enumerate(_records(decoded)):
            if number == 0:
                writer.writerow(record)
            writer.writerow(record.values())


def _records(decoded: Decoded) -> Iterator[dict[str, Any]]:
    spans, margins = decoded.spans, decoded.margins()
    for e, (answer, score) in enumerate(zip(decoded.answers(), decoded.best(), strict=True)):
        record: dict[str, Any] = {"idx": int(spans.idx[e]), "id": spans.ids[e], "answer": answer}
        record["score"] = _rounded(score) if math.isfinite(score) else None
        if decoded.threshold is not None:
            record["null_odds"] = _rounded(margins[e])
        yield record


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "answer": candidate.text,
        "start": candidate.start,
        "end": candidate.end,
        "score": _rounded(candidate.score),
        "probability": _rounded(candidate.probability),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.8g}")
