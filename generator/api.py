"""Drafting in Python: the front door that `raddraft draft`, `generate` and `read` go through too.

import raddraft

model = raddraft.load_model("runs/demo/model")
print(model.draft("film.dcm"))
for draft in model.stream("folder_of_dicoms"):
    print(draft.study_id, draft.error or draft.text)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from encoder.tower import weights_digest
from generator.clinic import Ids
from generator.clinic.grouping import study_files
from generator.config import Control, DecodeConfig
from generator.controls import copy_reports, shuffle_images
from generator.drafter import Drafter
from generator.engine import Engine
from generator.generate import BANNER, Draft, decode, generate, write_drafts
from generator.model import SIDECAR, load, read_sidecar
from generator.priors import find_priors
from generator.prompts import PromptConfig
from generator.speculate import Speculator, index_reports
from generator.vlm import ChatDrafter, load_chat
from raddraft.errors import RadDraftError
from raddraft.processes import WAIT, check_launch, is_main_process, pick_device
from raddraft.studies import GrayMapping, Study, StudyImage, read_studies
from raddraft.text import printable

SYNTHETIC = "Its model was trained on synthetic data only: the draft says nothing about a patient."
Images = str | Path | Study | Iterable[str | Path | Study]
"""An image file, a folder of them, a study, or several of these."""


def load_model(
    name: str | Path, device: str = "auto", prompt: PromptConfig | None = None, remote_code: bool = False
) -> Model:
    """Load a model that was trained by RadDraft, or any vision-language model that transformers knows.

    Args:
        name: model folder or hub id.
        device: cpu, cuda, cuda:1, mps …; auto is the first accelerator, or the one that Accelerate gives this process.
        prompt: the prompt of a model that was not trained by RadDraft; one that was keeps its own.
        remote_code: whether Python code that comes with the model may run.

    Raises:
        RadDraftError: no such model or device, or a prompt for a model that keeps its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        if device != "auto":
            raise RadDraftError(f"Device {device!r}: with several processes Accelerate chooses the devices; use auto")
        device = str(check_launch(Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])).device)
    name, prompt, default = str(name), prompt or PromptConfig(), PromptConfig()
    changes = [f"{key}={value!r}" for key, value in asdict(prompt).items() if value != getattr(default, key)]
    sidecar, own = read_sidecar(name), default
    if sidecar:
        own = PromptConfig.read(sidecar["prompt"], name)
        if changes and prompt != own:
            raise RadDraftError(f"{name} was trained with its own prompt, {own}; leave out the options of prompt")
    no_config = Path(name).is_dir() and not (Path(name) / "config.json").is_file()
    if no_config or (sidecar and sidecar.get("kind") != ChatDrafter.kind):
        drafter = load(name, device=pick_device(device))
    else:
        gray_mapping: GrayMapping = sidecar["gray_mapping"] if sidecar else "window"
        drafter = load_chat(name, own if sidecar else prompt, gray_mapping, "auto", pick_device(device), remote_code)
        drafter.is_synthetic = bool(sidecar and sidecar.get("synthetic"))
        if not sidecar and not changes:
            warnings.warn(f"{name} has no {SIDECAR}: the default prompt is used", stacklevel=2)
    kind = ["(trained on synthetic data only)"] if drafter.is_synthetic else []
    return Model(drafter, " ".join([str(Path(name)), *changes, *kind]))


class Model:
    """A model that drafts reports of chest X-rays; every draft is for a radiologist to check. See `load_model`.

    Attributes:
        drafter: network, processor and prompt.
        name: name of the model in predictions.jsonl.
    """

    def __init__(self, drafter: Drafter, name: str) -> None:
        self.drafter, self.name = drafter, name

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) that tells its weights from those of other models."""
        return weights_digest(self.drafter.model, first=64)

    @property
    def banner(self) -> str:
        """To be shown wherever a draft of this model is."""
        return f"{BANNER} {SYNTHETIC}" if self.drafter.is_synthetic else BANNER

    def draft(self, images: Images, **options: Any) -> Draft | list[Draft]:
        """Draft the report of an image file or a study, or of each study in a folder or a list. Options as of `stream`.

        Returns:
            A Draft, whose `str()` is the text. For a folder or a list a list of Drafts, where one of an image that
            cannot be read has no text, but an `error`.

        Raises:
            RadDraftError: as `stream`, and where the image of a single file or study cannot be read.
        """
        drafts = list(self.stream(images, **options))
        if not isinstance(images, str | Path | Study) or (not isinstance(images, Study) and Path(images).is_dir()):
            return drafts
        if drafts[0].error:
            raise RadDraftError(drafts[0].error)
        return drafts[0]

    def stream(
        self,
        images: Images,
        indication: str | None = None,
        view: str | None = None,
        out: Path | None = None,
        speculate: Path | Sequence[Study] | None = None,
        workers: int = 0,
        **decoding: Any,
    ) -> Iterator[Draft]:
        """Yield each draft as soon as its batch is decoded.

        Args:
            images: image files (DICOM, PNG, JPEG, TIFF), folders of them, or studies; one or several. DICOM files make
                studies, see `find_studies`.
            indication: why the images were taken, for a model that reads it.
            view: PA, AP or LATERAL, of images that state none, for a model that reads it.
            out: a predictions.jsonl to write or to resume; drafts that it holds come first.
            speculate: studies, or their manifest, from whose training reports tokens are proposed: the same greedy
                text in fewer passes.
            workers: processes that read and prepare images.
            decoding: fields of `generator.config.DecodeConfig`, e.g. max_new_tokens, candidates, confidence.

        Raises:
            RadDraftError: no image, an option that the model cannot use, or as `generator.generate.write_drafts`.
        """
        config = DecodeConfig(**decoding)
        self.check_used(indication, view)
        studies = find_studies(images, indication, view)
        self._warn_without_priors(studies)
        speculator = self.speculator(speculate)
        if out:
            drafts = write_drafts(self.drafter, studies, out, config, self.name, workers, speculator)
        else:
            examples = self.drafter.encode(studies, answers=False, reserve=config.max_new_tokens)
            drafts = decode(self.drafter, examples, config, workers, speculator=speculator)
        for draft in drafts:
            yield replace(draft, banner=self.banner)

    def generate(
        self,
        studies: Sequence[Study],
        out: Path,
        control: Control = "none",
        training: Sequence[Study] = (),
        speculate: bool = False,
        workers: int = 2,
        decode: DecodeConfig | None = None,
        engine: Engine | None = None,
    ) -> list[str]:
        """Draft studies into a predictions.jsonl, as `generator.generate.generate`, or write one of its controls.

        Args:
            studies, out, workers: as there.
            control: see `generator.controls`.
            training: studies whose reports a control copies, or tokens are proposed from.
            speculate: propose tokens from training reports.
            decode: how to decode.
            engine: a server of the same model that decodes.

        Raises:
            RadDraftError: as there, or an option that the control or the model cannot use.
        """
        name = self.name if control == "none" else f"{self.name} {control}"
        if control in ("most-frequent", "nearest-report"):
            if speculate or engine or decode not in (None, DecodeConfig()):
                raise RadDraftError(f"The control {control} decodes nothing: leave out decode, speculate and engine")
            return copy_reports(self.drafter, training, studies, out, control, name) if is_main_process() else []
        if control == "shuffled-images":
            studies = shuffle_images(studies)
        self._warn_without_priors(studies)
        speculator = self.speculator(training if speculate else None)
        return generate(self.drafter, studies, out, decode or DecodeConfig(), name, workers, speculator, engine)

    def check_used(self, indication: str | None, view: str | None) -> None:
        """Raise RadDraftError if something is given that has no place in the prompt."""
        prompt = self.drafter.prompt
        self._check_used("indication", indication, "indication" in prompt.context)
        self._check_used("view", view, "view" in prompt.context or prompt.images != "frontal" or prompt.prior)

    def _check_used(self, option: str, value: str | None, used: bool) -> None:
        if value and not used:
            prompt = self.drafter.prompt
            reads = ", ".join([f"{prompt.images} images", *(["prior study"] if prompt.prior else []), *prompt.context])
            advice = f", or add prompt.context {option}" if isinstance(self.drafter, ChatDrafter) else ""
            raise RadDraftError(f"{self.name} does not read the {option} (it reads: {reads}); leave it out{advice}")

    def _warn_without_priors(self, studies: Sequence[Study]) -> None:
        if self.drafter.prompt.prior and not find_priors(studies):
            warnings.warn("the model also reads the subject's prior study, and no study here has one", stacklevel=3)

    def speculator(self, source: Path | Sequence[Study] | None) -> Speculator | None:
        """What proposes tokens from the training reports of studies, or of their manifest; None without them."""
        if source is None:
            return None
        studies = read_studies(source) if isinstance(source, str | Path) else source
        return Speculator(index_reports(self.drafter, [study for study in studies if study.split == "train"]))


def _listed(images: Iterable[str | Path | Study]) -> Iterable[str | Path | Study]:
    if not isinstance(images, Iterable) or isinstance(images, bytes):
        raise RadDraftError(f"Expected image files, folders or studies, got the {type(images).__name__} {images!r}")
    return images


def find_studies(
    images: Images, indication: str | None = None, view: str | None = None, ids: Ids = "pseudonymous"
) -> list[Study]:
    """Studies as they are, those that DICOM files make up, and for each other file a study whose id is the path.

    DICOM files, named or inside a folder, are grouped as `generator.clinic.grouping` says; what is left out is warned
    of. A DICOM file without a Study Instance UID is a file like others.

    Args:
        images: image files, folders of them, or studies; one or several.
        indication: of all studies that are made.
        view: of images that state none.
        ids: what DICOM studies are called.

    Raises:
        RadDraftError: no image, or an indication or view for studies, which hold their own.
    """
    from generator.corpora.folder import find_image_files

    sections = {"indication": indication} if indication else {}
    items = [images] if isinstance(images, str | Path | Study) else [*_listed(images)]
    found: dict[str, Study | Path] = {}
    named = set()
    for item in items:
        if isinstance(item, Study):
            if indication or view:
                raise RadDraftError(f"Study {item.study_id!r} holds its own indication and view; leave them out")
            found[f"{item.study_id} {item.main_image.path}"] = item  # bytes of a file name may be lost in an id
            continue
        if not isinstance(item, str | Path) or item == "":  # which Path takes for the working directory
            raise RadDraftError(f"Expected an image file, a folder or a study, got {item!r}")
        path = Path(item)
        if not path.is_dir():
            named.add(path)
        for file in find_image_files(path) if path.is_dir() else [path]:
            found.setdefault(str(file), file)
    paths = [one for one in found.values() if isinstance(one, Path)]
    of_file, grouped = study_files(paths, ids, view=view, sections=sections, named=named)
    for file, reason in grouped.left_out:
        warnings.warn(f"left out: {file}: {reason}", stacklevel=2)
    studies: dict[str, Study] = {}
    for key, one in found.items():
        if isinstance(one, Study):
            studies[key] = one
        elif one in of_file:
            study = of_file[one]
            studies.setdefault(study.study_id if study else key, study or _study_of(one, view, sections))
    if not studies:
        raise RadDraftError(f"No image in {', '.join(map(str, items))}")
    return list(studies.values())


def _study_of(file: Path, view: str | None, sections: dict[str, str]) -> Study:
    name = _text_of(file)
    return Study(name, name, "test", [StudyImage(file.absolute(), view)], dict(sections))


def _text_of(file: str | Path) -> str:
    return os.fsencode(file).decode(errors="replace")  # file names may hold any bytes


def name_with_files(study: Study) -> str:
    """The id of a study and, where it is not the path of its one file, the names of its files, for a console."""
    names = [_text_of(image.path.name) for image in study.images]
    return study.study_id if Path(study.study_id).name == names[0] else f"{study.study_id}: {', '.join(names)}"


def report_drafts(drafts: Iterable[Draft], errors: Sequence[str], where: Path | str) -> str:
    """How many drafts are in `where`, how many of them are blank or cut, and a line for each study without a draft."""
    count = blank = known = cut = 0
    for draft in drafts:
        count, blank = count + 1, blank + (not draft.text.strip())
        if draft.cut:
            known, cut = known + 1, cut + draft.cut[0]
    told = f"{count} of {count + len(errors)} drafts are in {where}; blank: {blank}"
    told += f"; cut at the limit of tokens: {cut}" if known else ""
    return "\n".join([told, *(f"no draft: {printable(one)}" for one in errors)])
