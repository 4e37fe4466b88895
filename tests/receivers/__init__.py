"""Receivers to send to: one that records what it gets, one for each kind of hostility, and certificates for both.

Every receiver is a real server on a free loopback port, in a thread of its own, so a test, or a whole service that is
under test, can block without stopping it. All are context managers, both plain and asynchronous.
"""

from tests.receivers.certificates import Certificates
from tests.receivers.hostile import HOSTILITIES, HostileReceiver
from tests.receivers.recording import Answer, RecordingReceiver
from tests.receivers.server import ReceivedRequest, Receiver
from tests.receivers.waiting import WaitingReceiver

__all__ = [
    "HOSTILITIES",
    "Answer",
    "Certificates",
    "HostileReceiver",
    "ReceivedRequest",
    "Receiver",
    "RecordingReceiver",
    "WaitingReceiver",
]
