"""Every route of the versioned admin API, in one table."""

from typing import Final

from objstore.admin.resources import (
    audit,
    capacity,
    departures,
    focus,
    invoices,
    keys,
    leases,
    payments,
    plans,
    projects,
    quotas,
    reports,
    sellers,
    service,
    tenants,
    usage,
    users,
)
from objstore.admin.routes import Table

TABLE: Final = Table(
    (
        *tenants.ROUTES,
        *departures.ROUTES,
        *sellers.ROUTES,
        *projects.ROUTES,
        *users.ROUTES,
        *keys.ROUTES,
        *quotas.ROUTES,
        *plans.ROUTES,
        *leases.ROUTES,
        *capacity.ROUTES,
        *usage.ROUTES,
        *service.ROUTES,
        *reports.ROUTES,
        *invoices.ROUTES,
        *focus.ROUTES,
        *payments.ROUTES,
        *audit.ROUTES,
    )
)
