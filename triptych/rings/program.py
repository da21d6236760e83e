"""Programs: memory accesses as values, so that a protocol does no I/O and any driver, or a simulator, can run it.

A program is a generator. It yields a *chain*, a tuple of operations that a driver performs one after another, and
is sent their results in the same order. A chain is not atomic: others' operations fall between its parts, and a
dying process stops anywhere inside. It only says that no result is looked at before the next yield, so a driver
that talks to far memory can post it as one and pay one round trip. (Over verbs an operation that isn't a read
and follows a READ or an atomic in its chain needs the fence flag; the others keep their order by themselves.)
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
"""`choose(n)` is a number from 0 to n - 1; `random.Random.randrange` in life, a seeded one in the simulator."""


def drive(program: Program[T], perform: Callable[[tuple[Operation, ...]], tuple[Any, ...]]) -> T:
    """Run a program to its end, each chain by `perform`; an error of `perform` ends the program where it is."""
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
    """Runs programs on a ring's memory: the seam between the protocol and how the memory is reached."""

    name: str
    """`memory` or `verbs`, for people."""
    is_shared: bool
    """Whether others change the memory without this process noticing."""
    answers_swapped: bool
    """Whether atomics answer in big-endian here; set from what `attach` found."""

    def execute(self, program: Program[T]) -> T:
        """Perform what the program yields until it returns; raise what it raises.

        Over far memory also raises RingUnreachable (the chain under way may have been performed in part; nothing
        after it was) and RingRefused.
        """
