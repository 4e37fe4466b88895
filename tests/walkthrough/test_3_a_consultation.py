"""The care API: a platform says what happens, one call a step, and Carehook makes the contract's events of it."""

from carehook import PatientConsultationFinished, PatientReportSent, Webhook
from carehook.application import Application
from carehook.directory.endpoints import NewEndpoint
from carehook.directory.organizations import NewOrganization
from carehook.intake.consultations import (
    Finish,
    History,
    NewConsultation,
    NewPrescription,
    NewSoapReport,
    ProfessionalProfile,
)
from tests.receivers import RecordingReceiver

HISTORY = {
    "allergies": [{"id": "al-1", "name": "Penicillin", "description": "Rash"}],
    "diseases": [{"id": "di-1", "name": "Asthma", "description": "Since childhood"}],
    "medications": [
        {"id": "me-1", "name": "Salbutamol", "description": "Inhaler", "posology": "Two puffs when needed"}
    ],
}
SOAP = {"subjective": "Cough", "objective": "Clear lungs", "assessment": "Common cold", "plan": "Rest"}


async def test_a_consultation_tells_of_its_report_and_of_its_end(carehook: Application) -> None:
    with RecordingReceiver() as hospital:
        organization = await carehook.organizations.create(NewOrganization(name="Example Hospital"))
        registered = await carehook.endpoints.register(organization.id, NewEndpoint(url=hospital.url))
        webhook = Webhook(signing_secret=registered.verification_secret.get_secret_value())

        care = carehook.care
        await care.put_patient(organization.id, "patient-7", History.model_validate(HISTORY))
        await care.put_professional("professional-3", ProfessionalProfile(name="On-call doctor", avatar=""))
        consultation = await care.begin_consultation(
            organization.id,
            NewConsultation.model_validate(
                {
                    "type": "chat",
                    "patient_code": "patient-7",
                    "professional_id": "professional-3",
                    "speciality": {"id": 1, "name": "General medicine"},
                    "start_date": "2026-01-10T09:00:00",
                }
            ),
        )
        report = NewSoapReport.model_validate({"type": "soap", "content": SOAP})
        await care.send_report(organization.id, consultation.id, report)
        prescription = NewPrescription(active_substances=["paracetamol"])
        await care.prescribe(organization.id, consultation.id, prescription)
        finish = Finish.model_validate({"end_date": "2026-01-10T09:20:00"})
        await care.finish_consultation(organization.id, consultation.id, finish)

        requests = await hospital.wait_for_requests(2)
        events = {type(event): event for event in (webhook.verify(each.body, each.headers) for each in requests)}

        report_sent = events[PatientReportSent]
        assert isinstance(report_sent, PatientReportSent)
        assert report_sent.payload.content.plan == "Rest"
        assert report_sent.payload.patient.code == "patient-7"

        finished = events[PatientConsultationFinished]
        assert isinstance(finished, PatientConsultationFinished)
        payload = finished.payload.model_dump(mode="json")
        assert payload["consultation"]["end_date"] == "2026-01-10T09:20:00"
        assert payload["patient"] == {"code": "patient-7", **HISTORY}
        assert [each["content"] for each in payload["reports"]] == [SOAP]
        assert [each["active_substances"] for each in payload["prescriptions"]] == [["paracetamol"]]
