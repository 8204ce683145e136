"""`capstan schema`: JSON schemas of the documents, for editors and for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capstan.console import print_json
from specs.errors import InputError, nearest_names

if TYPE_CHECKING:
    from specs.document import Document

DOCUMENTS = ("deployment", "plan", "schedule", "bundle", "measurements", "profile", "engine", "device")


def run_schema(document: str) -> None:
    """Print the JSON schema of `document` (one of `DOCUMENTS`; case does not matter). `InputError` otherwise."""
    name = document.strip().lower()
    if name not in DOCUMENTS:
        known = ", ".join(DOCUMENTS)
        nearest = nearest_names(name[:80], DOCUMENTS)
        raise InputError(f"there is no document {document!r}", expected=f"one of {known}", nearest=nearest)
    print_json(document_schema(name))


def document_schema(name: str) -> dict[str, Any]:
    """The schema of one of `DOCUMENTS`. For `deployment` it is of the file as written, quantities with their units."""
    if name == "deployment":
        from specs.deployment.written import written_schema

        return written_schema()
    if name == "plan":
        from specs.plan import Plan

        return Plan.model_json_schema(mode="serialization")
    if name == "schedule":
        from specs.schedule import Schedule

        return Schedule.model_json_schema(mode="serialization")
    if name == "bundle":
        from specs.bundle import Bundle

        return Bundle.model_json_schema(mode="serialization")
    if name == "measurements":
        from specs.measurements import Measurements

        return Measurements.model_json_schema(mode="serialization")
    from specs.profile import DeviceFacts, DeviceProfile, EngineProfile

    models: dict[str, type[Document]] = {"profile": DeviceProfile, "engine": EngineProfile, "device": DeviceFacts}
    return models[name].model_json_schema(mode="serialization")
