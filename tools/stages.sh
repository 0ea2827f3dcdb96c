# shellcheck shell=bash disable=SC2034  # root and overrides are for the recipe that sources this file
# The only shell library.  A recipe is a table of contents:
#     source "$(dirname "$0")/../../../tools/stages.sh"
#     variables units=100 lang=en -- "$@"          # what key=value may set here, with defaults
#     fit() { ...; }; train() { ... "${overrides[@]}"; }
#     run_stages fit train                         # in this order
# A stage ends the run when one of its commands fails.  Resuming is the commands' business: a finished output
# is skipped, a half one is never read, so running everything again is always right.
# Locals begin with _ because a recipe's variables and a stage's loops must not meet them (bash scopes are dynamic).
set -eo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)) || set -u # older bash calls an empty array unset
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # idle threads must not take the other core from its work
command -v unitkit >/dev/null || PATH=$root/.venv/bin:$PATH # an environment that has unitkit wins over ours
script=$(cd "$(dirname "$0")" && pwd)/${0##*/} # $0 may be relative, and recipes change folder
declared=(minutes) minutes="" overrides=() words=() stage=""

die() { echo "$0: $*" >&2; exit 2; }

variables() { # name=default... -- "$@": sets each variable; other key=value words become overrides, the rest words
    local _pair
    while [[ $1 != -- ]]; do declared+=("${1%%=*}"); printf -v "${1%%=*}" %s "${1#*=}"; shift; done; shift
    for _pair; do
        if [[ $_pair != *=* || $_pair == -* ]]; then words+=("$_pair")
        elif [[ " ${declared[*]} " == *" ${_pair%%=*} "* ]]; then printf -v "${_pair%%=*}" %s "${_pair#*=}"
        else overrides+=("$_pair"); fi
    done
}

recipe() { # name word...; with minutes=N on the command line no training goes on for longer
    [[ ! $minutes || ($1 != train_* && $1 != pretrain) ]] || set -- "$@" fit.max_minutes="$minutes"
    python "$root/recipes/$1.py" "${@:2}"
}

# command...: exit status 1 says that bad files were listed and skipped, so the recipe goes on
skipping() { local _status=0; "$@" || _status=$?; ((_status == 1)) || return "$_status"; }

usage() { # stage...: the recipe's opening comment, its stages and variables
    local _i _name
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$script"
    printf '\nusage: %s [stage...] [--stage S] [--stop-stage S] [key=value...]\nstages:\n' "$script"
    for ((_i = 1; _i <= $#; _i++)); do printf '  %d  %s\n' "$_i" "${!_i}"; done
    echo "variables (any other key=value goes to the trainer):"
    for _name in "${declared[@]:1}"; do printf '  %s=%s\n' "$_name" "${!_name}"; done
    printf '  minutes=%s: the longest any training may take; minutes=3 shows whether all of a recipe runs\n' "$minutes"
}

number_of() { # name-or-number stage...: the stage's number
    local _wanted=$1 _i; shift
    for ((_i = 1; _i <= $#; _i++)); do [[ $_wanted != "${!_i}" && $_wanted != "$_i" ]] || { echo "$_i"; return; }; done
    die "no stage '$_wanted'; the stages are: $*"
}

run_stages() { # stage...: runs those the command line names, else those from --stage to --stop-stage
    local _all=("$@") _first=1 _last=$# _picked="" _i
    set -- ${words[@]+"${words[@]}"}
    while (($#)); do
        case $1 in
            -h | --help) usage "${_all[@]}"; return ;;
            --stage=* | --stop-stage=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
            --stage) _first=$(number_of "${2-}" "${_all[@]}"); shift ;;
            --stop-stage) _last=$(number_of "${2-}" "${_all[@]}"); shift ;;
            -*) die "no flag '$1'; flags: --stage --stop-stage --help; the stages are: ${_all[*]}" ;;
            *) _i=$(number_of "$1" "${_all[@]}"); _picked+=" $_i " ;;
        esac
        shift
    done
    ((_first <= _last)) || die "--stage ${_all[_first - 1]} comes after --stop-stage ${_all[_last - 1]}"
    trap '((! $?)) || echo "stage $stage failed; mend it, then: $0 --stage $stage and the same key=value words" >&2' EXIT
    [[ -z $_picked ]] || { _first=1; _last=${#_all[@]}; }
    for ((_i = _first; _i <= _last; _i++)); do
        [[ -z $_picked || $_picked == *" $_i "* ]] || continue
        stage=${_all[_i - 1]}; echo "[$(date +%T)] stage $_i of ${#_all[@]}: $stage" >&2
        "$stage"
    done
    trap - EXIT
}
