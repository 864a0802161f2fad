"""What tasks hold together is bounded, whoever came first is first, and nothing that was granted is lost."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objstore.blobs.memory import MemoryBudget
from objstore.errors import Overloaded

LIMIT = 10
FOREVER_S = 600.0


def budget(limit: int = LIMIT, *, wait_s: float = FOREVER_S, waiting_max: int = 100) -> MemoryBudget:
    return MemoryBudget(limit, wait_s=wait_s, purpose="a test", waiting_max=waiting_max)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 14)),  # Some are larger than the limit.
        st.tuples(st.just("try"), st.integers(1, 6)),
        st.tuples(st.just("give back"), st.integers(0, 100)),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
        # In one turn of the loop: the grant is made, and its taker cancelled before it knows.
        st.tuples(st.just("give back and cancel the next"), st.integers(0, 100)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_whatever_tasks_do_the_sum_is_right_the_order_kept_and_all_comes_back(
    steps: list[tuple[str, int]],
) -> None:
    asyncio.run(history(steps))


async def history(steps: list[tuple[str, int]]) -> None:
    memory = budget()
    held: list[int] = []  # Sizes of what tasks hold, as they know it.
    tasks: list[tuple[int, asyncio.Task[None]]] = []  # By number: they asked in this order.
    granted: set[int] = set()  # Numbers.
    served: list[int] = []  # Numbers of those who had to wait, as they were woken.
    cancelled: set[int] = set()

    async def take(number: int, size: int) -> None:
        waiting = memory.waiting
        if memory.try_take(size):  # As `take` begins.
            assert not waiting
        else:
            await memory.take(size)
            served.append(number)
        granted.add(number)
        held.append(size)

    def give_back(choice: int) -> None:
        if held:
            memory.give_back(held.pop(choice % len(held)))

    def cancel(choice: int | None) -> None:
        waiting = [(number, task) for number, task in tasks if not task.done() and number not in cancelled]
        if waiting:
            number, task = waiting[0 if choice is None else choice % len(waiting)]
            cancelled.add(number)
            task.cancel()

    for what, value in steps:
        if what == "take":
            number = len(tasks)
            tasks.append((number, asyncio.get_running_loop().create_task(take(number, value))))
            await asyncio.sleep(0)
        elif what == "try":
            waiting = memory.waiting
            if memory.try_take(value):
                assert not waiting
                held.append(value)
        elif what == "give back":
            give_back(value)
        elif what == "cancel":
            cancel(value)
        elif what == "give back and cancel the next":
            give_back(value)
            cancel(None)
        else:
            await turns()
            assert memory.used == sum(held)
        assert memory.used <= LIMIT or len(held) <= 1
    await turns()
    assert memory.used == sum(held)
    assert served == sorted(served)
    while held or memory.waiting:
        assert held, "somebody waits, and nothing is held"
        give_back(0)
        await turns()
    assert memory.used == 0
    assert granted | cancelled >= set(range(len(tasks)))
    for number, task in tasks:
        assert task.done(), number


async def test_a_grant_in_the_turn_of_its_cancellation_goes_to_the_next() -> None:
    memory = budget()
    await memory.take(LIMIT)
    first = asyncio.ensure_future(memory.take(LIMIT))
    second = asyncio.ensure_future(memory.take(LIMIT))
    await turns()
    memory.give_back(LIMIT)  # Granted to the first, which does not run before it is cancelled.
    first.cancel()
    await turns()
    assert first.cancelled()
    assert second.done()
    assert memory.used == LIMIT


async def test_a_wait_ends_at_its_limit_and_lets_a_smaller_one_behind_it_pass() -> None:
    memory = budget(wait_s=0.02)
    await memory.take(LIMIT - 2)
    large = asyncio.ensure_future(memory.take(LIMIT))
    await turns()
    memory._wait_s = FOREVER_S
    small = asyncio.ensure_future(memory.take(2))
    await turns()
    assert not small.done(), "it came later"
    with pytest.raises(Overloaded, match="no memory for a test within the limit"):
        await large
    await small
    assert memory.used == LIMIT
    assert memory.waiting == 0


async def test_more_than_may_wait_are_refused_at_once() -> None:
    memory = budget(waiting_max=2)
    await memory.take(LIMIT)
    waiting = [asyncio.ensure_future(memory.take(1)) for _ in range(2)]
    await turns()
    with pytest.raises(Overloaded, match="too many wait"):
        await memory.take(1)
    memory.give_back(LIMIT)
    await asyncio.gather(*waiting)
    assert memory.used == 2


async def test_what_is_spared_is_for_those_who_ask_for_it() -> None:
    memory = budget()
    assert memory.try_take(7, spare=3)
    assert not memory.try_take(1, spare=3)
    assert memory.try_take(3)
    assert memory.used == LIMIT


async def test_many_tasks_that_come_and_go_never_hold_more_than_the_limit() -> None:
    memory = budget(limit=1_000)
    seed = 20
    print(f"seed {seed}")
    rng = random.Random(seed)
    held = peak = 0

    async def work() -> None:
        nonlocal held, peak
        for _ in range(20):
            size = rng.randint(1, 400)
            await memory.take(size)
            held += size
            peak = max(peak, held)
            await turns(rng.randint(0, 4))
            held -= size
            memory.give_back(size)

    tasks = [asyncio.ensure_future(work()) for _ in range(50)]
    await turns(20)
    for task in tasks[::5]:
        task.cancel()
    await asyncio.gather(*tasks[1::5], *tasks[2::5], *tasks[3::5], *tasks[4::5])
    assert peak <= 1_000
