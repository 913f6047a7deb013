"""The samplers there are, as a table for people."""

from minisd.samplers.recipes import METHODS, SHORT, SPACINGS


def samplers() -> str:
    """Lines: each method with its other names and the spacing it walks on, then all spacings."""
    rows = [(method.names[0], ", ".join(method.names[1:]), method.spacing) for method in METHODS]
    rows = [("sampler", "or", "spacing"), *rows]
    wide = [max(len(row[n]) for row in rows) for n in range(2)]
    lines = [f"{name:{wide[0]}}  {others:{wide[1]}}  {spacing}" for name, others, spacing in rows]
    short = [f"{word} ({', '.join(key for key, meant in SHORT.items() if meant == word)})"
             if word in SHORT.values() else word for word in SPACINGS]
    return "\n".join([*lines, "", f'Any spacing may follow, as in "euler karras": {", ".join(short)}'])
