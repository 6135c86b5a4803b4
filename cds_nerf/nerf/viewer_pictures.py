"""Pictures that the program shows in nerfstudio's viewer."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from nerfstudio.viewer.viewer_elements import ViewerElement
from PIL import Image
from viser import GuiMarkdownHandle, ViserServer


class Picture(ViewerElement[str]):
    """A picture under its name; nothing until there is one.

    It is part of a text: viser 0.2.7 has no other pictures in its panels, and 1.0 shows these as well.

    Args:
        name: what is written above it.
        width: in pixels, at the most; a greater one is made smaller before it is sent.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__(name)
        self.width = width
        self._markdown: GuiMarkdownHandle | None = None

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        root = Path()  # without one viser warns of each picture, although these need none
        self._markdown = viser_server.gui.add_markdown("", image_root=root)

    def install(self, viser_server: ViserServer) -> None:
        """Make its place."""
        self._create_gui_handle(viser_server)

    def show(self, picture: Image.Image) -> None:
        """Put a picture in the place of the last one, where there is a viewer."""
        if self._markdown is None:
            return
        picture.thumbnail((self.width, 10 * self.width))
        file = BytesIO()
        picture.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        self._markdown.content = f"**{self.name}**\n\n![{self.name}](data:image/png;base64,{data})"
