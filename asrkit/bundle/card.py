"""The model card that travels with a bundle: what it is, what it was trained on, how good it is, where it stops.

Written from the bundle's config.json alone, so that whoever has the model can check every figure against it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.corpus.subset import header
from asrkit.corpus.utterances import Utterance
from asrkit.disk import atomic_write
from asrkit.survey.audio import sample

if TYPE_CHECKING:  # it brings Arrow along, 26 MB that a model which only transcribes has no use for
    from asrkit.preparation.splits import Split

LOOKED_AT = 200  # clips; the same ones on any machine
SCORES = "<!-- scores: written by asrkit -->", "<!-- end of scores -->"
FIGURES = ("split_hash", "utterances", "speakers", "cer", "cer_interval", "wer", "wer_interval", "interval_by")
LANGUAGES = {"spanish": "es"}  # of text rules


def source_rates(utterances: Sequence[Utterance]) -> dict[str, int]:
    """Samples per second that the headers of some clips give -> number of these clips, the most frequent first."""
    found = Counter(header(utterance.audio)[1] for utterance in sample(utterances, LOOKED_AT))
    return {str(rate): count for rate, count in found.most_common() if rate}


def split_facts(splits: Mapping[str, Split], frame_seconds: float) -> dict[str, dict[str, Any]]:
    """Utterances, hours and speakers of every split, as JSON data; frame_seconds: of the features."""
    return {
        name: {
            "utterances": len(split),
            "hours": round(sum(split.frames) * frame_seconds / 3600, 4),
            "speakers": len({utterance.speaker for utterance in split.utterances}),
        }
        for name, split in splits.items()
    }


def add_scores(folder: Path, split: str, figures: Mapping[str, Any]) -> None:
    """Put the scores of a split into a bundle's config and between the two marks of its card; raises StorageError.

    figures: as of `Evaluation.figures`. What anybody has written into the card elsewhere stays.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["scores"] = {**config.get("scores", {}), split: {key: figures[key] for key in FIGURES}}
    card = (folder / "README.md").read_text(encoding="utf-8")
    before, begin, rest = card.partition(SCORES[0])
    _, end, after = rest.partition(SCORES[1])
    if begin and end:
        atomic_write(folder / "README.md", f"{before}{_scores(config)}{after}")
    atomic_write(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def model_card(config: Mapping[str, Any]) -> str:
    """Markdown, with the header that model hubs read, from a bundle's config."""
    recipe, encoder = config["recipe"], config["encoder"]
    language = LANGUAGES.get(recipe["text"].get("rules", ""))
    meta = ["library_name: asrkit", "pipeline_tag: automatic-speech-recognition"]
    meta += [f"language: {language}"] if language else []
    parts = [
        "\n".join(["---", *meta, "---"]),
        f"# {config['name']} with {encoder['name']}",
        f"A CTC speech recognizer trained with asrkit {config['asrkit']}: {config['parameters']:,} parameters, "
        f"{recipe['data']['sample_rate']} Hz, one output frame every {1000 * config['frame_seconds']:.0f} ms. "
        f"{_origin(config)}",
        '```python\nimport asrkit\n\nprint(asrkit.load("model").transcribe("clip.mp3").text)\n```',
        "Loading it runs no code from this folder.",
        f"## Scores\n\n{_scores(config)}",
        f"## Normalization\n\n{_normalization(config)}",
        f"## Data\n\n{_data(config)}",
        f"## Files\n\n{_files(config)}",
        f"## Licence\n\n{_licence(config)}",
        f"## Limits\n\n{_limits(config)}",
    ]
    return "\n\n".join(parts) + "\n"


def _origin(config: Mapping[str, Any]) -> str:
    average, metrics = config.get("average"), config.get("metrics", {})
    if average is None:
        return f"Seed {config['seed']}, the weights of epoch {metrics.get('epoch', '-')}, which was best on dev."
    how = "of all train frames under these weights" if average["recomputed"] else "averaged by the frames behind them"
    steps = ", ".join(map(str, average["steps"]))
    return f"Seed {config['seed']}, the average of the weights after updates {steps}; statistics of norms {how}."


def _scores(config: Mapping[str, Any]) -> str:
    """The table between its marks."""
    lines = ["| split | CER | WER | utterances, speakers | hash of the split |", "|---|---|---|---|---|"]
    for split, one in config.get("scores", {}).items():
        rates = (f"{one[kind]:.2%} {_interval(one[f'{kind}_interval'])}".strip() for kind in ("cer", "wer"))
        lines.append(
            f"| {split} | {' | '.join(rates)} | {one['utterances']}, {one['speakers']} | `{one['split_hash'][:12]}` |"
        )
    by = next((one["interval_by"] for one in config.get("scores", {}).values()), None)
    said = (
        f"Errors of the whole split, greedy, no language model; in brackets 95 % by bootstrap over {by}s."
        if by
        else ("Not scored yet.")
    )
    said += " The dev split chose the weights, so its figures are a little too good."
    if "test" not in config.get("scores", {}):
        said += " `asrkit evaluate RUN` adds the test split."
    return "\n".join([SCORES[0], "", *lines, "", said, "", SCORES[1]])


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"[{ends[0]:.2%}, {ends[1]:.2%}]"


def _normalization(config: Mapping[str, Any]) -> str:
    recipe, encoder = config["recipe"], config["encoder"]
    norm = ", ".join(f"{key} {value}" for key, value in recipe["norm"].items())
    cmvn = ", ".join(f"{key} {value}" for key, value in recipe["cmvn"].items())
    text = recipe["text"]
    mapped = f", then {json.dumps(text['map'], ensure_ascii=False)}" if text.get("map") else ""
    lines = [
        f"- Layers: `{encoder['name']}` of {encoder['package']} {encoder['version']} ({norm}).",
        f"- Features: `{recipe['features']['name']}`, CMVN {cmvn}.",
        f"- Text: rules `{text['rules']}`{mapped}; {config['tokenizer']['name']}, {config['labels']} labels.",
    ]
    if recipe.get("defects"):
        lines.append(f"- Trained with faults on purpose: {', '.join(recipe['defects'])}.")
    return "\n".join(lines)


def _data(config: Mapping[str, Any]) -> str:
    sizes, hashes = config.get("data", {}), config.get("splits", {})
    lines = [
        "| split | utterances | hours | speakers | sha256 of its sorted (id, sentence, speaker) |",
        "|---|---|---|---|---|",
    ]
    for name, value in hashes.items():
        cells = (str(sizes.get(name, {}).get(key, "-")) for key in ("utterances", "hours", "speakers"))
        lines.append(f"| {name} | {' | '.join(cells)} | `{value}` |")
    excluded = ", ".join(f"{count} {reason}" for reason, count in config.get("excluded", {}).items()) or "none"
    said = f"Excluded: {excluded}. Between the splits: {config.get('leakage', 'not looked at')}. "
    said += _recorded_at(config.get("source_rates", {}), config["recipe"]["data"]["sample_rate"])
    return "\n".join([*lines, "", said, "", "Scores compare only where the hashes of the splits are equal."])


def _files(config: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{name}`: sha256 `{digest}`" for name, digest in config["files"].items())


def _licence(config: Mapping[str, Any]) -> str:
    given = config.get("licence")
    recordings = f"Of the recordings: {given}." if given else "That of the recordings was not stated (`data.licence`)."
    return (
        f"{recordings} It applies to what you do with this model. Nobody has set conditions for the weights here; "
        "whoever passes them on should write theirs into this section."
    )


def _limits(config: Mapping[str, Any]) -> str:
    norm, steps = config["encoder"]["name"], config["recipe"]["norm"].get("max_steps")
    lines = [
        f"- It writes only its {config['labels'] - 1} labels, in the normalized spelling of its training texts: no "
        "punctuation, digits or capitals unless they are among them.",
        "- Speech unlike the training data (other accents, rooms, microphones, languages) will be transcribed worse "
        "than the table says. Noise and music may become words.",
        "- Confidences are posteriors of the model, not calibrated probabilities. Ends of words are less exact than "
        "starts.",
    ]
    if config.get("longest_seconds"):
        lines.append(f"- It was trained on clips of up to {config['longest_seconds']:g} s; cut longer recordings.")
    if norm == "frame_batch_norm":
        lines.append(f"- Steps beyond the {steps}th of a norm share their statistics, as do steps seen too rarely.")
    return "\n".join(lines)


def _recorded_at(rates: Mapping[str, int], model_rate: int) -> str:
    """A sentence on the sample rates of the training clips, and on what the model cannot have heard in them."""
    total = sum(rates.values())
    if not total:
        return "The sample rates of its training clips are unknown."
    text = ", ".join(f"{count} at {rate} Hz" for rate, count in rates.items())
    low = sum(count for rate, count in rates.items() if int(rate) < model_rate)
    without = f"; {low} of them have nothing above half of their rate, where the model has bands" if low else ""
    return f"Recorded (of {total} training clips that were looked at): {text}{without}."
