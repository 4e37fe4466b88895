"""FastAPI: the verified event as a dependency.

    from carehook.receiver.fastapi import WebhookEvent

    verified = WebhookEvent(Webhook(signature_value="..."))

    @app.post("/webhooks")
    async def receive(event: Annotated[AnyEvent, Depends(verified)]) -> None: ...

A request that does not verify is answered with 401, one that is no event with 400, one that is too large with 413, each
as `application/problem+json`.
"""

from fastapi import HTTPException, Request

from carehook.events import AnyEvent
from carehook.receiver.answers import (
    BODY_LIMIT,
    PROBLEM_TYPE,
    TOO_LARGE,
    TOO_LARGE_STATUS,
    is_announced_too_large,
)
from carehook.receiver.errors import WebhookVerificationError
from carehook.receiver.webhook import Webhook


class WebhookEvent:
    """A dependency that reads at most `body_limit` bytes of a request and yields its verified event."""

    def __init__(self, webhook: Webhook, body_limit: int = BODY_LIMIT) -> None:
        self._webhook = webhook
        self._body_limit = body_limit

    async def __call__(self, request: Request) -> AnyEvent:
        """Verify `request`.

        Raises:
            HTTPException: it does not verify, is no event, or is too large.
        """
        body = await self._read_body(request)
        try:
            return self._webhook.verify(body, request.headers)
        except WebhookVerificationError as refusal:
            raise _build_exception(refusal.status, str(refusal)) from None

    async def _read_body(self, request: Request) -> bytes:
        if is_announced_too_large(request.headers.get("content-length"), self._body_limit):
            raise _build_exception(TOO_LARGE_STATUS, TOO_LARGE)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._body_limit:
                raise _build_exception(TOO_LARGE_STATUS, TOO_LARGE)
        return bytes(body)


def _build_exception(status: int, detail: str) -> HTTPException:
    # FastAPI renders `detail` as {"detail": ...}, which is a problem document, once the content type says so.
    return HTTPException(status, detail, headers={"content-type": PROBLEM_TYPE})
