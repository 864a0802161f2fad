"""How many reads repair has under way, by what they take: the names first, they are the specification."""

import math
from itertools import pairwise

from objstore.blobs.window import ROUNDS_HELD, ROUNDS_MEASURED, Window

K = 8


class Nodes:
    """Reads take `alone_s`, and `each_s` more for every other one that is under way."""

    def __init__(self, window: Window, alone_s: float = 0.002, each_s: float = 0.0) -> None:
        self.window = window
        self.alone_s = alone_s
        self.each_s = each_s

    def round(self) -> int:
        """One round; how many of its reads were under way at once."""
        size = self.window.size
        for _ in range(K):
            self.window.took(self.alone_s + (size - 1) * self.each_s)
        self.window.next_round()
        return size

    def rounds(self, count: int) -> list[int]:
        return [self.round() for _ in range(count)]


def test_where_reads_do_not_get_in_each_others_way_all_are_soon_under_way() -> None:
    assert Nodes(Window(K)).rounds(6) == [1, 2, 4, 8, 8, 8]


def test_where_each_one_makes_the_others_wait_they_go_one_after_another() -> None:
    sizes = Nodes(Window(K), each_s=0.002).rounds(200)
    assert set(sizes) == {1, 2}
    assert sizes.count(2) <= len(sizes) / ROUNDS_HELD + 1, "more is tried now and then only"


def test_the_window_is_the_largest_at_which_reads_take_little_longer_than_alone() -> None:
    sizes = Nodes(Window(K, 1.5), alone_s=0.010, each_s=0.001).rounds(ROUNDS_MEASURED)  # 4: 1.3 times.
    assert sizes[:4] == [1, 2, 4, 8]
    assert set(sizes[4 : 4 + ROUNDS_HELD - 1]) == {4}


def test_clients_that_come_make_it_smaller_and_it_grows_when_they_have_gone() -> None:
    nodes = Nodes(Window(K))
    assert nodes.rounds(5)[-1] == K
    nodes.each_s = 0.004  # There is no room any more.
    assert nodes.rounds(4)[1:] == [4, 2, 1]
    assert max(nodes.rounds(200)) == 2
    nodes.each_s = 0.0
    assert nodes.rounds(ROUNDS_MEASURED)[-1] == K


def test_that_everything_takes_longer_since_clients_are_there_is_no_reason_to_stop() -> None:
    nodes = Nodes(Window(K))
    nodes.rounds(10)
    nodes.alone_s = 1.0
    sizes = nodes.rounds(2 * ROUNDS_MEASURED)
    assert min(sizes) == 1
    assert sizes[-1] == K, "measured anew: it is not our doing"


def test_what_a_read_takes_alone_is_measured_again_and_the_window_is_as_before() -> None:
    sizes = Nodes(Window(K)).rounds(3 * ROUNDS_MEASURED)
    assert sizes.count(1) == 3
    assert all(after == K for size, after in pairwise(sizes[4:]) if size == 1)


def test_what_the_page_cache_has_says_nothing() -> None:
    window = Window(K)
    for _ in range(100):
        window.next_round()
    assert window.size == 1


def test_a_window_that_yields_to_nobody_is_open_from_the_first_round() -> None:
    assert Nodes(Window(K, math.inf), each_s=1.0).rounds(10) == [K] * 10


def test_one_that_tolerates_more_is_wider_where_there_is_little_room() -> None:
    usual, urgent = (Nodes(Window(K, tolerated), each_s=0.001) for tolerated in (1.5, 3.0))
    assert max(usual.rounds(50)[4:]) < max(urgent.rounds(50)[4:])
