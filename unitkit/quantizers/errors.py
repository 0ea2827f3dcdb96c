"""The error of this package, in a file of its own because every other file raises it."""


class QuantizerError(ValueError):
    """Data or settings from which no quantizer can be made."""
