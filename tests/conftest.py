"""Tiny real models and studies, made on the spot; nothing is downloaded."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small run faster on one thread, above all on a busy machine

ROOT = Path(__file__).resolve().parent.parent

FIRST = (
    # These start processes: one worker of pytest-xdist has the server that forks them.
    *("pretrain", "launch_anywhere", "train", "adapter", "serve", "read_server", "features", "dino", "reward_stage"),
    # These share `model_folder` with the last ones.
    *("generate", "ties", "reward", "speculate", "api", "draft", "model", "model_card", "rexrank_lists"),
    *("clinic_results", "clinic_pacs", "docs", "compare_report", "foreign", "compare", "demo"),
)
"""Files that come first, by what they share and how long they take: what comes last is shared out among workers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it takes 0.2 s in each collection of garbage, as after a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cxr() -> Path:
    """Real chest X-rays and fixtures, if they are there: RADDRAFT_CXR, or ../shared/cxr beside the project."""
    path = Path(os.environ.get("RADDRAFT_CXR", ROOT.parent / "shared" / "cxr"))
    if not path.is_dir():
        pytest.skip(f"no chest X-ray data at {path}; set RADDRAFT_CXR to their folder")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The key of pseudonymous ids is none of the user's."""
    os.environ["RADDRAFT_KEY"] = str(tmp_path_factory.mktemp("key") / "pseudonyms.key")


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Dinov2 for 28 x 28 pixels (2 x 2 patches), random weights, with its image processor."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tower")
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama, random weights, with a tokenizer trained on a few sentences."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from generator.tiny import train_tokenizer

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = train_tokenizer(SENTENCES, vocab_size=400)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tower_folder: Path, lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt enough to write different texts of different lengths; xdist's workers share it."""
    import fcntl

    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run" / "model").is_dir():
            train_model(folder, tower_folder, lm_folder)
    return folder / "run" / "model"


def train_model(folder: Path, tower_folder: Path, lm_folder: Path) -> None:
    from generator.config import ModelConfig, Stage, TrainConfig
    from generator.prompts import PromptConfig
    from generator.train import train

    studies = [make_study(folder, i, "train") for i in range(12)]
    config = TrainConfig(
        stages=[Stage(epochs=150, lr=5e-3, lm="full", tower="full")],
        batch_size=12,
        micro_batch_size=12,
        eval_every=0,
        workers=0,
    )
    prompt = PromptConfig(context=["view", "indication"])
    train({"train": studies}, folder / "run", ModelConfig(str(tower_folder), str(lm_folder)), prompt, config)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uncased WordPiece tokenizer of a few words and letters, and the config of a two-layer BERT; no weights."""
    from benchmarks.random_models import save_bert

    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder, SENTENCES, 400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return folder


SENTENCES = [
    "The heart is normal in size.",
    "The heart is enlarged.",
    "No pleural effusion or pneumothorax.",
    "Small left pleural effusion.",
    "The lungs are clear.",
    "Right lower lobe consolidation.",
    "Describe the findings of this chest X-ray.",
    "Indication: cough and fever.",
]


@pytest.fixture
def studies_file(tmp_path: Path) -> Path:
    """A manifest of 24 train, 8 val and 8 test studies; a picture's brightness tells which sentences go with it."""
    from raddraft.studies import write_studies

    studies = [make_study(tmp_path, i, "train" if i < 24 else "val" if i < 32 else "test") for i in range(40)]
    write_studies(tmp_path / "studies.jsonl", studies)
    return tmp_path / "studies.jsonl"


def make_study(folder: Path, number: int, split: str):
    from PIL import Image

    from raddraft.studies import Study, StudyImage

    generator = np.random.default_rng(number)
    path = folder / f"{number}.png"
    picture = generator.integers(0, 30, (32, 32)) + 40 * (number % 6)
    Image.fromarray(picture.astype(np.uint8)).save(path)
    text = " ".join(SENTENCES[(number + k) % 6] for k in range(1 + number % 3))
    sections = {"findings": text, "indication": "cough and fever."}
    return Study(f"s{number}", f"p{number}", split, [StudyImage(path, "PA")], sections)


@pytest.fixture(scope="session")
def random_model(tower_folder: Path, lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose drafts are gibberish, which takes no training."""
    from generator.config import ModelConfig
    from generator.drafter import Drafter
    from generator.model import build, save

    folder = tmp_path_factory.mktemp("random") / "model"
    save(Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder)))), folder)
    return folder
