"""What the numbers say, over processes and their deaths."""

from objstore.metrics import Accumulator, Registry, RequestMetrics, decode_snapshot, merge, render


def worker(gateway: str, requests: int) -> Registry:
    registry = Registry()
    numbers = RequestMetrics(registry, gateway)
    for _ in range(requests):
        numbers.finished("PutObject", 200, 0.003, received=10, sent=0)
    numbers.finished("GetObject", 403, 0.2, error_code="SignatureDoesNotMatch")
    return registry


def test_the_page_adds_up_what_all_workers_counted() -> None:
    both = merge(decode_snapshot(worker(name, count).snapshot()) for name, count in (("1", 3), ("2", 4)))
    page = render(both).decode()
    assert 'objstore_s3_requests_total{code_class="2xx",gateway="1",op="PutObject"} 3.0' in page
    assert 'objstore_s3_requests_total{code_class="2xx",gateway="2",op="PutObject"} 4.0' in page
    assert "objstore_s3_received_bytes_total 70.0" in page
    assert 'objstore_s3_errors_total{error_code="SignatureDoesNotMatch",op="GetObject"} 2.0' in page
    assert 'objstore_s3_auth_failures_total{reason="SignatureDoesNotMatch"} 2.0' in page


def test_a_histogram_counts_each_value_once_below_its_bound_and_keeps_the_sum() -> None:
    registry = Registry()
    histogram = registry.histogram("waits_seconds", "Waits.", bounds=(0.1, 1.0))
    for value in (0.1, 0.5, 7.0):  # A bound belongs to its own bucket.
        histogram.observe(value)
    page = render(registry.families()).decode()
    assert 'objstore_waits_seconds_bucket{le="0.1"} 1.0' in page
    assert 'objstore_waits_seconds_bucket{le="1.0"} 2.0' in page
    assert 'objstore_waits_seconds_bucket{le="+Inf"} 3.0' in page
    assert "objstore_waits_seconds_sum 7.6" in page


def test_no_counter_goes_back_when_a_worker_is_replaced() -> None:
    totals = Accumulator()
    totals.take("worker-1", "first", decode_snapshot(worker("1", 5).snapshot()))
    totals.take("worker-1", "second", decode_snapshot(worker("1", 2).snapshot()))
    page = render(totals.families()).decode()
    assert 'objstore_s3_requests_total{code_class="2xx",gateway="1",op="PutObject"} 7.0' in page


def test_a_silent_worker_keeps_its_counters_and_loses_its_gauges() -> None:
    totals = Accumulator()
    totals.take("worker-1", "first", decode_snapshot(worker("1", 5).snapshot()))
    totals.drop_gauges("worker-1")
    page = render(totals.families()).decode()
    assert 'op="PutObject"} 5.0' in page
    assert 'objstore_s3_requests_in_flight{gateway="1"}' not in page
