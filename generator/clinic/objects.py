"""What DICOM documents of all kinds share: the modules of PS3.3 that are not about their content."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from generator.clinic.report import MANUFACTURER, OPTIONAL, PATIENT_AND_STUDY, Report

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.sr.coding import Code

SERIES_NUMBER = 9100
"""High, so that viewers list documents below the films."""


def new_document(report: Report, form: str, sop_class: str, modality: str) -> Dataset:
    """A data set of Patient, Study, Series, Equipment and SOP Common (C.7.1.1, C.7.2.1, C.7.5.1, C.12.1).

    Values of patient and study are those of the film as they stand, even where PS3.5 forbids them: an archive puts
    objects together by them.
    """
    from pydicom import DataElement, Dataset, uid
    from pydicom.datadict import dictionary_VR
    from pydicom.dataset import FileMetaDataset
    from pydicom.sr.codedict import codes

    now, device, header = datetime.now(), report.device, report.header
    dataset = Dataset()
    dataset.preamble = bytes(128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*PATIENT_AND_STUDY, *OPTIONAL):
        if keyword in PATIENT_AND_STUDY or header.get(keyword):
            vr, value = dictionary_VR(keyword), header.get(keyword) or ""
            dataset[keyword] = DataElement(keyword, vr, str(value) if vr == "PN" else value)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.UID(sop_class)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.UID(report.uid(form))
    dataset.Modality, dataset.SeriesInstanceUID = modality, report.series_uid(form)
    dataset.SeriesNumber, dataset.InstanceNumber = SERIES_NUMBER, 1
    dataset.SeriesDescription = "DRAFT by a machine, for a radiologist to check"
    dataset.InstanceCreationDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = now.strftime("%H%M%S")
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code_item(codes.cid7005.ProcessingEquipment)]
    equipment.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    equipment.ContributionDescription = "Wrote the draft of this report"
    for one in (dataset, equipment):
        one.Manufacturer, one.ManufacturerModelName = MANUFACTURER, device.short_name
        one.DeviceSerialNumber, one.SoftwareVersions = device.digest, device.software
    dataset.ContributingEquipmentSequence = [equipment]
    return dataset


def code_item(code: Code) -> Dataset:
    """An item of a code sequence."""
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def reference(header: Dataset) -> Dataset:
    """A reference to an image, by class and instance."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
