"""What a Seq2Seq is made of: its settings, the papers' sizes, and the numbers that follow from them."""

from dataclasses import dataclass, field, replace

from unitkit.models.heads import HeadConfig
from unitkit.text import Letters
from unitkit.units import UnitsHeader, Vocab

SOURCES = ("features", "text", "units")
TARGETS = ("units", "text")
BLOCKS = ("transformer", "branchformer")


class Seq2SeqError(ValueError):
    """A model that cannot be built, loaded or fed; the text names the value and what is known."""


@dataclass(frozen=True)
class Seq2SeqConfig:
    """The model; what the units and texts say about themselves is filled in by the recipe.  The defaults are small."""

    target: str = "units"  # units | text
    tokenizer: str = ""  # fingerprint of the target units, or of the pieces that text is written in
    n_units: int = 0
    rate_hz: float = 50.0
    reduced: bool = True  # targets without repetitions; their durations are the vocoder's business
    stack: int = 1  # units made in one step
    pieces: int = 0  # of text: how many tell it apart (`unitkit.pieces`) …
    langs: tuple[str, ...] = ()  # … and the languages whose tokens stand before it
    source: str = "features"  # features | text | units
    features: str = ""  # what the listener hears, for people to read
    features_dim: int = 0
    source_tokenizer: str = ""  # of source units: as input, or as what a head predicts
    source_units: int = 0
    source_codebooks: int = 1  # units a frame, whose embeddings are added up
    source_rate_hz: float = 0.0
    source_reduced: bool = True  # source units without repetitions
    source_pieces: int = 0  # of a unit BPE; 0: single units
    source_bpe: str = ""  # fingerprint of that BPE
    embedding_dim: int = 0  # of source tokens, brought to `dim` by a linear layer; 0: `dim` itself
    source_letters: str = ""
    target_letters: str = ""
    source_lang: str = ""
    target_lang: str = ""
    dim: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 3
    attention_heads: int = 4
    hidden: int = 1024
    decoder_hidden: int = 0  # 0: as the encoder's
    conv_channels: int = 512
    conv_kernels: tuple[int, ...] = (5, 5)  # of features: each halves the number of frames
    unit_kernels: tuple[int, ...] = ()  # the same of embedded units
    features_norm: bool = False  # layer norm of what is heard: for features of speech models
    blocks: str = "transformer"  # of the encoder: transformer | branchformer
    branch_hidden: int = 768  # of a branchformer: its gated units and the frames that they see
    branch_kernel: int = 31
    dropout: float = 0.1
    attention_dropout: float = 0.0  # of attention weights; 0 takes half the time on a CPU
    activation_dropout: float = 0.0
    positions: str = "sinusoidal"  # sinusoidal | learned
    max_positions: int = 2048
    longest: float = 0.0  # seconds; of what a recogniser learned from, 19 of 20 recordings are shorter; 0: not known
    label_smoothing: float = 0.2
    guide: float = 0.0  # weight of a loss that holds the attention to the source near the diagonal; see `diagonal_loss`
    guide_until: float = 0.5  # share of training in which it falls to 0
    ctc: float = 0.0  # share of CTC, on the encoder's output, in loss and search; 1: there is no decoder
    heads: dict[str, HeadConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {"source": SOURCES, "target": TARGETS, "positions": ("sinusoidal", "learned"), "blocks": BLOCKS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise Seq2SeqError(f"{name} {getattr(self, name)!r}: known are {', '.join(known)}")
        if self.dim % self.attention_heads:
            raise Seq2SeqError(f"dim {self.dim} is not a multiple of attention_heads {self.attention_heads}")
        if self.stack < 1 or any(kernel % 2 == 0 for kernel in (*self.conv_kernels, *self.unit_kernels)):
            raise Seq2SeqError(f"stack {self.stack} is at least 1, kernels {self.conv_kernels} are odd")
        if not 0 <= self.ctc <= 1:
            raise Seq2SeqError(f"ctc {self.ctc} is a share: 0 to 1")
        if self.stack > 1 and self.ctc:
            raise Seq2SeqError(f"stack {self.stack}: CTC reads single tokens, so it needs stack 1")

    @property
    def n_targets(self) -> int:
        """Different target tokens: units, or pieces and languages; without pad, bos and eos."""
        return self.n_units if self.target == "units" else self.pieces + len(self.langs)

    @property
    def reads(self) -> str:
        """What the front's weights belong to: features, letters, or units and pieces by their fingerprints."""
        own = {"text": (repr(self.source_letters),), "units": (self.source_tokenizer, self.source_bpe)}
        return " ".join(filter(None, (self.source, *own.get(self.source, ()))))

    def units_header(self) -> UnitsHeader:
        """What source units are."""
        return UnitsHeader(self.source_tokenizer, self.source_rate_hz, self.source_units, self.source_codebooks)


# The Fisher model of the S2UT paper: 27 M parameters; attention heads on layers 6 and 8, text by CTC on the decoder.
PAPER = Seq2SeqConfig(
    encoder_layers=12,
    decoder_layers=6,
    hidden=2048,
    conv_channels=1024,
    attention_dropout=0.1,
    activation_dropout=0.1,
    heads={
        "source": HeadConfig(at="encoder", layer=6, target="source_text", weight=8.0),
        "target": HeadConfig(at="encoder", layer=8, target="target_text", weight=8.0),
        "text": HeadConfig(kind="ctc", at="decoder", layer=3, target="target_text", weight=1.6),
    },
)
# Enhanced S2UT: a wav2vec 2.0 encoder (the listener), one convolution, and the decoder of a unit mBART.
PAPER_ENHANCED = Seq2SeqConfig(
    dim=1024,
    encoder_layers=0,
    decoder_layers=12,
    attention_heads=16,
    hidden=4096,
    conv_kernels=(3,),
    features_norm=True,
    attention_dropout=0.1,
    activation_dropout=0.1,
    positions="learned",
)
PAPER_BART = replace(PAPER_ENHANCED, encoder_layers=12, source="units")
# ESPnet's recogniser of discrete units on 100 hours of LibriSpeech: E-Branchformer, joint CTC and attention.
PAPER_ASR = Seq2SeqConfig(
    target="text",
    source="units",
    dim=256,
    embedding_dim=512,
    encoder_layers=12,
    decoder_layers=6,
    hidden=1024,
    decoder_hidden=2048,
    conv_channels=512,
    unit_kernels=(3,),
    blocks="branchformer",
    branch_hidden=3072,
    attention_dropout=0.1,
    label_smoothing=0.1,
    ctc=0.3,
)


def source_size(config: Seq2SeqConfig) -> int:
    """Tokens that the input has; units have one more, that hides a unit (`mask_token`)."""
    if config.source == "text":
        return len(Letters(config.source_letters))
    return mask_token(config) + 1


def mask_token(config: Seq2SeqConfig) -> int:
    """What hides units or pieces of them."""
    return len(Vocab(config.source_pieces or config.source_units * config.source_codebooks))


def letters_of(config: Seq2SeqConfig, head: HeadConfig) -> str:
    """The letters of a head's text."""
    return config.source_letters if head.target == "source_text" else config.target_letters


def head_size(config: Seq2SeqConfig, head: HeadConfig) -> int:
    """Tokens that a head tells apart."""
    if head.target == "source_units":
        return len(Vocab(config.source_units))
    letters = letters_of(config, head)
    if not letters:
        raise Seq2SeqError(f"a head on {head.target} needs texts: the manifest of that side has none")
    return len(Letters(letters))
