"""A network with the methods of the Hugging Face Hub: saved in a folder, and loaded from it.

    pip install huggingface-hub
    python examples/hub.py

`network.push_to_hub("user/name")` uploads what `save_pretrained` writes.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin

from mdlstm_tk.models import Classifier


class HubClassifier(Classifier, PyTorchModelHubMixin, library_name="mdlstm-tk"):
    """The mixin keeps these arguments in config.json, so they are numbers, texts, or lists of such."""

    def __init__(self, channels=1, classes=10, hidden=8):
        super().__init__(channels, classes, hidden=hidden)


def main(folder="my-network"):
    """Save a network, load it, and return the largest difference of their outputs."""
    torch.manual_seed(0)
    network = HubClassifier(classes=3).eval()
    network.save_pretrained(folder)  # config.json, model.safetensors and README.md
    again = HubClassifier.from_pretrained(folder).eval()  # or "user/name", from the Hub
    x = torch.randn(2, 9, 12, 1)
    with torch.no_grad():
        difference = (again(x) - network(x)).abs().max().item()
    print(f"largest difference after loading: {difference}")
    return difference


if __name__ == "__main__":
    main()
