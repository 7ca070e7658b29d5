# Shared set-up of the launch scripts: a Python environment with the pinned packages. Sourced, never run.
#
# An environment is in one of these states, told by files inside it:
#   .mla-jax-setup  a set-up is going on (or was killed): the id of its process
#   .mla-jax-env    made by this file; holds the place it was made for, because environments cannot be moved
#   .mla-jax-core, .mla-jax-dev   that part is complete; holds the fingerprint of what was installed
# shellcheck shell=bash

set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MLA_JAX_VENV:-$repo/.venv}
case $venv in
    /*) ;;
    *) venv=$PWD/$venv ;;
esac
core_lock=$repo/requirements-lock.txt
dev_lock=$repo/requirements-dev-lock.txt
needed_mb=2000 # a full environment is about 1 GB; the rest is for what pip unpacks on the way

say() { printf '%s\n' "$*"; }

die() { # die EXIT_CODE SENTENCE
    printf '%s: %s\n' "$(basename "$0")" "$2" >&2
    exit "$1"
}

# set_up core|dev: make or repair the environment, then set `python` to its interpreter. Under a second when there is
# nothing to do.
set_up() {
    local part=$1 started=$SECONDS base=""
    # shellcheck disable=SC2034  # read by the scripts that source this
    python=$venv/bin/python
    is_ready "$part" && return
    wait_for_other_setup
    is_ready "$part" && return
    if [ -e "$venv/.mla-jax-setup" ] || ! is_ours || ! is_usable; then
        base=$(find_python) # before anything is removed
    fi
    if [ -e "$venv/.mla-jax-setup" ]; then
        say "Removing $venv, which an interrupted set-up left half-made."
        rm -rf "$venv"
    elif is_ours && ! is_usable; then
        say "Removing $venv, which was made for another place or another Python."
        rm -rf "$venv"
    elif ! is_ours && [ -n "$(ls -A "$venv" 2>/dev/null || true)" ]; then
        die 2 "$venv exists and was not made by this script: move it away, or set MLA_JAX_VENV to another folder."
    fi
    # pip turns Ctrl-C into an ordinary failure; without this it would be reported as one.
    trap 'say "" && die 130 "stopped during the set-up; the next run starts it over."' INT TERM HUP
    [ -d "$venv/bin" ] || make_environment "$base"
    echo "$$" >"$venv/.mla-jax-setup"
    install_part "$part"
    rm "$venv/.mla-jax-setup"
    trap - INT TERM HUP
    say "The environment is ready after $((SECONDS - started)) s."
}

is_ready() {
    [ ! -e "$venv/.mla-jax-setup" ] && is_ours && is_usable &&
        [ "$(cat "$venv/.mla-jax-$1" 2>/dev/null || true)" = "$(fingerprint "$1")" ]
}

is_ours() { [ -f "$venv/.mla-jax-env" ]; }

# Whether the environment lies where it was made, its interpreter still exists, and PYTHON, if set, is the same version.
is_usable() {
    [ "$(cat "$venv/.mla-jax-env")" = "$venv" ] && [ -x "$venv/bin/python" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of "$venv/bin/python")" ]
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none; }

fingerprint() {
    if [ "$1" = dev ]; then set -- "$core_lock" "$dev_lock"; else set -- "$core_lock"; fi
    { cat "$@" "$repo/pyproject.toml" && say "$repo"; } | cksum
}

wait_for_other_setup() {
    local other said=""
    while other=$(cat "$venv/.mla-jax-setup" 2>/dev/null) && [ -n "$other" ] && kill -0 "$other" 2>/dev/null; do
        [ -n "$said" ] || say "Waiting for process $other, which is setting up $venv (stop it to start over)."
        said=yes
        sleep 1
    done
}

# Print the first Python that is new enough and can make environments; PYTHON, if set, is the only candidate.
find_python() {
    local candidate old="" bare=""
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3 python; fi
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            old="$old $candidate ($(version_of "$candidate"))"
        elif ! "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            bare=${bare:-$candidate}
        else
            command -v "$candidate"
            return
        fi
    done
    if [ -n "$bare" ]; then
        die 2 "$bare lacks the venv module: install it (Debian, Ubuntu: apt install python$(version_of "$bare")-venv)."
    fi
    die 2 "Python 3.11 or newer is needed; tried $*, found${old:- none}: \
install one, or name it: PYTHON=/path/to/python3.12."
}

make_environment() { # make_environment PYTHON
    local base=$1 free
    mkdir -p "$venv" 2>/dev/null || die 2 "$venv cannot be made: set MLA_JAX_VENV to a folder that you may write to."
    free=$(df -Pk "$venv" | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "$free" -lt "$needed_mb" ]; then
        rmdir "$venv"
        die 2 "$venv needs about $needed_mb MB and its disk has $free MB free: \
free some, or set MLA_JAX_VENV to a folder on another disk."
    fi
    say "Making $venv with $base ($(version_of "$base"))."
    echo "$$" >"$venv/.mla-jax-setup"
    "$base" -m venv "$venv" >"$venv/setup.log" 2>&1 || show_failure "$venv/setup.log"
    echo "$venv" >"$venv/.mla-jax-env"
}

install_part() {
    local log=$venv/setup.log
    say "Installing the pinned packages (details: $log)."
    rm -f "$venv/.mla-jax-core" "$venv/.mla-jax-dev"
    if [ "$1" = dev ]; then set -- dev -r "$core_lock" -r "$dev_lock"; else set -- core -r "$core_lock"; fi
    # Wheels only: without one, pip would spend half an hour on a compilation that needs tools nobody has.
    pip_install --only-binary :all: "${@:2}" 2>&1 | tee "$log" | show_progress || show_failure "$log"
    pip_install --no-deps --no-build-isolation --editable "$repo" >>"$log" 2>&1 || show_failure "$log"
    fingerprint core >"$venv/.mla-jax-core"
    if [ "$1" = dev ]; then fingerprint dev >"$venv/.mla-jax-dev"; fi
}

# Add torch and transformers to an environment that is ready, without changing what is pinned in it. Where that fails (no
# network, no space) the tests that compare with them are skipped, and say so.
add_hf() {
    local log=$venv/hf.log
    ! "$python" -I -c 'import torch, transformers' >/dev/null 2>&1 || return 0
    say "Installing torch and transformers (details: $log)."
    pip_install --only-binary :all: -c "$core_lock" -c "$dev_lock" torch==2.13.0 transformers==5.23.0 2>&1 |
        tee "$log" | show_progress || say "That failed: the comparison with transformers will be skipped."
}

# -I and PIP_USER: what the caller's environment adds (PYTHONPATH, a user site) must not count as installed.
pip_install() {
    PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 "$venv/bin/python" -I -m pip install \
        --disable-pip-version-check --no-input --progress-bar off "$@"
}

# Read pip's lines; on a terminal, keep one line up to date.
show_progress() {
    local verb name count=0
    while read -r verb name _; do
        [ -t 1 ] || continue
        case $verb in
            Collecting) count=$((count + 1)) && printf '\r\033[K  %d packages, %s' "$count" "${name%%[=<>;]*}" ;;
            Installing) printf '\r\033[K  unpacking %d packages' "$count" ;;
        esac
    done
    [ ! -t 1 ] || printf '\r\033[K'
}

show_failure() { # show_failure LOG
    # Where pip had not begun to write, the environment is as it was; otherwise the next run starts over.
    if is_ours && ! grep -q '^Installing collected packages' "$1"; then rm -f "$venv/.mla-jax-setup"; fi
    say "The last lines of $1:" >&2
    grep -v '^Requirement already satisfied' "$1" | tail -n 10 | cut -c 1-300 | sed 's/^/    /' >&2
    die 1 "the set-up failed. Is there a network, and space on the disk? Does Python $(version_of "$venv/bin/python") \
have wheels of these packages (3.11 to 3.13 do; choose with PYTHON=python3.12)? Then run this again."
}
