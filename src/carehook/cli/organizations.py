"""`carehook org`: the organizations that receive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carehook.cli.options import Cursor, Json, Limit, OrganizationId, read_page
from carehook.cli.output import print_list, print_view
from carehook.cli.session import build_model, run
from carehook.ids import ORGANIZATION

if TYPE_CHECKING:
    from carehook.application import Application
    from carehook.insights import ListView, OrganizationView

app = typer.Typer(help="Organizations, who receive.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    as_json: Json = False,
) -> None:
    """Register an organization."""

    async def work(carehook: Application) -> OrganizationView:
        from carehook.directory.organizations import NewOrganization
        from carehook.insights import view_organization

        return view_organization(await carehook.organizations.create(build_model(NewOrganization, name=name)))

    print_view(run(work), as_json=as_json)


@app.command("list")
def list_all(limit: Limit = 50, cursor: Cursor = None, as_json: Json = False) -> None:
    """List organizations."""
    page = read_page(limit, cursor, ORGANIZATION)

    async def work(carehook: Application) -> ListView[OrganizationView]:
        return await carehook.insights.organizations(page)

    print_list(run(work), ["id", "name", "created_at"], as_json=as_json)


@app.command()
def show(organization_id: OrganizationId, as_json: Json = False) -> None:
    """Show one organization."""

    async def work(carehook: Application) -> OrganizationView:
        return await carehook.insights.organization(organization_id)

    print_view(run(work), as_json=as_json)
