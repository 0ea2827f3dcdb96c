# shellcheck shell=bash disable=SC2034  # root and overrides are for the recipe that sources this file
# The only shell library.  A recipe is a table of contents:
#     source "$(dirname "$0")/../../../tools/stages.sh"
#     variables units=100 lang=en -- "$@"          # what key=value may set here, with defaults
#     fit() { ...; }; train() { ... "${overrides[@]}"; }
#     run_stages fit train                         # in this order
# A stage ends the run when one of its commands fails.  Resuming is the commands' business: a finished output
# is skipped, a half one is never read, so running everything again is always right.
set -eo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)) || set -u # older bash calls an empty array unset
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command -v unitkit >/dev/null || PATH=$root/.venv/bin:$PATH # an environment that has unitkit wins over ours
declared=() overrides=() words=() stage=""

die() { echo "$0: $*" >&2; exit 2; }

variables() { # name=default... -- "$@": sets each variable; other key=value words become overrides, the rest words
    local pair
    while [[ $1 != -- ]]; do declared+=("${1%%=*}"); printf -v "${1%%=*}" %s "${1#*=}"; shift; done; shift
    for pair; do
        if [[ $pair != *=* || $pair == -* ]]; then words+=("$pair")
        elif [[ " ${declared[*]} " == *" ${pair%%=*} "* ]]; then printf -v "${pair%%=*}" %s "${pair#*=}"
        else overrides+=("$pair"); fi
    done
}

usage() { # stage...: the recipe's opening comment, its stages and variables
    local i name
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
    printf '\nusage: %s [stage...] [--stage S] [--stop-stage S] [key=value...]\nstages:\n' "$0"
    for ((i = 1; i <= $#; i++)); do printf '  %d  %s\n' "$i" "${!i}"; done
    echo "variables (any other key=value goes to the trainer):"
    for name in ${declared[@]+"${declared[@]}"}; do printf '  %s=%s\n' "$name" "${!name}"; done
}

number_of() { # name-or-number stage...: the stage's number
    local wanted=$1 i; shift
    for ((i = 1; i <= $#; i++)); do [[ $wanted != "${!i}" && $wanted != "$i" ]] || { echo "$i"; return; }; done
    die "no stage '$wanted'; the stages are: $*"
}

run_stages() { # stage...: runs those the command line names, else those from --stage to --stop-stage
    local all=("$@") first=1 last=$# picked="" i
    set -- ${words[@]+"${words[@]}"}
    while (($#)); do
        case $1 in
            -h | --help) usage "${all[@]}"; return ;;
            --stage=* | --stop-stage=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
            --stage) first=$(number_of "${2-}" "${all[@]}"); shift ;;
            --stop-stage) last=$(number_of "${2-}" "${all[@]}"); shift ;;
            -*) die "no flag '$1'; flags: --stage --stop-stage --help; the stages are: ${all[*]}" ;;
            *) i=$(number_of "$1" "${all[@]}"); picked+=" $i " ;;
        esac
        shift
    done
    ((first <= last)) || die "--stage ${all[first - 1]} comes after --stop-stage ${all[last - 1]}"
    trap '((! $?)) || echo "stage $stage failed; mend it, then: $0 --stage $stage and the same key=value words" >&2' EXIT
    [[ -z $picked ]] || { first=1; last=${#all[@]}; }
    for ((i = first; i <= last; i++)); do
        [[ -z $picked || $picked == *" $i "* ]] || continue
        stage=${all[i - 1]}; echo "[$(date +%T)] stage $i of ${#all[@]}: $stage" >&2
        "$stage"
    done
    trap - EXIT
}
