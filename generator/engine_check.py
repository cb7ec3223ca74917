"""Whether a server that decodes has this project's model: the texts of both are compared before it is relied upon.

Equal prompts do not tell, since other models have the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from generator.config import DecodeConfig
from generator.corpora.phantom.files import make_studies
from generator.drafter import Drafter
from generator.engine import Engine, EngineError
from generator.generate import check_elsewhere, decode, decode_elsewhere
from raddraft.errors import RadDraftError
from raddraft.studies import Study

SYNTHETIC = DecodeConfig(max_new_tokens=32, batch_size=4)
"""Drafts of synthetic films, which have to be quick."""
SIDE = 256
"""Of a synthetic film, in pixels."""


def connect(url: str | None, check: int | None, usual: int = 16) -> tuple[Engine | None, int]:
    """The server at an address, if one is given, and how many of its texts are to be compared with our own.

    Args:
        url: the address.
        check: that number, if it is given.
        usual: else this.

    Raises:
        RadDraftError: there is nothing to compare, or the server cannot be reached.
    """
    if url is None and check is not None:
        raise RadDraftError(f"--check {check} compares drafts of an --engine; leave it out")
    return (None, 0) if url is None else (Engine(url), usual if check is None else check)


def compare_engine(engine: Engine, drafter: Drafter, studies: Sequence[Study], config: DecodeConfig, count: int) -> str:
    """Have a server and this project's own decoder draft the first studies greedily, and tell how many texts are equal.

    Args:
        engine: the server.
        drafter: the model.
        studies: all that are to be drafted, among which are the priors of the first.
        config: how they are to be decoded; of this the lengths, and the number of requests at a time.
        count: of the studies that are drafted; those whose images cannot be read are left out.

    Raises:
        EngineError: fewer than half are equal, or the server fails.
        RadDraftError: no server can decode for this model, or not in this way.
    """
    check_elsewhere(drafter, config, None)
    greedy = DecodeConfig(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    examples = drafter.encode(studies, answers=False, reserve=greedy.max_new_tokens)
    own = {draft.study_id: draft.text for draft in decode(drafter, examples[:count], greedy) if not draft.error}
    if not own:
        raise EngineError(f"No image of the first {count} studies can be read, so {engine.url} cannot be checked")
    others = {study.study_id for study in studies} - own.keys()
    theirs = {
        draft.study_id: draft.text for draft in decode_elsewhere(engine, drafter, studies, examples, greedy, others)
    }
    different = [study_id for study_id, text in own.items() if theirs[study_id] != text]
    told = f"{len(own) - len(different)} of the first {len(own)} texts are those of this project's own decoder"
    told += f"; different: {', '.join(different[:10])}{' …' if different[10:] else ''}" if different else ""
    if 2 * len(different) > len(own):
        raise EngineError(
            f"{told}. {engine.url} seems to serve another model, or to round its weights (vLLM: --dtype float32); "
            "--check 0 relies on it all the same"
        )
    return told


def compare_synthetic(engine: Engine, drafter: Drafter, count: int) -> str:
    """`compare_engine` with synthetic films, which are removed again."""
    with TemporaryDirectory(prefix="raddraft-check-") as folder:
        studies = make_studies(Path(folder), count, SIDE, seed=0, dicoms=0, processes=1, show_sex=False)
        return compare_engine(engine, drafter, studies, SYNTHETIC, count)
