"""What operators type against a running store, and what they see when they slip."""

import csv
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from objstore.cli.main import app
from objstore.cli.output import Format, fail, show
from tests.server import ROOT, Server, environment_for, run_command


def rows(server: Server, *arguments: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(server.command(*arguments, "-o", "json").stdout)
    return found


def new_key(server: Server, user: str) -> tuple[str, str]:
    key = rows(server, "key", "create", user)[0]
    return str(key["access_key"]), str(key["secret_key"])


def test_a_new_user_has_buckets_of_a_tenant_closed_to_all_others(store_server: Server) -> None:
    store_server.command("user", "create", "alice", "--tenant", "acme")
    store_server.command("user", "create", "bob", "--tenant", "globex")
    alice = store_server.boto3(*new_key(store_server, "alice"))
    bob = store_server.boto3(*new_key(store_server, "bob"))
    alice.create_bucket(Bucket="acme-books")
    alice.put_object(Bucket="acme-books", Key="ledger", Body=b"secret")
    for other in (bob, store_server.boto3()):
        with pytest.raises(ClientError, match="AccessDenied"):
            other.get_object(Bucket="acme-books", Key="ledger")
    assert [user["tenant"] for user in rows(store_server, "user", "list") if user["name"] == "alice"] == [
        "acme"
    ]


def test_a_disabled_key_user_or_tenant_is_refused_from_the_next_request_on(store_server: Server) -> None:
    store_server.command("user", "create", "carol", "--tenant", "carols")
    access, secret = new_key(store_server, "carol")
    # Each connection may reach another worker: both know at once.
    clients = [store_server.boto3(access, secret) for _ in range(8)]
    clients[0].create_bucket(Bucket="carols-books")
    for s3 in clients:
        s3.list_buckets()
    for kind, name in (("key", access), ("user", "carol"), ("tenant", "carols")):
        assert store_server.command(kind, "disable", name).stdout == f"{name}: disabled\n"
        for s3 in clients:
            with pytest.raises(ClientError, match="InvalidAccessKeyId"):
                s3.list_buckets()
        assert store_server.command(kind, "enable", name).stdout == f"{name}: enabled\n"
        for s3 in clients:
            s3.list_buckets()
        assert rows(store_server, kind, "disable", name)[0]["disabled"] is True
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            clients[0].list_buckets()
        assert store_server.command(kind, "disable", "--undo", name).stdout == f"{name}: enabled\n"
        clients[0].list_buckets()


def test_a_tenant_is_shown_with_its_users_and_buckets_and_no_other(store_server: Server) -> None:
    for user, tenant in (("erin", "erins"), ("frank", "erins"), ("grace", "graces")):
        store_server.command("user", "create", user, "--tenant", tenant)
    access, secret = new_key(store_server, "erin")
    store_server.command("key", "disable", new_key(store_server, "erin")[0])
    store_server.boto3(access, secret).create_bucket(Bucket="erins-bucket")
    store_server.command("user", "disable", "frank")
    names = {row["name"]: row["disabled"] for row in rows(store_server, "tenant", "list")}
    assert names["default"] is names["erins"] is names["graces"] is False
    (shown,) = rows(store_server, "tenant", "show", "erins")
    assert (shown["name"], shown["state"], shown["customer"]) == ("erins", "active", None)
    assert shown["use"] == {"bytes": 0, "objects": 0, "buckets": 1}
    users = [(user["name"], user["disabled"]) for user in shown["users"]]  # type: ignore[attr-defined]
    assert users == [("erin", False), ("frank", True)]
    assert "use.buckets" in store_server.command("tenant", "show", "erins").stdout
    assert [user["name"] for user in rows(store_server, "user", "list", "--tenant", "erins")] == [
        "erin",
        "frank",
    ]


def test_a_secret_is_shown_once_and_with_settings_to_paste(store_server: Server) -> None:
    store_server.command("user", "create", "dave")
    done = store_server.command("key", "create", "dave", "--print", "boto3,aws,rclone")
    access, secret, _ = done.stdout.splitlines()[1].split("\t")
    for line in (
        f'endpoint_url="{store_server.endpoint}"',
        f"AWS_SECRET_ACCESS_KEY='{secret}'",
        f"secret_access_key = {secret}",
    ):
        assert line in done.stdout
    listed = store_server.command("key", "list", "--user", "dave").stdout
    assert access in listed
    assert secret not in listed


def test_a_list_is_tab_separated_in_a_pipe_and_csv_or_yaml_or_a_table_when_asked_for(
    store_server: Server,
) -> None:
    plain = store_server.command("disk", "list").stdout.splitlines()
    assert plain[0].split("\t")[:3] == ["disk", "path", "state"]
    assert len(plain) == 7
    table = list(csv.DictReader(io.StringIO(store_server.command("disk", "list", "-o", "csv").stdout)))
    assert [row["state"] for row in table] == ["healthy"] * 6
    assert store_server.command("disk", "list", "-o", "yaml").stdout.startswith(
        '- disk: 1\n  node: ""\n  path: '
    )
    assert "healthy" in store_server.command("disk", "list", "-o", "table").stdout


def test_status_doctor_and_health_agree_on_a_healthy_store(store_server: Server) -> None:
    assert store_server.command("health", "--ready").stdout == "ready\n"
    assert rows(store_server, "health", "--ready")[0]["ready"] is True
    assert store_server.command("health", "--read").stdout == "ok\n"
    both = store_server.command("health", "--read", "--cluster", check=False)
    assert (both.returncode, "ask one of them" in both.stderr) == (2, True)
    status = rows(store_server, "status")[0]
    assert not status["degraded"]
    doctor = store_server.command("doctor", "-o", "json", check=False)
    findings = {finding["check"]: finding for finding in json.loads(doctor.stdout)}
    assert findings["disks"]["level"] == "ok"
    assert "survives no disk" in findings["devices"]["finding"]
    assert {"codec", "lmdb", "metadata size", "limits", "clock", "space"} <= findings.keys()
    assert doctor.returncode == 3  # Six directories on one device are worth a warning.


def test_a_disk_is_verified_by_hand(store_server: Server) -> None:
    assert rows(store_server, "disk", "verify", "3")[0]["state"] == "healthy"
    done = store_server.command("disk", "verify", "99", check=False)
    assert done.returncode == 1
    assert "there is no disk 99" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["user", "disable", "nobody"], 1, "there is no user 'nobody'"),
        (["user", "disable", "root"], 4, "root user cannot be disabled"),
        (["user", "create", "root"], 1, "exists"),
        (["tenant", "show", "nobodys"], 1, "there is no tenant 'nobodys'"),
        (["tenant", "disable", "nobodys"], 1, "there is no tenant 'nobodys'"),
        (["tenant", "disable", "default"], 4, "root's and cannot be disabled"),
        (["key", "create", "nobody"], 1, "there is no user 'nobody'"),
        (["key", "create", "root", "--print", "mc"], 2, "one of boto3, aws, rclone"),
        (["key", "disable", "OSNOTAKEY"], 1, "there is no access key"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_an_exit_code(
    store_server: Server, arguments: list[str], code: int, words: str
) -> None:
    done = store_server.command(*arguments, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_does_not_run_is_told_from_one_that_does_not_exist(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    nothing = tmp_path_factory.mktemp("nothing")
    done = run_command("status", "--data", str(nothing), check=False)
    assert done.returncode == 2
    assert "no admin token" in done.stderr
    (nothing / "admin.token").write_text("token")
    done = run_command("status", "--data", str(nothing), "--admin", "127.0.0.1:9", check=False)
    assert done.returncode == 1
    assert "does not answer at 127.0.0.1:9" in done.stderr
    assert (
        run_command("health", "--data", str(nothing), "--admin", "127.0.0.1:9", check=False).returncode == 1
    )


def test_the_configuration_is_checked_and_shown_with_its_origins(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("config") / "objstore.toml"
    file.write_text("[server]\nworkers = 3\n")
    environment = environment_for(OBJSTORE_ROOT_ACCESS_KEY="root", OBJSTORE_ROOT_SECRET_KEY="do-not-show-me")
    assert run_command("config", "check", "--config", str(file)).stdout == f"{file}: ok\n"
    shown = run_command("config", "show", "--origin", "--config", str(file), environment=environment).stdout
    assert f"server.workers\t3\tfile {file}" in shown
    assert "blobs.codec\t4+2\tdefault" in shown
    assert "root.access_key\troot\tenvironment OBJSTORE_ROOT_ACCESS_KEY" in shown
    assert "do-not-show-me" not in shown
    file.write_text("[server]\nworkrs = 3\n")
    done = run_command("config", "check", "--config", str(file), check=False)
    assert done.returncode == 2
    assert "did you mean server.workers?" in done.stderr
    defaults = run_command("config", "defaults").stdout
    assert defaults == (ROOT / "config" / "objstore.toml").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [("objstore-gateway", "objstore cluster init --data"), ("objstore-node", "objstore cluster token")],
)
def test_a_role_that_is_no_member_of_a_cluster_says_how_it_becomes_one(
    tmp_path: Path, name: str, words: str
) -> None:
    command = [str(ROOT / "cmd" / name), f"--data={tmp_path}", "--listen=127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert words in done.stderr


def test_help_needs_none_of_the_heavy_modules() -> None:
    done = run_command("--help", environment=environment_for(PYTHONPROFILEIMPORTTIME="1"))
    assert re.search(r"serve +Run the store", done.stdout)
    for module in ("aiohttp", "lmdb", "uvloop", "rich", "prometheus_client", "cryptography"):
        assert not re.search(rf"\| +{module}$", done.stderr, re.MULTILINE), module


def test_every_command_explains_itself() -> None:
    commands = [[], ["serve"], ["status"], ["doctor"], ["health"], ["upkeep"], ["token"]]
    groups = {
        "config": ["check", "show", "defaults"],
        "tenant": ["list", "show", "disable", "enable"],
        "user": ["create", "list", "disable", "enable"],
        "key": ["create", "list", "disable", "enable"],
        "disk": ["list", "verify"],
        "meta": ["copy", "export", "import", "rebuild"],
    }
    commands += [[group, name] for group, names in groups.items() for name in names]
    for command in commands:
        done = CliRunner().invoke(app, [*command, "--help"])
        assert done.exit_code == 0, command
        assert "Usage:" in done.stdout, command


def test_a_table_shows_sizes_in_units_and_other_forms_show_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    disk = {"disk": 1, "free": 1_610_612_736, "total": None}
    show([disk], ["disk", "free", "total"], Format.TABLE)
    show(
        [{"what": "free_bytes", "value": 2048}, {"what": "up_seconds", "value": 2048}],
        ["what", "value"],
        Format.TABLE,
    )
    table = capsys.readouterr().out
    assert "1.5 GiB" in table
    assert "2.0 KiB" in table
    assert "2048" in table
    show([disk], ["disk", "free", "total"], Format.TSV)
    assert capsys.readouterr().out == "disk\tfree\ttotal\n1\t1610612736\t\n"


@pytest.mark.parametrize("form", [Format.TABLE, Format.TSV, Format.JSON, Format.YAML])
def test_what_a_tenant_chose_does_nothing_to_an_operators_terminal(
    form: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202ename"
    show([{"key": key}], ["key"], form)
    shown = capsys.readouterr().out
    assert "name" in shown
    assert shown.replace("\n", "").replace("\t", "").isprintable(), shown
    with pytest.raises(SystemExit):
        fail(f"no key {key}")
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_what_a_tenant_chose_is_no_formula_in_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        [{"key": "=cmd|' /C calc'!A0", "amount": "-12.50 DZD", "bytes": -5}],
        ["key", "amount", "bytes"],
        Format.CSV,
    )
    assert capsys.readouterr().out == "key,amount,bytes\n'=cmd|' /C calc'!A0,-12.50 DZD,-5\n"


def test_text_that_can_be_printed_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"key": "gr\u00fc\u00dfe \u4f60\u597d"}], ["key"], Format.TSV)
    assert capsys.readouterr().out == "key\ngr\u00fc\u00dfe \u4f60\u597d\n"
