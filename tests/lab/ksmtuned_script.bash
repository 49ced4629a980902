# Runs the real ksmtuned's own functions over many sequences of steps, in one bash process.
#
#   bash --norc --noprofile ksmtuned_script.bash SCRIPT FOLDER SEQUENCES RESULTS
#
# SCRIPT is ksmtuned's text up to its main loop, its paths in /proc, /sys and /etc replaced by FOLDER's (the test does
# that). SEQUENCES holds one line for each thing to do:
#   begin TOTAL_KIB KEY=VALUE...                 a new host: ksmtuned is started afresh with this configuration
#   step FREE_KIB BUFFERS_KIB CACHED_KIB COMMITTED_KIB
# RESULTS gets one line a step: adjust's status, run, pages_to_scan, sleep_millisecs, and the script's npages, thres.
#
# The guests' memory comes from the step ($fed_committed; the test puts that in place of the script's own counting), and
# the free memory from the script's own free_memory ($found_free), called when the memory has changed: its awk is most
# of a step's time. All else is the script's own text, its subshells included. Nothing else here forks.

script=$1 folder=$2
exec 3<"$3" 4>"$4"
ksm=$folder/ksm

# MemAvailable, SwapCached and the like are decoys: names that a careless pattern would add to the free memory.
show_memory() {
    printf '%s kB\n' "MemTotal:       $1" "MemFree:        $2" "MemAvailable:   77777777" "Buffers:        $3" \
        "Cached:         $4" "SwapCached:     7777777" "SwapTotal:      777777" "SwapFree:       77777" >"$folder/meminfo"
}

begin() {
    mem_total=$1
    shift
    printf '%s\n' "$@" >"$folder/ksmtuned.conf"
    echo 0 >"$ksm/run"
    echo 100 >"$ksm/pages_to_scan"
    echo 20 >"$ksm/sleep_millisecs"
    unset -v "${!KSM_@}"
    show_memory "$mem_total" 0 0 0
    shown=
    # shellcheck disable=SC1090  # the test makes it
    . "$script"
}

step() {
    if [[ $1,$2,$3 != "$shown" ]]; then
        shown=$1,$2,$3
        show_memory "$mem_total" "$1" "$2" "$3"
        # shellcheck disable=SC2034  # adjust reads it
        found_free=$(free_memory)
    fi
    # shellcheck disable=SC2034  # adjust reads it
    fed_committed=$4
    adjust
    local status=$? run pages millisecs
    read -r run <"$ksm/run"
    read -r pages <"$ksm/pages_to_scan"
    read -r millisecs <"$ksm/sleep_millisecs"
    # shellcheck disable=SC2154  # npages and thres are the script's
    echo "$status $run $pages $millisecs $npages $thres" >&4
}

while read -r what arguments <&3; do
    # shellcheck disable=SC2086  # the line's words are the arguments
    case $what in
        begin | step) "$what" $arguments ;;
        *) echo "unknown line: $what $arguments" >&2; exit 1 ;;
    esac
done
