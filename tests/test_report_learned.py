"""What a policy learned: partial dependence, responses of every kind of policy, phases, the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from best_mask_env import FEATURES, POOL, BestMaskEnv
from sample_run import POOL as SAMPLE_POOL
from sample_run import make_run
from tiny_run import make_run as make_tiny_run

from agents.make import AGENTS, make_agent
from agents.policy import Policy
from agents.responses import blind_spot, respond_with
from envs.observation import feature_names
from ksel import report
from ksel.agreement import phase_means
from ksel.cli import guard
from ksel.config import RunConfig
from ksel.files import write_json
from ksel.learned_plots import limits, panel_of, small_multiples
from ksel.page import heat_table
from ksel.report_learned import FLAT, Learned, learned, phases, words
from ksel.report_page import write_report
from ksel.report_run import load_run
from ksel.report_search import search
from ksel.responses import POINTS, ROWS, Response, partial_dependence, same_observations


def policy_of(
    agent: str, soft: bool, cls: int = 0, final: str = "sample", **settings: Any
) -> Policy:
    config = RunConfig(agent=agent)
    config.episodes.final = final  # type: ignore[assignment]
    for name, value in settings.items():
        setattr(getattr(config, agent), name, value)
    env = BestMaskEnv(soft=soft, cls=cls)
    made: Any = make_agent(config, env.pool_names, env.observation_space, env.action_space)
    if AGENTS[agent].learns:
        made.learn(env, 60, seed=0)
        return made.frozen()
    return made


# --------------------------------------------------------------------------- partial dependence


def seen(rows: int = 50, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (rows, width))


def test_partial_dependence_is_hand_worked() -> None:
    """Of a sum it is the term itself plus the mean of the rest."""
    observations = seen()
    observations[:, 3] = 0.25

    def respond(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows[:, 0] ** 2 + 3 * rows[:, 1], rows[:, 2] * rows[:, 3]], 1)

    found = partial_dependence(respond, observations, ("a", "b", "c", "d"))
    means = observations.mean(0)
    assert found.curves.shape == (4, POINTS, 2)
    np.testing.assert_allclose(found.curves[0, :, 0], found.grid[0] ** 2 + 3 * means[1])
    squares = (observations[:, 0] ** 2).mean()
    np.testing.assert_allclose(found.curves[1, :, 0], 3 * found.grid[1] + squares)
    np.testing.assert_allclose(found.curves[2, :, 1], 0.25 * found.grid[2])
    np.testing.assert_allclose(found.curves[1, :, 1], 0.25 * means[2])
    assert found.varied.tolist() == [True, True, True, False]
    low, high = np.quantile(observations, [0.02, 0.98], axis=0)
    np.testing.assert_allclose(found.grid[:, 0], low)
    np.testing.assert_allclose(found.grid[:, -1], high)
    np.testing.assert_allclose(found.effects()[1], [3 * (high - low)[1], 0], atol=1e-12)
    # the square goes down and up again: its ends are near each other, its strength is not
    assert abs(found.effects()[0, 0]) < 0.3 < 0.8 < found.strength()[0, 0]


def test_many_decisions_are_thinned_and_rare_values_are_seen() -> None:
    observations = np.zeros((1000, 2))
    observations[:, 0] = np.linspace(0, 1, 1000)
    observations[500, 1] = 1.0
    calls: list[int] = []

    def respond(rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        return rows[:, :1]

    found = partial_dependence(respond, observations, ("a", "b"))
    assert calls == [POINTS * ROWS] * 2
    assert (found.observed[0, 0], found.observed[-1, 0]) == (0.0, 1.0)
    assert found.grid[1].min() == 0.0
    assert found.grid[1].max() == 1.0
    assert found.varied.tolist() == [True, True]


def test_policies_that_see_the_same_are_compared() -> None:
    def constant(value: float) -> Any:
        return lambda rows: np.full((len(rows), 2), value)

    alike = same_observations([constant(0.2), constant(0.5), lambda rows: rows[:, :2]], np.eye(4))
    np.testing.assert_allclose(np.diag(alike), 1.0)
    assert alike[0, 1] == alike[1, 0] == pytest.approx(0.7)
    assert alike[0, 2] == pytest.approx(1 - (2 * 0.8 + 6 * 0.2) / 8)


# --------------------------------------------------------------------------- every kind of policy

LOOKING = [
    ("a2c", False, {}),
    ("a2c", False, {"observation": "dict"}),
    ("a2c", True, {}),
    ("ppo", False, {}),
    ("ddpg", False, {}),
    ("ddpg", True, {}),
    ("bandit", False, {"algorithm": "linucb"}),
    ("annealed", True, {}),
    ("dynamic", True, {}),
    ("greedy", False, {}),
    ("all_action", False, {}),
    ("all_action", True, {}),
]


@pytest.mark.parametrize(("agent", "soft", "settings"), LOOKING)
def test_the_response_is_what_the_policy_says_one_by_one(
    agent: str, soft: bool, settings: dict[str, Any]
) -> None:
    policy = policy_of(agent, soft, **settings)
    assert blind_spot(policy) is None
    rows = np.random.default_rng(3).uniform(-1, 1, (20, FEATURES)).astype(np.float32)
    rows[:, 0] = np.abs(rows[:, 0])
    found = respond_with(policy)(rows)
    policy.reset(np.random.default_rng(0))
    said = np.stack([policy.act({"training": row}).probabilities for row in rows])
    assert found.shape == (20, len(POOL))
    np.testing.assert_allclose(found, said, atol=1e-6)
    if (agent, soft) != ("ddpg", False):  # its few decisions have taught it one mask
        assert np.ptp(found, axis=0).max() > 0


def test_a_policy_that_takes_the_likeliest_still_has_probabilities() -> None:
    policy = policy_of("a2c", False, final="mode")
    found = respond_with(policy)(np.zeros((2, FEATURES), np.float32))
    assert ((found > 0) & (found < 1)).all()


@pytest.mark.parametrize(
    ("agent", "settings", "says"),
    [
        ("bandit", {}, "exp3s does not look"),
        ("random_hard", {}, "random_hard is a rule that does not look"),
        ("round_robin", {}, "round_robin is a rule"),
        ("best_static", {"least": 2}, "best_static does not look"),
    ],
)
def test_policies_that_look_at_nothing(agent: str, settings: dict[str, Any], says: str) -> None:
    assert says in str(blind_spot(policy_of(agent, False, **settings)))


def test_a_policy_that_sees_more_than_a_schedule_holds() -> None:
    assert "also looks at student_cls" in str(blind_spot(policy_of("a2c", False, cls=4)))


# --------------------------------------------------------------------------- phases and the page


def test_phases_are_thirds() -> None:
    values = np.array([[1.0], [1.0], [0.0], [0.0], [1.0], [0.0]])
    assert phase_means(values)[:, 0].tolist() == [1.0, 0.0, 0.5]


def test_the_page_has_a_table_of_phases(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run"))
    assert run.schedule is not None
    html = phases(run)
    assert html.index("What it did") < html.index("What the policy meant")
    early = run.schedule.actions("final", 0)[:125, 0].mean()
    table = html[html.index("<th>label</th>") :]
    assert f">{early:.0%}</span>" in table[: table.index("</tr>")]
    # a policy that is certain meant what it did
    frame = run.schedule.frame
    frame["probabilities"] = frame["action"]
    assert "What the policy meant" not in phases(run)


def response_of(size: float) -> Response:
    def respond(rows: np.ndarray) -> np.ndarray:
        means = np.full((len(rows), len(POOL)), 0.5)
        means[:, 1] += size / 2 * rows[:, 2]
        return means

    names = feature_names(POOL)[: 6 + len(POOL)]  # of the blocks only that of the losses
    observations = seen(60, len(names))
    observations[:, 4] = 0.0
    return partial_dependence(respond, observations, names)


def test_the_page_says_what_moves_the_policy(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run"))
    html = learned(run, Learned(response_of(0.8)))
    table = html[html.index("What moves it most") : html.index("</table>")]
    assert re.findall(r"<tr><th>([^<]*)</th>", table)[1:] == ["entropy"]
    moved = response_of(0.8).effects()[2, 1]
    assert f"{moved:+.1%}" in table
    assert "Left out, since they never changed: last drop." in html
    for title in ("the state of the training", "the loss over its running size of each type"):
        assert f"Response to {title}" in html
    assert "All panels" not in html
    ids = re.findall(r'id="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_a_policy_that_hardly_responds_is_folded_and_one_that_does_not_is_said(
    tmp_path: Path,
) -> None:
    run = load_run(make_run(tmp_path / "run"))
    hardly = learned(run, Learned(response_of(0.02)))
    assert "What moves it most" in hardly
    assert "All panels; no line moves by more than 1.9%" in hardly
    never = learned(run, Learned(response_of(0.0)))
    assert f"no mean action moves by {FLAT:.1%} or more" in never
    assert "What moves it most" not in never
    assert "No responses are drawn: because." in learned(run, Learned(reason="because"))


def test_panels_share_an_axis_and_hold_the_curves() -> None:
    response = response_of(0.8)
    assert limits([response.curves]) == (0.1, 0.9)
    panel = panel_of(response, 2, "entropy")
    figure = small_multiples([("seed 0", [panel, None, panel])], POOL, (0.1, 0.9), "t")
    axes = figure.axes
    assert [one.get_title("left") for one in axes] == ["entropy", "", "entropy"]
    assert axes[0].get_ylabel() == "seed 0"
    drawn = np.stack([np.asarray(line.get_ydata()) for line in axes[0].lines], 1)
    np.testing.assert_allclose(drawn, response.curves[2])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == list(POOL)
    counts, _ = np.histogram(panel.seen, 14, (panel.grid[0], panel.grid[-1]))
    heights = [bar.get_height() for bar in axes[0].patches]
    np.testing.assert_allclose(np.array(heights) / max(heights), counts / counts.max())


def test_a_heat_table_is_as_strong_as_its_numbers() -> None:
    html = heat_table(["a", "b", "c/d"], ["x/y"], np.array([[-0.25, np.nan]]), "+.1f", signed=0.5)
    assert '<span class="heat under" style="--v:50%">-0.2</span>' in html
    assert "<td>&ndash;</td>" in html
    assert "x/<wbr>y" in html
    assert "c/<wbr>d" in html
    assert 'style="--v:0%">0.0%</span>' in heat_table(["a"], ["<"], np.array([[-1e-5]]), "+.1%", 1)
    assert "<th>&lt;</th>" in heat_table(["a"], ["<"], np.array([[1.0]]), ".0%")


def test_features_have_names() -> None:
    assert words("loss/hidden/skip") == "loss over its running size: hidden/skip"
    assert words("student_entropy") == "entropy"
    assert words("new_feature") == "new feature"
    known = {words(name) for name in feature_names(POOL)}
    assert len(known) == len(feature_names(POOL))


# --------------------------------------------------------------------------- from a run's folder


def test_a_real_run_has_its_response_on_the_page(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tiny_run(
        tmp_path,
        tiny_data,
        tiny_teacher,
        agent="a2c",
        optim={"max_updates": 12},
        a2c={"n_steps": 2},
    )
    loaded = load_run(run)
    found = report.learned_by(loaded).response
    assert found is not None
    assert loaded.schedule is not None
    rows = loaded.schedule.vectors("observation", "final", 0)
    np.testing.assert_array_equal(found.observed, rows)
    policy = report.policy_of(loaded)
    policy.reset(np.random.default_rng(0))
    logged = loaded.schedule.vectors("probabilities", "final", 0)
    np.testing.assert_allclose(respond_with(policy)(rows), logged, atol=1e-6)
    assert guard(report.main, [str(run)]) == 0
    assert "partial dependence" in (run / "report.html").read_text("utf-8")
    capsys.readouterr()


def test_why_there_is_no_response_is_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    loaded = load_run(run)
    assert report.learned_by(loaded).reason == "the run has left no policy"
    header = {
        "format": 1,
        "kind": "fixed",
        "agent": "static",
        "soft": False,
        "pool": list(SAMPLE_POOL),
        "observation": [],
        "settings": {"mask": ["all"]},
    }
    write_json(run / "policy" / "policy.json", header)
    assert "static is a rule that does not look" in report.learned_by(loaded).reason
    write_json(run / "policy" / "policy.json", {**header, "pool": ["label"]})
    assert "the policy in" in report.learned_by(loaded).reason
    said = f"`python -m ksel.report {run}` adds how the policy responds"
    assert said in write_report(run).read_text("utf-8")


def test_the_masks_of_a_search_are_a_table(tmp_path: Path) -> None:
    plays = [
        {"mask": list(SAMPLE_POOL), "rung": 1, "decisions": 5, "score": 0.25},
        {"mask": ["label"], "rung": 1, "decisions": 5, "score": 0.5},
        {"mask": ["response"], "rung": 1, "decisions": 2, "score": None},
        {"mask": ["label"], "rung": 2, "decisions": 20, "score": 0.75},
    ]
    record = {"episodes": 4, "learned": {"mask": ["label"], "plays": plays}}
    html = search(load_run(make_run(tmp_path / "run", search=record)))
    table = html[html.index("Masks that were compared") :]
    table = table[: table.index("</table>")]
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in table.split("<tr")[2:]]
    dot, off = "&#9679;", "&middot;"
    assert rows[0][-7:] == [dot, off, off, off, off, "+0.5", "+0.75"]
    assert rows[1][-6:] == [dot] * 5 + ["+0.25"]
    assert rows[2][-1] == "diverged"
    assert "5 decisions</th><th>20 decisions" in table


@pytest.mark.parametrize(("mode", "words_"), [("vmap", "(vmap)"), ("loop", "(loop)")])
def test_how_several_students_trained_is_said(tmp_path: Path, mode: str, words_: str) -> None:
    record = {"episodes": 4, "students": 3, "vectorized": mode, "learned": {}}
    html = search(load_run(make_run(tmp_path / "run", search=record)))
    assert "3 students side by side" in html
    assert words_ in html
