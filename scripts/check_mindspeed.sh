#!/usr/bin/env bash
# Runs the tests of the Ascend platform over MindSpeed's own source, on any machine.
#   bash scripts/check_mindspeed.sh SOURCE            SOURCE is a checkout of MindSpeed's branch core_r0.16.0
#   bash scripts/check_mindspeed.sh SOURCE ARGUMENT   other arguments are those of pytest, for example -k PP2
# The environment .venv-mindspeed adds what MindSpeed imports (triton-ascend, pybind11, einops, scipy) to that of
# scripts/setup.sh. The device's libraries, and triton-ascend's driver, are stubs of the tests.
set -euo pipefail

fail() { printf 'check_mindspeed: %s\n' "$*" >&2; exit 2; }

case ${1:-} in
-h | --help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
"") fail "which source? usage: bash scripts/check_mindspeed.sh SOURCE;" \
    "fix: git clone -b core_r0.16.0 https://gitcode.com/Ascend/MindSpeed.git ../MindSpeed" ;;
esac
[[ -f $1/mindspeed/megatron_adaptor.py ]] ||
    fail "$1 has no mindspeed/megatron_adaptor.py; fix: give a checkout of MindSpeed's branch core_r0.16.0"
MINDSPEED_SOURCE=$(cd "$1" && pwd)
export MINDSPEED_SOURCE
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh

ENVIRONMENT=.venv-mindspeed
python=$ENVIRONMENT/bin/python
version=$(.venv/bin/python -c 'import sys; print(*sys.version_info[:2], sep=".")')
[[ $version == 3.11 ]] || fail "triton-ascend has wheels for Python 3.11 alone, and .venv has $version;" \
    "fix: remove .venv and run PYTHON=python3.11 bash scripts/setup.sh"
if ! $python -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" 2>/dev/null; then
    rm -rf "$ENVIRONMENT"
    .venv/bin/python -m venv "$ENVIRONMENT"
fi
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
echo "import site; site.addsitedir('$(packages .venv/bin/python)')" >"$(packages $python)/project.pth"
# An upstream triton that torch brought would have the same module; this environment's own packages come first.
$python -m pip install -qq --disable-pip-version-check --no-deps triton-ascend pybind11 einops scipy -c constraints.txt

export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
commit=unknown # of an unpacked archive git would name the commit of a repository around it
if [[ "$(git -C "$MINDSPEED_SOURCE" rev-parse --show-toplevel 2>/dev/null)" == "$MINDSPEED_SOURCE" ]]; then
    commit=$(git -C "$MINDSPEED_SOURCE" rev-parse --short HEAD)
fi
echo "== tests over MindSpeed at $MINDSPEED_SOURCE (commit $commit)"
exec $python -m pytest -q --full -m mindspeed --durations=10 --durations-min=5 -ra tests/distributed/platforms "$@"
