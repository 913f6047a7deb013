"""The pictures of some prompts: one, a few with a sheet of all, or a long list that goes on where it stopped."""

import logging
from collections.abc import Sequence

from PIL.Image import Image

from minisd import images
from minisd.drawing import Drawing
from minisd.errors import USAGE, MinisdError
from minisd.generate.album import Album
from minisd.generate.drawings import Habits, drawings
from minisd.generate.easel import Easel, Order, device_of
from minisd.generate.options import BATCH, MODEL, Options
from minisd.generate.request import Request
from minisd.metadata import Drawn
from minisd.store import embedded, find, fingerprint, load

log = logging.getLogger(__name__)

LARGEST_SHEET = 1 << 26                           # pixels


def draw(request: Request) -> None:
    """Load the model and draw, in the one of three ways that was asked for."""
    options, drawn, album = request.options, request.drawn, Album()
    album.open(options)
    model = options.picture.model
    source = find(model) if model else embedded(drawn.model if drawn else MODEL)
    sha256 = fingerprint(source)
    if drawn is not None:
        check_model(drawn, sha256)
        drawn.drawing.check_pictures(album.pictures)
    sd = load(source, device_of(options.device, request.share), options.dtype or "auto")
    easel = Easel(sd, sha256, options.out, request.share, album.pictures)
    wanted = drawings(options, request.prompts, Habits(sd.defaults, sd.cfg.size, album.look))
    if drawn is not None and request.again:
        # Drawn again, a picture stands among as many as the first time, so that every kernel rounds as it did then.
        list(easel.draw([[Order(wanted[0], written=n == 0) for n in range(drawn.batch)]]))
    elif options.many.prompts or not request.share.alone:
        draw_list(easel, wanted, options.many.batch or BATCH)
    else:
        groups = sd.batches(wanted, options.many.batch or BATCH)
        drawn_now = easel.draw([[Order(one) for one in group] for group in groups])
        contact_sheet([picture for _, picture in drawn_now], options)


def check_model(drawn: Drawn, sha256: str) -> None:
    """A picture is drawn again by the weights that drew it, or not at all."""
    if drawn.model_sha256 != sha256:
        raise MinisdError(f"the picture was drawn by other weights than these, called {drawn.model[:60]!r}", "--model",
                          f"sha256 {drawn.model_sha256[:10]} there, {sha256[:10]} here",
                          "give the model that drew it by --model, or its options without --from-image", USAGE)


def draw_list(easel: Easel, wanted: Sequence[Drawing], batch: int) -> None:
    """What the folder lacks of a list, as far as it is this process's to draw."""
    batches, places = easel.missing(wanted, batch)
    there = sum(place.path is not None for place in places)
    if there:
        log.warning("%d of %d pictures are in %s already", there, len(places), easel.out)
    list(easel.draw(batches))


def contact_sheet(pictures: Sequence[Image], options: Options) -> None:
    """All pictures side by side, those of a prompt in a row, unless it is one picture or they are too many."""
    if len(pictures) > 1 and len(pictures) * pictures[0].width * pictures[0].height <= LARGEST_SHEET:
        count = options.many.count
        sheet = images.grid(pictures, count if count and len(pictures) > count > 1 else None)
        print(images.write_png(sheet, options.out, "grid", {}))
