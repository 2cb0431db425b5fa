#!/usr/bin/env bash
# Resolves the core and every extra of setup.py with constraints.txt, on Python 3.11 and 3.12, as a user installs them.
#   bash scripts/check_extras.sh            all of them
#   bash scripts/check_extras.sh gpu core   these alone
# Run it after a change of setup.py or constraints.txt, and before a release. It needs a package index, and both Pythons:
# on PATH, or at PYTHON311 and PYTHON312. It installs nothing but, for the extra gpu, the core in a temporary
# environment (5 GB), because Transformer Engine's requirements depend on the installed torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'check_extras: %s\n' "$*"; }
fail() { say "$*" >&2; exit 2; }

mapfile -t EXTRAS < <(echo core && sed -n '/^EXTRAS = {/,/^}/s/^    "\([a-z]*\)": .*/\1/p' setup.py)

find_python() { # version, the user's choice
    local python=${2:-python$1}
    "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null ||
        fail "$python is not a working Python $1; fix: PYTHON${1/./}=/path/to/python$1 bash scripts/check_extras.sh"
    echo "$python"
}

install() { "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"; }

resolve() { # extra
    local target=".[$1]" options=()
    if [[ $1 == core ]]; then target=.; fi
    if [[ $1 == gpu ]]; then
        install -e . || return 1
        options=(--no-build-isolation)
    fi
    install --dry-run --ignore-installed "${options[@]}" --report "$environment/report.json" -e "$target" || return 1
    "$environment/bin/python" - "$environment/report.json" constraints.txt <<'PYTHON'
import json
import re
import sys


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


report, constraints = sys.argv[1:]
lines = open(constraints, encoding="utf-8").read().splitlines()
pins = {normal(line.split("==")[0]) for line in lines if "==" in line}
installs = [one["metadata"] for one in json.load(open(report, encoding="utf-8"))["install"]]
found = {normal(one["name"]): one["version"] for one in installs}
print(f"    {len(found)} packages, torch {found['torch']}; not in {constraints}:", *sorted({*found} - pins - {"longvita"}))
libraries = {name for name in found if re.fullmatch(r"(transformer-engine|nvidia-nvshmem)-cu\d+", name)}
if len({name.rpartition("-")[2] for name in libraries}) > 1:
    sys.exit(f"    torch and Transformer Engine of different versions: {', '.join(sorted(libraries))}")
PYTHON
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
chosen=("$@")
if ((${#chosen[@]} == 0)); then chosen=("${EXTRAS[@]}"); fi
for extra in "${chosen[@]}"; do
    [[ " ${EXTRAS[*]} " == *" $extra "* ]] || fail "unknown extra $extra; known: ${EXTRAS[*]}"
done
python311=$(find_python 3.11 "${PYTHON311:-}")
python312=$(find_python 3.12 "${PYTHON312:-}")

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=()
for version in 3.11 3.12; do
    environment=$folder/$version
    if [[ $version == 3.11 ]]; then python=$python311; else python=$python312; fi
    "$python" -m venv "$environment"
    install --upgrade pip
    for extra in "${chosen[@]}"; do
        say "Python $version, $extra"
        resolve "$extra" || failed+=("$version:$extra")
    done
    rm -rf "$environment"
done
((${#failed[@]} == 0)) || { say "cannot be installed: ${failed[*]}" >&2; exit 1; }
say "all can be installed: ${chosen[*]}"
