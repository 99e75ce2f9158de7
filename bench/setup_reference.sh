#!/usr/bin/env bash
# Makes .venv-reference in the project's root: the environment in which the reference implementation (PyPI `caft-llm`
# 0.0.1) runs for bench/multitoken_step.py. Running it again does nothing when the environment is already complete.
#
#   bench/setup_reference.sh              PYTHON=python3.12 bench/setup_reference.sh   (another interpreter)
#
# pip takes PyPI's own build of torch; for the smaller CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
# Of caft-llm's requirements, torch==2.5.1 is replaced by the torch graftlm itself is timed on, so that both sides run
# on the same kernels; bitsandbytes, wandb and python-dotenv are left out: only its training script imports them.
set -uo pipefail

PINS=(
    torch==2.13.0 transformers==4.51.3 tokenizers==0.21.4 huggingface-hub==0.36.2 safetensors==0.8.0
    peft==0.15.2 accelerate==1.6.0 numpy==2.2.6 pandas==2.3.3
)
REFERENCE=caft-llm==0.0.1  # installed without its requirements, see above

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$root/.venv-reference
stamp=$environment/.complete
log=$environment/setup.log
wanted="${PINS[*]} $REFERENCE"

fail() {
    echo "setup_reference: $1" >&2
    exit 1
}

if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    echo "setup_reference: $environment is ready"
    exit 0
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
    fail "'$python' is not a Python 3.10 to 3.13; name one with PYTHON=..."
echo "setup_reference: making $environment (a few minutes, log in $log)"
"$python" -m venv --clear "$environment" >/dev/null 2>&1 ||
    fail "'$python -m venv $environment' failed; is the venv module installed (apt: python3-venv) and the disk not full?"
pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "${PINS[@]}" >"$log" 2>&1 || fail "pip could not install the pinned packages; the reason is at the end of $log"
"${pip[@]}" --no-deps "$REFERENCE" >>"$log" 2>&1 || fail "pip could not install $REFERENCE; the reason is at the end of $log"
"$environment/bin/python" "$root/bench/multitoken_step_reference.py" --help >>"$log" 2>&1 &&
    "$environment/bin/python" -c 'import caft, peft, transformers.trainer' >>"$log" 2>&1 ||
    fail "the installed packages do not import; the reason is at the end of $log"
echo "$wanted" >"$stamp"
echo "setup_reference: $environment is ready"
