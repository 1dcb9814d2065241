"""Models by name, as Flax modules, and the layers they share. Imports the ground and config."""
