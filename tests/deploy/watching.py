"""A Prometheus, Debian's, with the files of config/prometheus: it scrapes a store and says what it saw."""

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy.files import CONFIG, free_port, needs

LIMIT_S: Final = 90.0  # A starved machine's.


@dataclass
class Prometheus:
    """One that runs. `directory` has its configuration, its data and its log."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    def watch(self, address: str) -> None:
        """Scrape this admin port from now on, and no other."""
        _put(self.directory / "targets.json", json.dumps([{"targets": [address]}]))

    def ask(self, path: str, **query: str) -> Any:
        """The data that /api/v1/PATH answers. Raises: AssertionError, with its words."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{path} {query}: {refusal.read().decode()}") from None

    def wait(self, condition: Callable[[], object], what: Callable[[], object]) -> None:
        """Until it holds. Raises: AssertionError, with `what`."""
        limit = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < limit, what()
            time.sleep(0.2)


@contextlib.contextmanager
def prometheus(directory: Path, token: Path) -> Iterator[Prometheus]:
    """Args: token: the file with the store's admin token."""
    directory.mkdir()
    config = yaml.safe_load((CONFIG / "prometheus/prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    (job,) = [one for one in config["scrape_configs"] if one["job_name"] == "objstore"]
    assert job.pop("static_configs") == [{"targets": ["127.0.0.1:9001"]}]
    job["authorization"]["credentials_file"] = str(token)
    job["file_sd_configs"] = [{"files": ["targets.json"], "refresh_interval": "1s"}]
    _put(directory / "prometheus.yml", json.dumps(config))
    assert config["rule_files"] == ["alerts.yml"]
    (directory / "alerts.yml").symlink_to(CONFIG / "prometheus/alerts.yml")
    port = free_port()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                needs("prometheus"),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Prometheus(directory, port, process)
    finally:
        process.terminate()
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _put(file: Path, text: str) -> None:
    """Whole, for whoever reads it just then."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)
