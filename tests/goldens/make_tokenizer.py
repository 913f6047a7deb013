"""Record the ids that OpenAI's own tokenizer gives for awkward strings, as tests/goldens/tokenizer.json.

    pip download --no-deps clip-anytorch==2.6.0 && unzip clip_anytorch-2.6.0-py3-none-any.whl
    python tests/goldens/make_tokenizer.py clip/simple_tokenizer.py

The wheel carries OpenAI's file unchanged. It is loaded by its path: the package itself would import torchvision.
"""

import hashlib
import importlib.util
import json
import platform
import random
import sys
import unicodedata
from importlib.metadata import version
from pathlib import Path

WORDS = [
    "apple", "café", "naïve", "Straße", "İstanbul", "ﬁre", "ǅ日本", "Привет", "שלום", "مرحبا", "😀", "½",
    "x²", "don't", "3D", "A-1", "&amp;", "#1", "@you", "©",
]

KINDS: dict[str, list[str]] = {
    "empty": ["", " ", "\t\n\r", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2028\u2029", "&nbsp;", "&#32;", "\x00"],
    "captions": [
        "a red apple", "A Red Apple", "a photo of an astronaut riding a horse on mars",
        "a cat, a dog; a bird: all!", "masterpiece, best quality, (detailed:1.2), 8k",
        "[from:to:0.5] <lora:name:0.8>", "by Greg Rutkowski",
        "portrait of a woman -- oil on canvas, c. 1890", "two-headed dragon/phoenix hybrid",
        "smiling_face_with_hat", "emoji of a grinning face, 3d", "a 4x4 truck at 100km/h",
        "1girl, solo, looking at viewer", "C# & C++ code",
    ],
    "contractions": [
        "don't", "DON'T", "I'll we've they're she'd I'm it's", "I'LL WE'VE THEY'RE SHE'D I'M IT'S",
        "rock'n'roll", "'s", "''s", "'sun", "o'clock", "dogs'", "y'all'd've", "don’t", "it’s", "‘quoted’",
        "“quoted”", "'ſ", "a'Sx", "'re're", "'vex", "l'été", "'tis", "d'accord", "`s", "´s", "ʼs", "'ll'd",
        "'m.", "it ' s", "it\u00b4s",
    ],
    "numbers": [
        "2024", "3.14159", "1,000,000", "1e-5", "0x1F", "50%", "$9.99", "1st 2nd 3rd", "½ ⅓ ¾", "x² y³",
        "Ⅳ ⅻ", "①②③", "٠١٢٣", "१२३", "一二三", "𝟙𝟚𝟛", "1️⃣", "12:30", "2×2", "-1", "+49 (0)30/123", "1/2",
        "６４", "۴۵۶", "π≈3",
    ],
    "accents": [
        "café", "cafe\u0301", "naïve", "Ångström", "Å", "ﬁ ﬂ ﬃ", "Straße STRASSE", "ẞ", "İ I ı i", "Ǆ ǅ ǆ",
        "Œuvre", "e\u0301\u0323", "e\u0323\u0301", "Zalgo: t\u0336e\u0337x\u0338t", "\u0301",
        "a\u0308\u0308\u0308", "ñ n\u0303", "ΌΔΟΣ", "Σίσυφος ΣΑΣ", "K Å Ω", "ŉ", "ǰ", "Ĳ ĳ", "\u1e9e",
        "ﬅ ﬆ", "Ł ł Ø ø Đ đ", "x\u0345", "\u0345", "\u03b1\u0345", "Ạ Ả Ấ Ầ",
    ],
    "scripts": [
        "日本語のテキスト", "中文字符", "한국어 텍스트", "\u1112\u1161\u11ab", "ﾊﾝｶｸ ｶﾅ",
        "ＦＵＬＬ　ｗｉｄｔｈ", "Привет, мир", "ЁЖ ёж", "Ελληνικά", "مرحبا بالعالم", "اَلْعَرَبِيَّةُ", "ﷺ",
        "שָׁלוֹם", "हिन्दी", "தமிழ்", "ไทย", "ລາວ", "བོད་ཡིག", "ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ᚠᚢᚦ",
        "𐍈", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠜎𠜱", "\u202eright to left\u202c", "a\u200fb\u200ec", "か\u3099", "㍿ ㎏",
        "々〆ヶ", "។ ។", "ខ្មែរ", "မြန်မာ", "ⵜⵉⴼⵉⵏⴰⵖ", "ꙮ", "ʻokina Hawaiʻi", "Ĉu vi",
    ],
    "emoji": [
        "😀", "😀😀", "😀 😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "❤", "☺️", "🧑🏿‍🚀", "#️⃣",
        "™️", "🫠", "a😀b", "🎅🏻🎄", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👩🏽‍❤️‍💋‍👨🏿", "\u200d", "\ufe0f", "☃︎", "♟️", "⚧",
        "🀄", "🃏", "⌚⏰", "😀!", "(😀)", "¯\\_(ツ)_/¯", ":-)",
    ],
    "html": [
        "&amp;", "&amp;amp;", "&amp;amp;amp;", "&amp;amp;amp;amp;", "&lt;b&gt;bold&lt;/b&gt;",
        "&quot;x&quot;", "&#39;s", "&#x27;s", "&#39", "&ampx", "&notit;", "&nosuch;", "&", "&;", "&#;",
        "&#x;", "&#0;", "&#128;", "&#x80;", "&#xD800;", "&#x110000;", "&#1114112;", "&#65279;", "&#28;",
        "&#133;", "caf&eacute;", "&Eacute;T&Eacute;", "<b>bold</b>", "<b>&amp;</b>", "<b>&amp;lt;</b>",
        "<script>alert(1)</script>", "&hearts;", "&#128512;", "&#x1F600;", "&lt;|endoftext|&gt;",
        "a&nbsp;b", "&NotEqualTilde;", "&copy 2024", "&copy2024", "&AMP;", "&Lt;", "&" * 50, "&amp;" * 20,
        "&#" + "9" * 200 + ";", "&#x" + "f" * 200 + ";", "&#0000000065;", "x &lt y",
    ],
    "mojibake": [
        "cafÃ©", "donâ€™t", "â€œquotedâ€\u009d", "ÃƒÂ©", "Ã¼ber", "MÃ¼nchen", "ðŸ˜€", "Â£5", "Â°C", "sÃ³",
        "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "æ—¥æœ¬", "LÃ\xa0", "Ã", "Ã ", "vis Ã\xa0 vis", "â„¢", "â€¦", "ï»¿bom", "\u009d",
        "\u0080", "l\u0092été", "RUF â\x80\x93 MICRO", "Ã±andÃº", "ÃŸ", "schÃ¶n", "&atilde;&copy;", "Ä°",
        "Å¡", "вЂ™", "\u00c3\u00a9\u00c3\u00a9", "voilÃ le travail", "\ufffd", "a\ufffdb",
    ],
    "controls": [
        "a\x00b", "\x00\x01\x02", "a\x07b", "a\x08b", "a\x0bb", "a\x0cb", "a\x1bb", "\x1b[31mred\x1b[0m",
        "\x1b[", "a\x1cb", "a\x1db\x1ec\x1fd", "a\x7fb", "a\x85b", "a\xadb", "a\u200bb", "a\u2060b",
        "a\ufeffb", "\ufeffa", "a\u180eb", "a\u2028b", "a\r\nb", "a\rb", "a\n\n\nb", "a\tb", "a\u3000b",
        "a\u00a0b", "a\u202fb", "a\u1680b", "a\u205fb", "\ufff9a\ufffab\ufffb", "\ufffe", "\uffff",
        "\ue000", "\U000e0001\U000e0041", "\U0010ffff", "\u0600", "\u061c",
    ],
    "surrogates": ["\ud83d", "\ude00", "\ud83d\ude00", "a\ud800b", "\udfff\ud800", "\ud83dx\ude00", "\udc80\udcff"],
    "special": [
        "<|startoftext|>", "<|endoftext|>", "a<|endoftext|>b", "a <|ENDOFTEXT|> b",
        "<|startoftext|><|endoftext|>", "<|endoftext|", "<|endoftext|>>", "<<|endoftext|>",
        "!!<|endoftext|>", "x<|endoftext|>", "<|endoftext |>", "<|ſtartoftext|>", "<start_of_text>",
        "<end_of_text>", "<pad>", "</w>", "a</w>", "the</w> cat", "&lt;/w&gt;",
    ],
    "punctuation": [
        "!", "!!", "!!!!!!!!", "?!?!", "...", "…", "....", "-", "--", "---", "–", "—", "_", "__a__", "a_b",
        "/", "\\", "//x", "http://example.org/a?b=c&d=e#f", "me@example.org", "@user #tag", "~*~", "<3",
        ">:(", "[[]]", "{}", "()", "((()))", "\"", "''", "``", "´", "§1", "¶", "•", "†", "₿ € £ ¥",
        "∀x∈ℝ: ⌈x⌉", "→ ⇒ ⟶", "█▓▒░", "♥♦♣♠", "a.b.c", "a,b", "U.S.A.", "C:\\dir\\file.txt", "$PATH",
        "%s %d", "\\n", "#" * 40, "=" * 33, "-=" * 20, "¡Hola! ¿Qué?", "«a»", "„b“", "、。「」",
    ],
    "long": [
        "a " * 200, "apple, " * 70, "supercalifragilisticexpialidocious", "a" * 100, "ab" * 150, "z" * 63,
        "z" * 64, "z" * 65, "x" * 300, "é" * 90, "日" * 120, "😀" * 80, "the" * 70,
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk",
        "llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch", "0" * 100, "!" * 257, "aA" * 40,
        "\u0301" * 90,
    ],
}


def random_texts(seed: int) -> list[str]:
    """Words of all sorts glued with and without spaces, and characters from everywhere."""
    draw = random.Random(seed)
    texts = [draw.choice(["", " ", "-", "'"]).join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(100)]
    ranges = [(0x00, 0x7F), (0x20, 0x7F), (0x80, 0x24F), (0x250, 0x6FF), (0x900, 0x30FF), (0x1F300, 0x1F6FF)]
    for low, high in ranges * 15:
        letters = [chr(draw.randint(low, high)) for _ in range(draw.randint(3, 25))]
        texts.append("".join(letter for letter in letters if unicodedata.category(letter) != "Cn"))
    return texts


def main(source: Path) -> None:
    spec = importlib.util.spec_from_file_location("simple_tokenizer", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = module.SimpleTokenizer()
    cases = [(kind, text) for kind, texts in (KINDS | {"random": random_texts(0)}).items() for text in texts]
    made_with = {
        "reference": "simple_tokenizer.py of clip-anytorch 2.6.0, which is OpenAI's",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
        "ftfy": version("ftfy"),
        "regex": version("regex"),
        "seed": 0,
    }
    rows = ",\n".join(json.dumps([kind, text, reference.encode(text)]) for kind, text in cases)
    target = Path(__file__).with_name("tokenizer.json")
    target.write_text(f'{{"made_with": {json.dumps(made_with)},\n"cases": [\n{rows}\n]}}\n')
    print(f"{len(cases)} strings, {len({text for _, text in cases})} different")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
