#!/usr/bin/env bash
# One expects jsonargparse to print a config that it can read again: parser.dump() of the defaults is what
# --print_config shows. So it is for dataclasses, and for lists of dataclasses that came from the command line or a
# file. But where the DEFAULT of a field is a tuple (or list) of dataclass instances, dump() writes the string
# "Unable to serialize instance S(lr=0.0001)" in the place of each item, with a warning and without an error, and
# reading that file back fails. A program that stores its resolved config this way stores a config that never ran.
# Seen with jsonargparse 4.53.0 on Python 3.11, 28 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jsonargparse[signatures]==4.53.0" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import warnings
from dataclasses import dataclass
from pathlib import Path

import jsonargparse

warnings.simplefilter("ignore")


@dataclass
class Stage:
    lr: float = 1e-4


@dataclass
class Train:
    stages: tuple[Stage, ...] = (Stage(), Stage(2e-4))


def main(train: Train = Train()) -> None: ...


parser = jsonargparse.ArgumentParser(exit_on_error=False)
parser.add_argument("--config", action="config")
parser.add_function_arguments(main, as_positional=False)
defaults = parser.dump(parser.parse_args([]))
given = parser.dump(parser.parse_args(['--train.stages=[{"lr": 1}]']))
print("jsonargparse", jsonargparse.__version__)
print("dump of the defaults:", defaults.split())
print("dump of a given list:", given.split())
file = Path(__file__).with_name("dumped.yaml")
file.write_text(defaults)
try:
    parser.parse_args([f"--config={file}"])
    print("read back: fine")
except jsonargparse.ArgumentError as error:
    print("read back:", " ".join(str(error).split())[:90])
assert "Unable to serialize instance Stage(lr=0.0001)" in defaults
assert "lr: 1.0" in given
PYTHON
output=$("$folder/venv/bin/python" "$folder/try.py")
echo "$output"
grep -q "read back: Parser key" <<< "$output"
