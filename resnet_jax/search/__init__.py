"""Many trainings that differ in some fields: space, storage, study and worker."""
