#!/usr/bin/env bash
# One expects `accelerate launch --num_processes 2` to start two processes that know of each other, or to say why not. On a
# machine without GPUs --cpu starts a single one; --multi_gpu starts two, with WORLD_SIZE=2, and in each of them
# Accelerator() reports one process, index 0: both do the whole work and write to the same places. Neither is an error
# or a warning. With ACCELERATE_USE_CPU=true in the environment the two find each other.
# Seen with accelerate 1.15.0, torch 2.14.1 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "accelerate==1.15.0" "torch==2.14.1" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import os

from accelerate import Accelerator

state = Accelerator()
print(f"WORLD_SIZE {os.environ.get('WORLD_SIZE', 'unset')}: process {state.process_index} of {state.num_processes}\n", end="")
PYTHON
launch() {
  CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/accelerate" launch "$1" --num_processes 2 --main_process_port 0 \
    "$folder/try.py" 2>/dev/null | sort
}
"$folder/venv/bin/pip" list 2>/dev/null | grep -E "^(accelerate|torch) "
cpu=$(launch --cpu)
lone=$(launch --multi_gpu)
joined=$(ACCELERATE_USE_CPU=true launch --multi_gpu)
printf -- '--cpu:\n%s\n--multi_gpu:\n%s\n--multi_gpu, ACCELERATE_USE_CPU=true:\n%s\n' "$cpu" "$lone" "$joined"
test "$(grep -c 'process 0 of 1' <<< "$cpu")" = 1
test "$(grep -c 'WORLD_SIZE 2: process 0 of 1' <<< "$lone")" = 2
test "$(grep -c 'of 2' <<< "$joined")" = 2
