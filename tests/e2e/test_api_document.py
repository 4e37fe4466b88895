"""The OpenAPI document: valid, whole, and about both directions."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from carehook.api import build_api
from carehook.api.problems import KINDS
from carehook.api.routes import PublicRoute
from carehook.events import CATALOGUE
from tests.e2e.conftest import REPORT, Client, RunningApi

WIRE_HEADERS = ["x-webhook-signature", "webhook-id", "webhook-timestamp", "webhook-signature", "user-agent"]


@pytest.fixture(scope="module")
def document(anonymous: Client) -> Any:
    return anonymous.take("GET", "/openapi.json")


def list_operations(document: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def find_references(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(find_references, part))
    if not isinstance(part, dict):
        return set()
    own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
    return own.union(*map(find_references, part.values()))


def resolve(document: Any, reference: str) -> Any:
    found = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name.replace("~1", "/")]
    return found


def build_validator(document: Any, schema: Any) -> jsonschema_rs.Draft202012Validator:
    """A validator of a schema whose references lead into the document."""
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def test_it_says_what_it_is(document: Any) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "Carehook"
    assert all(document["info"][name] for name in ("version", "summary", "description"))
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_every_reference_leads_somewhere_and_every_schema_is_one(document: Any) -> None:
    references = find_references(document)
    assert {reference for reference in references if not resolve(document, reference)} == set()
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    unused = {name for name in document["components"]["schemas"] if f"#/components/schemas/{name}" not in references}
    assert unused == set()


def test_every_route_is_documented(api: RunningApi, document: Any) -> None:
    routes = [route for route in build_api(api.application).routes if isinstance(route, PublicRoute)]
    documented = dict(list_operations(document))
    assert set(documented) == {f"{method} {route.path}" for route in routes for method in route.methods or ()}
    tags = {tag["name"] for tag in document["tags"]}
    for operation in documented.values():
        assert operation["description"]
        assert set(operation["tags"]) <= tags
    assert len({operation["operationId"] for operation in documented.values()}) == len(documented)


def test_it_says_which_calls_need_a_token(document: Any) -> None:
    public = {name for name, operation in list_operations(document) if operation["security"] == []}
    probes = {"GET /healthz", "HEAD /healthz", "GET /readyz", "HEAD /readyz", "GET /metrics"}
    assert public == {*probes, "GET /openapi.json"}
    assert all(operation["security"] in ([], [{"bearer": []}]) for _, operation in list_operations(document))


def test_an_answer_to_head_has_no_content(document: Any) -> None:
    answers = [operation["responses"]["200"] for name, operation in list_operations(document) if name[:5] == "HEAD "]
    assert [answer.get("content") for answer in answers] == [None, None]


def test_every_problem_is_documented(document: Any) -> None:
    for name, operation in list_operations(document):
        problems = {status: response for status, response in operation["responses"].items() if status >= "4"}
        assert "500" in problems, name
        assert ("401" in problems) == bool(operation["security"])
        if "requestBody" in operation:
            assert problems.keys() >= {"400", "413", "415", "422"}
        for status, response in problems.items():
            assert response == {"$ref": f"#/components/responses/{KINDS[int(status)].name}"}
    for kind in KINDS.values():
        content = document["components"]["responses"][kind.name]["content"]
        assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        assert f"/problems/{kind.name}" in document["info"]["description"]


def test_problems_are_as_documented(document: Any, anonymous: Client, operator: Client, organization: str) -> None:
    validator = build_validator(document, {"$ref": "#/components/schemas/Problem"})
    refused = [
        anonymous.call("GET", "/v1/organizations"),
        operator.call("GET", "/nowhere"),
        operator.call("POST", f"/v1/organizations/{organization}/events", {**REPORT, "type": "x"}),
    ]
    assert [list(validator.iter_errors(response.json())) for response in refused] == [[], [], []]


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_each_event_type_is_a_webhook(document: Any, entry: Any) -> None:
    operation = document["webhooks"][entry.name]["post"]
    headers = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert list(headers) == WIRE_HEADERS
    assert all(header["in"] == "header" and header["required"] for header in headers.values())
    content = operation["requestBody"]["content"]["application/json"]
    assert content["example"] == entry.example
    assert list(build_validator(document, content["schema"]).iter_errors(entry.example)) == []
    assert list(build_validator(document, content["schema"]).iter_errors({**entry.example, "x": 1})) != []
    assert {"2XX", "410"} <= operation["responses"].keys()


def test_there_are_no_other_webhooks(document: Any) -> None:
    assert list(document["webhooks"]) == list(CATALOGUE)


@pytest.mark.parametrize("path", ["events", "events/batch"])
def test_what_is_published_is_described_from_the_catalogue(document: Any, path: str) -> None:
    operation = document["paths"][f"/v1/organizations/{{organization_id}}/{path}"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    validator = build_validator(document, content["schema"])
    for example in content["examples"].values():
        assert list(validator.iter_errors(example["value"])) == []
    assert list(validator.iter_errors({"type": "patient_born"})) != []
    described = str(content["schema"])
    assert all(f"'{name}': '#/components/schemas/" in described for name in CATALOGUE)
    assert {parameter["name"] for parameter in operation["parameters"]} == {"organization_id", "Idempotency-Key"}
