from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mango.checkpoints import (
    TensorSpec,
    recover_folder,
    replace_folder,
    replace_folders,
    saving,
    verify,
    write_file,
    write_tensors,
)
from mango.checkpoints import durable as durable_module
from mango.checkpoints import exchange as exchange_module
from mango.errors import CheckpointError, IntegrityError


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(path: Path, text: str) -> None:
    with replace_folder(path) as new:
        write_file(new / "a.txt", text)
        write_file(new / "deep" / "b.txt", text)


def assert_version(path: Path, text: str) -> None:
    verify(path)
    assert (path / "a.txt").read_text() == text
    assert (path / "deep" / "b.txt").read_text() == text


def test_write_file_replaces_content_with_mode_0644(tmp_path: Path) -> None:
    file = tmp_path / "new" / "x.txt"
    write_file(file, "one")
    write_file(file, b"two")
    assert file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert entries(file.parent) == ["x.txt"]


def test_write_file_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_file(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_write_file_names_the_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file/below\.txt: cannot write"):
        write_file(tmp_path / "file" / "below.txt", "x")


def test_a_folder_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    fill(tmp_path / "out", "one")
    assert_version(tmp_path / "out", "one")
    fill(tmp_path / "out", "two")
    assert_version(tmp_path / "out", "two")
    assert entries(tmp_path) == ["out"]
    assert stat.S_IMODE((tmp_path / "out" / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_body_leaves_the_old_version(tmp_path: Path, error: type[BaseException]) -> None:
    fill(tmp_path / "out", "one")

    def write_and_stop() -> None:
        with replace_folder(tmp_path / "out") as new:
            (new / "a.txt").write_text("two")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write_and_stop()
    assert_version(tmp_path / "out", "one")
    assert entries(tmp_path) == ["out"]


def test_an_error_that_is_not_about_the_folder_keeps_its_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), replace_folder(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()


def test_a_file_in_the_way_and_links_inside_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with (
        pytest.raises(CheckpointError, match="is a file; a folder was to be written there"),
        replace_folder(tmp_path / "out"),
    ):
        pass
    with pytest.raises(CheckpointError, match="is a link or a special file"), replace_folder(tmp_path / "other") as new:
        (new / "link").symlink_to("/etc/hostname")
    assert entries(tmp_path) == ["out"]


def test_a_reader_that_has_the_old_version_open_keeps_it(tmp_path: Path) -> None:
    fill(tmp_path / "out", "one")
    with (tmp_path / "out" / "a.txt").open() as file:
        fill(tmp_path / "out", "two")
        assert file.read() == "one"


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_kept(tmp_path: Path) -> None:
    dead = tmp_path / ".out.mango-new-00000000"
    dead.mkdir()
    with replace_folder(tmp_path / "out") as live:
        assert not dead.exists()
        fill(tmp_path / "out", "one")
        assert live.is_dir()
        write_file(live / "a.txt", "two")
        write_file(live / "deep" / "b.txt", "two")
    assert_version(tmp_path / "out", "two")


def test_leftovers_of_a_killed_file_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".x.json.mango-new-00000000").write_text("half")
    (tmp_path / ".y.json.mango-new-00000000").write_text("somebody else's")
    write_file(tmp_path / "x.json", "whole")
    assert entries(tmp_path) == [".y.json.mango-new-00000000", "x.json"]


def test_many_processes_may_write_one_file_and_take_turns_at_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom mango.checkpoints import replace_folder, write_file\n"
        "from mango.errors import CheckpointError\n"
        "root, me = Path(sys.argv[1]), sys.argv[2]\n"
        "def write(i):\n"
        "    with replace_folder(root / 'out') as new:\n"
        "        write_file(new / 'a.txt', f'{me} {i}')\n"
        "        write_file(new / 'deep' / 'b.txt', f'{me} {i}')\n"
        "    return True\n"
        "(root / me).touch()\n"
        "while not all((root / name).exists() for name in 'pq'): pass\n"
        "refused = 0\n"
        "for i in range(15):\n"
        "    write_file(root / 'file.txt', f'{me} {i}\\n' * 500)\n"
        "    done = False\n"
        "    while not done:\n"
        "        try:\n"
        "            done = write(i)\n"
        "        except CheckpointError as error:\n"
        "            assert 'is writing it; this run changed nothing' in str(error), error\n"
        "            refused += 1\n"
        "print(refused)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in "pq"
    ]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(map(int, said)) > 0  # they did meet
    assert_version(tmp_path / "out", (tmp_path / "out" / "a.txt").read_text())
    lines = (tmp_path / "file.txt").read_text().splitlines()
    assert len(lines) == 500
    assert len(set(lines)) == 1
    assert entries(tmp_path) == ["file.txt", "out", "p", "q"]


def test_folders_that_belong_together_are_replaced_together(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with replace_folders(tmp_path / "a", tmp_path / "b") as folders:
            for new in folders:
                write_file(new / "a.txt", text)
                write_file(new / "deep" / "b.txt", text)
    for name in "ab":
        assert_version(tmp_path / name, "two")
    assert entries(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("in_one_step", [True, False])
@pytest.mark.parametrize("older", [True, False])
def test_when_the_second_folder_cannot_take_its_place_the_first_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr(exchange_module, "exchange", lambda first, second: False)
    if older:
        fill(tmp_path / "a", "old")
    put = durable_module.put_in_place

    def fail_at_b(new: Path, path: Path) -> Path | None:
        if path.name == "b":
            raise OSError(5, "Input/output error", str(path))
        return put(new, path)

    def replace_both() -> None:
        with replace_folders(tmp_path / "a", tmp_path / "b") as folders:
            for new in folders:
                write_file(new / "a.txt", "new")

    monkeypatch.setattr(durable_module, "put_in_place", fail_at_b)
    with pytest.raises(CheckpointError, match=r"b: cannot write .*Input/output error"):
        replace_both()
    if older:
        assert_version(tmp_path / "a", "old")
    assert entries(tmp_path) == (["a"] if older else [])


def test_a_file_with_another_name_keeps_its_mode_and_the_others_get_0644(tmp_path: Path) -> None:
    (tmp_path / "cached").write_text("x")
    (tmp_path / "cached").chmod(0o444)
    with replace_folder(tmp_path / "out") as new:
        (new / "linked").hardlink_to(tmp_path / "cached")
        (new / "own").write_text("y")
        (new / "own").chmod(0o600)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("cached", "out/own", "out/MANIFEST.json")]
    assert modes == [0o444, 0o644, 0o644]
    verify(tmp_path / "out")


def test_a_file_that_changes_after_it_was_hashed_is_hashed_again(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "out") as new:
        write_tensors(new, [TensorSpec("a", "F32", (4,))], lambda _: torch.ones(4))
        weights = new / "model.safetensors"
        time.sleep(0.01)  # the clock of a file system ticks every few milliseconds
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    verify(tmp_path / "out")


def test_without_exchange_two_renames_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "exchange", lambda first, second: False)
    fill(tmp_path / "out", "one")
    fill(tmp_path / "out", "two")
    assert_version(tmp_path / "out", "two")
    assert entries(tmp_path) == ["out"]


def test_a_crash_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    fill(tmp_path / "out", "one")
    (tmp_path / "out").rename(exchange_module.aside(tmp_path / "out"))
    recover_folder(tmp_path / "out")
    assert_version(tmp_path / "out", "one")
    (tmp_path / "out").rename(exchange_module.aside(tmp_path / "out"))
    with pytest.raises(RuntimeError, match="stop"), replace_folder(tmp_path / "out"):
        raise RuntimeError("stop")
    assert_version(tmp_path / "out", "one")


def test_this_system_swaps_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange_module.exchange(tmp_path / "a", tmp_path / "b"):
        assert entries(tmp_path / "a") == ["a"]  # not supported here: then nothing changed
    else:
        assert entries(tmp_path / "a") == ["b"]
        assert entries(tmp_path / "b") == ["a"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "a.txt").write_text("eno"), r"a\.txt: SHA-256 is"),
        (lambda p: (p / "a.txt").write_text("longer"), r"a\.txt: 6 bytes; MANIFEST\.json says 3"),
        (lambda p: (p / "deep" / "b.txt").unlink(), r"deep/b\.txt: is in MANIFEST\.json but missing"),
        (lambda p: (p / "c.txt").write_text("x"), r"c\.txt: is not in MANIFEST\.json"),
        (lambda p: (p / "MANIFEST.json").unlink(), "no complete output"),
        (lambda p: (p / "MANIFEST.json").write_text("{}"), r"MANIFEST\.json: malformed"),
        (lambda p: (p / "MANIFEST.json").write_text('{"format_version": 9}'), "format version 9"),
    ],
)
def test_verify_names_what_is_wrong(tmp_path: Path, damage: object, message: str) -> None:
    fill(tmp_path / "out", "one")
    damage(tmp_path / "out")  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=message):
        verify(tmp_path / "out")


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from mango.checkpoints import exchange, recover_folder, replace_folder, verify, write_file

path, way, moments = Path(sys.argv[1]), sys.argv[2], random.Random(0)
if way == "two":
    exchange.exchange = lambda first, second: False

def write(text):
    with replace_folder(path) as new:
        write_file(new / "a.txt", text)
        write_file(new / "deep" / "b.txt", text)

def write_for_ever(number):
    version = 0
    while True:
        version += 1
        write(f"{number}-{version}")

write("first")
seen = set()
for number in range(40):
    child = os.fork()
    if not child:
        write_for_ever(number)
    time.sleep(moments.uniform(0.0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    recover_folder(path)
    verify(path)
    text = (path / "a.txt").read_text()
    assert text == (path / "deep" / "b.txt").read_text()
    seen.add(text)
write("last")
print(len(seen))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one", "two"])
def test_kill_9_at_any_moment_leaves_a_whole_version(tmp_path: Path, way: str) -> None:
    path = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), way], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3  # versions that a killed process had put into place
    assert_version(path, "last")
    assert entries(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
        "basic_ios::clear: iostream error",
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "I/O error: No space left on device (os error 28)",
    ],
)
def test_what_torch_and_safetensors_say_of_a_full_disk_is_one_line(tmp_path: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match="no room to write"), saving(tmp_path):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="something else"), saving(tmp_path):
        raise RuntimeError("something else")
