"""What may stop at once: readable, writable, and metadata goes on; otherwise exactly why not."""

from dataclasses import replace

from objstore.blobs.topology import Layout, Policy, Spot, Topology
from objstore.blobs.volumes import Lane, VolumeRecord, VolumeState
from objstore.processes.stopping import Facts, JournalFacts, verdict

NODES = 8  # One disk each, with its number.


def volume(number: int, disks: list[int], state: VolumeState = VolumeState.SEALED) -> VolumeRecord:
    return VolumeRecord(
        id=number,
        k=len(disks) - 2,
        m=2,
        disks=disks,
        state=state,
        lane=Lane.SMALL,
        writer=bytes(16),
        length=100,
    )


def facts(*records: VolumeRecord, policies: dict[str, Policy] | None = None) -> Facts:
    spots = {
        number: Spot(number, free=100, size=200, node=f"n{number}", device=number)
        for number in range(1, NODES + 1)
    }
    return Facts(
        records=records,
        damaged={},
        away=set(),
        layout=Layout(1, spots, policies or {}),
        topology=Topology(spots.values()),
        k=4,
        m=2,
        journal=JournalFacts(
            copies=3,
            healthy=set(spots),
            newest=[{1, 2, 3}, {2, 3, 4}],
            fenced=True,
            disks=set(spots),
        ),
        gateways={b"g" * 16},
    )


def test_as_many_as_every_volume_can_do_without_may_stop() -> None:
    store = facts(volume(1, [1, 2, 3, 4, 5, 6]), volume(2, [3, 4, 5, 6, 7, 8]))
    assert verdict(store, {1, 2}).safe
    assert verdict(store, {7, 8}).safe
    assert verdict(store, {1, 8}).safe


def test_one_more_is_not_safe_and_the_volumes_are_named() -> None:
    store = facts(volume(1, [1, 2, 3, 4, 5, 6]), volume(2, [3, 4, 5, 6, 7, 8]))
    found = verdict(store, {1, 2, 8, 3})
    assert not found.safe
    assert found.volumes == [1]
    assert found.reasons[0].startswith("1 volumes could not be read (1): up to 3 of their fragment files")


def test_what_is_away_damaged_or_still_being_written_counts_too() -> None:
    sealed, opened = volume(1, [1, 2, 3, 4, 5, 6]), volume(2, [3, 4, 5, 6, 7, 8], VolumeState.OPEN)
    trash = volume(3, [1, 2, 3, 4, 5, 6], VolumeState.RETIRED)
    store = facts(sealed, opened, trash)
    assert verdict(replace(store, away={1}), {2}).safe
    assert verdict(replace(store, away={1}), {2, 3}).volumes == [1]
    assert verdict(replace(store, damaged={1: {0}}), {2, 3}).volumes == [1]
    assert verdict(replace(store, damaged={1: {0}}), {1, 2}).safe, "the damaged file is the one that stops"
    assert verdict(replace(store, away={7}), {8, 3}).volumes == [2]


def test_a_volume_that_cannot_be_read_already_is_said_to_be_one() -> None:
    store = replace(facts(volume(1, [1, 2, 3, 4, 5, 6])), away={1, 2, 3})
    found = verdict(store, {8})
    assert not found.safe
    assert "1 of them cannot be read now either" in found.reasons[0]


def test_writes_need_disks_of_every_policy() -> None:
    only = Policy(name="only", sites=("s",))
    store = facts(policies={"only": only})
    spots = [spot._replace(site="s" if spot.number <= 3 else "t") for spot in store.topology.spots.values()]
    store = replace(store, topology=Topology(spots), journal=None)
    found = verdict(store, {1})
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "buckets of policy only could not be written to"
    ]
    found = verdict(store, {4, 5, 6})
    assert found.safe
    assert "new volumes of buckets would have 3 data fragments instead of 4" in found.notes
    none = verdict(replace(store, layout=Layout(1, {}, {"no": Policy(name="no", sites=("nowhere",))})), {4})
    assert none.safe
    assert "cannot be written to now either" in none.notes[0]


def test_metadata_needs_copies_of_its_journal_and_more_than_half_of_all_disks() -> None:
    store = facts()
    assert not verdict(store, {1, 2, 3}).safe
    assert "every copy of metadata's newest journal" in verdict(store, {1, 2, 3}).reasons[0]
    assert verdict(store, {5, 6, 7}).safe
    assert "4 of 8 disks would be there" in verdict(store, {5, 6, 7, 8}).reasons[-1]
    assert store.journal is not None
    few = replace(store, journal=replace(store.journal, healthy={1, 4, 5}, fenced=False))
    assert verdict(few, {8}).safe
    assert "2 disks for its 3 copies" in verdict(few, {5}).reasons[0]
    assert verdict(replace(store, journal=None), {5, 6, 7, 8}).safe, "PostgreSQL has no journal here"


def test_the_last_gateway_is_not_to_stop() -> None:
    store = facts()
    assert verdict(store, set(), {b"g" * 16}).reasons == ["no other gateway serves"]
    assert verdict(replace(store, gateways={b"g" * 16, b"h" * 16}), set(), {b"g" * 16}).safe
