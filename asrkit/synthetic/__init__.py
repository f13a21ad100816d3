"""A Spanish corpus in the layout of a Common Voice release, written and spoken on this machine."""

from __future__ import annotations

from asrkit.synthetic.corpus import make_corpus
from asrkit.synthetic.layout import SplitCount, SynthReport

__all__ = ["SplitCount", "SynthReport", "make_corpus"]
