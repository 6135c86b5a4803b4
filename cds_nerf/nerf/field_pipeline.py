"""A pipeline that holds a field and knows what it was before it was edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from nerfstudio.utils.external import TCNN_EXISTS
from torch import Tensor, nn
from torch.nn import Parameter

from cds_nerf.errors import UserError
from cds_nerf.fields.field import Field
from cds_nerf.fields.kinds import field_of
from cds_nerf.nerf import compatibility
from cds_nerf.nerf.source_run import model_state, read_checkpoint


class FieldPipeline(VanillaPipeline):
    """The part of an edit's pipeline that has to do with weights: the edited field's, and its source's.

    Weights are loaded all of them or none, into the parameters that are there.
    """

    config: Any
    """Has a checkpoint of the source, `source_checkpoint`, and `rays_per_chunk`."""

    @cached_property
    def field(self) -> Field:
        """The model as an edit sees it."""
        return field_of(self.model, self.config.rays_per_chunk)

    @cached_property
    def unedited(self) -> Field:
        """A field of its own with the source's weights, whatever the edit has made of the model by now.

        Raises:
            UserError: if the source's checkpoint is not there, or does not fit.
        """
        model = compatibility.copy_of(self.model)
        unedited = field_of(model, self.config.rays_per_chunk)
        with self._source_checkpoint() as source:
            state = {name.removeprefix("_model."): value for name, value in model_state(source["pipeline"]).items()}
            unedited.prepare_to_load(source["step"], state)
            check_fits(state, model.state_dict())
            nn.Module.load_state_dict(model, state)
        return unedited

    @contextmanager
    def source_weights(self) -> Iterator[None]:
        """Within, the field is the unedited one, whatever the edit has made of it by now."""
        edited = self.field
        self.field, self._model = self.unedited, self.unedited.model
        try:
            yield
        finally:
            self.field, self._model = edited, edited.model

    def load_source(self) -> None:
        """Take the weights of the source run's checkpoint, and nothing else of it.

        Raises:
            UserError: if they do not fit the model.
        """
        with self._source_checkpoint() as source:
            self.load_pipeline(source["pipeline"], source["step"])

    @contextmanager
    def _source_checkpoint(self) -> Iterator[dict[str, Any]]:
        path = self.config.source_checkpoint
        assert path is not None
        source = read_checkpoint(path)
        try:
            yield source
        except UserError as error:
            raise UserError(f"the checkpoint {path} does not fit: {error}") from error

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint's weights, all of them or none.

        Raises:
            UserError: if the keys or shapes are not the model's; the message names the first that are not.
        """
        self.prepare_to_load(loaded_state, step)
        state = model_state(loaded_state)
        check_fits(state, self.state_dict())
        self.load_state_dict(state)

    def prepare_to_load(self, loaded_state: dict[str, Any], step: int) -> None:
        """Give the model's parameters the shapes that they have in a checkpoint, so that optimizers can be made."""
        state = model_state(loaded_state)
        self.field.prepare_to_load(step, {name.removeprefix("_model."): value for name, value in state.items()})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool | None = True, assign: bool = False) -> Any:
        """Load weights, all of them or none, into the parameters that are there, which the optimizers know.

        nerfstudio's own falls back to those that fit, and its splats make other parameters.
        """
        return nn.Module.load_state_dict(self, state_dict, strict=True)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Those of the field: the model's own were for the source's training."""
        return self.field.callbacks(training_callback_attributes)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """What an edit may move, by the names of its optimizers."""
        return self.field.parameter_groups()


def check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that weights are all of a model's, by its own names, and in its shapes.

    Args:
        state: the weights.
        own: the model's.

    Raises:
        UserError: if they are not; the first that are not are named.
    """
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is not the model's" for key in state if key not in own]
    problems += [
        f"{key} is {list(state[key].shape)}, the model's is {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if problems:
        hint = "was it made with other --pipeline.model settings?"
        if any(key.endswith("tcnn_encoding.params") for key in state) and not TCNN_EXISTS:
            hint = "it was trained with tiny-cuda-nn, which is not installed here"
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{'; '.join(problems[:4])}{more}: {hint}")
