#!/usr/bin/env bash
# Training and inference on one GPU in under eight minutes; the last line of stdout is one JSON.
#   benchmarks/gpu.sh            the real numbers
#   benchmarks/gpu.sh --trial    tiny numbers on a CPU, to see that it runs
# PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

if [[ ${1:-} == --trial ]]; then
  training=(--models nano --teacher resnet18 --batch 4 --steps 1 --images 16 --size 32 --matrix 256)
  inference=(--models tiny --batch 1 --device cpu --rounds 1 --seconds 0.05 --merge 0)
else
  training=()
  inference=(--models tiny,small,base --batch 1,256 --device cuda --rounds 3 --seconds 1)
fi

# A part that fails or runs too long leaves its reason in the JSON, and the other part still counts.
part() {
  local name=$1 limit=$2
  shift 2
  local status=0
  timeout "$limit" "$python" "$@" >"$here/$name.out" 2>"$here/$name.err" || status=$?
  if ((status)); then
    if ((status == 124)); then
      echo "ran longer than $limit s" >>"$here/$name.err"
    elif [[ ! -s $here/$name.err ]]; then
      echo "ended with status $status" >"$here/$name.err"
    fi
    tail -n 5 "$here/$name.err" >&2
    "$python" -c 'import json, sys; print(json.dumps({"failed": sys.stdin.read()[-2000:]}))' \
      <"$here/$name.err" >"$here/$name.out"
  fi
  tail -n 1 "$here/$name.out" >"$here/$name.json"
}
part training 240 benchmarks/gpu_training.py "${training[@]}"
part inference 220 benchmarks/inference.py "${inference[@]}"
"$python" - "$here" <<'PYTHON'
import json, pathlib, sys
parts = {p.stem: json.loads(p.read_text()) for p in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
print(json.dumps({"benchmark": "gpu", **parts}))
PYTHON
