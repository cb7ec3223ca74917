"""DINOv2's objective against transcriptions of the published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from transformers import AutoModel, Dinov2Config, Dinov2WithRegistersConfig

from encoder.dino import Center, Dino, Head, collapse_signs, koleo, parameter_groups, sinkhorn, tokens
from encoder.recipe import DinoConfig, PretrainConfig
from encoder.start import load_head
from raddraft.schedules import cosine
from tests.launch import SERVER, find_port

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 16,
    "intermediate_size": 64,
}
SMALL = {"prototypes": 24, "head_hidden": 20, "bottleneck": 12}
B, N_LOCAL = 3, 2


def make(registers: bool = False, **config) -> Dino:
    torch.manual_seed(0)
    settings = Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2) if registers else Dinov2Config(**SIZES)
    model = Dino(AutoModel.from_config(settings), DinoConfig(**SMALL, **config))
    with torch.no_grad():  # student and teacher apart, and logits that differ
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def crops() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    masks = torch.rand(2 * B, 4, 4) < 0.4
    masks[1] = False  # a crop that is seen whole
    return torch.randn(2 * B, 1, 16, 16), torch.randn(N_LOCAL * B, 1, 8, 8), masks


def entropy_terms(model: Dino, center: bool) -> dict[str, float]:
    """The losses by loops over crops and patches, as the papers write them."""
    global_crops, local_crops, masks = crops()
    flat = masks.flatten(1)
    with torch.no_grad():
        taught, taught_patches = tokens(model.teacher["backbone"], global_crops)
        seen, seen_patches = tokens(model.student["backbone"], global_crops, flat)
        seelocal_crops, _ = tokens(model.student["backbone"], local_crops)
        patch_head = {
            name: getattr(model, name).__getitem__("ibot_head" if model.config.separate_ibot_head else "head")
            for name in ("teacher", "student")
        }
        teacher_logits = {"class": model.teacher["head"](taught), "patch": patch_head["teacher"](taught_patches[flat])}
        if center:
            q = {
                name: ((x - model.centers[{"class": "dino", "patch": "ibot"}[name]].center) / 0.05).softmax(-1)
                for name, x in teacher_logits.items()
            }
        else:
            q = {name: sinkhorn(x, 0.05) for name, x in teacher_logits.items()}
        log_p = {
            "class": (model.student["head"](seen) / 0.1).log_softmax(-1),
            "local": (model.student["head"](seelocal_crops) / 0.1).log_softmax(-1),
            "patch": (patch_head["student"](seen_patches[flat]) / 0.1).log_softmax(-1),
        }
    n_pairs = 2 * N_LOCAL + 2
    dino_global = dino_local = 0.0
    for half in range(2):
        for image in range(B):
            target = q["class"][half * B + image]
            dino_global -= float(target @ log_p["class"][(1 - half) * B + image]) / B / n_pairs
            for crop in range(N_LOCAL):
                dino_local -= float(target @ log_p["local"][crop * B + image]) / B / n_pairs
    ibot, row = 0.0, 0
    for crop in range(2 * B):
        n_masked = int(flat[crop].sum())
        for _ in range(n_masked):
            ibot -= float(q["patch"][row] @ log_p["patch"][row]) / n_masked / (2 * B)
            row += 1
    spread = 0.0
    for half in range(2):
        unit = [row / row.norm() for row in seen[half * B : (half + 1) * B]]
        for i in range(B):
            nearest = min(float((unit[i] - unit[j]).norm()) for j in range(B) if j != i)
            spread -= math.log(nearest) / B
    return {"dino_global": dino_global, "dino_local": dino_local, "ibot": ibot, "koleo": spread}


@pytest.mark.parametrize("centering", ["center", "sinkhorn"])
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_losses_equal_the_published_formulas(centering, registers, separate):
    model = make(registers, centering=centering, separate_ibot_head=separate)
    if centering == "center":
        for module in model.centers.values():
            module.center.normal_(std=0.05)
    expected = entropy_terms(model, centering == "center")
    losses = model(*crops(), temperature=0.05)
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, abs=1e-5), name
    config = model.config
    total = expected["dino_global"] + expected["dino_local"] + config.ibot_weight * expected["ibot"]
    assert float(losses["loss"]) == pytest.approx(total + 0.1 * expected["koleo"], abs=1e-5)


def test_loss_without_local_crops_or_masks_is_the_global_one():
    model = make(ibot_weight=0.0, koleo_weight=0.0)
    global_crops, local_crops, masks = crops()
    losses = model(global_crops, local_crops[:0], torch.zeros_like(masks), temperature=0.05)
    assert float(losses["ibot"]) == 0
    assert float(losses["dino_local"]) == 0
    assert torch.equal(losses["loss"], losses["dino_global"])


def test_center_is_subtracted_before_it_moves():
    center = Center(5)
    center.center.copy_(torch.arange(5.0))
    logits = torch.randn(7, 5)
    answers = center(logits, 0.07)
    assert torch.allclose(answers, ((logits - torch.arange(5.0)) / 0.07).softmax(-1))
    assert torch.allclose(center.center, 0.9 * torch.arange(5.0) + 0.1 * logits.mean(0))
    before = center.center.clone()
    assert center(logits[:0], 0.07).shape == (0, 5)
    assert torch.equal(center.center, before)


def test_sinkhorn_equals_the_rounds_of_the_paper():
    logits = torch.randn(6, 4)
    q = torch.exp(logits / 0.05).double().T  # [K, B]
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 4
        q /= q.sum(0, keepdim=True) * 6
    found = sinkhorn(logits, 0.05)
    assert torch.allclose(found.double(), (q * 6).T, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(6))


def test_sinkhorn_survives_logits_far_apart():
    assert sinkhorn(torch.tensor([[1000.0, 0.0], [0.0, 1000.0], [-1000.0, 1000.0]]), 0.04).isfinite().all()


def test_koleo_of_equal_and_of_orthogonal_directions():
    same = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    assert float(koleo(same)) > 15, "vectors of one direction have no distance"
    far = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(koleo(far)) == pytest.approx(-math.log(math.sqrt(2)), abs=1e-5)


def test_koleo_finds_neighbours_of_alike_vectors_under_autocast():
    x = 20 + torch.randn(64, 32)  # cosines of .99 and more
    with torch.autocast("cpu", torch.bfloat16):
        found = koleo(x)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(koleo(x)), abs=1e-6)


def test_losses_equal_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    x = torch.randn(8, 16)
    assert float(koleo(x)) == pytest.approx(float(loss.KoLeoLoss()(x)), abs=1e-5)
    heads = pytest.importorskip("lightly.models.modules.heads")
    theirs = heads.DINOv2ProjectionHead(input_dim=16, hidden_dim=20, bottleneck_dim=12, output_dim=24)
    ours = Head(16, DinoConfig(**SMALL))
    ours.mlp.load_state_dict(
        {
            f"{i}.{k}": v
            for i, layer in zip((0, 2, 4), [m for m in theirs.layers if isinstance(m, torch.nn.Linear)], strict=True)
            for k, v in layer.state_dict().items()
        }
    )
    with torch.no_grad():
        ours.last_layer.weight_v.copy_(
            next(p for n, p in theirs.last_layer.named_parameters() if n.endswith(("weight_v", "original1")))
        )
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_teacher_gets_no_gradient_and_follows_the_student():
    model = make()
    model(*crops(), temperature=0.05)["loss"].backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.teacher.parameters())
    missing = [name for name, parameter in model.student.named_parameters() if parameter.grad is None]
    assert missing == []
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    model.update_teacher(0.9)
    for old, new, student in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.allclose(new, 0.9 * old + 0.1 * student, atol=1e-6)
    assert model.train().teacher.training is False


def test_signs_of_collapse_tell_a_collapsed_network():
    model = make()
    healthy = model(*crops(), temperature=0.05)
    with torch.no_grad():  # one answer for all
        for network in (model.student, model.teacher):
            network["backbone"].layernorm.weight.zero_()
            network["backbone"].layernorm.bias.fill_(1.0)
    dead = model(*crops(), temperature=0.05)
    assert float(dead["spread"]) == pytest.approx(0, abs=1e-5)
    assert float(healthy["spread"]) > 0.1
    assert float(dead["mean_entropy"]) == pytest.approx(float(dead["teacher_entropy"]), abs=1e-5)
    assert float(healthy["mean_entropy"]) > float(healthy["teacher_entropy"])
    assert float(dead["cosine"]) == pytest.approx(1, abs=1e-5)
    assert float(healthy["cosine"]) < 0.9
    assert float(dead["logit_spread"]) > 0  # the one answer need not be uniform
    assert 0 < float(dead["student_entropy"]) < math.log(SMALL["prototypes"])


def test_signs_of_collapse_are_what_they_are_called():
    random = np.random.default_rng(0)
    logits, classes = random.normal(size=(6, 5)), random.normal(size=(6, 4))
    taught = random.dirichlet(np.ones(5), 6)
    answers = logits / 0.1 - np.log(np.exp(logits / 0.1).sum(1, keepdims=True))
    signs = collapse_signs(*(torch.from_numpy(one) for one in (taught, logits, answers, classes)))
    unit = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i in range(3) for j in range(3) if i != j]  # not of two crops of an image
    assert float(signs["cosine"]) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert float(signs["student_entropy"]) == pytest.approx(np.mean([entropy(row) for row in np.exp(answers)]))
    assert float(signs["teacher_entropy"]) == pytest.approx(np.mean([entropy(row) for row in taught]))
    assert float(signs["mean_entropy"]) == pytest.approx(entropy(taught.mean(0)))
    assert float(signs["logit_spread"]) == pytest.approx(logits.std(1, ddof=1).mean(), abs=1e-6)


def dinov2_schedule(base, final, total, warmup=0, start=0.0) -> np.ndarray:
    """The array that DINOv2's CosineScheduler holds."""
    rest = np.arange(total - warmup)
    cosine_part = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))
    return np.concatenate([np.linspace(start, base, warmup), cosine_part])


def test_schedules_equal_dinov2s_at_every_step():
    config = PretrainConfig(steps=200, batch_size=256, lr=0.004)
    lr = dinov2_schedule(0.004 * math.sqrt(256 / 1024), 1e-6, 200, 20)
    expected = {
        "lr": lr,
        "lr_prototypes": np.where(np.arange(200) < 2, 0, lr),
        "weight_decay": dinov2_schedule(0.04, 0.4, 200),
        "momentum": dinov2_schedule(0.992, 1, 200),
        "temperature": np.concatenate([np.linspace(0.04, 0.07, 60), np.full(140, 0.07)]),
    }
    for step in range(200):
        assert config.at(step) == pytest.approx({name: values[step] for name, values in expected.items()}, abs=1e-9)
    assert cosine(1.0, 0.25, 10_000, 200) == 0.25


def test_calibrated_heads_tell_crops_apart_from_the_start():
    """With random weights the answers are nearly uniform; after calibration they carry information on the image."""
    torch.manual_seed(0)
    settings = Dinov2Config(**SIZES)
    global_crops, local_crops = torch.randn(64, 1, 16, 16), torch.randn(32, 1, 8, 8)
    known = {}
    for calibrated in (False, True):
        model = Dino(AutoModel.from_config(settings), DinoConfig(**SMALL, separate_ibot_head=True))
        if calibrated:
            model.calibrate([torch.randn(64, 1, 16, 16) for _ in range(2)], seed=0)
        signs = model(global_crops, local_crops, torch.zeros(64, 4, 4, dtype=torch.bool), temperature=0.04)
        known[calibrated] = float(signs["mean_entropy"] - signs["teacher_entropy"])
        for name in ("head", "ibot_head"):
            pairs = zip(model.student[name].parameters(), model.teacher[name].parameters(), strict=True)
            assert all(torch.equal(student, teacher) for student, teacher in pairs)
    assert known[True] > 3 * known[False]
    x = torch.randn(40, 32) * 3 + 5
    head = Head(32, DinoConfig(**SMALL))
    head.calibrate(x, torch.Generator())
    assert torch.allclose(head.mlp(x).mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(head.mlp(x).std(0), torch.ones(12), atol=1e-4)


def test_parameter_groups_decay_by_layer():
    model = make()
    groups = list(parameter_groups(model, 0.9, 0.2))
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    student = dict(model.student.named_parameters())
    assert len(of) == len(student)

    def group(name):
        found = of[id(student[name])]
        return round(found["lr_scale"], 9), found["decays"], found["prototypes"]

    assert group("backbone.embeddings.cls_token") == (round(0.9**3, 9), True, False)
    assert group("backbone.embeddings.patch_embeddings.projection.weight") == (round(0.2 * 0.9**3, 9), True, False)
    assert group("backbone.encoder.layer.0.mlp.fc1.weight") == (round(0.9**2, 9), True, False)
    assert group("backbone.encoder.layer.1.mlp.fc1.bias") == (0.9, False, False)
    assert group("backbone.encoder.layer.1.layer_scale1.lambda1") == (0.9, False, False)
    assert group("backbone.layernorm.weight") == (1.0, False, False)
    assert group("head.mlp.0.weight") == (1.0, True, False)
    assert group("head.last_layer.weight_v") == (1.0, True, True)


def test_published_head_loads_strictly(tmp_path):
    """Names and shapes of RAD-DINO's dino_head.safetensors, at small sizes."""
    model = make()
    shapes = {
        "mlp.0.weight": (20, 32),
        "mlp.0.bias": (20,),
        "mlp.2.weight": (20, 20),
        "mlp.2.bias": (20,),
        "mlp.4.weight": (12, 20),
        "mlp.4.bias": (12,),
        "last_layer.weight_g": (24, 1),
        "last_layer.weight_v": (24, 12),
    }
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "dino_head.safetensors")
    load_head(model, tmp_path / "dino_head.safetensors")
    for network in (model.student, model.teacher):
        assert all(torch.equal(network["head"].state_dict()[name], value) for name, value in weights.items())
    x = torch.randn(3, 12)
    rows = (
        weights["last_layer.weight_g"]
        * weights["last_layer.weight_v"]
        / weights["last_layer.weight_v"].norm(dim=1, keepdim=True)
    )
    assert torch.allclose(model.student["head"].last_layer(x), x @ rows.T, atol=1e-5)
    save_file({name: value for name, value in weights.items() if name != "mlp.4.bias"}, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"mlp\.4\.bias"):
        load_head(model, tmp_path / "short.safetensors")
    assert load_file(tmp_path / "dino_head.safetensors").keys() == model.student["head"].state_dict().keys()


def test_public_heads_size():
    with torch.device("meta"):
        head = Head(768, DinoConfig())
    assert sum(parameter.numel() for parameter in head.parameters()) == 23_138_560  # 92.5 MB in float32


def _share(rank: int, port: int, queue) -> None:
    """One of two processes: its half of the batch through koleo, Sinkhorn and the center."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    mine = x[rank * 4 : rank * 4 + 4].clone().requires_grad_()
    loss = koleo(mine)
    loss.backward()
    center = Center(6)
    center(x[rank * 4 : rank * 4 + 4], 0.05)
    queue.put(
        (
            rank,
            float(loss),
            mine.grad.numpy(),
            sinkhorn(x[rank * 4 : rank * 4 + 4], 0.05).numpy(),
            center.center.numpy(),
        )
    )
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_would_on_the_whole_batch():
    port, queue = find_port(), SERVER.SimpleQueue()
    processes = [SERVER.Process(target=_share, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted((queue.get() for _ in processes), key=lambda row: row[0])
    for process in processes:
        process.join()
    torch.manual_seed(0)
    x = torch.randn(8, 6, requires_grad=True)
    loss = koleo(x)
    loss.backward()
    center = Center(6)
    center(x.detach(), 0.05)
    assert np.mean([row[1] for row in found]) == pytest.approx(float(loss), abs=1e-5)
    # Each process's loss is a mean over its half, and training averages the gradients of processes.
    assert np.allclose(np.concatenate([row[2] for row in found]) / 2, x.grad.numpy(), atol=1e-5)
    assert np.allclose(np.concatenate([row[3] for row in found]), sinkhorn(x.detach(), 0.05).numpy(), atol=1e-6)
    assert all(np.allclose(row[4], center.center.numpy(), atol=1e-6) for row in found)
