"""Flask: a decorator that hands the verified event to the view.

    from carehook.receiver.flask import webhook_event

    @app.post("/webhooks")
    @webhook_event(Webhook(signature_value="..."))
    def receive(event):
        return "", 204

A request that does not verify is answered with 401, one that is no event with 400, one that is too large with 413, each
as `application/problem+json`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from flask import Response, current_app, json, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import RequestEntityTooLarge

from carehook.events import AnyEvent
from carehook.receiver.answers import BODY_LIMIT, PROBLEM_TYPE, TOO_LARGE, TOO_LARGE_STATUS, build_problem
from carehook.receiver.errors import WebhookVerificationError
from carehook.receiver.webhook import Webhook

_Arguments = ParamSpec("_Arguments")
_View = Callable[Concatenate[AnyEvent, _Arguments], ResponseReturnValue]


def webhook_event(
    webhook: Webhook, body_limit: int = BODY_LIMIT
) -> Callable[[_View[_Arguments]], Callable[_Arguments, ResponseReturnValue]]:
    """Decorate a view so that it is called with the verified event first, then with the route's own arguments.

    At most `body_limit` bytes of a request are read.
    """

    def decorate(view: _View[_Arguments]) -> Callable[_Arguments, ResponseReturnValue]:
        @wraps(view)
        def receive(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> ResponseReturnValue:
            request.max_content_length = body_limit
            try:
                event = webhook.verify(request.get_data(), request.headers)
            except RequestEntityTooLarge:
                return _build_response(TOO_LARGE_STATUS, TOO_LARGE)
            except WebhookVerificationError as refusal:
                return _build_response(refusal.status, str(refusal))
            answer: ResponseReturnValue = current_app.ensure_sync(view)(event, *args, **kwargs)
            return answer

        return receive

    return decorate


def _build_response(status: int, detail: str) -> Response:
    return Response(json.dumps(build_problem(detail)), status, mimetype=PROBLEM_TYPE)
