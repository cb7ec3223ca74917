"""A real Orthanc with DICOMweb on loopback ports, and twelve studies for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file

from tests.films import change
from tests.launch import find_port
from tests.test_clinic_studies import film

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENT = {"StudyDate": "20260131", "StudyTime": "081500", "ViewPosition": "PA", "PatientName": "Plantedname^One"}
CHEST = ("native", "j2k", "jpegls", "rle", "pair", "prior", "reported", "exposure", "cr", "implicit")
"""Of the twelve studies those with chest films."""


@dataclass
class Orthanc:
    """A running server."""

    port: int
    dicom_port: int
    auth: tuple[str, str] | None = None
    push_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Use its own REST API."""
        auth = tuple(part.encode() for part in self.auth) if self.auth else None
        answer = requests.request(method, f"http://127.0.0.1:{self.port}/{path}", auth=auth, timeout=20, **options)
        answer.raise_for_status()
        return answer

    def ask(self, path: str) -> Any:
        return self.request("GET", path).json()

    def changes(self, since: int) -> list[dict]:
        """Up to 1,000 changes after one of this number."""
        return self.ask(f"changes?since={since}&limit=1000")["Changes"]

    def stow(self, files: Sequence[Path]) -> None:
        """Send files by STOW-RS."""
        from dicomweb_client.api import DICOMwebClient

        session = requests.Session()
        session.auth = tuple(part.encode() for part in self.auth) if self.auth else None
        answer = DICOMwebClient(self.url, session).store_instances([dcmread(file) for file in files])
        assert not answer.FailedSOPSequence

    def c_store(self, files: Sequence[Path]) -> None:
        """Send files by C-STORE."""
        from pynetdicom import AE

        entity, datasets = AE("TEST"), [dcmread(file) for file in files]
        for sop_class, syntax in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in datasets}:
            entity.add_requested_context(sop_class, syntax)
        association = entity.associate("127.0.0.1", self.dicom_port)
        assert [association.send_c_store(one).Status for one in datasets] == [0] * len(datasets)
        association.release()

    def find(self, study: str) -> list[str]:
        """Its own names for a study."""
        query = {"Level": "Study", "Query": {"StudyInstanceUID": study}}
        return self.request("POST", "tools/find", json=query).json()

    def push(self, studies: Sequence[str]) -> None:
        """Let it send studies to the modality raddraft by C-STORE."""
        names = [name for study in studies for name in self.find(study)]
        self.request("POST", "modalities/raddraft/store", json=names)

    def forget(self, study: str) -> None:
        for name in self.find(study):
            self.request("DELETE", f"studies/{name}")

    def documents(self, kind: str) -> list[Dataset]:
        """All objects of a modality."""
        series = [one for one in self.ask("series?expand") if one["MainDicomTags"].get("Modality") == kind]
        names = [name for one in series for name in one["Instances"]]
        return [dcmread(BytesIO(self.request("GET", f"instances/{name}/file").content)) for name in names]

    def drafts(self) -> dict[str, list[str]]:
        """Study -> UIDs of what RadDraft has sent."""
        found: dict[str, list[str]] = {}
        for one in (*self.documents("SR"), *self.documents("DOC")):
            if one.get("Manufacturer") == "RadDraft":
                found.setdefault(one.StudyInstanceUID, []).append(one.SOPInstanceUID)
        return {study: sorted(uids) for study, uids in sorted(found.items())}

    def forget_documents(self) -> None:
        """Remove what RadDraft has sent."""
        for one in self.ask("series?expand"):
            if one["MainDicomTags"].get("Manufacturer") == "RadDraft":
                self.request("DELETE", f"series/{one['ID']}")


@contextmanager
def orthanc(folder: Path, auth: tuple[str, str] | None = None, **settings: object) -> Iterator[Orthanc]:
    """Start Orthanc with a database in `folder`; skip the test where it is not installed."""
    program = shutil.which("Orthanc")
    if not program or not PLUGIN.is_file():
        pytest.skip("Orthanc is not installed (Debian's orthanc and orthanc-dicomweb)")
    server = Orthanc(find_port(), find_port(), auth)
    config = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": server.port,
        "DicomPort": server.dicom_port,
        "Plugins": [str(PLUGIN)],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": auth is not None,
        "RegisteredUsers": dict([auth] if auth else []),
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(config | settings))
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log, start_new_session=True)
    try:
        while process.poll() is None:
            with suppress(requests.RequestException):
                requests.get(f"http://127.0.0.1:{server.port}/system", timeout=1)
                break
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


def twelve_studies(folder: Path) -> dict[str, list[Path]]:
    """Name -> files of twelve studies, ten of them with chest films, one with a hand, one with a report alone."""
    files: dict[str, list[Path]] = {}

    def add(name: str, number: int, count: int = 1, **tags: object) -> Path:
        own = {"PatientID": f"PLANTED{number}", "AccessionNumber": f"ACCPLANT{number}"}
        path = folder / f"{name}{count}.dcm"
        film(path, count, f"1.2.826.0.1.{number}", **{**PATIENT, **own, **tags})
        files.setdefault(name, []).append(path)
        return path

    source = get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False)
    assert source is not None
    raw = {"PresentationIntentType": "FOR PROCESSING", "SOPClassUID": uid.DigitalXRayImageStorageForProcessing}
    report = {"SOPClassUID": uid.BasicTextSRStorage, "Modality": "SR", "SeriesInstanceUID": "1.2.826.0.1.8.9"}
    add("native", 1)
    add("j2k", 2, compress=uid.JPEG2000Lossless)
    made = dcmread(add("jpegls", 3))
    pixels = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData")
    kept = {one.keyword: one.value for one in made if one.keyword and one.keyword not in pixels}
    files["jpegls"][0].write_bytes(Path(source).read_bytes())
    change(files["jpegls"][0], **kept)
    add("rle", 4, compress=uid.RLELossless)
    pair = {"PatientID": "PLANTED56"}
    add("pair", 5, **pair)
    add("pair", 5, 2, **pair, ViewPosition="LL", SeriesInstanceUID="1.2.826.0.1.5.2")
    add("prior", 6, **pair, StudyDate="20250131")
    add("hand", 7, BodyPartExamined="HAND")
    add("reported", 8)
    add("reported", 8, 2, **report)
    add("exposure", 9, **raw)
    add("exposure", 9, 2, PresentationIntentType="FOR PRESENTATION")
    add("cr", 10, Modality="CR", SOPClassUID=uid.ComputedRadiographyImageStorage)
    add("implicit", 11, syntax=uid.ImplicitVRLittleEndian, PatientName="Plantedname^Ünlü")
    add("text", 12, **report | {"SeriesInstanceUID": "1.2.826.0.1.12.9"})
    return files
