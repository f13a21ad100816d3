"""The model card that travels with a bundle: what it is, what it was trained on, how good it is, where it stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asrkit.model import CTCModel, parameter_count
from asrkit.subset import header
from asrkit.survey_audio import sample
from asrkit.utterances import Utterance

LOOKED_AT = 200  # clips; the same ones on any machine


def source_rates(utterances: Sequence[Utterance]) -> dict[str, int]:
    """Samples per second that the headers of some clips give -> number of these clips, the most frequent first."""
    found = Counter(header(utterance.audio)[1] for utterance in sample(utterances, LOOKED_AT))
    return {str(rate): count for rate, count in found.most_common() if rate}


def model_card(recipe: dict[str, Any], facts: dict[str, Any], model: CTCModel) -> str:
    """Markdown from the recipe and the facts of the run."""
    metrics = facts["metrics"]
    rows = [
        f"| {stage} | {metrics[stage]['cer']:.2%} | {metrics[stage]['wer']:.2%} | {metrics[stage]['loss']:.3f} |"
        for stage in ("train", "dev")
        if stage in metrics
    ]
    hashes = [f"- {name}: `{value}`" for name, value in facts["splits"].items()]
    excluded = ", ".join(f"{count} {reason}" for reason, count in facts["excluded"].items()) or "none"
    return "\n".join(
        [
            f"# {recipe['name']} with {recipe['encoder']}",
            "",
            f"A CTC speech recognizer trained with asrkit: {parameter_count(model.acoustic):,} parameters, "
            f"{recipe['data']['sample_rate']} Hz, one output frame every {1000 * model.frame_seconds:.0f} ms.",
            "",
            "```python",
            "import asrkit",
            'print(asrkit.load("model").transcribe("clip.mp3").text)',
            "```",
            "",
            f"## Scores (epoch {metrics.get('epoch', '-')}, seed {recipe['seed']}, greedy, no language model)",
            "",
            "| split | CER | WER | loss per label |",
            "|---|---|---|---|",
            *rows,
            "",
            "Train figures are taken in training mode, with dropout. The dev split chose the epoch, so its figures "
            "are a little "
            "too good; `asrkit evaluate` scores the test split.",
            "",
            "## Data",
            "",
            f"Text rules `{recipe['text']['rules']}`, tokenizer `{recipe['text']['tokenizer']}`. Excluded: {excluded}. "
            f"Between the splits: {facts['leakage']}.",
            "",
            _recorded_at(facts["source_rates"], recipe["data"]["sample_rate"]),
            "",
            "Splits, as sha256 of their sorted (id, sentence, speaker); scores compare only where these are equal:",
            "",
            *hashes,
            "",
            "## Limits",
            "",
            "It writes only the characters of its alphabet, in the normalized spelling of its training texts. "
            "Speech unlike "
            "the training data (other accents, rooms, microphones, languages) will be transcribed worse than the "
            "table says. "
            "The licence of the training data applies to what you do with this model.",
            "",
        ]
    )


def _recorded_at(rates: dict[str, int], model_rate: int) -> str:
    """A sentence on the sample rates of the training clips, and on what the model cannot have heard in them."""
    total = sum(rates.values())
    if not total:
        return "The sample rates of its training clips are unknown."
    text = ", ".join(f"{count} at {rate} Hz" for rate, count in rates.items())
    low = sum(count for rate, count in rates.items() if int(rate) < model_rate)
    without = f"; {low} of them have nothing above half of their rate, where the model has bands" if low else ""
    return f"Recorded (of {total} training clips that were looked at): {text}{without}."
