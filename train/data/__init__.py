"""From a source to mapped, augmented batches."""
