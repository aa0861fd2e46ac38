"""Pages of one file: they open from the disk, load nothing from anywhere, and follow the reader's light or dark theme.

A page is a body (`<name>.html`), its style (`<name>.css`) and its script (`<name>.js`), with the style and the few
functions that all pages share (`page.css`, `page.js`), and its data as JSON.
"""

import base64
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from common.files import write_atomically

LIMIT = 10 * 2**20  # bytes: what a page may weigh

# The browser itself refuses whatever a page would fetch. The explorer's script compiles WebAssembly that it carries.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval'"
)


def write_page(path: str | Path, name: str, title: str, data: dict[str, Any]) -> int:
    """Write a page with its data, and return its size in bytes.

    name: of the `.html`, `.css` and `.js` beside this file, such as "report". data: plain values; NaN and infinities
    become null. The script finds them as `DATA`.
    """

    def source(file: str) -> str:
        return Path(__file__).with_name(file).read_text("utf-8")

    body = source(f"{name}.html")
    style, script = (source(f"page.{kind}") + source(f"{name}.{kind}") for kind in ("css", "js"))
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # inside a script element "<" could end it; names of files may hold surrogates, which UTF-8 does not know
    text = text.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode()
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n{body}"
        f'<script type="application/json" id="data">{text}</script>\n<script>\n{script}</script>\n</html>\n'
    ).encode("utf-8", "replace")
    write_atomically(path, lambda file: file.write(page))
    return len(page)


def data_uri(content: bytes, kind: str = "image/jpeg") -> str:
    """A file as the address of a picture inside a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
