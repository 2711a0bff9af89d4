"""What the reward server takes, keeps waiting and remembers at most."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..types import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class Limits:
    """- one request: `body` bytes; `images`, each of `image_bytes` bytes and `image_pixels` pixels in one of `formats`; `solutions`; `text`
      characters of the question and of each solution;
    - waiting at once: `waiting` solutions, `waiting_pixels` pixels of decoded pictures (3 bytes each); what comes beyond that gets a 429;
    - a batch: `batch` solutions, collected for at most `wait` seconds while the scorer is idle;
    - `seconds`: the longest time for an answer; `read_seconds`: for the body to arrive; `stuck_seconds`: a batch that takes longer makes
      the server not ready;
    - `remembered`: scores kept for retries, for `remembered_seconds` at most.
    """

    body: int = 16 << 20
    images: int = 16
    image_bytes: int = 10 << 20
    image_pixels: int = 16_777_216
    formats: tuple[str, ...] = FORMATS
    solutions: int = 64
    text: int = 200_000
    waiting: int = 512
    waiting_pixels: int = 256_000_000
    batch: int = 32
    wait: float = 0.01
    seconds: float = 600.0
    read_seconds: float = 30.0
    stuck_seconds: float = 600.0
    remembered: int = 4096
    remembered_seconds: float = 900.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value, least = getattr(self, item.name), 0 if item.name in ("images", "wait", "remembered") else 1
            if item.name not in ("formats", "read_seconds", "seconds", "stuck_seconds", "remembered_seconds") and value < least:
                raise InputError(f"{item.name} must be at least {least}, got {value}")
            if item.name.endswith("seconds") and not value > 0:
                raise InputError(f"{item.name} must be above 0, got {value}")
        if self.solutions > self.waiting:
            raise InputError(f"solutions ({self.solutions}) must not be above waiting ({self.waiting}), or such a request never gets in")
        if self.image_pixels > self.waiting_pixels:
            raise InputError(f"image_pixels ({self.image_pixels:,}) must not be above waiting_pixels ({self.waiting_pixels:,})")
