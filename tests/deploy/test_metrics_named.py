"""Every metric that an alert or a dashboard names is one that a running store shows, with those labels."""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError

from objstore.metrics import Family
from tests.deploy.files import CONFIG, needs
from tests.deploy.metrics_page import PAGE, families_of, page_of
from tests.server import running_server

ALERTS = CONFIG / "prometheus/alerts.yml"
DASHBOARDS = sorted((CONFIG / "grafana/dashboards").glob("*.json"))
TARGET_LABELS = {"instance", "job"}  # Prometheus adds them.
# Not seen in a store that is well and small, but real.
POSSIBLE = {
    ("objstore_s3_requests_total", "code_class"): r"[1-5]xx",
    ("objstore_tenant_requests_total", "code_class"): r"[1-5]xx",
    ("objstore_disk_operations_total", "op"): "read",  # What the page cache answers is no call.
    ("objstore_disk_io_duration_seconds_total", "op"): "read",
}


@dataclass
class Page:
    """What /metrics shows: names, and the values seen of each label; and what processes say of them."""

    names: set[str] = field(default_factory=set)
    labels: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    families: dict[str, Family] = field(default_factory=dict)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    with running_server(tmp_path_factory.mktemp("scraped")) as store:
        s3 = store.boto3()
        s3.create_bucket(Bucket="scraped")
        for key, size in (("small", 1000), ("large", 3 << 20)):
            s3.put_object(Bucket="scraped", Key=key, Body=b"x" * size)
            s3.get_object(Bucket="scraped", Key=key)["Body"].read()
        with pytest.raises(ClientError, match="NoSuchKey"):
            s3.get_object(Bucket="scraped", Key="none")
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            store.boto3("AKNOBODY", "no-secret").list_buckets()
        status, text = store.admin("GET", "/metrics")
        assert status == 200
        found = Page(families=asyncio.run(families_of(f"{store.data}/run")))
    for line in text.splitlines():
        if match := re.match(r"# TYPE (\S+) (\S+)", line):
            name, kind = match.groups()
            suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
            found.names.update(name + suffix for suffix in suffixes)
        elif match := re.match(r"([a-z_0-9]+)(?:\{(.*)\})? ", line):
            labels = found.labels.setdefault(match[1], {})
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""):
                labels.setdefault(label, set()).add(value)
    return found


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every alert, panel and variable."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for file in DASHBOARDS:
        document: dict[str, Any] = json.loads(file.read_text())
        for panel in document["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.name}: {panel['title']}", target["expr"]
        for variable in document["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
                yield f"{file.name}: ${variable['name']}", f"count by ({label}) ({metric})"


def as_asked(query: str) -> str:
    """With what Grafana puts in place of variables: everything, over five minutes."""
    return re.sub(r"\$\w+", lambda name: "5m" if name[0] == "$__rate_interval" else ".*", query)


def test_the_page_of_metrics_says_what_the_store_says_of_them(page: Page, tmp_path: Path) -> None:
    (tmp_path / "metrics.md").write_text(page_of(page.families.values()))
    assert PAGE.read_text() == page_of(page.families.values()), f"{tmp_path}/metrics.md is as it should be"


def test_there_are_alerts_and_dashboards_to_look_at() -> None:
    assert len(list(queries())) > 250
    assert len(DASHBOARDS) == 6


def test_every_query_names_metrics_and_labels_that_the_store_shows(page: Page) -> None:
    wrong = [f"{where}: {words}" for where, query in queries() for words in unknown(query, page)]
    assert wrong == []


def test_a_metric_label_or_value_that_is_not_there_is_noticed(page: Page) -> None:
    assert unknown("rate(objstore_s3_request_total[5m])", page)
    assert unknown('objstore_disk_up{disc="1"}', page)
    assert unknown('objstore_disk_operations_total{op="apend"}', page)
    assert unknown("sum by (bucket) (objstore_s3_requests_total)", page)
    assert not unknown('sum by (op) (objstore_s3_requests_total{code_class="5xx"})', page)


def unknown(query: str, page: Page) -> list[str]:
    """What a query names that the page does not have."""
    used = re.findall(r"\b([a-z_]\w*)(?:\{([^}]*)\})?", query)
    metrics = [(name, matchers) for name, matchers in used if name.startswith("objstore_")]
    found = [] if metrics or "up{" in query else ["no metric of ours"]
    for name, matchers in metrics:
        if name not in page.names:
            found.append(f"no metric {name}")
        seen = page.labels.get(name)
        if seen is None:  # Without a sample there are no labels to see.
            continue
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers):
            if label in TARGET_LABELS:
                continue
            if label not in seen:
                found.append(f"{name} has no label {label}")
                continue
            possible = re.fullmatch(POSSIBLE.get((name, label), "(?!)"), value)
            if operator == "=" and value not in seen[label] and not possible:
                found.append(f'{name} has no {label}="{value}": {sorted(seen[label])}')
    if all(name in page.labels for name, _ in metrics):
        known = set().union(*(page.labels[name] for name, _ in metrics)) | TARGET_LABELS
        for grouped in re.findall(r"\b(?:by|without|on|ignoring) \(([^)]*)\)", query):
            found += [f"no label {one}" for one in re.split(r",\s*", grouped) if one not in known]
    return found


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"query{number}",
            "expr": as_asked(query),
        }
        for number, (_, query) in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        [needs("promtool"), "check", "rules", "--lint=none", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.name)
def test_a_dashboard_can_be_imported_anywhere(file: Path) -> None:
    document = json.loads(file.read_text())
    assert document["uid"] == file.stem
    variables = {one["name"] for one in document["templating"]["list"]}
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"  # None of ours is written into it.
            named = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert named <= variables
