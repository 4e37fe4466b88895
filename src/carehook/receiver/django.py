"""Django: a decorator that hands the verified event to the view, synchronous or not.

    from carehook.receiver.django import webhook_event

    @webhook_event(Webhook(signature_value="..."))
    def receive(request, event):
        return HttpResponse(status=204)

A request that does not verify is answered with 401, one that is no event with 400, one that is too large with 413, each
as `application/problem+json`. The view needs no CSRF token: a signature proves more.
"""

from __future__ import annotations

from asyncio import iscoroutinefunction
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from carehook.events import AnyEvent
from carehook.receiver.answers import (
    BODY_LIMIT,
    PROBLEM_TYPE,
    TOO_LARGE,
    TOO_LARGE_STATUS,
    build_problem,
    is_announced_too_large,
)
from carehook.receiver.errors import WebhookVerificationError
from carehook.receiver.webhook import Webhook

_Answer = TypeVar("_Answer", bound=HttpResponseBase | Awaitable[HttpResponseBase])


def webhook_event(
    webhook: Webhook, body_limit: int = BODY_LIMIT
) -> Callable[[Callable[..., _Answer]], Callable[..., _Answer]]:
    """Decorate a view so that it is called with the request, the verified event and the route's own arguments.

    A body over `body_limit` bytes, or over Django's own `DATA_UPLOAD_MAX_MEMORY_SIZE`, is refused.
    """

    def decorate(view: Callable[..., _Answer]) -> Callable[..., _Answer]:
        @wraps(view)
        def receive(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            event = _read_event(webhook, body_limit, request)
            return event if isinstance(event, JsonResponse) else view(request, event, *args, **kwargs)

        @wraps(view)
        async def receive_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            answer = receive(request, *args, **kwargs)
            return answer if isinstance(answer, HttpResponseBase) else await answer

        decorated: Callable[..., Any] = receive_async if iscoroutinefunction(view) else receive
        return csrf_exempt(decorated)

    return decorate


def _read_event(webhook: Webhook, body_limit: int, request: HttpRequest) -> AnyEvent | JsonResponse:
    try:
        if is_announced_too_large(request.headers.get("content-length"), body_limit) or len(request.body) > body_limit:
            return _build_response(TOO_LARGE_STATUS, TOO_LARGE)
        return webhook.verify(request.body, request.headers)
    except RequestDataTooBig:
        return _build_response(TOO_LARGE_STATUS, TOO_LARGE)
    except WebhookVerificationError as refusal:
        return _build_response(refusal.status, str(refusal))


def _build_response(status: int, detail: str) -> JsonResponse:
    return JsonResponse(build_problem(detail), status=status, content_type=PROBLEM_TYPE)
