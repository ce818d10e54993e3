"""The main job: ``python -m ksel.run --task qnli --agent a2c``. Parses, wires the rooms, prints.

Stages: prepare data, teacher and student; search, in which the agent learns over episodes; the
final student under the frozen policy; reference students; summary and report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gymnasium import spaces

from agents.fixed import static_policy
from agents.make import (
    check_agent,
    check_settings,
    get_agent,
    make_agent,
    resolve_actions,
    resolve_objective,
    resolve_reward,
    resolve_search,
)
from agents.policy import Learner, Policy, load_policy
from agents.stable_baselines import check_students
from envs.distillation import DistillationEnv
from envs.keeping import KNOWN
from envs.seats import refuse_unfit
from ksel.artifacts import make_run_folder, write_settings
from ksel.checkpoints import Checkpoints
from ksel.checks import check_unrewarded
from ksel.cli import INTERRUPTED_EXIT, guard, quiet_libraries, shielded
from ksel.config import RunConfig
from ksel.errors import UsageError
from ksel.job_stages import Role, begin_stage, distil, measure_teacher, search_stage
from ksel.knowledge import KINDS, KnowledgePool, kind_of
from ksel.leaving import Job, fail, leave, stopped, write_policy, write_student
from ksel.locks import alone
from ksel.machine import resolve_threads
from ksel.packing import State
from ksel.planning import episode_updates
from ksel.resuming import (
    begin_anew,
    find_state,
    interrupted_settings,
    restore_job,
    resume_folder,
)
from ksel.saved import CONFIG, POLICY, inputs
from ksel.settings import config_files, layer_names, parse_run
from ksel.setup import Setup, prepare
from ksel.stages import Stage, decision_count, stage_ends, stage_shares
from ksel.summary import opening_lines, print_summary
from ksel.tracking import Progress, Tracker
from ksel.trajectory import ScheduleWriter

Decide = Callable[[Setup, DistillationEnv], Policy]
"""Gives the policy that decides in the place of the run's agent."""


def main(argv: list[str], decide: Decide | None = None) -> int:
    """Run the main job, or go on with an interrupted one; returns the exit code.

    Args:
        argv: the settings; or ``--resume RUN`` alone.
        decide: gives a policy that was learned before; then there is no search.
    """
    quiet_libraries()
    interrupted = resume_folder(argv)
    if interrupted is None:
        config, soft = read_settings(argv)
        folder = make_run_folder(config)
    else:
        config, soft = _checked(interrupted_settings(interrupted))
        folder = interrupted
    with alone(folder), Progress() as progress:
        job = Job(config, folder, progress, soft, resumed=interrupted is not None)
        _say_begin(job, argv)
        try:
            _work(job, decide)
            job.status = "complete"
        except KeyboardInterrupt:
            if job.resumed and job.stage == "setup":
                raise  # nothing was gone on with; what the folder holds stays as it was
            job.status = "interrupted"
            progress.say("stopped by Ctrl-C: writing what there is")
        except Exception as error:
            fail(job, error)
            raise
        with shielded():
            summary = leave(job)
            if job.status == "complete" and job.checkpoints is not None:
                job.checkpoints.clear()
    if job.status == "complete":
        print_summary(summary)
        print(f"student: {folder / 'student'}")
        print(f"report: {folder / 'report.html'}")
        print(f"curves: tensorboard --logdir {folder / 'tensorboard'}")
        return 0
    print(f"go on with it: python -m ksel.run --resume {folder}")
    print(stopped(summary, folder))
    return INTERRUPTED_EXIT


def _say_begin(job: Job, argv: Sequence[str]) -> None:
    config, say = job.config, job.progress.say
    masks = "soft" if job.soft else "hard"
    method = f"method {config.method}, " if config.method else ""
    say(
        f"run: {config.task}, {method}agent {config.agent} ({masks} masks), seed {config.seed}; "
        f"folder {job.folder}"
    )
    if job.resumed:
        say(f"settings: {job.folder / CONFIG}")
        return
    layers = [*(f"configs/{name}" for name in layer_names(argv)), *config_files(argv)]
    say(f"settings: {', '.join([*layers, 'the command line'])}, each over the one before")


def read_settings(argv: Sequence[str]) -> tuple[RunConfig, bool]:
    """The settings of a run, checked as far as that needs no data, and whether actions are weights.

    Raises:
        UsageError: names the option and the fix.
    """
    return _checked(parse_run(argv))


def _checked(config: RunConfig) -> tuple[RunConfig, bool]:
    check_settings(config)
    check_references(config, None)
    info = get_agent(config.agent)
    if not info.learns and "amortized" not in info.rewards:
        check_unrewarded(config, observes=info.observes)
    soft = resolve_actions(config.agent, config.env.actions)
    config = resolve_threads(_resolve(config))
    check_students(config)
    if config.students > 1:
        refuse_unfit(config.env, config.search, config.students)
    return config, soft


def _resolve(config: RunConfig) -> RunConfig:
    """The settings with what ``auto`` stands for, so that a repeat does the same."""
    search = resolve_search(config.agent, config.search)
    reward = resolve_reward(config.agent, config.env.reward, search)
    env = replace(config.env, reward=reward, objective=resolve_objective(config))
    return replace(config, search=search, env=env)


def _work(job: Job, decide: Decide | None = None) -> None:
    config, progress, soft = job.config, job.progress, job.soft
    job.setup = setup = prepare(config, progress, partial(_check, config))
    job.config = config = setup.config
    episode = episode_updates(config, setup.updates)
    env = DistillationEnv(setup=setup, soft=soft)
    agent: Policy | Learner
    if decide is None:
        agent = make_agent(config, setup.pool.names, spaces.Dict(env.spaces), env.action_space)
    else:
        agent = decide(setup, env)
    episodic = isinstance(agent, Learner) and config.search == "episodes"
    for line in opening_lines(setup, episode if episodic else None):
        progress.say(line)
    job.writer = ScheduleWriter(setup.pool.names, env.feature_names, _meta(job, decide))
    job.checkpoints = Checkpoints(job.folder, config.checkpoint, KNOWN, _size(job))
    state = find_state(job, KNOWN) if job.resumed else None
    purge = None
    if state is not None:
        purge = restore_job(job, state)
    elif job.resumed:
        begin_anew(job.folder)
    write_settings(job.folder, config, setup.origin)
    with Tracker(job.folder, setup.pool.names, purge) as tracker:
        tracker.layout()
        if state is None:
            job.stage = "teacher"
            measure_teacher(job, setup, tracker)
        stages = ["search"] * episodic + ["final"] + [f"reference:{n}" for n in config.references]
        for stage in stages[stages.index(state["stage"]) if state else 0 :]:
            _stage(job, stage, agent, env, tracker, state)
            state = None


def _stage(
    job: Job,
    stage: str,
    agent: Policy | Learner,
    env: DistillationEnv,
    tracker: Tracker,
    state: State | None,
) -> None:
    """One stage of the job, from its beginning or from a state."""
    setup, config = env.setup, job.config
    assert job.writer is not None
    if isinstance(agent, Learner) and stage in ("search", "final"):
        job.learner = agent
    if stage == "search":
        assert isinstance(agent, Learner)
        inside = begin_stage(job, stage, state)
        updates = episode_updates(config, setup.updates)
        search_env = DistillationEnv(setup=setup, soft=job.soft, updates=updates)
        search_stage(job, agent, search_env, tracker, inside)
        job.policy = agent.frozen()
        write_policy(job)
        return
    job.policy = _policy_now(job, stage, agent, env)
    if stage == "final":
        # From here on the student is the final one, also if Ctrl-C comes before its first update.
        setup.distiller.reset(config.seed, setup.updates)
        observes = get_agent(config.agent).observes
        # a policy that looks at nothing, such as the mask of best_static, needs no measuring
        measure = observes and (agent.learns or config.env.reward == "amortized")
        job.writer.meta |= {"measured": measure, "observed": observes}
        role = Role(job.policy or agent, "selected", measure, observe=observes)
    else:
        name = stage.removeprefix("reference:")
        mask = static_policy(_mask(name), setup.pool.names, job.soft, "--references")
        # "all" is the run's own pool as it stands; one type alone has no stages to go through
        role = Role(mask, name, measure=False, plain=name != "all")
    distil(job, role, env, tracker, begin_stage(job, stage, state))
    if stage == "final":
        write_policy(job)
        write_student(job)


def _policy_now(
    job: Job, stage: str, agent: Policy | Learner, env: DistillationEnv
) -> Policy | None:
    """The frozen policy; None while the agent still learns. An interrupted run has it in its folder."""
    if not isinstance(agent, Learner):
        return agent
    if agent.learned:
        return agent.frozen()
    if stage == "final" and job.config.search != "episodes":
        return None
    shapes = {name: tuple(space.shape or ()) for name, space in env.spaces.items()}
    job.learner = None
    return load_policy(job.folder / POLICY, pool=env.pool_names, observation=shapes)


def _size(job: Job) -> float:
    """Bytes of a checkpoint, about: weights and both moments of each student."""
    assert job.setup is not None
    own = sum(tensor.nbytes for tensor in job.setup.distiller.tensors)
    return 3.0 * own * job.config.students


def _meta(job: Job, decide: Decide | None) -> dict[str, Any]:
    """What the schedule's file says of the run."""
    setup, config = job.setup, job.config
    assert setup is not None
    meta = {
        "soft": job.soft,
        "task": config.task,
        "agent": config.agent,
        "seed": config.seed,
        "data": setup.origin,
        "builtin_data": setup.builtin,
        "updates": setup.updates,
        "stage_ends": list(setup.distiller.ends),
        "inputs": inputs(setup),
    }
    return meta if decide is None else {**meta, "decided": True}


def _check(config: RunConfig, pool: KnowledgePool, stages: tuple[Stage, ...], updates: int) -> None:
    """Refuse what this pool and budget do not allow, before any teacher is trained."""
    check_references(config, pool.names)
    ends = stage_ends(stage_shares(config.stages), episode_updates(config, updates))
    online = config.search in ("online", "branch")
    if online:
        ends = stage_ends(stage_shares(config.stages), updates)
    count = 1 if online else config.episodes.count
    decisions = count * decision_count(ends, config.env.phase_steps)
    check_agent(config, pool.names, decisions, [stage.allowed for stage in stages])


def check_references(config: RunConfig, pool: Sequence[str] | None) -> None:
    """Refuse reference students that this pool cannot make.

    Args:
        config: the run.
        pool: names of the knowledge types; None = not built yet: check what needs no pool.

    Raises:
        UsageError: names the reference and what is missing.
    """
    specs = config.knowledge.pool
    if "finetune" in config.references and "label" not in specs and _are_kinds(specs):
        raise UsageError(
            "--references finetune trains on the label alone, and --knowledge.pool has no "
            "'label'. Add it to the pool, or leave finetune out of --references."
        )
    if len(set(config.references)) != len(config.references):
        raise UsageError("--references: each name once.")
    for name in config.references if pool is not None else ():
        static_policy(_mask(name), pool or (), option="--references")


def _are_kinds(specs: Sequence[str]) -> bool:
    """False where the pool has mistakes of its own, which are told when it is built."""
    return bool(specs) and all(kind_of(spec) in KINDS for spec in specs)


def _mask(reference: str) -> list[str]:
    return ["label"] if reference == "finetune" else [reference]


if __name__ == "__main__":
    sys.exit(guard(main))
