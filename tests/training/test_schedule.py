import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmloop.preset.schema import TOKENS_PER_RUN, TrainSection
from lmloop.training.schedule import Schedule
from lmloop.training.state import Progress


def schedule(seq_length: int = 64, tokens_per_step: int = 1_000, **train: object) -> Schedule:
    return Schedule(TrainSection.model_validate(train), seq_length=seq_length, tokens_per_step=tokens_per_step)


def rates(plan: Schedule, steps: int) -> list[float]:
    made = []
    for step in range(steps):
        progress = Progress(step=step, tokens=step * plan.tokens_per_step)
        made.append(plan.rate_factor(progress, plan.fraction(progress, 0.0)))
    return made


def test_a_preset_without_a_budget_trains_a_hundred_million_tokens_a_run() -> None:
    plan = schedule()
    assert TOKENS_PER_RUN == 100_000_000
    assert not plan.finished(Progress(tokens=99_999_999))
    assert plan.finished(Progress(tokens=100_000_000))
    assert plan.renews
    again = Progress(step=10, tokens=100_000_000)
    again.start_new_budget()
    assert plan.fraction(again, 0.0) == 0.0
    again.tokens += 50_000_000
    assert plan.fraction(again, 0.0) == 0.5


def test_a_total_of_tokens_counts_all_runs() -> None:
    plan = schedule(num_tokens="1.5K")
    progress = Progress(tokens=1_000)
    progress.start_new_budget()
    assert plan.fraction(progress, 0.0) == pytest.approx(2 / 3)
    assert not plan.renews


def test_warmup_then_cosine_follows_the_formula() -> None:
    plan = schedule(max_steps=100, warmup_steps=10, min_lr_fraction=0.1)
    made = rates(plan, 100)
    assert made[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    for step in range(10, 100):
        assert made[step] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step / 100 - 0.1) / 0.9)))


def test_stable_then_decay() -> None:
    made = rates(
        schedule(max_steps=100, lr_schedule="wsd", warmup_fraction=0.05, decay_fraction=0.2, min_lr_fraction=0.0), 100
    )
    assert made[5:80] == pytest.approx([1.0] * 75)
    assert made[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


@given(
    st.sampled_from(["cosine", "wsd", "constant"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.none(), st.integers(0, 50)),
)
def test_the_rate_stays_between_nothing_and_the_peak(
    kind: str, warmup: float, decay: float, floor: float, steps: int | None
) -> None:
    plan = schedule(
        max_steps=40,
        lr_schedule=kind,
        warmup_fraction=warmup,
        decay_fraction=decay,
        min_lr_fraction=floor,
        warmup_steps=steps,
    )
    assert all(0.0 < rate <= 1.0 + 1e-9 or (rate == 0.0 and floor == 0.0) for rate in rates(plan, 40))


def lengths(plan: Schedule, steps: int, epochs: bool = False) -> list[int]:
    found = []
    for step in range(steps):
        progress = Progress(epochs=step) if epochs else Progress(step=step, tokens=step * plan.tokens_per_step)
        found.append(plan.length(progress, plan.fraction(progress, 0.0)))
    return found


def test_stages_by_epoch() -> None:
    plan = schedule(seq_length=24, sequence_schedule=[1, 8, 24], epochs_per_length={"1": 1, "8": 3, "24": 2})
    assert lengths(plan, 6, epochs=True) == [1, 8, 8, 8, 24, 24]
    assert plan.counts_epochs
    assert plan.finished(Progress(epochs=6))


def test_an_epoch_that_was_thought_nearly_over_does_not_end_its_stage() -> None:
    plan = schedule(seq_length=8, sequence_schedule=[1, 8], epochs_per_length={"1": 1, "8": 1})
    progress = Progress(epochs=0)
    assert plan.length(progress, plan.fraction(progress, 1.0)) == 1


def test_stages_by_tokens() -> None:
    plan = schedule(
        seq_length=16, tokens_per_step=100, sequence_schedule=[{"length": 1, "tokens": 200}, {"length": 16, "tokens": 300}]
    )
    assert lengths(plan, 5) == [1, 1, 16, 16, 16]
    assert not plan.renews


def test_plain_lengths_share_the_budget() -> None:
    assert lengths(schedule(seq_length=4, max_steps=4, sequence_schedule=[1, 4]), 4) == [1, 1, 4, 4]


@pytest.mark.parametrize(
    "schedule_of",
    [
        [1, 4],
        [{"length": 1, "tokens": 200}, {"length": 16, "tokens": 600}],
        {"start": 8, "end": 64, "until": 0.6, "multiple_of": 8},
        {"start": 8, "end": 64, "until": 1.0},
        None,
    ],
    ids=str,
)
def test_the_share_of_each_length(schedule_of: object) -> None:
    budget = {} if isinstance(schedule_of, list) and isinstance(schedule_of[0], dict) else {"max_steps": 1_000}
    plan = schedule(seq_length=64, tokens_per_step=1, sequence_schedule=schedule_of, **budget)
    shares = plan.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    found = lengths(plan, 1_000 if budget else 800)
    mean = sum(length * share for length, share in shares.items())
    assert mean == pytest.approx(sum(found) / len(found), rel=0.06)  # of a ramp there are steps
    assert set(shares) <= set(found)


def test_a_ramp_grows_to_its_end() -> None:
    found = lengths(
        schedule(seq_length=64, max_steps=10, sequence_schedule={"start": 1, "end": 64, "until": 0.5, "multiple_of": 8}), 10
    )
    assert found[0] == 1
    assert found == sorted(found)
    assert set(found[5:]) == {64}
    assert all(length == 1 or length % 8 == 0 for length in found)


@pytest.mark.parametrize(
    "train",
    [
        {"sequence_schedule": [1, 128], "max_steps": 5},
        {"sequence_schedule": {"start": 1, "end": 128}, "max_steps": 5},
        {"sequence_schedule": [{"length": 128, "epochs": 1}]},
    ],
)
def test_a_stage_longer_than_the_context_is_refused(train: dict) -> None:
    with pytest.raises(ValueError, match=r"exceeds model\.seq_length 64"):
        schedule(**train)


def test_progress_survives_the_checkpoint() -> None:
    progress = Progress(step=3, tokens=77, best_val_loss=1.5, interval={"loss": 2.0}, interval_sources={"a": 4})
    assert Progress.from_state_dict(progress.state_dict()) == progress
    with pytest.raises(ValueError, match="does not know"):
        Progress.from_state_dict({**progress.state_dict(), "novel": 1})
