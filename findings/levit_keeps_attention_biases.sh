#!/usr/bin/env bash
# One expects a model in eval mode to follow the weights that load_state_dict gives it, and a config to stay as it was
# when a model is built from it. transformers' LeViT keeps attention biases of its first pass in eval mode and goes on
# with them after load_state_dict, until train() is called; so two models with equal weights give different outputs. And
# each model that is built from a LevitConfig appends an entry to its down_ops, which is then saved.
# Seen with transformers 5.24.0, torch 2.14.1 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "torch==2.14.1" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import torch
import transformers
from transformers import LevitConfig, LevitModel

config = LevitConfig()
before = len(config.down_ops)
models = []
for seed in (0, 1):
    torch.manual_seed(seed)
    model = LevitModel(config).eval()
    for name, parameter in model.named_parameters():
        if "attention_biases" in name:  # zeros at first, trained in every checkpoint
            torch.nn.init.normal_(parameter)
    model.train()
    for _ in range(25):  # so that the norms have statistics, as in a checkpoint
        model(torch.randn(4, 3, 224, 224))
    models.append(model.eval())
grown = len(config.down_ops)
first, second = models
pixels = torch.randn(1, 3, 224, 224)


def apart():
    """Largest difference of the two models' outputs."""
    with torch.no_grad():
        return (first(pixels).last_hidden_state - second(pixels).last_hidden_state).abs().max().item()


apart()  # a pass in eval mode
second.load_state_dict(first.state_dict())
stale = apart()
second.train().eval()
fresh = apart()
print("transformers", transformers.__version__, "torch", torch.__version__)
print(f"equal weights after a pass in eval mode: outputs differ by {stale:.1e}; after train().eval() by {fresh:.1e}")
print(f"entries of config.down_ops: {before}, after two models {grown}")
assert stale > 1e-5 and fresh == 0 and grown == before + 2, "LeViT follows its weights and leaves its config alone now"
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
