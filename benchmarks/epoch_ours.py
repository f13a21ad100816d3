"""Our side of benchmarks/epoch.py: `prepare PLAN` does as `asrkit data prepare`, `train PLAN` as `asrkit train`.

The trainer is the one of every run, with all that it does in an epoch: it checks each batch, counts the errors of its
greedy output, measures the gradient of each layer, and logs each update, none of which the other side does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from epoch import Clock
from safetensors.torch import save_file
from speechbrain.core import Stage
from torch import Tensor, nn

from asrkit.batching import Batch, BatchSampler
from asrkit.checkpoints import Checkpoints
from asrkit.model import AcousticModel, parameter_count
from asrkit.preparation import Prepared, prepare
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.recurrent import Recurrent
from asrkit.runs import MetricsLog
from asrkit.training import CTCBrain

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "common_voice_es"
FIXED = {
    "data.max_bad": "1",
    "data.test": "null",
    "text.options": "{alphabet: null}",  # of the train split: the clips may be of several languages
    "training.optimizer": "adamw",
    "training.weight_decay": "0",
    "training.schedule": "constant",
    "training.device": "cpu",
    "training.tensorboard": "false",
}


class TimedBrain(CTCBrain):
    """The trainer, with a clock on its epochs."""

    clock: Clock
    seen: list[tuple[str, ...]]

    def fit_batch(self, batch: Batch) -> Tensor:
        self.seen.append(batch.ids)
        return super().fit_batch(batch)

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        if stage == Stage.TRAIN:
            self.clock.start()

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage == Stage.TRAIN:
            self.clock.stop()


def recipe_of(plan: dict[str, Any]) -> dict[str, Any]:
    """The recipe with what the benchmark fixes and what the command line says."""
    options = FIXED | {
        "data.root": plan["root"],
        "data.cache": f"{plan['root']}/cache",
        "width": str(plan["width"]),
        "training.lr": str(plan["lr"]),
        "training.epochs": str(plan["epochs"]),
        "training.evaluate_every": str(plan["epochs"]),
        "training.checkpoint_every": str(plan["epochs"]),
        "training.batch_frames": str(plan["batch_frames"]),
    }
    if plan["encoder"]:
        options["encoder"] = plan["encoder"]
    return load_recipe(RECIPES / f"{plan['model']}.yaml", list(options.items()), known=SCHEMA)


def make_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Prepare, and write down what the other side needs: clips, texts, batches of every epoch, first weights."""
    recipe = recipe_of(plan)
    wall, cpu = time.perf_counter(), time.process_time()
    prepared = prepare(recipe, ("train", "dev"))
    preparation = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    train = [
        batches("train", recipe["training"]["order"], epoch + 1, prepared, recipe) for epoch in range(plan["epochs"])
    ]
    plan |= {
        "encoder": recipe["encoder"],
        "layers": recipe["layers"],
        "features": prepared.model.features.size,
        "labels": prepared.tokenizer.labels,
        "parameters": parameter_count(prepared.model.acoustic),
        "clips": len(prepared.splits["train"]),
        "minutes": sum(prepared.splits["train"].frames) * prepared.model.features.frame_seconds / 60,
        "updates": sum(map(len, train)),
        "train": train,
        "dev": batches("dev", "ascending", 1, prepared, recipe),
        "data": clips(prepared),
        "preparation": preparation,
    }
    return plan | {"difference_at_start": same_start(plan, prepared)}


def batches(key: str, order: str, epoch: int, prepared: Prepared, recipe: dict[str, Any]) -> list[list[str]]:
    """The clips of every batch of an epoch, as the trainer will have them."""
    split, training = prepared.splits[key], recipe["training"]
    frames, seed = split.frames, int(recipe["seed"])
    sampler = BatchSampler(frames, training["batch_frames"], training["batch_size"], order, seed, epoch=epoch)
    return [[split.utterances[row].id for row in batch] for batch in sampler.batches()]


def clips(prepared: Prepared) -> dict[str, dict[str, str]]:
    """What a SpeechBrain data set is made of."""
    return {
        utterance.id: {"wav": str(utterance.audio), "text": text, "split": key}
        for key, split in prepared.splits.items()
        for utterance, text in zip(split.utterances, split.texts, strict=True)
    }


def same_start(plan: dict[str, Any], prepared: Prepared) -> float:
    """Save our first weights as the other side's; both models must be one function of a clip. Returns the largest
    difference of a log-probability."""
    from epoch_peer import modules  # here, so that its imports take no memory where we train

    acoustic = prepared.model.acoustic.eval()
    peer = modules(plan)
    model = peer["model"].eval()
    copy_weights(acoustic, model)
    assert parameter_count(acoustic) == parameter_count(model), (acoustic, model)
    features = torch.from_numpy(prepared.splits["dev"][0][2].astype("float32"))[None]
    with torch.inference_mode():
        ours, _ = acoustic(features, torch.tensor([features.shape[1]]))
        theirs = model(peer["normalize"](features, torch.ones(1)), torch.ones(1))
    difference = float((ours - theirs).abs().max())
    assert difference < 1e-3, f"the log-probabilities of one clip differ by {difference}"
    save_file(model.state_dict(), Path(plan["root"]) / f"{plan['model']}.safetensors")
    return difference


@torch.no_grad()
def copy_weights(ours: AcousticModel, theirs: nn.Module) -> None:
    """Layer by layer; SpeechBrain's convolutions have frequency before time. Norms begin with gain 1 and bias 0."""
    sources = [module for module in ours.modules() if isinstance(module, nn.Conv2d | nn.Linear | Recurrent)]
    targets = [module for module in theirs.modules() if isinstance(module, nn.Conv2d | nn.Linear | nn.GRU)]
    for source, target in zip(sources, targets, strict=True):
        if isinstance(source, Recurrent):
            state = recurrent_state(source)
        else:
            state = dict(source.state_dict())
            if isinstance(source, nn.Conv2d):
                state["weight"] = state["weight"].transpose(2, 3)
        target.load_state_dict(state)


def recurrent_state(ours: Recurrent) -> dict[str, Tensor]:
    """Our weights under torch's names."""
    return {
        f"{kind}_{theirs}_l{i}{suffix}": getattr(layer, f"{kind}_{name}")[d]
        for i, layer in enumerate(ours.layers)
        for d, suffix in enumerate(("", "_reverse"))
        for theirs, name in (("ih", "input"), ("hh", "recurrent"))
        for kind in ("weight", "bias")
    }


def train(plan: dict[str, Any]) -> dict[str, float]:
    """All epochs, then one look at dev."""
    recipe = recipe_of(plan)
    prepared = prepare(recipe, ("train", "dev"))
    with tempfile.TemporaryDirectory() as folder:
        brain = TimedBrain(
            recipe,
            prepared.model,
            prepared.tokenizer,
            prepared.splits["train"],
            prepared.splits["dev"],
            MetricsLog(Path(folder) / "metrics.jsonl"),
            Checkpoints(Path(folder) / "checkpoints", key="selection"),
        )
        brain.clock, brain.seen = Clock(), []
        last = brain.run()
    assert brain.seen == [tuple(batch) for epoch in plan["train"] for batch in epoch]
    assert not last["train"].get("refused_batches")
    return {
        **brain.clock.figures(),
        "train_loss": last["train"]["loss"],
        "dev_loss": last["dev"]["loss"],
        "dev_cer": last["dev"]["cer"],
        "updates": brain.position.update,
        "parameters": parameter_count(prepared.model.acoustic),
    }


def main() -> None:
    job, path = sys.argv[1], Path(sys.argv[2])
    plan = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(plan["threads"])
    if job == "prepare":
        path.write_text(json.dumps(make_plan(plan)), encoding="utf-8")
        print("{}")
    else:
        print(json.dumps(train(plan)))


if __name__ == "__main__":
    main()
