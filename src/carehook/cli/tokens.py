"""`carehook token`: who may call the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from carehook.cli.options import Cursor, Json, Limit, read_page
from carehook.cli.output import print_json, print_list, say
from carehook.cli.session import run
from carehook.ids import TOKEN
from carehook.ledger.records import Role

if TYPE_CHECKING:
    from carehook.access.tokens import NewToken
    from carehook.application import Application
    from carehook.insights import ListView, TokenView

app = typer.Typer(help="API tokens: who may call the API.", no_args_is_help=True)


@app.command()
def create(
    role: Annotated[
        Role,
        typer.Option(help="An operator may do everything; a publisher publishes the events of one organization."),
    ],
    organization: Annotated[
        str | None, typer.Option(metavar="ORG", help="The organization that a publisher is bound to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a token. It is shown this once, alone on the last line."""

    async def work(carehook: Application) -> NewToken:
        return await carehook.tokens.create(role, organization)

    new = run(work)
    if as_json:
        from carehook.insights import view_token

        print_json({**view_token(new.token).model_dump(mode="json"), "token": new.secret.get_secret_value()})
        return
    say(f"{new.token.id}, role {role}. Its token is shown this once; keep it where secrets are kept:")
    print(new.secret.get_secret_value())


@app.command("list")
def list_all(limit: Limit = 50, cursor: Cursor = None, as_json: Json = False) -> None:
    """List tokens, without their secrets."""
    page = read_page(limit, cursor, TOKEN)

    async def work(carehook: Application) -> ListView[TokenView]:
        return await carehook.insights.tokens(page)

    print_list(run(work), ["id", "role", "organization_id", "created_at", "revoked_at"], as_json=as_json)


@app.command()
def revoke(token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, tok_….")]) -> None:
    """End a token. A running service knows of it within two seconds."""

    async def work(carehook: Application) -> None:
        await carehook.tokens.revoke(token_id)

    run(work)
    say(f"{token_id} is revoked.")
