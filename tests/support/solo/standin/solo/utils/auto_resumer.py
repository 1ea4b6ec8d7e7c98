from typing import ClassVar


class AutoResumer:
    SHOULD_MATCH: ClassVar[list[str]] = ["name", "method"]
