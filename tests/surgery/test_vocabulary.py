"""Transplanted vocabularies: known tokens keep their rows, unknown ones are better than a guess."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mango.blocks import extract
from mango.checkpoints import ModelSource, verify
from mango.checkpoints.vocabulary import read_vocabulary, style_of, token_form
from mango.cli import app
from mango.corpus import read_split, tokenize
from mango.corpus.params import CorpusParams
from mango.errors import CheckpointError, IncompatibleBlocksError, MergeError
from mango.fusion import AdapterParams, FusionParams, MolPreTrainedModel, RouterParams, build_fused
from mango.surgery.vocabulary import TransplantParams, transplant
from mango.surgery.vocabulary.rows import Combination, Rows
from mango.surgery.vocabulary.spelling import Speller
from mango.tensors.pursuit import matching_pursuit
from tests.surgery.conftest import TINY, MakeModel, load, logits_of, random_model

EMBEDDING = "model.embed_tokens.weight"
CORPUS = Path(__file__).parents[2] / "data" / "corpus"


def texts(split: str, domain: str) -> list[str]:
    table = read_split(CorpusParams(path=CORPUS), split)
    return [text for text, name in zip(table["text"], table["domain"], strict=True) if name == domain]


def save(tokenizer: Tokenizer, folder: Path, **special: str) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def trained(folder: Path, domain: str) -> Path:
    """A byte-level BPE tokenizer of 2,048 tokens trained on one domain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts("train", domain), trainer)
    return save(tokenizer, folder, eos_token="<eos>", pad_token="<pad>")


@torch.no_grad()
def bits_per_byte(folder: Path, text: str) -> float:
    model = load(folder)
    ids, num_bytes = next(tokenize(AutoTokenizer.from_pretrained(folder), [text]))
    end = model.config.eos_token_id
    nats = 0.0
    for start in range(0, len(ids), 255):
        part = torch.tensor([[end, *ids[start : start + 255].tolist()]])
        logits = model(input_ids=part).logits[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum"))
    return nats / math.log(2) / int(num_bytes.sum())


@pytest.mark.parametrize("domain", ["code", "novels"])
def test_spelt_tokens_are_better_than_the_mean_and_than_chance(domain: str, tmp_path: Path) -> None:
    """Bits per byte on held-out text, with a tokenizer trained on text of its own and no donor weights.

    Measured: code 2.15 against 2.33 (mean) and 2.34 (random), novels 2.12 against 2.30 and 2.37.
    """
    donor = trained(tmp_path / "donor", domain)
    text = "\n".join(texts("test", domain))[:6000]
    found = {}
    for kind in ("auto", "mean", "random"):
        params = TransplantParams(approximation=kind)
        report = transplant(str(TINY / domain), str(donor), tmp_path / kind, params)
        found[kind] = bits_per_byte(tmp_path / kind, text)
    assert report.num_exact > 600
    assert found["auto"] < min(found["mean"], found["random"]) - 0.1


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maths model with the first half of its vocabulary alone."""
    folder = tmp_path_factory.mktemp("half") / "maths"
    shutil.copytree(TINY / "maths", folder, ignore=shutil.ignore_patterns("README.md", "MANIFEST.json"))
    document = json.loads((folder / "tokenizer.json").read_text())
    kept = {token: number for token, number in document["model"]["vocab"].items() if number < 1024}
    document["model"]["vocab"] = kept
    parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in document["model"]["merges"]]
    document["model"]["merges"] = [merge for merge in parts if "".join(merge) in kept]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    weights = load_file(folder / "model.safetensors")
    weights[EMBEDDING] = weights[EMBEDDING][:1024].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 1024}))
    return folder


def test_pursuit_through_a_stranger_is_better_still(half: Path, tmp_path: Path) -> None:
    """The donor is a GPT-2 of another width. Measured: 1.37 with omp, 1.65 subword, 1.90 mean, 1.87 random."""
    text = "\n".join(texts("test", "maths"))[:6000]
    found = {}
    for kind in ("auto", "subword", "mean", "random"):
        params = TransplantParams(approximation=kind)
        report = transplant(str(half), str(TINY / "maths-gpt2"), tmp_path / kind, params)
        assert report.approximation == ("omp" if kind == "auto" else kind)
        assert (report.num_exact, report.num_rows) == (1024, 2048)
        found[kind] = bits_per_byte(tmp_path / kind, text)
    assert found["auto"] < found["subword"] - 0.1 < found["mean"] - 0.2
    assert found["subword"] < found["random"] - 0.1


def test_its_own_vocabulary_changes_nothing(tmp_path: Path) -> None:
    report = transplant(str(TINY / "code"), str(TINY / "novels"), tmp_path / "out")
    verify(tmp_path / "out")
    assert (report.num_exact, report.num_approximated, report.num_filled) == (2048, 0, 0)
    before, after = (load_file(folder / "model.safetensors") for folder in (TINY / "code", tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_move_with_their_tokens(tied: bool, make_model: MakeModel, tmp_path: Path) -> None:
    """A donor with the same tokens in another order, other special tokens, and rows beyond its tokenizer."""
    model = random_model("llama", 0, tie_word_embeddings=tied)
    folder = make_model("model", model)
    document = json.loads((TINY / "base" / "tokenizer.json").read_text())
    old = document["model"]["vocab"]
    reverse = {token: 2048 - number for token, number in old.items() if number}
    document["model"]["vocab"] = {"</s>": 2048, "<fill>": 0} | reverse
    document["added_tokens"] = [
        {**document["added_tokens"][0], "id": 2048, "content": "</s>"},
        {**document["added_tokens"][0], "id": 0, "content": "<fill>"},
    ]
    donor = save(Tokenizer.from_str(json.dumps(document)), tmp_path / "donor", eos_token="</s>", pad_token="</s>")
    params = TransplantParams(pad_to_multiple_of=64)
    report = transplant(str(folder), str(donor), tmp_path / "out", params)
    assert (report.num_tokens, report.num_rows, report.num_exact, report.num_special) == (2049, 2112, 2048, 1)
    result = load(tmp_path / "out")
    assert result.config.vocab_size == 2112
    assert result.config.eos_token_id == result.config.pad_token_id == 2048
    assert (result.lm_head.weight is result.model.embed_tokens.weight) == tied
    words = "the sum of two numbers"
    ids, new_ids = (AutoTokenizer.from_pretrained(place)(words)["input_ids"] for place in (folder, tmp_path / "out"))
    assert new_ids == [2048 - number for number in ids]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0]
        found = result(input_ids=torch.tensor([new_ids])).logits[0]
    torch.testing.assert_close(found[:, torch.arange(2048, 0, -1)], wanted, rtol=0, atol=1e-6)
    spare = found[:, 2049:]
    torch.testing.assert_close(spare, wanted.mean(1, keepdim=True).expand_as(spare), rtol=0, atol=1e-3)


def test_a_bias_of_the_head_moves_too(tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = PhiForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.train(False)
    model.save_pretrained(tmp_path / "phi")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "phi" / file).write_bytes((TINY / "base" / file).read_bytes())
    report = transplant(
        str(tmp_path / "phi"), str(TINY / "code"), tmp_path / "out", TransplantParams(pad_to_multiple_of=100)
    )
    assert report.num_rows == 2100
    torch.testing.assert_close(logits_of(load(tmp_path / "out"))[..., :2048], logits_of(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "style", "form"),
    [
        ("\u0120the", "byte_level", b" the"),
        ("\u010a", "byte_level", b"\n"),
        ("\u00c3\u00a9", "byte_level", "é".encode()),
        ("\u2581the", "metaspace", b" the"),
        ("<0x0A>", "metaspace", b"\n"),
        ("##ing", "wordpiece", b"ing"),
        ("the", "wordpiece", b" the"),
        ("the", "plain", b"the"),
    ],
)
def test_a_token_is_its_bytes_in_every_style(text: str, style: str, form: bytes) -> None:
    assert token_form(text, style) == form


def test_styles_are_told_from_the_tokenizers_own_parts(tmp_path: Path) -> None:
    def document(tokenizer: Tokenizer) -> dict[str, Any]:
        return dict(json.loads(tokenizer.to_str()))

    vocabulary = {"<unk>": 0, "a": 1}
    piece = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0)], unk_id=0))
    piece.pre_tokenizer = pre_tokenizers.Metaspace()
    word = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    assert [style_of(document(t)) for t in (piece, word, plain)] == ["metaspace", "wordpiece", "plain"]
    read = read_vocabulary(save(piece, tmp_path / "piece", unk_token="<unk>"))
    assert read.forms == {1: b" a"}
    assert (read.special, read.roles, read.size) == ({0: "<unk>"}, {"unk_token": 0}, 2)
    read = read_vocabulary(TINY / "base")
    assert len(read.forms) == 2047
    assert read.special == {0: "<|endoftext|>"}


def test_a_sentencepiece_donor_meets_a_byte_level_model(make_model: MakeModel, tmp_path: Path) -> None:
    pieces = {"<unk>": 0, "<0x0A>": 1, "\u2581the": 2, "ing": 3, "\u2581the\u2581ing": 4, "<0xF5>": 5, "\u2603": 6}
    tokenizer = Tokenizer(models.BPE(pieces, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    donor = save(tokenizer, tmp_path / "donor", unk_token="<unk>")
    model = random_model("llama", 0)
    report = transplant(str(make_model("model", model)), str(donor), tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(TINY / "base")
    the, ing, line = (ours(text)["input_ids"] for text in (" the", "ing", "\n"))
    assert all(len(ids) == 1 for ids in (the, ing, line))
    table, old = load(tmp_path / "out").model.embed_tokens.weight, model.model.embed_tokens.weight
    assert torch.equal(table[[1, 2, 3]], old[[line[0], the[0], ing[0]]])
    assert report.num_exact == 4  # the byte that is no text is one of them
    assert (report.num_approximated, report.num_filled) == (3, 0)
    spelt = ours(" the ing")["input_ids"]
    mean = old[[line[0], the[0], ing[0], ours.get_vocab()["\u00f5"]]].mean(0)  # a byte as the byte-level model has it
    wanted = mean + (old[spelt].mean(0) - mean) / len(spelt) ** 0.5
    torch.testing.assert_close(table[4], wanted, rtol=0, atol=1e-6)


def test_what_cannot_be_transplanted_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = str(make_model("model", random_model("llama", 0)))
    donor = save(Tokenizer(models.WordLevel({"qqqqqqqq": 0})), tmp_path / "strange")
    with pytest.raises(MergeError, match="shares no token with"):
        transplant(model, str(donor), tmp_path / "out")
    with pytest.raises(MergeError, match="holds a tokenizer and no weights, which omp needs"):
        transplant(
            model, str(trained(tmp_path / "alone", "maths")), tmp_path / "out", TransplantParams(approximation="omp")
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="tokenizer"):
        transplant(model, str(tmp_path / "empty"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["transplant", str(TINY / "code"), str(TINY / "maths-gpt2"), str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        app.main([*arguments, "--json", "--pad-to-multiple-of", "1000"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 3000
    with pytest.raises(SystemExit) as stop:
        app.main([*arguments, "--approximation", "subwrd", "--k", "0"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@given(st.text(alphabet="ab", max_size=12), st.sets(st.text(alphabet="ab", min_size=1, max_size=3), max_size=8))
def test_spelling_is_whole_and_takes_the_fewest_tokens(text: str, words: set[str]) -> None:
    tokens = {word.encode(): number for number, word in enumerate(sorted(words))}
    spelt = Speller(tokens).spell(text.encode())
    forms = {number: form for form, number in tokens.items()}

    def fewest(rest: str) -> float:
        known: Callable[[int], bool] = lambda size: rest[:size] in words  # noqa: E731
        return (
            0
            if not rest
            else min([1 + fewest(rest[n:]) for n in (1, 2, 3) if n <= len(rest) and known(n)], default=math.inf)
        )

    if text and fewest(text) < math.inf:
        assert b"".join(forms[number] for number in spelt) == text.encode()
        assert len(spelt) == fewest(text)
    else:
        assert spelt == []


def test_pursuit_finds_sparse_combinations_exactly_and_does_not_need_all_it_may_take() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(200, 64, generator=generator)
    atoms[7] = 0.0
    wanted = torch.zeros(30, 200)
    for row in range(30):
        places = torch.randperm(200, generator=generator)[:3]
        wanted[row, places[places != 7]] = 1.0 + torch.rand(int((places != 7).sum()), generator=generator)
    chosen, weights = matching_pursuit(wanted @ atoms, atoms, 8)
    found = torch.zeros(30, 200).scatter_add_(1, chosen, weights)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    errors = []
    targets = torch.randn(10, 64, generator=generator)
    for k in (1, 4, 16, 64):
        chosen, weights = matching_pursuit(targets, atoms, k)
        errors.append(float((targets - (weights.unsqueeze(1) @ atoms[chosen]).squeeze(1)).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_rows_are_combinations_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mango.surgery.vocabulary.rows.CHUNK_ROWS", 2)
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    rows = Rows.of([Combination([2], [1.0]), None, Combination([0, 1], [0.5, 2.0], 0.1), None, Combination([1], [1.0])])
    made = torch.cat(list(rows.apply(table, torch.tensor([10.0, 20.0])))).view(5, 2)
    assert made.tolist() == [[2, 2], [10, 20], [1.5, 4], [10, 20], [0, 1]]
    noise = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    made = torch.cat(list(rows.apply(table, torch.zeros(2), noise=noise))).view(5, 2)
    assert made.tolist() == [[2, 2], [1, 1], [0.5, 2], [2, 2], [0, 1]]


@torch.no_grad()
def test_a_model_with_another_tokenizer_becomes_a_guest(half: Path, tmp_path: Path) -> None:
    """Refused as it is; with the trunk's vocabulary it is an expert, and better than the trunk on its own domain.

    Measured on formal maths: 4.31 nats a token through the trunk, 3.27 through the guest.
    """
    fusion = FusionParams.model_validate({"trunk": "base", "experts": ["maths"], "span": 4})

    def fused(maths: Path, name: str) -> MolPreTrainedModel:
        folders = {"base": TINY / "base", "maths": maths}
        models_ = {key: ModelSource(source=str(folder)) for key, folder in folders.items()}
        store = extract(models_, tmp_path / name, "reference")
        return build_fused(store, fusion, RouterParams.model_validate({"type": "topk"}), AdapterParams(), seed=0)

    with pytest.raises(IncompatibleBlocksError, match="the tokenizer of 'maths' is not that of the trunk 'base'"):
        fused(half, "before")
    transplant(str(half), str(TINY / "base"), tmp_path / "maths")
    model = fused(tmp_path / "maths", "after")
    losses = []
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    ids = tokenizer("\n".join(texts("test", "maths"))[:3000], return_tensors="pt").input_ids[:, :256]
    for place in (0, 1):
        for router in model.iter_routers():
            router.outer.weight.zero_()
            router.outer.bias.copy_(torch.nn.functional.one_hot(torch.tensor(place), 2) * 100.0)
        losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert losses[1] < losses[0] - 0.5
    prompt = ids[:, :16]
    cached, plain = (model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False))  # type: ignore[operator]
    assert cached.equal(plain)
