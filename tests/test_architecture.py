"""ARCHITECTURE.md and the tree: what the page says is there is there, and the other way round."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = ["objstore", "objstore-gateway", "objstore-node"]


def test_the_code_map_has_one_line_for_every_module_and_for_nothing_else() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    mapped = re.findall(r"^\| `([a-z0-9_/]+\.py)` \|", page, re.MULTILINE)
    package = ROOT / "objstore"
    modules = [str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(mapped) == sorted(modules)


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "README.md", "docs/formats.md", "docs/clients.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:[a-z0-9_]+/)+[A-Za-z0-9_.-]+\.(?:py|md|toml))", text)
    named += re.findall(r"\]\(([^)#:]+)\)", text)
    places = [ROOT, ROOT / "objstore", ROOT / "docs"]
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert missing == []


def test_every_link_within_the_page_of_formats_has_a_heading() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert len(links) > 10
    assert links - anchors == set()


def test_launchers_are_executable_and_nothing_in_cmd_can_be_imported() -> None:
    assert sorted(os.listdir(ROOT / "cmd")) == LAUNCHERS
    assert all(os.access(ROOT / "cmd" / name, os.X_OK) for name in LAUNCHERS)
    # From the checkout, where a package of that name would win over the standard library's module.
    found = subprocess.run(
        [sys.executable, "-c", "import cmd; print(cmd.Cmd.__module__, cmd.__file__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert str(ROOT / "cmd") not in found.stdout
    for name in LAUNCHERS[1:]:
        ended = subprocess.run(
            [ROOT / "cmd" / name, "--help"], capture_output=True, text=True, timeout=60, check=True
        )
        assert f"objstore {name.removeprefix('objstore-')}" in ended.stdout


def test_every_dependency_is_imported_somewhere() -> None:
    declared = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    assert declared is not None
    names = re.findall(r'"([a-z0-9-]+)[><=]', declared[1])
    assert len(names) > 10
    sources = "\n".join(path.read_text() for path in (ROOT / "objstore").rglob("*.py"))
    # pyeclib is there for the library inside its wheel (codec/isal.py loads it).
    wanted = {name: name.replace("-", "_") for name in names}
    unused = [
        name
        for name, module in wanted.items()
        if not re.search(rf"^\s*(?:import|from) {module}\b", sources, re.M) and name != "pyeclib"
    ]
    assert unused == []
    assert "pyeclib" in sources


def test_no_registry_is_named_in_what_is_installed_from() -> None:
    for path in [*(ROOT / "requirements").iterdir(), ROOT / "tests/clients/package-lock.json"]:
        text = path.read_text()
        assert "://" not in text, f"{path.name} holds an address"
        if path.suffix == ".txt":
            pins = re.findall(r"^[a-z0-9][\w.\-\[\]]*==\S+", text, re.M | re.I)
            assert pins
            assert len(pins) == len(re.findall(r"==\S+ \\\n    --hash=sha256:", text)), path.name
