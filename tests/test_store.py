"""Whole or not there, locked or free, ours or another's: what a run folder promises."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from refgeo.errors import DataError, StoreError
from refgeo.study.digests import Digests
from refgeo.study.files import MARK, filling, remove_leftovers, storing, write_text
from refgeo.study.graph import Graph, Stage
from refgeo.study.locks import UNATTENDED, Lock, Owner, started_at, this_process
from refgeo.study.store import MANIFEST, STAGE, Store

STAGE_A = Stage("a/b", Path("a") / "b", "fake_stages:write", {"x": 1}, seed=5)


def dead_owner() -> Owner:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = started_at(process.pid)
    process.wait()
    return Owner(socket.gethostname(), process.pid, started or 0)


def write_lock(path: Path, owner: Owner) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": owner.host, "pid": owner.pid, "started": owner.started}))


def test_a_stage_is_whole_or_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.publish(STAGE_A, "f" * 64, {}) as folder:
        (folder / "table").write_text("numbers")
        assert not (tmp_path / "a" / "b").exists()
    record = store.record(STAGE_A)
    assert record is not None
    assert record.fingerprint == "f" * 64
    assert record.settings == {"x": 1}
    assert {"seed", "libraries", "seconds", "peak_memory_mb", "host"} <= set(record.detail)
    assert (tmp_path / "a" / "b" / "table").read_text() == "numbers"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_stage_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.publish(STAGE_A, "old", {}) as folder:
        (folder / "table").write_text("old numbers")

    def fail() -> None:
        with store.publish(STAGE_A, "new", {}) as folder:
            (folder / "table").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a" / "b" / "table").read_text() == "old numbers"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_stage_made_again_replaces_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("first", "second"):
        with store.publish(STAGE_A, name, {}) as folder:
            (folder / name).touch()
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["second", STAGE]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": 1}'])
def test_a_record_that_is_cut_off_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / STAGE).write_text(content)
    assert Store(tmp_path).record(STAGE_A) is None


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, alive = tmp_path / f".b.new{MARK}{dead_owner().tag}", tmp_path / f".b.new{MARK}{this_process().tag}"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "file").touch()
    remove_leftovers(tmp_path)
    assert not dead.exists()
    assert alive.exists()


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is full"), filling(tmp_path / "stage"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_full_device_is_recognized_by_a_real_write(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        return  # Only Linux has a device that is always full; the mapping itself is tested above.
    with pytest.raises(StoreError, match="is full"), filling(tmp_path / "stage"):
        Path("/dev/full").write_text("x")


def test_what_the_system_refuses_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"run' cannot be written: Permission denied\. Choose another place"), storing(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "run"))


def test_a_temporary_name_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"file/run' cannot be written: Not a directory"), filling(tmp_path / "file" / "run"):
        raise AssertionError("It cannot be filled")


def test_a_stage_that_misses_a_file_is_no_matter_of_storage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), filling(tmp_path / "stage"):
        (tmp_path / "absent").read_text()


def test_text_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_until_released(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "locks" / "a.json")
    assert lock.take(config="x")
    assert not lock.take()
    assert lock.owner() == this_process()
    assert (lock.read() or {})["config"] == "x"
    lock.release()
    assert lock.owner() is None
    assert lock.take()


def test_a_lock_of_a_dead_process_is_recovered(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.json")
    write_lock(lock.path, dead_owner())
    assert lock.take()
    assert lock.owner() == this_process()


def test_a_process_that_got_a_dead_owners_number_is_not_the_owner(tmp_path: Path) -> None:
    here = this_process()
    if not here.started:
        return  # The system does not tell start times.
    lock = Lock(tmp_path / "a.json")
    write_lock(lock.path, replace(here, started=here.started - 1))
    assert lock.owner() is None
    assert lock.take()


def test_a_lock_of_another_machine_counts_while_it_is_renewed(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.json")
    write_lock(lock.path, Owner("another-machine", 1, 1))
    assert not lock.take()
    old = lock.path.stat().st_mtime - 2 * UNATTENDED
    os.utime(lock.path, (old, old))
    assert lock.take()


def test_a_lock_under_way_is_respected_and_an_empty_old_one_is_not(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.json")
    lock.path.touch()
    assert not lock.take()
    os.utime(lock.path, (0, 0))
    assert lock.take()


def test_nobody_releases_anothers_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "a.json")
    write_lock(lock.path, Owner("another-machine", 1, 1))
    lock.release()
    assert lock.path.exists()


RACER = """
import sys
from pathlib import Path
from refgeo.study.locks import Lock
print("ready", flush=True)
sys.stdin.readline()
print(Lock(Path(sys.argv[1])).take(), flush=True)
sys.stdin.readline()
"""


def test_of_many_that_want_a_dead_ones_lock_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_lock(path, dead_owner())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(4)
    ]
    won = []
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        assert racer.stdout is not None
        won.append(racer.stdout.readline().strip())
    for racer in racers:
        racer.communicate("end\n")
    assert sorted(won) == ["False", "False", "False", "True"]


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=MANIFEST):
        Store(tmp_path).create("study")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_in_which_making_was_cut_short_is_as_good_as_empty(tmp_path: Path) -> None:
    (tmp_path / f".{MANIFEST}{MARK}{dead_owner().tag}").write_text("{")
    Store(tmp_path).create("study")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".state", "logs", MANIFEST]


def test_a_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "run").create("one")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(StoreError, match="belongs to study 'one', not to 'two'"):
        Store(tmp_path / "run").create("two")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    Store(tmp_path / "run").create("one")


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"study": "one", "format": 99}))
    with pytest.raises(StoreError, match="format 99"):
        Store(tmp_path).create("one")


def test_a_manifest_that_is_cut_off_is_said(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path).check("one")


@pytest.mark.parametrize("inside", ["file", "file/run"])
def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"is a file|Not a directory"):
        Store(tmp_path / inside).create("study")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_processes_with_other_settings_do_not_share_a_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("study")
    # The parent of this process lives, works here, and has other settings.
    other = Owner(socket.gethostname(), os.getppid(), started_at(os.getppid()) or 0)
    path = tmp_path / ".state" / "sessions" / "other.json"
    write_lock(path, other)
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": "theirs"}))
    with pytest.raises(StoreError, match=f"Process {os.getppid()} .* other settings"), store.session("ours"):
        pass
    with store.session("theirs"):
        pass
    write_lock(path, dead_owner())
    with store.session("ours"):
        assert not path.exists()


def test_tidying_removes_locks_and_progress_of_the_dead(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create("study")
    dead, alive = STAGE_A, replace(STAGE_A, id="alive")
    write_lock(store.lock(dead).path, dead_owner())
    store.lock(alive).take()
    for stage in (dead, alive):
        write_path = store.progress(stage)
        write_path.parent.mkdir(exist_ok=True)
        write_path.write_text("{}")
    assert store.busy([dead, alive]) == {"alive"}
    store.tidy()
    assert not store.lock(dead).path.exists()
    assert not store.progress(dead).exists()
    assert store.lock(alive).owner() == this_process()
    assert store.progress(alive).exists()


def test_done_is_present_and_equal(tmp_path: Path) -> None:
    store, graph = Store(tmp_path), Graph([STAGE_A])
    assert store.done(graph) == set()
    with store.publish(STAGE_A, graph.fingerprints[STAGE_A.id], {}):
        pass
    assert store.done(graph) == {STAGE_A.id}
    assert store.done(Graph([replace(STAGE_A, settings={"x": 2})])) == set()


def test_hashes_go_by_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "elsewhere" / "two"
    for folder in (one, two):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "weights").write_text("1 2 3")
        (folder / "config").write_text("{}")
    digests = Digests()
    assert digests.of(one) == digests.of(two)
    (two / "inner" / "weights").write_text("1 2 4")
    assert Digests().of(one) != Digests().of(two)
    assert Digests().of(one / "config") == Digests().of(two / "config")
    (two / "inner" / "weights").write_text("1 2 3")
    (two / "inner" / "weights").rename(two / "weights")
    assert Digests().of(one) != Digests().of(two)


def test_hashes_of_large_files_are_remembered_and_forgotten_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgeo.study.digests.REMEMBERED_FROM", 3)
    large, small, memory = tmp_path / "large", tmp_path / "small", tmp_path / "memory.json"
    large.write_text("12345")
    small.write_text("1")
    first = Digests(memory)
    values = first.of(large), first.of(small)
    first.save()
    assert list(json.loads(memory.read_text()).values()) == [values[0]]
    assert (Digests(memory).of(large), Digests(memory).of(small)) == values
    large.write_text("54321")
    os.utime(large, ns=(1, 1))
    assert Digests(memory).of(large) != values[0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        Digests().of(tmp_path / "absent")
