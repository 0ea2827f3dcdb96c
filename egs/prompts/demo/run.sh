#!/usr/bin/env bash
# The demo: the stages of egs/prompts/resynth on the recordings in samples/en, with a small vocoder trained for minutes.
# Ends by printing where the page is.  Any word of that recipe works here too, for instance `./run.sh units=50 report`.
root=$(cd "$(dirname "$0")/../../.." && pwd)
exec "$root/egs/prompts/resynth/run.sh" home="$root/egs/prompts/demo" data="$root/samples/en" exp=exp/en core=small \
    metrics=wer,cer,mel,mcd,speaker,uer --stage tokenizer "$@"
