"""Whose turn it is, for any order of arrivals: against a plain model, and by what a client may rely on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.controller.fair_queue import PRIORITY_ORDER, FairQueue
from triptych.v1.job_pb2 import PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, PRIORITY_UNSPECIFIED

CLIENTS = "abcd"
ARRIVALS = st.lists(st.tuples(st.sampled_from(CLIENTS), st.sampled_from(PRIORITY_ORDER)), max_size=40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(CLIENTS), st.sampled_from(PRIORITY_ORDER)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("discard"), st.integers(0, 40)),
    ),
    max_size=80,
)


class Model:
    """The same by brute force: all that wait in one list, and who was served when."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, str, int]] = []
        self.turns: dict[int, list[str]] = {priority: [] for priority in PRIORITY_ORDER}

    def put(self, job: str, client: str, priority: int) -> None:
        self.waiting.append((job, client, priority))
        if client not in self.turns[priority]:
            self.turns[priority].append(client)

    def head(self) -> str | None:
        for priority in PRIORITY_ORDER:
            for client in self.turns[priority]:
                return next(job for job, c, p in self.waiting if (c, p) == (client, priority))
        return None

    def remove(self, job: str, *, served: bool) -> None:
        found = [entry for entry in self.waiting if entry[0] == job]
        if not found:
            return
        ((_, client, priority),) = found
        self.waiting.remove(found[0])
        is_left = any((c, p) == (client, priority) for _, c, p in self.waiting)
        turns = self.turns[priority]
        if served or not is_left:
            turns.remove(client)
        if served and is_left:
            turns.append(client)


def drain(queue: FairQueue) -> list[str]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item[0])
    assert len(queue) == 0
    return found


@given(STEPS)
def test_it_does_what_the_plain_model_does(steps: list[tuple[object, ...]]) -> None:
    queue = FairQueue()
    model = Model()
    count = 0
    for name, *arguments in steps:
        if name == "put":
            client, priority = arguments
            queue.put(f"{count}", 0, client, priority)
            model.put(f"{count}", client, priority)
            count += 1
        elif name == "discard":
            queue.discard(f"{arguments[0]}")
            model.remove(f"{arguments[0]}", served=False)
        else:
            popped = queue.pop()
            assert (popped and popped[0]) == model.head()
            if popped:
                model.remove(popped[0], served=True)
        assert len(queue) == len(model.waiting)
        head = queue.head()
        assert (head and head[0]) == model.head()


@given(ARRIVALS)
def test_what_a_client_may_rely_on(arrivals: list[tuple[str, int]]) -> None:
    queue = FairQueue()
    jobs = {}
    for number, (client, priority) in enumerate(arrivals):
        jobs[f"{number:03}"] = (client, priority)
        queue.put(f"{number:03}", 0, client, priority)
    served = drain(queue)
    assert sorted(served) == sorted(jobs)
    ranks = [PRIORITY_ORDER.index(jobs[job][1]) for job in served]
    assert ranks == sorted(ranks), "a lower priority came before a higher one"
    for priority in PRIORITY_ORDER:
        of_it = [job for job in served if jobs[job][1] == priority]
        for client in CLIENTS:
            own = [job for job in of_it if jobs[job][0] == client]
            assert own == sorted(own), "a client's own jobs changed their order"
        counts = dict.fromkeys(CLIENTS, 0)
        totals = {client: sum(jobs[job][0] == client for job in of_it) for client in CLIENTS}
        for job in of_it:
            counts[jobs[job][0]] += 1
            waiting = [counts[client] for client in CLIENTS if counts[client] < totals[client]]
            assert not waiting or max(counts.values()) - min(waiting) <= 1, "a client had two turns while one waited"


def test_a_late_client_waits_for_one_job_of_each_other() -> None:
    queue = FairQueue()
    for client in "ab":
        for number in range(100):
            queue.put(f"{client}{number}", 0, client, PRIORITY_NORMAL)
    assert [queue.pop() for _ in range(3)] == [("a0", 0), ("b0", 0), ("a1", 0)]
    queue.put("late", 0, "c", PRIORITY_NORMAL)
    assert [queue.pop() for _ in range(3)] == [("b1", 0), ("a2", 0), ("late", 0)]


def test_a_job_that_waits_keeps_its_place_in_a_new_generation() -> None:
    queue = FairQueue()
    queue.put("one", 0, "", PRIORITY_NORMAL)
    queue.put("two", 0, "", PRIORITY_NORMAL)
    queue.put("one", 3, "", PRIORITY_NORMAL)
    assert [queue.pop(), queue.pop(), queue.pop()] == [("one", 3), ("two", 0), None]


def test_no_priority_is_the_normal_one() -> None:
    queue = FairQueue()
    queue.put("low", 0, "", PRIORITY_LOW)
    queue.put("first", 0, "", PRIORITY_UNSPECIFIED)
    queue.put("second", 0, "", PRIORITY_NORMAL)
    queue.put("high", 0, "", PRIORITY_HIGH)
    assert drain(queue) == ["high", "first", "second", "low"]
