"""The plan is a pure function of the seed, and holds what it promises."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests.chaos.plan import ALL_WORKERS, CONTROLLER, RECOVERY_S, WEIGHTS, Kind, Shape, kinds, make_plan


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_the_same_seed_gives_the_same_plan_in_any_process(seed: int) -> None:
    program = f"from tests.chaos.plan import Shape, make_plan; print(make_plan({seed}, Shape()))"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": str(seed)})
    assert printed.stdout == f"{make_plan(seed, Shape())}\n"
    assert make_plan(seed, Shape()) == make_plan(seed, Shape())


def test_seeds_differ() -> None:
    plans = [make_plan(seed, Shape()) for seed in range(10)]
    assert len({plan.faults for plan in plans}) == len({plan.submissions for plan in plans}) == 10


def test_more_jobs_leave_the_faults_as_they_are() -> None:
    assert make_plan(3, Shape(jobs=10)).faults == make_plan(3, Shape(jobs=500)).faults


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_has_every_kind_of_fault_and_of_job(seed: int) -> None:
    plan = make_plan(seed, Shape())
    counts = Counter(fault.kind for fault in plan.faults)
    assert set(counts) == set(WEIGHTS)
    assert len(plan.faults) >= 40
    assert len(plan.submissions) >= 500
    for wanted in ("encoder", "is_repeated", "is_watched", "is_refused", "cancel_after_s", "deadline_s"):
        assert any(getattr(submission, wanted) for submission in plan.submissions), wanted


@pytest.mark.parametrize("seed", range(20))
def test_faults_of_one_target_leave_it_time_between(seed: int) -> None:
    free_at_s: dict[str, float] = {}
    for fault in make_plan(seed, Shape()).faults:
        targets = [*Shape().workers, CONTROLLER] if fault.target == ALL_WORKERS else [fault.target]
        for target in [CONTROLLER if name == "state" else name for name in targets]:
            assert fault.at_s >= free_at_s.get(target, 0.0) - 0.01
            free_at_s[target] = fault.at_s + fault.duration_s + RECOVERY_S


@pytest.mark.parametrize("seed", range(5))
def test_two_controllers_have_takeovers_besides(seed: int) -> None:
    counts = Counter(fault.kind for fault in make_plan(seed, Shape(controllers=2, faults=60)).faults)
    assert set(counts) == set(Kind)
    assert counts[Kind.TAKEOVER] == 4


def test_a_short_plan_has_each_kind_once_before_any_twice() -> None:
    assert set(kinds(len(WEIGHTS))) == set(WEIGHTS)
    assert len(kinds(100)) == 100
