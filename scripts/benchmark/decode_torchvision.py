"""torchvision's side of the decoding benchmark, a process that `decode.py` starts."""

import itertools
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from benchmark.worker import Answer, Commands, Unavailable, serve

ENDLESS = 2**40  # images


def _torchvision() -> tuple[Any, Any]:
    """Returns torchvision's data sets and transforms.

    Its wheels for CUDA have no operators beside PyTorch for CPUs, and then miss two on import that
    the reading of images never calls: they are declared here.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise Unavailable("torchvision is not installed; pip install -e '.[benchmark]'") from error
    except RuntimeError:
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define("torchvision::nms", signature)
        torch.library.define("torchvision::qnms", signature)
    from torchvision import datasets, transforms

    return datasets, transforms


def start(spec: Answer) -> tuple[Answer, Commands]:
    """Opens a loader of the files; see `benchmark.worker.serve`."""
    datasets, transforms = _torchvision()
    cut = transforms.RandomResizedCrop(spec["image_size"])
    transform = transforms.Compose([cut, transforms.PILToTensor()])
    dataset = datasets.ImageFolder(spec["folder"], transform)
    sampler = RandomSampler(dataset, replacement=True, num_samples=ENDLESS)
    loader = DataLoader(dataset, spec["batch"], sampler=sampler, num_workers=spec["workers"])
    batches = iter(loader)

    def read(count: int) -> Answer:
        for images, _ in itertools.islice(batches, count):
            assert images.shape == (spec["batch"], 3, spec["image_size"], spec["image_size"])
            assert images.dtype == torch.uint8
        return {}

    threads = {"torch_threads": torch.get_num_threads()}
    return {"found": len(dataset), "provenance": threads}, {"read": read}


if __name__ == "__main__":
    serve(start)
