"""The child process that decodes media files. Run as a file, never imported.

argv[1] is a JSON object: kind (a `DecoderKind`: what it imports), import_paths, memory_bytes.
It says {"n_bytes": 0} when ready. A request on stdin is a line of JSON with n_bytes, and that many
bytes of a file; an answer on stdout is a line of JSON with n_bytes, and that many bytes of pixels,
samples, or text and pixels by turns, or {"error": …, "n_bytes": 0}. It ends when stdin does. It
opens no file: the parent reads them.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

Answer = tuple[dict[str, Any], bytes]


def _image_decoder(*, heif: bool = False) -> Callable[[dict[str, Any], bytes], Answer]:
    from safesteer_edge.media.image_decoding import decode_image, load_decoders
    from safesteer_edge.media.image_fit import ImageFit

    load_decoders(heif=heif)

    def decode(request: dict[str, Any], data: bytes) -> Answer:
        fit = ImageFit(request["square_side"], request["max_pixels"])
        picture = decode_image(data, name=request["name"], fit=fit)
        header = {
            "original_size": [picture.width, picture.height],
            "size": list(picture.image.size),
        }
        return header, picture.image.tobytes()

    return decode


def _sound_decoder() -> Callable[[dict[str, Any], bytes], Answer]:
    from safesteer_edge.media.sound_decoding import decode_sound

    def decode(request: dict[str, Any], data: bytes) -> Answer:
        samples = decode_sound(data, name=request["name"], sample_rate=request["sample_rate"])
        return {}, samples.tobytes()

    return decode


def _document_decoder() -> Callable[[dict[str, Any], bytes], Answer]:
    from safesteer_edge.media.image_fit import ImageFit
    from safesteer_edge.media.pdf_decoding import decode_pdf, load_decoder

    load_decoder()

    def decode(request: dict[str, Any], data: bytes) -> Answer:
        fit = ImageFit(request["square_side"], request["max_pixels"])
        pages = decode_pdf(data, name=request["name"], fit=fit, sees=request["sees"])
        headers: list[dict[str, Any]] = []
        payload: list[bytes] = []
        for page in pages:
            text = page.text.encode("utf-8", "replace")
            headers.append({"n_bytes": len(text), "is_pictured": page.is_pictured})
            payload.append(text)
            if page.picture is not None:
                headers[-1]["size"] = list(page.picture.image.size)
                headers[-1]["original_size"] = [page.picture.width, page.picture.height]
                payload.append(page.picture.image.tobytes())
        return {"pages": headers}, b"".join(payload)

    return decode


_DECODERS = {
    "image": _image_decoder,
    "heif": partial(_image_decoder, heif=True),
    "sound": _sound_decoder,
    "document": _document_decoder,
}


def _say(header: dict[str, Any], payload: bytes = b"") -> None:
    line = json.dumps({**header, "n_bytes": len(payload)}).encode("ascii")
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


def main(options: dict[str, Any]) -> None:
    """Serve requests until stdin ends."""
    from safesteer_edge.errors import MediaError
    from safesteer_edge.processes.confined_worker import limit_resources

    decode = _DECODERS[options["kind"]]()
    limit_resources(options["memory_bytes"], threads=options["kind"] == "heif")
    _say({})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["n_bytes"])
        try:
            header, payload = decode(request, data)
        except MediaError as error:
            header, payload = {"error": str(error)}, b""
        except MemoryError:
            header, payload = {"error": f"{request['name']} needs too much memory to decode"}, b""
        _say(header, payload)
        del data, payload  # before the next one is read


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    given = json.loads(sys.argv[1])
    sys.path += given["import_paths"]
    main(given)
