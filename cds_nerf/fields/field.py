"""What an edit asks of a field, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from torch import Tensor
from torch.nn import Parameter

Within = Callable[[Float[Tensor, "points 3"]], Float[Tensor, " points"]]
"""How far points of the world are within a region, in 0..1."""


class Field(Protocol):
    """A scene that cameras see differentiably."""

    model: Any
    """nerfstudio's model of it."""

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras [N] as the model was trained to see through them; those that are given stay as they are."""

    def begin_edit(self) -> None:
        """Make the model ready to be edited; called once, before the first view is rendered."""

    def render_view(
        self, camera: Cameras, index: int, seed: int
    ) -> tuple[Float[Tensor, "3 height width"], dict[str, Float[Tensor, ""]]]:
        """A training view, differentiable with respect to the field's parameters, and the field's own regularisers.

        Args:
            camera: one camera, as a batch [1], at the size to render.
            index: of the training camera that it is.
            seed: of all that is random in the rendering.
        """

    def render_pixels(
        self, camera: Cameras, index: int, pixels: Int[Tensor, " pixels"], seed: int
    ) -> Float[Tensor, "3 pixels"] | None:
        """Some pixels of a training view, differentiable with respect to the field's parameters.

        Args:
            camera: one camera, as a batch [1], at the size of the view.
            index: of the training camera that it is.
            pixels: counted along the rows.
            seed: of all that is random in the rendering.

        Returns:
            None if whole views must be drawn for that, or `hold` leaves nothing to do.
        """

    def render_frame(self, camera: Cameras) -> Float[Tensor, "3 height width"]:
        """What a camera [1] sees, without gradients, as ns-render shows it."""

    def render_distance(self, camera: Cameras) -> Float[Tensor, "height width"] | None:
        """How far a camera [1] sees along the ray of each of its pixels, without gradients; None if it cannot tell."""

    def anchor_loss(
        self, source: Callable[[], Field], camera: Cameras, relevance: Float[Tensor, "1 height width"]
    ) -> Float[Tensor, ""] | None:
        """How far the field's parameters have gone from the source's outside of what is relevant.

        Args:
            source: gives the unedited field.
            camera: one camera, as a batch [1].
            relevance: of what it sees, in 0..1.

        Returns:
            None if its parameters have no place in the scene.
        """

    def hold(self, source: Callable[[], Field], within: Callable[[], Within | None]) -> None:
        """From the next view on, let what is outside of the region stay as it is; called before each step.

        Args:
            source: gives the unedited field.
            within: gives what says of points how far they are within the region, the same object until that changes;
                None if nothing is to be held.
        """

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """What an edit may move, by the names of its optimizers: all but the cameras' poses."""

    def callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """What the field asks to be called before or after a step of the edit."""

    def prepare_to_load(self, step: int, state: dict[str, Tensor]) -> None:
        """Give the parameters the shapes that they have in a checkpoint.

        Those that have them already stay the same objects, which optimizers know.

        Args:
            step: of the checkpoint.
            state: the model's weights in it, by their names in the model.
        """
