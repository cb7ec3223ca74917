#!/usr/bin/env bash
# One expects a LLaVA folder that transformers 5 has saved to be the same model in transformers 4.57, or to be refused.
# With a CLIP tower 5.24 writes model.vision_tower.… without the level vision_model. that 4.57 looks for: 4.57 loads the
# folder with a warning, draws the whole tower at random, and so generates from another model each time.
# Seen with transformers 5.24.0 and 4.57.6, torch 2.14.1 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.24.0 4.57.6; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "transformers==$version" "torch==2.14.1" 2>/dev/null
done
cat > "$folder/try.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

folder = Path(sys.argv[1])
if not (folder / "model").exists():
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=63, image_seq_length=4)
    LlavaForConditionalGeneration(config).save_pretrained(
        folder / "model"
    )
ids = torch.tensor([[1, 63, 63, 63, 63, 5, 6]])
pixels = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
model = LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
with torch.no_grad():
    logits = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
stored = folder / "logits.pt"
if not stored.exists():
    torch.save(logits, stored)
    print(f"saved and read by transformers {transformers.__version__}")
else:
    apart = (logits - torch.load(stored)).abs().max().item()
    print(f"read by transformers {transformers.__version__}: logits differ by {apart:.1e}")
    assert apart > 1e-3, "transformers 4.57 reads the CLIP tower of a LLaVA folder that 5.24 has saved"
PYTHON
for version in 5.24.0 4.57.6; do
  "$folder/$version/bin/python" "$folder/try.py" "$folder" 2>"$folder/stderr" || { cat "$folder/stderr" >&2; exit 1; }
  grep -o "newly initialized" "$folder/stderr" | head -1 || true
done
