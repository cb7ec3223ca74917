"""Whether test images are known already: to a probe from its train split, to a tower from its pre-training.

warnings = check_leaks(split_groups(studies), hashes=Path("images.sha256"))
warnings += check_copies(split_groups(studies), paths)  # an error where a test film is a train film, saved again
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoder.config import EncoderConfig
from encoder.digests import digest_files
from encoder.looks import find_looks, small_copy
from encoder.seen import Seen, count_seen, training_of
from encoder.survey import SAME_DETAILS, SIDE, details, near_pairs
from raddraft.errors import RadDraftError
from raddraft.splits import unknown_patients
from raddraft.studies import PHANTOM, SPLITS, GrayMapping, Study

MOST_NAMED = 20
"""Copies that a refusal lists."""


class LeakError(RadDraftError):
    """Test films are also train films; the message names the first, `table` more of them."""


@dataclass(frozen=True)
class Film:
    """An image in a split or fold."""

    path: Path
    study: Study
    group: str

    def __str__(self) -> str:
        return f"study {self.study.study_id} of {self.group} ({self.path.name})"


@dataclass(frozen=True)
class Copy:
    """Two films that look the same."""

    tested: Film
    trained: Film
    bits: int
    """Of 256 bits of the perceptual hash those that differ."""
    alike: float
    """Correlation of details, see `encoder.survey.details`; 1 for equal files, 0 for films too small to have any."""
    is_same_file: bool
    """Whether their files have the same content."""

    @property
    def are_phantoms(self) -> bool:
        """Whether both are computed: different ones may agree in all details."""
        return self.tested.study.source == self.trained.study.source == PHANTOM

    @property
    def is_sure(self) -> bool:
        """Whether one is a copy of the other, saved again or resized, and not only near."""
        return self.is_same_file or (self.alike >= SAME_DETAILS and not self.are_phantoms)

    def __str__(self) -> str:
        how = "the same file" if self.is_same_file else f"{self.bits} of 256 bits differ"
        return f"{self.tested} shows {self.trained}: {how}"


def check_leaks(
    groups: Mapping[str, Sequence[Study]],
    hashes: Path | None = None,
    features: Path | None = None,
) -> list[str]:
    """A sentence for each way in which test images may be known already; none if all is well.

    Args:
        groups: name of a split or fold -> its studies; they should share neither subjects nor images.
        hashes: a text file with the SHA-256 of a tower's pre-training images, one per line, as `sha256sum` writes it.
        features: folder of stored features, whose record of digests saves reading the images again.

    Raises:
        RadDraftError: a line of `hashes` does not start with a SHA-256 digest.
    """
    found = unknown_patients(groups)
    subjects: dict[str, set[str]] = {}
    images: dict[Path, set[str]] = {}
    for group, studies in groups.items():
        for study in studies:
            subjects.setdefault(study.subject_id, set()).add(group)
            for image in study.images:
                images.setdefault(image.path, set()).add(group)
    if several := [subject for subject, where in subjects.items() if len(where) > 1]:
        where = " and ".join(sorted(subjects[several[0]]))
        found.append(f"{len(several)} subjects are in more than one split, e.g. {several[0]!r} in {where}")
    with _folder(features) as folder:
        digests = digest_files(list(images), folder)
    contents: dict[str, list[Path]] = {}
    for path, digest in zip(images, digests, strict=True):
        if digest:
            contents.setdefault(digest, []).append(path)
    if unread := digests.count(None):
        found.append(f"{unread} images cannot be read, and were not checked")
    places = {digest: set().union(*(images[path] for path in paths)) for digest, paths in contents.items()}
    if shared := [digest for digest, where in places.items() if len(where) > 1]:
        example = ", ".join(f"{path} ({' and '.join(sorted(images[path]))})" for path in contents[shared[0]])
        found.append(f"{len(shared)} images are in more than one split with the same content, e.g. {example}")
    if hashes:
        test = {digest for digest, where in places.items() if "test" in where}
        if met := len(read_hashes(hashes) & test):
            found.append(f"{met} of {len(test)} test images were in the tower's pre-training, by {hashes.name}")
    return found


@dataclass
class Told:
    """What `look_for_leaks` found."""

    seen: Seen
    warnings: list[str]

    def to_dict(self) -> dict[str, object]:
        """For JSON; what the tower had in training is there where it had, or may have had, some, or that is unknown."""
        return {"warnings": self.warnings} | ({"seen": self.seen.to_dict()} if self.seen.tell() else {})


def look_for_leaks(
    studies: Sequence[Study],
    paths: Collection[Path],
    encoder: EncoderConfig,
    known_as: str = "",
    hashes: Path | None = None,
    refuse: bool = True,
) -> Told:
    """All that is known about test films before one tower is measured on them: `check_leaks`, `check_copies` and the
    tower's training.

    Args:
        studies: of all splits.
        paths: the images that are trained and tested on.
        encoder: the tower; without one, `features` is a folder of stored features.
        known_as: as `encoder.seen.training_of`.
        hashes: as `check_leaks`.
        refuse: as `check_copies`.

    Raises:
        RadDraftError: as these.
    """
    wanted = set(paths)
    tested = [one for one in studies if one.split == "test" and any(image.path in wanted for image in one.images)]
    seen = count_seen(training_of(encoder.tower, known_as), tested)
    groups, features = split_groups(studies), encoder.features if encoder.tower else encoder.features.parent
    warnings = check_leaks(groups, hashes, features)
    warnings += check_copies(groups, paths, features, encoder.gray_mapping, refuse=refuse)
    return Told(seen, [*warnings, *seen.tell()])


def check_copies(
    groups: Mapping[str, Sequence[Study]],
    paths: Collection[Path],
    features: Path | None = None,
    gray_mapping: GrayMapping = "window",
    tested: Collection[str] = ("test",),
    trained: Collection[str] = ("train",),
    refuse: bool = True,
) -> list[str]:
    """Refuse test films that are train films: in the same file, saved again, resized or with another window.

    Copies are near-duplicates of `encoder.survey` whose details agree, too. Those whose details do not agree, as those
    of a film that was moved or cut may, are told. Computed phantoms are near one another: of two of them only equal
    files count, and the rest is not told. Nor are films with a side below 64 pixels refused for their look.

    Args:
        groups: name of a split or fold -> its studies.
        paths: the images that are trained and tested on.
        features: folder of stored features, whose lists of digests and hashes save reading the images again.
        gray_mapping: how gray values become 8 bits.
        tested: groups that are tested on.
        trained: groups that are trained on.
        refuse: raise an error; otherwise copies are told, too.

    Returns:
        Sentences to warn with.

    Raises:
        LeakError: there are copies, and `refuse`.
    """
    copies = find_copies(groups, paths, features, gray_mapping, tested, trained)
    sure = [copy for copy in copies if copy.is_sure]
    near = [copy for copy in copies if not copy.is_sure and not copy.are_phantoms]
    told = []
    if sure:
        films = {film.path for copy in sure for film in (copy.tested, copy.trained) if film.group in tested}
        told.append(f"{len(films)} test films are also train films, e.g. {sure[0]}")
    if sure and refuse:
        error = LeakError(
            f"{told[0]}. Take them out of one of the splits (`raddraft check` lists all), or measure all the same with "
            "--leaks tell"
        )
        error.table = "\n".join([*map(str, sure[:MOST_NAMED]), *(["…"] if len(sure) > MOST_NAMED else [])])
        raise error
    if near:
        told.append(f"{len(near)} test films look like train films, though not in detail, e.g. {near[0]}")
    return told


def find_copies(
    groups: Mapping[str, Sequence[Study]],
    paths: Collection[Path],
    features: Path | None = None,
    gray_mapping: GrayMapping = "window",
    tested: Collection[str] = ("test",),
    trained: Collection[str] = ("train",),
) -> list[Copy]:
    """Films of groups that are tested on which look like one of another group that is trained on, as `check_copies`."""
    wanted = set(paths)
    films = [
        Film(image.path, study, group)
        for group, studies in groups.items()
        if group in tested or group in trained
        for study in studies
        for image in study.images
        if image.path in wanted
    ]
    with _folder(features) as folder:
        digests = digest_files([film.path for film in films], folder)
        looks = find_looks([film.path for film in films], digests, folder, gray_mapping)
    rows = [(film, digest, looks[digest]) for film, digest in zip(films, digests, strict=True) if digest in looks]
    ours = [row for row in rows if row[0].group in tested]
    theirs = [row for row in rows if row[0].group in trained]
    small: dict[Path, np.ndarray] = {}

    def look_closer(film: Film) -> np.ndarray:
        if film.path not in small:
            seen = small_copy(film.path, gray_mapping, SIDE)
            small[film.path] = np.zeros(1) if seen is None else details(seen)
        return small[film.path]

    found: dict[frozenset[Path], Copy] = {}
    for one, other, bits in near_pairs(_stack(ours), _stack(theirs)):
        (film, digest, _), (known, same, _) = ours[one], theirs[other]
        pair = frozenset((film.path, known.path))
        if film.group == known.group or pair in found:
            continue
        alike = 1.0 if digest == same else float((look_closer(film) * look_closer(known)).sum())
        found[pair] = Copy(film, known, bits, alike, digest == same)
    return sorted(found.values(), key=lambda copy: copy.bits)


def _stack(rows: Sequence[tuple[Film, str | None, np.ndarray]]) -> np.ndarray:
    return np.array([look for _, _, look in rows], np.uint64).reshape(-1, 4)


@contextmanager
def _folder(features: Path | None) -> Iterator[Path]:
    """The folder of stored features, or one for the time being."""
    with tempfile.TemporaryDirectory() as temporary:
        yield features or Path(temporary)


def split_groups(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """Studies by split, as `check_leaks` takes them."""
    return {split: [study for study in studies if study.split == split] for split in SPLITS}


def read_hashes(path: Path) -> set[str]:
    """The SHA-256 digests of a text file. Raises RadDraftError for a line that does not begin with one."""
    found = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            digest = line.split()[0].lower()
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise RadDraftError(
                    f"{path.name} line {number}: {digest[:80]!r} is not a SHA-256 digest (64 hex digits)"
                )
            found.add(digest)
    return found
