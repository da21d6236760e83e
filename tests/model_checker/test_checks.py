"""Exhaustive searches of the model: no schedule breaks an invariant, and planted mistakes are found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.model_checker import spin
from tests.model_checker.configurations import CHECKED, LIVENESS, MISTAKES, NEVER_SETTLES, SAFETY, Configuration
from tests.model_checker.replay import FIRST_CONSUMER
from tests.model_checker.spin import Outcome

if not spin.is_installed():
    pytest.skip(spin.INSTALL, allow_module_level=True)

SEARCHES_AT_ONCE = 2
"""Each is one thread and takes up to 0.6 GiB."""
STATES_MIN = 100_000
"""A search of fewer hasn't seen what it is for."""
README = (spin.MODEL.parent / "README.md").read_text()

Outcomes = Mapping[str, Future[Outcome]]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """What became of the configurations that the chosen tests are about, side by side."""
    chosen = [item.callspec.params.get("configuration") for item in request.session.items if hasattr(item, "callspec")]
    wanted = [configuration for configuration in CHECKED if configuration in chosen]
    with ThreadPoolExecutor(SEARCHES_AT_ONCE) as pool:
        yield {configuration.name: pool.submit(spin.check, configuration) for configuration in wanted}
        pool.shutdown(cancel_futures=True)


def by_name(configuration: Configuration) -> str:
    return configuration.name


@pytest.mark.parametrize("configuration", SAFETY, ids=by_name)
def test_no_state_breaks_a_promise(configuration: Configuration, outcomes: Outcomes) -> None:
    check_clean(outcomes[configuration.name].result())


@pytest.mark.parametrize("configuration", LIVENESS, ids=by_name)
def test_every_schedule_settles(configuration: Configuration, outcomes: Outcomes) -> None:
    check_clean(outcomes[configuration.name].result())


def check_clean(outcome: Outcome) -> None:
    assert outcome.error_count == 0, "\n".join((*outcome.trail, outcome.error))
    assert outcome.state_count > STATES_MIN


@pytest.mark.parametrize("configuration", MISTAKES, ids=by_name)
def test_a_planted_mistake_is_found(configuration: Configuration, outcomes: Outcomes) -> None:
    outcome = outcomes[configuration.name].result()
    assert outcome.error_count > 0, f"{configuration.name}: not noticed in {outcome.state_count} states"
    if configuration.violation == NEVER_SETTLES:
        assert NEVER_SETTLES in outcome.trail
    else:
        assert outcome.trail[-1] == f"violated: {configuration.violation}", "\n".join(outcome.trail)


@pytest.mark.parametrize("configuration", [one for one in MISTAKES if one.is_shortest], ids=by_name)
def test_the_readme_shows_the_counterexample(configuration: Configuration, outcomes: Outcomes) -> None:
    for number, step in enumerate(outcomes[configuration.name].result().trail[:-1], start=1):
        _, rank, what = step.split(" ", maxsplit=2)
        process = "publisher" if int(rank) < FIRST_CONSUMER else "consumer"
        assert f"| {number} | {process} {rank} | {what} |" in README
