"""The contract in types: what is sent to organizations, and the catalogue of it.

Pure: no clock, no network, nothing of the rest of Carehook.

    event = parse_event(body)      # or InvalidEvent, which names the fields
    body = build_body(event)       # the one serialisation
    CATALOGUE["patient_report_sent"].json_schema
"""

from carehook.events.catalogue import CATALOGUE, AnyEvent, EventType
from carehook.events.clinical import (
    Allergy,
    Consultation,
    ContractDateTime,
    Disease,
    Medication,
    Patient,
    PatientReference,
    Prescription,
    Professional,
    Report,
    ReportSent,
    SoapContent,
    SoapReport,
    SoapReportSent,
    Speciality,
)
from carehook.events.codec import build_body, parse_event, parse_events
from carehook.events.envelope import Event, UnixTime
from carehook.events.errors import InvalidEvent, UnknownEventType
from carehook.events.patient_consultation_finished import ConsultationFinished, PatientConsultationFinished
from carehook.events.patient_report_sent import PatientReportSent
from carehook.field_errors import BODY, FieldError

__all__ = [
    "BODY",
    "CATALOGUE",
    "Allergy",
    "AnyEvent",
    "Consultation",
    "ConsultationFinished",
    "ContractDateTime",
    "Disease",
    "Event",
    "EventType",
    "FieldError",
    "InvalidEvent",
    "Medication",
    "Patient",
    "PatientConsultationFinished",
    "PatientReference",
    "PatientReportSent",
    "Prescription",
    "Professional",
    "Report",
    "ReportSent",
    "SoapContent",
    "SoapReport",
    "SoapReportSent",
    "Speciality",
    "UnixTime",
    "UnknownEventType",
    "build_body",
    "parse_event",
    "parse_events",
]
