"""N-gram language models: sentences -> counts -> modified Kneser-Ney probabilities -> an ARPA file, and back."""

from asrkit.lm.arpa import read_unigrams, write_arpa
from asrkit.lm.kneser_ney import NgramModel, estimate

__all__ = ["NgramModel", "estimate", "read_unigrams", "write_arpa"]
