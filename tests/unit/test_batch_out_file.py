"""The output file of a batch: cut anywhere it goes on, and what is not its own it leaves alone."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_engine.answer_file import out_file
from shared_engine.answer_file.identity import Identity, digest_of, how_digest
from shared_engine.answer_file.out_file import OutFile, OutputError
from shared_engine.cli.batch.lines import Answer, InvalidLineError, PlainLine, failed_answer, plain_answer
from shared_engine.cli.batch.output import OutStream, output_of
from shared_engine.cli.batch.rows import Input, Row
from shared_engine.cli.batch.survey import Survey
from shared_engine.errors import InvalidInputError
from shared_engine.machine.locks import try_lock
from tests.unit.test_batch_lines import result

HOW = how_digest({"model": "m"})


@pytest.mark.parametrize(
    "text", [b'[\n  {\n    "prompt": "a"\n  },\n', b'{\n  "prompt": "a"\n}\n', b"prompt\nHi\n", b"\x1f\x8b\n\x00\n"]
)
def test_a_file_that_is_not_of_json_lines_is_refused_as_a_whole(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(text)
    with pytest.raises(InvalidInputError, match="none of its first lines is a JSON object; it must be JSON lines"):
        Survey(Input(str(path), "prompt"))
    path.write_bytes(text + b'{"prompt": "a"}\n')
    assert Survey(Input(str(path), "prompt")).rows == len(text.splitlines()) + 1


def input_of(folder: Path, *texts: str) -> Input:
    path = folder / "in.jsonl"
    path.write_text("".join(f"{text}\n" for text in texts))
    return Input(str(path), "prompt")


def answer_to(row: Row, how: str = HOW, *, is_error: bool = False) -> Answer:
    answer_id = str(Identity(row.number, digest_of(row.text), how))
    if is_error:
        return failed_answer(answer_id, row.number, row.text, PlainLine(prompt="x"), InvalidLineError("no"))
    return plain_answer(answer_id, row.number, row.text, result())


def opened(folder: Path, rows: Input, how: str = HOW) -> OutFile:
    return OutFile(folder / "out.jsonl", Survey(rows), [how])


def go_on(folder: Path, rows: Input, *, backwards: bool = False) -> bytes:
    """Answer what is missing; the file."""
    out = opened(folder, rows)
    out.begin()
    missing = [row for row in rows.rows() if not out.answered[row.number - 1]]
    for row in reversed(missing) if backwards else missing:
        out.append(answer_to(row).line, row.number)
    if not out.is_sorted:
        out.sort()
    out.close()
    return (folder / "out.jsonl").read_bytes()


TEXTS = ('{"prompt": "é"}', "", '{"prompt": "b\\n", "x": "\\"error\\":null}"}', "[]", '{"prompt": "last"}')


@pytest.mark.slow
def test_cut_at_any_byte_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    whole = go_on(tmp_path, rows)
    assert whole.count(b"\n") == 4
    for cut in range(len(whole) + 1):
        (tmp_path / "out.jsonl").write_bytes(whole[:cut])
        assert go_on(tmp_path, rows, backwards=cut % 2 == 0) == whole, cut


@settings(deadline=None, max_examples=60)
@given(data=st.data(), count=st.integers(1, 12))
@pytest.mark.slow
def test_cut_again_and_again_and_answered_in_any_order_it_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    rows = input_of(folder, *(f'{{"prompt": "{at}"}}' for at in range(count)))
    all_rows = list(rows.rows())
    whole = b"".join(answer_to(row).line for row in all_rows)
    for _ in range(data.draw(st.integers(1, 4))):
        out = opened(folder, rows)
        out.begin()
        missing = [row for row in all_rows if not out.answered[row.number - 1]]
        assert out.before == count - len(missing)
        for row in data.draw(st.permutations(missing))[: data.draw(st.integers(0, count))]:
            out.append(answer_to(row).line, row.number)
        out.close()
        path = folder / "out.jsonl"
        os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
    assert go_on(folder, rows, backwards=data.draw(st.booleans())) == whole


def test_bytes_that_a_crash_of_the_machine_left_unwritten_are_cut_off(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    whole = go_on(tmp_path, rows)
    second = whole.index(b"\n") + 1
    for begin, end in ((len(whole) - 9, len(whole)), (second, len(whole)), (second + 5, second + 50)):
        (tmp_path / "out.jsonl").write_bytes(whole[:begin] + bytes(end - begin) + whole[end:])
        assert go_on(tmp_path, rows) == whole


def test_an_input_that_has_grown_is_answered_to_its_end(tmp_path: Path) -> None:
    before = go_on(tmp_path, input_of(tmp_path, *TEXTS))
    grown = go_on(tmp_path, input_of(tmp_path, *TEXTS, '{"prompt": "new"}'))
    assert grown.startswith(before)
    assert grown.count(b"\n") == 5


@pytest.mark.parametrize(
    "texts",
    [
        (*TEXTS[:-1], '{"prompt": "another"}'),
        TEXTS[:-1],
        TEXTS[1:],
        (),
    ],
)
def test_an_input_that_has_changed_is_refused_and_nothing_written(tmp_path: Path, texts: tuple[str, ...]) -> None:
    whole = go_on(tmp_path, input_of(tmp_path, *TEXTS))
    (tmp_path / "out.jsonl").write_bytes(whole + b'{"id":"')
    with pytest.raises(OutputError, match=r"which is not in the input, or has changed there: choose another output"):
        opened(tmp_path, input_of(tmp_path, *texts))
    assert (tmp_path / "out.jsonl").read_bytes() == whole + b'{"id":"'


def test_another_model_or_other_parameters_are_refused(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    go_on(tmp_path, rows)
    with pytest.raises(OutputError, match="was written with another model or other parameters: choose another output"):
        opened(tmp_path, rows, how_digest({"model": "another"}))


@pytest.mark.parametrize(
    "text",
    [
        b"notes",
        b"notes\n",
        b"\x1f\x8b\0\0\n",
        b'{"id": 3}\n',
        b'{"id":"x"}\n',
        b'{"id":"x","y":1}',
        b'{"id":"0-0123456789abcdef-01234567"}\n',
        b"\n",
        b'{"id":"1-0123456789abcdef-01234567" broken}\n',
    ],
)
def test_a_file_of_somebody_elses_is_left_alone(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(text)
    with pytest.raises(OutputError, match="was not written by this command: see its line 1"):
        opened(tmp_path, input_of(tmp_path, *TEXTS))
    assert path.read_bytes() == text


def test_two_answers_to_one_row_are_refused(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    whole = go_on(tmp_path, rows)
    (tmp_path / "out.jsonl").write_bytes(whole * 2)
    with pytest.raises(OutputError, match="has two answers to line 1"):
        opened(tmp_path, rows)


def test_a_file_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    out = opened(tmp_path, rows)
    with pytest.raises(OutputError, match="is being written by another process"):
        opened(tmp_path, rows)
    out.begin()
    all_rows = list(rows.rows())
    for row in reversed(all_rows):
        out.append(answer_to(row).line, row.number)
    out.sort()  # another file, under the same name
    with pytest.raises(OutputError, match="is being written by another process"):
        opened(tmp_path, rows)
    out.close()
    again = opened(tmp_path, rows)
    assert again.before == len(all_rows)
    again.close()


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = input_of(tmp_path, *TEXTS)
    whole = go_on(tmp_path, rows)
    path, moved = tmp_path / "out.jsonl", tmp_path / "sorted.jsonl"
    moved.write_bytes(whole)
    path.write_bytes(b"")

    def replaced_first(fd: int, operation: int) -> bool:
        if moved.exists():
            os.replace(moved, path)
        return try_lock(fd, operation)

    monkeypatch.setattr(out_file, "try_lock", replaced_first)
    out = opened(tmp_path, rows)
    assert out.before == 4
    out.close()
    assert path.read_bytes() == whole


def test_errors_are_dropped_and_asked_again(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    whole = go_on(tmp_path, rows)
    path = tmp_path / "out.jsonl"
    path.unlink()
    out = opened(tmp_path, rows)
    out.begin()
    for row in rows.rows():
        out.append(answer_to(row, is_error=row.number in (3, 4)).line, row.number)
    out.close()
    path.chmod(0o640)
    (tmp_path / ".out.jsonl.new").write_text("left by a run that was killed")
    out = opened(tmp_path, rows)
    assert (out.before, out.errors) == (4, 2)
    out.begin()
    assert not (tmp_path / ".out.jsonl.new").exists()
    out.drop_errors()
    assert (out.before, out.errors) == (2, 0)
    out.close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[at] for at in (0, 3))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert go_on(tmp_path, rows) == whole


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    (tmp_path / "real.jsonl").touch()
    (tmp_path / "out.jsonl").symlink_to("real.jsonl")
    go_on(tmp_path, rows, backwards=True)
    assert (tmp_path / "out.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_bytes().count(b"\n") == 4


# ---- full disks


@contextmanager
def no_file_longer_than(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def append_all(out: OutFile, rows: Input) -> None:
    for row in rows.rows():
        out.append(answer_to(row).line, row.number)


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    whole = go_on(tmp_path, rows)
    path = tmp_path / "out.jsonl"
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for limit in (0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[2] - 1):
        path.write_bytes(b"")
        out = opened(tmp_path, rows)
        out.begin()
        with no_file_longer_than(limit), pytest.raises(OutputError, match=r"out\.jsonl can't be written: File too"):
            append_all(out, rows)
        out.close()
        assert path.stat().st_size == max((end for end in ends if end <= limit), default=0)
    assert go_on(tmp_path, rows) == whole


def test_a_new_order_that_cant_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = input_of(tmp_path, *TEXTS)
    out = opened(tmp_path, rows)
    out.begin()
    for row in reversed(list(rows.rows())):
        out.append(answer_to(row).line, row.number)
    before = (tmp_path / "out.jsonl").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        out.sort()
    monkeypatch.undo()
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    out.sort()
    out.close()


# ---- which output


def test_what_isnt_a_file_is_only_written_to(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    assert isinstance(output_of("-", rows, [HOW], Survey(rows)), OutStream)
    null = output_of("/dev/null", rows, [HOW], Survey(rows))
    null.append(b"x\n", 1)
    null.close()
    full = output_of("/dev/full", rows, [HOW], Survey(rows))
    with pytest.raises(OutputError, match=r"/dev/full can't be written: No space left on device"):
        full.append(b"x\n", 1)
    full.close()


def test_an_output_that_cant_be_used_is_told(tmp_path: Path) -> None:
    rows = input_of(tmp_path, *TEXTS)
    survey = Survey(rows)
    with pytest.raises(InvalidInputError, match="is both the input and the output"):
        output_of(rows.name, rows, [HOW], survey)
    with pytest.raises(OutputError, match=r"nowhere/out\.jsonl can't be written: No such file or directory"):
        output_of(str(tmp_path / "nowhere" / "out.jsonl"), rows, [HOW], survey)
    with pytest.raises(OutputError, match="can't be written: Is a directory"):
        output_of(str(tmp_path), rows, [HOW], survey)
    go_on(tmp_path, rows)
    with pytest.raises(InvalidInputError, match="is not empty, and an input that is not a file can't be resumed"):
        output_of(str(tmp_path / "out.jsonl"), Input("-", "prompt"), [HOW], None)
