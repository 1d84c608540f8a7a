"""What is told to people about something that is wrong. Pure."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with something, since when, what was tried about it and what happens next; each for people."""

    what: str
    since: datetime
    tried: str
    next: str
