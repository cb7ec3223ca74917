"""PadChest (Bustos et al. 2020) -> studies: labels, sex, age; its stemmed reports are no text to learn from."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from generator.corpora.odd_rows import OTHER_LABELS, REPEATED, is_whole, join_subjects, settle
from raddraft.studies import Study, StudyImage
from raddraft.text import suggest

LABELS = (
    *("No Finding", "adenopathy", "air trapping", "alveolar pattern", "aortic atheromatosis", "aortic elongation"),
    *("apical pleural thickening", "artificial heart valve", "atelectasis", "bronchiectasis"),
    *("bronchovascular markings", "bullas", "calcified adenopathy", "calcified densities", "calcified granuloma"),
    *("calcified pleural thickening", "callus rib fracture", "cardiomegaly", "cavitation"),
    *("central venous catheter via jugular vein", "central venous catheter via subclavian vein", "chest drain tube"),
    *("chronic changes", "consolidation", "copd signs", "costophrenic angle blunting", "descendent aortic elongation"),
    *("diaphragmatic eventration", "dual chamber device", "emphysema", "endotracheal tube", "fibrotic band"),
    *("flattened diaphragm", "goiter", "granuloma", "gynecomastia", "heart insufficiency", "hemidiaphragm elevation"),
    *("hiatal hernia", "hilar congestion", "hilar enlargement", "hyperinflated lung", "hypoexpansion"),
    *("increased density", "infiltrates", "interstitial pattern", "kyphosis", "laminar atelectasis"),
    *("lobar atelectasis", "mammary prosthesis", "mastectomy", "metal", "minor fissure thickening", "nipple shadow"),
    *("nodule", "nsg tube", "osteopenia", "osteosynthesis material", "pacemaker", "pleural effusion"),
    *("pleural thickening", "pneumonia", "pneumothorax", "pseudonodule", "pulmonary edema", "pulmonary fibrosis"),
    *("pulmonary mass", "reservoir central venous catheter", "reticular interstitial pattern", "rib fracture"),
    *("sclerotic bone lesion", "scoliosis", "single chamber device", "sternotomy", "superior mediastinal enlargement"),
    *("supra aortic elongation", "suture material", "tracheal shift", "tracheostomy tube", "tuberculosis sequelae"),
    *("vascular hilar enlargement", "vertebral anterior compression", "vertebral degenerative changes", "volume loss"),
)
"""The terms that 500 films or more have, normal among them as No Finding."""
NORMAL, NO_FINDING = "normal", "No Finding"
_META = frozenset({"", "exclude", "unchanged", "suboptimal study"})
"""Terms that are no findings."""
_VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP SUPINE", "L": "LATERAL"} | dict.fromkeys(
    ("COSTAL", "EXCLUDE", "UNK")
)
_METHODS = {"Physician": "physicians", "RNN_model": "network", "": "unknown"}
_ORIGIN = "It is part of PadChest, https://bimcv.cipf.es/bimcv-projects/padchest (on application)."
_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_COLUMNS = (
    *("ImageID", "ImageDir", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "StudyDate_DICOM"),
    *("Projection", "MethodLabel", "Labels"),
)
_CODES = ("ImageDir", "PatientBirth", "StudyDate_DICOM", "Projection", "MethodLabel")
"""Columns whose cells may have blanks around them, or be numbers that a spreadsheet wrote with .0."""


def convert(
    root: Path,
    out: Path | None = None,
    table: Path | None = None,
    images: Path | None = None,
    views: Literal["frontal", "all"] = "frontal",
    labels: tuple[str, ...] = (),
) -> Conversion:
    """PadChest: labels of 110,000 studies, sex, age; no report, since its Spanish reports are stems without articles.

    The view is Projection: PA, AP, AP_horizontal (AP SUPINE) and L (LATERAL); COSTAL, EXCLUDE and UNK are left out. No
    official split: 70, 10 and 20 % of the subjects are train, val and test, by a hash. Two patients with one StudyID
    are one subject, named after the first.

    A label is a whole term, without blanks around it and in small letters, that is 1 or 0; normal is No Finding, and 0
    where a finding stands beside it. A study has no labels if its cell is blank, has the term exclude, or has no terms
    but unchanged, suboptimal study and blanks: what its film shows is then not said. labels_by tells whether
    physicians or a network read the report, or that it is unknown, where the cell is blank.

    Age is the year of the study minus that of birth; studies before it have none and are counted. Sex and age are
    unknown of a subject who has two sexes or two years of birth. Rows that repeat an image, PNG files that are cut or
    filled with zeros, and images that do not exist are left out and counted.

    Args:
        root: Folder that holds the table and the images, as ImageDir/ImageID (0/ to 54/) or all in one folder.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default PADCHEST_chest_x_ray_images_labels*.csv in root.
        images: Folder of the images, PNG or JPEG. By default root.
        views: frontal keeps PA, AP and AP_horizontal; all keeps laterals too.
        labels: Terms to write, of the 190 there are. By default the 84 that 500 films or more have.
    """
    table = table or common.find_file(root, [_TABLE, "PADCHEST*labels*.csv"], f"{_ORIGIN} Name it with --table.")
    counts: Counter[str] = Counter()
    films = list(_read_films(table, images or root, counts))
    studies = _group(films, counts)
    said = Counter(term for film in films for term in film.terms)
    chosen = _choose_labels(table, labels, said)
    terms: dict[str, frozenset[str]] = {}
    for film in films:
        counts[OTHER_LABELS] += terms.setdefault(film.study, film.terms) != film.terms
    for name, study in studies.items():
        study.labels = _label(terms[name], chosen, counts)
    conversion = Conversion("padchest", studies.values(), out or root / "studies.jsonl", counts)
    conversion.notes += _tell_others(said, chosen)
    conversion.keep_images("Projection COSTAL, EXCLUDE or UNK", lambda image: image.view is not None)
    conversion.keep_views(views)
    conversion.keep_files(*common.PIXELS)
    conversion.keep_images("a cut file", lambda image: is_whole(image.path))
    return conversion.write()


class _Film(NamedTuple):
    """One row of the table."""

    study: str
    patient: str
    image: StudyImage
    terms: frozenset[str]
    date: str
    year: int | None
    birth: int | None
    sex: str | None
    method: str


def _read_films(table: Path, folder: Path, counts: Counter[str]) -> Iterator[_Film]:
    flat = not any((folder / str(number)).is_dir() for number in range(55))
    names: set[str] = set()
    for where, row in common.read_table(table, _COLUMNS):
        row |= {column: row[column].strip().removesuffix(".0") for column in _CODES}
        for column, choices in (("Projection", _VIEWS), ("MethodLabel", _METHODS)):
            if row[column] not in choices:
                known = ", ".join(filter(None, choices))
                raise CorpusError(f"{where}: unknown {column} {row[column]!r}. Choices: {known}")
        name = row["ImageID"]
        if name in names:
            counts[REPEATED] += 1
            continue
        names.add(name)
        path = folder / name if flat else folder / row["ImageDir"] / name
        sex = common.parse_sex(row["PatientSex_DICOM"], counts)
        yield _Film(
            row["StudyID"],
            row["PatientID"],
            StudyImage(path, _VIEWS[row["Projection"]]),
            parse_terms(row["Labels"], where),
            row["StudyDate_DICOM"],
            _year(row["StudyDate_DICOM"], f"{where}, StudyDate_DICOM"),
            _year(row["PatientBirth"], f"{where}, PatientBirth"),
            sex,
            _METHODS[row["MethodLabel"]],
        )


@cache
def _parse_list(cell: str) -> frozenset[str] | None:
    try:
        found = ast.literal_eval(cell or "[]")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    whole = isinstance(found, list) and all(isinstance(term, str) for term in found)
    return frozenset(map(normalize, found)) if whole else None


def parse_terms(cell: str, where: str) -> frozenset[str]:
    """The normalized terms of a list in Python's form; none of a blank cell.

    Raises:
        CorpusError: another form.
    """
    found = _parse_list(cell.strip())
    if found is None:
        raise CorpusError(f"{where}: Labels must be a list such as ['normal'], got {cell[:80]!r}")
    return found


def normalize(term: str) -> str:
    """A term as it can be compared: single blanks, none around it, small letters."""
    return " ".join(term.lower().split())


def _year(value: str, where: str) -> int | None:
    """The first four digits; None of a blank cell."""
    if not value:
        return None
    if not value[:4].isdigit() or len(value) not in (4, 8):
        raise CorpusError(f"{where}: expected a year, or a date like 20140915, got {value!r}")
    return int(value[:4])


def _group(films: Sequence[_Film], counts: Counter[str]) -> dict[str, Study]:
    """The studies, without labels."""
    patient_of: dict[str, str] = {}
    pairs = [(patient_of.setdefault(film.study, film.patient), film.patient) for film in films]
    subject_of = join_subjects(pairs)
    counts["Studies of two patients, who count as one subject"] += len({one for one, other in pairs if one != other})
    sexes = settle(((subject_of[film.patient], film.sex) for film in films), "sexes", counts)
    births = settle(((subject_of[film.patient], film.birth) for film in films), "years of birth", counts)
    studies: dict[str, Study] = {}
    for film in films:
        subject = subject_of[film.patient]
        if film.study not in studies:
            born, year = births.get(subject), film.year
            age = year - born if year and born else None
            if age is not None and age < 0:
                counts["Studies before the year of their patient's birth, without age"] += 1
                age = None
            extra = {"study_date": film.date, "labels_by": film.method}
            study = Study(film.study, subject, common.hash_split(subject), [], extra=extra)
            study.patient = {"sex": sexes.get(subject), "age": age}
            studies[film.study] = study
        studies[film.study].images.append(film.image)
    return studies


def _choose_labels(table: Path, named: Sequence[str], said: Mapping[str, int]) -> tuple[str, ...]:
    """The labels to write.

    Raises:
        CorpusError: no film has a term that is named.
    """
    for label in named:
        if label != NO_FINDING and label not in said:
            known = [NO_FINDING, *sorted(said.keys() - _META - {NORMAL})]
            raise CorpusError(
                f"{table.name}: no film has the label {label!r}.{suggest(label, known)} Choices: {', '.join(known)}"
            )
    return tuple(named) or LABELS


def _label(terms: frozenset[str], labels: Sequence[str], counts: Counter[str]) -> dict[str, int | None]:
    if "exclude" in terms or terms <= _META:
        why = "have the term exclude" if "exclude" in terms else "have no term that is a finding, nor normal"
        counts[f"Studies without labels, for they {why}"] += 1
        return {}
    found = terms - _META - {NORMAL}
    counts["Studies that are called normal beside a finding, which counts"] += NORMAL in terms and bool(found)
    return {label: int(not found if label == NO_FINDING else label in found) for label in labels}


def _tell_others(said: Mapping[str, int], labels: Sequence[str]) -> list[str]:
    """A note on terms that are no labels here."""
    others = sorted(said.keys() - _META - {NORMAL} - set(labels), key=lambda term: -said[term])
    if not others:
        return []
    first = ", ".join(f"{term} ({said[term]:,} films)" for term in others[:3])
    return [f"Terms that are not written: {len(others):,}, such as {first}; name them with --labels"]
