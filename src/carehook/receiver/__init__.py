"""For integrators: headers and body of a request in, a typed event out, or one error.

    from carehook import Webhook, WebhookVerificationError

    webhook = Webhook(signature_value="...", signing_secret="whsec_...")
    event = webhook.verify(body, headers)

Adapters: `carehook.receiver.fastapi`, `carehook.receiver.flask`, `carehook.receiver.django`.
"""

from carehook.receiver.errors import Reason, WebhookVerificationError
from carehook.receiver.webhook import Webhook

__all__ = ["Reason", "Webhook", "WebhookVerificationError"]
