"""A report with its film as a PDF, and this as a DICOM Encapsulated PDF; needs the extra `clinic` (fpdf2)."""

from __future__ import annotations

import unicodedata
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.clinic.objects import code_item, new_document, reference
from generator.clinic.report import MANUFACTURER, TITLE, Report
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom import Dataset

MARGIN, LINE, GAP, PICTURE = 18, 5.5, 4, 110
"""Millimeters: margin of the page, height of a line, room around films, highest film."""
PIXELS = 1024
"""Longer side of a film in the PDF, which is to recognize it by and not to read it."""


def encapsulated_pdf(report: Report) -> Dataset:
    """The report as an Encapsulated PDF object (A.45.1), ready for `save_as` or to be sent.

    Raises:
        RadDraftError: as `draw_pdf`.
    """
    from pydicom import config, uid
    from pydicom.sr.codedict import codes

    document = draw_pdf(report)
    with config.disable_value_validation():  # what the film says of the patient stays as it is
        dataset = new_document(report, "pdf", uid.EncapsulatedPDFStorage, "DOC")
        dataset.ConversionType, dataset.BurnedInAnnotation = "WSD", "YES"
        dataset.AcquisitionDateTime = ""
        dataset.DocumentTitle, dataset.VerificationFlag = TITLE, "UNVERIFIED"
        dataset.ConceptNameCodeSequence = [code_item(codes.cid7000.DiagnosticImagingReport)]
        dataset.SourceInstanceSequence = [reference(one.header) for one in (*report.sources, *report.priors)]
        dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
        dataset.EncapsulatedDocumentLength = len(document)
        dataset.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    return dataset


def draw_pdf(report: Report) -> bytes:
    """The report as a PDF: the banner on every page, whose it is, the text, who wrote it, the films.

    Raises:
        RadDraftError: fpdf2 is not installed, a letter is in no font here, or a film cannot be read.
    """
    page = _new_page(report)
    _lines(page, TITLE, size=15, bold=True)
    for label, value in _about(report).items():
        _lines(page, f"{label}: {value}", size=9)
    for name, text in {"indication": report.indication, **report.sections}.items():
        if text:
            page.ln(3)
            _lines(page, name.capitalize(), size=11, bold=True)
            _lines(page, text, size=10)
    page.ln(3)
    device = report.device
    written = f"Drafted by {MANUFACTURER} {device.software}, model {device.model}, weights {device.digest[:16]}."
    _lines(page, written, size=8)
    pictures = [_picture(source.path) for source in report.sources]
    for at in range(0, len(pictures), 2):
        _row(page, pictures[at : at + 2])
    return bytes(page.output())


def _picture(path: Path) -> Image:
    from raddraft.images import ImageWarning, load_image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # was given when the model read it
        picture = load_image(path)
    picture.thumbnail((PIXELS, PIXELS))
    return picture


def _row(page: Any, pictures: list[Image]) -> None:
    """Pictures side by side, on a new page if this one has no room for them."""
    width = (page.epw - GAP) / 2
    scales = [min(width / one.width, PICTURE / one.height) for one in pictures]
    sizes = [(one.width * scale, one.height * scale) for one, scale in zip(pictures, scales, strict=True)]
    highest = max(height for _, height in sizes)
    if page.will_page_break(highest + GAP):
        page.add_page()
    y = page.y + GAP
    for column, (picture, (wide, high)) in enumerate(zip(pictures, sizes, strict=True)):
        page.image(picture, x=page.l_margin + column * (width + GAP), y=y, w=wide, h=high)
    page.set_y(y + highest)


def _about(report: Report) -> dict[str, str]:
    """What tells whose report it is."""
    header = report.header
    name = str(header.get("PatientName") or "").partition("=")[0]  # the group in Latin letters
    values = {
        "Patient": " ".join(name.replace("^", " ").split()),
        "Patient ID": header.get("PatientID"),
        "Born": header.get("PatientBirthDate"),
        "Sex": header.get("PatientSex"),
        "Study date": header.get("StudyDate"),
        "Accession number": header.get("AccessionNumber"),
    }
    return {label: str(value) for label, value in values.items() if value}


def _new_page(report: Report) -> Any:
    """An fpdf2 document with one page open, whose pages begin and end with the banner."""
    try:
        import fpdf
    except ImportError:
        raise RadDraftError('PDF needs fpdf2: pip install "raddraft[clinic]", or pip install fpdf2') from None

    class Page(fpdf.FPDF):
        def header(self) -> None:
            _lines(self, report.banner, size=10, bold=True, border=1)
            self.ln(3)

        def footer(self) -> None:
            self.set_y(-MARGIN + 5)
            _lines(self, f"{report.banner} Page {self.page_no()} of {{nb}}", size=7)

    page = Page(format="A4")
    page.set_margin(MARGIN)
    page.set_auto_page_break(True, MARGIN)
    for style, font in _fonts().items():
        page.add_font("DejaVu", style, font)
    page.set_title(TITLE)
    page.set_creator(MANUFACTURER)
    page.add_page()
    return page


def _lines(page: Any, text: str, size: float, bold: bool = False, border: int = 0) -> None:
    """Write a text over the whole width, and go on below it."""
    known = _letters()
    for letter in text:
        code, side = ord(letter), unicodedata.bidirectional(letter)
        if not letter.isspace() and (code not in known or side in ("R", "AL", "AN")):
            raise RadDraftError(
                f"The PDF cannot be written: its font cannot set {letter!r} (U+{code:04X}); leave pdf out: sr and fhir "
                "hold any letter"
            )
    page.set_font("DejaVu", "B" if bold else "", size)
    page.multi_cell(0, LINE * size / 10, text, border=border, align="L", new_x="LMARGIN", new_y="NEXT")


def _fonts() -> dict[str, Path]:
    """Style -> file of DejaVu Sans, which comes with matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return {"": folder / "DejaVuSans.ttf", "B": folder / "DejaVuSans-Bold.ttf"}


@cache
def _letters() -> frozenset[int]:
    """Code points that both styles have."""
    from matplotlib.ft2font import FT2Font

    return frozenset.intersection(*(frozenset(FT2Font(str(font)).get_charmap()) for font in _fonts().values()))
