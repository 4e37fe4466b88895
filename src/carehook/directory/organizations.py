"""Organizations, who receive."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

from carehook.clock import Clock
from carehook.directory.authentication.fields import Matching
from carehook.ids import ORGANIZATION, new_id
from carehook.ledger.port import Ledger
from carehook.ledger.records import Organization

_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"

OneLine = Annotated[str, Strict(), Matching(f"^[^{_CONTROLS}]*$", "must be on one line and without control characters")]
"""Text on one line, without the control characters that could act on a terminal."""

_VISIBLE = Matching(
    rf"^[^{_CONTROLS}]*[^\s{_CONTROLS}][^{_CONTROLS}]*$",
    "must be on one line, without control characters, and not of spaces alone",
)


class NewOrganization(BaseModel):
    """What is said of an organization when it is registered."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Strict(), Field(min_length=1, max_length=200), _VISIBLE]


class Organizations:
    """Registers organizations."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def create(self, new: NewOrganization) -> Organization:
        """Register an organization. Names need not differ."""
        organization = Organization(new_id(ORGANIZATION), new.name, self._clock())
        async with self._ledger.transaction() as transaction:
            await transaction.organizations.add(organization)
        return organization
