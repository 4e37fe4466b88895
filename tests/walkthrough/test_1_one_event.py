"""Start here. One event goes all the way: accepted, stored, signed, sent, verified, recorded."""

import json

from carehook import PatientReportSent, Webhook
from carehook.application import Application
from carehook.directory.endpoints import NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.events import CATALOGUE, parse_event
from carehook.ledger.records import AttemptOutcome
from carehook.ledger.states import DeliveryState
from tests.receivers import RecordingReceiver
from tests.walkthrough.deliveries import wait_for_delivery


async def test_one_event_from_publish_to_receipt(carehook: Application) -> None:
    with RecordingReceiver() as hospital:
        # The support team registers who receives, and where. The two secrets are shown this once.
        organization = await carehook.organizations.create(NewOrganization(name="Example Hospital"))
        registered = await carehook.endpoints.register(organization.id, NewEndpoint(url=hospital.url))
        signature_value = registered.secrets.signature_value.get_secret_value()
        signing_secret = registered.verification_secret.get_secret_value()

        # The platform publishes. The JSON is parsed by the contract's models, or refused by the name of a field.
        published = json.dumps(CATALOGUE["patient_report_sent"].example).encode()
        accepted = await carehook.intake.accept(organization.id, [parse_event(published)])
        assert accepted.deliveries == 1

        # The worker has been woken, claims the delivery, signs it and sends it.
        (request,) = await hospital.wait_for_requests()
        assert request.method == "POST"
        assert request.headers["x-webhook-signature"] == signature_value
        assert request.headers["webhook-id"] == accepted.event_ids[0]

        # The hospital verifies it, and has a typed event in its hands.
        webhook = Webhook(signature_value=signature_value, signing_secret=signing_secret)
        event = webhook.verify(request.body, request.headers)
        assert isinstance(event, PatientReportSent)
        assert event.payload.patient.code == "patient_code"

        # What was sent is what the contract shows, and nothing was added.
        assert json.loads(request.body) == CATALOGUE["patient_report_sent"].example

        # The outcome is recorded: "did you get it?" has an answer.
        delivery = await wait_for_delivery(carehook, accepted.event_ids[0], DeliveryState.SUCCEEDED)
        (attempt,) = delivery.attempts
        assert (attempt.outcome, attempt.status_code) == (AttemptOutcome.RESPONDED, 200)
