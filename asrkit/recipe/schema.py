"""Every key that a recipe may have, with its default: the one place where defaults of recipes are written."""

from __future__ import annotations

from typing import Any

from asrkit.recipe import ANY

# Faults that `defects:` can switch on, one by one, to show what they do (asrkit.defects; found in the notebooks behind
# the question and in their ancestor).
DEFECTS = {
    "mel_axis_lengths": "CTC lengths from the feature axis: the same for every clip",
    "zero_infinity": "targets that cannot be aligned count as loss 0",
    "normal_biases": "all biases but those of norms drawn from N(0, 1)",
    "batch_axis_recurrence": "recurrent layers after the first run from utterance to utterance",
    "linear_power_mel": "mel energies without the logarithm",
    "carried_state": "recurrent layers begin with the last state of the batch before",
    "padding_first": "the backward direction begins in the padding",
}

SCHEMA: dict[str, Any] = {
    "name": None,  # names the run folder; the recipe's file name where it is missing
    "encoder": "none",  # any name that `asrkit plugins --kind encoders` prints
    "seed": 1,
    "layers": ANY,
    "data": {
        "root": None,  # Common Voice (folder or .tar.gz), manifest, audio + text files, Parquet, hf://OWNER/NAME
        "format": None,  # recognized from what lies there; or a name of kind `corpora`
        "language": None,  # which folder of an archive or of Parquet, or configuration of a Hub dataset, of several
        "train": "train",  # names of splits (Common Voice) or of files (manifests)
        "dev": "dev",
        "test": "test",
        "column": None,  # the transcript's column in a manifest or in Parquet
        "reported": "keep",  # Common Voice: drop leaves out sentences that readers have reported
        "segments": "all",  # Common Voice: no_benchmark leaves out the one-word Benchmark prompts
        "hours": None,  # of the train split, as a nested subset (asrkit.corpus.subset); null: all of it
        "subset_seed": 0,  # another seed, another subset; `seed` does not change it
        "max_utterances": None,  # the first N clips of the train split
        "max_seconds": 20.0,  # longer clips are excluded from training, counted
        "on_truncated": "drop",  # clips shorter or longer than they claim to be: drop (counted), keep (what is there)
        "max_bad": 0.05,  # more than this share of unusable clips is an error
        "allow_shared_speakers": False,
        "sample_rate": 16000,
        "licence": None,  # of the recordings, such as CC0-1.0: stated in the model card
        "cache": "runs/.cache",
    },
    "text": {
        "rules": "spanish",
        "tokenizer": "characters",
        "options": ANY,
        "unknown": "error",  # characters outside the alphabet: error, drop (the utterance, counted), map
        "map": ANY,
    },
    "features": {"name": "fbank", "options": ANY},
    "cmvn": {"mode": "utterance", "std": True},
    "augment": {  # of train waveforms; features are then computed in every epoch anew (asrkit.audio.perturb)
        "speed": None,  # speeds to draw from, such as [0.9, 1.0, 1.1]
        "noise": {"share": 0.0, "snr_db": [10, 30], "folder": None},  # folder null: generated, white to pink
        "gain_db": None,  # [low, high]
    },
    "spec_augment": ANY,  # null, or the options of SpecAugment
    "norm": {
        "eps": 1e-5,
        "affine": True,
        "momentum": 0.1,
        "min_count": 16,
        "max_steps": 1024,
        "allow_batch_of_one": False,
        "masked": True,  # false: statistics count the padding as zeros, the usual mistake, to be measured
        "groups": 8,  # of group_norm
        "gain": 1.0,  # what learned gains start at; Cooijmans et al. take 0.1 inside a recurrence
        "renorm_r": 3.0,  # of batch_renorm: limits of its corrections, and training batches until they hold in full
        "renorm_d": 5.0,
        "renorm_warmup": 1000,
        "batch": "update",  # micro: with accumulation, batch statistics are those of the micro-batch, and you know it
    },
    "ctc": {  # cures, see docs/cures.md
        "blank_bias": 0.0,  # added to the output layer's first bias of the blank
        "label_prior": 0.0,  # alpha: training scores are log p - alpha log q, q the last epoch's mean posterior
        "decode_prior": 0.0,  # and what a trained model gives is p / q to this power
        "intermediate": {"weight": 0.0, "after": None},  # losses on recurrent layers of these numbers; null: the middle
    },
    "decoder": {"name": "greedy", "options": ANY},  # for evaluating and transcribing; training looks at greedy output
    "defects": [],  # names of DEFECTS
    "training": {
        "epochs": 30,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "momentum": 0.9,
        "schedule": "onecycle",
        "warmup_share": 0.3,
        "hold_share": 0.0,
        "final_share": 0.0,
        "anneal": "cosine",
        "clip": 5.0,
        "batch_frames": 20000,  # feature frames, padding included
        "batch_size": None,  # utterances at most
        "order": "bucketed",
        "first_epoch": None,  # another order for the first epoch, such as ascending (SortaGrad)
        "accumulation": 1,
        "precision": "fp32",
        "device": "auto",
        "early_stopping": None,  # epochs without a better dev CER
        "evaluate_every": 1,  # epochs between looks at dev
        "max_nonfinite": 3,  # refused batches in a row
        "workers": 0,  # processes that read train batches ahead; worth it where waveforms are augmented
        "worker_timeout": 120.0,  # seconds that one of them may take over one clip
        "checkpoint_every": 1,  # epochs
        "checkpoint_minutes": 15.0,  # and within an epoch
        "keep_last": 2,  # checkpoints that stay: the newest ones, and the best on dev; more for `asrkit average`
        "keep_best": 1,
        "tensorboard": True,
        "curves": True,  # draw curves.png
    },
}

# Keys that may change between runs of one folder; all others are the run's identity.
NEUTRAL = (
    "training.epochs",
    "training.device",
    "training.early_stopping",
    "training.evaluate_every",
    "training.checkpoint_minutes",
    "training.keep_last",
    "training.keep_best",
    "training.tensorboard",
    "training.curves",
    "training.workers",
    "training.worker_timeout",
    "data.cache",
    "data.root",
    "data.max_bad",
    "data.licence",
)
