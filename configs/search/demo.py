"""Six points on the 960 bundled images, to see what a search does.

  python -m resnet_jax.main --mode=search --config=configs/search/demo.py --workdir=runs/demo

Stop it, start it again, or start it in a second terminal too: no point is trained twice. Selection
is on validation images; the test set is scored for the winner alone.
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_search


def get_config() -> ConfigDict:
    config = default_search()
    config.base = "quickstart"
    config.space = {
        "num_epochs": (4,),
        "batch_size": (64,),
        "data": {"name": ("sample",), "val_fraction": (0.2,)},
        "log": {"tensorboard": (False,)},
        "optimizer": {"learning_rate": (0.03, 0.1, 0.3), "weight_decay": (5e-4, 5e-3)},
    }
    return config
