"""Reading a text in a guest's tokens, and telling what the guest says in the trunk's, against slow references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from torch import Tensor

from mango.checkpoints.tokenizer_bytes import tokenizer_from_bytes
from mango.errors import CheckpointError
from mango.fusion.bridge.forms import Forms
from mango.fusion.bridge.links import Links, partners
from mango.fusion.bridge.module import _Opened
from mango.fusion.bridge.reader import Reader
from mango.fusion.bridge.telling import Back, Place, tell
from mango.fusion.bridge.tree import Tree
from tests.fusion.bridges import TEXTS, guest_tokenizer, trunk_tokenizer

GUEST = Forms([None, b"a", b"ab", b"abc", b"b", b"c", b"cd", b"d", b"a"])
TRUNK = Forms([b"a", b"ab", b"bcd", b"b", b"c", b"d", b"dd", None])


def slow_partners(read: bytes) -> set[tuple[int, int]]:
    """Return what :func:`partners` says in words, pair by pair."""
    mine = {u: f[len(read) :] for u, f in enumerate(GUEST.by_id) if f and f.startswith(read) and len(f) > len(read)}
    theirs = {v: f for v, f in enumerate(TRUNK.by_id) if f}
    found: set[tuple[int, int]] = set()
    for u, rest in mine.items():
        begun = [len(f) for f in theirs.values() if rest.startswith(f)]
        found |= {(u, v) for v, f in theirs.items() if rest.startswith(f) and len(f) == max(begun)}
    for v, form in theirs.items():
        sizes = [len(rest) for rest in mine.values() if form.startswith(rest)]
        found |= {(u, v) for u, rest in mine.items() if form.startswith(rest) and len(rest) == max(sizes)}
    return found


@pytest.mark.parametrize("read", [b"", b"a", b"ab", b"abc", b"c", b"x"])
def test_partners_are_the_longest_that_either_begins_with(read: bytes) -> None:
    assert set(partners(GUEST, TRUNK, read)) == slow_partners(read)


def test_links_keep_all_probability_and_share_it_as_the_trunk_would() -> None:
    links = Links.of([(0, 1), (1, 0), (1, 2), (1, 2), (2, 2)])
    said = torch.tensor([[0.5], [0.3], [0.2]])
    trunk = torch.tensor([[0.1], [0.6], [0.2]])
    told = links.carry(said, trunk)
    torch.testing.assert_close(told, torch.tensor([[0.1], [0.5], [0.4]]))
    assert links.guests.tolist() == [0, 1, 2]


def whole_links(read: bytes) -> Links:
    return Links.of(slow_partners(read))


def slow_tell(said: Tensor, place: Place, trunk: Tensor) -> Tensor:
    """Return the trunk's probabilities by summing over each way to have come to the end of the text, in float64."""
    probabilities = said.double().exp()

    def shared(at: Tensor, read: bytes) -> tuple[Tensor, float]:
        out = torch.zeros_like(trunk, dtype=torch.float64)
        pairs = slow_partners(read)
        for u in {u for u, _ in pairs}:
            options = [v for w, v in pairs if w == u]
            total = float(trunk[options].double().sum())
            for v in options:
                out[v] += at[u] * float(trunk[v]) / total
        return out, float(out.sum())

    reached, told, total = 1.0, torch.zeros_like(trunk, dtype=torch.float64), 0.0
    for step in reversed(place.back):
        some, mass = shared(probabilities[step.node], step.read)
        told, total = told + reached * some, total + reached * mass
        reached *= float(probabilities[step.node, step.token])
    some, mass = shared(probabilities[place.node], b"")
    return (told + reached * some) / (total + reached * mass)


def test_what_a_guest_says_is_told_with_each_way_to_the_end_of_the_text() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, generator=generator)
    logits[:, 0] = -torch.inf  # the token without a form says nothing
    said, trunk = logits.log_softmax(-1), torch.randn(2, 8, generator=generator).softmax(-1)
    places = [Place(2, (Back(1, 4, b"b"), Back(0, 1, b"ab"))), Place(1, (Back(0, 1, b"a"),))]
    told = tell(said, places, trunk, whole_links)
    for row, place in enumerate(places):
        torch.testing.assert_close(told[row].double(), slow_tell(said, place, trunk[row]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(told.sum(1), torch.ones(2))


def test_a_word_that_is_cut_goes_on_with_the_rest_of_the_guests_word() -> None:
    """After "a" the guest that would have said "abc" is not taken for one whose word has ended."""
    said = torch.full((2, 9), 1e-6)
    said[0, 3], said[0, 1], said[1, 5] = 0.9, 0.1, 1.0
    said = said.log().log_softmax(-1)
    even = torch.full((1, 8), 1 / 8)
    told = tell(said, [Place(1, (Back(0, 1, b"a"),))], even, whole_links)[0]
    after = {form: float(told[number]) for number, form in enumerate(TRUNK.by_id) if form}
    assert after[b"b"] + after[b"bcd"] == pytest.approx(0.9, abs=1e-3)  # "abc" goes on with "bc"
    assert after[b"c"] == pytest.approx(0.1, abs=1e-3)


def forms_of(tokenizer: object) -> Forms:
    from mango.checkpoints.vocabulary import token_form

    inner = tokenizer.get_vocab()  # type: ignore[attr-defined]
    by_id: list[bytes | None] = [None] * len(inner)
    for text, number in inner.items():
        by_id[number] = None if text.startswith("<") and len(text) > 1 else token_form(text, "byte_level")
    return Forms(by_id)


@pytest.fixture
def reader() -> Reader:
    guest = guest_tokenizer()
    return Reader(guest.backend_tokenizer, forms_of(trunk_tokenizer()), forms_of(guest), {0: 1}, 0)


@pytest.mark.parametrize("text", TEXTS)
def test_up_to_each_token_it_reads_what_its_tokenizer_makes_of_the_text_so_far(reader: Reader, text: str) -> None:
    ids, trunk, guest = trunk_tokenizer()(text).input_ids, forms_of(trunk_tokenizer()), guest_tokenizer()
    found = reader.read(ids)
    assert len(found) == len(ids)
    for number, spelt in enumerate(found):
        so_far = b"".join(trunk.by_id[token] or b"" for token in ids[: number + 1])
        try:
            assert spelt == [0, *guest(so_far.decode()).input_ids]
        except UnicodeDecodeError:
            whole = guest(so_far[:-1].decode()).input_ids
            assert spelt[:-1] == [0, *whole]
            assert forms_of(guest).by_id[spelt[-1]] == so_far[-1:]
    assert reader.read(ids, 3) == found[3:]


def test_a_long_text_is_tokenized_in_pieces_and_read_as_in_one(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = trunk_tokenizer()("abcde  abé 12345 ab\ncd 345 bc" * 3).input_ids
    whole = reader.read(ids)
    sizes: list[int] = []
    spell = reader._spell

    def spy(texts: list[bytes]) -> list[list[int]]:
        sizes.extend(map(len, texts))
        return spell(texts)

    monkeypatch.setattr("mango.fusion.bridge.reader.PIECE", 8)
    monkeypatch.setattr(reader, "_spell", spy)
    assert reader.read(ids) == whole
    assert max(sizes) < 24
    for number in range(len(ids)):
        assert reader.read(ids[: number + 1], number) == [whole[number]]


def test_one_that_adds_a_space_is_given_whole_texts(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = guest_tokenizer().backend_tokenizer
    guest.normalizer = normalizers.Prepend(" ")
    spaced = Reader(guest, forms_of(trunk_tokenizer()), forms_of(guest_tokenizer()), {}, 0)
    monkeypatch.setattr("mango.fusion.bridge.reader.PIECE", 4)
    ids = trunk_tokenizer()("abcd ab cd ab").input_ids
    assert spaced.read(ids)[-1] == [0, *guest.encode("abcd ab cd ab").ids]


def test_it_reads_nothing_of_later_tokens(reader: Reader) -> None:
    one, other = (trunk_tokenizer()(text).input_ids for text in ("abcd", "abce"))
    assert one[:-1] == other[: len(one) - 1] or one != other
    same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert reader.read(one)[:same] == reader.read(other)[:same]


def test_special_tokens_are_read_as_its_own_or_not_at_all(reader: Reader) -> None:
    trunk = trunk_tokenizer()
    ids = [*trunk("ab").input_ids, 0, *trunk("c").input_ids]
    ab, c = (guest_tokenizer()(text).input_ids for text in ("ab", "c"))
    assert reader.read(ids)[-2:] == [[0, *ab, 1], [0, *ab, 1, *c]]
    blind = Reader(guest_tokenizer().backend_tokenizer, forms_of(trunk), forms_of(guest_tokenizer()), {}, 0)
    abc = guest_tokenizer()("abc").input_ids
    assert blind.read(ids)[-2:] == [[0, *ab], [0, *abc]]
    assert blind.read(ids, len(ids) - 2) == [[0, *ab], [0, *abc]]


def test_a_character_may_end_in_the_next_token(reader: Reader) -> None:
    forms = forms_of(trunk_tokenizer())
    first, second = (forms.token_of(bytes([byte])) for byte in "é".encode())
    assert first is not None
    assert second is not None
    broken, whole = reader.read([first, second])
    assert [forms_of(guest_tokenizer()).by_id[token] for token in broken[1:]] == ["é".encode()[:1]]
    assert whole == [0, *guest_tokenizer()("é").input_ids]


def test_a_tree_holds_each_beginning_once_and_each_node_sees_its_own_text() -> None:
    texts = [[0, 5], [0, 5, 6], [0, 7], [0, 5, 6, 8]]
    tree = Tree.of(texts)
    assert [[tree.tokens[node] for node in path] for path in tree.paths] == texts
    assert len(tree) == 5
    assert tree.paths[-1] == [0, 1, 2, 3]
    sees = tree.sees()
    for path in tree.paths:
        assert sees[path[-1]].nonzero().squeeze(1).tolist() == sorted(path)
    later = Tree.of([[0, 5, 6, 9]], before=[0, 5, 6, 8])
    assert (later.known, later.num_new) == (3, 1)
    assert later.sees().tolist() == [[True] * 4]


def test_forms_are_found_by_what_they_begin_with() -> None:
    forms = Forms([b"\xff\xff", b"a", None, b"a\xff", b"ab", b"b", b"a"])
    assert [forms.sorted[i] for i in range(*forms.starting(b"a"))] == [b"a", b"ab", b"a\xff"]
    assert [forms.sorted[i] for i in range(*forms.starting(b"\xff"))] == [b"\xff\xff"]
    assert forms.longest(b"abz") == forms.sorted.index(b"ab")
    assert forms.longest(b"z") is None
    assert forms.tokens(forms.sorted.index(b"a")) == [1, 6]
    again = Forms.unpack(*forms.pack())
    assert again.by_id == forms.by_id


@pytest.mark.parametrize("data", [b"", b"{}", b'{"model": {"type": "Nothing"}}', b"\xff"])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        tokenizer_from_bytes(data)


def test_links_that_come_again_are_kept_up_to_a_limit(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = _Opened(TRUNK, GUEST, reader, [])
    device = torch.device("cpu")
    first = opened.links(b"a", device)
    assert opened.links(b"a", device) is first
    monkeypatch.setattr("mango.fusion.bridge.module.KEPT_PAIRS", first.num_pairs)
    opened.links(b"c", device)
    assert opened.links(b"a", device) is not first
    assert opened._num_pairs == sum(links.num_pairs for links in opened._kept.values()) <= first.num_pairs
    assert opened.links(b"", device) is opened.links(b"", device)


def test_many_places_are_told_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    said = torch.from_numpy(rng.normal(size=(70, 9))).float().log_softmax(-1)
    trunk = torch.from_numpy(rng.dirichlet(np.ones(8), 70)).float()
    places = [Place(node) for node in range(70)]
    links: Callable[[bytes], Links] = whole_links
    together = tell(said, places, trunk, links)
    alone = torch.cat([tell(said, [place], trunk[i : i + 1], links) for i, place in enumerate(places)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-8)
