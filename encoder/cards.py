"""The registry of vision towers: what each short name stands for, how its images are prepared, who has seen what.

Nothing heavy is imported, so that lists and help are fast. `encoder.towers.load_tower` loads by these names; a test
holds that the table in docs/encoders.md says the same. One file, since it is one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raddraft.studies import GrayMapping

Statistics = tuple[float, float, float]
IMAGENET: tuple[Statistics, Statistics] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP: tuple[Statistics, Statistics] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
ALL = ("train", "val", "test")


@dataclass(frozen=True)
class Images:
    """How the authors of a tower prepare images. A folder's own preprocessor_config.json comes before this."""

    side: int | None
    """Pixels along each side of the square that the tower sees; None where only its folder tells."""
    mean: Statistics | None = None
    """Of each channel, of values between 0 and 1; None where only its folder tells."""
    std: Statistics | None = None
    """Standard deviation of each channel, as `mean`."""
    resize: int | None = None
    """Pixels to which the shorter side is resized before the center square is cut out; None: `side`."""
    squashed: bool = False
    """Whether both sides are resized to that length, whatever the shape of the image."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How images are resized."""
    gray_mapping: GrayMapping = "window"
    """How 8-bit images are to be made before that: the option --gray-mapping to give."""

    def describe(self) -> str:
        """Sizes, and mean and standard deviation where there are any, in words."""
        if self.mean is None or self.std is None:
            return f"{self.side} px, the rest as its folder says" if self.side else "as its folder says"
        size = (
            f"{self.side} px" + (f" of {self.resize}" if self.resize else "") + (", squashed" if self.squashed else "")
        )
        return f"{size}; {_short(self.mean)} / {_short(self.std)}"


@dataclass(frozen=True)
class Checkpoint:
    """The file that the authors of a tower publish, where it is not a folder that transformers reads."""

    file: str
    """Its name."""
    had: str
    """How one gets it, for messages."""
    loader: Literal["dinov2", "timm"]
    """dinov2: names of the original DINOv2 code; timm: an architecture of timm, after `renames`."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """dinov2: width, depth, patch_size, image_size and n_registers that the file must have; timm: arguments of the
    architecture."""
    architecture: str = ""
    """Name in timm."""
    patch_size: int | None = None
    """Pixels from one patch to the next, of a vision transformer of timm."""
    renames: tuple[tuple[str, str], ...] = ()
    """Regular expressions in names of the file -> their replacements, one after the other."""
    dropped: tuple[str, ...] = ()
    """Regular expressions at the start of names that features do not need: heads, tables that can be computed."""
    projection: int | None = None
    """Width behind a linear layer `projector` that is applied to the last features, if there is one."""
    folder: str | None = None
    """Where the authors' package keeps it."""


@dataclass(frozen=True)
class Card:
    """What a short name stands for."""

    source: str
    """Hub id or repository."""
    what: str
    """Architecture, and how it was trained."""
    license: str
    """As far as known here; the terms on its page apply."""
    converted: bool = False
    """Whether `source` is a checkpoint that `raddraft convert` turns into a folder first."""
    in_llava: bool = True
    """Whether a LLaVA model can hold it; otherwise it runs beside one, frozen."""
    images: Images = Images(None)
    """How its images are prepared."""
    checkpoint: Checkpoint | None = None
    """The file to load it from, if it is not a folder that transformers reads."""
    trained_on: Mapping[str, tuple[str, ...]] | None = None
    """Data sets of chest X-rays that its authors say it was trained on: `source` of studies -> splits as this project
    makes them. No splits: it is not known which, so it may have seen any film of the set. Empty: they name none. None:
    it was trained on chest X-rays of which the sets are not known here."""
    tested: str = ""
    """What a test compares its features with, on small or random weights in its own layout."""

    def describe_training(self) -> str:
        """The data sets of `trained_on` and their splits, in words."""
        if not self.trained_on:
            return "not known here" if self.trained_on is None else "none named"
        splits = {name: "all" if found == ALL else ", ".join(found) for name, found in self.trained_on.items()}
        return ", ".join(f"{name} ({part})" if part else name for name, part in splits.items())

    @property
    def hub_id(self) -> str | None:
        """The hub id, of a folder that transformers reads as it is."""
        return None if self.converted or self.checkpoint else self.source


def _short(values: Statistics) -> str:
    """Three numbers, or one if they are equal."""
    return ", ".join(f"{value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))


NOT_NORMALIZED: tuple[Statistics, Statistics] = ((0.0,) * 3, (1.0,) * 3)
HALF: tuple[Statistics, Statistics] = ((0.5,) * 3, (0.5,) * 3)
RAD_DINO: tuple[Statistics, Statistics] = ((0.5307,) * 3, (0.2583,) * 3)
MRM: tuple[Statistics, Statistics] = ((0.4978,) * 3, (0.2449,) * 3)
RAD_DINO_IMAGES = Images(518, *RAD_DINO, gray_mapping="minmax")
# Families: what their members share.
DINOV2 = Card(
    "",
    "",
    "Apache-2.0",
    images=Images(224, *IMAGENET, resize=256),
    trained_on={},
    tested="timm, from the original names",
)
DINOV3 = replace(
    DINOV2,
    license="DINOv3 license, gated",
    images=Images(224, *IMAGENET, squashed=True, interpolation="bilinear"),
    tested="timm",
)
CLIP = Card("", "", "MIT, by its repository", trained_on={}, tested="transformers' CLIPModel")
SIGLIP2 = Card("", "", "Apache-2.0", trained_on={}, tested="transformers' SiglipModel; timm")
CXFORMER = Card(
    "",
    "",
    "CC BY-NC 4.0, for research",
    images=Images(518, *IMAGENET),
    # Official train lists only; PadChest and BRAX have none.
    trained_on={"chexpert": ("train",), "mimic-cxr": ("train",), "nih": ("train", "val"), "padchest": (), "brax": ()},
    tested="timm, from the original names",
)

# The release of CheXpert Plus (github.com/Stanford-AIMI/chexpert-plus) names the sets of two of its authors' models.
STANFORD = dict.fromkeys(("mimic-cxr", "chexpert", "padchest", "bimcv-covid19", "candid-ptx"), ())

EVA_X_RENAMES = (
    (r"mlp\.ffn_ln", "mlp.norm"),
    (r"attn\.inner_attn_ln", "attn.norm"),
    (r"mlp\.w12", "mlp.fc1"),
    (r"mlp\.w1\.", "mlp.fc1_g."),
    (r"mlp\.w2\.", "mlp.fc1_x."),
    (r"mlp\.w3", "mlp.fc2"),
    (r"^norm\.", "fc_norm."),
)


def _eva_x(size: str, letter: str, apart: bool) -> Card:
    """A tower of github.com/hustvl/EVA-X, whose eva_x.py has sizes and names; `apart`: q, k and v are three layers."""
    biases = tuple((rf"attn\.{name}_bias$", f"attn.{name}_proj.bias") for name in "qv") if apart else ()
    return Card(
        "MapleF/eva_x",
        f"ViT-{letter}/16 with rotary positions (EVA-02), masked image modeling on 520 k chest X-rays",
        "MIT, by its hub page",
        in_llava=False,
        images=Images(224, (0.49185243,) * 3, (0.28509309,) * 3, resize=256),
        checkpoint=Checkpoint(
            f"eva_x_{size}_patch16_merged520k_mim.pt",
            "download it from huggingface.co/MapleF/eva_x",
            "timm",
            {"patch_size": 16, "img_size": 224, "ref_feat_shape": [14, 14]},
            f"eva02_{size}_patch14_224",
            patch_size=16,
            renames=EVA_X_RENAMES + biases,
            dropped=(r"mask_token$", r"lm_head\.", r"(.*\.)?rope\."),
        ),
        tested="timm's Eva and its reader of such files",
    )


def _xrv(kind: str, file: str, side: int, dropped: tuple[str, ...], sets: tuple[str, ...]) -> Card:
    """A classifier of torchxrayvision 1.5.7, whose models.py has the file and the sets it was trained on."""
    return Card(
        "github.com/mlmed/torchxrayvision",
        f"{kind} trained on labels, one gray channel",
        "Apache-2.0",
        in_llava=False,
        # Gray values 0 to 255 become -1024 to 1024.
        images=Images(side, (0.5,) * 3, (0.5 / 1024,) * 3, interpolation="bilinear"),
        checkpoint=Checkpoint(
            file,
            "the package torchxrayvision downloads it, and so can you: release v1 of github.com/mlmed/torchxrayvision",
            "timm",
            architecture=kind.lower().replace("-", ""),
            dropped=dropped,
            folder="~/.torchxrayvision/models_data",
        ),
        trained_on=dict.fromkeys(sets, ()),
        tested="torchxrayvision",
    )


def _stanford(name: str, what: str, side: int | None) -> Card:
    """One of the eight encoders that were published with CheXagent-2 (arXiv 2401.12208)."""
    siglip = "-siglip-" in name
    return Card(
        f"StanfordAIMI/{name}",
        f"{what}, on chest X-rays with reports, of CheXagent-2's authors" + ("" if siglip else ", CLIP's architecture"),
        "CC BY-NC 4.0",
        images=Images(side),
        trained_on=STANFORD if name == "XrayCLIP__vit-b-16__laion2b-s34b-b88k" else None,
        tested="transformers' SiglipModel; timm" if siglip else "transformers' CLIPModel",
    )


TOWERS = {
    "rad-dino": Card(
        "microsoft/rad-dino",
        "ViT-B/14, DINOv2 on chest X-rays",
        "MIT (earlier MSRLA), for research",
        images=RAD_DINO_IMAGES,
        trained_on={"mimic-cxr": ("train",), "chexpert": ("train", "val"), "nih": ALL, "padchest": (), "brax": ()},
        tested="the package rad-dino; timm, from the original names",
    ),
    "rad-dino-maira-2": Card(
        "microsoft/rad-dino-maira-2",
        "ViT-B/14, RAD-DINO on more data",
        "MSRLA",
        images=RAD_DINO_IMAGES,
        tested="the package rad-dino",
    ),
    **{
        f"dinov2-{size}{suffix}": replace(
            DINOV2, source=f"facebook/dinov2-{hub}{size}", what=f"ViT-{letter}/14{registers}"
        )
        for suffix, hub, registers in (("", "", ""), ("-registers", "with-registers-", ", 4 registers"))
        for size, letter in {"small": "S", "base": "B", "large": "L", "giant": "g"}.items()
    },
    **{
        f"dinov3-{size}": replace(
            DINOV3,
            source=f"facebook/dinov3-vit{letter.lower()}16-pretrain-lvd1689m",
            what=f"ViT-{letter}/16, 4 registers",
        )
        for size, letter in {"small": "S", "base": "B", "large": "L"}.items()
    },
    "clip-224": replace(
        CLIP, source="openai/clip-vit-large-patch14", what="ViT-L/14", images=Images(224, *OPENAI_CLIP)
    ),
    "clip-336": replace(
        CLIP, source="openai/clip-vit-large-patch14-336", what="ViT-L/14", images=Images(336, *OPENAI_CLIP)
    ),
    "siglip2-base": replace(
        SIGLIP2,
        source="google/siglip2-base-patch16-224",
        what="ViT-B/16, no class token",
        images=Images(224, *HALF, squashed=True),
    ),
    "siglip2-base-512": replace(
        SIGLIP2,
        source="google/siglip2-base-patch16-512",
        what="ViT-B/16, no class token",
        images=Images(512, *HALF, squashed=True),
    ),
    "medsiglip": Card(
        "google/medsiglip-448",
        "SigLIP So400m/14, no class token, on medical images with texts",
        "HAI-DEF terms, gated",
        images=Images(448, *HALF, squashed=True, interpolation="bilinear"),
        trained_on={"mimic-cxr": ()},
        tested="transformers' SiglipModel; timm",
    ),
    "biomedclip": Card(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "ViT-B/16",
        "MIT",
        converted=True,
        images=Images(224, *OPENAI_CLIP),
        trained_on={},
        tested="open_clip; timm",
    ),
    "biovil-t": Card(
        "microsoft/BiomedVLP-BioViL-T",
        "ResNet-50 hybrid, on chest X-rays with reports",
        "MIT",
        converted=True,
        in_llava=False,
        images=Images(448, *NOT_NORMALIZED, resize=512, interpolation="bilinear", gray_mapping="minmax"),
        trained_on={"mimic-cxr": ()},
        tested="health_multimodal (hi-ml-multimodal), where it is installed",
    ),
    "mrm": Card(
        "github.com/RL4M/MRM-pytorch",
        "ViT-B/16, masked autoencoder on chest X-rays with reports",
        "see its repository",
        converted=True,
        images=Images(224, *MRM),
        trained_on={"mimic-cxr": ()},
        tested="timm",
    ),
    "cxformer-small": replace(
        CXFORMER, source="m42-health/CXformer-small", what="ViT-S/14, 4 registers, DINOv2 on chest X-rays"
    ),
    "cxformer-base": replace(
        CXFORMER, source="m42-health/CXformer-base", what="ViT-B/14, 4 registers, DINOv2 on chest X-rays"
    ),
    "dinov2-base-xray": Card(
        "StanfordAIMI/dinov2-base-xray-224",
        "ViT-B/14, DINOv2 on chest X-rays",
        "Apache-2.0",
        images=Images(224),
        trained_on=STANFORD,
        tested="timm, from the original names",
    ),
    "chexfound": Card(
        "github.com/RPIDIAL/CheXFound",
        "ViT-L/16, 4 registers, SwiGLU, DINOv2 on 987 k chest X-rays of 12 sets",
        "none stated",
        images=Images(512, *IMAGENET, gray_mapping="minmax"),
        checkpoint=Checkpoint(
            "teacher_checkpoint.pth",
            "its repository, github.com/RPIDIAL/CheXFound, links to it",
            "dinov2",
            {"width": 1024, "depth": 24, "patch_size": 16, "image_size": 512, "n_registers": 4},
        ),
        trained_on=dict.fromkeys(("mimic-cxr", "chexpert", "padchest", "brax"), ()),
        tested="timm, from the original names",
    ),
    "raydino": Card(
        "github.com/facebookresearch/dinov2",
        "ViT-L/16, DINOv2 on 873 k chest X-rays (XRay-DINO)",
        "FAIR Noncommercial Research License",
        images=Images(512, *IMAGENET),
        checkpoint=Checkpoint(
            "xray_dino_vitl16_pretrained-ad31c2b0.pth",
            "its authors send a link after a form, ai.meta.com/resources/models-and-libraries/raydino-downloads",
            "dinov2",
            {"width": 1024, "depth": 24, "patch_size": 16, "image_size": 512, "n_registers": 0},
        ),
        tested="timm, from the original names",
    ),
    "eva-x-tiny": _eva_x("tiny", "Ti", apart=False),
    "eva-x-small": _eva_x("small", "S", apart=False),
    "eva-x-base": _eva_x("base", "B", apart=True),
    "ark-plus": Card(
        "github.com/jlianglab/Ark",
        "Swin-L, window 12, trained on labels of six sets, behind its projector of 1,376",
        "ASU GitHub Project License, not for commercial use",
        in_llava=False,
        images=Images(768, *IMAGENET, resize=896, squashed=True, interpolation="bilinear"),
        checkpoint=Checkpoint(
            "Ark6_swinLarge768_ep50.pth.tar",
            "its authors send it on request, see github.com/jlianglab/Ark",
            "timm",
            {"img_size": 768},
            "swin_large_patch4_window12_384",
            # timm had the merging of patches at the end of a stage when Ark+ was trained, and has it at the start of
            # the next one today.
            renames=tuple((rf"^layers\.{i}\.downsample\.", f"layers.{i + 1}.downsample.") for i in (2, 1, 0)),
            dropped=(r"head\.", r"omni_heads\.", r".*\.attn_mask$", r".*\.relative_position_index$"),
            projection=1376,
        ),
        # Its lists are in the repository; RSNA's and Shenzhen's splits are its own.
        trained_on={
            "mimic-cxr": ("train",),
            "chexpert": ("train",),
            "nih": ("train", "val"),
            "rsna": (),
            "vindr-cxr": ("train", "val"),
            "shenzhen": (),
        },
        tested="timm's SwinTransformer and its reader of such files",
    ),
    "xrv-densenet121": _xrv(
        "DenseNet-121",
        "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        224,
        (r"classifier\.", "op_threshs$"),
        ("nih", "padchest", "chexpert", "mimic-cxr", "iu-xray", "rsna"),
    ),
    "xrv-resnet50": _xrv(
        "ResNet-50",
        "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt",
        512,
        (r"fc\.",),
        ("padchest", "nih", "rsna", "siim", "vindr-cxr"),
    ),
    **{
        f"{kind.lower()}-{short}": _stanford(f"{kind}__{name}", what, side)
        for kind in ("XraySigLIP", "XrayCLIP")
        for short, name, what, side in (
            ("base-512", "vit-b-16-siglip-512__webli", "ViT-B/16", 512),
            ("large-384", "vit-l-16-siglip-384__webli", "ViT-L/16", None),
            ("base", "vit-b-16__laion2b-s34b-b88k", "ViT-B/16", None),
            ("large", "vit-l-14__laion2b-s32b-b82k", "ViT-L/14", None),
        )
    },
}
