"""K-means quantizers: fitted with torch alone, assigned exactly, one class for plain, residual and product."""

from unitkit.quantizers.errors import QuantizerError
from unitkit.quantizers.kmeans import KINDS, KMeans, check_layout
from unitkit.quantizers.sampling import frames_for_memory, sample_frames
from unitkit.quantizers.seeds import INITS

__all__ = ["INITS", "KINDS", "KMeans", "QuantizerError", "check_layout", "frames_for_memory", "sample_frames"]
