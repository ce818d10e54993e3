"""The settings of the pool: ranges, weights and their schedules, settings that nothing reads."""

import pytest

from ksel.config import KnowledgeConfig
from ksel.errors import UsageError
from ksel.knowledge import KINDS, build_pool, schedule_factor
from ksel.tasks import get_task
from ksel.types import Shape, TeacherView

TEACHER = Shape(layers=12, width=24, heads=4, feed_forward=48)
STUDENT = Shape(layers=6, width=24, heads=4, feed_forward=48)


def build(*specs, task="qnli", teachers=1, **settings):
    return build_pool(
        KnowledgeConfig(pool=list(specs), **settings),
        task=get_task(task),
        student=STUDENT,
        teachers=[TeacherView(TEACHER)] * teachers,
        seed=0,
    )


# Weights.


def test_weights_follow_the_order_of_the_pool():
    pool = build("label", "hidden", "fsp/last", weights={"fsp/last": 0.5, "hidden": 3.0})
    assert pool.weights == (1.0, 3.0, 0.5)
    assert build("label", "hidden", weights={"hidden/skip": 2.0}).weights == (1.0, 2.0)


@pytest.mark.parametrize("name", ["hidden/last", "response", "labl", "hidden/skip/skip"])
def test_a_weight_of_a_type_outside_the_pool_is_refused(name):
    with pytest.raises(UsageError, match=f"^--knowledge.weights: .*'{name}'.*label, hidden/skip"):
        build("label", "hidden", weights={name: 2.0})


def test_two_weights_of_one_type_are_refused():
    with pytest.raises(UsageError, match=r"--knowledge\.weights: 'hidden/skip' has two weights"):
        build("hidden", weights={"hidden": 1.0, "hidden/skip": 2.0})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_a_positive_number(weight):
    with pytest.raises(UsageError, match=r"^--knowledge\.weights: .*'label'.*above 0"):
        build("label", weights={"label": weight})


def test_weights_of_several_teachers_follow_their_names():
    weights = {"hidden@2": 3.0, "response@1": 0.5, "hidden/skip": 2.0}
    pool = build("response", "hidden", "hidden/skip@2", "response@2", teachers=2, weights=weights)
    assert pool.weights == (0.5, 2.0, 3.0, 1.0)


# Schedules of weights.


def test_schedules_follow_the_order_of_the_pool():
    schedules = {"hidden": "decay", "label": "growth"}
    pool = build("response", "label", "hidden", weight_schedules=schedules)
    assert pool.schedules == ("constant", "growth", "decay")
    assert pool.factors(0.25) == (1.0, 0.25, 0.75)


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.999])
def test_growth_and_decay_add_up_to_one(progress):
    growth, decay = (schedule_factor(name, progress) for name in ("growth", "decay"))
    assert growth == progress
    assert growth + decay == 1.0
    assert schedule_factor("constant", progress) == 1.0


def test_schedules_are_checked_like_weights():
    with pytest.raises(UsageError, match=r"^--knowledge\.weight_schedules: .*'hidden/last'.*label"):
        build("label", "hidden", weight_schedules={"hidden/last": "decay"})
    with pytest.raises(UsageError, match=r"^--knowledge\.weight_schedules: 'hidden/skip' has two"):
        build("hidden", weight_schedules={"hidden": "decay", "hidden/skip": "decay"})
    with pytest.raises(
        UsageError, match=r"^--knowledge\.weight_schedules: .*'decline'.*growth, dec"
    ):
        build("label", weight_schedules={"label": "decline"})


# Ranges.


@pytest.mark.parametrize("temperature", [0.0, -2.0, float("nan"), float("inf")])
def test_a_temperature_must_be_a_positive_number(temperature):
    with pytest.raises(UsageError, match=r"^--knowledge\.temperature: .*above 0"):
        build("response", temperature=temperature)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_must_be_below_one(decay):
    with pytest.raises(UsageError, match=r"^--knowledge\.ema_decay: .*0\.98"):
        build("label", ema_decay=decay)


def test_a_decay_of_zero_is_fine():
    assert len(build("label", ema_decay=0.0)) == 1


@pytest.mark.parametrize("heads", [0, -4])
def test_relation_heads_must_be_positive(heads):
    with pytest.raises(UsageError, match=r"^--knowledge\.relation_heads: .*1 or more, or null"):
        build("value_relation", relation_heads=heads)


@pytest.mark.parametrize("name", ["temperature_end", "temperature_range", "temperature_power"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_a_schedule_works_with_must_be_positive(name, value):
    with pytest.raises(UsageError, match=rf"^--knowledge\.{name}: .*above 0"):
        build("response", temperature_schedule="flsw", **{name: value})


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_contrastive_temperature_must_be_positive(value):
    with pytest.raises(UsageError, match=r"^--knowledge\.contrastive_temperature: .*above 0"):
        build("sample_contrastive", contrastive_temperature=value)


def test_steps_must_not_be_negative():
    with pytest.raises(UsageError, match=r"^--knowledge\.logit_annealing: .*or 0 for none"):
        build("logits", logit_annealing=-1)


def test_an_empty_pool_is_refused():
    with pytest.raises(UsageError, match=r"^--knowledge\.pool: the pool is empty.*'response'"):
        build()


# Settings that something must read.


VALUES = {
    "temperature": 8.0,
    "temperature_schedule": "flsw",
    "confidence": True,
    "logit_annealing": 7,
    "normalize_cls": False,
    "cls_reduction": "width",
    "cls_last": "keep",
    "projection": "always",
    "attention_loss": "kl",
    "attention_on": "scores",
    "contrastive_temperature": 0.5,
    "relation_heads": 2,
}
READERS = {
    "temperature": ["response"],
    "temperature_schedule": ["response"],
    "confidence": ["response"],
    "logit_annealing": ["logits"],
    "normalize_cls": ["cls_hidden"],
    "cls_reduction": ["cls_hidden"],
    "cls_last": ["cls_hidden"],
    "projection": ["cls_hidden", "hidden", "embedding", "cosine", "fsp"],
    "attention_loss": ["attention", "attention_mean"],
    "attention_on": ["attention", "attention_mean", "attention_sum"],
    "contrastive_temperature": ["sample_contrastive"],
    "relation_heads": ["query_relation", "key_relation", "value_relation"],
}
SWITCHED = [
    *("temperature_end", "temperature_range", "temperature_power"),
    *("balance_every", "ema_decay", "max_gain"),
]


def test_every_setting_is_covered_here():
    plain = {"pool", "balance", "weights", "weight_schedules"}
    assert {*VALUES, *SWITCHED, *plain} == set(vars(KnowledgeConfig()))


@pytest.mark.parametrize("setting", VALUES)
def test_a_setting_is_read_by_its_kinds_and_no_others(setting):
    change = {setting: VALUES[setting]}
    for kind in KINDS:
        if kind in READERS[setting]:
            assert len(build(kind, "nst", **change)) == 2
            continue
        with pytest.raises(UsageError) as error:
            build(kind, **change)
        known = ", ".join(READERS[setting])
        assert str(error.value).startswith(f"--knowledge.{setting}: only {known} use it")


@pytest.mark.parametrize(
    ("setting", "value", "switch", "off", "on"),
    [
        ("balance_every", 3, "balance", ["none", "ema"], ["gradient"]),
        ("ema_decay", 0.5, "balance", ["none"], ["ema", "gradient"]),
        ("max_gain", 5.0, "balance", ["none"], ["ema", "gradient"]),
        ("temperature_end", 2.0, "temperature_schedule", ["constant", "flsw", "cwsm"], ["linear"]),
        (
            "temperature_range",
            2.0,
            "temperature_schedule",
            ["constant", "linear"],
            ["flsw", "cwsm"],
        ),
        (
            "temperature_power",
            2.0,
            "temperature_schedule",
            ["constant", "linear", "cwsm"],
            ["flsw"],
        ),
        ("attention_on", "scores", "attention_loss", ["kl"], ["mse"]),
    ],
)
def test_a_setting_that_another_switches_off_is_refused(setting, value, switch, off, on):
    pool = ("response", "attention", "attention_mean")
    for choice in off:
        with pytest.raises(UsageError) as error:
            build(*pool, **{setting: value, switch: choice})
        message = str(error.value)
        assert message.startswith(
            f"--knowledge.{setting}: not used with --knowledge.{switch} {choice}"
        )
        assert f"set --knowledge.{switch} {' or '.join(on)}" in message
    for choice in on:
        assert len(build(*pool, **{setting: value, switch: choice})) == 3


def test_attention_sum_reads_attention_on_beside_divergences():
    pool = build("attention", "attention_sum", attention_loss="kl", attention_on="scores")
    assert len(pool) == 2


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [("temperature_schedule", "linear", "constant"), ("confidence", True, "false")],
)
def test_scores_have_neither_temperature_schedules_nor_confidence(option, value, advice):
    with pytest.raises(UsageError) as error:
        build("response", task="stsb", **{option: value})
    message = str(error.value)
    assert message.startswith("--knowledge.pool: 'response' compares scores in stsb")
    assert f"Set --knowledge.{option} {advice}." in message
    assert len(build("response", task="stsb", temperature=7.0)) == 1


@pytest.mark.parametrize(("task", "labels"), [("stsb", "scores"), ("squad", "spans of text")])
def test_contrast_needs_classes(task, labels):
    with pytest.raises(UsageError) as error:
        build("sample_contrastive@2", task=task, teachers=2)
    message = str(error.value)
    assert message.startswith("--knowledge.pool: 'sample_contrastive@2'")
    assert f"the labels of {task} are {labels}" in message
    assert message.endswith(
        "Leave it out of --knowledge.pool and of --stages (MLKD-BERT: --method mlkd_bert_span), or put 'sample_similarity@2', which needs "
        "no labels, in its place."
    )
    assert len(build("sample_similarity@2", task=task, teachers=2)) == 1


def test_the_alternative_to_contrast_is_not_named_where_it_is_in_the_pool():
    with pytest.raises(UsageError) as error:
        build("sample_similarity", "sample_contrastive", task="squad")
    assert str(error.value).endswith(
        "Leave it out of --knowledge.pool and of --stages (MLKD-BERT: --method mlkd_bert_span)."
    )
    with pytest.raises(UsageError, match=r"put 'sample_similarity@2'"):
        build("sample_similarity", "sample_contrastive@2", task="squad", teachers=2)


@pytest.mark.parametrize("task", ["qnli", "stsb", "squad"])
def test_all_other_kinds_serve_every_task(task):
    kinds = [kind for kind in KINDS if kind != "sample_contrastive"]
    assert len(build(*kinds, task=task)) == len(kinds)
