"""Training: loop, step, state, optimizers, schedules. Imports runs, weights and below."""
