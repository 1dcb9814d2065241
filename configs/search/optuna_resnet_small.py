"""R1.g, Optuna: 30 points of the small residual network, 3 epochs each, weak ones stopped early.

  python -m resnet_jax.main --mode=search --config=search/optuna_resnet_small --workdir=runs/optuna

It takes the extra `search`. The report names Optuna as future work and gives no figures. The base
is R1.c with a tenth of the training images for validation, by which points are chosen; the test set
is scored for the winner alone.

Measured with two workers of one core each, in bfloat16: 28 minutes. The best point has 75.76 % of
the validation and 76.27 % of the test images; as resnet_small:optuna, trained on all 50,000 images,
78.20 ± 0.72 with three seeds. R1.c's own recipe, cut off after three epochs, has
65.79 ± 2.27 (five seeds).
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_search


def get_config() -> ConfigDict:
    config = default_search()
    config.base = "resnet_small:adam_val"
    momentum = {"low": 0.8, "high": 0.98, "when": {"optimizer": {"name": ("sgd",)}}}
    config.space = {
        "num_epochs": (3,),
        "optimizer": {
            "name": ("adam", "sgd"),
            "learning_rate": {"low": 1e-3, "high": 0.5, "log": True},
            "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
            "options": {"momentum": momentum},
        },
        "schedule": {
            "name": ("one_cycle",),
            "per": ("step",),
            "options": {"peak_fraction": (0.2, 0.3, 0.4)},
        },
        "loss": {"label_smoothing": {"low": 0.0, "high": 0.2}},
    }
    config.search.method = "tpe"
    config.search.trials = 30
    config.search.pruner = "median"
    return config
