"""What llama.cpp writes with a GGUF file of a language model, image embeddings given: run by `benchmarks.exported`.

    ENVIRONMENT/bin/python -I benchmarks/llama_texts.py LM.gguf PROMPTS.npz TOKENS

PROMPTS.npz holds the end tokens ("ends"), and for each prompt its token ids ("ids0" …) [L] and the embeddings of its
images ("images0" …) [T, D] for the ids below 0, in their order. Printed is the list of greedy token ids. It imports
nothing of this project, so it runs in any environment that has llama-cpp-python and numpy.
"""

import ctypes
import json
import os
import sys
from itertools import groupby
from typing import Any

import llama_cpp
import numpy as np


class Decoder:
    """A language model in float32, weights apart: also its cache, which llama.cpp keeps in 16 bits by default."""

    def __init__(self, file: str, length: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = length
        settings.n_threads = settings.n_threads_batch = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0  # disabled
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot read {file}")
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.n_read = 0

    def read(self, what: Any) -> None:
        """Go on with token ids [n], or with embeddings [n, D]."""
        given = np.ascontiguousarray(what, np.int32 if what.ndim == 1 else np.float32)
        batch = llama_cpp.llama_batch_init(len(given), given.shape[1] if given.ndim == 2 else 0, 1)
        ctypes.memmove(batch.embd if given.ndim == 2 else batch.token, given.ctypes.data, given.nbytes)
        batch.n_tokens = len(given)
        for at in range(len(given)):
            batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0] = self.n_read + at, 1, 0
            batch.logits[at] = at == len(given) - 1
        if status := llama_cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode fails with status {status}")
        llama_cpp.llama_batch_free(batch)
        self.n_read += len(given)

    def write(self, ids: Any, images: Any, ends: set[int], limit: int) -> list[int]:
        """Greedy token ids after a prompt, with the end token if there is one."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.n_read = used = 0
        for is_image, group in groupby(ids.tolist(), lambda token: token < 0):
            part = list(group)
            self.read(images[used : used + len(part)] if is_image else np.array(part))
            used += len(part) if is_image else 0
        written: list[int] = []
        while len(written) < limit and not ends & set(written[-1:]):
            if written:
                self.read(np.array(written[-1:]))
            logits = llama_cpp.llama_get_logits_ith(self.context, -1)
            written.append(int(np.ctypeslib.as_array(logits, (self.n_vocab,)).argmax()))
        return written


if __name__ == "__main__":
    file, prompts, tokens = sys.argv[1:]
    given = np.load(prompts)
    count = sum(name.startswith("ids") for name in given)
    longest = max(len(given[f"ids{number}"]) for number in range(count)) + int(tokens)
    decoder, ends = Decoder(file, longest), set(given["ends"].tolist())
    texts = [decoder.write(given[f"ids{i}"], given[f"images{i}"], ends, int(tokens)) for i in range(count)]
    print(json.dumps(texts))
