"""Makes examples of the corpus's test documents, for the tasks beside this file."""

from __future__ import annotations

from typing import Any

CONTEXT = 400
ANSWER = 60


def beginnings(documents: Any) -> Any:
    """Return the first thousand characters of each document, those of all domains in turn."""
    return _in_turn(documents).map(lambda document: {"text": document["text"][:1000]})


def continuations(documents: Any) -> Any:
    """Return, for each document, how it goes on after its beginning, among three others of its domain."""
    documents = _in_turn(documents).filter(lambda document: len(document["text"]) > CONTEXT + ANSWER)
    following: dict[str, list[str]] = {}
    for document in documents:
        following.setdefault(document["domain"], []).append(document["text"][CONTEXT : CONTEXT + ANSWER])
    seen: dict[str, int] = {}

    def choices(document: dict[str, Any]) -> dict[str, Any]:
        pieces = following[document["domain"]]
        place = seen.setdefault(document["domain"], 0)
        seen[document["domain"]] += 1
        others = [pieces[(place + step) % len(pieces)] for step in (1, 2, 3)]
        label = place % 4  # the right one stands at each place equally often
        return {
            "context": document["text"][:CONTEXT],
            "choices": [*others[:label], pieces[place], *others[label:]],
            "label": label,
        }

    return documents.map(choices)


def next_words(documents: Any) -> Any:
    """Return, for each document, its beginning up to a space and the word that follows."""

    def word(document: dict[str, Any]) -> dict[str, Any]:
        text = document["text"]
        end = text.find(" ", CONTEXT)
        rest = text[end + 1 :].split() if end > 0 else []
        return {"context": text[: max(end, 0)], "word": rest[0] if rest else ""}

    return _in_turn(documents).map(word).filter(lambda document: document["word"] != "")


def _in_turn(documents: Any) -> Any:
    """Return documents so that the first few, which a limit leaves, are of all domains."""
    counted: dict[str, int] = {}
    places = []
    for index, domain in enumerate(documents["domain"]):
        places.append((counted.setdefault(domain, 0), domain, index))
        counted[domain] += 1
    return documents.select([index for *_, index in sorted(places)])
