"""A Carehook that stops in the middle of telling, so that it can be killed there.

    python -m tests.servers.interrupted_care METHOD ORGANIZATION

sends a report to the consultation `consultation`, or finishes it, on the store that the environment names. When METHOD
of the ledger, as `CareSql.add_report`, has returned it prints a line and stands still, its transaction open.
"""

import asyncio
import sys
from typing import Any

from carehook.bootstrap import open_carehook
from carehook.config import load_settings
from carehook.intake.consultations import Finish, NewSoapReport
from carehook.ledger.sql import care, deliveries, events

REPORT = {
    "type": "soap",
    "content": {"subjective": "s", "objective": "o", "assessment": "a", "plan": "p"},
}


def stop_after(owner: type[Any], name: str) -> None:
    """Let a method stand still once it has done its work."""
    method = getattr(owner, name)

    async def stop(*arguments: Any) -> None:
        await method(*arguments)
        print("standing still", flush=True)
        await asyncio.Event().wait()

    setattr(owner, name, stop)


async def main(method: str, organization: str) -> None:
    """Tell, and never end."""
    owner, name = method.split(".")
    stop_after(next(getattr(each, owner) for each in (care, deliveries, events) if hasattr(each, owner)), name)
    async with open_carehook(load_settings()) as carehook:
        if name == "finish_consultation":
            await carehook.care.finish_consultation(organization, "consultation", Finish())
        else:
            await carehook.care.send_report(organization, "consultation", NewSoapReport.model_validate(REPORT))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
