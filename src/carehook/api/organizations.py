"""Organizations: the customers that receive."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from carehook.api.context import Carehook, OrganizationId
from carehook.api.paging import PageQuery, build_list
from carehook.api.routes import MemberRoute, OperatorRoute, build_router
from carehook.directory.organizations import NewOrganization
from carehook.ids import ORGANIZATION
from carehook.insights import ListView, OrganizationView, view_organization

operators = build_router(OperatorRoute, "Organizations")
members = build_router(MemberRoute, "Organizations")


@operators.post("/v1/organizations", status_code=201)
async def create_organization(new: NewOrganization, carehook: Carehook) -> OrganizationView:
    """Register an organization. Names need not differ."""
    return view_organization(await carehook.organizations.create(new))


@operators.get("/v1/organizations")
async def list_organizations(page: Annotated[PageQuery, Query()], carehook: Carehook) -> ListView[OrganizationView]:
    """List all organizations, newest first."""
    return build_list(await carehook.insights.organizations(page.read(ORGANIZATION)))


@members.get("/v1/organizations/{organization_id}")
async def get_organization(organization_id: OrganizationId, carehook: Carehook) -> OrganizationView:
    """Show one organization."""
    return await carehook.insights.organization(organization_id)
