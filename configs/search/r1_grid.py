"""R1.e, its grid: 7 optimizers, 5 learning rates, 4 lengths, 4 batch sizes, with and without decay.

  python -m resnet_jax.main --mode=search --config=configs/search/r1_grid.py --workdir=runs/r1_grid

These are 560 points without decay and 560 with a third of the learning rate every 8 epochs, which
is assumed. --config.search.parallel_trials=10 trains those that differ in the rate and its decay
only side by side. A part of them is a search of its own, in another folder:

  --config.space.schedule.name="('constant',)" --config.space.optimizer.name="('adam', 'sgd')"

The report does not say which images chose its best point, which its slide gives as the batch of 128
and the 20 epochs of R1.c, outside of its own lists. Here the test set ranks (select_on_test), by
the best epoch. To rank by validation instead:

  --config.search.select_on_test=False --config.base.evaluate.split=val
  --config.base.data.val_fraction=0.1

Expected, not measured yet: 47,600 epochs, a minute each on two CPU cores.
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_search


def get_config() -> ConfigDict:
    config = default_search()
    config.base = "resnet_small:grid"
    decayed = {"schedule": {"name": ("step",)}}
    config.space = {
        "batch_size": (100, 150, 200, 500),
        "num_epochs": (10, 30, 50, 80),
        "optimizer": {
            "name": ("sgd", "rmsprop", "adagrad", "adadelta", "adam", "adamax", "nadam"),
            "learning_rate": (0.001, 0.005, 0.007, 0.01, 0.05),
        },
        "schedule": {
            "name": ("constant", "step"),
            "options": {
                "every_epochs": {"values": (8,), "when": decayed},
                "factor": {"values": (1 / 3,), "when": decayed},
            },
        },
    }
    config.search.select_on_test = True
    return config
