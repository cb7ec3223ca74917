"""Which study of a subject came before another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from raddraft.errors import RadDraftError
from raddraft.studies import Study


def find_priors(studies: Sequence[Study]) -> dict[str, Study]:
    """The previous study of each study that has one among `studies`: study id -> previous study.

    A key `prior` in the manifest names it by its study id, null for none. Without that key it is the subject's latest
    study with an earlier `study_date`, or with an earlier `study_time` on the same date. Dates are written from year to
    day (21800506, 2180-05-06), times as in DICOM (85437.343 or 08:54:37). In place of a date there may be a
    `study_order` (1, 2 …, as CheXpert Plus has it). Without either no order is known, hence no prior; the same goes for
    two studies of one date without times.

    Raises:
        ValueError: a prior that belongs to another subject, or a date or time in another form.
    """
    by_id = {study.study_id: study for study in studies}
    by_subject: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        by_subject[study.subject_id].append(study)
    moments = {study.study_id: _moment(study) for study in studies}
    priors = {}
    for study in studies:
        if "prior" in study.extra:
            prior = by_id.get(study.extra["prior"])
            if prior is not None and prior.subject_id != study.subject_id:
                raise RadDraftError(
                    f"Study {study.study_id!r}: its prior {prior.study_id!r} is of subject {prior.subject_id!r}, not "
                    f"{study.subject_id!r}"
                )
        else:
            now = moments[study.study_id]
            earlier = [other for other in by_subject[study.subject_id] if _precedes(moments[other.study_id], now)]
            prior = max(earlier, key=lambda other: _order(moments[other.study_id]), default=None)
        if prior is not None and prior is not study:
            priors[study.study_id] = prior
    return priors


Moment = tuple[int | None, float | None]
"""Date as a number like 21800506, or place in the order; time of day as a number like 85437.343. None: not stated."""


def _moment(study: Study) -> Moment:
    date = _number(study, "study_date", "-")
    if date is None:
        date = _number(study, "study_order", "-")
    return None if date is None else int(date), _number(study, "study_time", ":")


def _number(study: Study, key: str, separator: str) -> float | None:
    value: Any = study.extra.get(key)
    if value is None or value == "":
        return None
    try:
        return float(str(value).replace(separator, ""))
    except ValueError:
        raise RadDraftError(f"Study {study.study_id!r}: {key} is {value!r}; expected digits") from None


def _precedes(first: Moment, second: Moment) -> bool:
    """Whether it is known that `first` comes before `second`."""
    if first[0] is None or second[0] is None:
        return False
    if first[0] != second[0]:
        return first[0] < second[0]
    return first[1] is not None and second[1] is not None and first[1] < second[1]


def _order(moment: Moment) -> tuple[int, float]:
    return moment[0] or 0, moment[1] or 0.0
