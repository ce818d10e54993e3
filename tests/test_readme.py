"""README and docs: links lead somewhere, and every command for the main job is understood."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from agents.make import check_settings
from ksel.resuming import resume_folder
from ksel.settings import parse_run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"!?\[[^]]*\]\(\s*<?([^)\s>]+)")
WEB = ("http://", "https://", "mailto:")
COMMAND = re.compile(r"python -m ksel\.run\b([^`|\n]*)")

by_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(source: str) -> list[str]:
    """Targets of links and images that are not on the web; code is not looked at."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", source))
    return [target for target in LINK.findall(prose) if not target.startswith(WEB)]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere, or out of the repository."""
    found = []
    for link in links(text(page)):
        target, _, anchor = link.partition("#")
        file = Path(os.path.normpath(page.parent / target)) if target else page
        leads = file.is_relative_to(ROOT) and file.exists()
        if not leads or (anchor and anchor not in anchors(file)):
            found.append(link)
    return found


def commands(source: str) -> list[str]:
    """The options of each ``python -m ksel.run`` that is given any, on one line or continued."""
    found = [match.strip() for match in COMMAND.findall(source.replace("\\\n", " "))]
    return [re.split(r"\s(?:&&|;|#|>)", options)[0] for options in found if options]


COMMANDS = [
    (name, one) for name, page in zip(NAMES, PAGES, strict=True) for one in commands(text(page))
]


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_page_of_the_docs_is_in_their_index() -> None:
    index = ROOT / "docs" / "index.md"
    assert {page.name for page in PAGES[2:]} - {"index.md"} <= set(links(text(index)))


@pytest.mark.parametrize(("page", "options"), COMMANDS, ids=[c for _, c in COMMANDS])
def test_every_command_is_understood(
    page: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_settings: Path
) -> None:
    """DIR and RUN stand for folders; a YAML file that the page shows is there under its name."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(options.replace("RUN/", f"{saved_settings.parent}/"))
    for name in re.findall(r"`(\w+\.yaml)` describes", text(ROOT / page)):
        shown = re.search(r"```yaml\n(.*?)^```", text(ROOT / page), re.M | re.S)
        assert shown is not None
        (tmp_path / name).write_text(shown[1], encoding="utf-8")
    words = [str(tmp_path) if word == "DIR" else word for word in words]
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    if words == ["--help"]:
        with pytest.raises(SystemExit) as ended:
            parse_run(words)
        assert ended.value.code == 0
        return
    if words[0] == "--resume":
        assert resume_folder(words) == Path(words[1])
        return
    config = parse_run(words)
    check_settings(config)
    for option, value in itertools.pairwise(words):
        if option in ("--task", "--agent"):
            assert getattr(config, option[2:]) == value


@pytest.fixture
def saved_settings(tmp_path: Path) -> Path:
    """The ``config.yaml`` of a run."""
    path = tmp_path / "saved" / "config.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({"task": "rte", "agent": "static"}), encoding="utf-8")
    return path


def test_commands_were_found() -> None:
    found = {page for page, _ in COMMANDS}
    assert {"README.md", "docs/data.md", "docs/runs.md", "docs/knowledge.md"} <= found


def test_the_options_in_the_readme_are_understood() -> None:
    """The table "you want, you type" holds options alone; those of one row go together."""
    rows = re.findall(r"^\|[^|]*\| (`--.*?) \|$", text(ROOT / "README.md"), re.M)
    assert len(rows) >= 5
    for row in rows:
        for options in re.findall(r"`(--[^`]*)`", row):
            words = shlex.split(options)
            if "--data" not in words:  # as for everybody who has no data at hand
                words += ["--data", "builtin"]
            parse_run(words)


def test_ci_finds_the_test_command() -> None:
    """Read as ``.ci/run`` reads it: the fence after the mark."""
    found = re.search(
        r"^<!-- ci: test command -->\n+```\w*\n(.*?)^```", text(ROOT / "README.md"), re.M | re.S
    )
    assert found is not None
    assert "pytest" in found[1]
    assert "pip install" in found[1]
    assert "<!-- ci: test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[a](b.md) ![c](d.png) [e](https://f)", ["b.md", "d.png"]),
        ("`[a](b)`\n```\n[c](d)\n```\n[e](f.md#g)", ["f.md#g"]),
    ],
)
def test_links_of_a_page(source: str, expected: list[str]) -> None:
    assert links(source) == expected


def test_a_link_that_leads_nowhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "[a](nowhere.md) [b](#nothing) [c](../LICENSE) [d](LICENSE) [e](#here)\n# Here"
    whole = text
    readme = ROOT / "README.md"
    monkeypatch.setitem(globals(), "text", lambda page: bad if page == readme else whole(page))
    assert broken(readme) == ["nowhere.md", "#nothing", "../LICENSE"]
