# Sourced with $root set. `environment [EXTRA…]` leaves in $venv an environment with the package, its engine and these extras.
# $HARNESS_EXTRA names the engine's extra, which then gets an environment of its own; otherwise a look at the machine decides.

gpu() { # an NVIDIA GPU: its device node (Linux), its driver's library (WSL), or its driver's word
    for node in /dev/nvidia[0-9]* /usr/lib/wsl/lib/libcuda.so.1; do
        if [ -e "$node" ]; then return 0; fi
    done
    nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

find_python() {
    candidates=${PYTHON:-python3 python3.13 python3.12 python3.11}
    for python in $candidates; do
        "$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && return 0
    done
    echo "error: no Python 3.11, 3.12 or 3.13 with venv among: $candidates" >&2
    echo "  fix: install one (Debian, Ubuntu: apt install python3-venv) or name it: PYTHON=/path/to/python3.12 $0" >&2
    exit 2
}

ready() { # file tests and cmp only: every call of every script comes through here
    [ "$venv/installed/root" -ef "$root" ] && [ -x "$venv/bin/python" ] || return 1
    for extra in "$@"; do
        cmp -s "$root/pyproject.toml" "$venv/installed/$extra" || return 1
    done
}

choose() { # leaves the engine's extra in $engine, and the environment's directory in $venv
    engine=${HARNESS_EXTRA:-cpu} venv=$root/.venv${HARNESS_EXTRA:+-$HARNESS_EXTRA}
    if [ -z "${HARNESS_EXTRA:-}" ]; then
        # Once made with vllm it stays so: a GPU box may share its disk with a machine that has no GPU.
        if [ -e "$venv/installed/vllm" ] || gpu; then engine=vllm; fi
    fi
}

environment() {
    choose
    if ! ready "$engine" "$@"; then
        find_python
        "$python" "$root/scripts/install.py" "$venv" "$engine" "$@" || exit
    fi
}
