"""Loaded into schemathesis: makes valid requests meet real things, so that they get past the first `404`.

Requests that schemathesis made wrong on purpose are left as they are. In those that it made right, what only the
store knows (which ids there are) and what JSON Schema cannot say (which URLs may be contacted) is put right; then the
API must accept them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final
from uuid import uuid4

import requests
import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
from schemathesis.generation.meta import TestPhase

from carehook.events import CATALOGUE

URL: Final = os.environ["FUZZED_URL"]
ORGANIZATION: Final = os.environ["FUZZED_ORGANIZATION"]
RECEIVER: Final = os.environ["FUZZED_RECEIVER"]

_kept: Final[dict[str, str]] = {}

_session = requests.Session()
_session.trust_env = False
_session.headers["authorization"] = f"Bearer {os.environ['FUZZED_TOKEN']}"

BEGIN: Final = "2024-01-01T00:00:00Z"
END: Final = "2024-01-01T01:00:00Z"

_OF_ORGANIZATION: Final = f"/v1/organizations/{ORGANIZATION}"


def _post(path: str, body: Any) -> Any:
    response = _session.post(URL + path, json=body, timeout=30)
    response.raise_for_status()
    return response.json()


@cache
def _make_organization() -> str:
    return str(_post("/v1/organizations", {"name": "With many endpoints"})["id"])


def _make_endpoint() -> str:
    # Of another organization: every event of ours is delivered to all its endpoints.
    return str(_post(f"/v1/organizations/{_make_organization()}/endpoints", {"url": RECEIVER})["id"])


def _make_event() -> str:
    return str(_post(f"{_OF_ORGANIZATION}/events", dict(CATALOGUE["patient_report_sent"].example))["id"])


def _make_delivery() -> str:
    event = _session.get(f"{URL}/v1/events/{_make_event()}", timeout=30).json()
    return str(event["deliveries"][0]["id"])


def _make_consultation() -> str:
    new = {
        "type": "chat",
        "patient_code": "patient",
        "professional_id": "professional",
        "speciality": {"id": 1, "name": "General"},
        "start_date": BEGIN,
    }
    return str(_post(f"{_OF_ORGANIZATION}/consultations", new)["id"])


def _find_id(name: str, value: str, case: Any) -> str:
    """An id of something that is there; made anew for a call that it would not survive."""
    if name not in _MAKE:
        return value
    if name == "organization_id" and case.path.endswith("/endpoints"):
        return _make_organization()
    if case.method == "DELETE" or case.path.endswith("/finish"):
        return _MAKE[name]()
    if name not in _kept:
        _kept[name] = _MAKE[name]()
    return _kept[name]


_MAKE: Final[Mapping[str, Callable[[], str]]] = {
    "organization_id": lambda: ORGANIZATION,
    "endpoint_id": _make_endpoint,
    "event_id": _make_event,
    "delivery_id": _make_delivery,
    "consultation_id": _make_consultation,
}

_KNOWN: Final = {
    "url": RECEIVER,
    "token_url": RECEIVER,
    "patient_code": "patient",
    "professional_id": "professional",
    "endpoint_id": os.environ["FUZZED_ENDPOINT"],
    # The care API refuses dates that programs write where they know none, and an end before its begin.
    "start_date": BEGIN,
    "end_date": END,
}


@schemathesis.hook
def before_call(_context: schemathesis.HookContext, case: Any, _kwargs: dict[str, Any]) -> None:
    """Put right what a valid request cannot know.

    Only what there is is assigned: schemathesis judges anew whatever part of a request was assigned to.
    """
    is_free = case.meta.phase.name != TestPhase.STATEFUL  # in stateful testing the ids come from earlier answers
    if is_free and case.path_parameters and _is_valid(case, ParameterLocation.PATH):
        case.path_parameters = {name: _find_id(name, value, case) for name, value in case.path_parameters.items()}
    if isinstance(case.body, dict):
        is_valid = _is_valid(case, ParameterLocation.BODY)
        case.body = _put_right(case.body) if is_valid else {name: _strip(each) for name, each in case.body.items()}
        if not is_free and is_valid and case.path.endswith("/resend"):
            # The event of an earlier answer may be another organization's than the endpoint that is known here.
            case.body = {name: value for name, value in case.body.items() if name != "endpoint_id"}
        if case.path.endswith("/consultations"):
            _store_patient(case.path_parameters["organization_id"])
    if "Idempotency-Key" in case.headers and _is_valid(case, ParameterLocation.HEADER):
        # A key that was used for another request is refused, and the generated ones are short.
        case.headers["Idempotency-Key"] = uuid4().hex


@cache
def _store_patient(organization_id: str) -> None:
    # Where there is no such organization this is refused, and so is what follows.
    history: dict[str, list[Any]] = {"allergies": [], "diseases": [], "medications": []}
    _session.put(f"{URL}/v1/organizations/{organization_id}/patients/patient", json=history, timeout=30)


def _is_valid(case: Any, location: ParameterLocation) -> bool:
    component = case.meta.components.get(location)
    return (case.meta.generation.mode if component is None else component.mode) is GenerationMode.POSITIVE


def _put_right(value: Any) -> Any:
    if isinstance(value, list):
        return [_put_right(each) for each in value]
    if isinstance(value, dict):
        return {name: _put_right_field(name, inner) for name, inner in value.items()}
    if isinstance(value, float) and value.is_integer():
        # To JSON Schema 1.0 is an integer; the contract's integers are written without a point.
        return int(value)
    return value


def _put_right_field(name: str, value: Any) -> Any:
    if name in _KNOWN and isinstance(value, str):
        return _KNOWN[name]
    if name == "name" and isinstance(value, str):
        return _strip(value) or "x"
    return _put_right(value)


def _strip(value: Any) -> Any:
    # Space around a name is taken away before it is judged, which JSON Schema has no word for.
    return value.strip() if isinstance(value, str) else value
