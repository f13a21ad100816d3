"""The side of SpeechBrain in benchmarks/epoch.py: a recipe's layers and a Brain, of SpeechBrain's own parts only.

It is what a SpeechBrain recipe for Common Voice would be (`recipes/CommonVoice/ASR/CTC/train_with_wav2vec.py` in form),
with the cheaper of two ways wherever there is a choice: the resampler is made once for each rate, not once for each
clip, and a file is opened once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from epoch import Clock
from safetensors.torch import load_file
from speechbrain.core import Stage
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.lobes.features import Fbank
from speechbrain.nnet.activations import Softmax
from speechbrain.nnet.CNN import Conv2d
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.nnet.RNN import GRU
from speechbrain.processing.features import InputNormalization
from torch import Tensor, nn
from torch.utils.data import Sampler
from torchaudio.transforms import Resample

from asrkit.training.meters import Meter

SAMPLE_RATE = 16000


class Model(nn.Module):
    """A recipe's `layers:` and the output layer: features (B, T, F), relative lengths (B,) -> log-probs (B, T', V)."""

    def __init__(self, layers: list[Any], encoder: str, size: int, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.parts = nn.ModuleList()
        self.size, self.channels = size, 1  # F and C of what comes next
        self._add(layers)
        self.parts.append(Linear(input_size=self.size * self.channels, n_neurons=labels))
        self.log_softmax = Softmax(apply_log=True)

    def _add(self, layers: list[Any]) -> None:
        for layer in layers:
            name: str = layer if isinstance(layer, str) else next(iter(layer))
            options: Any = None if isinstance(layer, str) else layer[name]
            if name == "repeat":
                for _ in range(options["times"]):
                    self._add(options["layers"])
            elif name == "norm":
                if self.encoder == "layer_norm":
                    self.parts.append(LayerNorm(input_size=self.size))
            else:
                self.parts.append(getattr(self, f"_{name}")(options))

    def _conv(self, options: dict[str, int]) -> nn.Module:
        kernel, stride = options["kernel"], options.get("stride", 1)
        conv = Conv2d(options["channels"], kernel, in_channels=self.channels, stride=stride, padding="valid")
        self.size = (self.size + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
        self.channels = options["channels"]
        return conv

    def _linear(self, size: int) -> nn.Module:
        linear = Linear(size, input_size=self.size * self.channels, combine_dims=True)
        self.size, self.channels = size, 1
        return linear

    def _bigru(self, options: Any) -> nn.Module:
        options = options if isinstance(options, dict) else {"size": options}
        gru = GRU(
            options["size"],
            input_size=self.size * self.channels,
            num_layers=options.get("layers", 1),
            dropout=options.get("dropout", 0.0),
            bidirectional=True,
        )
        self.size, self.channels = 2 * options["size"], 1
        return gru

    def _relu(self, _: None) -> nn.Module:
        return nn.ReLU()

    def _dropout(self, p: float) -> nn.Module:
        return nn.Dropout(p)

    def forward(self, x: Tensor, relative: Tensor) -> Tensor:
        x = x.unsqueeze(-1)
        for part in self.parts:
            if isinstance(part, Conv2d):  # "same" has no zero padding for an even kernel
                pad = (part.kernel_size[0] - 1) // 2
                x = part(nn.functional.pad(x, (0, 0, pad, pad, pad, pad)))
            elif isinstance(part, GRU):
                x, _ = part(x, lengths=relative)
            else:
                x = part(x)
        return self.log_softmax(x)


class EpochBatches(Sampler[list[int]]):
    """The batches that the other side has in each epoch, by the places of their clips in the data set."""

    def __init__(self, epochs: list[list[list[str]]], ids: list[str]) -> None:
        places = {name: i for i, name in enumerate(ids)}
        self.epochs = [[[places[name] for name in batch] for batch in epoch] for epoch in epochs]
        self.epoch = 1

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.epochs[self.epoch - 1])

    def __len__(self) -> int:
        return len(self.epochs[self.epoch - 1])


class Characters:
    """As much of a tokenizer as the scorer asks for."""

    name = "characters"

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels

    def decode(self, ids: list[int]) -> str:
        return "".join(self.labels[i] for i in ids)


class PeerBrain(sb.Brain):
    """compute_forward and compute_objectives; on dev also the greedy output's errors, counted as asrkit counts."""

    clock: Clock
    batches: EpochBatches
    tokenizer: Characters

    def compute_forward(self, batch: Any, stage: Stage) -> tuple[Tensor, Tensor]:
        batch = batch.to(self.device)
        waveforms, relative = batch.sig
        features = self.modules.normalize(self.modules.fbank(waveforms), relative)
        return self.modules.model(features, relative), relative

    def compute_objectives(self, predictions: tuple[Tensor, Tensor], batch: Any, stage: Stage) -> Tensor:
        log_probs, relative = predictions
        tokens, token_lengths = batch.tokens
        count = int((token_lengths * tokens.shape[1]).round().sum())
        nll = ctc_loss(log_probs, tokens, relative, token_lengths, blank_index=0, reduction="sum")
        self.nll += float(nll.detach())
        self.labels += count
        if stage == Stage.VALID:
            lengths = (relative * log_probs.shape[1]).round().long()
            self.meter.add_outputs(log_probs, lengths, batch.text, self.tokenizer)
        return nll / count

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        self.nll, self.labels, self.meter = 0.0, 0, Meter()
        if stage == Stage.TRAIN:
            self.batches.epoch = epoch or 1
            self.clock.start()

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage == Stage.TRAIN:
            self.clock.stop()
            self.train_loss = self.nll / self.labels


def dataset(plan: dict[str, Any], split: str) -> DynamicItemDataset:
    """Clips that are decoded, resampled and encoded when they are asked for."""
    resamplers: dict[int, Resample] = {}

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav: str) -> Tensor:
        signal, rate = audio_io.load(wav)
        if rate not in resamplers:
            resamplers[rate] = Resample(rate, SAMPLE_RATE)
        return resamplers[rate](signal.mean(0))

    ids = {label: i for i, label in enumerate(plan["labels"])}

    @sb.utils.data_pipeline.takes("text")
    @sb.utils.data_pipeline.provides("tokens")
    def text_pipeline(text: str) -> Tensor:
        return torch.LongTensor([ids[character] for character in text])

    data = {name: dict(clip) for name, clip in plan["data"].items() if clip["split"] == split}
    return DynamicItemDataset(data, [audio_pipeline, text_pipeline], ["id", "sig", "tokens", "text"])


def modules(plan: dict[str, Any]) -> dict[str, nn.Module]:
    """Features, normalization and model, with the weights that the other side begins with once they are there."""
    model = Model(plan["layers"], plan["encoder"], plan["features"], len(plan["labels"]))
    start = Path(plan["root"]) / f"{plan['model']}.safetensors"
    if start.exists():
        model.load_state_dict(load_file(start))
    fbank = Fbank(sample_rate=SAMPLE_RATE, n_mels=plan["features"], n_fft=512)
    return {"fbank": fbank, "normalize": InputNormalization(norm_type="sentence"), "model": model}


def train(plan: dict[str, Any]) -> dict[str, float]:
    """All epochs, then one look at dev."""
    torch.manual_seed(1)
    brain = PeerBrain(
        modules(plan),
        opt_class=lambda parameters: torch.optim.AdamW(parameters, lr=plan["lr"], weight_decay=0.0),
        run_opts={"device": "cpu", "noprogressbar": True, "max_grad_norm": 5.0},
    )
    train_set, dev_set = dataset(plan, "train"), dataset(plan, "dev")
    brain.clock, brain.tokenizer = Clock(), Characters(plan["labels"])
    brain.batches = EpochBatches(plan["train"], train_set.data_ids)
    options = {"batch_sampler": brain.batches, "num_workers": plan["workers"]}
    brain.fit(range(1, plan["epochs"] + 1), train_set, train_loader_kwargs=options)
    dev = sb.dataio.dataloader.make_dataloader(dev_set, batch_sampler=EpochBatches([plan["dev"]], dev_set.data_ids))
    brain.on_stage_start(Stage.VALID)
    brain.modules.eval()
    with torch.no_grad():
        for batch in dev:
            brain.evaluate_batch(batch, Stage.VALID)
    return {
        **brain.clock.figures(),
        "train_loss": brain.train_loss,
        "dev_loss": brain.nll / brain.labels,
        "dev_cer": brain.meter.summary()["cer"],
        "updates": brain.optimizer_step,
        "parameters": sum(p.numel() for p in brain.modules.model.parameters()),
    }


def main() -> None:
    plan = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(plan["threads"])
    print(json.dumps(train(plan)))


if __name__ == "__main__":
    main()
