"""Sex, age, weight and body mass index of MIMIC-CXR's patients, from the tables of MIMIC-IV.

patients.csv  subject_id, gender, anchor_age, anchor_year                    one row for each patient
omr.csv       subject_id, chartdate, seq_num, result_name, result_value      outpatient measurements, values as text

Both sets shift all dates of a patient by the same time, so dates of the one can be compared with dates of the other.
https://mimic.mit.edu/docs/iv/modules/hosp/ says what the columns hold.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study
from raddraft.tables import is_nothing

KG_PER_POUND = 0.45359237
OLDEST = 89
"""Years. The anchor_age of whoever was older than that in the anchor year is 91, whatever the age was."""
PLAUSIBLE = {"weight": (20, 350), "bmi": (10, 80)}
"""kg and kg/m² of adults; this project's choice."""
_MEASURED = {"Weight (Lbs)": ("weight", KG_PER_POUND), "BMI (kg/m2)": ("bmi", 1.0), "BMI": ("bmi", 1.0)}
_WITHOUT_UNIT = "Weight"  # 354 rows of MIMIC-IV 2.2; 1,889,542 are in pounds
_NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
_ORIGIN = "It is part of MIMIC-IV, https://physionet.org/content/mimiciv/ (credentialed access)."

_Studies = dict[str, list[tuple[Study, date | None]]]
"""Subject -> its studies, with their dates."""


def add_patients(conversion: Conversion, folder: Path, window: int) -> None:
    """Give the patients of MIMIC-CXR's studies their sex, age (years), weight (kg) and bmi (kg/m²); notes tell counts.

    - The age is the year of the study - anchor_year + anchor_age. There is none where it, or anchor_age, is above 89,
      nor where it is below 0.
    - Weight and BMI are those of the row of omr whose day is nearest to the study's, and no further than the window. Of
      two days that are equally near the one before the study counts, of several rows of a day the highest seq_num.
    - "Weight (Lbs)" is converted to kg; "Weight" does not tell its unit and is left out; "BMI" is "BMI (kg/m2)".
    - Values that are no plain number (">300") or not in `PLAUSIBLE` are left out before the nearest is looked for.
    - A study without a date, and a patient without anchor_age, has the sex only; a patient who is not in MIMIC-IV has
      nothing. Of several rows of a patient in patients.csv the first counts.
    - Rows of omr whose chartdate or seq_num cannot be read are left out.

    Args:
        conversion: studies of subjects such as p10000032, with a study_date.
        folder: the folder of MIMIC-IV, with hosp/patients.csv and hosp/omr.csv, gzipped or not; or its hosp.
        window: days before and after the study.

    Raises:
        CorpusError: no such table or column, a negative window, a date of a study that is none, or an anchor_year or
            anchor_age that is no whole number.
    """
    if window < 0:
        raise CorpusError(f"--window must be 0 days or more, got {window}")
    hosp = folder / "hosp" if (folder / "hosp").is_dir() else folder
    patients, omr = (common.find_file(hosp, [f"{name}.csv"], _ORIGIN) for name in ("patients", "omr"))
    studies: _Studies = defaultdict(list)
    for study in conversion.studies:
        day = study.extra.get("study_date")
        studies[study.subject_id].append((study, _parse_date(day, f"study {study.study_id}, StudyDate")))
    found = _add_ages(patients, studies, conversion.counts)
    _add_measurements(omr, studies, window, conversion.counts)
    filled = Counter(name for study in conversion.studies for name, value in study.patient.items() if value is not None)
    conversion.notes.append(
        f"MIMIC-IV has {found:,} of {len(studies):,} subjects. Studies with sex: {filled['sex']:,}, age: "
        f"{filled['age']:,}, weight: {filled['weight']:,}, bmi: {filled['bmi']:,} (at most {window} days away)"
    )


def _add_ages(table: Path, studies: _Studies, counts: Counter[str]) -> int:
    """Add sex and age, count the ages that are left out, and return how many of the subjects the table has."""
    found: set[str] = set()
    for where, row in common.read_table(table, ["subject_id", "gender", "anchor_age", "anchor_year"]):
        subject = f"p{row['subject_id']}"
        if subject in found:
            counts["Rows of patients that repeat a subject, left out"] += 1
            continue
        known = studies.get(subject, [])
        found |= {subject} if known else set()
        for study, day in known:
            study.patient |= {"sex": common.parse_sex(row["gender"], counts), "age": None}
            if is_nothing(row["anchor_age"]):
                counts["Studies of patients without anchor_age, and so without age"] += 1
                continue
            anchor_age, anchor_year = (_parse_whole(row, column, where) for column in ("anchor_age", "anchor_year"))
            age = day.year - anchor_year + anchor_age if day else None
            if age is None:
                counts["Studies without a date, and so without age, weight and bmi"] += 1
            elif max(age, anchor_age) > OLDEST:
                counts[f"Ages above {OLDEST}, left out"] += 1
            elif age < 0:
                counts["Ages below 0, left out"] += 1
            else:
                study.patient["age"] = age
    return len(found)


def _add_measurements(table: Path, studies: _Studies, window: int, counts: Counter[str]) -> None:
    """Add weight and bmi, and count the values that are left out."""
    nearest: dict[tuple[str, str], tuple[int, bool, int]] = {}
    for _, row in common.read_table(table, ["subject_id", "chartdate", "seq_num", "result_name", "result_value"]):
        name, known = row["result_name"], studies.get(f"p{row['subject_id']}")
        if not known or (name != _WITHOUT_UNIT and name not in _MEASURED):
            continue
        value = row["result_value"].strip()
        quantity, factor = _MEASURED.get(name, ("", 1))
        if not quantity:
            counts["Weights that tell no unit, left out"] += 1
        elif not _NUMBER.fullmatch(value):
            counts["Weights and BMIs that are no number, left out"] += 1
        elif not PLAUSIBLE[quantity][0] <= float(value) * factor <= PLAUSIBLE[quantity][1]:
            counts[f"Implausible values of {quantity}, left out"] += 1
        else:
            try:
                measured, number = date.fromisoformat(row["chartdate"].strip()), int(row["seq_num"])
            except ValueError:
                counts["Rows of omr whose chartdate or seq_num cannot be read, left out"] += 1
                continue
            for study, day in known:
                if day is None or abs((measured - day).days) > window:
                    continue
                rank = (abs((measured - day).days), measured > day, -number)
                if rank < nearest.get((study.study_id, quantity), (window + 1, False, 0)):
                    nearest[study.study_id, quantity] = rank
                    study.patient[quantity] = round(float(value) * factor, 1)


def _parse_date(value: str | None, where: str) -> date | None:
    """21800506 or 2180-05-06; None for nothing."""
    if is_nothing(value):
        return None
    try:
        return date.fromisoformat((value or "").strip())
    except ValueError:
        raise CorpusError(f"{where}: date {value!r}. Expected a day such as 21800506 or 2180-05-06") from None


def _parse_whole(row: dict[str, str], column: str, where: str) -> int:
    try:
        return int(row[column])
    except ValueError:
        raise CorpusError(f"{where}: {column} {row[column]!r} is no whole number") from None
