"""The decoding part of `raddraft bench`: each way to draft against plain transformers, one study at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.metrics import timed
from generator.config import DecodeConfig
from generator.generate import decode
from generator.model import Drafter
from generator.speculate import Speculator, index_reports
from raddraft.studies import Study

N_CANDIDATES = 8


def bench_decoding(drafter: Drafter, studies: Sequence[Study], training: Sequence[Study], batch_size: int) -> bool:
    """Print the ratios; return whether all greedy texts are equal.

    Args:
        drafter: the model.
        studies: what to draft.
        training: whose reports tokens are proposed from.
        batch_size: studies drafted together.
    """
    config = DecodeConfig(batch_size=1)
    batches = replace(config, batch_size=batch_size)
    plain_drafts(drafter, studies[:2], config)  # the first call pays for lazy set-up
    index_seconds, _ = timed(lambda: index_reports(drafter, training))
    plain_seconds, plain = timed(lambda: plain_drafts(drafter, studies, config))
    print(f"decoding {len(studies)} studies; an index of {len(training)} reports takes {index_seconds:.1f} s")
    print(f"  one by one, plain transformers: {plain_seconds:.1f} s")
    equal = True
    for name, setting, speculates in (
        ("one by one, tokens proposed", config, True),
        (f"in batches of {batch_size}", batches, False),
        (f"in batches of {batch_size}, tokens proposed", batches, True),
    ):
        speculator = Speculator(index_reports(drafter, training)) if speculates else None
        seconds, texts = timed(partial(_drafts, drafter, studies, setting, speculator))
        count = sum(ours == theirs for ours, theirs in zip(texts, plain, strict=True))
        equal &= count == len(studies)
        print(f"  {name}: {seconds:.1f} s, {plain_seconds / seconds:.1f} times as fast; {count} texts are equal")
    _bench_candidates(drafter, studies[:200], config, batches)
    return equal


def _bench_candidates(drafter: Drafter, studies: Sequence[Study], *configs: DecodeConfig) -> None:
    """Several candidates against one, both sampled in the same way, in turns, so that both meet the same machine."""
    for config in configs:
        one = replace(config, sample=True, temperature=0.5)
        several = replace(one, candidates=N_CANDIDATES)
        seconds = {1: 0.0, N_CANDIDATES: 0.0}
        for at in range(0, len(studies), max(10, config.batch_size)):
            part = studies[at : at + max(10, config.batch_size)]
            for setting in (one, several):
                seconds[setting.candidates] += timed(partial(_drafts, drafter, part, setting))[0]
        print(
            f"  {N_CANDIDATES} candidates of {len(studies)} studies in batches of {config.batch_size}: "
            f"{seconds[N_CANDIDATES] / seconds[1]:.1f} times the {seconds[1]:.1f} s of one"
        )


def _drafts(
    drafter: Drafter, studies: Sequence[Study], config: DecodeConfig, speculator: Speculator | None = None
) -> list[str]:
    examples = drafter.encode(studies, answers=False, reserve=config.max_new_tokens)
    return [draft.text for draft in decode(drafter, examples, config, speculator=speculator)]


def plain_drafts(drafter: Drafter, studies: Sequence[Study], config: DecodeConfig) -> list[str]:
    """What a user of plain transformers would write: one study at a time."""
    from PIL import Image

    model: Any = drafter.model
    processor = drafter.processor
    texts = []
    for study in studies:
        messages = drafter.prompt.messages(study)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        image = Image.open(study.main_image.path).convert("RGB")
        inputs = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=config.max_new_tokens)[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(tokens, skip_special_tokens=True).strip())
    return texts
