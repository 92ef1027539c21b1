"""What vLLM compiled is loaded only as it was written, and kept only where nobody else can write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared_engine.launcher import compile_cache
from shared_engine.launcher.compile_cache import (
    CHECKS,
    INDUCTOR_VARIABLE,
    ROOT_VARIABLE,
    check_files,
    refusal_of,
    use_safe_cache,
    write_checks,
)

LIBRARY = "inductor_cache/ab/library.so"


@pytest.fixture
def rank(tmp_path: Path) -> Path:
    """The folder of a model that was compiled and saved."""
    folder = tmp_path / "hash" / "rank_0_0"
    folder.mkdir(parents=True)
    library = folder.parent / LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(b"machine code")
    lock = folder.parent / "inductor_cache" / "locks" / "x.lock"
    lock.parent.mkdir()
    lock.touch()
    partial = folder / "model.1.tmp"
    partial.write_bytes(b"the model")
    write_checks(partial)
    partial.rename(folder / "model")
    return folder


def test_what_is_as_it_was_written_stays(rank: Path) -> None:
    (rank.parent / "inductor_cache" / "locks" / "x.lock").unlink()
    (rank.parent / "inductor_cache" / "later.so").write_bytes(b"compiled later, for another shape")
    check_files(rank)
    assert (rank / "model").exists()


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""), lambda file: os.truncate(file, 3), os.unlink])
@pytest.mark.parametrize("name", ["model", f"../{LIBRARY}"])
def test_what_was_damaged_is_removed_and_the_rest_stays(
    rank: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(rank / name)
    with pytest.raises(ValueError, match="damaged files in the compile cache"):
        check_files(rank)
    left = {path.name for path in rank.parent.rglob("*") if path.is_file()}
    assert left == {"model", "library.so", CHECKS, "x.lock"} - {Path(name).name}


@pytest.mark.parametrize("text", ['{"fil', "[]", "7", "\\ud800"])
def test_damaged_checks_are_removed(rank: Path, text: str) -> None:
    (rank / CHECKS).write_text(text)
    with pytest.raises(ValueError, match=CHECKS):
        check_files(rank)
    assert not (rank / CHECKS).exists()


def test_what_vllm_serve_has_compiled_is_taken_as_it_is(rank: Path) -> None:
    (rank / CHECKS).unlink()
    check_files(rank)
    assert (rank / "model").exists()


class Builder:
    """As torch's CppBuilder, as far as it is used."""

    def __init__(self, target: Path, error: Exception | None = None) -> None:
        self._target_file = str(target)
        self._output = f"-o {target}"
        self._error = error

    def build(self) -> None:
        Path(self._output.removeprefix("-o ")).write_bytes(b"half")
        if self._error:
            raise self._error
        Path(self._target_file).write_bytes(b"whole")


def test_a_library_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    build = compile_cache._building(Builder.build)
    whole = Builder(tmp_path / "whole.so")
    build(whole)
    assert whole._target_file == str(tmp_path / "whole.so")
    with pytest.raises(OSError, match="disk"):
        build(Builder(tmp_path / "half.so", OSError("disk full")))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"whole.so": b"whole"}


def test_a_vector_instruction_that_works_is_tried_once(tmp_path: Path) -> None:
    tried: list[str] = []

    def build(isa: str, code: str) -> bool:
        tried.append(isa)
        return code == "good"

    def check_in_a_new_process(isa: str, code: str, compiler: str = "g++ 12") -> bool:
        check = compile_cache._checking(build, lambda isa: f"{compiler} {isa}", lambda: str(tmp_path))
        return bool(check(isa, code))

    assert [check_in_a_new_process("avx2", "good") for _ in range(2)] == [True, True]
    assert [check_in_a_new_process("amx", "bad") for _ in range(2)] == [False, False]
    assert tried == ["avx2", "amx", "amx"]
    assert check_in_a_new_process("avx2", "good", "g++ 13")
    assert tried == ["avx2", "amx", "amx", "avx2"]


def test_a_torch_that_has_other_functions_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="9.9"))
    compile_cache.keep_compiled_models()
    assert "models are compiled at each start: torch 9.9 is unknown" in capsys.readouterr().err


def test_vllm_can_finish_loading_a_plain_function(rank: Path) -> None:
    def compiled() -> None: ...

    load = compile_cache._loading(lambda file, **_: SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled)))
    with open(rank / "model", "rb") as file:
        loaded = load(file, f_globals={})
    loaded._artifacts.compiled_fn.finalize_loading("config")


def test_a_private_folder_is_made_and_used(tmp_path: Path) -> None:
    assert refusal_of(tmp_path / "new" / "cache") is None
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert refusal_of(tmp_path) == f"others can write to {tmp_path}"


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.stat(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: status.st_uid + 1 or 1)
    if status.st_uid == 0:  # what root owns is trusted
        os.chown(tmp_path, 12345, -1)
        monkeypatch.undo()
    assert refusal_of(tmp_path) == f"others can write to {tmp_path}"


def test_a_folder_with_a_space_is_refused(tmp_path: Path) -> None:
    """torch splits the compiler's command line at spaces."""
    assert "has a space in its name" in str(refusal_of(tmp_path / "my cache"))
    assert not (tmp_path / "my cache").exists()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in str(refusal_of(tmp_path / "file" / "cache"))


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096))
    assert refusal_of(tmp_path) == f"less than 64 MiB are free in {tmp_path}"


def test_what_can_not_be_kept_goes_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, inductor = tmp_path / "shared", tmp_path / "inductor"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(ROOT_VARIABLE, str(shared))
    monkeypatch.setenv(INDUCTOR_VARIABLE, str(inductor))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    use_safe_cache()
    assert Path(os.environ[ROOT_VARIABLE]).parent == tmp_path
    assert os.environ[ROOT_VARIABLE] != str(shared)
    assert os.environ[INDUCTOR_VARIABLE] == str(inductor)
    assert f"not kept for the next start: others can write to {shared}" in capsys.readouterr().err
