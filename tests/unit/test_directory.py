"""The runtime directory is private, short and local, or refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM, VLLMEmbeddings
from llama_index_vllm_local import VLLM
from shared_engine import Engine, SettingsError
from shared_engine.runtime.directory import MAX_SOCKET_PATH, ROOT_VARIABLE, RuntimeDir, runtime_root
from tests.support.paths import TINY_CHAT


def test_it_is_made_private(tmp_path: Path) -> None:
    directory = RuntimeDir(tmp_path / "root" / "key")
    directory.prepare()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.path.parent.stat().st_mode & 0o777 == 0o700


def test_one_that_others_can_enter_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o755)
    with pytest.raises(SettingsError, match=r"open to other users \(mode 755\).*chmod 700.*VLLM_LOCAL_RUNTIME_DIR"):
        RuntimeDir(tmp_path / "root" / "key").prepare()
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o755


def test_what_is_made_is_closed_to_others(tmp_path: Path) -> None:
    RuntimeDir(tmp_path / "root" / "key").prepare()
    assert {folder.stat().st_mode & 0o777 for folder in (tmp_path / "root", tmp_path / "root" / "key")} == {0o700}


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="unsafe"):
        RuntimeDir(tmp_path / "root" / "key").prepare()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(SettingsError, match=f"can't be made.*{ROOT_VARIABLE}"):
        RuntimeDir(tmp_path / "root" / "key").prepare()


@pytest.mark.parametrize("make", [lambda root: root.mkdir(mode=0o755), lambda root: root.touch()], ids=["755", "file"])
@pytest.mark.parametrize("kind", [Engine, ChatVLLM, VLLM, VLLMEmbeddings])
def test_one_that_is_there_and_can_not_be_used_is_refused_on_construction(
    kind: Callable[..., Any], make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    kind(model=str(TINY_CHAT))
    assert not root.exists()
    make(root)
    with pytest.raises(SettingsError, match=f"the runtime directory {root} is .*{ROOT_VARIABLE}"):
        kind(model=str(TINY_CHAT))
    kind(base_url="http://127.0.0.1:9", model="none")  # which has no use for it


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / ("x" * MAX_SOCKET_PATH) / "key"
    with pytest.raises(SettingsError, match=f"too long.*{ROOT_VARIABLE}"):
        RuntimeDir(path).prepare()
    assert not path.parent.exists()


def test_one_that_can_not_be_made_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=f"can't be made.*{ROOT_VARIABLE}"):
        RuntimeDir(tmp_path / "file" / "key").prepare()


def test_the_root_does_not_depend_on_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE)
    here = runtime_root()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert runtime_root() == here


def test_all_of_it_is_kept_from_whoever_removes_what_is_old(tmp_path: Path) -> None:
    directory = RuntimeDir(tmp_path / "key")
    directory.prepare()
    directory.clear_scratch()
    (directory.scratch / "of_vllm").touch()
    directory.spec.touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(directory.server_socket(1)))
    everything = [directory.path, *directory.path.rglob("*")]
    assert len(everything) == 5
    for path in everything:
        os.utime(path, (1, 1))
    directory.keep_young()
    assert all(path.stat().st_mtime > 1 for path in everything)
