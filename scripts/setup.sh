#!/usr/bin/env bash
# Creates .venv and installs Long-VITA with all packages that its tests and its quickstart need.
#   bash scripts/setup.sh            Python packages only
#   bash scripts/setup.sh --system   Debian packages too, if the user is root and the system has apt
# PYTHON=/path/to/python3.11 selects the interpreter. A second run without changes does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Tests cut and remux video files, read long texts, and start a Slurm cluster of two nodes on this machine.
DEBIAN_PACKAGES=(ffmpeg bible-kjv slurm-wlm munge)
STAMP=.venv/.longvita-setup

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11 or 3.12; fix: PYTHON=/path/to/python3.11"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3 python; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or 3.12 is needed (megatron-core 0.16.1 is tested with them), and PATH has neither;" \
        "fix: install one (Debian 12: apt-get install python3.11 python3.11-venv), or PYTHON=/path/to/python3.11 $0"
}

missing_packages() {
    local package
    for package in "${DEBIAN_PACKAGES[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || echo "$package"
    done
}

install_system() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        say "skipped Debian packages (${DEBIAN_PACKAGES[*]}): no apt on this system. Tests that need them are skipped."
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then
        say "Debian packages are installed: ${DEBIAN_PACKAGES[*]}"
    elif ((EUID != 0)); then
        say "skipped Debian packages (${missing[*]}): not root; fix: sudo apt-get install ${missing[*]}"
    else
        say "installing Debian packages: ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null ||
            fail "apt-get could not install ${missing[*]}"
    fi
}

make_environment() {
    local python
    if [[ -x .venv/bin/python ]] && is_supported .venv/bin/python; then
        return
    fi
    if [[ -e .venv ]]; then
        fail ".venv exists, but its Python is not a working 3.11 or 3.12; fix: remove .venv and run this again"
    fi
    python=$(find_python)
    say "creating .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "$python cannot create environments; fix (Debian): apt-get install python3-venv"
}

install_packages() {
    # The stamp includes the folder, because an editable install refers to it.
    local wanted
    wanted=$(cat setup.py pyproject.toml constraints.txt <(pwd -P) <(.venv/bin/python --version) | cksum)
    if [[ -f $STAMP && "$(cat "$STAMP")" == "$wanted" ]]; then
        say "up to date"
        return
    fi
    say "installing packages (torch is large: a minute or more)"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt ||
        fail "pip could not install the packages; see its message above"
    echo "$wanted" >"$STAMP"
    say "done: .venv/bin/longvita"
}

system=false
for argument in "$@"; do
    case $argument in
    --system) system=true ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) fail "unknown argument $argument; known: --system" ;;
    esac
done
if [[ $system == true ]]; then install_system; fi
make_environment
install_packages
