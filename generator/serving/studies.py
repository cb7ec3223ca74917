"""A request with its pictures -> the example that the model reads, if both are what its prompt asks for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from generator.api import Model
from generator.card import IMAGES
from generator.clinic.grouping import several_patients
from generator.config import DecodeConfig
from generator.data import Example
from generator.drafter import Drafter
from generator.prompts import QUESTION, PromptConfig
from generator.serving.pictures import Picture
from generator.serving.wire import Asked, StudyFields, Views
from generator.web import Refused
from raddraft.studies import Study, StudyImage
from raddraft.views import direction, name_view

NAME = re.compile(r"((prior )?(frontal|lateral|other) image:)?", re.IGNORECASE)
"""What the prompt itself puts before an image, or nothing."""
MARK = re.compile(r"\s*<image>|.*<image>\s*$", re.DOTALL)
"""Where a text marks the place of images."""
MOST_BYTES = 32
"""Of text for each token of the context; more is refused before it is tokenized."""
ENCODING = Lock()
"""A tokenizer is not to be used by two threads."""


@dataclass
class Ready:
    """What can be drafted."""

    example: Example
    images: list[Image.Image]
    """In the order of the prompt."""
    warnings: list[str]
    """Of the reader, about the pictures."""
    messages: list[dict[str, Any]]
    """The prompt, as `PromptConfig.messages` gives it."""


def prepare(
    model: Model, asked: Asked, pictures: Sequence[Picture], priors: Sequence[Picture], config: DecodeConfig
) -> Ready:
    """Check a request against the model's prompt, and tokenize it.

    Args:
        model: the model.
        asked: the request.
        pictures: its images, read.
        priors: the images of the subject's previous study.
        config: how to decode.

    Raises:
        Refused: other images, another order or other fields than the model reads.
        RadDraftError: the prompt is too long.
    """
    prompt, fields = model.drafter.prompt, asked.study
    text = read_parts(prompt, asked.parts)
    _check_fields(model, fields)
    study = Study("request", "subject", "test", _images(pictures, fields.view, "image"))
    study.sections = fields.sections | ({"indication": fields.indication} if fields.indication else {})
    studies = [study]
    if fields.prior:
        images = _images(priors, fields.prior.view, "prior image")
        studies.append(Study("prior", study.subject_id, "test", images, fields.prior.sections))
        study.extra["prior"] = "prior"
    _check_images(prompt, studies)
    _check_names(asked.parts, study.images)
    _check_size(model.drafter.context_length, [text, *(value for one in studies for value in one.sections.values())])
    if len(pictures) + len(priors) > 1 and several_patients([one.patient for one in (*pictures, *priors)]):
        raise Refused(400, "By their headers the images are of several patients.")
    drafter = _with_text(model.drafter, text)
    with ENCODING:
        example = drafter.encode(studies, answers=False, reserve=config.max_new_tokens)[0]
    read = [*pictures, *priors]
    told = [warning for one in read for warning in one.warnings]
    return Ready(example, [one.image for one in read], told, drafter.prompt.messages(*studies))


def read_parts(prompt: PromptConfig, parts: Sequence[str | None]) -> str:
    """The text of a message, of whose parts None is an image; empty where it has none, or that of the prompt.

    Raises:
        Refused: text and images stand in another order than in the prompt.
    """
    kept = [
        part
        for part, following in itertools.pairwise([*parts, ""])
        if part is None or not (NAME.fullmatch(part.strip()) if following is None else not part.strip())
    ]
    n_images, images_first = kept.count(None), not prompt.images_last
    texts = [part for part in kept if part is not None]
    if kept != ([None] * n_images + texts if images_first else [*texts, *[None] * n_images]):
        order = "images first, then the text" if images_first else "the text first, then the images"
        raise Refused(400, f"The model reads {order}; the message has them in another order, and would be misread.")
    text = "".join(texts)
    if MARK.match(text):
        raise Refused(400, "The text marks the place of an image by <image>; images are parts of the message.")
    own = {prompt.request, QUESTION} if prompt.findings_first else {prompt.request}
    if text.strip() in own:
        return ""
    if text and prompt.findings_first:
        raise Refused(400, f"The model is asked in two turns; leave the text out, or send {prompt.request!r}")
    return text


def _with_text(drafter: Drafter, text: str) -> Drafter:
    """The drafter that is asked this in place of its request."""
    if not text:
        return drafter
    own = copy(drafter)
    mark = f"{text}<image>" if drafter.prompt.images_last else text
    own.prompt = replace(drafter.prompt, instruction=mark)
    return own


def _check_fields(model: Model, fields: StudyFields) -> None:
    prompt = model.drafter.prompt
    views = [fields.view, fields.prior.view if fields.prior else None]
    model.check_used(fields.indication, "; ".join(str(view) for view in views if view) or None)
    if fields.indication is not None and "indication" in fields.sections:
        raise Refused(400, "The indication is given twice, as study.indication and in study.sections; send one of them")
    known = [name for name in prompt.context if name != "view"]
    if unknown := [name for name in fields.sections if name not in known]:
        raise Refused(400, f"The model does not read the section {unknown[0]!r}. Choices: {', '.join(known) or 'none'}")
    if fields.prior is None:
        return
    if not prompt.prior:
        raise Refused(400, "The model does not read the prior study; leave it out.")
    if unknown := [name for name in fields.prior.sections if name not in prompt.targets]:
        raise Refused(
            400, f"The model does not read the prior's section {unknown[0]!r}. Choices: {', '.join(prompt.targets)}"
        )


def _images(pictures: Sequence[Picture], views: Views, name: str) -> list[StudyImage]:
    """The images of a study with their views, stated by their headers or given."""
    given = [views] if isinstance(views, str) else views
    if given is not None and pictures and len(given) != len(pictures):
        raise Refused(400, f"{len(given)} views are given for {len(pictures)} of kind {name}; give one for each.")
    images = []
    for number, picture in enumerate(pictures, 1):
        own, view = given[number - 1] if given else None, None
        if own is not None and (view := name_view(own)) is None:
            raise Refused(400, f"Unknown view {own!r} of {name} {number}. Choices: PA, AP, LATERAL")
        if view and picture.view and _differ(view, picture.view):
            raise Refused(400, f"{name.capitalize()} {number} is given as {view}; its header states {picture.view}.")
        if picture.view and not (view and picture.view == "FRONTAL"):
            view = picture.view
        images.append(StudyImage(Path(f"{name} {number}"), view))
    return images


def _differ(view: str, stated: str) -> bool:
    """Whether two views contradict each other."""
    sides = [{"PA", "AP"}.intersection(one.split()) for one in (view, stated)]
    return direction(view) != direction(stated) or (all(sides) and sides[0] != sides[1])


def _check_images(prompt: PromptConfig, studies: Sequence[Study]) -> None:
    """Raise Refused unless all images are read, in their order."""
    reads = f"The model reads {IMAGES[prompt.images]}"
    for study in studies:
        whose = "the prior study" if study.study_id == "prior" else "the request"
        if not study.images:
            raise Refused(400, f"{reads}; {whose} has no image.")
        main = study.main_image
        if prompt.images != "all" and main.direction in ("lateral", "other"):
            raise Refused(400, f"{reads}; {whose} has no frontal ({main.view}).")
        chosen = prompt.choose_images(study)
        if len(chosen) != len(study.images):
            views = ", ".join(image.view or "view not stated" for image in study.images)
            raise Refused(400, f"{reads}; {whose} has {len(study.images)} images ({views}).")
        if [image.path for image in chosen] != [image.path for image in study.images]:
            order = "frontals, views that are not stated, laterals, others"
            raise Refused(400, f"{reads}, in this order: {order}; {whose} has another.")


def _check_names(parts: Sequence[str | None], images: Sequence[StudyImage]) -> None:
    """Raise Refused if an image of the message is named otherwise than the prompt names it."""
    before = [text for text, part in itertools.pairwise(["", *parts]) if part is None]
    for number, (text, image) in enumerate(zip(before, images, strict=False), 1):
        name, own = (text or "").strip(), f"{image.direction or 'frontal'} image:"
        if name and NAME.fullmatch(name) and name.lower() != own:
            raise Refused(400, f"The message names image {number} {name!r}; the model reads it as {own!r}")


def _check_size(context: int | None, texts: Sequence[str]) -> None:
    """Raise Refused if texts are so long that to tokenize them would hold up others."""
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if context is not None and size > MOST_BYTES * context:
        raise Refused(400, f"The texts have {size:,} bytes and exceed the context of {context} tokens by far.")
