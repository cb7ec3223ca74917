"""A study (and its prior) -> the chat messages that ask for its report, and the answer to learn."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from metrics.rules import OBSERVATIONS, label
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage

# LLaVA's data write where the images stand into the request, before or after it.
_IMAGES_FIRST = re.compile(r"(\s*<image>\s*)+")
_IMAGE = "<image>"

QUESTION = f"Which of these does this chest X-ray show? {', '.join(OBSERVATIONS)}."


@dataclass
class PromptConfig:
    """What the model is asked, and what it is to write."""

    targets: list[str] = field(default_factory=lambda: ["findings"])
    """Report sections to write, in this order; several are headed by their names."""
    context: list[str] = field(default_factory=list)
    """What the prompt holds besides the images: view, or any section (indication, comparison, technique …), as far as a
    study has it."""
    images: Literal["frontal", "pair", "all"] = "frontal"
    """Images of a study in the prompt: the first frontal one (of studies without one, the first whose view is not
    stated, else the first image), a pair with the first lateral one, or all: stated frontals, views that are not
    stated, laterals, others."""
    prior: bool = False
    """Add the subject's previous study, its images (chosen alike) and its report; the manifest states the order of
    studies by `prior`, `study_date` or `study_order`."""
    instruction: str | None = None
    """The request; by default "Describe the TARGETS of this chest X-ray.". <image> before or after it tells where the
    images stand, by default before; elsewhere in it, as in every text, it is text."""
    findings_first: bool = False
    """Two turns: the model names the CheXpert observations it sees, then writes the report (as M4CXR, arXiv
    2408.16213). It learns from the manifest's positive labels, or those of the rule-based labeler if there are none."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise RadDraftError("prompt.targets is empty: name at least one section to write, e.g. findings")
        both = set(self.targets) & set(self.context)
        if both:
            raise RadDraftError(f"prompt: {min(both)!r} is in targets and in context, which gives the answer away")

    @classmethod
    def read(cls, saved: Mapping[str, Any], where: str | Path) -> PromptConfig:
        """The prompt that was saved with a model in `where`; raises RadDraftError if it is not one of this version."""
        known = {field.name for field in fields(cls)}
        if not isinstance(saved, Mapping):
            raise RadDraftError(f"{where}: its prompt is damaged: expected an object, got {saved!r}")
        if unknown := sorted(saved.keys() - known):
            raise RadDraftError(
                f"{where} was written by another version of RadDraft (its prompt has {unknown[0]}, which is not an "
                "option any more); use it with that version, or train it anew elsewhere"
            )
        try:
            return msgspec.convert(saved, cls)
        except (msgspec.ValidationError, UnicodeError) as error:  # RadDraftErrors of __post_init__, too
            raise RadDraftError(f"{where}: its prompt is damaged: {error}") from None

    def choose_images(self, study: Study, prior: Study | None = None) -> list[StudyImage]:
        """The images of a study, then of its prior, in the order of the prompt."""
        return [image for one in self._shown(study, prior) for image in self._choose(one)]

    def messages(self, study: Study, prior: Study | None = None) -> list[dict[str, Any]]:
        """Chat messages that ask for a study's report, with a placeholder for each of its images.

        With `findings_first` they ask for its observations; `follow_up` then asks for the report.
        """
        images: list[dict[str, Any]] = []
        for one, when in zip(self._shown(study, prior), ("", "prior "), strict=False):
            for image in self._choose(one):
                if self.images != "frontal" or self.prior:  # else there is one image, which needs no name
                    images.append({"type": "text", "text": f"{when}{_view_name(image)} image: ".capitalize()})
                images.append({"type": "image"})
        lines = []
        if self.prior and prior is not None and (report := self._report(prior)):
            lines.append(f"Prior report: {report}")
        for name in self.context:
            value = study.main_image.view if name == "view" else study.sections.get(name)
            if value and value.strip():
                lines.append(f"{name.capitalize()}: {value.strip()}")
        lines.append(QUESTION if self.findings_first else self.request)
        text = "\n".join(lines)
        if self.images_last:
            return [{"role": "user", "content": [{"type": "text", "text": f"{text}\n"}, *images]}]
        return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]

    def follow_up(self) -> dict[str, Any]:
        """The message that asks for the report after the observations."""
        return {"role": "user", "content": [{"type": "text", "text": self.request}]}

    def observations(self, study: Study) -> str:
        """The observations to name first: "Cardiomegaly, Edema", "No Finding" or "None of these"."""
        labels = study.labels if _is_labeled(study) else label(self._report(study))
        return ", ".join(name for name in OBSERVATIONS if labels.get(name) == 1) or "None of these"

    def warn_of_observations(self, studies: Iterable[Study]) -> None:
        """Warn where the rule-based labeler would name the observations of reports that it cannot read."""
        from metrics.caveats import MOST_FOREIGN, percent, unreadable

        reports = [self._report(study) for study in studies if not _is_labeled(study)]
        share = unreadable(reports)["reports"]
        if share > MOST_FOREIGN:
            warnings.warn(
                f"prompt.findings_first: {percent(share)} of {len(reports)} reports without labels hold hardly an "
                "English word, so the rule-based labeler finds nothing in them and the model learns to say No Finding; "
                "put labels into the manifest",
                stacklevel=2,
            )

    def answer(self, study: Study) -> str | None:
        """The text to learn; None if the study lacks one of the target sections."""
        return self._report(study) if all(study.sections.get(name, "").strip() for name in self.targets) else None

    @property
    def request(self) -> str:
        """The request for the report, without the marks of images."""
        own = self.instruction or ""
        own = own[found.end() :] if (found := _IMAGES_FIRST.match(own)) else _without_last_images(own)
        return own or f"Describe the {' and '.join(self.targets)} of this chest X-ray."

    @property
    def images_last(self) -> bool:
        """Whether the images stand behind the text."""
        own = self.instruction or ""
        return not _IMAGES_FIRST.match(own) and own.rstrip().endswith(_IMAGE)

    def _report(self, study: Study) -> str:
        """The target sections that a study has, as one text."""
        texts = {name: study.sections.get(name, "").strip() for name in self.targets}
        if len(texts) == 1:
            return texts[self.targets[0]]
        return "\n".join(f"{name.capitalize()}: {text}" for name, text in texts.items() if text)

    def _shown(self, study: Study, prior: Study | None) -> list[Study]:
        return [study, prior] if self.prior and prior is not None else [study]

    def _choose(self, study: Study) -> list[StudyImage]:
        if self.images == "frontal":
            return [study.main_image]
        lateral = [image for image in study.images if image.lateral]
        if self.images == "pair":
            return [study.main_image, *(image for image in lateral[:1] if image is not study.main_image)]
        return sorted(study.images, key=lambda image: ("frontal", None, "lateral", "other").index(image.direction))


def _without_last_images(text: str) -> str:
    """A text without the marks of images at its end."""
    while (kept := text.rstrip()).endswith(_IMAGE):
        text = kept.removesuffix(_IMAGE).rstrip()
    return text


def _is_labeled(study: Study) -> bool:
    """Whether the manifest says anything of the observations."""
    return any(study.labels.get(name) is not None for name in OBSERVATIONS)


def _view_name(image: StudyImage) -> str:
    return "frontal" if image.frontal else "lateral" if image.lateral else "other"
