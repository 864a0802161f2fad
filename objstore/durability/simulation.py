"""The check by chance: fragments fail, are found and are mended one by one, and losses are counted.

It shares no arithmetic with the chain: it knows fragments and their places, not states, and can give repairs
a fixed time and scrubs a calendar. Time is cut into *cycles*, each begun when all fragments are good: the
loss rate is the chance that a cycle ends in a loss, over its mean length (renewal theory; both are
estimated).

Losses too rare to wait for are made common and weighed down again. Whatever fails fails before the next
repair with a chance of 0.85 instead of, say, one in 10,000, and rare causes are tried as often as common
ones; a cycle counts with the ratio of its true to its forced probability (importance sampling by forced
failures). The estimate stays unbiased and its relative error does not grow as failures get rarer, so a
probability of 1e-16 takes no more cycles than one of 1e-3.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from objstore.durability.model import DISKS, HOURS_A_YEAR, LATENT, Model
from objstore.errors import BadArgument

# Chance of a failure before the next repair. Intervals are wider for both 0.6 and 0.95.
FORCED: Final = 0.85
EVENTS_MAX: Final = 20_000  # In one cycle. Beyond it repair never catches up, and loss is no rare event.
HITS_MIN: Final = 50  # Fewer losses than that, of equal weight, and the interval is not to be trusted.
NORMAL_95: Final = 1.959964  # A normal distribution has 95% of itself within so many standard deviations.


class Repairs(StrEnum):
    EXPONENTIAL = "exponential"  # As the chain has it.
    FIXED = "fixed"  # Every repair takes the mean, and the scrub comes by the calendar.


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Losses of one stripe per hour, with the 95% interval. Invariant: low <= rate <= high."""

    rate: float
    low: float
    high: float
    cycles: int
    hits: float  # Cycles that ended in a loss, as if all had weighed the same (Kish's effective sample size).
    seed: int
    repairs: Repairs

    @property
    def trusted(self) -> bool:
        """Whether the interval may be believed: a few heavy cycles make neither a mean nor a variance."""
        return self.hits >= HITS_MIN

    def holds(self, rate: float) -> bool:
        return self.low <= rate <= self.high

    @property
    def mttdl_years(self) -> float:
        return 1 / (self.rate * HOURS_A_YEAR) if self.rate else math.inf


def estimate(
    model: Model, *, seed: int, cycles: int = 20_000, repairs: Repairs = Repairs.EXPONENTIAL
) -> Estimate:
    """Simulate `cycles` cycles for the chance of loss, and as many for the length. Blocks the CPU: seconds.

    The same seed gives the same estimate. Raises: BadArgument if repair cannot keep up at all.
    """
    assert cycles >= 2
    if not model.causes:
        raise BadArgument("nothing ever fails: there is nothing to simulate")
    chance = random.Random(seed)  # noqa: S311  (Not a secret: a seed that can be replayed.)
    world = _World(model, repairs, chance)
    weights = [
        weight if lost else 0.0 for weight, _, lost in (world.cycle(force=True) for _ in range(cycles))
    ]
    most = max(weights)
    weights = [weight / most for weight in weights] if most else weights  # Their squares would vanish.
    lengths = [length for _, length, _ in (world.cycle(force=False) for _ in range(cycles))]
    loss, loss_error = _mean(weights)
    length, length_error = _mean(lengths)
    rate = loss / length * most
    # Of a quotient of independent means; in logarithms, since a rate is never negative.
    error = math.hypot(loss_error / loss, length_error / length) if loss else 0.0
    return Estimate(
        rate=rate,
        low=rate * math.exp(-NORMAL_95 * error),
        high=rate * math.exp(NORMAL_95 * error),
        cycles=cycles,
        hits=math.fsum(weights) ** 2 / math.fsum(weight**2 for weight in weights) if most else 0.0,
        seed=seed,
        repairs=repairs,
    )


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error)."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


class _World:
    """One stripe's fragments. `cycle` runs them from all good to all good, or to the loss."""

    def __init__(self, model: Model, repairs: Repairs, chance: random.Random) -> None:
        self._model = model
        self._fixed = repairs is Repairs.FIXED
        self._chance = chance
        self._n = model.code.n
        self._m = model.code.m
        # Level by level the places, each a list of its fragments.
        self._places: list[list[list[int]]] = []
        for level in model.layout():
            places: list[list[int]] = [[] for _ in range(max(level) + 1)]
            for fragment, place in enumerate(level):
                places[place].append(fragment)
            self._places.append(places)
        # The bad fragments, those known to be bad and those that nobody knows of, each with the hour in which
        # it will be mended (fixed repairs) or with the mean time that takes (exponential ones).
        self._known: dict[int, float] = {}
        self._hidden: dict[int, float] = {}
        self._now = 0.0
        self._scrub_phase = 0.0
        self._weight = 1.0

    def cycle(self, *, force: bool) -> tuple[float, float, bool]:
        """(weight, hours, lost). Unforced weights are 1."""
        chance = self._chance
        self._known, self._hidden, self._weight = {}, {}, 1.0
        total = sum(rate for _, rate in self._rates())
        self._scrub_phase = chance.random() * self._model.scrub_h
        self._now = chance.expovariate(total)
        began = self._now
        waited = 1 / total  # The mean of the wait for the first event, instead of a sample: less noise.
        self._strike(force)
        for _ in range(EVENTS_MAX):
            bad = len(self._known) + len(self._hidden)
            if not bad or bad > self._m:
                return self._weight, waited + self._now - began, bad > self._m
            if self._fixed:
                self._wait_fixed(force)
            else:
                self._wait_exponential(force)
        raise BadArgument("repair never catches up with failures: there is nothing to simulate")

    def _wait_fixed(self, force: bool) -> None:
        """Until something fails, or the repair that ends first ends: when that will be is known."""
        chance = self._chance
        dues = [*self._known.values(), *self._hidden.values()]
        due = min(dues)
        total = sum(rate for _, rate in self._rates())
        true = -math.expm1(-total * (due - self._now))  # That something fails before.
        used = max(true, FORCED) if force and true else true
        if chance.random() < used:
            self._weight *= true / used
            self._now = min(self._now - math.log1p(-chance.random() * true) / total, due)
            self._strike(force)
        else:
            self._weight *= (1 - true) / (1 - used)
            self._now = due
            self._known = {one: ends for one, ends in self._known.items() if ends > due}
            self._hidden = {one: ends for one, ends in self._hidden.items() if ends > due}

    def _wait_exponential(self, force: bool) -> None:
        """Until something fails or is mended: without a memory, failures and repairs race anew each time."""
        chance = self._chance
        share = 1 / len(self._known) if self._model.serial and self._known else 1.0
        mending = [(one, share / mean) for one, mean in self._known.items()]
        mending += [(one, 1 / mean) for one, mean in self._hidden.items()]
        fails = sum(rate for _, rate in self._rates())
        mends = sum(rate for _, rate in mending)
        true = fails / (fails + mends)
        used = max(true, FORCED) if force and true else true
        self._now += chance.expovariate(fails + mends)
        if chance.random() < used:
            self._weight *= true / used
            self._strike(force)
        else:
            self._weight *= mends / (fails + mends) / (1 - used)
            mended = chance.choices([one for one, _ in mending], [rate for _, rate in mending])[0]
            self._known.pop(mended, None)
            self._hidden.pop(mended, None)

    def _rates(self) -> list[tuple[str, float]]:
        """What may happen now, and how often per hour."""
        model = self._model
        good = self._n - len(self._known) - len(self._hidden)
        rates = [
            (DISKS, (self._n - len(self._known)) * model.failure_rate),
            (LATENT, good * model.latent_rate),
        ]
        for domain, places in zip(model.domains, self._places, strict=True):
            rates.append((domain.name, len(places) * domain.rate))
        return [(name, rate) for name, rate in rates if rate > 0]

    def _strike(self, force: bool) -> None:
        """Something happens, at `_now`."""
        chance = self._chance
        rates = self._rates()
        total = sum(rate for _, rate in rates)
        true = [rate / total for _, rate in rates]
        used = [(each + 1 / len(true)) / 2 for each in true] if force else true
        at = chance.choices(range(len(rates)), used)[0]
        self._weight *= true[at] / used[at]
        cause = rates[at][0]
        if cause == DISKS:
            victims = [one for one in range(self._n) if one not in self._known]
            self._lose([chance.choice(victims)], self._model.repair_h)
        elif cause == LATENT:
            victims = [one for one in range(self._n) if one not in self._known and one not in self._hidden]
            victim = chance.choice(victims)
            self._hidden[victim] = self._found()
        else:
            level = [domain.name for domain in self._model.domains].index(cause)
            domain = self._model.domains[level]
            victims = [one for one in chance.choice(self._places[level]) if one not in self._known]
            victims = self._chosen(victims, domain.lost, force)
            self._lose(victims, domain.repair_h if domain.repair_h is not None else self._model.repair_h)

    def _chosen(self, fragments: list[int], lost: float, force: bool) -> list[int]:
        """Those of the fragments that are lost, each with this chance; forced: often half."""
        chance = self._chance
        used = 0.5 if force and lost < 0.5 and chance.random() < 0.5 else lost
        taken = [one for one in fragments if chance.random() < used]
        if force and lost < 0.5:
            count, rest = len(taken), len(fragments) - len(taken)
            likely = lost**count * (1 - lost) ** rest
            self._weight *= likely / ((likely + 0.5 ** len(fragments)) / 2)
        return taken

    def _lose(self, fragments: list[int], mean_h: float) -> None:
        for fragment in fragments:
            self._hidden.pop(fragment, None)
            if self._fixed:
                begins = max(self._known.values(), default=self._now) if self._model.serial else self._now
                self._known[fragment] = begins + mean_h
            else:
                self._known[fragment] = mean_h

    def _found(self) -> float:
        """Of a latent error of now, what `_hidden` holds."""
        model = self._model
        if not self._fixed:
            return model.latent_repair_h
        rounds = math.floor((self._now - self._scrub_phase) / model.scrub_h) + 1
        return self._scrub_phase + rounds * model.scrub_h + model.repair_h
