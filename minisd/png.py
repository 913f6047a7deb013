"""A picture as the bytes of a PNG file. Torch is not needed."""

import io
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def png(image: Image.Image, text: Mapping[str, str] | None = None, small: bool = False) -> bytes:
    """A PNG file with text chunks; a small one takes longer to make."""
    info = PngInfo()
    for key, value in (text or {}).items():       # what latin-1 cannot say becomes an iTXt chunk, in UTF-8
        info.add_text(key, value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8"))
    whole = io.BytesIO()
    image.save(whole, "PNG", pnginfo=info, optimize=small)
    return whole.getvalue()
