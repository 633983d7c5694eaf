"""Text files, each of them one document."""

from __future__ import annotations

from etils import epath

from scaling_jax.data.sources.source import MAX_DOCUMENT, Document, checked_text, too_long
from scaling_jax.data.sources.streams import opened

_HEAD = 8192


def document(path: epath.Path, file_id: str, is_named: bool) -> Document | None:
    """The file as a document; None where it is binary and not itself what was named.

    Binary is, as git has it, what has a zero byte among its first 8,192. Raises `RequestError`
    for a file that is not UTF-8 or too long, before it is read whole.
    """
    with opened(path) as file:
        content = file.read(_HEAD)
        if b"\0" in content and not is_named:
            return None
        content += file.read(MAX_DOCUMENT + 1 - len(content))
    if len(content) > MAX_DOCUMENT:
        raise too_long(str(path), f"more than {MAX_DOCUMENT:,} bytes")
    return Document(file_id, checked_text(content.removeprefix(b"\xef\xbb\xbf"), str(path)))
