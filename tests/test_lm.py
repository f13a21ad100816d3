"""Modified Kneser-Ney against figures worked by hand, a plain-Python oracle, and KenLM reading the file."""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from asrkit.cli import main
from asrkit.errors import DataError, RecipeError
from asrkit.lm import counts as counts_module
from asrkit.lm import estimate, read_unigrams, write_arpa
from asrkit.lm.counts import count_ngrams, read_text
from asrkit.lm.kenlm import load_kenlm

Sentences = list[list[str]]


def arpa(sentences: Sentences, order: int, path: Path) -> dict[tuple[str, ...], tuple[float, float]]:
    """The file of a model, read back: n-gram -> log10 p, log10 back-off."""
    write_arpa(estimate(read_text(sentences), order), path)
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.split("\t")
        if len(cells) > 1:
            found[tuple(cells[1].split())] = (float(cells[0]), float(cells[2]) if len(cells) > 2 else 0.0)
    return found


def drawn(count: int, seed: int, words: str | list[str] = "abcdefgh") -> Sentences:
    """Sentences whose words are far from equally likely."""
    chance = random.Random(seed)
    weights = [1 / (i + 1) ** 2 for i in range(len(words))]
    return [chance.choices(words, weights, k=chance.randint(1, 7)) for _ in range(count)]


class Oracle:
    """The formulas of asrkit.lm.kneser_ney, by recursion over dictionaries of the text's own n-grams."""

    def __init__(self, sentences: Sentences, order: int) -> None:
        self.order = order
        self.count: Counter[tuple[str, ...]] = Counter()
        before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for words in sentences:
            marked = ["<s>", *words, "</s>"]
            for n in range(1, order + 1):
                for i in range(len(marked) - n + 1):
                    gram = tuple(marked[i : i + n])
                    self.count[gram] += 1
                    if i:
                        before[gram].add(marked[i - 1])
        self.used = {
            gram: times if len(gram) == order or gram[0] == "<s>" else len(before[gram])
            for gram, times in self.count.items()
            if gram != ("<s>",)
        }
        self.vocabulary = {gram[0] for gram in self.used if len(gram) == 1} | {"<unk>"}
        self.discounts = {n: self._discounts(n) for n in range(1, order + 1)}
        self.after: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
        for gram in self.used:
            self.after[gram[:-1]].append(gram)

    def _discounts(self, n: int) -> list[float]:
        t = Counter(used for gram, used in self.used.items() if len(gram) == n)
        if not (t[1] and t[2] and t[3]):
            return [0, 0.5, 1, 1.5]
        y = t[1] / (t[1] + 2 * t[2])
        amounts = [1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3]]
        if all(0 <= amount <= i for i, amount in enumerate(amounts, 1)):
            return [0, *amounts]
        return [0, 0.5, 1, 1.5]

    def backoff(self, context: tuple[str, ...]) -> float:
        grams = self.after[context]
        if not grams:
            return 1.0
        discounts = self.discounts[len(context) + 1]
        return sum(discounts[min(self.used[g], 3)] for g in grams) / sum(self.used[g] for g in grams)

    def p(self, word: str, context: tuple[str, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        lower = self.p(word, context[1:]) if context else 1 / len(self.vocabulary)
        used = self.used.get((*context, word), 0)
        total = sum(self.used[gram] for gram in self.after[context])
        share = (used - self.discounts[len(context) + 1][min(used, 3)]) / total if used else 0.0
        return share + self.backoff(context) * lower


def test_figures_worked_by_hand(tmp_path: Path) -> None:
    """Two sentences, order 2; too small for equation 26, so D = 0.5, 1, 1.5.

    Seen before: a {<s>}: 1, b {a}: 1, c {a}: 1, </s> {b, c}: 2; sum 5. D's share: (0.5 * 3 + 1) / 5 = 0.5, spread over
    a, b, c, </s>, <unk>: 0.1 each. p(a) = 0.5 / 5 + 0.1 = 0.2, p(</s>) = 1 / 5 + 0.1 = 0.3, p(<unk>) = 0.1.
    After <s> twice a: b = 1 / 2, p = 1 / 2 + 0.5 * 0.2 = 0.6. After a, b and c once each: b = 1 / 2,
    p = 0.5 / 2 + 0.5 * 0.2 = 0.35. After b once </s>: b = 0.5, p = 0.5 + 0.5 * 0.3 = 0.65.
    """
    found = arpa([["a", "b"], ["a", "c"]], 2, tmp_path / "lm.arpa")
    p = {gram: 10 ** values[0] for gram, values in found.items()}
    expected = {
        ("<unk>",): 0.1, ("</s>",): 0.3, ("a",): 0.2, ("b",): 0.2, ("c",): 0.2, ("<s>",): 1.0,
        ("<s>", "a"): 0.6, ("a", "b"): 0.35, ("a", "c"): 0.35, ("b", "</s>"): 0.65, ("c", "</s>"): 0.65,
    }  # fmt: skip
    assert p == pytest.approx(expected, rel=1e-5)
    backoffs = {gram[0]: 10 ** values[1] for gram, values in found.items() if len(gram) == 1}
    assert backoffs == pytest.approx({"<unk>": 1, "<s>": 0.5, "</s>": 1, "a": 0.5, "b": 0.5, "c": 0.5}, rel=1e-5)


@pytest.mark.parametrize(("order", "seed"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)])
def test_every_entry_against_the_oracle(order: int, seed: int, tmp_path: Path) -> None:
    sentences = drawn(300, seed)
    oracle = Oracle(sentences, order)
    found = arpa(sentences, order, tmp_path / "lm.arpa")
    assert found.keys() == oracle.count.keys() | {("<unk>",)}
    assert order == 1 or oracle.discounts[order] != [0, 0.5, 1, 1.5]  # equation 26 is at work
    for gram, (log_p, log_backoff) in found.items():
        if gram != ("<s>",):
            assert 10**log_p == pytest.approx(oracle.p(gram[-1], gram[:-1]), rel=1e-5), gram
        if len(gram) < order:
            assert 10**log_backoff == pytest.approx(oracle.backoff(gram), rel=1e-5), gram


def test_kenlm_reads_the_same_probabilities_and_they_sum_to_one(tmp_path: Path) -> None:
    sentences = drawn(300, 7)
    oracle = Oracle(sentences, 3)
    path = tmp_path / "lm.arpa"
    write_arpa(estimate(read_text(sentences), 3), path)
    entries = [*"abcdefgh", "<unk>"]
    lm = load_kenlm(path, entries)
    for context in ([], ["a"], ["h", "g"], ["c", "a", "b"], ["<unk>", "d"], ["never"]):
        state = lm.start(False)
        for word in context:
            state, _ = lm.score(state, entries.index(word) if word in entries else entries.index("<unk>"))
        p = {word: 10 ** lm.score(state, i)[1] for i, word in enumerate(entries)}
        p["</s>"] = 10 ** lm.finish(state)[1]
        assert sum(p.values()) == pytest.approx(1, abs=2e-6)
        known = tuple(word if word in oracle.vocabulary else "<unk>" for word in context)
        assert p == pytest.approx({word: oracle.p(word, ("<s>", *known)) for word in p}, rel=1e-4)


def test_a_text_in_pieces_has_the_counts_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = read_text(drawn(200, 5))
    whole = count_ngrams(text, 4)
    monkeypatch.setattr(counts_module, "CHUNK", 97)
    for one, other in zip(count_ngrams(text, 4), whole, strict=True):
        for key in vars(one):
            assert getattr(one, key).tolist() == getattr(other, key).tolist(), key


def test_an_order_that_no_sentence_reaches_is_left_out(tmp_path: Path) -> None:
    found = arpa([["a"], ["b"], ["a"]], 6, tmp_path / "lm.arpa")
    assert max(map(len, found)) == 3
    assert sum(10**p for gram, (p, _) in found.items() if len(gram) == 1 and gram != ("<s>",)) == pytest.approx(1)


@pytest.mark.parametrize("order", [0, 21])
def test_orders_that_make_no_sense(order: int) -> None:
    with pytest.raises(RecipeError, match="possible: 1 to 20"):
        estimate(read_text([["a"]]), order)


def test_texts_that_cannot_be_counted() -> None:
    with pytest.raises(DataError, match="no words"):
        read_text([[], []])
    with pytest.raises(DataError, match="sentence 2 has the word '</s>'"):
        read_text([["a"], ["b", "</s>", "c"]])


HEAD = "\\data\\\nngram 1=3\n\n\\1-grams:\n"
WORDS = "-1\t<s>\t0\n-1\t</s>\n-1\ta\t0\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r":1: the end of the file instead of \\data\\"),
        (b"hello\n", r":1: 'hello' instead of \\data\\"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"\\data\\\nngram 2=3\n", ":2: 'ngram 2=3' instead of 'ngram 1=NUMBER'"),
        (b"\\data\\\nngram 1=-3\n", ":2: "),
        (b"\\data\\\nngram 1=3\n", "the end of the file"),
        ((HEAD + WORDS.replace("-1\ta\t0", "x\ta\t0")).encode(), ":7: "),
        ((HEAD + WORDS.replace("-1\ta\t0", "nan\ta\t0")).encode(), ":7: "),
        ((HEAD + WORDS.replace("-1\ta\t0", "0.5\ta\t0")).encode(), ":7: "),
        ((HEAD + WORDS.replace("-1\ta\t0", "-1\ta\tb\tc")).encode(), ":7: "),
        ((HEAD + WORDS.replace("a", "</s>")).encode(), "'</s>' a second time"),
        ((HEAD + "-1\ta\n\\end\\\n").encode(), "1 words where the header promises 3"),
        ((HEAD + WORDS.replace("</s>", "b")).encode(), "no <s> or no </s>"),
        ((HEAD + "a" * 70000).encode(), "over 65,535 characters"),
    ],
)
def test_junk_is_named_with_its_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_unigrams(path)


def test_a_file_cut_in_its_bigrams_is_named_by_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    write_arpa(estimate(read_text(drawn(50, 1)), 2), path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"lm\.arpa: .*End of file"):
        load_kenlm(path, ["a"])


def test_build_from_tables_text_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.tsv").write_text("path\tsentence\nx.mp3\t¡Hola, Ñandú!\n", encoding="utf-8")
    (tmp_path / "more.txt").write_bytes("\ufeffhola señor\r\n\r\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hola\n")))
    output = tmp_path / "new" / "lm.arpa"
    sources = [str(tmp_path / "train.tsv"), str(tmp_path / "more.txt"), "-"]
    assert main(["lm", "build", *sources, "--order", "2", "--output", str(output), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["sentences"] == 3
    assert figures["ngrams"] == [6, 6]  # <unk> <s> </s> hola ñandú señor
    assert set(read_unigrams(output).log_probs) == {"<unk>", "<s>", "</s>", "hola", "ñandú", "señor"}
    assert list(output.parent.iterdir()) == [output]  # nothing half-written stays


def test_characters_have_a_mark_for_the_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("Sí, no\n", encoding="utf-8")
    output = tmp_path / "c.arpa"
    words = ["lm", "build", str(tmp_path / "text.txt"), "--unit", "characters", "--output", str(output)]
    assert main(words) == 0
    assert "too little text" in capsys.readouterr().out
    assert {"▁", "í"} < set(read_unigrams(output).log_probs)
    assert "s í ▁" in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(("order", "said"), [(1, "orders 2 to 6"), (2, "next: "), (6, "next: "), (7, "orders 2 to 6")])
def test_build_recommends_what_the_search_can_read(
    order: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("uno dos tres cuatro cinco seis siete ocho\n", encoding="utf-8")
    command = ["lm", "build", str(tmp_path / "text.txt"), "--output", str(tmp_path / "lm.arpa"), "--order", str(order)]
    assert main(command) == 0
    assert said in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.txt"], 3, "nowhere.txt: no such file"),
        (["text.txt", "--unit", "labels"], 2, "give --model"),
        (["text.txt", "--order", "0"], 2, "possible: 1 to 20"),
        (["text.txt", "--rules", "spanihs"], 2, "did you mean 'spanish'?"),
        (["bad.txt"], 3, "not UTF-8"),
        (["table.tsv"], 3, "sentence"),
        (["text.txt", "--output", "text.txt/lm.arpa"], 5, "text.txt"),
    ],
)
def test_what_build_refuses(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("hola\n", encoding="utf-8")
    Path("bad.txt").write_bytes(b"hola\n\xf1\n")
    Path("table.tsv").write_text("path\ttext\nx\thola\n", encoding="utf-8")
    output = [] if "--output" in words else ["--output", "lm.arpa"]
    assert main(["lm", "build", *words, *output]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("lm.arpa").exists()


def test_unseen_sentences_of_a_chain(tmp_path: Path) -> None:
    """Bigrams of more text tell more about them, and KenLM gives them what the oracle gives."""
    chance = random.Random(3)
    following = {a: chance.sample("abcdefgh", 2) for a in "abcdefgh"}

    def chain(count: int) -> Sentences:
        made = []
        for _ in range(count):
            words = [chance.choice("abcdefgh")]
            while chance.random() < 0.85:
                words.append(following[words[-1]][chance.random() < 0.25])
            made.append(words)
        return made

    unseen = chain(200)

    def bits(sentences: Sentences, order: int) -> float:
        oracle = Oracle(sentences, order)
        path = tmp_path / "lm.arpa"
        write_arpa(estimate(read_text(sentences), order), path)
        entries = sorted({word for words in unseen for word in words})
        lm, total, count = load_kenlm(path, entries), 0.0, 0
        for words in unseen:
            state = lm.start(False)
            for word in words:
                state, score = lm.score(state, entries.index(word))
                total, count = total - score, count + 1
            total, count = total - lm.finish(state)[1], count + 1
        by_hand = sum(-math.log10(oracle.p(b, (a,))) for words in unseen for a, b in pairwise(["<s>", *words, "</s>"]))
        assert total == pytest.approx(by_hand, rel=1e-5)
        return total / count

    small, large = chain(30), chain(1000)
    assert bits(large, 2) < bits(small, 2) < math.log10(9)  # what knows nothing says of eight words and the end
