"""The usable utterances of a split as a data set: features from the cache, or computed from augmented waveforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch.utils.data import Dataset

from asrkit.audio.perturb import Perturbation, num_samples
from asrkit.corpus import Utterance
from asrkit.features import FeatureExtractor
from asrkit.preparation.feature_cache import FeatureTable, WaveformTable


@dataclass(eq=False)
class Split(Dataset[tuple[int, str, np.ndarray, Sequence[int]]]):
    """Item i is (i, id, features (T, F) float16, labels)."""

    name: str
    utterances: list[Utterance]
    texts: list[str]
    labels: list[list[int]]
    table: FeatureTable | WaveformTable
    rows: list[int]
    hash: str

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is read; cached features are the same in each."""

    @property
    def noise(self) -> str:
        """Hash of the noise files that are mixed in, "" for none: a run does not go on with others."""
        return ""

    @property
    def frames(self) -> list[int]:
        """Feature frames of every utterance (N,)."""
        return [self.table.counts[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, str, np.ndarray, Sequence[int]]:
        return index, self.utterances[index].id, self._features(index), self.labels[index]

    def _features(self, index: int) -> np.ndarray:
        assert isinstance(self.table, FeatureTable)
        return self.table.features(self.rows[index])


@dataclass(eq=False)
class AugmentedSplit(Split):
    """Features of perturbed waveforms, others in every epoch; epoch 0, where it stands at first, is the clean speech.

    allowed: how many of the slowest speeds leave each utterance frames enough for its labels (N,).
    """

    extractor: FeatureExtractor
    perturbation: Perturbation
    allowed: list[int]
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Read the waveforms as they are perturbed in this epoch."""
        self.epoch = epoch

    @property
    def noise(self) -> str:
        """As of `Noise`."""
        return self.perturbation.noise.fingerprint if self.perturbation.noise else ""

    @property
    def frames(self) -> list[int]:
        """Feature frames of every utterance (N,) in the epoch that is set."""
        return [
            self.extractor.num_frames(num_samples(self.table.counts[row], self._speed(index)))
            for index, row in enumerate(self.rows)
        ]

    def _speed(self, index: int) -> Fraction:
        return self.perturbation.speed(self.epoch, self.utterances[index].id, self.allowed[index])

    def _features(self, index: int) -> np.ndarray:
        assert isinstance(self.table, WaveformTable)
        identity = self.utterances[index].id
        samples = self.perturbation(self.table.waveform(self.rows[index]), self.epoch, identity, self.allowed[index])
        with torch.inference_mode():
            frames, _ = self.extractor(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        return frames[0].to(torch.float16).numpy()
