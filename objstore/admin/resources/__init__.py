"""Every route of the versioned admin API, in one table."""

from typing import Final

from objstore.admin.resources import audit, keys, projects, sellers, tenants, users
from objstore.admin.routes import Table

TABLE: Final = Table(
    (*tenants.ROUTES, *sellers.ROUTES, *projects.ROUTES, *users.ROUTES, *keys.ROUTES, *audit.ROUTES)
)
