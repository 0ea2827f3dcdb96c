"""The tokenizer: encoder, quantizer and conventions in one artefact, named by the fingerprint of all that makes units.

The fingerprint is the first 12 hex digits of the sha256 of canonical JSON: the encoder's settings (with a hash of its
weights), the quantizer's settings and tensors, and the conventions of `fingerprint`.  Where a tokenizer lies, who
fitted it and on what, and whether it shares its encoder's file with another one, is kept beside it but is no part of
the fingerprint.
"""

from unitkit.tokenizer.core import BATCH_ERROR, Tokenizer, pick_device
from unitkit.tokenizer.files import BUNDLED, DEFAULT, TokenizerError, bundled, bundled_as

__all__ = ["BATCH_ERROR", "BUNDLED", "DEFAULT", "Tokenizer", "TokenizerError", "bundled", "bundled_as", "pick_device"]
