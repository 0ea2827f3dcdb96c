#!/usr/bin/env bash
# Parallel speech of two languages: the studio prompts that both have, and sentences made for the purpose in both.
#   ./run.sh                       data/es-en/{train,dev,test}.{source,target}.jsonl; also source=fr, target=it voice=if_sara
# Test: real prompts only. What is made, or paired for training, says no dev or test prompt of any language (--forbid).
# voices.{train,dev}: the target language as anybody says it (source) and as the one voice that is made says it (target).
source "$(dirname "$0")/../../../tools/stages.sh"
variables home="$(cd "$(dirname "$0")" && pwd)" reader=prompts corpus=downloads options= source=es target=en data=data out= \
    made=menus pairs=2300 asr= limits= forbid=1 max_seconds=15 voice=af_heart \
    voices=ef_dora,em_alex,af_heart,af_bella,am_michael,am_puck,bf_emma,if_sara,ff_siwis,bm_george -- "$@"
((${#overrides[@]} == 0)) || die "no variable '${overrides[0]%%=*}'; the variables are: ${declared[*]}"
cd "$home" # paths are relative to the recipe's own folder
: "${out:=$data/$source-$target}"
s=$data/$source t=$data/$target own=() other=() dev=() held=() # own, other: what is made
if [[ $made == menus ]]; then own=("$data/made/$source-"{prompts,menus}/manifest.jsonl) dev=("$data/made/$target-$voice-dev/manifest.jsonl")
    other=("$data/made/$target-$voice-"{prompts,menus}/manifest.jsonl); fi
[[ $reader != prompts || ! $forbid ]] || held=("$data/"{en,es,fr,it}/{dev,test}.jsonl)
short=(--max-seconds "$max_seconds" ${held[@]:+--forbid "${held[@]}"})
prepare() { skipping recipe prepare "$reader" "$corpus" "$data/$1" "${@:2}" ${options:+"$options"}; }
say() { recipe manufacture "$data/made/$1" --langs "${1%%-*}" --voices "$2" --texts "$3" --each 1 --cache "$corpus/kokoro"; }
pairs() { recipe pair -o "$out/$1" "${@:2}"; }

manifests() { case $reader in prompts) for l in en es fr it; do prepare "$l" lang="$l"; done ;;
    *) prepare "$source" side=source; [[ $made ]] || prepare "$target" side=target ;; esac; }
texts() { [[ $made == menus ]] || return 0 # what will be said: sentences of our own, and the words of the prompts
    recipe texts "$data/menus.jsonl" --grammar "$root/recipes/menus.txt" --n "$pairs" --part-words 5 "${held[@]/#/--forbid=}"
    recipe texts "$data/prompts.jsonl" --prompts "$data/"{en,es,fr,it}/train.jsonl "${held[@]/#/--forbid=}"
    recipe texts "$data/dev-prompts.jsonl" --prompts "$data/"{en,es,fr,it}/dev.jsonl
}
made() { # the source by many voices; the target by one, which the vocoder learns and the normaliser writes
    case $made in
        menus) for k in prompts menus; do say "$source-$k" "$voices" "$data/$k.jsonl"; done
            for k in prompts menus; do say "$target-$voice-$k" "$voice" "$data/$k.jsonl"; done
            say "$target-$voice-dev" "$voice" "$data/dev-prompts.jsonl" ;;
        translations) say "$target-$voice" "$voice" "$s/translations.jsonl"
            prepare "$target" side=target made="$data/made/$target-$voice" voice="$voice" ;;
    esac
}
weak() { [[ $asr ]] || return 0 # asr=MANIFEST, speech without a translation: Whisper's, or as limits="--texts FILE" says
    k=$target-$voice-weak-$(basename "$(dirname "$asr")")
    recipe weak "$asr" -o "$out/weak.jsonl" --target "$target" $limits; say "$k" "$voice" "$out/weak.jsonl"
    pairs weak --source "$asr" --target "$data/made/$k/manifest.jsonl" "${short[@]}"; }
pair() { # train: what is made with what is made, and real sources with both; the others: real on both sides
    pairs real --source "$s/train.jsonl" --target "$t/train.jsonl" "${other[@]}" "${short[@]}"
    ((${#own[@]} == 0)) || pairs made --source "${own[@]}" --target "${other[@]}" "${short[@]}"
    for k in source target; do recipe join "$out/train.$k.jsonl" "$out/real.$k.jsonl" ${own[@]:+"$out/made.$k.jsonl"} ${asr:+"$out/weak.$k.jsonl"}; done
    for k in dev test; do pairs "$k" --source "$s/$k.jsonl" --target "$t/$k.jsonl"; done
    pairs voices.train --source "$t/train.jsonl" "${other[@]}" --target "${other[@]:-$t/train.jsonl}" --first "${short[@]}"
    pairs voices.dev --source "$t/dev.jsonl" "${dev[@]}" --target "${dev[@]:-$t/dev.jsonl}" --first; }

run_stages manifests texts made weak pair
