"""Signatures of folders: every kind of tampering is found and named, and wrong keys are refused in one line."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from mango.errors import CheckpointError, ConfigError, IntegrityError
from mango.security.keys import check_private_key, fingerprint, generate_keys
from mango.security.signing import SIGNATURE_NAME, is_signed, sign_folder, verify_folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    pairs = {}
    for name in ("mine", "other"):
        pairs[name] = folder / f"{name}.pem"
        pairs[f"{name}.pub"] = generate_keys(pairs[name])
    return pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "package"
    (made / "tokenizer").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "MANIFEST.json", "tokenizer/vocab.txt", ".gitattributes"):
        (made / name).write_text(f"content of {name}")
    return made


@pytest.fixture
def signed(folder: Path, keys: dict[str, Path]) -> Path:
    sign_folder(folder, keys["mine"])
    return folder


def test_a_signed_folder_verifies_also_elsewhere_and_under_another_name(signed: Path, keys: dict[str, Path]) -> None:
    verify_folder(signed, keys["mine.pub"])
    moved = signed.rename(signed.parent / "renamed")
    verify_folder(moved, keys["mine.pub"])
    assert is_signed(moved)
    assert sorted(path.name for path in moved.parent.iterdir()) == ["renamed"]


def test_an_unsigned_folder_is_refused(folder: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(
        IntegrityError, match=r"package: is not signed: it has no model\.sig; sign it with `mango sign`"
    ):
        verify_folder(folder, keys["mine.pub"])
    assert not is_signed(folder)


def test_signing_again_replaces_the_signature(signed: Path, keys: dict[str, Path]) -> None:
    (signed / "config.json").write_text("another")
    sign_folder(signed, keys["other"])
    verify_folder(signed, keys["other.pub"])
    with pytest.raises(IntegrityError, match=rf"{SIGNATURE_NAME}: is no signature by the owner of .*mine\.pub\.pem"):
        verify_folder(signed, keys["mine.pub"])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "MANIFEST.json", "tokenizer/vocab.txt", ".gitattributes"]
)
def test_a_changed_file_is_named(signed: Path, keys: dict[str, Path], name: str) -> None:
    flip_a_bit(signed / name)
    with pytest.raises(IntegrityError, match=rf"package/{name}: was changed after it was signed"):
        verify_folder(signed, keys["mine.pub"])


@pytest.mark.parametrize("name", ["extra.py", ".gitignore", ".git/hooks", "tokenizer/model.sig", "model.sig.bak"])
def test_an_added_file_is_named(signed: Path, keys: dict[str, Path], name: str) -> None:
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_text("surprise")
    with pytest.raises(IntegrityError, match=rf"package/{name}: was not signed"):
        verify_folder(signed, keys["mine.pub"])


def test_a_removed_and_a_renamed_file_are_named(signed: Path, keys: dict[str, Path]) -> None:
    (signed / "config.json").rename(signed / "config.yaml")
    with pytest.raises(IntegrityError, match=r"package/config\.json: was signed but is missing"):
        verify_folder(signed, keys["mine.pub"])


def test_a_signature_of_another_folder_is_found(signed: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("other")
    sign_folder(other, keys["mine"])
    (other / SIGNATURE_NAME).rename(signed / SIGNATURE_NAME)
    with pytest.raises(IntegrityError, match=r"package/\.gitattributes: was not signed"):
        verify_folder(signed, keys["mine.pub"])


def test_a_signature_whose_statement_was_edited_is_found(signed: Path, keys: dict[str, Path]) -> None:
    bundle = json.loads((signed / SIGNATURE_NAME).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["predicate"]["resources"].pop()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (signed / SIGNATURE_NAME).write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match=r"is no signature by the owner of .*the key does not fit"):
        verify_folder(signed, keys["mine.pub"])


def test_a_signature_that_leaves_files_out_vouches_for_none_of_them(signed: Path, keys: dict[str, Path]) -> None:
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys["mine"])
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["config.json", SIGNATURE_NAME]))
    config.sign(signed, signed / SIGNATURE_NAME)
    with pytest.raises(IntegrityError, match=r"package/\.gitattributes: was not signed"):
        verify_folder(signed, keys["mine.pub"])


def test_the_library_s_own_program_verifies_what_is_signed_here(signed: Path, keys: dict[str, Path]) -> None:
    (signed / ".gitattributes").unlink()  # its default looks past git's files
    sign_folder(signed, keys["mine"])
    words = ["verify", "key", str(signed), "--signature", str(signed / SIGNATURE_NAME)]
    program = "from model_signing._cli import main; main()"
    done = subprocess.run(
        [os.sys.executable, "-c", program, *words, "--public_key", str(keys["mine.pub"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "Verification succeeded"), done.stderr


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000])
def test_nonsense_is_refused(signed: Path, keys: dict[str, Path], content: bytes) -> None:
    (signed / SIGNATURE_NAME).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.sig: is no signature by the owner of"):
        verify_folder(signed, keys["mine.pub"])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_bundle_with_any_part_replaced_is_refused(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Path], data: st.DataObject
) -> None:
    made = tmp_path_factory.mktemp("m")
    (made / "config.json").write_text("{}")
    path = sign_folder(made, keys["mine"])
    bundle = json.loads(path.read_text())
    spots = [(bundle, key) for key in bundle]
    for part in ("dsseEnvelope", "verificationMaterial"):
        spots += [(bundle[part], key) for key in bundle[part]]
    spots += [(bundle["verificationMaterial"]["publicKey"], "hint"), (bundle["dsseEnvelope"]["signatures"][0], "sig")]
    where, key = data.draw(st.sampled_from(spots))
    before = json.dumps(where[key])
    where[key] = data.draw(_JSON)
    path.write_text(json.dumps(bundle))
    harmless = key in {"mediaType", "tlogEntries", "hint", "publicKey", "verificationMaterial"}
    if json.dumps(where[key]) == before or harmless:  # nothing signed was touched: only the parsers are asked
        try:
            verify_folder(made, keys["mine.pub"])
        except IntegrityError:
            return
    else:
        with pytest.raises(IntegrityError, match=r"model\.sig: is no signature"):
            verify_folder(made, keys["mine.pub"])


def test_a_link_is_refused(signed: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    (signed / "config.json").rename(tmp_path / "config.json")
    (signed / "config.json").symlink_to(tmp_path / "config.json")
    for act in (lambda: verify_folder(signed, keys["mine.pub"]), lambda: sign_folder(signed, keys["mine"])):
        with pytest.raises(CheckpointError, match=r"config\.json: is a link"):
            act()


def test_nothing_is_no_folder_to_sign(tmp_path: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="none: no such folder"):
        sign_folder(tmp_path / "none", keys["mine"])
    with pytest.raises(CheckpointError, match="holds no file to sign"):
        sign_folder(tmp_path, keys["mine"])


def test_keys_are_private_and_never_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    public = generate_keys(tmp_path / "k.pem")
    assert public == tmp_path / "k.pub.pem"
    assert (tmp_path / "k.pem").stat().st_mode & 0o777 == 0o600
    assert len(fingerprint(public)) == 64
    with pytest.raises(ConfigError, match=r"k\.pem: is there already, and a key is never overwritten"):
        generate_keys(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o644)
    check_private_key(tmp_path / "k.pem", None)
    assert "others on this machine may read this private key" in caplog.text


def test_a_password_opens_the_key(folder: Path, tmp_path: Path) -> None:
    public = generate_keys(tmp_path / "k.pem", password="hunter2")
    sign_folder(folder, tmp_path / "k.pem", password="hunter2")
    verify_folder(folder, public)
    with pytest.raises(ConfigError, match="is encrypted: name the variable"):
        sign_folder(folder, tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="the password does not open this key") as caught:
        sign_folder(folder, tmp_path / "k.pem", password="hunter3")
    assert "hunter" not in str(caught.value)
    generate_keys(tmp_path / "open.pem")
    with pytest.raises(ConfigError, match="is not encrypted, yet a password was given"):
        sign_folder(folder, tmp_path / "open.pem", password="hunter2")
    with pytest.raises(ConfigError, match="password of the key is empty"):
        generate_keys(tmp_path / "e.pem", password="")


def test_keys_of_another_kind_are_refused(folder: Path, tmp_path: Path, keys: dict[str, Path]) -> None:
    for name, key in (
        ("Ed25519", ed25519.Ed25519PrivateKey.generate()),
        ("RSA", rsa.generate_private_key(65537, 2048)),
        ("curve secp256k1", ec.generate_private_key(ec.SECP256K1())),
    ):
        pem = serialization.Encoding.PEM
        bare = serialization.NoEncryption()
        (tmp_path / "k.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, bare))
        (tmp_path / "k.pub").write_bytes(
            key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        with pytest.raises(ConfigError, match=rf"k\.pem: found a key .*{name}; wanted an elliptic-curve key"):
            sign_folder(folder, tmp_path / "k.pem")
        with pytest.raises(ConfigError, match=rf"k\.pub: found a key .*{name}; wanted an elliptic-curve key"):
            verify_folder(folder, tmp_path / "k.pub")
    for path, act, said in (
        (keys["mine.pub"], sign_folder, "is a public key; give the private one"),
        (keys["mine"], verify_folder, "is a private key; give the public one"),
        (tmp_path / "none", sign_folder, "the key cannot be read"),
        (Path("/dev/zero"), sign_folder, "is too long for a key"),
        (Path(__file__), verify_folder, "cannot be read as a public key"),
    ):
        with pytest.raises(ConfigError, match=said):
            act(folder, path)


def test_a_folder_that_cannot_be_written_keeps_its_signature(
    signed: Path, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (signed / SIGNATURE_NAME).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        sign_folder(signed, keys["mine"])
    assert (signed / SIGNATURE_NAME).read_bytes() == before
    assert [path.name for path in signed.parent.iterdir()] == ["package"]
