"""The OpenAPI 3.1 description, made from the route table and the types of bodies and answers.

It is kept as objstore/admin/openapi.json: `python -m objstore.admin.openapi` writes it, a test compares.
"""

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from objstore import __version__
from objstore.admin.routes import File, Nothing, Route, Table
from objstore.iam.roles import PRESETS, may

PLACE: Final = Path(__file__).with_name("openapi.json")
_REF: Final = "#/components/schemas/{name}"
_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "RFC 9457.",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901, into the request's body."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def describe(table: Table) -> dict[str, Any]:
    """The whole document."""
    types = [route.answer for route in table.routes if route.answer is not File]
    types += [route.body for route in table.routes if route.body is not Nothing]
    shapes, components = msgspec.json.schema_components(types, ref_template=_REF)
    named = {id(kind): shape for kind, shape in zip(types, shapes, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in table.routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "objstore admin API",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The store's admin token, or a token of a user.",
                }
            },
            "responses": {
                "Problem": {
                    "description": "It failed.",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}
                    },
                }
            },
            "schemas": {**components, "Problem": _PROBLEM},
        },
    }


def text(table: Table) -> str:
    return json.dumps(describe(table), indent=1, ensure_ascii=False) + "\n"


def _operation(route: Route, named: dict[int, dict[str, Any]]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "maxLength": 128}}
        for name in route.parameters
    ]
    parameters += _query(route)
    if route.method == "POST":
        parameters.append(_header("Idempotency-Key", "The same request with it is carried out once."))
    if route.tags is not None and route.changes:
        parameters.append(_header("If-Match", "An ETag: refused with 412 if it is no longer so."))
    if route.answer is File:
        content: dict[str, Any] = {"application/octet-stream": {}}
    else:
        content = {"application/json": {"schema": named[id(route.answer)]}}
    answer: dict[str, Any] = {"description": "Done.", "content": content}
    if route.tags is not None:
        answer["headers"] = {"ETag": {"schema": {"type": "string"}}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[3]],
        "description": f"Who may: {', '.join(who_may(route))}.",
        "parameters": parameters,
        "responses": {
            str(route.status): answer,
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if route.body is not Nothing:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": named[id(route.body)]}},
        }
    return operation


def who_may(route: Route) -> list[str]:
    """In words: "operator", "reseller's owner", "owner", ..."""
    rule = route.rule
    roles = [role for role in PRESETS if rule.action and may(role, rule.action)]
    above = [f"reseller's {role}" for role in roles if rule.resellers]
    return ["operator", *above, *(role for role in roles if rule.tenants)]


def _query(route: Route) -> list[dict[str, Any]]:
    """A parameter for each field of the query's type."""
    if route.query is Nothing:
        return []
    _, components = msgspec.json.schema_components([route.query], ref_template=_REF)
    (shape,) = components.values()
    required = shape.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in shape.get("properties", {}).items()
    ]


def _header(name: str, words: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": words,
        "schema": {"type": "string"},
    }


if __name__ == "__main__":
    from objstore.admin.resources import TABLE

    PLACE.write_text(text(TABLE))
