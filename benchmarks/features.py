"""CPU time of log-mel features beside torchaudio's MelSpectrogram + log and kaldi-native-fbank, in one run, one thread.

    python benchmarks/features.py [--repeats 40]

Prints milliseconds of CPU per second of audio (medians of alternated repeats) and their ratio; below 1 asrkit is
the faster one. All make 80 mel bands from 25 ms windows every 10 ms at 16 kHz through an FFT of 512. kaldi-native-fbank
takes part where it is installed (`pip install kaldi-native-fbank`); its frames, asked for one by one as its interface
has it, are then compared with asrkit's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchaudio

from asrkit.features import MFCC, Fbank


def medians(jobs: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median CPU seconds of each job; the jobs take turns, so a busy machine slows all of them alike."""
    times: list[list[float]] = [[] for _ in jobs]
    for repeat in range(repeats + 3):
        for job, taken in zip(jobs, times, strict=True):
            start = time.process_time()
            job()
            if repeat >= 3:
                taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in times]


def native_fbank() -> Callable[[list[list[float]]], list[np.ndarray]] | None:
    """Utterances of samples in [-1, 1] -> log-mel frames (T, 80) by kaldi-native-fbank; None where it is missing."""
    try:
        import kaldi_native_fbank as knf
    except ImportError:
        return None
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0

    def frames(clips: list[list[float]]) -> list[np.ndarray]:
        found = []
        for samples in clips:
            online = knf.OnlineFbank(options)
            online.accept_waveform(16000, samples)
            online.input_finished()
            found.append(np.stack([online.get_frame(i) for i in range(online.num_frames_ready)]))
        return found

    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    reference = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
    fbank, mfcc, native = Fbank(), MFCC(13, deltas=2), native_fbank()
    for clips, seconds in ((16, 5.0), (1, 5.0), (1, 1.0), (1, 60.0)):
        x = torch.randn(clips, int(16000 * seconds)) * 0.1
        lengths = torch.full((clips,), x.shape[1])
        jobs: list[Callable[[], object]] = [
            lambda x=x: reference(x).clamp_(min=1e-7).log_(),
            lambda x=x, lengths=lengths: fbank(x, lengths),
            lambda x=x, lengths=lengths: mfcc(x, lengths),
        ]
        if native is not None:
            samples = x.tolist()
            np.testing.assert_allclose(native(samples)[0], fbank(x, lengths)[0][0].numpy(), atol=5e-3)
            jobs.append(lambda samples=samples: native(samples))
        theirs, ours, cepstra, *kaldi = (1000 * taken / (clips * seconds) for taken in medians(jobs, repeats))
        beside = f"; kaldi-native-fbank {kaldi[0]:.3f} ms/s, ratio {ours / kaldi[0]:.2f}" if kaldi else ""
        print(
            f"{clips:2d} x {seconds:4.0f} s: MelSpectrogram+log {theirs:.3f} ms/s, Fbank {ours:.3f} ms/s, "
            f"ratio {ours / theirs:.2f}; MFCC with deltas {cepstra:.3f} ms/s{beside}"
        )


if __name__ == "__main__":
    main()
