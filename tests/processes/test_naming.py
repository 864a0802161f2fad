"""What a page of metrics names and costs: few tenants, all that was counted, no large store read for it."""

import math
import random
from collections import Counter

from objstore.metrics import Registry, RequestMetrics, TenantNumbers
from objstore.processes.admin_port import LOOK_SECONDS, VOLUMES_FRESH, look_again
from objstore.processes.naming import Naming
from tests.seed import SEED


def counted(count: int) -> TenantNumbers:
    return TenantNumbers(classes=[0, 0, count, 0, 0, 0], received=3 * count, refusals={"rate": 2 * count})


def told(naming: Naming, **tenants: int) -> dict[str, float]:
    """What a page says after a worker has counted so much."""
    naming.take("worker-1", "first", {tenant: counted(count) for tenant, count in tenants.items()})
    return page_of(naming)


def page_of(naming: Naming) -> dict[str, float]:
    found = {family.name: dict(family.samples) for family in naming.families()}
    requests = {labels[0]: numbers[0] for labels, numbers in found["tenant_requests"].items()}
    for tenant, count in requests.items():
        assert found["tenant_received_bytes"][tenant,] == [3 * count]
        assert found["tenant_sent_bytes"][tenant,] == [0]
        assert found["tenant_refusals"][tenant, "rate"] == [2 * count]
    return requests


def test_those_that_ask_most_are_named_and_the_rest_is_one() -> None:
    naming = Naming(2)
    assert told(naming, a=5, b=1, c=9, other=2) == {"c": 9, "a": 5, "other": 3}


def test_a_tenant_that_is_called_like_the_rest_is_not_taken_for_it() -> None:
    assert told(Naming(1), other=7, b=1) == {"tenant other": 7, "other": 1}


def test_a_name_is_kept_until_another_asks_twice_as_much_and_no_series_goes_back() -> None:
    naming = Naming(1)
    assert told(naming, a=100, b=0) == {"a": 100}
    assert told(naming, a=100, b=150) == {"a": 100, "other": 150}
    assert told(naming, a=100, b=350) == {"b": 200, "other": 150}
    assert told(naming, a=101, b=351) == {"b": 201, "other": 151}


def test_all_that_was_counted_is_told_once_whoever_is_named() -> None:
    chance = random.Random(SEED)
    naming = Naming(3)
    totals: Counter[str] = Counter()
    rest = asked = shown = 0.0
    before: dict[str, float] = {}
    for _ in range(200):
        for tenant in "abcdefgh":
            totals[tenant] += chance.choice((0, 0, 1, 50))
        page = told(naming, **totals)
        assert len(page) <= 4, SEED
        assert page.get("other", 0.0) >= rest, SEED
        rest = page.get("other", 0.0)
        # A series that began at this scrape tells only what came since the last one.
        shown += sum(count - before.get(tenant, 0.0) for tenant, count in page.items())
        asked, before = float(totals.total()), page
    assert shown == asked, SEED


def test_what_several_workers_count_is_added_up_and_one_that_begins_anew_takes_nothing_back() -> None:
    naming = Naming(2)
    naming.take("worker-2", "first", {"a": counted(3), "b": counted(1)})
    assert told(naming, a=5) == {"a": 8, "b": 1}
    assert page_of(naming) == {"a": 8, "b": 1}
    for _ in range(2):
        naming.take("worker-1", "second", {"a": counted(2)})
        assert page_of(naming) == {"a": 10, "b": 1}


def test_tenants_that_a_worker_does_not_know_by_name_are_among_the_others() -> None:
    naming = Naming(1)
    naming.take("worker-1", "first", {"a": counted(1), "": counted(1_000)})
    assert page_of(naming) == {"a": 1, "other": 1_000}


def test_a_worker_counts_its_tenants_and_what_they_were_refused_for() -> None:
    registry = Registry()
    numbers = RequestMetrics(registry)
    numbers.finished("PutObject", 200, 0.1, received=7, tenant="acme")
    numbers.finished("PutObject", 503, 0.1, error_code="SlowDown", tenant="acme", refusal="rate")
    numbers.finished("GetObject", 403, 0.1, error_code="InvalidAccessKeyId")
    assert registry.tenants == {
        "acme": TenantNumbers(classes=[0, 0, 1, 0, 0, 1], received=7, refusals={"rate": 1})
    }


def test_of_a_large_store_a_scrape_is_shown_the_last_look_for_a_while() -> None:
    assert look_again(0, math.inf)
    assert look_again(VOLUMES_FRESH, 0.0)
    assert not look_again(VOLUMES_FRESH + 1, LOOK_SECONDS - 1)
    assert look_again(VOLUMES_FRESH + 1, LOOK_SECONDS)
