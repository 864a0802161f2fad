"""The store's log: one JSON object a line on standard error.

Modules log through the standard library (`logging.getLogger(__name__)`, facts in `extra`); here structlog
makes the lines, for every process. The access log is another matter (`s3/access_log.py`): a line a request.
"""

import json
import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

Event = MutableMapping[str, Any]

_own = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logging(level: str) -> None:
    """Args: level: debug, info, warning or error: the least that is shown."""
    # structlog looks for rich, for a console that nobody needs here: a tenth of a second that no start has.
    absent = "rich" not in sys.modules
    if absent:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        from structlog.processors import JSONRenderer
        from structlog.stdlib import ProcessorFormatter
    finally:
        if absent:
            del sys.modules["rich"]

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            processors=[_line, JSONRenderer(serializer=json.dumps, default=str)],
            use_get_message=True,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _line(_logger: object, _method: str, event: Event) -> Event:
    """Time, level, logger, process, event, the fields of `extra`, and the trace of an exception."""
    record: logging.LogRecord = event["_record"]
    content: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "pid": record.process,
        "event": event["event"],
    }
    content |= {key: value for key, value in vars(record).items() if key not in _own}
    if event.get("exc_info"):
        content["trace"] = logging.Formatter().formatException(event["exc_info"])
    return content
