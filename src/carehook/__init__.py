"""Carehook tells organizations, by webhook, what happens in care.

For those who receive:

    from carehook import Webhook, WebhookVerificationError

    webhook = Webhook(signature_value="...", signing_secret="whsec_...")  # either or both
    event = webhook.verify(body, headers)
    match event:
        case PatientConsultationFinished():
            print(event.payload.consultation.id)
        case PatientReportSent():
            print(event.payload.type)

Importing it needs pydantic alone. The service is in the extra `carehook[server]`.
"""

from carehook.events import AnyEvent, Event, PatientConsultationFinished, PatientReportSent
from carehook.receiver import Reason, Webhook, WebhookVerificationError

__version__ = "0.1.0"

__all__ = [
    "AnyEvent",
    "Event",
    "PatientConsultationFinished",
    "PatientReportSent",
    "Reason",
    "Webhook",
    "WebhookVerificationError",
    "__version__",
]
