"""A receiver fails, and comes back. Nothing is lost, and a repetition can be told."""

import json

from carehook.application import Application
from carehook.directory.endpoints import NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.events import CATALOGUE, parse_event
from carehook.ledger.states import DeliveryState, EndpointStatus
from tests.receivers import Answer, RecordingReceiver
from tests.walkthrough.deliveries import wait_for_delivery

REPORT = parse_event(json.dumps(CATALOGUE["patient_report_sent"].example).encode())


async def test_a_failed_attempt_is_repeated_with_the_same_id_and_the_same_bytes(carehook: Application) -> None:
    with RecordingReceiver(Answer(500, body=b"out of order")) as insurer:
        organization = await carehook.organizations.create(NewOrganization(name="Example Insurer"))
        await carehook.endpoints.register(organization.id, NewEndpoint(url=insurer.url))
        (event_id,) = (await carehook.intake.accept(organization.id, [REPORT])).event_ids

        delivery = await wait_for_delivery(carehook, event_id, DeliveryState.SUCCEEDED)

        first, second = insurer.requests
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == event_id
        assert first.body == second.body
        failed, succeeded = delivery.attempts
        assert (failed.status_code, failed.reason) == (500, "the endpoint answered 500")
        assert failed.response_excerpt == "out of order"
        assert succeeded.status_code == 200


async def test_a_delivery_whose_schedule_is_exhausted_is_recovered_by_hand(carehook: Application) -> None:
    with RecordingReceiver(503, 503, 503) as insurer:
        organization = await carehook.organizations.create(NewOrganization(name="Example Insurer"))
        endpoint = (await carehook.endpoints.register(organization.id, NewEndpoint(url=insurer.url))).endpoint
        (event_id,) = (await carehook.intake.accept(organization.id, [REPORT])).event_ids
        # Two retries are in this Carehook's schedule: after the third failure it gives up.
        await wait_for_delivery(carehook, event_id, DeliveryState.EXHAUSTED)

        # The insurer says that all is well again. The support team makes due all that failed meanwhile.
        recovered = await carehook.interventions.recover(endpoint.id, since=endpoint.created_at)

        assert recovered == 1
        delivery = await wait_for_delivery(carehook, event_id, DeliveryState.SUCCEEDED)
        assert [attempt.status_code for attempt in delivery.attempts] == [503, 503, 503, 200]


async def test_an_endpoint_that_is_gone_is_disabled_and_its_deliveries_are_held(carehook: Application) -> None:
    with RecordingReceiver(410) as insurer:
        organization = await carehook.organizations.create(NewOrganization(name="Example Insurer"))
        endpoint = (await carehook.endpoints.register(organization.id, NewEndpoint(url=insurer.url))).endpoint
        (event_id,) = (await carehook.intake.accept(organization.id, [REPORT])).event_ids

        await wait_for_delivery(carehook, event_id, DeliveryState.HELD)
        disabled = await carehook.insights.endpoint(endpoint.id)
        assert disabled.status is EndpointStatus.DISABLED
        assert disabled.status_reason == "the endpoint answered 410 Gone"

        # It was a mistake of theirs: the endpoint is resumed, and what was held goes on.
        await carehook.endpoints.resume(endpoint.id)
        await wait_for_delivery(carehook, event_id, DeliveryState.SUCCEEDED)
