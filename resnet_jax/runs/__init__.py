"""What a run leaves in its folder: checkpoints, records, views of them. Imports the ground."""
