"""The pictures of some prompts: one, a few with a sheet of all, or a long list that goes on where it stopped."""

from collections.abc import Sequence

from PIL.Image import Image

from minisd import images
from minisd.drawing.metadata import Drawn
from minisd.drawing.wardrobe import wardrobe_of
from minisd.errors import USAGE, MinisdError
from minisd.generate.album import Album
from minisd.generate.dictionary import Dictionary
from minisd.generate.drawings import Habits, drawings
from minisd.generate.easel import Easel, Order
from minisd.generate.gallery import places, say_how_many
from minisd.generate.options import BATCH, MODEL, Options
from minisd.generate.request import Request
from minisd.generate.source import opened
from minisd.store import embedded, find

LARGEST_SHEET = 1 << 26                           # pixels


def draw(request: Request) -> None:
    """Load the model and draw, in the one of three ways that was asked for."""
    options, drawn, album = request.options, request.drawn, Album()
    album.open(options)
    model = options.picture.model
    source = opened(find(model) if model else embedded(drawn.model if drawn else MODEL), options, request.share)
    if drawn is not None:
        check_model(drawn, source.sha256)
        drawn.drawing.check_pictures(album.pictures)
    words = Dictionary(request.library, source.cfg)
    habits = Habits(source.own, source.cfg.size, album.look, request.shelf.lend, words.say)
    wanted = drawings(options, request.prompts, habits)
    words.tell_unsaid(wanted)
    album.check(wanted)
    wardrobe = wardrobe_of(request.shelf.files, words.lessons, wanted, source.cfg, options.allow_unused)
    easel = Easel(source.load(), source.sha256, options.out, request.share, album.pictures, wardrobe,
                  options.preview_every)
    if drawn is not None and request.again:
        # Drawn again, a picture stands among as many as the first time, so that every kernel rounds as it did then.
        list(easel.draw([[Order(wanted[0], written=n == 0) for n in range(drawn.batch)]]))
    elif options.many.prompts or not request.share.alone:
        there = places(options.out, [source.key(one) for one in wanted])
        say_how_many(there, options.out)
        list(easel.draw(easel.missing(wanted, there, options.many.batch or BATCH)))
    else:
        groups = easel.batches(wanted, options.many.batch or BATCH)
        drawn_now = easel.draw([[Order(one) for one in group] for group in groups])
        contact_sheet([picture for _, picture in drawn_now], options)


def check_model(drawn: Drawn, sha256: str) -> None:
    """A picture is drawn again by the weights that drew it, or not at all."""
    if drawn.model_sha256 != sha256:
        raise MinisdError(f"the picture was drawn by other weights than these, called {drawn.model[:60]!r}", "--model",
                          f"sha256 {drawn.model_sha256[:10]} there, {sha256[:10]} here",
                          "give the model that drew it by --model, or its options without --from-image", USAGE)


def contact_sheet(pictures: Sequence[Image], options: Options) -> None:
    """All pictures side by side, those of a prompt in a row, unless it is one picture or they are too many."""
    if len(pictures) > 1 and len(pictures) * pictures[0].width * pictures[0].height <= LARGEST_SHEET:
        count = options.many.count
        sheet = images.grid(pictures, count if count and len(pictures) > count > 1 else None)
        print(images.write_png(sheet, options.out, "grid", {}))
