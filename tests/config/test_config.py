"""What an operator may write, and what it says when they slip. The messages are part of the contract."""

import re
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from objstore.config import PATTERNS, Config, ConfigError, defaults_text, load, options

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "objstore.toml"
    file.write_text(text)
    return file


def test_the_committed_file_is_what_the_code_says() -> None:
    assert (ROOT / "config" / "objstore.toml").read_text() == defaults_text()


def test_every_setting_in_the_file_has_the_value_that_the_code_defaults_to(tmp_path: Path) -> None:
    text = re.sub(r"^# ([a-z_]+ = )", r"\1", defaults_text(), flags=re.MULTILINE)
    loaded = load(written(tmp_path, text), {})
    assert loaded.config == Config()
    assert all(origin.startswith("file") for origin in loaded.origins.values())  # None was left out.


def test_every_option_is_explained() -> None:
    assert [option.name for option in options().values() if len(option.doc) < 15] == []


def test_every_option_with_a_pattern_says_in_words_what_it_takes() -> None:
    patterned = {
        f"{section.name}.{name}"
        for section in msgspec.structs.fields(Config)
        for name, hint in get_type_hints(section.type, include_extras=True).items()
        if "pattern='" in repr(hint) or 'pattern="' in repr(hint)
    }
    assert patterned == set(PATTERNS)


def test_two_ports_may_be_free_ones_or_on_two_addresses(tmp_path: Path) -> None:
    for one, other in (
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.1:9001", "127.0.0.2:9001"),
        ("0.0.0.0:9001", "[::1]:9001"),
    ):
        load(written(tmp_path, f'[server]\nlisten = "{one}"\nadmin_listen = "{other}"\n'), {})


def test_a_variable_beats_the_file_and_a_flag_beats_the_variable(tmp_path: Path) -> None:
    file = written(tmp_path, '[server]\nworkers = 3\nregion = "eu-1"\nlisten = "127.0.0.1:1"\n')
    environment = {"OBJSTORE_SERVER__WORKERS": "4", "OBJSTORE_SERVER__LISTEN": "127.0.0.1:2"}
    loaded = load(file, environment, {"server.listen": ("--listen", "127.0.0.1:3")})
    assert loaded.config.server.workers == 4
    assert loaded.config.server.region == "eu-1"
    assert loaded.config.server.listen == "127.0.0.1:3"
    assert loaded.origins["server.workers"] == "environment OBJSTORE_SERVER__WORKERS"
    assert loaded.origins["server.region"] == f"file {file}"
    assert loaded.origins["server.listen"] == "flag --listen"
    assert loaded.origins["blobs.codec"] == "default"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nworkrs = 2", "unknown option server.workrs; did you mean server.workers?"),
        ("[servr]\nworkers = 2", "unknown section [servr]; did you mean server?"),
        ("workers = 2", "unknown section [workers]; did you mean server.workers?"),
        ("[blobs]\nworkers = 2", "unknown option blobs.workers; did you mean server.workers?"),
        ("server = 2", "server is a section: write [server]"),
        ("[server]\nworkers = -1", "server.workers must be int >= 0, not -1"),
        ("[server]\nworkers = true", "server.workers must be int"),
        ('[server]\nworkers = "2"', "server.workers must be int"),
        (
            '[blobs]\ncodec = "4-2"',
            "blobs.codec must be numbers of data and parity fragments, as 4+2, not '4-2'",
        ),
        ('[blobs]\ncodec = "4+0"', "blobs.codec: 1+1 to 32 fragments in all, not 4+0"),
        ('[server]\nlisten = "9000"', "server.listen: host:port, not '9000'"),
        ('[server]\nlisten = "localhost:٩٠٠٠"', "server.listen: host:port"),
        ('[server]\nlisten = "localhost:70000"', "server.listen: host:port"),
        (
            '[server]\nlisten = "127.0.0.1:9001"',
            "server.listen (--listen, 127.0.0.1:9001) and server.admin_listen (--admin-listen,"
            " 127.0.0.1:9001) are one port: give each its own",
        ),
        ('[server]\nlisten = "0.0.0.0:9001"', "are one port: give each its own"),
        (
            '[root]\nsecret_key = "short"',
            "root.secret_key must be 8 to 128 printable characters without spaces",
        ),
        ('[log]\nlevel = "loud"', "log.level must be debug, info, warning or error, not 'loud'"),
        ('[tls]\ncertificate = "a.pem"', "tls.certificate and tls.key belong together"),
        ('[disks]\npaths = ["/a", "/a"]', "disks.paths names the same directory twice"),
        ("[server", "not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), {})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OBJSTORE_SERVER__WORKRS": "1"}, "did you mean OBJSTORE_SERVER__WORKERS?"),
        ({"OBJSTORE_ROOT_ACESS_KEY": "x"}, "did you mean OBJSTORE_ROOT_ACCESS_KEY?"),
        (
            {"OBJSTORE_WORKERS": "1"},
            "unknown variable OBJSTORE_WORKERS; did you mean OBJSTORE_SERVER__WORKERS?",
        ),
        ({"OBJSTORE_SERVER__WORKERS": "1_0"}, "a whole number, not '1_0'"),
        ({"OBJSTORE_SERVER__WORKERS": "٣"}, "a whole number"),
        ({"OBJSTORE_METRICS__PUBLIC": "maybe"}, "true or false, not 'maybe'"),
        ({"OBJSTORE_ROOT_ACCESS_KEY": "root"}, "belong together"),
        ({"OBJSTORE_ROOT_SECRET_KEY_FILE": "/nowhere"}, "cannot read '/nowhere'"),
    ],
)
def test_a_mistake_in_a_variable_is_named_with_its_remedy(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environment)
    assert message in str(caught.value)


def test_variables_of_others_are_left_alone() -> None:
    others = {"OBJSTORE_LONG": "1", "OBJSTORE_ADMIN": "store:9001", "OBJSTORE_TOKEN": "t", "PATH": "/bin"}
    assert load(None, others).config == Config()


def test_lists_and_numbers_are_read_from_variables() -> None:
    config = load(None, {"OBJSTORE_DISKS__PATHS": "/a, /b", "OBJSTORE_DISKS__PROGRESS_SECONDS": "2.5"}).config
    assert config.disks.paths == ["/a", "/b"]
    assert config.disks.progress_seconds == 2.5


def test_a_secret_is_read_from_a_file_without_its_line_end_and_never_shown(tmp_path: Path) -> None:
    place = tmp_path / "secret"
    place.write_text("s3cr3t-s3cr3t\n")
    environment = {"OBJSTORE_ROOT_ACCESS_KEY": "rootkey", "OBJSTORE_ROOT_SECRET_KEY_FILE": str(place)}
    loaded = load(None, environment)
    assert loaded.config.root.secret_key == "s3cr3t-s3cr3t"
    assert "s3cr3t" not in repr(loaded)
    assert loaded.shown("root.secret_key") == "(hidden)"
    with pytest.raises(ConfigError, match="keep one"):
        load(None, environment | {"OBJSTORE_ROOT_SECRET_KEY": "another-secret"})


def test_a_secret_that_the_directory_would_refuse_is_refused_at_the_start() -> None:
    given = {"OBJSTORE_ROOT_ACCESS_KEY": "rootkey"}
    assert load(None, given | {"OBJSTORE_ROOT_SECRET_KEY": "s" * 128}).config.root.secret_key == "s" * 128
    with pytest.raises(ConfigError, match=r"root\.secret_key"):
        load(None, given | {"OBJSTORE_ROOT_SECRET_KEY": "s" * 129})


def test_a_refused_secret_is_not_in_the_message() -> None:
    environment = {"OBJSTORE_ROOT_ACCESS_KEY": "rootkey", "OBJSTORE_ROOT_SECRET_KEY": "tiny"}
    with pytest.raises(ConfigError) as caught:
        load(None, environment)
    assert "root.secret_key" in str(caught.value)
    assert "tiny" not in str(caught.value)


def test_the_password_in_the_address_of_the_metadata_is_not_shown() -> None:
    loaded = load(None, {"OBJSTORE_META__URL": "postgresql://u:hidden-word@h/db"})
    assert loaded.config.meta.url.endswith("@h/db")
    assert "hidden-word" not in repr(loaded.config)
    assert loaded.shown("meta.url") == "(hidden)"
    with pytest.raises(ConfigError) as caught:
        load(None, {"OBJSTORE_META__URL": "mysql://u:hidden-word@h/db"})
    assert "meta.url" in str(caught.value)
    assert "hidden-word" not in str(caught.value)
