"""A study (and the one before it) -> the chat messages that ask for its report, and the answer to learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from metrics.rules import OBSERVATIONS, label
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage

# Used where the tokenizer of the language model brings no chat template.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}ASSISTANT:{{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Templates of language models expect plain strings; a processor hands over lists of parts. This prelude turns each
# message's parts into one string, an image into its placeholder.
_FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set part = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set part.text = message['content'] -%}{%- else -%}"
    "{%- for piece in message['content'] -%}"
    "{%- if piece['type'] == 'image' -%}{%- set part.text = part.text + 'IMAGE_TOKEN\n' -%}"
    "{%- else -%}{%- set part.text = part.text + piece['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': part.text}] -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
)

QUESTION = f"Which of these does this chest X-ray show? {', '.join(OBSERVATIONS)}."


@dataclass
class PromptConfig:
    """What the model is told, and what it is to write."""

    targets: list[str] = field(default_factory=lambda: ["findings"])
    """Sections of the report to write, in this order. With more than one, each is headed by its name."""
    context: list[str] = field(default_factory=list)
    """What the prompt carries beside the image: `view`, or any section (indication, comparison, technique). What a
    study lacks is absent from its prompt."""
    images: Literal["frontal", "pair", "all"] = "frontal"
    """Pictures of a study that go in: the first frontal one, the first lateral one too, or all of them, frontal before
    lateral before others. Where there is no frontal one, the first takes its place."""
    prior: bool = False
    """Whether the subject's previous study goes in, with its pictures (chosen alike) and its report; see
    `generator.priors.find_priors` for which one that is."""
    instruction: str | None = None
    """The request itself; by default "Describe the TARGETS of this chest X-ray."."""
    findings_first: bool = False
    """Two turns: the model first names which of the 14 CheXpert observations it sees, then writes the report (as M4CXR,
    arXiv 2408.16213). To learn from, the manifest's labels are taken, or where it has none those of the report's rules;
    what is uncertain is not named."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise RadDraftError("prompt.targets is empty: name at least one section to write, e.g. findings")
        both = set(self.targets) & set(self.context)
        if both:
            raise RadDraftError(
                f"prompt: {min(both)!r} is in targets and in context, so the answer would be given away"
            )

    def pictures(self, study: Study, prior: Study | None = None) -> list[StudyImage]:
        """The pictures of a study and then of its prior, in the order of the prompt."""
        return [image for one in self._shown(study, prior) for image in self._choose(one)]

    def messages(self, study: Study, prior: Study | None = None) -> list[dict[str, Any]]:
        """Chat messages that ask about `study`, with a placeholder for each of its `pictures`.

        They ask for its report, or with `findings_first` for its observations; `follow_up` then asks for the report.
        """
        content: list[dict[str, Any]] = []
        for one, when in zip(self._shown(study, prior), ("", "prior "), strict=False):
            for image in self._choose(one):
                if self.images != "frontal" or self.prior:  # else there is one picture, which needs no name
                    content.append({"type": "text", "text": f"{when}{_view_name(image)} image: ".capitalize()})
                content.append({"type": "image"})
        lines = []
        if self.prior and prior is not None and (report := self._report(prior)):
            lines.append(f"Prior report: {report}")
        for name in self.context:
            value = study.main_image.view if name == "view" else study.sections.get(name)
            if value and value.strip():
                lines.append(f"{name.capitalize()}: {value.strip()}")
        lines.append(QUESTION if self.findings_first else self._request)
        return [{"role": "user", "content": [*content, {"type": "text", "text": "\n".join(lines)}]}]

    def follow_up(self) -> dict[str, Any]:
        """The message that asks for the report once the observations are named."""
        return {"role": "user", "content": [{"type": "text", "text": self._request}]}

    def observations(self, study: Study) -> str:
        """The observations to name first: "Cardiomegaly, Edema", "No Finding" if that is so, else "None of these"."""
        known = any(study.labels.get(name) is not None for name in OBSERVATIONS)
        labels = study.labels if known else label(self._report(study))
        return ", ".join(name for name in OBSERVATIONS if labels.get(name) == 1) or "None of these"

    def answer(self, study: Study) -> str | None:
        """The text to learn, or None where the study lacks one of the sections."""
        return self._report(study) if all(study.sections.get(name, "").strip() for name in self.targets) else None

    @property
    def _request(self) -> str:
        return self.instruction or f"Describe the {' and '.join(self.targets)} of this chest X-ray."

    def _report(self, study: Study) -> str:
        """Those of the target sections that a study has."""
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
        frontal = [image for image in study.images if image.frontal]
        return [*frontal, *lateral, *(image for image in study.images if not image.frontal and not image.lateral)]


def _view_name(image: StudyImage) -> str:
    return "frontal" if image.frontal else "lateral" if image.lateral else "other"


def chat_template(tokenizer_template: str | None, image_token: str) -> str:
    """Chat template of the joined model: the language model's own (else a plain one), taking images too."""
    return _FLATTEN.replace("IMAGE_TOKEN", image_token) + (tokenizer_template or PLAIN_TEMPLATE)
