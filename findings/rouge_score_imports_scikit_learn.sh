#!/usr/bin/env bash
# One expects `from rouge_score import rouge_scorer`, a pure-Python LCS and a regular expression, to import in no time:
# with use_stemmer=False nothing is stemmed. But rouge_score.tokenizers imports nltk for its Porter stemmer, nltk imports
# all of its sub-packages, and where scikit-learn is installed nltk.classify imports it, with scipy: over a thousand
# modules and seconds of start-up, in every worker process of an evaluation. rouge_score.tokenize (without the s), which
# does the work, needs the standard library and six only.
# Seen with rouge-score 0.1.2, nltk 3.10.4, scikit-learn 1.9.1, Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "rouge-score==0.1.2" "nltk==3.10.4" "scikit-learn==1.9.1" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import importlib
import sys
import time

name = sys.argv[1]
before = set(sys.modules)
started = time.perf_counter()
module = importlib.import_module(name)
seconds = time.perf_counter() - started
new = set(sys.modules) - before
heavy = sorted({one.partition(".")[0] for one in new} & {"nltk", "sklearn", "scipy", "numpy"})
print(f"{name}: {seconds:.2f} s, {len(new)} modules, among them {heavy}")
if name == "rouge_score.tokenize":
    print("  tokens:", module.tokenize("No pleural effusion, 2.5 cm.", None))
    assert not heavy
else:
    assert {"nltk", "sklearn", "scipy"} <= set(heavy) and len(new) > 800
PYTHON
"$folder/venv/bin/python" "$folder/try.py" rouge_score.tokenize
"$folder/venv/bin/python" "$folder/try.py" rouge_score.tokenizers
"$folder/venv/bin/python" "$folder/try.py" rouge_score.rouge_scorer
