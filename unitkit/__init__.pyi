from unitkit.audio import AudioError as AudioError
from unitkit.bpe import UnitBPE as UnitBPE
from unitkit.manifest import Utterance as Utterance
from unitkit.manifest import read_manifest as read_manifest
from unitkit.manifest import write_manifest as write_manifest
from unitkit.pipeline import TTS as TTS
from unitkit.pipeline import Recognizer as Recognizer
from unitkit.pipeline import SoftTokenizer as SoftTokenizer
from unitkit.pipeline import Translation as Translation
from unitkit.pipeline import Translator as Translator
from unitkit.pipeline import Vocoder as Vocoder
from unitkit.pipeline import VoiceConverter as VoiceConverter
from unitkit.segments import segment as segment
from unitkit.soft import SoftUnits as SoftUnits
from unitkit.tokenizer import Tokenizer as Tokenizer
from unitkit.units import FingerprintError as FingerprintError
from unitkit.units import Units as Units
from unitkit.units import Vocab as Vocab
from unitkit.units import bitrate as bitrate
from unitkit.units import read_units as read_units
from unitkit.units import write_units as write_units

__version__: str
__all__: list[str]
