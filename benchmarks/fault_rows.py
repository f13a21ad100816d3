"""The fault matrix: what goes wrong, and what asrkit promises then. `benchmarks/reliability.py` fills in the rest."""

from __future__ import annotations

LETTERS = {
    "S": "System and checkpoints",
    "C": "CTC",
    "N": "Normalization",
    "D": "Data and audio",
    "X": "Security",
    "I": "Transcribing many files",
}

# Row -> (fault, promise).
ROWS = {
    "S01": (
        "kill -9 during a save",
        "resumes from the newest complete checkpoint, at or after the last acknowledged step",
    ),
    "S02": (
        "the N-th call fails or the process dies there, every N",
        "the old state or the new one, never neither",
    ),
    "S03": ("disk full", "noticed before writing; the old checkpoint stays; exit 5 with what is needed and free"),
    "S04": (
        "a flipped bit, a zeroed block in a checkpoint",
        "sha256 names the file; an older one is used with a warning; `--exact` refuses (exit 5)",
    ),
    "S05": ("torn or missing files of one checkpoint", "it hides no other"),
    "S06": ("the clock jumps back", "checkpoints are ordered by step, never by time"),
    "S07": ("very many saves", "a save costs the same; the last and the best are kept"),
    "S08": ("two runs in one folder", "the second one exits 6 and names the first; a dead owner frees the folder"),
    "S09": (
        "killed after every step, for every encoder",
        "weights, optimizer, buffers and metrics bit for bit those of the run that nobody killed",
    ),
    "S10": (
        "recipe changed before a resume",
        "exit 2 with the keys that differ; neutral keys may change, logged",
    ),
    "S11": (
        "SIGTERM, Ctrl-C, SIGUSR1",
        "the step is finished and saved, exit 75; a second signal ends it now; SIGUSR1 saves and goes on",
    ),
    "S12": (
        "a data worker is killed, crashes, hangs, raises",
        "the clip is named, tried again, then left out and counted; the others keep their order; too many: exit 3",
    ),
    "S13": ("kill -9 of the trainer", "its workers are gone within 10 s, nothing is left outside the run folder"),
    "S14": (
        "out of memory",
        "the longest batch comes first; exit 4 names the clips, the bytes and a size that fits (tried)",
    ),
    "S15": ("output folder unusable", "exit 5 before any work"),
    "S16": ("data changed under a cache or a run", "the cache is made anew; a run that goes on is refused (exit 2)"),
    "S17": ("plugin edited between save and resume", "a warning names the module; `--exact` refuses (exit 5)"),
    "S18": ("torn last line of the metrics", "skipped by readers, cut off and written again by a resume"),
    "C01": (
        "fewer frames than labels and repeats need",
        "excluded before training, with the numbers; `zero_infinity` is never set",
    ),
    "C02": ("relative lengths", "integer lengths; `num_frames` is the real shape for every length"),
    "C03": ("empty transcript", "excluded as `empty_text`"),
    "C04": ("label outside the alphabet", "exit 4 naming clip and label, before the loss sees it"),
    "C05": ("blank inside a target", "exit 4, as for C04"),
    "C06": ("raw logits given to the loss", "named from the first batch (`log_softmax_missing`)"),
    "C07": (
        "NaN in features, loss or gradient",
        "the batch leaves no trace in any state; three in a row: exit 4; no such checkpoint is ever written",
    ),
    "C08": ("nothing but blanks", "above, on or below the input-blind floor, every epoch; no guess from blank shares"),
    "C09": ("a few samples of audio", "excluded as `too_short`; transcribed to an empty text with a status"),
    "N01": ("padding in statistics", "real frames only: any amount of padding changes nothing, training or not"),
    "N02": ("batch of one, of few", "frame_batch_norm with one: exit 2; batch norms with fewer than 4: said"),
    "N03": ("longer than all that was trained on", "one pooled tail, finite; the share of such frames is reported"),
    "N04": ("training and evaluation differ", "how far, by norm, in every epoch's record"),
    "N05": ("running statistics wrecked", "never saved: exit 4 names the tensor, the last checkpoint stays"),
    "N06": ("accumulation under a batch norm", "exit 2 unless `norm.batch: micro` says that it is meant"),
    "N07": ("several processes", "two with half the batch equal one with the whole: outputs, gradients, statistics"),
    "N08": ("company in a batch at test time", "same log-probabilities (1e-4) and symbols alone, with any neighbours"),
    "N09": ("a plugin breaks a rule", "`check_encoder` names the rule; one broken encoder for every check"),
    "D01": ("missing clip", "one line in the report, counts right"),
    "D02": ("zero bytes", "`empty_file`, the others go on"),
    "D03": ("truncated or damaged audio", "`truncated`, by header, decoder or the release's own durations"),
    "D04": ("wrong extension, HTML", "content decides; `not_audio`"),
    "D05": ("NaN, infinite or huge samples", "`nonfinite`, `bad_scale`"),
    "D06": ("channels that cancel", "one of them is taken, noted"),
    "D07": ("8 and 48 kHz", "resampled; `low_rate` noted; rates on the model card"),
    "D08": ("silence", "finite features; excluded from training; transcribed to nothing"),
    "D09": ("clipped", "a note"),
    "D10": ("a header that lies", "decoded in blocks: memory follows the real samples"),
    "D11": ("hours of audio in one clip", "only `max_seconds` of it are ever decoded"),
    "D12": ("unbalanced quote", "every row is kept"),
    "D13": ("not UTF-8, NUL, missing column", "exit 3 with file and line; BOM and CRLF are accepted"),
    "D14": ("duplicated rows", "identical: dropped, counted; conflicting: exit 3"),
    "D15": ("characters outside the alphabet", "error, drop or map, with counts; never deleted in silence"),
    "D16": ("leakage", "shared speakers or audio: exit 3; shared sentences: a number beside every score"),
    "D17": ("a path that leaves the folder", "exit 7 before anything is read"),
    "X01": ("a recipe that runs code", "exit 7 with tag and line, unless `--trust-recipe`"),
    "X02": ("a trusted prefix", "no prefixes: exact names only"),
    "X03": ("YAML bombs", "refused by size and number of nodes"),
    "X04": ("pickle in a model", "no path unpickles"),
    "X05": ("scanners", "none is relied on: the format holds no code"),
    "X06": ("tensor-file bombs", "header, names, shapes, sizes and finiteness are checked first"),
    "X07": ("archives that leave their folder", "exit 7"),
    "X08": ("a malicious model folder", "nothing in it is run or imported"),
    "X09": ("plugins", "only from entry points or `--plugin`, listed in the run's record"),
    "X10": ("shell commands in a table", "there is no shell"),
    "X11": ("hostile audio", "only known formats reach the decoders"),
    "X12": ("hostile tokenizer model", "pinned by hash, of the right size"),
    "I01": ("thousands of files", "memory does not grow"),
    "I02": ("threads", "the same texts for any number of them"),
    "I03": ("a bad file among good ones", "every input has its status, in order"),
    "I04": ("kill -9 in a list", "resumed without doubles and torn lines"),
    "I05": ("closed pipe, odd names", "a quiet end; names survive"),
    "I06": ("two writers to one output", "the second is refused (exit 6)"),
}

# Where the row of the first plan was changed, and why.
CHANGED = {
    "S07": "measured in calls of the operating system, which no neighbour on the machine disturbs, not in seconds",
    "S10": "no `--fork`: another `--output` does it",
    "S12": "clips are read by the trainer itself unless `training.workers` is set; a hang costs twice the timeout, as "
    "a clip gets a second chance; a batch without one of its clips is still divided by the labels it was to have",
    "S14": "Linux' own OOM killer cannot be answered: only allocations that fail can; hence the longest batch first",
    "C06": "named, not refused: a run of somebody who means it goes on",
    "C09": "an array without any sample is `no_samples` (exit 3), not a transcript",
    "N05": "variance is not checked for its sign: a weighted mean of squares cannot be negative",
    "N06": "comparing runs with different norm batches prints no warning: both are in the resolved recipes, which a "
    "study's proof compares",
    "D11": "as training meets it; transcribing a long file is with the tests of transcribing",
}
