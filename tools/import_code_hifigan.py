"""Turns a code_hifigan checkpoint into a model directory: CHECKPOINT OUT --tokenizer FINGERPRINT [--config JSON]."""

import argparse
import sys

from unitkit.models.code_hifigan import import_code_hifigan


def main(words: list[str]) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="file with a 'generator' entry")
    parser.add_argument("out", help="model directory to write")
    parser.add_argument("--config", help="the checkpoint's JSON configuration")
    parser.add_argument("--tokenizer", required=True, help="fingerprint of the tokenizer whose units it speaks")
    options = parser.parse_args(words)
    model = import_code_hifigan(options.checkpoint, options.config, tokenizer=options.tokenizer)
    card = f"# Unit vocoder\n\nImported from `{options.checkpoint}` (code_hifigan); its licence is that checkpoint's.\n"
    model.save(options.out, card=card)
    print(f"{options.out}: {model.config.n_units} units, {len(model.config.speakers) or 1} speaker(s)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
