"""The buttons of an edit in nerfstudio's viewer, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from nerfstudio.viewer.viewer_elements import ViewerButton
from viser import ViserServer


class Request(Enum):
    """What a button asks an edit to do between two steps."""

    CROP = "Edit within the crop"
    SAVE = "Save a checkpoint now"
    VIDEO = "Video now"
    RETURN = "Back to the source"

    @property
    def question(self) -> str | None:
        """What is asked before it is done; None for what takes nothing away."""
        if self is not Request.RETURN:
            return None
        return "What the edit has made of the field will be gone. Press it again to go back to the source."


class RequestButton(ViewerButton):
    """A button that answers at once, in the middle of a step as well.

    The viewer's own ones call back under the lock that a step holds.
    """

    def __init__(self, request: Request, ask: Callable[[Request], None]) -> None:
        super().__init__(request.value, lambda button: ask(request))
        self._press = lambda: ask(request)

    def install(self, viser_server: ViserServer) -> None:
        """Show it."""
        self._create_gui_handle(viser_server)
        self.gui_handle.on_click(lambda _: self._press())
