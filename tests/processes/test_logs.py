"""The store's log lines: JSON, one a line, whatever is logged."""

import json
import subprocess
import sys

PROGRAM = """
import logging
import sys
from objstore.processes.logs import set_up_logging

set_up_logging("info")
log = logging.getLogger("objstore.example")
log.debug("not shown")
log.warning("disk %d is late", 3, extra={"disk": 3, "path": object})
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.exception("a bug")
assert "rich" not in sys.modules
import rich  # Can still be had.
"""


def test_a_log_line_is_one_json_object_with_time_level_logger_process_event_and_facts() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    late, bug = [json.loads(line) for line in ended.stderr.splitlines()]
    assert late.pop("time").endswith("Z")
    assert late.pop("pid") > 0
    assert late == {
        "level": "warning",
        "logger": "objstore.example",
        "event": "disk 3 is late",
        "disk": 3,
        "path": "<class 'object'>",
    }
    assert (bug["level"], bug["event"]) == ("error", "a bug")
    assert bug["trace"].endswith("ValueError: two\nlines")
