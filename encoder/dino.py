"""DINOv2's objective (Oquab et al., arXiv 2304.07193): student, teacher, three losses, schedules, parameter groups.

    model = Dino(backbone, DinoConfig())
    losses = model(globals_, locals_, masks, temperature=0.07)  # losses["loss"].backward()
    model.update_teacher(momentum=0.994)

DINO compares the class tokens of two views of an image, iBOT the patches that the student did not see, KoLeo spreads
the class tokens of a batch. Means, centres, Sinkhorn-Knopp and nearest neighbours are over all processes, so that
several processes compute what one would on the whole batch. (The original looks for KoLeo's neighbours on each GPU.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from raddraft.errors import RadDraftError
from raddraft.processes import local


@dataclass
class DinoConfig:
    """The objective; defaults are DINOv2's (its ssl_default_config.yaml)."""

    dino_weight: float = 1.0
    """Of the cross-entropy between class tokens."""
    ibot_weight: float = 1.0
    """Of the cross-entropy between masked patches; 0 leaves masked image modelling out."""
    koleo_weight: float = 0.1
    """Of the nearest-neighbour entropy of the class tokens (Sablayrolles et al., arXiv 1806.03198)."""
    prototypes: int = 65536
    """Outputs of the head. Small data sets need fewer."""
    head_hidden: int = 2048
    """Width of the head's two hidden layers."""
    bottleneck: int = 256
    """Width before the last, weight-normalised layer."""
    separate_ibot_head: bool = False
    """Give patches a head of their own instead of sharing that of the class tokens."""
    centring: Literal["centre", "sinkhorn"] = "centre"
    """What keeps the teacher from giving all images the same answer: subtracting a running mean (DINO), or three
    rounds of Sinkhorn-Knopp (SwAV, arXiv 2006.09882)."""
    student_temperature: float = 0.1
    """The teacher's is a schedule."""
    mask_probability: float = 0.5
    """Share of the global crops of which the student sees a part only."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Range of the share of patches that is hidden in those."""

    def __post_init__(self) -> None:
        if min(self.dino_weight, self.ibot_weight, self.koleo_weight) < 0 or not self.dino_weight + self.ibot_weight:
            raise RadDraftError(f"objective: weights must be at least 0, and DINO's or iBOT's above, got {self}")
        if not 0 <= self.mask_probability <= 1 or not 0 < self.mask_ratio[0] <= self.mask_ratio[1] < 1:
            raise RadDraftError(
                f"objective: need 0 <= mask_probability <= 1 and 0 < mask_ratio < 1 in rising order, got "
                f"{self.mask_probability} and {self.mask_ratio}"
            )


class Head(nn.Module):
    """Three linear layers, then cosines with prototypes: [N, D] -> logits [N, K].

    Names and shapes are those of the original DINOHead, so that a published `dino_head.safetensors` loads strictly.
    """

    def __init__(self, width: int, config: DinoConfig) -> None:
        super().__init__()
        hidden, bottleneck = config.head_hidden, config.bottleneck
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, config.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        # Half precision cannot hold the default's 1e-12.
        return self.last_layer(functional.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12))

    @torch.no_grad()
    def calibrate(self, x: Tensor, generator: torch.Generator) -> None:
        """Set new weights by features [N, D], so that what tells images apart is all that reaches the prototypes.

        Each layer's outputs get mean 0 and deviation 1 (Salimans & Kingma, arXiv 1602.07868, section 3), and the
        prototypes are the projections of random features. With random weights nearly all of the logits is common to
        all images: the centre takes it away, answers start uniform, and a short run never gets away from that.
        """
        x = x.float()
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                y = functional.linear(x, layer.weight)
                mean, deviation = y.mean(0), y.std(0).clamp(min=1e-6)
                layer.weight.div_(deviation[:, None])
                layer.bias.copy_(-mean / deviation)
            x = layer(x)
        count = len(self.last_layer.weight_v)
        rounds = [torch.randperm(len(x), generator=generator) for _ in range(math.ceil(count / len(x)))]
        chosen = torch.cat(rounds)[:count].to(x.device)
        self.last_layer.weight_v.copy_(functional.normalize(x[chosen], dim=1))


class Prototypes(nn.Module):
    """A linear layer with weight normalisation, [N, D] -> [N, K]: rows of length `weight_g`, which starts at 1.

    Written out, since torch's own weight norm can be neither deep-copied nor loaded under these names.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1))
        self.weight_v = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_g * functional.normalize(self.weight_v, dim=1))


class Centre(nn.Module):
    """Softmax of the teacher's logits after subtracting their running mean (DINO, arXiv 2104.14294, equation 4)."""

    centre: Tensor

    def __init__(self, count: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(count))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """[N, K] -> probabilities [N, K], by the mean of the batches before; then this batch moves the mean."""
        probabilities = ((logits - self.centre) / temperature).softmax(-1)
        total = sum_processes(torch.cat([logits.sum(0), logits.new_tensor([len(logits)])]))
        if total[-1] > 0:  # no patch may be masked anywhere
            self.centre.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        return probabilities


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """[N, K] -> assignments [N, K] in which rows sum to 1 and, over all processes, columns nearly alike."""
    highest = logits.max() if len(logits) else logits.new_tensor(-math.inf)
    if is_distributed():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    shares = ((logits - highest) / temperature).exp()
    for _ in range(rounds):
        columns = sum_processes(shares.sum(0))
        shares = shares / columns.clamp(min=torch.finfo(shares.dtype).tiny)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    return shares


def koleo(x: Tensor) -> Tensor:
    """Mean of -log of the distance to the nearest neighbour, of vectors [N, D] brought to length 1.

    Neighbours are looked for in the batch of all processes, in float32 whatever autocast says: vectors that are alike,
    as those of radiographs are, cannot be ranked in 16 bits.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _koleo(x.float())


def _koleo(x: Tensor) -> Tensor:
    x = functional.normalize(x, dim=-1, eps=1e-8)
    everyone = gather_rows(x)  # [N * processes, D]
    first = dist.get_rank() * len(x) if is_distributed() else 0
    with torch.no_grad():
        cosines = x @ everyone.T
        rows = torch.arange(len(x), device=x.device)
        cosines[rows, first + rows] = -1  # not oneself
        nearest = cosines.argmax(1)
    distances = functional.pairwise_distance(x, everyone[nearest], eps=1e-8)
    return -(distances + 1e-8).log().mean()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_processes(x: Tensor) -> Tensor:
    """Sum of `x` over all processes; `x` itself where there is one."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def gather_rows(x: Tensor) -> Tensor:
    """Rows [N, D] of all processes, in their order; gradients flow back to the process they came from."""
    if not is_distributed():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x))


class Dino(nn.Module):
    """Student and teacher: a backbone and a head each; the teacher is a running mean of the student.

    Args:
        backbone: a DINOv2-like transformers model, which takes `bool_masked_pos`.
        config: the objective.
    """

    def __init__(self, backbone: Any, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        width = backbone.config.hidden_size
        self.student = nn.ModuleDict({"backbone": backbone, "head": Head(width, config)})
        if config.separate_ibot_head:
            self.student["ibot_head"] = Head(width, config)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        if config.centring == "centre":
            self.centres = nn.ModuleDict({name: Centre(config.prototypes) for name in ("dino", "ibot")})
        self.train()

    @property
    def backbone(self) -> Any:
        """The student's."""
        return self.student["backbone"]

    def train(self, mode: bool = True) -> Dino:
        """As of any module, but the teacher never drops paths."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, global_crops: Tensor, local_crops: Tensor, masks: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        """Losses of a batch of B images.

        Args:
            global_crops: [2 B, 1 or 3, S, S], the first crops of all images, then the second ones.
            local_crops: [n B, 1 or 3, s, s], likewise; n may be 0.
            masks: bool [2 B, S / patch, S / patch]: what the student does not see of the global crops.
            temperature: of the teacher.

        Returns:
            `loss`, its parts `dino_local`, `dino_global`, `ibot`, `koleo` (each before its weight), and, without
            gradients, signs of collapse: `teacher_entropy`, mean entropy of the teacher's answers; `mean_entropy`,
            entropy of its mean answer, falling to the former as all images get the same; `spread`, standard deviation
            of the student's class tokens brought to length 1, times sqrt(D): near 1 is healthy, 0 is collapse.
        """
        masks = masks.flatten(1)  # [2B, P]
        n_local = 2 * len(local_crops) // len(global_crops)
        hidden = masks.flatten().nonzero().squeeze(1)  # once, and first: a GPU waits here to learn how many they are
        teacher_classes, teacher_patches = self._teach(global_crops, hidden, temperature)
        classes, patches = tokens(self.backbone, global_crops, masks)
        local_classes = tokens(self.backbone, local_crops)[0] if n_local else classes[:0]
        seen = (classes, local_classes, patches.flatten(0, 1)[hidden])
        logits = self._project(self.student, *seen)
        temper = self.config.student_temperature
        answers, local_answers, patch_answers = ((part.float() / temper).log_softmax(-1) for part in logits)

        views = teacher_classes.unflatten(0, (2, -1))  # [2, B, K]
        n_pairs = 2 * n_local + 2
        # All pairs of a teacher's and a student's view at once: the sum of products is the product of the sums.
        locals_ = local_answers.unflatten(0, (n_local, -1)).sum(0) if n_local else torch.zeros_like(views[0])
        losses = {
            "dino_local": -(views.sum(0) * locals_).sum(-1).mean() / n_pairs,
            "dino_global": -(views.flip(0) * answers.unflatten(0, (2, -1))).sum(-1).mean(1).sum() / n_pairs,
        }
        # Each crop's masked patches count as one.
        weights = (1 / masks.sum(1).clamp(min=1))[hidden // masks.shape[1]]
        losses["ibot"] = -((teacher_patches * patch_answers).sum(-1) * weights).sum() / len(masks)
        losses["koleo"] = sum(koleo(view) for view in classes.chunk(2))  # not between two views of an image
        losses["loss"] = (
            self.config.dino_weight * (losses["dino_local"] + losses["dino_global"])
            + self.config.ibot_weight * losses["ibot"]
            + self.config.koleo_weight * losses["koleo"]
        )
        return losses | collapse_signs(teacher_classes, classes)

    @torch.no_grad()
    def _teach(self, global_crops: Tensor, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The teacher's answers: for class tokens [2 B, K], and for patches, by their places among all [M], [M, K]."""
        classes, patches = tokens(self.teacher["backbone"], global_crops)
        class_logits, _, patch_logits = self._project(self.teacher, classes, classes[:0], patches.flatten(0, 1)[hidden])
        parts = {"dino": class_logits.float(), "ibot": patch_logits.float()}
        if self.config.centring == "centre":
            dino, ibot = (self.centres[name](logits, temperature) for name, logits in parts.items())
        else:
            dino, ibot = (sinkhorn(logits, temperature) for logits in parts.values())
        return dino, ibot

    def _project(self, network: nn.ModuleDict, classes: Tensor, locals_: Tensor, patches: Tensor) -> list[Tensor]:
        """Logits of class tokens of global and local crops, and of patches."""
        sizes = [len(classes), len(locals_), len(patches)]
        if self.config.separate_ibot_head:
            logits = network["head"](torch.cat([classes, locals_])).split(sizes[:2])
            return [*logits, network["ibot_head"](patches)]
        return list(network["head"](torch.cat([classes, locals_, patches])).split(sizes))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], seed: int) -> None:
        """Set new heads, the same in student and teacher, by the features of global crops [N, 1 or 3, S, S]."""
        generator = torch.Generator().manual_seed(seed)
        classes, patches = [], []
        for crops in batches:
            of_classes, of_patches = tokens(self.teacher["backbone"], crops)
            classes.append(of_classes)
            chosen = torch.randint(of_patches.shape[1], (len(crops),), generator=generator).to(crops.device)
            patches.append(of_patches[torch.arange(len(crops), device=crops.device), chosen])
        features = {"head": torch.cat(classes), "ibot_head": torch.cat(patches)}
        if not self.config.separate_ibot_head:
            features = {"head": torch.cat([*classes, *patches])}
        for name, x in features.items():
            head: Any = self.student[name]
            head.calibrate(x, generator)
            self.teacher[name].load_state_dict(head.state_dict())

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        teacher, student = zip(*((local(mean), local(new)) for mean, new in pairs), strict=True)  # cut alike
        torch._foreach_lerp_(list(teacher), list(student), 1 - momentum)


def tokens(backbone: Any, crops: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Class tokens [N, D] and patches [N, P, D] behind the last LayerNorm; grey crops become three equal channels."""
    output = backbone(crops.expand(-1, 3, -1, -1), bool_masked_pos=masks).last_hidden_state
    return output[:, 0], output[:, 1 + getattr(backbone.config, "num_register_tokens", 0) :]


@torch.no_grad()
def collapse_signs(answers: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """See `Dino.forward`; answers [N, K] are probabilities, classes [N, D] features."""
    mean = sum_processes(answers.mean(0)) / (dist.get_world_size() if is_distributed() else 1)
    unit = functional.normalize(classes.float(), dim=-1)
    return {
        "teacher_entropy": torch.special.entr(answers).sum(-1).mean(),
        "mean_entropy": torch.special.entr(mean).sum(),
        "spread": unit.std(0).mean() * math.sqrt(unit.shape[1]),
    }


def cosine(step: int, base: float, final: float, n_steps: int, warmup: int = 0, start: float = 0.0) -> float:
    """DINOv2's schedule at `step`, from 0: linear from `start` to `base`, both included, then half a cosine."""
    if step < warmup:
        return start + (base - start) * step / max(1, warmup - 1)
    if step >= n_steps:
        return final
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (step - warmup) / (n_steps - warmup)))


def parameter_groups(model: Dino, layer_decay: float, patch_embed_lr: float) -> Iterator[dict[str, Any]]:
    """The student's parameters with `lr_scale`, `decays` and `prototypes`, for the schedules to set.

    As in DINOv2: the learning rate falls by `layer_decay` from block to block towards the input, that of the patch
    embedding is lower still; biases, norms and layer scales do not decay; prototypes have their own learning rate.
    """
    depth = model.backbone.config.num_hidden_layers
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.student.named_parameters():
        lr_scale = layer_decay ** (depth + 1 - _layer(name, depth))
        if "patch_embeddings" in name:
            lr_scale *= patch_embed_lr
        decays = not (name.endswith("bias") or "norm" in name or "layer_scale" in name)
        groups.setdefault((lr_scale, decays, "last_layer" in name), []).append(parameter)
    for (lr_scale, decays, prototypes), parameters in groups.items():
        yield {"params": parameters, "lr_scale": lr_scale, "decays": decays, "prototypes": prototypes}


def _layer(name: str, depth: int) -> int:
    """0 for the embeddings, i + 1 for block i, depth + 1 for the last LayerNorm and the heads."""
    if name.startswith("backbone.embeddings."):
        return 0
    parts = name.split(".")
    return int(parts[parts.index("layer") + 1]) + 1 if "layer" in parts else depth + 1
