"""Every command, option, setting and file that a deployment file names is one that the store knows."""

import functools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import typer.main
import yaml

from objstore.cli.main import app
from objstore.config import ALIASES, COMMAND_VARIABLES, ENVIRONMENT_PREFIX, load, options
from tests.deploy.files import CONFIG, ROOT
from tests.deploy.manual import blocks
from tests.deploy.render_chart import CHART, RENDERED, cases, digest

COMPOSE = CONFIG / "compose.yml"
PAGES = (
    "README.md", "docs/access.md", "docs/admin-api.md", "docs/compliance.md", "docs/durability.md",
    "docs/export.md", "docs/finance.md", "docs/metrics.md", "docs/operations.md", "docs/postgresql.md",
)  # fmt: skip
"""Those of renting.md are run: test_renting_story.py."""
PLACEHOLDERS = {
    "N": "3",
    "PATH": "/mnt/d7",
    "ID": "7",
    "$disk": "3",
    "TOKEN": "osjoin1.x",
    "NAME": "m1",
    "NODE": "m1:9003",
    "HOST:9001": "h:9001",
}


@functools.cache
def tree() -> Any:
    """The command line's commands: made once, since it takes a while."""
    return typer.main.get_command(app)


def parse(arguments: list[str]) -> None:
    """As the command line would, without doing anything. Raises: what typer says of it."""
    command = tree()
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        raise LookupError(f"no command {' '.join(arguments)}")
    command.make_context("objstore", rest)


def test_a_command_or_option_that_is_not_there_is_noticed() -> None:
    for wrong in (["sreve"], ["disk", "adopt", "/x"], ["serve", "--lisen", "x:1"], ["disk", "add"]):
        with pytest.raises(Exception, match=r"no command|No such option|Missing parameter"):
            parse(wrong)


def commands(text: str) -> Iterator[str]:
    """Every call of objstore in a piece of shell."""
    text = re.sub(r"(?m)\s+#.*$|^(?:ln|cp|tar|make|install) .*$", "", text)
    program = r"(?:^|[\s(;|&`])(?:/\S*/|cmd/)?objstore "
    for found in re.finditer(program + r"((?:\"[^\"]*\"|[^\n;|&<>()`#])*)", text):
        yield found[1].strip()


def named_on_pages() -> list[str]:
    found: list[str] = []
    for page in PAGES:
        for block in blocks(ROOT / page):
            if block.language == "sh":
                found += commands(block.text)
        for quoted in re.findall(r"`(objstore [^`]+)`", (ROOT / page).read_text()):
            found += commands(quoted.replace("\n", " "))
    rules = yaml.safe_load((CONFIG / "prometheus/alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            for sentence in re.findall(r"objstore ([\w -]+)", rule["annotations"]["action"]):
                found.append(_beginning(sentence.split()))
    return sorted(set(found))


def _beginning(words: list[str]) -> str:
    """Of a sentence, what is a command: its names, then placeholders and options."""
    command = tree()
    count = 0
    while count < len(words) and words[count] in getattr(command, "commands", {}):
        command = command.commands[words[count]]
        count += 1
    while count and count < len(words) and (words[count] in PLACEHOLDERS or words[count].startswith("--")):
        count += 1
    return " ".join(words[: max(count, 1)])


@pytest.mark.parametrize("line", named_on_pages())
def test_a_command_on_a_page_is_accepted_as_it_stands(line: str) -> None:
    if line in ("...", "disk ..."):
        return
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
    words = [word for word in words if word not in ("...", "[--wait]")]
    known = _known([word for word in words if not word.startswith("-")])
    try:
        parse(words)
    except typer.Exit:
        return  # --help.
    except Exception as failure:
        # `objstore disk add` in a sentence: a command of that name, whose arguments are not given.
        if known and len(words) <= 3 and re.search("Missing|requires an argument|^Usage:", str(failure)):
            return
        raise


def _known(words: list[str]) -> bool:
    command = tree()
    for word in words:
        if word not in getattr(command, "commands", {}):
            return False
        command = command.commands[word]
    return True


def check_settings(given: dict[str, str]) -> None:
    """Every variable is a setting, and its value one that the store takes; files of secrets are left out."""
    names = {f"{ENVIRONMENT_PREFIX}{name.upper().replace('.', '__')}" for name in options()} | set(ALIASES)
    plain: dict[str, str] = {}
    for name, value in given.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in COMMAND_VARIABLES:
            continue
        if name.endswith("_FILE"):
            assert name.removesuffix("_FILE") in names, name
        else:
            assert name in names, name
            plain[name] = value
    assert not any(re.search("SECRET|MASTER|META__URL", name) for name in plain), "a secret is no setting"
    load(None, plain)


@pytest.mark.parametrize("name", ["objstore.service", "objstore-gateway.service", "objstore-node@.service"])
def test_a_unit_starts_a_command_that_is_there_with_settings_that_are(name: str) -> None:
    text = (CONFIG / "systemd" / name).read_text().replace("%i", "a")
    found = re.search(r"^ExecStart=/opt/objstore/cmd/objstore (.*)$", text, re.M)
    assert found is not None
    parse(shlex.split(found[1]))
    assert (ROOT / "cmd/objstore").exists()
    named = dict(re.findall(r"(OBJSTORE_[A-Z_]+)=(\S*)", text))
    check_settings(named)


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "toml"], ids=lambda block: block.heading
)
def test_a_configuration_on_the_page_is_one_that_the_store_takes(block: Any, tmp_path: Any) -> None:
    file = tmp_path / "objstore.toml"
    file.write_text(block.text)
    loaded = load(file, {})
    assert any(origin.startswith("file") for origin in loaded.origins.values())


# Compose.


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def test_compose_has_the_services_that_were_asked_for(compose: dict[str, Any]) -> None:
    wanted = {f"node-{number}" for number in range(1, 7)} | {"gateway-1", "gateway-2"}
    assert compose["services"].keys() == wanted | {"postgres", "haproxy", "prometheus", "grafana"}


def test_compose_names_only_what_it_declares(compose: dict[str, Any]) -> None:
    used: dict[str, set[str]] = {"volumes": set(), "networks": set(), "secrets": set()}
    for name, service in compose["services"].items():
        for place in service.get("volumes", ()):
            source, target, *_ = place.split(":")
            assert target.startswith("/"), name
            if source.startswith("./"):
                assert (COMPOSE.parent / source).exists(), place
            else:
                used["volumes"].add(source)
        used["networks"].update(service["networks"])
        used["secrets"].update(service.get("secrets", ()))
        assert set(service.get("depends_on", ())) <= compose["services"].keys()
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), (
            "an image without a version moves"
        )
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for kind, names in used.items():
        assert names == compose[kind].keys(), kind


def test_compose_has_no_secret_in_it(compose: dict[str, Any]) -> None:
    for name, secret in compose["secrets"].items():
        assert secret["file"].startswith("${OBJSTORE_SECRETS") and secret["file"].endswith(f"}}/{name}")  # noqa: PT018
    for service in compose["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD|SECRET|TOKEN|URL", variable):
                assert value.startswith("/run/secrets/"), variable
                assert value.removeprefix("/run/secrets/") in service["secrets"], variable


@pytest.mark.parametrize("name", [*(f"node-{number}" for number in range(1, 7)), "gateway-1", "gateway-2"])
def test_a_service_of_ours_has_a_command_and_settings_that_the_store_takes(
    name: str, compose: dict[str, Any]
) -> None:
    service = compose["services"][name]
    parse(service["command"])
    health = service["healthcheck"]["test"]
    if health[1] == "objstore":
        parse(health[2:])
    settings = service["environment"]
    check_settings(settings)
    if name != "gateway-1":  # It begins the cluster.
        assert settings["OBJSTORE_JOIN"] == f"${{{name.upper().replace('-', '_')}_JOIN-}}"
    role = "NODE" if name.startswith("node") else "CLUSTER"
    assert settings[f"OBJSTORE_{role}__NAME"] == name
    port = settings[f"OBJSTORE_{role}__LISTEN"].rpartition(":")[2]
    assert settings[f"OBJSTORE_{role}__ADDRESS"] == f"{name}:{port}"
    assert service["volumes"] == [f"{name}:/data"]  # What the image's user may write.
    assert settings["OBJSTORE_SERVER__DATA"].startswith("/data")
    if role == "NODE":
        assert port in health[-1]


def test_the_others_ask_for_the_ports_that_ours_listen_on(compose: dict[str, Any]) -> None:
    gateway = compose["services"]["gateway-1"]["environment"]
    s3, admin = (
        gateway[f"OBJSTORE_SERVER__{name}"].rpartition(":")[2] for name in ("LISTEN", "ADMIN_LISTEN")
    )
    haproxy = (CONFIG / "haproxy/haproxy.cfg").read_text()
    assert re.findall(r"^    server (\S+) (\S+)$", haproxy, re.M) == [
        (f"gateway-{number}", f"gateway-{number}:{s3}") for number in (1, 2)
    ]
    assert f"check port {admin} " in haproxy
    scraped = yaml.safe_load((CONFIG / "prometheus/prometheus-compose.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped["scrape_configs"]}
    assert targets["objstore"] == [f"gateway-{number}:{admin}" for number in (1, 2)]
    assert targets["haproxy"] == [f"haproxy:{re.findall(r'bind :(8404)', haproxy)[0]}"]
    source = yaml.safe_load((CONFIG / "grafana/provisioning/datasources/objstore.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((CONFIG / "grafana/provisioning/dashboards/objstore.yml").read_text())
    mounted = [place.split(":")[:2] for place in compose["services"]["grafana"]["volumes"]]
    assert ["./grafana/dashboards", provider["providers"][0]["options"]["path"]] in mounted


# The chart, as Helm has rendered it.


@pytest.mark.parametrize("case", cases())
def test_the_rendered_chart_is_that_of_the_chart(case: str) -> None:
    """It needs Helm, which Debian lacks: whoever changes the chart runs tests/deploy/render_chart.py."""
    assert (RENDERED / f"{case}.yaml").read_text().splitlines()[1] == f"# Chart: {digest()}"


@functools.cache
def rendered(case: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((RENDERED / f"{case}.yaml").read_text()) if found]


def pods(case: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name of the set, its spec, its pod's spec)."""
    sets = [found for found in rendered(case) if found["kind"] in ("StatefulSet", "Deployment")]
    return [(one["metadata"]["name"], one["spec"], one["spec"]["template"]["spec"]) for one in sets]


@pytest.mark.parametrize("case", cases())
def test_a_pod_of_the_chart_runs_commands_with_settings_that_the_store_takes(case: str) -> None:
    assert len(pods(case)) == (1 if case == "single" else 4)
    for _, spec, pod in pods(case):
        claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
        volumes = claims | {volume["name"] for volume in pod["volumes"]}
        used: set[str] = set()
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            shell = container.get("command", [])
            if shell:
                assert shell == ["tini", "--", "sh", "-c"]  # What the image has.
                (script,) = container["args"]
                found = list(commands(script))
                assert found
                for one in found:
                    parse(shlex.split(one))
            else:
                parse(container["args"])
            environment = container["env"]
            names = [one["name"] for one in environment]
            assert len(names) == len(set(names)), "a variable is given twice"
            check_settings(
                {
                    one["name"]: one["value"]
                    for one in environment
                    if "value" in one and "$(" not in one["value"]
                }
            )
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            used |= set(mounts.values())
            for one in environment:
                if one["name"].endswith("_FILE") or one["name"].startswith("OBJSTORE_TLS__"):
                    assert one["value"].rpartition("/")[0] in mounts, one["name"]
            for path in ["/data", *(re.findall(r"/disks/d\d+", str(container)))]:
                assert mounts[path] in claims, path
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                for what in container.get(probe, {}).values():
                    if isinstance(what, dict):
                        assert what["port"] in ports
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert used == volumes, "a volume that no container has, or one that is nowhere"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["terminationGracePeriodSeconds"] > 60
        assert spec["persistentVolumeClaimRetentionPolicy"] == {
            "whenDeleted": "Retain",
            "whenScaled": "Retain",
        }


@pytest.mark.parametrize("case", cases())
def test_what_selects_pods_finds_some(case: str) -> None:
    labels = [spec["template"]["metadata"]["labels"] for _, spec, _ in pods(case)]

    def finds(selector: dict[str, str]) -> bool:
        return any(selector.items() <= one.items() for one in labels)

    for _, spec, _ in pods(case):
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        services = {one["metadata"]["name"] for one in rendered(case) if one["kind"] == "Service"}
        assert spec["serviceName"] in services
    for found in rendered(case):
        if found["kind"] == "Service":
            assert finds(found["spec"]["selector"])
            assert all(str(one["targetPort"]) for one in found["spec"]["ports"])
        elif found["kind"] == "PodDisruptionBudget":
            assert finds(found["spec"]["selector"]["matchLabels"])
        elif found["kind"] == "NetworkPolicy":
            assert finds(found["spec"]["podSelector"]["matchLabels"])


@pytest.mark.parametrize("case", cases())
def test_no_secret_of_the_chart_is_a_value(case: str) -> None:
    assert not [one for one in rendered(case) if one["kind"] == "Secret"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values["secrets"].values()) == {""}


def test_nodes_never_share_a_machine_and_are_never_taken_away_two_at_a_time() -> None:
    nodes = [(spec, pod) for name, spec, pod in pods("cluster") if "-node-" in name]
    assert len(nodes) == 3
    for spec, pod in nodes:
        (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        selector = rule["labelSelector"]["matchLabels"]
        assert all(selector.items() <= one["template"]["metadata"]["labels"].items() for one, _ in nodes)
        assert spec["updateStrategy"] == {"type": "OnDelete"}
    budget = [
        one
        for one in rendered("cluster")
        if one["metadata"]["name"].endswith("-node") and one["kind"] == "PodDisruptionBudget"
    ]
    assert [one["spec"]["maxUnavailable"] for one in budget] == [1]
    assert all(
        budget[0]["spec"]["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        for spec, _ in nodes
    )
