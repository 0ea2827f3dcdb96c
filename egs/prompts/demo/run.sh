#!/usr/bin/env bash
# The demo: the stages of egs/prompts/resynth on the recordings in samples/en, with a small vocoder trained for minutes.
# Ends by printing where the page is.  Words of that recipe work too: ./run.sh units=50 exp=exp/k50, ./run.sh score report.
root=$(cd "$(dirname "$0")/../../.." && pwd)
exec "$root/egs/prompts/resynth/run.sh" home="$root/egs/prompts/demo" data="$root/samples/en" exp=exp/en core=small \
    metrics=wer,cer,mel,mcd,speaker,uer --stage tokenizer "$@"
