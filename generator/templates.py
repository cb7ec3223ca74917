"""The chat template of a model folder: a language model's own, or a plain one, that takes images and marks the answer.

The answer at the end of a conversation is written as it is learned: behind what the template puts before an answer, the
text and the end token, and nothing else. These stand between generation markers, so that other trainers (TRL's
`completion_only_loss` and `assistant_only_loss`) compute the loss of the same tokens. Earlier answers are written by
the language model's template.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any

# For language models whose tokenizer has no chat template.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}"
    "ASSISTANT:{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Templates of language models take strings, but a processor passes lists of parts: this prelude turns the parts of each
# message into one string, an image into its placeholder. It keeps an answer at the end for the close.
_PRELUDE = (
    "{%- set flat = namespace(messages=[], answer=none) -%}{%- for message in messages -%}"
    "{%- set part = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set part.text = message['content'] -%}{%- else -%}"
    "{%- for piece in message['content'] -%}"
    "{%- if piece['type'] == 'image' -%}{%- set part.text = part.text + 'IMAGE_TOKEN\n' -%}"
    "{%- else -%}{%- set part.text = part.text + piece['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if loop.last and not loop.first and message['role'] == 'assistant' and not add_generation_prompt -%}"
    "{%- set flat.answer = part.text -%}{%- else -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': part.text}] -%}{%- endif -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
    "{%- if flat.answer is not none -%}{%- set add_generation_prompt = true -%}{%- endif -%}"
)
_CLOSE = (
    "{%+ if flat.answer is not none %}{% generation %}{{ flat.answer }}{{ eos_token }}{% endgeneration %}{%+ endif %}"
)

TODAY = date(2024, 7, 26)
"""What templates that state the date of today state: the date that those of Llama 3.1 and 3.2 fall back on."""


def chat_template(tokenizer: Any, image_token: str) -> str:
    """The chat template of a language model's tokenizer (or a plain one), extended to images.

    Its date of today is `TODAY`. A prompt begins with the BOS token where the template puts one there or the tokenizer
    begins every text with it. A template that this function wrote is kept as it is.
    """
    own = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN_TEMPLATE
    prelude = _PRELUDE.replace("IMAGE_TOKEN", image_token)
    if prelude in own and own.endswith(_CLOSE):
        return own
    # Jinja drops the last newline of a template, which is not the last one any more.
    template = prelude + own.removesuffix("\n") + _CLOSE
    if _begins_with_bos(tokenizer) and not _prompt(tokenizer, template).startswith(tokenizer.bos_token):
        template = "{{ bos_token }}" + template
    return pin_date(template)


def pin_date(template: Any) -> Any:
    """A template that always states `TODAY` as the date of today; whatever does not ask for the date is as it was.

    With the date of today a model would be trained, drafted with and resumed with prompts that differ.
    """
    if not isinstance(template, str) or "strftime_now" not in template or template.startswith(_MACRO):
        return template
    codes = sorted(set(re.findall(r"(?<!{)%-?[A-Za-z]", template)))
    filters = "".join(f" | replace('{code}', '{TODAY.strftime(code)}')" for code in codes)
    return f"{_MACRO}{{{{ format{filters} }}}}{{%- endmacro -%}}{template}"


_MACRO = "{%- macro strftime_now(format) -%}"  # in place of the function that transformers gives to templates


def _begins_with_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _prompt(tokenizer: Any, template: str) -> str:
    messages = [{"role": "user", "content": "a"}]
    return tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
