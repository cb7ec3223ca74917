"""BioViL-T's image encoder: the official layout of weights, features by hand and by the authors' code, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from encoder.biovil import BioViLT, BioViLTConfig, from_official, image_processor
from encoder.convert import convert
from encoder.towers import load_tower

POOLER_BLOCK = {
    "norm1.weight": (256,),
    "norm1.bias": (256,),
    "attn.proj_q.weight": (256, 256),
    "attn.proj_k.weight": (256, 256),
    "attn.proj_v.weight": (256, 256),
    "attn.proj.weight": (256, 256),
    "attn.proj.bias": (256,),
    "norm2.weight": (256,),
    "norm2.bias": (256,),
    "mlp.fc1.weight": (256, 256),
    "mlp.fc1.bias": (256,),
    "mlp.fc2.weight": (256, 256),
    "mlp.fc2.bias": (256,),
}
POOLER = {
    "type_embed": (2, 1, 256),
    **{f"blocks.{i}.{key}": shape for i in range(3) for key, shape in POOLER_BLOCK.items()},
    "norm_post.weight": (256,),
    "norm_post.bias": (256,),
}
PROJECTOR = {
    "model.0.weight": (128, 512, 1, 1),
    "model.1.weight": (128,),
    "model.1.bias": (128,),
    "model.1.running_mean": (128,),
    "model.1.running_var": (128,),
    "model.1.num_batches_tracked": (),
    "model.3.weight": (128, 128, 1, 1),
    "model.3.bias": (128,),
}
NOT_NEEDED = [
    "encoder.encoder.fc.weight",
    "encoder.encoder.fc.bias",
    *[f"encoder.vit_pooler.{key}" for key in POOLER],
    *[f"projector.{key}" for key in PROJECTOR],
]


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """Weights by the names and in the shapes of biovil_t_image_model_proj_size_128.pt, random."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    trunk = resnet50(weights=None).state_dict()
    for key, value in trunk.items():
        # Statistics as after training, each channel its own: a swap or a loss of them shows.
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif re.search(r"(bn|downsample\.1)\d?\.(weight|bias)", key):
            value.add_(torch.randn_like(value), alpha=0.1)
    state = {"encoder.missing_previous_emb": torch.randn(1, 256, 1, 1)}
    state |= {f"encoder.encoder.{key}": value for key, value in trunk.items()}
    state["encoder.backbone_to_vit.weight"] = torch.randn(256, 2048, 1, 1) / 2048**0.5
    state |= {f"encoder.vit_pooler.{key}": torch.randn(shape) for key, shape in POOLER.items()}
    state |= {f"projector.{key}": torch.rand(shape) for key, shape in PROJECTOR.items()}
    state["projector.model.1.num_batches_tracked"] = torch.tensor(0)
    return state


@pytest.fixture(scope="module")
def checkpoint(official: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("biovil") / "biovil_t_image_model_proj_size_128.pt"
    torch.save(official, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    convert(checkpoint, checkpoint.parent / "converted")
    return checkpoint.parent / "converted"


@pytest.fixture(scope="module")
def model(folder: Path) -> BioViLT:
    return BioViLT.from_pretrained(folder)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def features(model: BioViLT, pixels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model(pixels)


def hollow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes, a single zero stored for each: a file of a few kilobytes."""
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}


def test_what_is_dropped_is_named(official: dict[str, Tensor], tmp_path: Path) -> None:
    state = hollow(official) | {"classifier.fc_0.model.weight": torch.zeros(2, 512)}
    model, dropped = from_official(state, tmp_path)
    assert dropped == [*NOT_NEEDED, "classifier.fc_0.model.weight"]
    assert {f"encoder.{key}" for key in model.state_dict()} == official.keys() - set(dropped)


def test_shapes_at_its_own_size(features: tuple[Tensor, Tensor]) -> None:
    pooled, patches = features
    assert pooled.shape == (2, 512)
    assert patches.shape == (2, 14, 14, 512)


def test_rows_of_patches_are_rows_of_the_image(model: BioViLT) -> None:
    with torch.no_grad():
        pooled, patches = model(torch.rand(1, 3, 64, 160))
    assert pooled.shape == (1, 512)
    assert patches.shape == (1, 2, 5, 512)


@torch.no_grad()
def test_features_by_hand(official: dict[str, Tensor], features: tuple[Tensor, Tensor], pixels: Tensor) -> None:
    """torchvision's ResNet-50 up to its last block, a matrix, and the vector for the missing prior at each patch."""
    from torchvision.models import resnet50

    trunk = resnet50(weights=None).eval()
    prefix = "encoder.encoder."
    trunk.load_state_dict({key.removeprefix(prefix): v for key, v in official.items() if key.startswith(prefix)})
    last_block = []
    trunk.layer4.register_forward_hook(lambda module, inputs, output: last_block.append(output))
    trunk(pixels)
    matrix = official["encoder.backbone_to_vit.weight"].reshape(256, 2048)
    current = last_block[0].permute(0, 2, 3, 1) @ matrix.T
    previous = official["encoder.missing_previous_emb"].reshape(256)

    pooled, patches = features
    assert current.std() > 0.1
    assert (current[0] - current[1]).abs().max() > 0.01  # of the two images
    torch.testing.assert_close(patches[..., :256], current, rtol=1e-4, atol=1e-4)
    assert torch.equal(patches[..., 256:], previous.expand(2, 14, 14, 256))
    torch.testing.assert_close(pooled[:, :256], current.mean(dim=(1, 2)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled[:, 256:], previous.expand(2, 256), rtol=1e-5, atol=1e-5)


def test_folders_of_earlier_versions_load(folder: Path, model: BioViLT, tmp_path: Path) -> None:
    """Their config.json has the sizes only."""
    sizes = {"shortest_edge": 512, "image_size": 448, "patch_size": 32, "hidden_size": 512}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "raddraft-biovil-t"} | sizes))
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    again = load_tower(str(tmp_path))
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert again.shape == (14, 14, 512)


@torch.no_grad()
def test_features_of_the_authors_code(checkpoint: Path, features: tuple[Tensor, Tensor], pixels: Tensor) -> None:
    reason = "the authors' package hi-ml-multimodal is not installed"
    pytest.importorskip("health_multimodal.image", reason=reason, exc_type=ImportError)
    from health_multimodal.image.model.model import ImageModel

    # Strict by itself: it takes the file only if every name is its own.
    theirs = ImageModel("resnet50_multi_image", joint_feature_size=128, pretrained_model_path=checkpoint).eval()
    output = theirs(pixels)
    pooled, patches = features
    torch.testing.assert_close(pooled, output.img_embedding, rtol=0, atol=1e-4)
    torch.testing.assert_close(patches.permute(0, 3, 1, 2), output.patch_embeddings, rtol=0, atol=1e-4)


def test_saved_and_loaded_again(model: BioViLT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = BioViLT.from_pretrained(tmp_path)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "raddraft-biovil-t"


@pytest.mark.parametrize(("width", "height"), [(600, 812), (500, 400)])
def test_images_as_the_authors_prepare_them(folder: Path, width: int, height: int) -> None:
    """torchvision's transforms by the authors' settings; the processor's bilinear filter rounds a little otherwise."""
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor
    from transformers import AutoImageProcessor

    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    theirs = Compose([Resize(512), CenterCrop(448), ToTensor()])(image).expand(3, -1, -1)
    processor = AutoImageProcessor.from_pretrained(folder)
    ours = processor([image.convert("RGB")], return_tensors="pt")["pixel_values"][0]
    assert ours.shape == (3, 448, 448)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.01 / 255)


def test_by_pillow_images_are_the_authors_to_the_last_bit(folder: Path) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    noise = np.random.default_rng(0).integers(0, 256, (100, 75), dtype=np.uint8)
    image = Image.fromarray(noise).resize((600, 812), Image.Resampling.BICUBIC)
    theirs = Compose([Resize(512), CenterCrop(448), ToTensor()])(image).expand(3, -1, -1)
    ours = load_tower(str(folder), backend="pil").prepare([image])[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_processor_follows_the_sizes_of_the_config() -> None:
    processor = image_processor(BioViLTConfig(shortest_edge=300, image_size=256))
    image = Image.fromarray(np.tile(np.linspace(0, 255, 400, dtype=np.uint8), (350, 1))).convert("RGB")
    pixels = processor([image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 256, 256)
    # 300 pixels high it is 342 wide, of which 43 are cut off at each side.
    assert pixels[0, 0, 0, 0].item() == pytest.approx(43 / 342, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 3, 450, 448), (1, 3, 448, 240), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_images_of_other_shapes_are_refused(model: BioViLT, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"shape {shape}, not [B, 3, H, W] with H, W multiples of 32")):
        model(torch.zeros(shape))


WEIGHT = "encoder.backbone_to_vit.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != WEIGHT}, f"1 are missing: {WEIGHT}"),
        (lambda s: s | {"encoder.extra": torch.zeros(1)}, "no place for 1 of its entries: encoder.extra"),
        (lambda s: s | {"backbone_to_vit.weight": s[WEIGHT]}, "no place for 1 of its entries: backbone_to_vit.weight"),
        (lambda s: s | {WEIGHT: torch.zeros(1, 1)}, f"{WEIGHT} is [1, 1], not [256, 2048, 1, 1]"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "are missing: encoder.missing_previous_emb"),
    ],
    ids=["missing", "unknown", "without-prefix", "shape", "parallel"],
)
def test_other_checkpoints_are_refused(official: dict[str, Tensor], tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=r"weights\.pt is not BioViL-T's image model: ") as error:
        from_official(change(hollow(official)), tmp_path / "weights.pt")
    assert message in str(error.value)


def test_a_state_dict_inside_a_checkpoint_is_taken(official: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": hollow(official), "epoch": 3}, tmp_path / "weights.pt")
    done = convert(tmp_path / "weights.pt", tmp_path / "out")
    assert (done.kind, done.notes[0]) == ("biovil-t", "taken from 'state_dict'; left out: epoch")


def test_broken_checkpoints_are_refused(official: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(hollow(official), path)
    path.write_bytes(path.read_bytes()[:-1000])
    for content in (path.read_bytes(), b"", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a checkpoint that can be loaded as tensors only: "):
            convert(path, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "nowhere.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 50}, "unknown key 'depth'. Choices: shortest_edge, image_size, patch_size, hidden_size"),
        ({"patch_size": 16}, "patch_size is 16, BioViL-T's is 32"),
        ({"image_size": 450}, "image_size 450 is not a multiple of the patch size 32"),
        ({"shortest_edge": 224}, "shortest_edge 224 is less than image_size 448"),
    ],
)
def test_other_configs_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "raddraft-biovil-t"} | change))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + re.escape(message)):
        load_tower(str(tmp_path))


def test_folders_without_whole_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(OSError, match=r"cannot be loaded: Unrecognized model in .* in its config\.json"):
        load_tower(str(tmp_path))
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_tower(str(tmp_path))
    weights, whole = tmp_path / "model.safetensors", load_file(folder / "model.safetensors")
    for name, value in (("backbone_to_vit.weight", None), ("backbone_to_vit.weight", torch.zeros(1, 1))):
        changed = {key: tensor for key, tensor in whole.items() if key != name} | (
            {name: value} if value is not None else {}
        )
        save_file(changed, weights, {"format": "pt"})
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}") + f".*{re.escape(name)}"):
            load_tower(str(tmp_path))
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(OSError, match="Error while deserializing header: "):
        load_tower(str(tmp_path))
