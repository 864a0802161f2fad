"""What is bought, what it holds, what it draws and what it costs a month."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Final

from objstore.errors import BadArgument
from objstore.finance.inputs import Inputs

HOURS_A_MONTH: Final = 730


def cents(value: Fraction) -> Fraction:
    """Rounded to the hundredth, halves away from zero."""
    if value < 0:
        return -cents(-value)
    return Fraction(floor(value * 100 + Fraction(1, 2)), 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    nodes: int
    disks: int
    raw_tb: Fraction
    usable_tb: Fraction
    bought: Fraction  # What nodes and disks cost.
    base: Fraction  # What is invested in hardware: the budget, or what they cost.
    watts: Fraction  # With the building's share.


@dataclass(frozen=True, slots=True, kw_only=True)
class Opex:
    """A month, each part rounded to the hundredth."""

    energy: Fraction
    replacement: Fraction
    maintenance: Fraction
    staff: Fraction
    connectivity: Fraction
    other: Fraction

    @property
    def total(self) -> Fraction:
        parts = (self.energy, self.replacement, self.maintenance, self.staff, self.connectivity, self.other)
        return sum(parts, Fraction(0))


def hardware(plan: Inputs) -> Hardware:
    """By the budget, or by what is to be usable. Raises: BadArgument: nothing would be usable."""
    efficiency = Fraction(plan.k, plan.k + plan.m) * plan.fill_max
    if plan.hardware:
        nodes = floor(plan.hardware / _node_cost(plan))
        disks = nodes * plan.bays
    else:
        disks = ceil(plan.usable_tb / efficiency / plan.disk_tb) + plan.spare_nodes * plan.bays
        nodes = ceil(Fraction(disks, plan.bays))
    usable_disks = disks - plan.spare_nodes * plan.bays
    if usable_disks <= 0:
        raise BadArgument(
            f"{nodes} nodes with {plan.spare_nodes} of them spare: nothing is usable", name="hardware"
        )
    bought = disks * plan.disk_price + nodes * plan.node_price
    return Hardware(
        nodes=nodes,
        disks=disks,
        raw_tb=disks * plan.disk_tb,
        usable_tb=usable_disks * plan.disk_tb * efficiency,
        bought=bought,
        base=plan.hardware or bought,
        watts=(disks * plan.disk_watts + nodes * plan.node_watts) * plan.pue,
    )


def _node_cost(plan: Inputs) -> Fraction:
    cost = plan.bays * plan.disk_price + plan.node_price
    if not cost:
        raise BadArgument("nodes that cost nothing are not bought by a budget", name="node_price")
    return cost


def capex(plan: Inputs, machines: Hardware) -> Fraction:
    return machines.base + plan.facility + plan.network + plan.integration


def opex(plan: Inputs, machines: Hardware) -> Opex:
    return Opex(
        energy=cents(machines.watts / 1000 * HOURS_A_MONTH * plan.kwh_price),
        replacement=cents(machines.disks * plan.afr / 12 * plan.disk_price),
        maintenance=cents(machines.base * plan.maintenance / 12),
        staff=cents(plan.staff),
        connectivity=cents(plan.connectivity),
        other=cents(plan.other),
    )
