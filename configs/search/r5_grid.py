"""R5, its grid of 18 points: batch size, learning rate and shuffling of a small residual network.

  python -m resnet_jax.main --mode=search --config=configs/search/r5_grid.py --workdir=runs/r5_grid

The report scored the test set once a point, after epoch 50, and named its best by it. So does this
search: the test set ranks (select_on_test), by its last score. The table at the end has the
report's figures beside ours. The report's code also lists a learning rate of 0.0001.
--config.search.parallel_trials=6 trains the six points of a batch size side by side.

Measured at 10 of the 50 epochs in bfloat16, with --config.base.num_epochs=10 and
--config.base.model.dtype=bfloat16: the best point, batch 100 at 0.01 in file order, has 81.24 %,
the report's best 77.75 %; 3.3 hours of a core in all, in results/. Expected at full length, not
measured yet: 18 times 48 minutes on two CPU cores; less than half an hour on a GPU.
"""

from ml_collections import ConfigDict

from resnet_jax.config import default_search

# Batch, rate, shuffle; train and test accuracy of the report, percent.
REPORTED = (
    (100, 0.1, True, 73.48, 72.05),
    (500, 0.1, True, 85.12, 80.83),
    (1000, 0.1, True, 84.75, 81.27),
    (100, 0.01, True, 95.54, 88.30),
    (500, 0.01, True, 95.34, 87.87),
    (1000, 0.01, True, 93.81, 85.20),
    (100, 0.001, True, 94.07, 88.29),
    (500, 0.001, True, 92.04, 86.69),
    (1000, 0.001, True, 90.17, 85.29),
    (100, 0.1, False, 77.07, 75.13),
    (500, 0.1, False, 86.36, 83.00),
    (1000, 0.1, False, 85.10, 80.58),
    (100, 0.01, False, 95.87, 88.16),
    (500, 0.01, False, 95.81, 89.12),
    (1000, 0.01, False, 94.14, 86.51),
    (100, 0.001, False, 94.61, 87.24),
    (500, 0.001, False, 92.43, 86.20),
    (1000, 0.001, False, 90.67, 85.30),
)


def get_config() -> ConfigDict:
    config = default_search()
    config.base = "resnet_small_tuning"
    config.space = {
        "batch_size": (100, 500, 1000),
        "optimizer": {"learning_rate": (0.1, 0.01, 0.001)},
        "data": {"shuffle": (True, False)},
    }
    config.search.metric = "final"
    config.search.select_on_test = True
    config.reported.columns = (
        *("batch_size", "optimizer.learning_rate", "data.shuffle"),
        *("train", "test"),
    )
    config.reported.rows = REPORTED
    return config
