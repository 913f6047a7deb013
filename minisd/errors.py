"""The one error that a user is meant to see: what failed, where, why, and what to do about it.

Programs print it in at most six lines without a traceback and leave with its code:
0 ok, 2 usage, 3 bad input file, 4 resource, 5 numerical, 6 interrupted and saved, 7 distributed.
"""

USAGE, BAD_FILE, RESOURCE, NUMERICAL, INTERRUPTED, DISTRIBUTED = 2, 3, 4, 5, 6, 7


class MinisdError(Exception):
    """What failed, where, why, and the remedy; `code` is the exit code of the program that meets it."""

    def __init__(self, what: str, where: str = "", why: str = "", remedy: str = "", code: int = BAD_FILE):
        super().__init__(what, where, why, remedy, code)
        self.what, self.where, self.why, self.remedy, self.code = what, where, why, remedy, code

    def __str__(self) -> str:
        lines = [self.what]
        for title, text in (("where", self.where), ("why", self.why), ("do", self.remedy)):
            if text:
                lines.append(f"  {title}: {text}")
        return "\n".join(lines)
