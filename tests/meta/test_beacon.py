"""The page that shows which state is in force: by fork, and half written."""

import os
from pathlib import Path

import pytest

from objstore.errors import MetaUnavailable
from objstore.meta.beacon import Beacon

OLD, NEW = Path("/disk1/meta/state-old"), Path("/disk2/meta/state-new")


def test_before_a_state_is_shown_there_is_none() -> None:
    with pytest.raises(MetaUnavailable):
        Beacon().state()


def test_another_state_is_another_generation_and_the_same_one_is_not() -> None:
    beacon = Beacon()
    beacon.show(OLD, (1, 2))
    first = beacon.words[0]
    assert beacon.state() == (OLD, (1, 2))
    beacon.show(OLD, (1, 2))
    assert beacon.words[0] == first
    for path, inode in ((NEW, (1, 2)), (NEW, (1, 3)), (OLD, (1, 2))):
        before = beacon.words[0]
        beacon.show(path, inode)
        assert beacon.words[0] != before
        assert beacon.state() == (path, inode)


def test_a_forked_process_shows_it_to_all_others() -> None:
    beacon = Beacon()
    beacon.show(OLD, (1, 2))
    child = os.fork()
    if child == 0:
        beacon.show(NEW, (3, 4))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert beacon.state() == (NEW, (3, 4))


def test_a_text_that_is_half_written_is_taken_for_no_state() -> None:
    beacon = Beacon()
    beacon.show(OLD, (1, 2))
    beacon._page[30:34] = b"half"
    with pytest.raises(MetaUnavailable):
        beacon.state()
    beacon.show(NEW, (3, 4))
    assert beacon.state() == (NEW, (3, 4))


def test_a_generation_that_is_seen_before_its_text_does_not_lead_to_the_past() -> None:
    beacon = Beacon()
    beacon.show(OLD, (1, 2))
    beacon.words[0] += 1
    with pytest.raises(MetaUnavailable):
        beacon.state()


def test_a_writer_killed_before_the_generation_hides_nothing_from_the_next() -> None:
    beacon = Beacon()
    beacon.show(OLD, (1, 2))
    before = beacon.words[0]
    beacon.show(NEW, (3, 4))
    beacon.words[0] = before  # As if it had not come so far.
    assert beacon.state() == (NEW, (3, 4)), "it shows what the journal says, too"
    beacon.show(NEW, (3, 4))
    assert beacon.words[0] != before
    assert beacon.state() == (NEW, (3, 4))
