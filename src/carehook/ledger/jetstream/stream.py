"""The stream of announcements: what it is called, how it is set up, and what is wrong with one that is not.

A message says that an endpoint may have something due. It holds the endpoint's id and nothing else: not the delivery,
not the event, and nothing of a patient.

There is at most one message of a subject. So however many deliveries of an endpoint fall due, in whatever processes,
there is at most one announcement of it that nobody has taken, and at most one a second that is to come: what the stream
holds is bounded by the endpoints, not by their backlogs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServerError, ServiceUnavailableError

from carehook.ledger.jetstream.servers import JetStreamUnavailable

OLDEST_SERVER: Final = (2, 12)
"""The first version of NATS that has scheduled messages (ADR-51)."""

CLUSTER_REPLICAS: Final = 3
CONSUMER: Final = "workers"

ACK_SECONDS: Final = 30
"""After this, what a worker took and did not acknowledge is given to another."""

_MAJORITY: Final = "more than half of the cluster's servers must run, with JetStream"
_NO_SUITABLE_PEERS: Final = frozenset({10005, 10074})
_NOT_ENABLED: Final = frozenset({10035, 10039, 10076})


class StreamUnusable(JetStreamUnavailable):
    """The stream cannot be used until somebody changes something."""


class StreamNotReady(JetStreamUnavailable):
    """The stream cannot be used now; a cluster that chooses its leaders is like that for some seconds."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A message for the stream. `headers` make it one for later, or one that is taken once however often it is sent."""

    subject: str
    payload: bytes = b""
    headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """The names of an installation's stream and subjects; `installation` tells it from others on the same servers."""

    installation: str

    @property
    def name(self) -> str:
        """What `nats stream ls` shows."""
        return f"carehook-{self.installation}"

    @property
    def sweep(self) -> str:
        """The subject of the order to look for what is overdue."""
        return f"carehook.{self.installation}.sweep"

    def announce(self, endpoint_id: str) -> Announcement:
        """That an endpoint may have something due."""
        return Announcement(self._due(endpoint_id), endpoint_id.encode())

    def announce_later(self, endpoint_id: str, at: datetime) -> Announcement:
        """That it will have from an instant on, told within the second after it."""
        second = math.ceil(at.timestamp())
        told_at = datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z")
        headers = {"Nats-Schedule": f"@at {told_at}", "Nats-Schedule-Target": self._due(endpoint_id)}
        return Announcement(f"carehook.{self.installation}.later.{endpoint_id}.{second}", endpoint_id.encode(), headers)

    def order_sweep(self, occasion: str) -> Announcement:
        """That one worker should look for what is overdue; of an occasion's orders the first counts."""
        return Announcement(self.sweep, headers={"Nats-Msg-Id": f"sweep-{occasion}"})

    def _due(self, endpoint_id: str) -> str:
        return f"carehook.{self.installation}.due.{endpoint_id}"

    def build_config(self, replicas: int) -> StreamConfig:
        """How the stream is set up."""
        return StreamConfig(
            name=self.name,
            description="Which endpoints may have something due. The truth is in Carehook's database.",
            subjects=[f"carehook.{self.installation}.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_msgs_per_subject=1,
            num_replicas=replicas,
            allow_msg_schedules=True,
        )

    def build_consumer_config(self) -> ConsumerConfig:
        """How workers share what is announced. Schedules are in the stream too and are not for them."""
        return ConsumerConfig(
            durable_name=CONSUMER,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_SECONDS,
            max_deliver=-1,
            max_ack_pending=100_000,
            max_waiting=10_000,
            filter_subjects=[self._due(">"), self.sweep],
        )


async def prepare(jetstream: JetStreamContext, stream: Stream, *, clustered: bool) -> None:
    """Make the stream and its consumer, or find them as they must be.

    Raises `StreamUnusable`, or `StreamNotReady`.
    """
    wanted = stream.build_config(CLUSTER_REPLICAS if clustered else 1)
    try:
        await jetstream.account_info()
        found = await _find_or_add(jetstream, wanted)
        if objections := list(find_objections(found.config, wanted)):
            raise StreamUnusable(_build_refusal(stream.name, objections))
        await _prepare_consumer(jetstream, stream)
    except APIError as error:
        raise _explain(error, stream, clustered=clustered) from None
    except TimeoutError:
        advice = f": {_MAJORITY}" if clustered else ""
        raise StreamNotReady(f"JetStream does not answer about the stream {stream.name}{advice}") from None


async def _find_or_add(jetstream: JetStreamContext, wanted: StreamConfig) -> StreamInfo:
    try:
        return await jetstream.stream_info(str(wanted.name))
    except NotFoundError:
        return await jetstream.add_stream(wanted)


async def _prepare_consumer(jetstream: JetStreamContext, stream: Stream) -> None:
    try:
        await jetstream.add_consumer(stream.name, stream.build_consumer_config())
    except (BadRequestError, ServerError) as error:
        raise StreamUnusable(
            f"the consumer {CONSUMER} of the stream {stream.name} has other settings than Carehook's "
            f"({error.description}): remove it (nats consumer rm {stream.name} {CONSUMER}) and start again"
        ) from None


def find_objections(found: StreamConfig, wanted: StreamConfig) -> Iterator[str]:
    """What of a stream's settings keeps it from being used, each as "subjects are …, not …". Limits may be added."""
    if found.subjects != wanted.subjects:
        yield f"its subjects are {_list(found.subjects)}, not {_list(wanted.subjects)}"
    for name in ("retention", "storage", "discard", "max_msgs_per_subject"):
        present, right = getattr(found, name), getattr(wanted, name)
        if present != right:
            yield f"its {name} is {_show(present)}, not {_show(right)}"
    if not found.allow_msg_schedules:
        yield "it does not allow message schedules"
    if found.max_age:
        yield f"it forgets messages after {found.max_age:g} s"
    if found.sealed or found.mirror or found.sources:
        yield "it is sealed, or copies other streams"
    if (found.num_replicas or 1) < (wanted.num_replicas or 1):
        yield f"it has {found.num_replicas or 1} replicas, not {wanted.num_replicas}"


def _build_refusal(name: str, objections: Sequence[str]) -> str:
    return (
        f"the stream {name} has other settings than Carehook's: {'; '.join(objections)}. Change it, or delete it "
        f"(nats stream rm {name}) and start again: all that it holds is in the database too"
    )


def _explain(error: APIError, stream: Stream, *, clustered: bool) -> StreamUnusable | StreamNotReady:
    if error.err_code in _NO_SUITABLE_PEERS:
        return StreamNotReady(
            f"the NATS cluster has fewer than {CLUSTER_REPLICAS} servers with room for the stream {stream.name}, "
            f"of which Carehook keeps {CLUSTER_REPLICAS} replicas: start {CLUSTER_REPLICAS} servers with JetStream"
        )
    if error.err_code in _NOT_ENABLED or (isinstance(error, ServiceUnavailableError) and not clustered):
        return StreamUnusable(
            "the NATS server has no JetStream, or none for this user: start it with JetStream (nats-server -js)"
        )
    if isinstance(error, ServiceUnavailableError):
        return StreamNotReady(f"JetStream is not available now: {_MAJORITY}")
    return StreamUnusable(f"JetStream refuses the stream {stream.name}: {error.description}")


def _list(subjects: Sequence[str] | None) -> str:
    return ", ".join(subjects or ["none"])


def _show(value: object) -> str:
    return str(getattr(value, "value", value))
