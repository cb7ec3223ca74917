#!/usr/bin/env bash
# One expects T5Config(tie_word_embeddings=False) to build a T5 whose output layer has weights of its own, as T5 v1.1 and
# its descendants are published. In transformers 5 the argument only turns off a scaling of the decoder's output: the
# config reports True, and a new model shares one tensor between shared.weight and lm_head.weight, without a warning.
# A checkpoint that holds both is loaded right, so random models of such a layout are the ones that are not alike.
# Seen with transformers 5.24.0, torch 2.14.1 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "torch==2.14.1" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
config = T5Config(tie_word_embeddings=False, **sizes)
model = T5ForConditionalGeneration(config)
shared = model.lm_head.weight is model.shared.weight
print("transformers", transformers.__version__, "torch", torch.__version__)
print("asked for tie_word_embeddings=False: config says", config.tie_word_embeddings, "and weights are shared:", shared)
model.shared.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
with torch.no_grad():
    model.lm_head.weight.add_(1)
    model.save_pretrained(sys.argv[1])
again = T5ForConditionalGeneration.from_pretrained(sys.argv[1])
apart = not torch.equal(again.lm_head.weight, again.shared.weight)
print("loaded from a checkpoint with both, different: kept apart:", apart)
assert config.tie_word_embeddings is True and shared and apart, "the argument counts now"
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder/model"
