"""A study -> the chat messages that ask for its report, and the answer that a model should learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from encoder.studies import Study, StudyImage

# Used where the tokenizer of the language model brings no chat template.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}ASSISTANT: {{ message['content'] }}{{ eos_token }}\n"
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


@dataclass
class PromptConfig:
    """What the model is told, and what it is to write."""

    targets: list[str] = field(default_factory=lambda: ["findings"])
    """Sections of the report to write, in this order. With more than one, each is headed by its name."""
    context: list[str] = field(default_factory=list)
    """What the prompt carries beside the image: `view`, or any section (indication, comparison, technique). What a
    study lacks is absent from its prompt."""
    instruction: str | None = None
    """The request itself; by default "Describe the TARGETS of this chest X-ray."."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("prompt.targets is empty: name at least one section to write, e.g. findings")
        both = set(self.targets) & set(self.context)
        if both:
            raise ValueError(f"prompt: {min(both)!r} is in targets and in context, so the answer would be given away")

    def messages(self, study: Study, image: StudyImage) -> list[dict[str, Any]]:
        """Chat messages that ask for the report of `study` on the picture `image`."""
        lines = []
        for name in self.context:
            value = image.view if name == "view" else study.sections.get(name)
            if value and value.strip():
                lines.append(f"{name.capitalize()}: {value.strip()}")
        lines.append(self.instruction or f"Describe the {' and '.join(self.targets)} of this chest X-ray.")
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\n".join(lines)}]}]

    def answer(self, study: Study) -> str | None:
        """The text to learn, or None where the study lacks one of the sections."""
        texts = [study.sections.get(name, "").strip() for name in self.targets]
        if not all(texts):
            return None
        if len(texts) == 1:
            return texts[0]
        return "\n".join(f"{name.capitalize()}: {text}" for name, text in zip(self.targets, texts, strict=True))


def chat_template(tokenizer_template: str | None, image_token: str) -> str:
    """Chat template of the joined model: the language model's own (else a plain one), taking images too."""
    return _FLATTEN.replace("IMAGE_TOKEN", image_token) + (tokenizer_template or PLAIN_TEMPLATE)
