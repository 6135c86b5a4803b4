"""The controls of an edit in nerfstudio's viewer, over its live settings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, get_args

from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerDropdown, ViewerElement, ViewerText
from torch import nn
from viser import ViserServer

from cds_nerf.errors import UserError
from cds_nerf.guidance.config import TimestepSchedule
from cds_nerf.guidance.registry import score_names
from cds_nerf.nerf.live_settings import LIVE_SETTINGS
from cds_nerf.nerf.viewer_buttons import Request, RequestButton
from cds_nerf.nerf.viewer_pictures import Picture

Change = Callable[[Mapping[str, str]], str]


class _Field:
    """A field that calls nothing back: what is typed counts when the button is pressed.

    The viewer's own fields call back when the program sets them, too, under the lock that the button's callback holds.
    """

    def install(self, viser_server: ViserServer) -> None:
        self._create_gui_handle(viser_server)  # type: ignore[attr-defined]


class TextField(_Field, ViewerText):
    """A text or a number."""


class ChoiceField(_Field, ViewerDropdown[str]):
    """One of several."""


class Message(ViewerElement[str]):
    """A line that the program writes."""

    text = "Changes take effect at the next step."

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self._markdown = viser_server.gui.add_markdown(self.text)

    def install(self, viser_server: ViserServer) -> None:
        """Show it."""
        self._create_gui_handle(viser_server)

    def say(self, text: str) -> None:
        """Write another line."""
        self.text = text
        if hasattr(self, "_markdown"):
            self._markdown.content = text


class LivePanel(nn.Module):
    """What the viewer finds in the pipeline, since this is a module of it; it has no parameters.

    Args:
        values: of the live settings.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self._change: Change | None = None
        self._closed = "The edit has not begun yet."
        self._pressed: Request | None = None
        self.requests: deque[Request] = deque()
        """What the buttons have asked for, and is not done yet."""
        self._shown: dict[str, str] = {}
        self._fields: dict[str, TextField | ChoiceField] = {}
        choices = {"guidance.score": score_names(), "guidance.timestep_schedule": get_args(TimestepSchedule)}
        for path in LIVE_SETTINGS:
            name = path.removeprefix("guidance.").replace(".", "_").replace("region_box", "box")
            label = name.replace("_", " ").capitalize()
            field: TextField | ChoiceField = (
                ChoiceField(label, values[path], sorted({*choices[path], values[path]}))
                if path in choices
                else TextField(label, _text(values[path]))
            )
            self._fields[path] = field
            # The viewer shows them in the order of the names.
            setattr(self, f"field_{len(self._fields):02}_{name}", field)
        self.field_apply = ViewerButton("Apply", self.take)
        self.field_message = Message("Message")
        for number, request in enumerate(Request, start=1):
            setattr(self, f"now_{number}_{request.name.lower()}", RequestButton(request, self.ask))
        self.picture_1_losses = Picture("Losses", width=480)
        self.picture_2_gradient = Picture("The last view, and where the guidance pulls at it", width=480)
        self.picture_3_strip = Picture("Source, edit and gradient of the first view", width=960)

    def connect(self, change: Change, values: Mapping[str, Any]) -> None:
        """Let the button act, and show what is set.

        Args:
            change: takes the settings that were changed, as they were typed, and says what became of it.
            values: of the live settings.
        """
        self._change = change
        self._closed = ""
        self.show(values)

    def close(self, why: str) -> None:
        """Let the buttons say why they do nothing any more."""
        self._closed = why

    def show(self, values: Mapping[str, Any]) -> None:
        """Show what is set."""
        self._shown = {path: _text(values[path]) for path in LIVE_SETTINGS}
        for path, field in self._fields.items():
            if field.value != self._shown[path]:
                field.value = self._shown[path]

    def follow(self, values: Mapping[str, Any]) -> None:
        """Show what is set if it is not what was shown, as where a log sets it; else what is being typed stays."""
        if any(self._shown[path] != _text(values[path]) for path in LIVE_SETTINGS):
            self.show(values)

    def take(self, button: ViewerButton) -> None:
        """Change what was typed; what is wrong with it is shown, and all stays as it was."""
        self._pressed = None
        if self._change is None:
            self.field_message.say(self._closed)
            return
        typed = {path: field.value for path, field in self._fields.items() if field.value != self._shown[path]}
        try:
            self.field_message.say(self._change(typed))
        except UserError as error:
            self.field_message.say(f"**Not changed:** {error}")

    def ask(self, request: Request) -> None:
        """Ask for what is then done between two steps; for what cannot be undone, by a second press."""
        if self._closed:
            self.field_message.say(self._closed)
            return
        is_sure = request.question is None or self._pressed is request
        self._pressed = None if is_sure else request
        if is_sure:
            self.field_message.say(f"{request.value}: when the step is done.")
            if request not in self.requests:
                self.requests.append(request)
        else:
            self.field_message.say(f"**{request.question}**")


def _text(value: Any) -> str:
    """A setting's value as it is typed."""
    return " ".join(f"{number:.6g}" for number in value) if isinstance(value, tuple) else str(value)
