"""Text is read in whatever encoding it was saved, and the files that it names are found."""

import codecs
import os

import pytest

from common.errors import InputError
from common.files import existing_path, read_text

TEXT = "bear\ncafé 1\n"
SAVED = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with a mark": TEXT.encode("utf-8-sig"),
    "UTF-16": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "UTF-16 without a mark, big end first": TEXT.encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "Latin-1": TEXT.encode("latin-1"),
    "line ends of Windows": TEXT.replace("\n", "\r\n").encode(),
    "line ends of an old Mac": TEXT.replace("\n", "\r").encode("utf-16"),
}


@pytest.mark.parametrize("saved", SAVED)
def test_every_encoding(tmp_path, saved):
    (tmp_path / "list.txt").write_bytes(SAVED[saved])
    assert read_text(tmp_path / "list.txt") == TEXT


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "empty").touch()
    assert read_text(tmp_path / "empty") == ""
    for name in ("absent", "."):
        with pytest.raises(InputError, match=r"cannot be read \("):
            read_text(tmp_path / name)


UTF_8, LATIN_1 = b"caf\xc3\xa9.mp4", b"caf\xe9.mp4"


@pytest.mark.parametrize(("in_list", "on_disk"), [(UTF_8, UTF_8), (LATIN_1, LATIN_1), (LATIN_1, UTF_8)])
def test_a_name_in_either_encoding_is_found(tmp_path, in_list, on_disk):
    path = os.path.join(os.fsencode(tmp_path), on_disk)
    open(path, "wb").close()
    (tmp_path / "list.txt").write_bytes(in_list + b"\n")
    found = existing_path(tmp_path, read_text(tmp_path / "list.txt").strip())
    assert os.fsencode(found) == path
