"""`HubModel`: a network that is saved in, and loaded from, folders in the format of the Hugging Face Hub.

    >>> network.save_pretrained("folder")       # config.json, model.safetensors, README.md
    >>> network = MDNet.from_pretrained("folder")
    >>> network.push_to_hub("user/name")

The methods are those of `huggingface_hub.PyTorchModelHubMixin`. Where that package is not installed, the
networks work as well, and these methods say how to install it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from torch import nn

from mdlstm_tk import models
from mdlstm_tk.errors import InputError, MissingExtraError, install_command

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:

        def _refuse(*_: Any, **__: Any) -> NoReturn:
            install = install_command("hub")
            raise MissingExtraError(f"this needs huggingface_hub, which is not installed; use: {install}")

        class PyTorchModelHubMixin:
            def __init_subclass__(cls, **_: Any) -> None:
                super().__init_subclass__()

            save_pretrained = from_pretrained = push_to_hub = _refuse
            _hub_mixin_config = property(_refuse)


CLASS = "class"  # the key of config.json that holds the name of the network's class
PLACEMENT = ("device", "dtype")  # arguments that say where a network is, not what it is
CARD = """---
{{ card_data }}
---

# {{ class_name }}

A network of [mdlstm-tk]({{ repo_url }}), which trains multi-dimensional LSTMs
([Graves, Fernández, Schmidhuber 2007]({{ paper_url }})). It has {{ parameters }} parameters.

```python
from mdlstm_tk.models import {{ class_name }}  # pip install 'mdlstm-tk[train,hub]'

network = {{ class_name }}.from_pretrained("{{ repo_id | default("user/name or a folder", true) }}")
```

| argument | value |
|---|---|
{% for name, value in arguments.items() %}| {{ name }} | `{{ value }}` |
{% endfor -%}
"""


_networks: dict[str, type[HubModel]] = {}  # by name


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="mdlstm-tk",
    repo_url="https://github.com/mdlstm-tk/mdlstm-tk",
    paper_url="https://arxiv.org/abs/0705.2011",
    tags=["lstm", "mdlstm", "multi-dimensional-lstm"],
    model_card_template=CARD,
):
    """Base of the networks, with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    config.json holds the arguments of the constructor, but device and dtype, and the name of the class.
    """

    def __init_subclass__(cls, **info: Any) -> None:
        # The mixin leaves out of config.json what it has no encoder for, so that a network would come back
        # with other arguments.
        super().__init_subclass__(coders={object: (_to_json, lambda value: value)}, **info)
        _networks[cls.__name__] = cls

    def hub_config(self) -> dict[str, Any]:
        """The content of config.json."""
        config: dict[str, Any] = dict(self._hub_mixin_config)  # type: ignore[arg-type]
        arguments = {name: value for name, value in config.items() if name not in PLACEMENT}
        return {CLASS: type(self).__name__} | arguments

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **options: Any) -> Any:
        """Write config.json, model.safetensors and, if there is none, a model card README.md into a folder.

        Args:
            save_directory: the folder; it is created if need be.
            config: content of config.json, if not `hub_config()`.
            **options: as for `huggingface_hub.PyTorchModelHubMixin.save_pretrained`.

        Raises:
            MissingExtraError: huggingface_hub is not installed.
        """
        return super().save_pretrained(save_directory, config=config or self.hub_config(), **options)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The model card: how to load the network, and its arguments."""
        arguments = self.hub_config()
        class_name = arguments.pop(CLASS)
        parameters = sum(parameter.numel() for parameter in self.parameters())
        data = {"class_name": class_name, "arguments": arguments, "parameters": parameters}
        return super().generate_model_card(*args, **data | kwargs)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: Any = None, strict: bool = True, **options: Any
    ) -> Any:
        """Build the network, and load its weights; the mixin reads config.json and passes it on.

        Raises:
            InputError: the folder holds a network of another class, weights that do not fit, or a cell or
                network that it cannot define.
        """
        name = (config or {}).get(CLASS, cls.__name__)
        if name != cls.__name__:
            raise InputError(f"{model_id} holds a {name}, use {name}.from_pretrained; got {cls.__name__}")
        options = {name: _from_json(name, value) for name, value in options.items()}
        try:
            network = super()._from_pretrained(model_id=model_id, strict=strict, **options)
        except RuntimeError as error:  # of load_state_dict, with a line for each tensor
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the weights in {model_id} do not fit this {cls.__name__}: {reason}"
            ) from error
        return network.eval()  # which some versions of huggingface_hub leave out


def _to_json(value: Any) -> Any:
    """An argument as config.json holds it."""
    if isinstance(value, HubModel):
        return value.hub_config()
    if isinstance(value, nn.Module):
        return {CLASS: type(value).__name__}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(name: str, value: Any) -> Any:
    """The argument called `name` from what config.json holds."""
    if not isinstance(value, Mapping) or CLASS not in value:
        return value
    for public_name in models.__all__:  # which are loaded when they are first used
        getattr(models, public_name)
    network = _networks.get(str(value[CLASS]))
    if network is None:
        raise InputError(
            f"config.json cannot say how to build a {value[CLASS]}; give {name}= to from_pretrained"
        )
    arguments = {key: _from_json(key, argument) for key, argument in value.items() if key != CLASS}
    return network(**arguments)
