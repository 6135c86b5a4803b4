"""What an edit was made from and with, as each of its files holds it: by that it is known again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.source_image import SourceImage
from cds_nerf.pictures import CONTENT_KEY, SETTINGS_KEY, read_texts

WHERE_AND_HOW = {
    *("image", "mask", "version", "steps_done"),
    *("device", "gradient_checkpointing", "vae_tiling", "vae_slicing", "cpu_offload"),
}
"""What is recorded and makes no other edit: where the files lay, whose content counts, and where and in how much memory
the model ran, by which the pixels differ in their rounding alone."""


@dataclass(frozen=True)
class EditRecord:
    """What it takes to repeat an edit, and to know it."""

    settings: dict[str, Any]
    """The command's options by their names, with the files' names, the program's version and the steps done."""
    content: dict[str, str]
    """Hashes of what is in the image and in the mask, if there is one."""

    @classmethod
    def of(cls, source: SourceImage, source_prompt: str, target_prompt: str, settings: ImageEditSettings) -> EditRecord:
        """The record of an edit that is to be made, all of its steps."""
        options = settings.options()
        options |= {"image": str(source.path), "source_prompt": source_prompt, "target_prompt": target_prompt}
        options |= {"version": version("cds-nerf"), "steps_done": settings.steps}
        return cls(json.loads(json.dumps(options)), source.content)

    @classmethod
    def read(cls, path: Path) -> EditRecord | None:
        """The record in a PNG or safetensors file; None if it has none, or is no such file."""
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "np") as file:
                    texts = file.metadata() or {}
            else:
                texts = read_texts(path)
            return cls(dict(json.loads(texts[SETTINGS_KEY])), dict(json.loads(texts.get(CONTENT_KEY, "{}"))))
        except Exception:  # another program's file, whole or broken, which raises anything
            return None

    def after(self, steps: int) -> EditRecord:
        """The record of the edit that was interrupted after so many steps."""
        return replace(self, settings=self.settings | {"steps_done": steps})

    @property
    def is_finished(self) -> bool:
        """Whether all steps were made."""
        return self.settings.get("steps_done") == self.settings.get("steps")

    def difference(self, other: EditRecord) -> str | None:
        """What makes the other one another edit, in words; None if it is the same, as far as it was made."""
        if not other.content:
            return "of an image that it does not tell, as version 0.1.0 made them"
        for name in sorted({*self.content, *other.content}):
            if self.content.get(name) != other.content.get(name):
                return f"of another {name}"
        defaults = json.loads(json.dumps(ImageEditSettings().options()))
        for name in sorted({*self.settings, *other.settings} - WHERE_AND_HOW):
            was, wanted = (record.settings.get(name, defaults.get(name)) for record in (other, self))
            if was != wanted:
                return f"with {name} {json.dumps(was, ensure_ascii=False)}"
        return None
