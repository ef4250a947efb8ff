#!/usr/bin/env bash
# Makes or updates .venv if needed, then runs the notebooks (workflow/suite.py), or, after one of these words: `test` the
# checks, `forget` workflow/forget.py, `report` workflow/report.py, `clean` workflow/clean.py, `bench`
# workflow/benchmark.py.
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@"
set -euo pipefail
script="${BASH_SOURCE[0]}"
while [ -L "$script" ]; do # started through a link
    link="$(readlink -- "$script")"
    [ "${link#/}" != "$link" ] || link="$(dirname -- "$script")/$link"
    script="$link"
done
root="$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd -P)"
export PYTHONUTF8=1

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "run_all.sh: Python 3.10 or newer is needed, and python3 is not" >&2
    return 1
}

install() {
    [ -x .venv/bin/python ] || "$1" -m venv --clear .venv || return
    .venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt
}

set_up() {
    local python stamp log
    cd "$root"
    stamp="$(cat requirements.txt pyproject.toml | cksum) $root"
    if [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    python="$(find_python)"
    log="$(mktemp)"
    if [ -e .venv/stamp ]; then
        echo "Updating .venv: requirements or the place of the checkout changed..."
    else
        echo "Setting up .venv (some minutes, about 6 GB with torch)..."
    fi
    rm -f .venv/stamp
    if ! install "$python" >"$log" 2>&1; then
        echo "run_all.sh: setting up .venv failed; pip's last lines:" >&2
        tail -n 12 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
    printf '%s\n' "$stamp" >.venv/stamp
}

case "${1-}" in
    -h | --help)
        python="$(find_python)"
        exec "$python" "$root/workflow/suite.py" --help
        ;;
    test)
        shift
        set_up
        .venv/bin/python -m ruff check .
        .venv/bin/python -m ruff format --check .
        if [ $# = 0 ]; then # files of tests side by side, a thread each
            export OMP_NUM_THREADS=1
            set -- --numprocesses auto --maxprocesses 4 --dist loadfile
        fi
        exec .venv/bin/python -m pytest "$@"
        ;;
    forget | report | clean | bench)
        script="${1/bench/benchmark}"
        shift
        (set_up)
        exec "$root/.venv/bin/python" "$root/workflow/$script.py" "$@"
        ;;
    *)
        if [ ! -e "$root/.venv/stamp" ]; then # a misspelt option is refused before the set-up
            python="$(find_python)"
            PYTHONPATH="$root/workflow" "$python" -c 'import suite; suite.parse()' "$@"
        fi
        (set_up)
        exec "$root/.venv/bin/python" "$root/workflow/suite.py" "$@"
        ;;
esac
