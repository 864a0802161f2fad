"""What an operator types to rent capacity out, against a running store; and what a tenant's token may."""

import json

import pytest
from typer.testing import CliRunner, Result

from objstore.cli.accounts import fields
from objstore.cli.main import app
from objstore.cli.renting import amount, percent, ratio, size
from objstore.config import ConfigError
from tests.server import ROOT, Server


@pytest.fixture(scope="module")
def rented(store_server: Server) -> Server:
    """The store with a seller `algiers`, a published plan, and customer `epicerie` with an owner."""
    say(
        store_server,
        "seller create algiers --set name=Alger",
        "--set",
        "address=1, rue; Alger",
        "--set",
        "country=DZ",
    )
    say(store_server, "plan publish", str(ROOT / "config/plans/tpe_pme.toml"))
    given = ["--set", "legal_name=Épicerie", "--set", "address=2, rue; Alger", "--set", "country=DZ"]
    say(store_server, "tenant create epicerie --kind tpe_pme --set seller=algiers", *given)
    say(store_server, "user create epicier --tenant epicerie")
    return store_server


def run(server: Server, line: str, *more: str, token: str = "", typed: str | None = None) -> Result:
    words = [*line.split(), *more, "--data", str(server.data)]
    return CliRunner().invoke(app, words, input=typed, env={"OBJSTORE_TOKEN": token})


def say(server: Server, line: str, *more: str, token: str = "") -> list[dict[str, object]]:
    done = run(server, line, *more, "-o", "json", token=token)
    assert done.exit_code == 0, (line, done.output, done.exception)
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def test_a_customer_is_made_shown_and_changed(rented: Server) -> None:
    (tenant,) = say(rented, "tenant show epicerie")
    customer = tenant["customer"]
    assert isinstance(customer, dict)
    assert (customer["legal_name"], customer["address"]) == ("Épicerie", ["2, rue", "Alger"])
    assert (tenant["state"], customer["kind"], customer["currency"]) == ("trial", "tpe_pme", "DZD")
    (changed,) = say(rented, "tenant set epicerie", "--set", "purchase_order=BC 7")
    assert changed["customer"]["purchase_order"] == "BC 7"  # type: ignore[index]
    say(rented, "project create epicerie web --cost-centre CC1 --tag team=shop")
    assert say(rented, "project show epicerie web")[0]["tags"] == {"team": "shop"}


def test_limits_are_set_shown_and_taken_away(rented: Server) -> None:
    (quota,) = say(rented, "quota set --tenant epicerie --bytes 1.5TB --objects 1000")
    assert quota["limits"]["bytes_max"] == 1_500_000_000_000  # type: ignore[index]
    say(rented, "quota set --tenant epicerie --objects none")
    limits = say(rented, "quota show --tenant epicerie")[0]["limits"]
    assert (limits["bytes_max"], limits["objects_max"]) == (1_500_000_000_000, None)  # type: ignore[index]
    table = run(rented, "quota show --tenant epicerie").stdout
    assert "limits.bytes_max\t1500000000000" in table


def test_a_plan_a_lease_and_a_payment_are_what_was_typed(rented: Server) -> None:
    (customer,) = say(rented, "plan give epicerie tpe-pme")
    assert (customer["plan"], customer["plan_version"]) == ("tpe-pme", 1)
    say(rented, "capacity rules --spare-domains 0")  # The one machine is the only failure domain.
    (quote,) = say(rented, "lease quote epicerie 1MB --months 12 --price 7.99")
    assert (quote["state"], quote["capacity"]) == ("quote", 1_000_000)
    say(rented, f"lease accept {quote['id']}")
    assert say(rented, f"lease sign {quote['id']}")[0]["state"] == "signed"
    (pool,) = say(rented, "report capacity")
    assert pool["usable"] > 0  # type: ignore[operator]
    assert pool["sold_share"] == "0/1"  # Exact for programs; it begins tomorrow.
    shown = run(rented, "capacity show").stdout
    assert "sold_share\t0.00 %\n" in shown
    assert "fill\t" in shown
    (paid,) = say(rented, "payment receive epicerie 100.25 --method especes")
    assert (paid["amount"], paid["to_wallet"]) == ("100.25 DZD", "100.25 DZD")
    assert say(rented, "payment wallet epicerie")[0]["balance"] == "100.25 DZD"
    assert say(rented, "invoice list --tenant epicerie") == []
    assert say(rented, "usage show epicerie") == []
    assert say(rented, "usage verify epicerie") == [{"records": 0, "retired": 0, "wrong": []}]
    assert say(rented, "report open-invoices") == []


def test_more_than_there_is_is_not_sold(rented: Server) -> None:
    done = run(rented, "lease quote epicerie 900PB --months 12 --price 1 --draft -o json")
    assert done.exit_code == 3
    assert "are missing" in done.stderr
    lease = json.loads(done.stdout)[0]["id"]
    refused = run(rented, f"lease sign {lease}")
    assert refused.exit_code != 0
    assert "are missing" in str(refused.exception)


def test_a_quote_from_a_pool_that_there_is_not_is_none(rented: Server) -> None:
    before = say(rented, "lease list --tenant epicerie")
    refused = run(rented, "lease quote epicerie 1MB --months 12 --price 1 --pool gold")
    assert refused.exit_code == 1
    assert "there is no pool 'gold': pools are the shared one, which has no name;" in str(refused.exception)
    assert say(rented, "lease list --tenant epicerie") == before


def test_a_tenants_token_may_what_its_user_may(rented: Server) -> None:
    token = str(say(rented, "user token epicier --days 1")[0]["token"])
    assert [row["name"] for row in say(rented, "tenant list", token=token)] == ["epicerie"]
    say(rented, "user create caissier --tenant epicerie --role reader", token=token)
    denied = run(rented, "quota set --tenant epicerie --bytes 9TB", token=token)
    assert "only who is above the tenant" in str(denied.exception)
    assert run(rented, "tenant show default", token=token).exit_code != 0
    (one,) = say(rented, "user tokens epicier")
    say(rented, f"user revoke {one['id']}", token=token)
    assert "token is needed" in str(run(rented, "tenant list", token=token).exception)


def test_a_tenant_orders_from_an_offer_by_itself_once_it_is_active(rented: Server) -> None:
    say(rented, "offer put petite --least 1MB --most 3MB --step 1MB --months 12 --months 36 --price 650")
    say(rented, "offer put gros --least 1PB --most 2PB --months 12 --price 1 --for wholesale")
    token = str(say(rented, "user token epicier --days 1")[0]["token"])
    order = "offer order petite 2MB --months 12"
    assert "is trial" in str(run(rented, order, token=token).exception)
    say(rented, "tenant set epicerie", "--set", "identity_checked=2026-01-01T00:00:00Z")
    say(rented, "tenant state epicerie active")
    assert [one["name"] for one in say(rented, "offer list", token=token)] == ["petite"]
    (lease,) = say(rented, order, token=token)
    assert (lease["tenant"], lease["state"], lease["capacity"]) == ("epicerie", "signed", 2_000_000)
    assert (lease["offer"], lease["unit_price"]) == ("petite", "650")
    assert lease in say(rented, "lease list", token=token)
    for wrong, why in (
        ("4MB --months 12", "1000000 to 3000000 bytes"),
        ("2MB --months 13", "terms of 12, 36"),
    ):
        assert why in str(run(rented, f"offer order petite {wrong}", token=token).exception)
    assert "only the operator" in str(run(rented, f"lease sign {lease['id']}", token=token).exception)
    reader = str(say(rented, "user create lectrice --tenant epicerie --role reader")[0]["name"])
    reading = str(say(rented, f"user token {reader} --days 1")[0]["token"])
    assert "does not allow leases:Write" in str(run(rented, order, token=reading).exception)


def test_a_lease_is_changed_signed_ramped_given_notice_and_ended_early(rented: Server) -> None:
    begin, later = "2090-01-01T00:00:00Z", "2090-06-01T00:00:00Z"
    terms = f"--months 12 --price 7000000 --begin {begin} --renews --fee-share 0.5"
    (quote,) = say(rented, f"lease quote epicerie 1MB {terms}")
    lease = quote["id"]
    (changed,) = say(rented, f"lease set {lease} --months 24 --notice-days 60")
    assert (changed["end"], changed["notice_days"]) == ("2092-01-01T00:00:00Z", 60)
    assert (changed["fee_share"], changed["renews"]) == ("0.5", True)
    say(rented, f"lease accept {lease}")
    say(rented, f"lease sign {lease}")
    assert "is signed" in str(run(rented, f"lease set {lease} --price 1").exception)
    (ramped,) = say(rented, f"lease ramp {lease} {later} 2MB")
    assert ramped["ramp"][-1] == {"at": later, "capacity": 2_000_000}  # type: ignore[index]
    assert say(rented, f"lease notice {lease}")[0]["renews"] is False
    (ended,) = say(rented, f"lease terminate {lease} --at {later} --reason moved --yes")
    assert ended["lease"]["end"] == later  # type: ignore[index]
    fee, charges = int(str(ended["fee"])), int(str(ended["charges"]))
    assert charges > 0
    assert fee == (charges + 1) // 2  # Half of what remains, rounded half up.
    (other,) = say(rented, "lease quote epicerie 1MB --months 1 --price 1 --begin 2090-01-01T00:00:00Z")
    assert say(rented, f"lease withdraw {other['id']}")[0]["state"] == "withdrawn"


def test_a_payment_is_listed_not_repeated_and_taken_back(rented: Server) -> None:
    receive = "payment receive epicerie 500 --method cheque --reference"
    (cheque,) = say(rented, receive, "BNA 7")
    repeated = run(rented, receive, "bna  7")
    assert "--again" in str(repeated.exception)
    (cash,) = say(rented, "payment receive epicerie 1000 --method especes")
    assert "--entry-error" in str(run(rented, f"payment reverse {cash['id']} mistyped --yes").exception)
    assert say(rented, f"payment reverse {cash['id']} mistyped --entry-error --yes")[0]["state"] == "reversed"
    say(rented, f"payment reverse {cheque['id']} bounced --yes")
    states = {one["id"]: one["state"] for one in say(rented, "payment list epicerie")}
    assert (states[cheque["id"]], states[cash["id"]]) == ("reversed", "reversed")


def test_deliveries_are_announced_and_changed(rented: Server) -> None:
    (event,) = say(rented, "capacity event 2090-01-01T00:00:00Z 480TB --words ordered")
    (changed,) = say(
        rented, f"capacity event 2090-02-01T00:00:00Z 480TB --state delivered --id {event['id']}"
    )
    assert (changed["at"], changed["state"]) == ("2090-02-01T00:00:00Z", "delivered")
    assert changed in say(rented, "capacity events")
    say(rented, f"capacity event 2090-02-01T00:00:00Z 480TB --state cancelled --id {event['id']}")


def test_keys_roles_and_sellers_are_changed(rented: Server) -> None:
    say(rented, "user create apprenti --tenant epicerie --role reader")
    say(rented, "user role apprenti admin")
    assert {row["name"]: row["role"] for row in say(rented, "user list")}["apprenti"] == "admin"
    (key,) = say(rented, "key create apprenti")
    say(rented, f"key terms {key['access_key']} --network 192.0.2.0/24")
    assert say(rented, f"key show {key['access_key']}")[0]["networks"] == ["192.0.2.0/24"]
    (seller,) = say(rented, "seller set algiers --set past_due_days=5")
    assert seller["past_due_days"] == 5


def test_what_is_not_there_to_be_bound_released_or_believed_is_said(rented: Server) -> None:
    nowhere = run(rented, "tenant sites epicerie --site nowhere")
    assert "there is no site nowhere" in str(nowhere.exception)
    assert "say --anywhere" in str(run(rented, "tenant sites epicerie").exception)
    (tenant,) = say(rented, "tenant sites epicerie --anywhere")
    assert tenant["sites"] == []
    (lease,) = say(
        rented, "lease quote epicerie 1MB --months 1 --price 1 --overage average --overage-max 2MB"
    )
    assert (lease["overage_mode"], lease["overage_max"]) == ("average", 2_000_000)
    released = run(rented, f"lease release {lease['id']} --yes")
    assert "is guaranteed: it has no nodes" in str(released.exception)
    assert run(rented, "usage resume", typed="no").exit_code == 4
    (mark,) = say(rented, "usage resume --yes")
    assert mark["accepted"]


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(rented: Server) -> None:
    done = run(rented, "user create nobody-at-all --tenant epicerie --dry-run")
    (asked,) = json.loads(done.stdout)
    assert (asked["method"], asked["path"], asked["body"]["name"]) == (
        "POST", "/api/v1/users", "nobody-at-all",
    )  # fmt: skip
    assert "nobody-at-all" not in {row["name"] for row in say(rented, "user list")}
    gone = run(rented, "tenant state epicerie terminating --dry-run")
    assert json.loads(gone.stdout)[0]["body"]["state"] == "terminating"
    assert say(rented, "tenant show epicerie")[0]["state"] != "terminating"


def test_what_cannot_be_undone_is_not_done_without_a_word(rented: Server) -> None:
    (key,) = say(rented, "key create epicier")
    refused = run(rented, f"key remove {key['access_key']}")
    assert (refused.exit_code, "not confirmed" in refused.stderr) == (4, True)
    say(rented, f"key remove {key['access_key']} --yes")
    assert key["access_key"] not in {row["access_key"] for row in say(rented, "key list")}


def test_the_audit_log_is_listed_and_verified_with_an_anchor(rented: Server) -> None:
    acts = say(rented, "audit list --what create_tenant --limit 5")
    assert any(act["target"] == "tenants" and act["who"] == "operator" for act in acts)
    (verdict,) = say(rented, "audit verify")
    assert (verdict["finding"], verdict["finished"]) == ("", True)
    say(rented, "audit verify --anchor", str(verdict["upto"]))
    sequence, _, digest = str(verdict["upto"]).partition(":")
    wrong = run(rented, "audit verify --anchor", f"{sequence}:{digest[::-1]}")
    assert (wrong.exit_code, "not the one of the anchor" in wrong.stdout) == (4, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("10TB", 10**13),
        ("1.5TiB", 3 * 2**39),
        ("1 kb", 1000),
        ("7B", 7),
        ("0.5KB", 500),
    ],
)
def test_a_size_is_exact(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "TB", "1.2.3GB", "-1TB", "1XB", "0.5", "1e9", "0.0001KB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no "):
        size(text)


@pytest.mark.parametrize(
    ("minor", "currency", "words"),
    [
        (9324245, "DZD", "93242.45 DZD"),
        (-5, "EUR", "-0.05 EUR"),
        (92459, "XOF", "92459 XOF"),
        (1, "TND", "0.001 TND"),
    ],
)
def test_an_amount_is_shown_with_the_places_of_its_currency(minor: int, currency: str, words: str) -> None:
    assert amount(minor, currency) == words


@pytest.mark.parametrize(
    ("share", "percents", "times"),
    [
        ("1/3", "33.33 %", "0.33"),
        ("1", "100.00 %", "1.00"),
        ("0", "0.00 %", "0.00"),
        ("3/2", "150.00 %", "1.50"),
        ("1/20000", "0.01 %", "0.00"),
        ("1/20001", "0.00 %", "0.00"),
        ("-1/8", "-12.50 %", "-0.13"),
    ],
)
def test_a_share_is_shown_in_percent_rounded_half_up(share: str, percents: str, times: str) -> None:
    assert (percent(share), ratio(share)) == (percents, times)


def test_fields_are_typed_as_they_are_meant() -> None:
    given = [
        "tax-ids=NIF:1,RC:2",
        "documents=a.pdf, b.pdf",
        "payment_terms_days=45",
        "reseller=yes",
        "plan=x",
    ]
    assert fields(given) == {
        "tax_ids": {"NIF": "1", "RC": "2"},
        "documents": ["a.pdf", "b.pdf"],
        "payment_terms_days": 45,
        "reseller": True,
        "plan": "x",
    }


@pytest.mark.parametrize("given", ["name", "payment_terms_days=many", "reseller=maybe", "tax_ids=x"])
def test_a_field_that_cannot_be_is_refused_before_anything_is_sent(given: str) -> None:
    with pytest.raises(ConfigError):
        fields([given])


def test_service_levels_are_shown_and_maintenance_is_announced_and_taken_back(rented: Server) -> None:
    (service,) = say(rented, "usage service epicerie --month 2026-01")
    assert (service["month"], service["levels"], service["credits"]) == ("2026-01", [], [])
    report = say(rented, "report service --month 2026-01")
    assert [row["tenant"] for row in report if row["level"]] == []
    span = ["2099-01-01T00:00:00Z", "2099-01-01T02:00:00Z"]
    (event,) = say(rented, "plan event maintenance", *span, "new switches", "--tenant", "epicerie")
    assert (event["kind"], event["tenant"], event["reason"]) == ("maintenance", "epicerie", "new switches")
    refused = run(rented, "plan event outage", *span, "too early")
    assert "when it is over" in str(refused.exception)
    assert event in say(rented, "plan events")
    say(rented, "plan remove-event", str(event["id"]))
    assert event not in say(rented, "plan events")
