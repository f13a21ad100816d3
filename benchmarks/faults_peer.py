"""The faults of docs/reliability.md done to SpeechBrain: what its trainer, checkpointer and layers do, measured.

    python benchmarks/faults_peer.py --output runs/faults_peer.json      (one to two minutes)

A small CTC trainer as SpeechBrain's recipes are (Brain, Checkpointer, EpochCounter, PaddedBatch, relative lengths) with
the layers of the toy model that asrkit's fault tests train: linear, batch norm, ReLU, BiGRU, dropout, linear. Every row
is a function that returns what happened in words; a row that is not here was not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import Checkpointer

from asrkit.testing.faults import cut, flip_bit, in_child, shifted_clock

SIZE, LABELS, CLIPS = 16, 8, 12


class Model(torch.nn.Module):
    """linear, batch norm, ReLU, BiGRU, dropout, linear: (B, T, 16), relative lengths (B,) -> (B, T, 8)."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = sb.nnet.linear.Linear(16, input_size=SIZE)
        self.norm = sb.nnet.normalization.BatchNorm1d(input_size=16)
        self.gru = sb.nnet.RNN.GRU(16, input_size=16, bidirectional=True)
        self.dropout = torch.nn.Dropout(dropout)
        self.last = sb.nnet.linear.Linear(LABELS, input_size=32)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x, _ = self.gru(self.norm(self.first(x)).relu(), lengths=lengths)
        return self.last(self.dropout(x)).log_softmax(-1)


class Trainer(sb.Brain):
    """The usual Brain of a CTC recipe."""

    def compute_forward(self, batch: Any, stage: sb.Stage) -> torch.Tensor:
        return self.modules.model(batch.feats.data, batch.feats.lengths)

    def compute_objectives(self, predictions: torch.Tensor, batch: Any, stage: sb.Stage) -> torch.Tensor:
        tokens, token_lengths = batch.tokens
        return sb.nnet.losses.ctc_loss(predictions, tokens, batch.feats.lengths, token_lengths, blank_index=0)

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
        self.hparams.on_step(self)


def dataset(infeasible: int = 0) -> DynamicItemDataset:
    generator = torch.Generator().manual_seed(1)
    data = {}
    for i in range(CLIPS):
        frames = 20 + 5 * (i % 4)
        labels = [1] * frames if i < infeasible else torch.randint(1, LABELS, (4,), generator=generator).tolist()
        data[str(i)] = {"feats": torch.randn(frames, SIZE, generator=generator), "tokens": torch.tensor(labels)}
    return DynamicItemDataset(data, output_keys=["id", "feats", "tokens"])


def trainer(folder: Path | None, on_step: Callable[[Any], None] = lambda brain: None, **options: Any) -> Trainer:
    torch.manual_seed(options.pop("seed", 1))
    rate, dropout = options.pop("lr", 0.01), options.pop("dropout", 0.1)
    modules = {"model": Model(dropout)}
    counter = sb.utils.epoch_loop.EpochCounter(2)
    kept = Checkpointer(str(folder), recoverables={"counter": counter}) if folder is not None else None
    brain = Trainer(
        modules, lambda parameters: torch.optim.Adam(parameters, lr=rate), {"on_step": on_step},
        {"noprogressbar": True, "device": "cpu", "ckpt_interval_minutes": 0, **options}, kept,
    )  # fmt: skip
    if kept is not None:
        kept.add_recoverable("model", modules["model"])
    brain.counter = counter
    return brain


def fit(brain: Trainer, data: DynamicItemDataset | None = None, batch: int = 2) -> Trainer:
    torch.manual_seed(1)
    options = {"batch_size": batch, "shuffle": True, "collate_fn": PaddedBatch}
    brain.fit(brain.counter, data or dataset(), train_loader_kwargs=options)  # so that it checkpoints its loader too
    return brain


def weights(brain: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in brain.modules.parameters()])


def simple(folder: Path, size: int = 125_000) -> tuple[Checkpointer, torch.nn.Linear]:
    """A checkpointer of one layer of 4 bytes x `size` x 4, and the layer."""
    layer = torch.nn.Linear(4, size, bias=False)
    return Checkpointer(str(folder), recoverables={"model": layer}, allow_partial_load=False), layer


# --- S


def s01(folder: Path) -> str:
    def save_for_ever(acknowledged: Any, where: Path) -> None:
        store, layer = simple(where)
        for step in range(1, 10**6):
            layer.weight.data.fill_(step)
            store.save_and_keep_only(meta={"step": step}, num_to_keep=2)
            acknowledged.value = step

    context = multiprocessing.get_context("fork")
    rng, crashed, kills = random.Random(1), 0, 40
    for trial in range(kills):
        acknowledged, where = context.Value("l", 0), folder / str(trial)
        process = context.Process(target=save_for_ever, args=(acknowledged, where))
        process.start()
        while acknowledged.value < 2:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        try:
            simple(where)[0].recover_if_possible()
        except Exception:
            crashed += 1
        shutil.rmtree(where)
    return f"{crashed} of {kills} restarts crash, an older checkpoint beside the half one"


def s03(folder: Path) -> str:
    small = folder / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], capture_output=True, check=False
    ).returncode:
        return "not run (needs the right to mount)"
    try:
        store, _ = simple(small, 200_000)
        store.save_checkpoint()
        said = "saves"
        try:
            store.save_checkpoint()
        except Exception as error:
            said = f"{type(error).__name__}, half a checkpoint stays"
        try:
            simple(small, 200_000)[0].recover_if_possible()
            return f"{said}; restart works"
        except Exception as error:
            return f"{said}; the restart crashes with {type(error).__name__}"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def s04(folder: Path) -> str:
    rng, silent, flips = random.Random(1), 0, 50
    for trial in range(flips):
        store, layer = simple(folder / str(trial), 1000)
        before = layer.weight.detach().clone()
        saved = store.save_checkpoint()
        path = saved.path / "model.ckpt"
        flip_bit(path, rng.randrange(8 * path.stat().st_size))
        with contextlib.suppress(Exception):
            store, layer = simple(folder / str(trial), 1000)
            store.recover_if_possible()
            silent += not torch.equal(layer.weight, before)
    return f"{silent} of {flips} flips load other weights in silence"


def s05(folder: Path) -> str:
    store, _ = simple(folder, 1000)
    for _ in range(2):
        last = store.save_checkpoint()
    whole = (last.path / "CKPT.yaml").read_bytes()
    said = []
    for damage in (0.0, 0.5):
        cut(last.path / "CKPT.yaml", damage)
        try:
            store = simple(folder, 1000)[0]
            store.recover_if_possible()
            said.append("it restarts")
        except Exception as error:
            said.append(f"no restart ({type(error).__name__}), though the other checkpoint is whole")
        (last.path / "CKPT.yaml").write_bytes(whole)
    return f"metadata empty: {said[0]}; cut in half: {said[1]}"


def s06(folder: Path) -> str:
    store, layer = simple(folder, 1000)
    for step, shift in ((1, 0), (2, -3600)):
        layer.weight.data.fill_(step)
        with shifted_clock(shift):
            store.save_checkpoint(meta={"step": step}, name=f"step{step}")
    found = store.find_checkpoint(importance_key=lambda checkpoint: checkpoint.meta["unixtime"])
    with shifted_clock(-7200):
        store.save_and_keep_only(meta={"step": 3}, name="step3", num_to_keep=1)
    left = sorted(checkpoint.meta["step"] for checkpoint in store.list_checkpoints())
    return f"resumes step {found.meta['step']} of 2; of three saves, keeping one, step {left} is left"


def s07(folder: Path) -> str:
    store, _ = simple(folder, 4)
    seconds = []
    for step in range(150):
        started = time.perf_counter()
        store.save_and_keep_only(meta={"loss": float(step)}, min_keys=["loss"], num_to_keep=1)
        seconds.append(time.perf_counter() - started)
    ratio = statistics.median(seconds[-10:]) / statistics.median(seconds[:10])
    return f"the last of 150 saves take {ratio:.1f} times the first"


def s08(folder: Path) -> str:
    def saves(failed: Any) -> None:
        store, _ = simple(folder, 20_000)
        for step in range(30):
            try:
                store.save_and_keep_only(meta={"step": step}, num_to_keep=1)
            except Exception:
                failed.value += 1

    context = multiprocessing.get_context("fork")
    failed = [context.Value("l", 0) for _ in range(2)]
    processes = [context.Process(target=saves, args=(count,)) for count in failed]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return f"both go on; {sum(count.value for count in failed)} of 60 saves fail"


class _Stop(Exception):
    pass


def _resumed(folder: Path, stop_at: int, **options: Any) -> float:
    """Relative difference of the final weights: stopped after `stop_at` steps with a checkpoint, and resumed."""
    whole = weights(fit(trainer(None, **options)))

    def stop(brain: Any) -> None:
        if brain.optimizer_step == stop_at:
            brain.checkpointer.save_checkpoint()
            raise _Stop

    folder.mkdir()
    with contextlib.suppress(_Stop):
        fit(trainer(folder, stop, **options))
    resumed = weights(fit(trainer(folder, **options)))
    return float((resumed - whole).norm() / whole.norm())


def s09(folder: Path) -> str:
    differences = [_resumed(folder / str(step), step) for step in (3, 6, 9)]
    plain = _resumed(folder / "plain", 9, dropout=0.0)
    return (
        f"final weights differ by {', '.join(f'{d:.0%}' for d in differences)} after a stop at step 3, 6, 9 of 12 "
        f"({plain:.0%} without dropout)"
    )


def s10(folder: Path) -> str:
    def stop(brain: Any) -> None:
        if brain.optimizer_step == 6:
            brain.checkpointer.save_checkpoint()
            raise _Stop

    with contextlib.suppress(_Stop):
        fit(trainer(folder, stop))
    changed = trainer(folder, seed=2, lr=0.1, grad_accumulation_factor=2)
    fit(changed, batch=4)
    rate = changed.optimizer.param_groups[0]["lr"]
    return (
        f"new seed, rate x10, batch x2 and accumulation x2 are accepted in silence; the rate in use is {rate:g} of 0.1"
    )


def s11(folder: Path) -> str:
    def signalled(brain: Any) -> None:
        if brain.optimizer_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    brain = trainer(folder, signalled, ckpt_interval_minutes=15)
    code = in_child(lambda: fit(brain))
    return f"dies with {code}, {len(brain.checkpointer.list_checkpoints())} checkpoints"


# --- C


def c01(folder: Path) -> str:
    torch.manual_seed(0)
    log_probs = torch.randn(8, 20, LABELS).log_softmax(-1)
    losses = []
    for infeasible in (0, 2, 4):
        targets = torch.randint(1, LABELS, (8, 19))
        targets[:infeasible] = 1
        sizes = torch.full((8,), 4 / 19)
        sizes[:infeasible] = 1.0
        losses.append(float(sb.nnet.losses.ctc_loss(log_probs, targets, torch.ones(8), sizes, blank_index=0)))
    return "the loss falls: " + ", ".join(f"{loss:.2f}" for loss in losses) + " with 0, 2, 4 of 8 infeasible"


def c02(folder: Path) -> str:
    def out(n: int) -> int:
        return (n + 1) // 2

    wrong = pairs = 0
    for longest in range(1, 151):
        frames = out(out(longest))
        lengths = torch.arange(1, longest + 1)
        real = torch.tensor([out(out(int(n))) for n in lengths])
        wrong += int(((lengths / longest * frames).round().long() != real).sum())
        pairs += longest
    return f"{wrong / pairs:.0%} of {pairs} CTC lengths are wrong after two convolutions of stride 2"


def c04(folder: Path) -> str:
    def loss() -> None:
        log_probs = torch.randn(2, 20, LABELS, requires_grad=True)
        targets = torch.full((2, 3), LABELS + 5)
        value = sb.nnet.losses.ctc_loss(log_probs.log_softmax(-1), targets, torch.ones(2), torch.ones(2), blank_index=0)
        (folder / "loss").write_text(f"{float(value):.2f}")

    code = in_child(loss)
    given = (folder / "loss").read_text() if (folder / "loss").exists() else "none"
    return f"label {LABELS + 5} of {LABELS}: exit {code}, loss {given}, no error" if code == 0 else f"ends with {code}"


def c05(folder: Path) -> str:
    log_probs = torch.randn(2, 20, LABELS).log_softmax(-1)
    targets = torch.tensor([[1, 0, 2], [3, 0, 0]])
    value = sb.nnet.losses.ctc_loss(log_probs, targets, torch.ones(2), torch.ones(2), blank_index=0)
    return f"loss {float(value):.1f}, no error"


def c06(folder: Path) -> str:
    targets = torch.randint(1, LABELS, (2, 3))
    value = sb.nnet.losses.ctc_loss(
        8 + torch.randn(2, 20, LABELS), targets, torch.ones(2), torch.ones(2), blank_index=0
    )
    return f"loss {float(value):.1f}, no error"


def c07(folder: Path) -> str:
    said = []
    for patience in (3, 100):
        data = dataset()
        data.data["0"]["feats"][0, 0] = float("nan")
        brain = trainer(None, nonfinite_patience=patience)
        end = "ends well"
        try:
            fit(brain, data)
        except Exception as error:
            end = type(error).__name__
        tensors = brain.modules.state_dict().values()
        bad = sum(not bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())
        said.append(f"patience {patience}: {end}, {bad} of {len(tensors)} tensors NaN")
    return "; ".join(said)


def c09(folder: Path) -> str:
    fbank = sb.lobes.features.Fbank()
    said = []
    for count in (0, 1, 100):
        try:
            said.append(f"{count} samples: {fbank(torch.zeros(1, count)).shape[1]} frames")
        except Exception as error:
            said.append(f"{count} samples: {type(error).__name__}")
    return ", ".join(said)


# --- N, D


def _outputs(model: Model, lengths: list[int], extra: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(len(lengths), max(lengths) + extra, SIZE)
    for i, n in enumerate(lengths):
        x[i, :n] = torch.randn(n, SIZE, generator=generator)
    y = model.norm(model.first(x))
    return torch.cat([y[i, :n] for i, n in enumerate(lengths)])


def n01(folder: Path) -> str:
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.first.w.bias += 1
        one, other = _outputs(model, [20, 15, 10], 0), _outputs(model, [20, 15, 10], 20)
    moved = float(((one - other) / one.std(0)).abs().mean())
    return f"twice the frames, all padding, move its batch norm by {moved:.2f} deviations"


def n02(folder: Path) -> str:
    try:
        sb.nnet.normalization.BatchNorm1d(input_size=SIZE)(torch.randn(1, 1, SIZE))
        return "one frame: no error"
    except ValueError:
        return "sequence-wise: one frame is a ValueError; it has no frame-wise norm"


def n05(folder: Path) -> str:
    norm = sb.nnet.normalization.BatchNorm1d(input_size=SIZE)
    x = torch.randn(4, 10, SIZE)
    x[0, 0, 0] = float("nan")
    norm(x)
    for _ in range(200):
        norm(torch.randn(4, 10, SIZE))
    bad = int((~torch.isfinite(norm.norm.running_mean)).sum())
    return f"after 200 clean batches {bad} of {SIZE} channels is still NaN"


def n06(folder: Path) -> str:
    x = torch.randn(32, 10, SIZE, generator=torch.Generator().manual_seed(0)) * 2 + 1
    targets = torch.randn(32, 10, LABELS, generator=torch.Generator().manual_seed(1))
    gradients = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = Model(0.0)
        for part in x.chunk(parts):
            (model(part, torch.ones(len(part))) * targets[: len(part)]).sum().backward()
            targets = targets.roll(-len(part), 0)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    off = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    return f"gradients of 4 x 8 and 1 x 32 differ by {off:.0%}, no word"


def n08(folder: Path) -> str:
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    conv = sb.nnet.CNN.Conv1d(16, 5, input_shape=(None, None, SIZE))
    gru, head = sb.nnet.RNN.GRU(16, input_size=16, bidirectional=True), sb.nnet.linear.Linear(LABELS, input_size=32)
    model.extend([conv, gru, head]).eval()
    clips = [torch.randn(n, SIZE) for n in (20, 40, 60)]

    def through(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        x = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(clip) / x.shape[1] for clip in batch])
        y = head(gru(conv(x), lengths=lengths)[0]).log_softmax(-1)
        return [y[i, : len(clip)] for i, clip in enumerate(batch)]

    with torch.inference_mode():
        together, alone = through(clips), [through([clip])[0] for clip in clips]
    moved = max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True))
    return f"log-probabilities move by up to {moved:.3f} with the company (packed GRU, convolution that reads padding)"


def d05(folder: Path) -> str:
    wave = 0.1 * torch.randn(1, 16000)
    wave[0, 8000] = float("nan")
    frames = sb.lobes.features.Fbank()(wave)
    return f"one NaN sample spoils {int((~torch.isfinite(frames)).any(-1).sum())} of {frames.shape[1]} frames"


# --- X


def _marked(folder: Path, tag: str) -> str:
    marker = folder / "marker"
    with contextlib.suppress(Exception):
        load_hyperpyyaml(f"x: {tag} ['touch {marker}']")
    return "runs it" if marker.exists() else "does not run it"


def x01(folder: Path) -> str:
    return f"`!apply:os.system`: {_marked(folder, '!apply:os.system')}"


def x02(folder: Path) -> str:
    return f"a name below speechbrain: {_marked(folder, '!apply:speechbrain.utils.checkpoints.os.system')}"


def x08(folder: Path) -> str:
    from speechbrain.inference.ASR import EncoderASR

    marker = folder / "marker"
    (folder / "hyperparams.yaml").write_text(f"x: !apply:os.system ['touch {marker}']\n")
    with contextlib.suppress(Exception):
        EncoderASR.from_hparams(source=str(folder), savedir=str(folder / "saved"))
    return f"the folder's hyperparams.yaml {'runs' if marker.exists() else 'does not run'}"


ROWS = {
    name.upper(): function
    for name, function in list(globals().items())
    if len(name) == 3 and name[0] in "scndxi" and name[1:].isdigit() and callable(function)
}


def measure(only: list[str]) -> dict[str, str]:
    """Row -> what happened."""
    found = {}
    for row, function in ROWS.items():
        if only and row not in only:
            continue
        folder = Path(tempfile.mkdtemp(prefix="peer"))
        try:
            found[row] = function(folder)
        except Exception as error:
            found[row] = f"not run ({type(error).__name__}: {error})"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{row}  {found[row]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="such as S01 C07; all of them where none is named")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    found = {"speechbrain": sb.__version__, "torch": torch.__version__, "rows": measure([r.upper() for r in args.rows])}
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
