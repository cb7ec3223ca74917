"""DINOv2's objective (Oquab et al., arXiv 2304.07193): student, teacher, three losses, parameter groups.

    model = Dino(backbone, DinoConfig())
    losses = model(global_crops, local_crops, masks, temperature=0.07)  # losses["loss"].backward()
    model.update_teacher(momentum=0.994)

DINO compares the class tokens of two crops of an image, iBOT the patches that are masked for the student, and KoLeo
spreads the class tokens of a batch. Means, centers, Sinkhorn-Knopp and nearest neighbors are over all processes, so
several processes compute what one would on the whole batch. (The original looks for KoLeo's neighbors on each GPU.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from encoder.recipe import DinoConfig
from raddraft.processes import local


class Head(nn.Module):
    """Three linear layers, then cosines with prototypes: [N, D] -> logits [N, K]. Names are the original DINOHead's."""

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
        """Initialize the weights from features [N, D], so that what tells images apart reaches the prototypes.

        Each layer's outputs get mean 0 and deviation 1 (Salimans & Kingma, arXiv 1602.07868, section 3); prototypes are
        projections of random features. With random weights logits hardly differ between images, and a short run never
        gets away from uniform answers.
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
    """A linear layer with weight normalization, [N, D] -> [N, K]. torch's own cannot be loaded under these names."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1))
        self.weight_v = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_g * functional.normalize(self.weight_v, dim=1))


class Center(nn.Module):
    """Softmax of the teacher's logits after subtracting their running mean (DINO, arXiv 2104.14294, equation 4)."""

    center: Tensor

    def __init__(self, count: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(count))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """[N, K] -> probabilities [N, K], by the mean of earlier batches; then this batch updates the mean."""
        probabilities = ((logits - self.center) / temperature).softmax(-1)
        total = sum_processes(torch.cat([logits.sum(0), logits.new_tensor([len(logits)])]))
        if total[-1] > 0:  # there may be no masked patch anywhere
            self.center.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        return probabilities


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """[N, K] -> assignments [N, K] in which rows sum to 1 and, over all processes, columns nearly alike."""
    highest = logits.max() if len(logits) else logits.new_tensor(-math.inf)
    if is_distributed():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    shares = ((logits - highest) / temperature).exp()
    tiny = torch.finfo(shares.dtype).tiny
    for _ in range(rounds):
        shares = shares / sum_processes(shares.sum(0)).clamp(min=tiny)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=tiny)
    return shares


def koleo(x: Tensor) -> Tensor:
    """Mean of -log of the distance to the nearest neighbor, of vectors [N, D] brought to length 1.

    Neighbors are searched among all processes' vectors, in float32 even under autocast: those of radiographs are too
    much alike to be ranked in 16 bits. A single vector has no neighbor: 0.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = functional.normalize(x.float(), dim=-1, eps=1e-8)
        everyone = gather_rows(x)  # [N * processes, D]
        if len(everyone) == 1:
            return 0 * x.sum()
        first = dist.get_rank() * len(x) if is_distributed() else 0
        with torch.no_grad():
            cosines = x @ everyone.T
            rows = torch.arange(len(x), device=x.device)
            cosines[rows, first + rows] = -1  # not oneself
            nearest = cosines.argmax(1)
        distances = functional.pairwise_distance(x, everyone[nearest], eps=1e-8)
        return -(distances + 1e-8).log().mean()


def is_distributed() -> bool:
    """Whether several processes compute together."""
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
    """Student and teacher, each a backbone and a head; the teacher is a running mean of the student.

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
        if config.centering == "center":
            self.centers = nn.ModuleDict({name: Center(config.prototypes) for name in ("dino", "ibot")})
        self.train()

    @property
    def backbone(self) -> Any:
        """The student's backbone."""
        return self.student["backbone"]

    def train(self, mode: bool = True) -> Dino:
        """Set the training mode; the teacher never drops paths."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, global_crops: Tensor, local_crops: Tensor, masks: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        """Losses of a batch of B images.

        Args:
            global_crops: [2 B, 1 or 3, S, S], the first crops of all images, then the second ones.
            local_crops: [n B, 1 or 3, s, s], in the same order; n may be 0.
            masks: bool [2 B, S / patch, S / patch], true where the student does not see the global crops.
            temperature: of the teacher.

        Returns:
            `loss`, its parts `dino_local`, `dino_global`, `ibot`, `koleo` (each before its weight), and, without
            gradients, the `collapse_signs`.
        """
        masks = masks.flatten(1)  # [2B, P]
        n_local = 2 * len(local_crops) // len(global_crops)
        hidden = masks.flatten().nonzero().squeeze(1)  # once, and first: a GPU waits here to learn how many they are
        teacher_classes, teacher_patches = self._teach(global_crops, hidden, temperature)
        classes, patches = tokens(self.backbone, global_crops, masks)
        local_classes = tokens(self.backbone, local_crops)[0] if n_local else classes[:0]
        logits = self._project(self.student, classes, local_classes, patches.flatten(0, 1)[hidden])
        temper = self.config.student_temperature
        answers, local_answers, patch_answers = ((part.float() / temper).log_softmax(-1) for part in logits)

        taught = teacher_classes.unflatten(0, (2, -1))  # [2, B, K]
        n_pairs = 2 * n_local + 2
        # All pairs of a teacher's and a student's crop at once: the sum of products is the product of the sums.
        locals_ = local_answers.unflatten(0, (n_local, -1)).sum(0) if n_local else torch.zeros_like(taught[0])
        losses = {
            "dino_local": -(taught.sum(0) * locals_).sum(-1).mean() / n_pairs,
            "dino_global": -(taught.flip(0) * answers.unflatten(0, (2, -1))).sum(-1).mean(1).sum() / n_pairs,
        }
        # Each crop's masked patches count as one.
        weights = (1 / masks.sum(1).clamp(min=1))[hidden // masks.shape[1]]
        losses["ibot"] = -((teacher_patches * patch_answers).sum(-1) * weights).sum() / len(masks)
        losses["koleo"] = sum(koleo(crops) for crops in classes.chunk(2))  # not between two crops of an image
        losses["loss"] = (
            self.config.dino_weight * (losses["dino_local"] + losses["dino_global"])
            + self.config.ibot_weight * losses["ibot"]
            + self.config.koleo_weight * losses["koleo"]
        )
        return losses | collapse_signs(teacher_classes, logits[0], answers, classes)

    @torch.no_grad()
    def _teach(self, global_crops: Tensor, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The teacher's answers: for class tokens [2 B, K], and for patches, by their places among all [M], [M, K]."""
        classes, patches = tokens(self.teacher["backbone"], global_crops)
        class_logits, _, patch_logits = self._project(self.teacher, classes, classes[:0], patches.flatten(0, 1)[hidden])
        if self.config.centering == "sinkhorn":
            return sinkhorn(class_logits.float(), temperature), sinkhorn(patch_logits.float(), temperature)
        answers = self.centers["dino"](class_logits.float(), temperature)
        return answers, self.centers["ibot"](patch_logits.float(), temperature)

    def _project(self, network: nn.ModuleDict, classes: Tensor, locals_: Tensor, patches: Tensor) -> list[Tensor]:
        """Logits of class tokens of global and local crops, and of patches."""
        sizes = [len(classes), len(locals_), len(patches)]
        if self.config.separate_ibot_head:
            logits = network["head"](torch.cat([classes, locals_])).split(sizes[:2])
            return [*logits, network["ibot_head"](patches)]
        return list(network["head"](torch.cat([classes, locals_, patches])).split(sizes))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], seed: int) -> None:
        """Initialize the heads of student and teacher from the features of global crops [N, 1 or 3, S, S]."""
        generator = torch.Generator().manual_seed(seed)
        features: dict[str, list[Tensor]] = {"head": [], "ibot_head": []}
        for crops in batches:
            classes, patches = tokens(self.teacher["backbone"], crops)
            features["head"].append(classes)
            chosen = torch.randint(patches.shape[1], (len(crops),), generator=generator).to(crops.device)
            features["ibot_head"].append(patches[torch.arange(len(crops), device=crops.device), chosen])
        if not self.config.separate_ibot_head:
            features["head"] += features.pop("ibot_head")
        for name, parts in features.items():
            head: Any = self.student[name]
            head.calibrate(torch.cat(parts), generator)
            self.teacher[name].load_state_dict(head.state_dict())

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        teacher, student = zip(*((local(mean), local(new)) for mean, new in pairs), strict=True)  # sharded alike
        torch._foreach_lerp_(list(teacher), list(student), 1 - momentum)


def tokens(backbone: Any, crops: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Class tokens [N, D] and patches [N, P, D] after the last LayerNorm; gray crops become three equal channels."""
    output = backbone(crops.expand(-1, 3, -1, -1), bool_masked_pos=masks).last_hidden_state
    return output[:, 0], output[:, 1 + getattr(backbone.config, "num_register_tokens", 0) :]


@torch.no_grad()
def collapse_signs(taught: Tensor, logits: Tensor, answers: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """What tells of a collapse, from the class tokens of N global crops: the first of all images, then the second.

    Args:
        taught: the teacher's probabilities [N, K].
        logits: the student's [N, K], before its temperature.
        answers: the student's log-probabilities [N, K].
        classes: the student's class tokens [N, D].

    Returns:
        `teacher_entropy` and `student_entropy`, mean entropies of the answers in nats, at most ln K; `mean_entropy`,
        entropy of the teacher's mean answer, of all processes: what it has above `teacher_entropy` is what an answer
        tells about an image; `logit_spread`, standard deviation of an image's logits; `cosine`, mean cosine between
        class tokens of different images, of all processes, near 1 in a collapse; `spread`, standard deviation of class
        tokens brought to length 1, times sqrt(D): about 1 is healthy, 0 a collapse.
    """
    mean = sum_processes(taught.mean(0)) / (dist.get_world_size() if is_distributed() else 1)
    unit = functional.normalize(classes.float(), dim=-1)
    first = unit[: len(unit) // 2]
    totals = sum_processes(torch.cat([first.sum(0), first.new_tensor([len(first)])]))
    total, n = totals[:-1], totals[-1]
    return {
        "teacher_entropy": torch.special.entr(taught).sum(-1).mean(),
        "student_entropy": -(answers.exp() * answers).sum(-1).mean(),
        "mean_entropy": torch.special.entr(mean).sum(),
        "logit_spread": logits.float().std(-1).mean(),
        "cosine": (total.square().sum() - n) / (n * (n - 1)).clamp(min=1),
        "spread": unit.std(0).mean() * math.sqrt(unit.shape[1]),
    }


def parameter_groups(model: Dino, layer_decay: float, patch_embed_lr: float) -> Iterator[dict[str, Any]]:
    """The student's parameters with `lr_scale`, `decays` and `prototypes`, for the schedules to set.

    As in DINOv2: the learning rate falls by `layer_decay` from each block to the one before it, that of the patch
    embedding is lower still; biases, norms and layer scales do not decay; prototypes have their own learning rate.
    """
    depth = model.backbone.config.num_hidden_layers
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.student.named_parameters():
        block = re.search(r"\.layer\.(\d+)\.", name)  # before the blocks are the embeddings, after them norm and heads
        before = 0 if name.startswith("backbone.embeddings.") else int(block[1]) + 1 if block else depth + 1
        lr_scale = layer_decay ** (depth + 1 - before)
        if "patch_embeddings" in name:
            lr_scale *= patch_embed_lr
        decays = not (name.endswith("bias") or "norm" in name or "layer_scale" in name)
        groups.setdefault((lr_scale, decays, "last_layer" in name), []).append(parameter)
    for (lr_scale, decays, prototypes), parameters in groups.items():
        yield {"params": parameters, "lr_scale": lr_scale, "decays": decays, "prototypes": prototypes}
