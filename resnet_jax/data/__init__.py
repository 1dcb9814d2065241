"""Data: where the bytes come from, batches, and augmentation."""
