"""TRL's SFTTrainer on a saved folder: it learns the same tokens and computes the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from generator.config import ModelConfig
from generator.data import IGNORE
from generator.drafter import Drafter
from generator.model import build, load, save
from generator.prompts import PromptConfig
from generator.train import summed_loss
from raddraft.studies import Study, read_studies
from tests.test_model import save_lm
from tests.test_templates import DATED, THINKING, with_template

trl = pytest.importorskip("trl", reason="pip install trl")
datasets = pytest.importorskip("datasets")


def rows(drafter: Drafter, studies: list[Study], form: str) -> list[dict[str, Any]]:
    """The studies as conversations in one of TRL's forms."""
    found = []
    for study in studies:
        asked = drafter.prompt.messages(study)
        answer = [{"role": "assistant", "content": [{"type": "text", "text": drafter.prompt.answer(study)}]}]
        turns = {"messages": [*asked, *answer]} if form == "messages" else {"prompt": asked, "completion": answer}
        found.append(turns | {"images": [Image.open(study.main_image.path).convert("RGB")]})
    return found


@pytest.mark.parametrize("form", ["prompt-completion", "messages"])
@pytest.mark.parametrize(
    "lm", ["Llama-bos", "Qwen3-chatml", "Gemma3-bos", "Phi3-chatml", "GPT2-plain", "Llama-dated", "Llama-thinking"]
)
def test_labels_and_loss_are_ours(tower_folder, studies_file, tmp_path: Path, lm, form) -> None:
    folder = save_lm(lm, tmp_path / "lm")
    if lm in ("Llama-dated", "Llama-thinking"):
        with_template(DATED if lm == "Llama-dated" else THINKING).save_pretrained(folder)
    torch.manual_seed(0)
    prompt = PromptConfig(context=["indication"])
    save(Drafter(*build(ModelConfig(str(tower_folder), str(folder))), prompt), tmp_path / "model")
    drafter = load(tmp_path / "model")
    studies = read_studies(studies_file)[:6]
    examples = drafter.encode(studies, answers=True)
    dataset = drafter.dataset(examples)
    batch = dataset.collate([dataset[row] for row in range(len(studies))])
    with torch.no_grad():
        ours = summed_loss(drafter.model, batch, torch.device("cpu")).item() / examples.learned(range(len(studies)))

    config = trl.SFTConfig(
        str(tmp_path / "trl"),
        assistant_only_loss=form == "messages",
        per_device_train_batch_size=len(studies),
        per_device_eval_batch_size=len(studies),
        max_steps=1,
        learning_rate=1e-9,
        max_length=None,
        report_to="none",
        use_cpu=True,
        gradient_checkpointing=False,
        bf16=False,
    )
    given = datasets.Dataset.from_list(rows(drafter, studies, form))
    trainer = trl.SFTTrainer(str(tmp_path / "model"), args=config, train_dataset=given, eval_dataset=given)
    theirs = trainer.data_collator([dict(row) for row in given])
    for labels, ids, example in zip(theirs["labels"], theirs["input_ids"], examples, strict=True):
        assert labels[labels != IGNORE].tolist() == example.answer
        assert ids[: len(example)].tolist() == [*example.prompt, *example.answer]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ours, abs=1e-5)
    trainer.train()
    trainer.save_model(str(tmp_path / "again"))
    assert (tmp_path / "again" / "model.safetensors").is_file()
