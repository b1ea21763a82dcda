from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mango.checkpoints import sha256_file
from mango.errors import ConfigError, IntegrityError, UnsafeFileError
from mango.security import Place, Policy, Rule, Tier, current_policy, enforced, tier_of, user_policy
from mango.security.keys import generate_keys
from mango.security.signing import sign_folder

COMMIT = "0123456789" * 4


def tier(place: Place, *rules: Rule) -> Tier:
    return tier_of(place, Policy(rules=rules), sha256_file)


def test_the_first_rule_that_fits_decides_and_else_the_default() -> None:
    rules = (Rule(tier=Tier.TRUSTED, source="hub:ours/*"), Rule(tier=Tier.UNKNOWN, source="hub:*"))
    assert tier(Place(hub="ours/a"), *rules) is Tier.TRUSTED
    assert tier(Place(hub="theirs/a"), *rules) is Tier.UNKNOWN
    assert tier(Place(path=Path("/ours/a")), *rules) is Tier.COMMUNITY


def test_a_rule_for_the_hub_fits_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours" / "a").mkdir(parents=True)
    assert tier(Place(path=Path("ours/a")), Rule(tier=Tier.TRUSTED, source="hub:ours/*")) is Tier.COMMUNITY
    assert tier(Place(path=Path("ours/a")), Rule(tier=Tier.TRUSTED, source="./ours/*")) is Tier.TRUSTED
    assert tier(Place(hub="ours/a"), Rule(tier=Tier.TRUSTED, source="./ours/*")) is Tier.COMMUNITY


def test_a_link_does_not_carry_a_folder_into_a_trusted_one(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a").symlink_to(tmp_path / "theirs")
    rule = Rule(tier=Tier.TRUSTED, source=f"{tmp_path}/ours/*")
    assert tier(Place(path=tmp_path / "ours" / "a"), rule) is Tier.COMMUNITY
    assert tier(Place(path=tmp_path / "ours" / ".." / "theirs"), rule) is Tier.COMMUNITY


def test_hashes_and_commits_are_conditions(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    rule = Rule(tier=Tier.TRUSTED, sha256=(sha256_file(one),))
    assert tier(Place(path=tmp_path, weights=(one,)), rule) is Tier.TRUSTED
    assert tier(Place(path=tmp_path, weights=(one, other)), rule) is Tier.COMMUNITY
    assert tier(Place(path=tmp_path), rule) is Tier.COMMUNITY
    pinned = Rule(tier=Tier.TRUSTED, source="hub:a/*", commit=COMMIT)
    assert tier(Place(hub="a/b", commit=COMMIT), pinned) is Tier.TRUSTED
    assert tier(Place(hub="a/b"), pinned) is Tier.COMMUNITY


def test_a_signature_gives_a_tier_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    private = tmp_path / "key"
    public = generate_keys(private)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    rule = Rule(tier=Tier.TRUSTED, publisher_key=public)
    assert tier(Place(path=folder), rule) is Tier.COMMUNITY
    sign_folder(folder, private)
    assert tier(Place(path=folder), rule) is Tier.TRUSTED
    (folder / "config.json").write_text('{"a": 1}')
    with pytest.raises(IntegrityError, match="config"):
        tier(Place(path=folder), rule)
    with pytest.raises(ConfigError, match="does not exist"):
        tier(Place(path=folder), Rule(tier=Tier.TRUSTED, publisher_key=tmp_path / "none"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "needs a condition"),
        ({"source": "ours/*"}, "write hub:ours"),
        ({"sha256": "ABC"}, "no SHA-256"),
        ({"commit": "main"}, "no full commit"),
        ({"source": "hub:a/b", "publisher_key": "k"}, "only a part is fetched"),
    ],
)
def test_rules_that_mislead_are_refused(fields: dict[str, str], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        Rule.model_validate({"tier": "trusted", **fields})


def test_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MANGO_POLICY", raising=False)
    assert user_policy() == Policy()
    file = tmp_path / ".config" / "mango" / "security.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("default: unknown\nrules:\n  - {tier: trusted, source: ~/models/*}\n")
    file.chmod(0o600)
    assert user_policy().default is Tier.UNKNOWN
    file.chmod(0o666)
    with pytest.raises(UnsafeFileError, match="others may write it"):
        user_policy()
    monkeypatch.setenv("MANGO_POLICY", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="there is no file"):
        current_policy()
    with enforced(Policy(default=Tier.TRUSTED)):
        assert current_policy().default is Tier.TRUSTED
