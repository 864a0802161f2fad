"""Every crash point that the code names is one that some test crashes at."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Modules whose tests crash at points by name, and these tests.
BY_NAME = {
    "blobs/writer.py": "blobs/test_writer.py",
    "upkeep/compaction.py": "upkeep/test_compaction.py",
    "upkeep/repair.py": "upkeep/test_repair.py",
    "upkeep/seal.py": "upkeep/test_seal.py",
}
# Those whose tests crash at one point after another, whatever they are called.
BY_NUMBER = {
    "objects/bodies.py": "objects/test_crash_points.py",
    "objects/carrying.py": "objects/test_crash_points.py",
    "objects/commits.py": "objects/test_crash_points.py",
    "objects/doomed.py": "objects/test_crash_points.py",
    "objects/multipart.py": "objects/test_crash_points.py",
    "meta/committer.py": "meta/test_crash_points.py",
    "meta/journal.py": "meta/test_crash_points.py",
    "meta/recovery.py": "meta/test_crash_points.py",
    "meta/snapshot.py": "meta/test_crash_points.py",
    "upkeep/metering.py": "rental/test_meters.py",  # Before and after every commit: each point is at one.
    "upkeep/purging.py": "upkeep/test_purging.py",
    "upkeep/sweep.py": "upkeep/test_service.py",
    "upkeep/trash.py": "upkeep/test_trash.py",
}


def points() -> dict[str, set[str]]:
    """By module: the names of its crash points."""
    found = {}
    for path in (ROOT / "objstore").rglob("*.py"):
        names = set(re.findall(r'crash(?:_point)?\(\s*"([a-z.-]+)"', path.read_text()))
        if names:
            found[str(path.relative_to(ROOT / "objstore"))] = names
    return found


def test_every_crash_point_of_the_code_belongs_to_a_test() -> None:
    found = points()
    assert set(found) == set(BY_NAME) | set(BY_NUMBER)
    for module, test in BY_NAME.items():
        text = (ROOT / "tests" / test).read_text()
        unnamed = {name for name in found[module] if f'"{name}"' not in text}
        assert unnamed == set(), f"{module}: not in {test}"
    for test in BY_NUMBER.values():
        assert (ROOT / "tests" / test).is_file()
