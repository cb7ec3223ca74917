"""What transformers' pipeline("image-text-to-text") writes, in batches: run by `benchmarks.equal_texts`.

    ENVIRONMENT/bin/python -I benchmarks/pipeline_texts.py MODEL MESSAGES.json TOKENS BATCH

MESSAGES.json holds a list of chats, whose images are paths; printed is the list of texts. It imports nothing of this
project, so it runs in any environment that has transformers; -I keeps this folder's tokenizers.py out of its way.
"""

import json
import sys
from pathlib import Path

from transformers import pipeline

if __name__ == "__main__":
    folder, file, tokens, batch = sys.argv[1:]
    chats = json.loads(Path(file).read_text(encoding="utf-8"))
    write = pipeline("image-text-to-text", model=folder, device="cpu")
    answers = write(text=chats, batch_size=int(batch), max_new_tokens=int(tokens), return_full_text=False)
    found = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    print(json.dumps([answer["generated_text"].strip() for answer in found]))
