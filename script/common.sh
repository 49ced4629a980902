# What the scripts have in common: sourced by each before anything else, which goes on in the checkout's folder.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin
# As script/setup has it; and root may work in a user's checkout.
export LC_ALL=C.UTF-8 PIP_CACHE_DIR=${PIP_CACHE_DIR:-$PWD/build/pip}
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=$PWD
umask 022
ksm=/sys/kernel/mm/ksm
ksm_lock=/run/lock/virtksm-ksm.lock

die() { # die TEXT: exits with $die_code, or 1
    printf 'script/%s: %s\n' "${0##*/}" "$1" >&2
    exit "${die_code:-1}"
}

need_root() { # need_root WHY
    ((EUID == 0)) || die "needs root: $1"
}

need_ksm() {
    [[ -d $ksm ]] || die "this kernel has no KSM: $ksm is missing (CONFIG_KSM=y)"
    [[ -w $ksm/run ]] || die "$ksm is read-only here (a container?)"
}

# --- a program that changes KSM's settings: lock_ksm, save_ksm, give_back_on_exit, then run_program -------------------

lock_ksm() {
    exec 9>"$ksm_lock"
    flock -w 600 9 || die "a test, demonstration or benchmark holds $ksm_lock"
}

read_setting() { # read_setting NAME: the value, or the chosen word of a list such as "[none] scan-time"
    sed -E 's/.*\[(.*)\].*/\1/' "$ksm/$1"
}

put() { # put NAME VALUE: write it, if another is there
    if [[ $(read_setting "$1") != "$2" ]]; then
        echo "$2" >"$ksm/$1" || printf 'script/%s: %s could not be set to %s\n' "${0##*/}" "$1" "$2" >&2
    fi
}

declare -A found
save_ksm() {
    local file
    for file in "$ksm"/*; do
        if (($(stat -c '0%a & 0200' "$file"))); then # not -w: root may write everything
            found[${file##*/}]=$(read_setting "${file##*/}")
        fi
    done
}

# The kernel changes merge_across_nodes and max_page_sharing only while nothing is shared, pages_to_scan only while the
# advisor is off.
restore_ksm() {
    local name
    if [[ ${found[run]} != 1 ]]; then echo 2 >"$ksm/run"; fi
    [[ -z ${found[advisor_mode]:-} ]] || put advisor_mode none
    for name in "${!found[@]}"; do
        [[ $name == run || $name == advisor_mode ]] || put "$name" "${found[$name]}"
    done
    [[ -z ${found[advisor_mode]:-} ]] || put advisor_mode "${found[advisor_mode]}"
    put run "${found[run]}"
}

end_process() { # end_process PID SECONDS: SIGTERM, and SIGKILL some seconds later
    local waited
    kill -TERM "$1" 2>/dev/null || return 0
    for ((waited = 0; waited < $2 * 10; waited++)); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

# Whatever ends the script: ends its program, has its own `clean_up` end and remove what that left, restores KSM.
program=
grace_s=
give_back_on_exit() { # give_back_on_exit SECONDS: which the program has for its own ending
    grace_s=$1
    trap give_back EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

give_back() {
    trap '' INT TERM HUP
    [[ -z $program ]] || end_process "$program" "$grace_s"
    clean_up || true
    restore_ksm
}

# In the background, so that a signal to the script is acted upon at once; 9>&- so that no guest keeps the lock.
run_program() { # run_program COMMAND...: exits with its exit code
    local code=0
    "$@" 9>&- &
    program=$!
    wait "$program" || code=$?
    program=
    exit "$code"
}
