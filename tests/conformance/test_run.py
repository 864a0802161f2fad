"""The runner of ceph/s3-tests: what it reads, what it compares, and what the committed list promises.

With S3TESTS set to a checkout of the suite, a short run over the store in memory is part of these tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import run

REPORT = """<testsuites><testsuite>
<testcase classname="s3tests.functional.test_s3" name="test_good"/>
<testcase classname="s3tests.functional.test_s3" name="test_bad"><failure message="no"/></testcase>
<testcase classname="s3tests.functional.test_s3" name="test_left_out"><skipped/></testcase>
<testcase classname="s3tests.functional.test_headers" name="test_torn"/>
<testcase classname="s3tests.functional.test_headers" name="test_torn"><error message="teardown"/></testcase>
</testsuite></testsuites>"""

# Parts of the names of tests that need no feature beyond this release's.
IN_SCOPE = re.compile(
    r"::test_(bucket_list|ranged_|multipart_(?!sse)|multi_object|object_copy_(?!canned|version|enc)"
    r"|\w*(checksum|cksum)|atomic_|get_object_if|put_object_if|object_head|abort_multipart)"
)
LATER = re.compile(
    r"version|anonymous|public|sse|encr|policy|acl|tagging|lock|post_object|suspended|_enc\b|copy_object_if\w+_version"
)
EXCEPTED = frozenset(
    f"test_s3.py::{name}"
    for name in (
        "test_bucket_list_unordered",
        "test_bucket_listv2_unordered",
        "test_object_copy_not_owned_object_bucket",  # ACLs.
        "test_multipart_put_current_object_if_match",  # Versions.
        "test_multipart_put_current_object_if_none_match",
        "test_multipart_get_part",
        "test_multipart_single_get_part",
        "test_multipart_upload_empty",
        "test_multipart_copy_invalid_range",  # AWS: a range beyond the source is InvalidRequest.
        "test_object_checksum_sha256",  # AWS: a value that is no checksum at all is InvalidRequest.
        "test_object_checksum_crc64nvme",
        "test_get_multipart_checksum_object_attributes",
    )
)


def test_a_report_gives_the_worst_outcome_of_each_test(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text(REPORT)
    assert run.read_report(report) == {
        "test_s3.py::test_good": "pass",
        "test_s3.py::test_bad": "fail",
        "test_s3.py::test_left_out": "skip",
        "test_headers.py::test_torn": "error",
    }


def test_what_falls_out_of_the_list_is_named_and_so_is_what_newly_passes() -> None:
    expected = {"a": "pass", "b": "pass", "c": "fail", "d": "pass"}
    outcomes = {"a": "pass", "b": "fail", "c": "pass", "e": "pass"}
    fallen, risen = run.compare(outcomes, expected, whole=True)
    assert fallen == ["b: fail", "d: not run"]
    assert risen == ["c", "e"]
    fallen, _ = run.compare(outcomes, expected, whole=False)
    assert fallen == ["b: fail"]


def test_the_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    outcomes = {"test_s3.py::test_x[a b]": "pass", "test_s3.py::test_y": "error"}
    path = tmp_path / "expected.txt"
    run.write_expected(outcomes, path)
    assert run.read_expected(path) == outcomes
    path.write_text("passed test_z\n")
    with pytest.raises(SystemExit):
        run.read_expected(path)


def test_the_configuration_names_everything_the_suite_insists_on(tmp_path: Path) -> None:
    keys = {
        role: {"tenant": role, "access_key": f"{role}%key", "secret_key": f"{role}-secret"}
        for role in run.ROLES
    }
    path = tmp_path / "s3tests.conf"
    run.write_configuration(path, "http://127.0.0.1:9000", keys)
    text = path.read_text()
    for section in ("DEFAULT", "s3 main", "s3 alt", "s3 tenant", "iam", "iam root", "iam alt root"):
        assert f"[{section}]" in text
    assert "bucket prefix = conformance-{random}-" in text
    assert "port = 9000" in text
    assert path.stat().st_mode & 0o077 == 0


def test_the_committed_list_holds_every_test_and_keeps_its_promise() -> None:
    expected = run.read_expected()
    assert len(expected) == 883
    assert list(expected.values()).count("pass") >= 265
    missing = [
        name
        for name, outcome in expected.items()
        if outcome != "pass"
        and IN_SCOPE.search(name)
        and not LATER.search(name)
        and name not in EXCEPTED
        and "[" not in name
    ]
    assert missing == []


def test_a_checkout_of_another_commit_is_told_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functional = tmp_path / "s3tests" / "functional"
    functional.mkdir(parents=True)
    (functional / "test_s3.py").write_bytes(b"hello\n")
    assert run.other_files(tmp_path) == ["test_s3.py", "test_headers.py"]
    # What git calls these contents: its documentation's own example.
    monkeypatch.setitem(run.FILES, "test_s3.py", "ce013625030ba8dba906f756967f9e9ca394464a")
    assert run.other_files(tmp_path) == ["test_headers.py"]
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.arguments()
    assert "test_headers.py are not those of ceph/s3-tests at 8f0ae7b" in capsys.readouterr().err


if os.environ.get("S3TESTS"):

    def test_a_short_run_over_the_store_in_memory_keeps_to_the_list() -> None:
        command = [sys.executable, "-m", "tests.conformance.run", os.environ["S3TESTS"], "--in-memory"]
        selected = "test_bucket_list_delimiter_basic or test_multipart_upload_small or test_ranged_request"
        result = subprocess.run([*command, "-k", selected], cwd=run.ROOT, timeout=280, check=False)
        assert result.returncode == 0
