"""What operators type: what is understood, and what is refused with which words."""

import pytest

from objstore.durability import units
from objstore.durability.model import HOURS_A_YEAR, Code, hourly_rate
from objstore.errors import BadArgument


def test_times_rates_sizes_and_counts_are_understood() -> None:
    assert [units.hours(text, "x") for text in ("24h", "90min", "90m", "3d", "2w", "36s", "1.5 h")] == (
        pytest.approx([24, 1.5, 1.5, 72, 336, 0.01, 1.5])
    )
    assert units.hours("1y", "x") == HOURS_A_YEAR
    assert units.percentage("1.5%", "x") == pytest.approx(0.015)
    assert units.percentage("100%", "x", whole=True) == 1
    assert units.per_year("2/month", "x") == 24
    assert units.per_year("0/year", "x") == 0
    assert units.size("16TB", "x") == 16 * 10**12
    assert units.size("1MiB", "x") == 2**20
    assert units.size("4096B", "x") == 4096
    assert [units.count(text, "x") for text in ("1000000", "1e9", "10M", "1.5k")] == [
        10**6,
        10**9,
        10**7,
        1500,
    ]
    assert units.burst("50/5000", "x") == (50, 5000)
    assert units.codecs("4+2, 8+4,4+2") == [Code(4, 2), Code(8, 4)]


def test_a_domain_is_understood_with_all_it_may_say() -> None:
    rack = units.domain("rack:fragments=3,afr=0.5%,lost=10%,repair=3d")
    assert (rack.name, rack.fragments, rack.lost, rack.repair_h) == ("rack", 3, pytest.approx(0.1), 72)
    assert rack.rate == hourly_rate(0.005)
    site = units.domain("site:fragments=4,rate=2/year")
    assert (site.lost, site.repair_h) == (1.0, None)
    assert site.rate * HOURS_A_YEAR == pytest.approx(2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("150%", "above 0% and below 100%"),
        ("100%", "above 0% and below 100%"),
        ("0%", "above 0% and below 100%"),
        ("1.5", r"did you mean 1\.5%\?"),
        ("0.015", "not a percentage like"),
        ("-1%", "not a percentage like"),
        ("1_0%", "not a percentage like"),
        ("١%", "not a percentage like"),
        ("1%\n1%", "not a percentage like"),
        ("nan%", "not a percentage like"),
        ("", "not a percentage like"),
    ],
)
def test_a_wrong_percentage_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(BadArgument, match=f"--afr: .*{words}"):
        units.percentage(text, "--afr")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("24", "with its unit"),
        ("24x", "not a time"),
        ("-1h", "not a time"),
        ("0h", "at least 1s"),
        ("1e9y", "at most 100y"),
        ("inf h", "not a time"),
        ("h", "not a time"),
    ],
)
def test_a_wrong_time_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadArgument, match=f"--repair: .*{words}"):
        units.hours(text, "--repair")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8x4", "not a codec"),
        ("8+", "not a codec"),
        ("", "not a codec"),
        ("4+2,", "not a codec"),
        ("8+4+2", "not a codec"),
        ("+8+4", "not a codec"),
        ("0+4", "at least one data"),
        ("8+0", "at least one data"),
        ("250+10", "at most 256"),
        ("100+33", "at most 32"),
    ],
)
def test_a_wrong_codec_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        units.codecs(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rack", "fragments=N is missing"),
        (":fragments=1,afr=1%", "not like rack:"),
        ("rack 1:fragments=1,afr=1%", "not like rack:"),
        ("rack:fragments=3", "one of afr="),
        ("rack:fragments=3,afr=1%,rate=1/year", "one of afr="),
        ("rack:fragments=0,afr=1%", "from 1 to"),
        ("rack:fragments=3,afr=150%", "--domain rack: afr: 150%"),
        ("rack:fragments=3,afr=1%,lost=0%", "above 0% and at most 100%"),
        ("rack:fragments=3,afr=1%,lost=101%", "above 0% and at most 100%"),
        ("rack:fragments=3,afr=1%,size=3", "none of fragments="),
        ("rack:fragments=3,fragments=4,afr=1%", "given twice"),
        ("rack:fragments=3,afr=1%,repair=3", "with its unit"),
    ],
)
def test_a_wrong_domain_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        units.domain(text)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.size, "16"),
        (units.size, "0B"),
        (units.size, "1XB"),
        (units.size, "1e99TB"),
        (units.count, "0"),
        (units.count, "1.5"),
        (units.count, "1e30"),
        (units.count, "many"),
        (units.per_year, "3"),
        (units.per_year, "3/hour"),
        (units.per_year, "1e9/year"),
        (units.burst, "6/5"),
        (units.burst, "0/5"),
        (units.burst, "5"),
    ],
)
def test_what_is_no_size_count_rate_or_burst_is_refused_by_its_option_s_name(parse, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadArgument, match="--option: "):
        parse(text, "--option")


def test_times_are_written_for_people() -> None:
    texts = [units.time_text(value) for value in (0.5, 24, 72, 8766, 8766 * 1234, 8766e9, float("inf"))]
    assert texts == ["30 min", "24 h", "3 d", "1 years", "1,234 years", "1e+09 years", "never"]
