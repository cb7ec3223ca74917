"""What optimum-intel's OVModelForVisualCausalLM writes: run by `benchmarks.exported`.

    ENVIRONMENT/bin/python -I benchmarks/openvino_texts.py FOLDER CHATS.json TOKENS BATCH

FOLDER is what `optimum-cli export openvino` wrote, CHATS.json holds a list of chats, whose images are paths; printed is
the list of texts. They are written one by one, whatever BATCH says. All is held in float32: by default OpenVINO may
compute in 16 bits, and keeps the cache of keys and values in 8. It imports nothing of this project, so it runs in any
environment that has optimum-intel[openvino].
"""

import json
import sys
from pathlib import Path

from optimum.intel import OVModelForVisualCausalLM
from PIL import Image
from transformers import AutoProcessor

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}

if __name__ == "__main__":
    folder, file, tokens, _ = sys.argv[1:]
    model = OVModelForVisualCausalLM.from_pretrained(folder, ov_config=EXACT)
    processor = AutoProcessor.from_pretrained(folder)
    texts = []
    for chat in json.loads(Path(file).read_text(encoding="utf-8")):
        images = [Image.open(part["image"]).convert("RGB") for part in chat[0]["content"] if part["type"] == "image"]
        prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=prompt, images=images, return_tensors="pt", add_special_tokens=False)
        new = model.generate(**inputs, max_new_tokens=int(tokens), do_sample=False)[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(new, skip_special_tokens=True).strip())
    print(json.dumps(texts))
