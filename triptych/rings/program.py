"""Programs: memory accesses as values, so that a protocol does no I/O and any driver, or a simulator, can run it.

A program is a generator. It yields a *chain*, a tuple of operations that a driver performs one after another, and is
sent their results in the same order. A chain is not atomic: others' operations fall between its parts, and a dying
process stops anywhere inside. But a program sees no result before its next yield, so a driver of far memory can post a
whole chain for one round trip. (Over verbs an operation that isn't a read and follows a READ or an atomic in its chain
needs the fence flag; the others keep their order without it.)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar


class Read(NamedTuple):
    """Read `size_bytes` at `offset`; the result is bytes. Not atomic beyond one word."""

    offset: int
    size_bytes: int


class Write(NamedTuple):
    """Write `data` at `offset`; the result is None. Not atomic beyond one word."""

    offset: int
    data: bytes


class FetchAdd(NamedTuple):
    """Add to the word at `offset`, modulo 2^64, atomically; the result is the word before."""

    offset: int
    addend: int


class CompareSwap(NamedTuple):
    """Replace the word at `offset` if it is `expected`, atomically; the result is the word before."""

    offset: int
    expected: int
    replacement: int


Operation: TypeAlias = Read | Write | FetchAdd | CompareSwap
T = TypeVar("T")
Program: TypeAlias = Generator[tuple[Operation, ...], tuple[Any, ...], T]
"""Yields chains, is sent their results (types as each operation's docstring says), returns a `T`."""
Choose: TypeAlias = Callable[[int], int]
"""`choose(n)` returns a number from 0 to n - 1: `random.Random.randrange`, seeded in the simulator."""


def drive(program: Program[T], perform: Callable[[tuple[Operation, ...]], tuple[Any, ...]]) -> T:
    """Run a program to its end, each chain by `perform`. An error of `perform` ends the program where it is."""
    try:
        chain = next(program)
        while True:
            chain = program.send(perform(chain))
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        program.close()


class Driver(Protocol):
    """Runs programs on a ring's memory, however that is reached."""

    name: str
    """`memory` or `verbs`, for people."""
    is_shared: bool
    """Whether other machines change the memory."""
    answers_swapped: bool
    """Whether atomics answer in big-endian here, as `attach` found."""

    def execute(self, program: Program[T]) -> T:
        """Run a program to its end; return or raise what it does.

        Over far memory this also raises RingRefused, and RingUnreachable if the present chain may have been performed
        in part, and nothing after it.
        """
