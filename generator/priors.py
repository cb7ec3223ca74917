"""Which study of a subject came before another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from raddraft.errors import RadDraftError
from raddraft.studies import Study, skim

Moment = tuple[int, float | None] | None
"""Date as a number like 21800506, or place in the order; time of day as a number like 85437.343, if it is known."""


def find_priors(studies: Sequence[Study]) -> dict[str, Study]:
    """The previous study of each study that has one among `studies`: study id -> previous study.

    The manifest's key `prior` names it by its study id, null for none. Without that key it is the subject's latest
    study with an earlier `study_date`, or an earlier `study_time` on the same date. Dates are written from year to day
    (21800506, 2180-05-06), times as in DICOM (85437.343 or 08:54:37). Instead of a date there may be a `study_order`
    (1, 2 …, as in CheXpert Plus). Studies whose order is unknown have no prior.

    Raises:
        RadDraftError: a prior that belongs to another subject, or a date or time in another form.
    """
    by_id = {study.study_id: study for study in studies}
    by_subject: dict[str, list[Study]] = defaultdict(list)
    for study in studies:
        by_subject[study.subject_id].append(study)
    moments, named = {}, {}
    for study in skim(studies):
        moments[study.study_id] = _moment(study)
        if "prior" in study.extra:
            prior_id = study.extra["prior"]
            if not isinstance(prior_id, str | None):
                raise RadDraftError(f"Study {study.study_id!r}: prior is {prior_id!r}; expected a study id or null")
            named[study.study_id] = prior_id
    priors = {}
    for study in studies:
        if study.study_id in named:
            prior = by_id.get(named[study.study_id] or "")
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


def prior_of(study: Study, priors: Mapping[str, Study]) -> Study | None:
    """A study's prior as `find_priors` gave it: a copy, so that what is read of it is not kept."""
    return copy(priors[study.study_id]) if study.study_id in priors else None


def _moment(study: Study) -> Moment:
    numbers: dict[str, float | None] = {}
    for key, separator in (("study_date", "-"), ("study_order", "-"), ("study_time", ":")):
        value: Any = study.extra.get(key)
        try:
            number = None if value in (None, "") else float(str(value).replace(separator, ""))
        except ValueError:
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise RadDraftError(f"Study {study.study_id!r}: {key} is {value!r}; expected digits")
        numbers[key] = number
    date = numbers["study_order"] if numbers["study_date"] is None else numbers["study_date"]
    return None if date is None else (int(date), numbers["study_time"])


def _precedes(first: Moment, second: Moment) -> bool:
    """Whether it is known that `first` comes before `second`."""
    if first is None or second is None or first[0] != second[0]:
        return first is not None and second is not None and first[0] < second[0]
    return first[1] is not None and second[1] is not None and first[1] < second[1]


def _order(moment: Moment) -> tuple[int, float]:
    return (0, 0.0) if moment is None else (moment[0], moment[1] or 0.0)
